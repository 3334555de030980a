// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live-frame generator: what it sends, and one pinned thread a CPU that does.

use std::{ops::Range, sync::atomic::AtomicBool, sync::atomic::Ordering, thread};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use bench_ebpf::{
    BOTH, Cursor, DESTINATION_PORT, Generator as State, HEADER_HALVES, INBOUND, OUTBOUND, Template,
};
use bytemuck::Zeroable as _;

use super::{
    chain::{
        BACKENDS, DESTINATIONS, FIRST_BACKEND, FIRST_DESTINATION, GEN0_MAC, LAN0_MAC, SINK0_MAC, WAN0_MAC,
    },
    rig::Rig,
    sender::{Limit, Sender, Sent},
    workload::{Direction, PORT_BASE, PORT_STRIDE},
};

/// Bytes before the IPv4 header.
pub(super) const IP: usize = 14;
/// Bytes before the UDP header.
pub(super) const UDP: usize = IP + 20;
const STATE: usize = size_of::<State>();

/// How flow numbers become 5-tuples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Destinations in use, from the first.
    pub(super) destinations: u32,
    /// Source ports between those of two backends; 0: all use the same, as many as there are.
    pub(super) port_stride: u32,
}

impl Shape {
    /// Over all destinations, and no two backends with the same source port.
    pub(super) const SPREAD: Self = Self { destinations: DESTINATIONS, port_stride: PORT_STRIDE };
    /// Everything to one destination.
    pub(super) const ONE_DESTINATION: Self = Self { destinations: 1, port_stride: 0 };
    /// Flows of the shape [`Self::ONE_DESTINATION`].
    pub(super) const MOST_TO_ONE: u32 = BACKENDS * (65_536 - PORT_BASE);

    /// Where flow number `flow` stands in the cycle.
    const fn cursor(self, flow: u32) -> Cursor {
        Cursor {
            backend: flow % BACKENDS,
            destination: flow / BACKENDS % self.destinations,
            round: flow / BACKENDS / self.destinations,
        }
    }
}

/// The generating CPUs.
#[derive(Debug)]
pub(super) struct Generator {
    /// The frame as sent by the first backend.
    frame: Vec<u8>,
    shape: Shape,
    senders: Vec<Sender>,
}

impl Generator {
    /// A generator of frames of `length` bytes on each of `cpus`.
    pub(super) fn new(length: u16, shape: Shape, cpus: &[usize]) -> anyhow::Result<Self> {
        let senders = cpus.iter().map(|cpu| Sender::new(*cpu)).collect::<anyhow::Result<_>>()?;
        Ok(Self { frame: template(length, Direction::Outbound), shape, senders })
    }

    /// Sends packets of the flows in `flows`, round and round from the first, until `limit`. Each CPU has an equal
    /// share of the flows and of the packets.
    pub(super) fn send(
        &mut self,
        rig: &mut Rig<'_>,
        flows: Range<u32>,
        direction: Direction,
        limit: Limit,
    ) -> anyhow::Result<Sent> {
        Ok(self.send_beside(rig, flows, direction, limit, |_end| Ok(()))?.0)
    }

    /// As [`Self::send`], with something else going on meanwhile on a thread of its own, which is to end when its
    /// argument becomes true.
    pub(super) fn send_beside<T: Send>(
        &mut self,
        rig: &mut Rig<'_>,
        flows: Range<u32>,
        direction: Direction,
        limit: Limit,
        other: impl FnOnce((&Ebpf, &AtomicBool)) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<(Sent, T)> {
        let cpus = u32::try_from(self.senders.len())?;
        let share = |index: u32| {
            let count = flows.end - flows.start;
            let edge = |part: u32| flows.start + mul_div(count, part, cpus);
            edge(index)..edge(index + 1)
        };
        let placed: Vec<_> = (0..cpus).map(share).zip(self.senders.iter().map(|sender| sender.cpu)).collect();
        self.set_states(&mut rig.ebpf, &placed, direction)?;
        let Self { frame, senders, .. } = self;
        let (frame, ebpf, chain) = (frame.as_slice(), &rig.ebpf, rig.chain);
        let limit = Limit { packets: limit.packets.div_ceil(u64::from(cpus)), ..limit };
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| other((ebpf, &end)));
            let workers: Vec<_> = senders
                .iter_mut()
                .map(|sender| {
                    let send = move || sender.run((ebpf, "generate"), frame, limit, None);
                    scope.spawn(move || chain.generator.enter(send)?)
                })
                .collect();
            let mut total: anyhow::Result<Sent> = Ok(Sent::NOTHING);
            for worker in workers {
                let one = worker.join().unwrap_or_else(|_panic| Err(anyhow!("a generator panicked")));
                total = total.and_then(|total| Ok(total.beside(one?)));
            }
            end.store(true, Ordering::Relaxed);
            let other =
                other.join().unwrap_or_else(|_panic| Err(anyhow!("a thread beside the generator panicked")));
            Ok((total?, other?))
        })
    }

    /// Writes what each CPU has to send: a share of the flows for each of these CPUs.
    fn set_states(
        &self,
        ebpf: &mut Ebpf,
        shares: &[(Range<u32>, usize)],
        direction: Direction,
    ) -> anyhow::Result<()> {
        let cpus = nr_cpus().map_err(|(file, error)| anyhow!("cannot read {file}: {error}"))?;
        let mut states = vec![[0; STATE]; cpus];
        for (flows, cpu) in shares {
            let place = states.get_mut(*cpu).with_context(|| format!("CPU {cpu} is none of {cpus}"))?;
            *place = bytemuck::cast(self.state(flows, direction));
        }
        let mut map: PerCpuArray<_, [u8; STATE]> =
            ebpf.map_mut("GENERATOR").context("no map `GENERATOR`")?.try_into()?;
        map.set(0, PerCpuValues::try_from(states)?, 0).context("cannot set the generator's flows")
    }

    fn state(&self, flows: &Range<u32>, direction: Direction) -> State {
        let start = self.shape.cursor(flows.start);
        let count = (flows.end - flows.start).max(1);
        let length = u16::try_from(self.frame.len()).unwrap_or(u16::MAX);
        State {
            outbound: fixed(&self.frame),
            inbound: fixed(&template(length, Direction::Inbound)),
            source_base: FIRST_BACKEND.to_bits(),
            destination_base: FIRST_DESTINATION.to_bits(),
            backends: BACKENDS,
            destinations: self.shape.destinations,
            port_base: PORT_BASE,
            port_stride: self.shape.port_stride,
            first: flows.start,
            start,
            flows: count,
            next: start,
            left: count,
            direction: match direction {
                Direction::Outbound => OUTBOUND,
                Direction::Inbound => INBOUND,
                Direction::Both => BOTH,
            },
            turn: 0,
        }
    }
}

