// SPDX-License-Identifier: MIT OR Apache-2.0
//! One pinned thread that sends live frames, and how long that took its CPU.

use std::{
    io, mem,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, TestRunResult, Xdp},
};

use super::{signal, softirqd::SoftirqThread};

/// Fewest frames sent between two looks at the clock, as long as so many are wanted.
const CHUNK: u64 = 65_536;
/// The same until it is known how long a frame takes: a gateway that refuses can take 70 µs.
const FIRST_CHUNK: u64 = 4096;
/// Longest time that a call should take in which nobody can ask for an end.
const PATIENCE: Duration = Duration::from_millis(500);
/// The same for a flood that ends when something else does.
const SLICE: Duration = Duration::from_millis(20);
/// Frames in one batch, that is between two runs of the softirq; the kernel's own default.
const BATCH: u32 = 64;

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
    /// Before the first packet.
    pub(super) const NOTHING: Self =
        Self { packets: 0, time: Duration::ZERO, busy: Duration::ZERO, softirqd: Duration::ZERO };

    /// One after the other.
    pub(super) fn then(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            time: self.time + other.time,
            busy: self.busy + other.busy,
            softirqd: self.softirqd + other.softirqd,
        }
    }

    /// Both at the same time, on different CPUs.
    pub(super) fn beside(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            time: self.time.max(other.time),
            busy: self.busy.max(other.busy),
            softirqd: self.softirqd.max(other.softirqd),
        }
    }
}

/// A CPU that sends.
#[derive(Debug)]
pub(super) struct Sender {
    /// Its number.
    pub(super) cpu: usize,
    softirqd: SoftirqThread,
    /// Packets a second of the last chunk. The kernel sleeps for milliseconds while it sets each call up and
    /// takes it down, so calls are made as long as the time that is left allows.
    rate: f64,
}

impl Sender {
    /// Takes a CPU that the machine has.
    pub(super) fn new(cpu: usize) -> anyhow::Result<Self> {
        Ok(Self { cpu, softirqd: SoftirqThread::of(cpu)?, rate: 0.0 })
    }

    /// Runs a program of `ebpf` on `frame` until `limit`, or until `end` is set. To be called on a thread of its own,
    /// which is pinned to the CPU.
    pub(super) fn run(
        &mut self,
        (ebpf, program): (&Ebpf, &str),
        frame: &[u8],
        limit: Limit,
        end: Option<&AtomicBool>,
    ) -> anyhow::Result<Sent> {
        let Self { cpu, softirqd, rate } = self;
        pin_to(*cpu)?;
        let program: &Xdp =
            ebpf.program(program).with_context(|| format!("no program `{program}`"))?.try_into()?;
        let (start, idle) = (Instant::now(), softirqd.worked()?);
        let mut sent = Sent::NOTHING;
        let ended = || end.is_some_and(|end| end.load(Ordering::Relaxed));
        while sent.packets < limit.packets && sent.time < limit.time && !ended() {
            signal::check()?;
            let time = (limit.time - sent.time).min(if end.is_some() { SLICE } else { limit.time });
            let fitting = time.as_secs_f64() * *rate;
            let patient = CHUNK.min((PATIENCE.as_secs_f64() * *rate) as u64).max(FIRST_CHUNK);
            let least = if end.is_some() { FIRST_CHUNK } else { patient };
            let chunk = (fitting as u64).clamp(least, u64::from(u32::MAX)).min(limit.packets - sent.packets);
            let repeat = u32::try_from(chunk)?;
            let duration = call(program, frame, repeat)?;
            let before = sent.time;
            sent = Sent {
                packets: sent.packets + chunk,
                time: start.elapsed(),
                busy: sent.busy + duration * repeat,
                ..sent
            };
            if chunk >= FIRST_CHUNK {
                *rate = chunk as f64 / (sent.time - before).as_secs_f64();
            }
        }
        sent.softirqd = softirqd.worked()? - idle;
        sent.busy += sent.softirqd;
        Ok(sent)
    }
}

/// Sends `repeat` frames and returns the mean time of one.
fn call(program: &Xdp, frame: &[u8], repeat: u32) -> anyhow::Result<Duration> {
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        repeat,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    });
    match result {
        Ok(TestRunResult { duration, .. }) => Ok(duration),
        Err(error) => {
            signal::check()?;
            Err(explain(error))
        }
    }
}

fn explain(error: ProgramError) -> anyhow::Error {
    anyhow::Error::new(error)
        .context("the kernel does not send live frames (BPF_PROG_TEST_RUN, Linux 5.18 or later)")
}

/// Pins the calling thread and lets it run ahead of what else the machine does.
pub(super) fn pin_to(cpu: usize) -> anyhow::Result<()> {
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
