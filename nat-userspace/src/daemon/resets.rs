// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tells both ends of TCP connections that ended idle, by RST (`tcp_reset = "on-idle"`).
//!
//! The sweep hands each connection over once, in a pinned ring buffer; what is not sent yet when the daemon ends is there
//! for the next one. A record is taken off the buffer after its segments were sent: a daemon that is killed in between leaves one
//! connection to be told twice, which a host without that connection ignores. Nothing of the daemon's state is touched here.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, RingBuf};
use nat_common::{
    Tick,
    abi::{
        config::{Control, MAX_PORTS, PortConfig},
        event::{IdleReset, ResetCounts},
        names,
    },
    net::{
        reset::{self, End, LENGTH},
        timers,
    },
};
use tokio::{io::unix::AsyncFd, task, time};
use tracing::{error, warn};

use super::ring::pollable;
use crate::{clock, datapath::pin::Instance};

/// Connections told in a second, at most; those above wait in the buffer, and then in the flow table.
const PER_SECOND: u32 = 5_000;
/// Ticks after which a connection is not told any more (about a minute): longer than a full buffer delays one.
const STALE: Tick = 120;
/// Connections told before others get their turn.
const BATCH: usize = 64;

/// Reads the ring buffer and sends.
pub(super) struct Resets {
    ring: AsyncFd<RingBuf<MapData>>,
    sender: Sender,
    pace: Pace,
}

impl Resets {
    /// Opens the maps of `instance`.
    ///
    /// # Errors
    ///
    /// When they are not pinned, or the ring buffer cannot be mapped.
    pub(super) fn open(instance: &Instance) -> Result<Self> {
        let ring = RingBuf::try_from(instance.open(names::RESETS)?).context("opening map `RESETS`")?;
        let ring = pollable(ring).context("waiting for map `RESETS`")?;
        let counts: Array<MapData, ResetCounts> = instance.array(names::RESET_COUNTS)?;
        let done = counts.get(&0, 0).context("reading map `RESET_COUNTS`")?;
        let (ports, control) = (instance.array(names::PORTS)?, instance.array(names::CONTROL)?);
        let sender = Sender { ports, control, counts, done, sockets: None, warned: false };
        Ok(Self { ring, sender, pace: Pace::new(Instant::now()) })
    }

    /// Tells whoever is to be told, as long as the daemon runs.
    pub(super) async fn run(mut self) {
        loop {
            let mut guard = match self.ring.readable_mut().await {
                Ok(guard) => guard,
                Err(error) => {
                    error!("idle connections are not reset any more: {error}");
                    return;
                }
            };
            let mut told = 0;
            let ring = guard.get_inner_mut();
            let allowed = self.pace.allowed(Instant::now()).min(BATCH);
            while told < allowed
                && let Some(record) = ring.next()
            {
                told += 1;
                // Of another length: of a data path with another layout, which the adoption check excludes.
                if let Ok(record) = bytemuck::try_pod_read_unaligned::<IdleReset>(&record) {
                    self.sender.tell(&record);
                }
            }
            if told < allowed {
                guard.clear_ready();
            }
            self.pace.spend(told);
            self.sender.count();
            if allowed == 0 {
                time::sleep(self.pace.rest(Instant::now())).await;
            }
            task::yield_now().await;
        }
    }
}

/// How many may be told in the second that has begun.
struct Pace {
    since: Instant,
    left: u32,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { since: now, left: PER_SECOND }
    }

    fn allowed(&mut self, now: Instant) -> usize {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.left as usize
    }

    fn spend(&mut self, told: usize) {
        self.left = self.left.saturating_sub(u32::try_from(told).unwrap_or(u32::MAX));
    }

    fn rest(&self, now: Instant) -> Duration {
        Duration::from_secs(1).saturating_sub(now.duration_since(self.since))
    }
}

struct Sender {
    ports: Array<MapData, PortConfig>,
    control: Array<MapData, Control>,
    counts: Array<MapData, ResetCounts>,
    done: ResetCounts,
    /// Opened when they are needed first: who does not ask for resets needs no right to them.
    sockets: Option<Sockets>,
    warned: bool,
}

impl Sender {
    /// Sends both segments of a connection.
    fn tell(&mut self, record: &IdleReset) {
        // Left by a daemon that died long ago: the tuple may be another connection's by now.
        if timers::expired(clock::now(), record.tick, STALE) {
            self.done.failed += 2;
            return;
        }
        for half in [0, 1] {
            match self.send(record, half) {
                Ok(Way::Framed) => self.done.framed += 1,
                Ok(Way::Routed) => self.done.routed += 1,
                Err(error) => {
                    self.done.failed += 1;
                    if !std::mem::replace(&mut self.warned, true) {
                        warn!(
                            "a RST to an idle connection could not be sent, later ones are only counted: {error:#}"
                        );
                    }
                }
            }
        }
    }

    /// As a translated packet would leave, if the next hop is still what it was; else by the host's stack, which looks up
    /// route and neighbour anew.
    fn send(&mut self, record: &IdleReset, half: usize) -> Result<Way> {
        let (packet, to) = segment(record, half);
        if self.sockets.is_none() {
            self.sockets = Some(Sockets::open().context("opening sockets")?);
        }
        let sockets = self.sockets.as_ref().context("no sockets")?;
        let epoch = self.control.get(&0, 0).context("reading map `CONTROL`")?.epoch;
        let slot = u32::from(record.slots[half]);
        if record.epochs[half] == epoch && slot < MAX_PORTS {
            let port = self.ports.get(&slot, 0).context("reading map `PORTS`")?;
            if port.role != 0 && sockets.frame(&port, record.next_hops[half], &packet).is_ok() {
                return Ok(Way::Framed);
            }
        }
        sockets.packet(to, &packet).context("sending")?;
        Ok(Way::Routed)
    }

