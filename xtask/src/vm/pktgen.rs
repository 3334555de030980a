// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's packet generator: which flows it sends, the script that makes it do so, and what it says afterwards.
//! The words of the script are those of the kernel's Documentation/networking/pktgen.rst.
use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context, Result, bail};

/// UDP port of every destination; the benchmark's sink counts nothing else.
const DESTINATION_PORT: u16 = 9000;
/// Lowest source port.
const FIRST_PORT: u32 = 1024;
/// Source ports from the lowest on that a flow may have.
const PORTS: u32 = 64_000;
/// Backends that may send.
pub(crate) const BACKENDS: u32 = 50;
/// Source ports of one backend, so that natgw's rule with that many for each refuses nobody.
pub(crate) const PORTS_PER_BACKEND: u32 = 1280;
const DESTINATIONS: u32 = 32_768;

/// Flows as pktgen can send them in turn. It counts source port and both addresses on with every packet, so flows are
/// exact where the numbers of ports and destinations have no common divisor; and a port always belongs to the same
/// backend where the number of backends divides that of the ports. Ports of two backends never collide then: the best
/// case for a gateway that keeps source ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cycle {
    pub(crate) backends: u32,
    pub(crate) ports: u32,
    pub(crate) destinations: u32,
}

impl Cycle {
    /// Every packet a new flow, up to [`Cycle::flows`] packets: at the end half of each backend's ports are in use
    /// towards each destination.
    pub(crate) const NEW_FLOWS: Self = Self { backends: BACKENDS, ports: 32_000, destinations: 63 };

    /// So many flows, of as many backends as can be and then as few ports of each as can be.
    ///
    /// # Errors
    ///
    /// Names the next smaller number that can be had.
    pub(crate) fn of(flows: u32) -> Result<Self> {
        if let Some(cycle) = Self::exact(flows) {
            return Ok(cycle);
        }
        let near = (1..flows).rev().find(|flows| Self::exact(*flows).is_some()).unwrap_or(1);
        bail!(
            "pktgen cannot send {flows} flows in turn (they have to be the product of at most {PORTS} ports and \
             {DESTINATIONS} destinations without a common divisor): take {near}"
        )
    }

    fn exact(flows: u32) -> Option<Self> {
        let divisors = (1..=DESTINATIONS.min(flows)).filter(|count| flows.is_multiple_of(*count));
        let cycles = divisors.filter_map(|destinations| {
            let ports = flows / destinations;
            if ports > PORTS || common_divisor(ports, destinations) != 1 {
                return None;
            }
            let backends = (1..=BACKENDS).rev().find(|backends| ports.is_multiple_of(*backends))?;
            let cycle = Self { backends, ports, destinations };
            (ports / backends <= PORTS_PER_BACKEND).then_some(cycle)
        });
        cycles.max_by_key(|cycle| (cycle.backends, u32::MAX - cycle.ports))
    }

    /// Different 5-tuples of one cycle.
    pub(crate) const fn flows(&self) -> u32 {
        self.ports * self.destinations
    }
}

const fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// What to send, from where, to whom.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) device: String,
    /// Hardware address of the gateway's inside interface.
    pub(crate) gateway_mac: String,
    /// Address of the first backend.
    pub(crate) source: Ipv4Addr,
    /// First destination address.
    pub(crate) destination: Ipv4Addr,
    pub(crate) cycle: Cycle,
    /// Packets, all threads together.
    pub(crate) packets: u64,
    /// Packets a second, all threads together; as fast as can be when absent.
    pub(crate) rate: Option<u64>,
    /// Frame length in bytes, without the frame check sequence.
    pub(crate) frame: u16,
    /// Transmit queues, each served by the pktgen thread of the CPU with its number. Each has destinations of its own, so
    /// the flows are `threads` times those of the cycle.
    pub(crate) threads: u32,
    /// Copies of each frame handed to the driver before it is told to send.
    pub(crate) burst: u32,
}

impl Plan {
    /// The shell script; it runs as root on the generator and blocks until all packets are sent.
    pub(crate) fn script(&self) -> String {
        self.prepare() + &self.send()
    }

