// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live-frame generator: one loaded program and one pinned thread a CPU.

use std::{
    io, mem,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf,
    maps::{Array, DevMap},
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, Xdp},
};
use bench_ebpf::{Cursor, DESTINATION_PORT, Generator as State, HEADER_HALVES};

use super::{
    chain::{BACKENDS, Chain, DESTINATIONS, FIRST_BACKEND, FIRST_DESTINATION, GEN0_MAC, LAN0_MAC},
    signal,
    softirqd::SoftirqThread,
    workload::{PORT_BASE, PORT_STRIDE},
};

/// Fewest frames sent between two looks at the clock, as long as so many are wanted.
const CHUNK: u64 = 65_536;
/// Frames in one batch, that is between two runs of the softirq; the kernel's own default.
const BATCH: u32 = 64;
/// Bytes before the IPv4 header.
const IP: usize = 14;
/// Bytes before the UDP header.
const UDP: usize = IP + 20;

/// When to stop sending: whichever comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Most packets, over all CPUs.
    pub(super) packets: u64,
    /// Longest time; the chunk that is under way still ends.
    pub(super) time: Duration,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Packets, over all CPUs.
    pub(super) packets: u64,
    /// Time by the clock on the wall.
    pub(super) time: Duration,
    /// CPU time that the chain cost the busiest CPU, `softirqd` included.
    pub(super) busy: Duration,
    /// Its part that was put off to that CPU's softirq thread.
    pub(super) softirqd: Duration,
}

impl Sent {
    const NOTHING: Self =
        Self { packets: 0, time: Duration::ZERO, busy: Duration::ZERO, softirqd: Duration::ZERO };
}

/// A loaded generator for every CPU that sends.
#[derive(Debug)]
pub(super) struct Generator<'a> {
    chain: &'a Chain,
    frame: Vec<u8>,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    cpu: usize,
    ebpf: Ebpf,
    softirqd: SoftirqThread,
    /// Packets a second of the last chunk. The kernel sleeps for milliseconds while it sets each call up and
    /// takes it down, so calls are made as long as the time that is left allows.
    rate: f64,
}

impl<'a> Generator<'a> {
    /// Loads the generator once for each of `cpus`, sending frames of `length` bytes to `gen0`.
    pub(super) fn load(object: &[u8], chain: &'a Chain, length: u16, cpus: &[usize]) -> anyhow::Result<Self> {
        let device = chain.generator.ifindex("gen0")?;
        let load = || -> anyhow::Result<Ebpf> {
            let mut ebpf = Ebpf::load(object).context("cannot load the benchmark object")?;
            let program: &mut Xdp =
                ebpf.program_mut("generate").context("no program `generate`")?.try_into()?;
            program.load().context("the kernel refuses program `generate`")?;
            let mut target: DevMap<_> = ebpf.map_mut("TARGET").context("no map `TARGET`")?.try_into()?;
            target.set(0, device, None, 0).context("cannot aim the generator at gen0")?;
            Ok(ebpf)
        };
        let mut threads = Vec::new();
        for &cpu in cpus {
            threads.push(Thread {
                cpu,
                ebpf: chain.generator.enter(load)??,
                softirqd: SoftirqThread::of(cpu)?,
                rate: 0.0,
            });
        }
        Ok(Self { chain, frame: template(length), threads })
    }

    /// Sends packets of the flows in `flows`, round and round from the first, until `limit`. Each CPU has an equal
    /// share of the flows and of the packets.
    pub(super) fn send(&mut self, flows: Range<u32>, limit: Limit) -> anyhow::Result<Sent> {
        let Self { chain, frame, threads } = self;
        let cpus = u32::try_from(threads.len())?;
        let share = |index: u32| {
            let count = flows.end - flows.start;
            let edge = |part: u32| flows.start + mul_div(count, part, cpus);
            edge(index)..edge(index + 1)
        };
        let chain: &Chain = chain;
        let sent: Vec<anyhow::Result<Sent>> = thread::scope(|scope| {
            let mut workers = Vec::new();
            for (index, sender) in (0..cpus).zip(threads.iter_mut()) {
                let (flows, frame) = (share(index), frame.as_slice());
                let limit = Limit { packets: limit.packets.div_ceil(u64::from(cpus)), ..limit };
                workers.push(scope.spawn(move || {
                    set_cursor(&mut sender.ebpf, frame, flows)?;
                    chain.generator.enter(|| sender.run(frame, limit))?
                }));
            }
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_panic| Err(anyhow!("a generator panicked"))))
                .collect()
        });
        let mut total = Sent::NOTHING;
        for one in sent {
            let one = one?;
            total = Sent {
                packets: total.packets + one.packets,
                time: total.time.max(one.time),
                busy: total.busy.max(one.busy),
                softirqd: total.softirqd.max(one.softirqd),
            };
        }
        Ok(total)
    }
}

/// `value × part ÷ whole` without overflow.
fn mul_div(value: u32, part: u32, whole: u32) -> u32 {
    u32::try_from(u64::from(value) * u64::from(part) / u64::from(whole)).unwrap_or(value)
}