    /// Makes known what was sent. A count that cannot be written now is with the next.
    fn count(&mut self) {
        let _told_with_the_next = self.counts.set(0, self.done, 0);
    }
}

/// How a segment left.
enum Way {
    Framed,
    Routed,
}

/// The segment for the destination (half 0) or the backend (half 1), and whom it is for. Its number is the next one of the
/// other side.
fn segment(record: &IdleReset, half: usize) -> ([u8; LENGTH], [u8; 4]) {
    let key = &record.key;
    let destination = End { address: key.destination, port: key.destination_port };
    let (from, to) = if half == 0 {
        (End { address: record.address, port: record.port }, destination)
    } else {
        (destination, End { address: key.source, port: key.source_port })
    };
    let (sequence, acknowledged) = (record.sequences[half], record.sequences[1 - half]);
    (reset::packet(from, to, sequence, acknowledged), to.address)
}

/// The frame with which a packet leaves by `port`.
fn framed(port: &PortConfig, next_hop: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut frame = [next_hop, port.mac].concat();
    for tag in port.tags.iter().take(usize::from(port.tag_count)) {
        frame.extend(tag.protocol);
        frame.extend(tag.control);
    }
    frame.extend((libc::ETH_P_IP as u16).to_be_bytes());
    frame.extend(packet);
    frame
}

/// Sockets that only send: without a protocol, a packet socket receives nothing, and neither does one of `IPPROTO_RAW`.
struct Sockets {
    frames: OwnedFd,
    packets: OwnedFd,
}

impl Sockets {
    fn open() -> io::Result<Self> {
        Ok(Self { frames: socket(libc::AF_PACKET, 0)?, packets: socket(libc::AF_INET, libc::IPPROTO_RAW)? })
    }

    fn frame(&self, port: &PortConfig, next_hop: [u8; 6], packet: &[u8]) -> io::Result<()> {
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_IP as u16).to_be(),
            sll_ifindex: i32::try_from(port.lower).unwrap_or_default(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        send(&self.frames, &framed(port, next_hop, packet), &to)
    }

    fn packet(&self, address: [u8; 4], packet: &[u8]) -> io::Result<()> {
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
            sin_zero: [0; 8],
        };
        send(&self.packets, packet, &to)
    }
}

fn socket(family: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let socket = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a socket that was just opened and that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Sends without waiting for room in a queue.
fn send<A>(socket: &OwnedFd, bytes: &[u8], to: &A) -> io::Result<()> {
    // SAFETY: buffer and address live through the call, with their own lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
            core::ptr::from_ref(to).cast(),
            size_of::<A>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nat_common::abi::{config::VlanTag, flow::FlowKey};

    fn record() -> IdleReset {
        IdleReset {
            key: FlowKey {
                source: [10, 0, 0, 4],
                destination: [198, 51, 100, 1],
                source_port: 40_000u16.to_be_bytes(),
                destination_port: 80u16.to_be_bytes(),
                protocol: 6,
                zone: [0; 3],
            },
            address: [203, 0, 113, 10],
            port: 1031u16.to_be_bytes(),
            sequences: [1000, 2000],
            ..IdleReset::default()
        }
    }

    /// Source, destination, ports, sequence and acknowledgement number.
    fn said(packet: &[u8]) -> ([u8; 4], [u8; 4], [u16; 2], [u32; 2]) {
        let four = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
        let ports = [20, 22].map(|at| u16::from_be_bytes([packet[at], packet[at + 1]]));
        (four(12), four(16), ports, [24, 28].map(|at| u32::from_be_bytes(four(at))))
    }

    #[test]
    fn each_end_gets_the_number_that_it_expects() {
        let (packet, to) = segment(&record(), 0);
        let outside = ([203, 0, 113, 10], [198, 51, 100, 1], [1031, 80], [1000, 2000]);
        assert_eq!((said(&packet), to), (outside, outside.1));
        let (packet, to) = segment(&record(), 1);
        let inside = ([198, 51, 100, 1], [10, 0, 0, 4], [80, 40_000], [2000, 1000]);
        assert_eq!((said(&packet), to), (inside, inside.1));
    }

    #[test]
    fn a_frame_has_the_tags_of_its_port() {
        let mut port: PortConfig = bytemuck::Zeroable::zeroed();
        port.mac = [2, 0, 0, 0, 0, 1];
        let hop = [2, 0, 0, 0, 0, 9];
        assert_eq!(framed(&port, hop, b"packet"), [&hop[..], &port.mac, &[8, 0], b"packet"].concat());
        let tag = |protocol: u16, number: u16| VlanTag {
            protocol: protocol.to_be_bytes(),
            control: number.to_be_bytes(),
        };
        port.tags = [tag(0x88a8, 7), tag(0x8100, 300)];
        port.tag_count = 2;
        let tags = [0x88, 0xa8, 0, 7, 0x81, 0, 1, 44];
        assert_eq!(framed(&port, hop, b"packet"), [&hop[..], &port.mac, &tags, &[8, 0], b"packet"].concat());
    }

    #[test]
    fn a_second_has_room_for_so_many() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.allowed(start), PER_SECOND as usize);
        pace.spend(PER_SECOND as usize - 1);
        assert_eq!(pace.allowed(start + Duration::from_millis(999)), 1);
        pace.spend(1);
        assert_eq!(pace.allowed(start + Duration::from_millis(999)), 0);
        assert_eq!(pace.rest(start + Duration::from_millis(999)), Duration::from_millis(1));
        assert_eq!(pace.allowed(start + Duration::from_secs(1)), PER_SECOND as usize);
    }
}
