// SPDX-License-Identifier: MIT OR Apache-2.0
//! The gateways that are compared, as shell commands of the machine in the middle.
use std::{fmt, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};

use super::{
    machine::Machine,
    pktgen::{BACKENDS, PORTS_PER_BACKEND},
};

/// `lan0`, the backends' side. They are in 10.0.0.0/16.
pub(crate) const LAN: &str = "10.0.0.1/16";
pub(crate) const BACKEND_NET: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
pub(crate) const FIRST_BACKEND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// `wan0`'s own address, because masquerade can use no other.
pub(crate) const FRONTEND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// First destination of what is measured, and of what is verified before: no flow is in both.
pub(crate) const MEASURED: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
pub(crate) const VERIFIED: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 1);
pub(crate) const DESTINATION_NET: &str = "10.128.0.0/9";

/// One command of those here.
pub(crate) const STEP: Duration = Duration::from_secs(60);
/// Loading natgw's programs under emulation, where the kernel's verifier goes through a million instructions.
const READY: Duration = Duration::from_secs(180);

/// What stands in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Gateway {
    /// An XDP program that only redirects: what the path itself costs
    Floor,
    /// The kernel's forwarding, no translation
    Forward,
    /// The kernel's forwarding with nftables masquerade
    Masquerade,
    /// natgw, run as a daemon
    Natgw,
}

impl Gateway {
    pub(crate) const ALL: [Self; 4] = [Self::Floor, Self::Forward, Self::Masquerade, Self::Natgw];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Forward => "forward",
            Self::Masquerade => "masquerade",
            Self::Natgw => "natgw",
        }
    }

    pub(crate) const fn translates(self) -> bool {
        matches!(self, Self::Masquerade | Self::Natgw)
    }

    /// Starts it with room for `flows` and returns once it forwards.
    pub(crate) fn start(self, machine: &mut Machine, flows: u32) -> Result<()> {
        match self {
            Self::Floor => {
                machine.run("natgw-bench-guest floor --object /bench.bpf.o --devices lan0 wan0", STEP)?;
            }
            Self::Forward => {
                machine.run("echo 1 > /proc/sys/net/ipv4/ip_forward", STEP)?;
            }
            Self::Masquerade => {
                machine.run(&masquerade(flows), STEP)?;
            }
            Self::Natgw => {
                machine
                    .run(&format!("cat > /run/natgw.toml <<'END'\n{}END\n", configuration(flows)), STEP)?;
                machine.run(START_NATGW, READY).context("natgw does not get ready")?;
            }
        }
        Ok(())
    }

    /// Stops it, and leaves the machine as it was.
    pub(crate) fn stop(self, machine: &mut Machine) -> Result<()> {
        let command = match self {
            Self::Floor => "natgw-bench-guest detach",
            Self::Forward => "echo 0 > /proc/sys/net/ipv4/ip_forward",
            Self::Masquerade => {
                "echo 0 > /proc/sys/net/ipv4/ip_forward; nft delete table ip natgw_bench && natgw-bench-guest flush"
            }
            Self::Natgw => STOP_NATGW,
        };
        machine.run(command, STEP).map(drop)
    }

    /// What it says itself of packets that did not arrive.
    pub(crate) fn says(self, machine: &mut Machine) -> String {
        let command = match self {
            Self::Natgw => "natgw stats --name vm | cat",
            Self::Floor | Self::Forward | Self::Masquerade => "cat /proc/net/dev",
        };
        machine.run(command, STEP).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Room for every flow, and a bucket for each, as on a well-tuned host.
fn masquerade(flows: u32) -> String {
    format!(
        "set -e\n\
         nft -f - <<'END'\n\
         table ip natgw_bench {{\n\
         chain outbound {{ type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }}\n\
         }}\n\
         END\n\
         echo {flows} > /proc/sys/net/netfilter/nf_conntrack_buckets\n\
         echo {} > /proc/sys/net/netfilter/nf_conntrack_max\n\
         echo 1 > /proc/sys/net/ipv4/ip_forward\n",
        2 * flows
    )
}

/// The configuration file, as a user would write it.
fn configuration(flows: u32) -> String {
    let first = FIRST_BACKEND.to_bits();
    let backends: Vec<String> =
        (0..BACKENDS).map(|index| format!("\"{}\"", Ipv4Addr::from(first + index))).collect();
    format!(
        "[gateway]\nname = \"vm\"\ninside = [\"lan0\"]\noutside = [\"wan0\"]\nxdp_mode = \"native\"\n\
         max_flows = {flows}\n\n\
         [[frontend]]\nname = \"fe1\"\naddresses = [\"{FRONTEND}\"]\nhost_ports = \"none\"\n\n\
         [[pool]]\nname = \"senders\"\nbackends = [{}]\n\n\
         [[outbound_rule]]\nname = \"out\"\npool = \"senders\"\nfrontends = [\"fe1\"]\nprotocol = \"all\"\n\
         allocation = \"static\"\nports_per_backend = {PORTS_PER_BACKEND}\n",
        backends.join(", ")
    )
}

/// The daemon's line `ready` comes when packets are translated. The log is emptied first: the shell in the background may
/// do so only after the first look for that line.
const START_NATGW: &str = "\
: > /run/natgw.log
natgw run --config /run/natgw.toml > /run/natgw.log 2>&1 &
pid=$!
echo $pid > /run/natgw.pid
while ! grep -qw ready /run/natgw.log; do
    [ -n \"$(cat /proc/$pid/cmdline 2>/dev/null)\" ] || { cat /run/natgw.log; exit 1; }
    sleep 0.1
done
";

const STOP_NATGW: &str = "\
pid=$(cat /run/natgw.pid)
kill -TERM $pid
while [ -n \"$(cat /proc/$pid/cmdline 2>/dev/null)\" ]; do sleep 0.1; done
natgw detach --name vm
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_covers_every_port_that_pktgen_sends_from() {
        let text = configuration(65_536);
        assert_eq!(text.matches("\"10.0.1.").count(), BACKENDS as usize);
        assert!(text.contains("ports_per_backend = 1280") && text.contains("max_flows = 65536"), "{text}");
    }

    #[test]
    fn an_earlier_daemon_is_not_taken_for_this_one() {
        let emptied = START_NATGW.find(": > /run/natgw.log\n").expect("the log is emptied");
        assert!(emptied < START_NATGW.find("natgw run").expect("the daemon is started"));
    }

    #[test]
    fn connection_tracking_has_room_for_every_flow() {
        let text = masquerade(4096);
        assert!(text.contains("echo 4096 > /proc/sys/net/netfilter/nf_conntrack_buckets"), "{text}");
        assert!(text.contains("echo 8192 > /proc/sys/net/netfilter/nf_conntrack_max"), "{text}");
    }
}