/// `value × part ÷ whole` without overflow.
fn mul_div(value: u32, part: u32, whole: u32) -> u32 {
    u32::try_from(u64::from(value) * u64::from(part) / u64::from(whole)).unwrap_or(value)
}

/// A frame whose varying fields are zero: addresses, the backend's port, tag, checksums.
fn template(length: u16, direction: Direction) -> Vec<u8> {
    let (macs, ports) = match direction {
        Direction::Inbound => ([WAN0_MAC, SINK0_MAC], [DESTINATION_PORT, 0]),
        Direction::Outbound | Direction::Both => ([LAN0_MAC, GEN0_MAC], [0, DESTINATION_PORT]),
    };
    let mut frame = Vec::with_capacity(usize::from(length));
    frame.extend(macs.concat());
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0]);
    frame.extend((length - 14).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([0; 8]);
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.extend((length - 34).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..).take(usize::from(length) - frame.len()).map(|index: usize| index.to_le_bytes()[0]));
    frame
}

/// Header and sums of a frame from [`template`].
fn fixed(frame: &[u8]) -> Template {
    let mut header = [0; HEADER_HALVES];
    for (half, bytes) in header.iter_mut().zip(frame.chunks_exact(2)) {
        *half = u16::from_ne_bytes([bytes[0], bytes[1]]);
    }
    let pseudo = u32::from(17_u16.to_be()) + sum(&frame[UDP + 4..UDP + 6]);
    Template {
        header,
        ip_sum: sum(&frame[IP..UDP]),
        udp_sum: pseudo + sum(&frame[UDP..]),
        ..Template::zeroed()
    }
}

/// Sum of the wire halves of `bytes`, an odd last byte padded with zero.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|half| u32::from(u16::from_ne_bytes([half[0], *half.get(1).unwrap_or(&0)]))).sum()
}

#[cfg(test)]
mod tests {
    use super::{Direction, Shape, sum, template};
    use crate::bench::workload::{MAX_FLOWS, PORT_BASE, PORT_STRIDE};

    #[test]
    fn template_states_its_own_length_in_both_headers() {
        for length in [60, 64, 65, 512, 1514] {
            for direction in [Direction::Outbound, Direction::Inbound] {
                let frame = template(length, direction);
                assert_eq!(frame.len(), usize::from(length));
                assert_eq!(frame[16..18], (length - 14).to_be_bytes());
                assert_eq!(frame[38..40], (length - 34).to_be_bytes());
            }
        }
    }

    #[test]
    fn odd_last_byte_counts_as_if_zero_followed() {
        assert_eq!(sum(&[1, 2, 3]), sum(&[1, 2, 3, 0]));
    }

    #[test]
    fn last_flow_stays_within_its_backends_ports() {
        let last = Shape::SPREAD.cursor(MAX_FLOWS - 1);
        assert!(last.round < PORT_STRIDE, "round {} would reach the next backend's ports", last.round);
        let last = Shape::ONE_DESTINATION.cursor(Shape::MOST_TO_ONE - 1);
        assert!(last.round < 65_536 - PORT_BASE, "round {} is no port", last.round);
    }
}