impl Thread {
    fn run(&mut self, frame: &[u8], limit: Limit) -> anyhow::Result<Sent> {
        let Self { cpu, ebpf, softirqd, rate } = self;
        pin_to(*cpu)?;
        let program: &Xdp = ebpf.program("generate").context("no program `generate`")?.try_into()?;
        let (start, idle) = (Instant::now(), softirqd.worked()?);
        let mut sent = Sent::NOTHING;
        while sent.packets < limit.packets && sent.time < limit.time {
            signal::check()?;
            let fitting = (limit.time - sent.time).as_secs_f64() * *rate;
            let chunk = (fitting as u64).clamp(CHUNK, u64::from(u32::MAX)).min(limit.packets - sent.packets);
            let repeat = u32::try_from(chunk)?;
            let result = program.test_run(TestRunOptions {
                data_in: Some(frame),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            });
            let TestRunResult { duration, .. } = match result {
                Ok(result) => result,
                Err(error) => {
                    signal::check()?;
                    return Err(explain(error));
                }
            };
            let before = sent.time;
            sent = Sent {
                packets: sent.packets + chunk,
                time: start.elapsed(),
                busy: sent.busy + duration * repeat,
                ..sent
            };
            if chunk >= CHUNK {
                *rate = chunk as f64 / (sent.time - before).as_secs_f64();
            }
        }
        sent.softirqd = softirqd.worked()? - idle;
        sent.busy += sent.softirqd;
        Ok(sent)
    }
}

fn explain(error: ProgramError) -> anyhow::Error {
    anyhow::Error::new(error)
        .context("the kernel does not send live frames (BPF_PROG_TEST_RUN, Linux 5.18 or later)")
}

/// Pins the calling thread and lets it run ahead of what else the machine does.
fn pin_to(cpu: usize) -> anyhow::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is below the number of CPUs, which the set has room for.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives through the call; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot pin a thread to CPU {cpu}"));
    }
    // SAFETY: no pointers; 0 is the calling thread. Without the privilege it runs at the usual priority.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    Ok(())
}

/// A frame whose varying fields are zero: addresses, source port, checksums.
fn template(length: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(usize::from(length));
    frame.extend(LAN0_MAC);
    frame.extend(GEN0_MAC);
    frame.extend([0x08, 0x00]);
    frame.extend([0x45, 0]);
    frame.extend((length - 14).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend([0; 8]);
    frame.extend([0, 0]);
    frame.extend(DESTINATION_PORT.to_be_bytes());
    frame.extend((length - 34).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..).take(usize::from(length) - frame.len()).map(|index: usize| index.to_le_bytes()[0]));
    frame
}

/// Sum of the wire halves of `bytes`, an odd last byte padded with zero.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|half| u32::from(u16::from_ne_bytes([half[0], *half.get(1).unwrap_or(&0)]))).sum()
}

fn set_cursor(ebpf: &mut Ebpf, frame: &[u8], flows: Range<u32>) -> anyhow::Result<()> {
    let mut header = [0; HEADER_HALVES];
    for (half, bytes) in header.iter_mut().zip(frame.chunks_exact(2)) {
        *half = u16::from_ne_bytes([bytes[0], bytes[1]]);
    }
    let start = cursor(flows.start);
    let pseudo = u32::from(17_u16.to_be()) + sum(&frame[UDP + 4..UDP + 6]);
    let state = State {
        header,
        pad: 0,
        ip_sum: sum(&frame[IP..UDP]),
        udp_sum: pseudo + sum(&frame[UDP..]),
        source_base: FIRST_BACKEND.to_bits(),
        destination_base: FIRST_DESTINATION.to_bits(),
        backends: BACKENDS,
        destinations: DESTINATIONS,
        port_base: PORT_BASE,
        port_stride: PORT_STRIDE,
        start,
        flows: (flows.end - flows.start).max(1),
        next: start,
        left: (flows.end - flows.start).max(1),
    };
    let bytes: [u8; size_of::<State>()] = bytemuck::cast(state);
    let mut map: Array<_, [u8; size_of::<State>()]> =
        ebpf.map_mut("GENERATOR").context("no map `GENERATOR`")?.try_into()?;
    map.set(0, bytes, 0).context("cannot set the generator's flows")
}

/// Where flow number `flow` stands in the cycle.
fn cursor(flow: u32) -> Cursor {
    Cursor {
        backend: flow % BACKENDS,
        destination: flow / BACKENDS % DESTINATIONS,
        round: flow / BACKENDS / DESTINATIONS,
    }
}

#[cfg(test)]
mod tests {
    use super::{cursor, sum, template};
    use crate::bench::workload::MAX_FLOWS;

    #[test]
    fn template_states_its_own_length_in_both_headers() {
        for length in [60, 64, 65, 512, 1514] {
            let frame = template(length);
            assert_eq!(frame.len(), usize::from(length));
            assert_eq!(frame[16..18], (length - 14).to_be_bytes());
            assert_eq!(frame[38..40], (length - 34).to_be_bytes());
        }
    }

    #[test]
    fn odd_last_byte_counts_as_if_zero_followed() {
        assert_eq!(sum(&[1, 2, 3]), sum(&[1, 2, 3, 0]));
    }

    #[test]
    fn last_flow_stays_within_its_backends_ports() {
        let last = cursor(MAX_FLOWS - 1);
        assert!(last.round < super::PORT_STRIDE, "round {} would reach the next backend's ports", last.round);
    }
}