    /// Its first part, which sends nothing.
    pub(crate) fn prepare(&self) -> String {
        let Self { threads, .. } = self;
        let mut text = "set -eu\n\
             p=/proc/net/pktgen\n\
             [ -d $p ] || modprobe pktgen\n\
             w() { echo \"$2\" > \"$p/$1\" || { echo \"pktgen refuses '$2' for $1\" >&2; exit 1; }; }\n\
             clear() { for t in $p/kpktgend_*; do echo rem_device_all > \"$t\"; done; }\n\
             trap 'echo stop > $p/pgctrl; clear; exit 1' INT TERM HUP\n\
             clear\n"
            .to_owned();
        for thread in 0..*threads {
            let name = self.name(thread);
            let _infallible = writeln!(text, "w kpktgend_{thread} \"add_device {name}\"");
            for setting in self.settings(thread) {
                let _infallible = writeln!(text, "w {name} \"{setting}\"");
            }
        }
        text
    }

    /// Its second part, for a shell of its own or after the first: sends, and tells the results.
    pub(crate) fn send(&self) -> String {
        let names: Vec<String> = (0..self.threads).map(|thread| self.name(thread)).collect();
        format!(
            "p=/proc/net/pktgen\n\
             echo start > $p/pgctrl\n\
             for d in {}; do echo \"$d\"; sed -n '/^Result/,$p' \"$p/$d\"; done\n\
             for t in $p/kpktgend_*; do echo rem_device_all > \"$t\"; done\n",
            names.join(" ")
        )
    }

    /// pktgen's name of a device: `DEVICE@QUEUE` where it is not alone.
    fn name(&self, thread: u32) -> String {
        if self.threads == 1 { self.device.clone() } else { format!("{}@{thread}", self.device) }
    }

    fn settings(&self, thread: u32) -> Vec<String> {
        let Cycle { backends, ports, destinations } = self.cycle;
        let last = |first: Ipv4Addr, count: u32| Ipv4Addr::from(first.to_bits() + count - 1);
        let destination = Ipv4Addr::from(self.destination.to_bits() + thread * destinations);
        let threads = u64::from(self.threads);
        let mut settings = vec![
            // The remainder goes to the first thread.
            format!(
                "count {}",
                self.packets / threads + if thread == 0 { self.packets % threads } else { 0 }
            ),
            "clone_skb 0".to_owned(),
            format!("burst {}", self.burst),
            format!("pkt_size {}", self.frame),
            "delay 0".to_owned(),
            format!("dst_mac {}", self.gateway_mac),
            format!("src_min {}", self.source),
            format!("src_max {}", last(self.source, backends)),
            format!("dst_min {destination}"),
            format!("dst_max {}", last(destination, destinations)),
            format!("udp_src_min {FIRST_PORT}"),
            // The kernel's upper end is excluded, for ports only.
            format!("udp_src_max {}", FIRST_PORT + ports),
            format!("udp_dst_min {DESTINATION_PORT}"),
            format!("udp_dst_max {DESTINATION_PORT}"),
            "flag UDPCSUM".to_owned(),
        ];
        if self.threads > 1 {
            settings.extend([format!("queue_map_min {thread}"), format!("queue_map_max {thread}")]);
        }
        if let Some(rate) = self.rate {
            settings.push(format!("ratep {}", (rate / threads).max(1)));
        }
        settings
    }
}

/// What pktgen says of one device afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Packets handed to the driver.
    pub(crate) packets: u64,
    /// Microseconds that it took.
    pub(crate) microseconds: u64,
    /// Packets that could not be handed over.
    pub(crate) errors: u64,
}

impl Sent {
    /// Of one device, from the lines that begin with `Result:`.
    ///
    /// # Errors
    ///
    /// Quotes what pktgen says when it is no success.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wanted = || format!("pktgen's result is not as expected (`Result: OK: …`): {}", text.trim());
        let result = text.split_once("Result: OK: ").with_context(wanted)?.1;
        let microseconds = leading_number(result);
        let packets = result.split_once("usec, ").and_then(|(_, rest)| leading_number(rest));
        let errors = result.split_once("errors: ").and_then(|(_, rest)| leading_number(rest));
        match (packets, microseconds, errors) {
            (Some(packets), Some(microseconds), Some(errors)) => Ok(Self { packets, microseconds, errors }),
            _incomplete => bail!(wanted()),
        }
    }
}

fn leading_number(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
#[path = "pktgen_tests.rs"]
mod tests;
