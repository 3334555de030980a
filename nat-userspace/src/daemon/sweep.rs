// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the idle sweep: a BPF iterator over the flow table, in slices with rests between them ([`super::pace`]), on a
//! thread of its own so that the loop goes on.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use aya::{
    maps::{Array, MapData},
    programs::ProgramFd,
};
use nat_common::{
    abi::{
        config::{SWEEP_LAST, SWEEP_PRESSED_REFUSALS, SWEEP_PRESSED_ROOM, SWEEP_RUNNING, SweepPass, Table},
        counters::Reason,
        event::{EVENT_REFUSED, Event},
        names,
    },
    net::timers::TimerClass,
};

use tokio::task;

use super::{
    drain,
    events::seconds,
    pace::{self, Due, Pressure},
    run::Daemon,
    status::SweepStatus,
};
use crate::{
    clock,
    datapath::{bpf, pin::Instance},
};

/// Work of a slice ([`SweepPass::slice`]): two to three milliseconds where the entries are not in the caches.
const SLICE: u64 = 8192;

/// Time until the next try after one that failed.
const AGAIN: Duration = Duration::from_millis(2500);

/// What the sweep's thread and the loop both know.
#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Pressure>>);

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut Pressure) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The iterator, tied to the flow table, and the maps it speaks through.
pub(super) struct Sweeper {
    link: OwnedFd,
    passes: Array<MapData, SweepPass>,
    table: Array<MapData, Table>,
    pressure: Shared,
    max_flows: u32,
}

/// A pass that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub(super) due: Due,
    pub(super) result: SweepPass,
}

impl Sweeper {
    /// Takes the sweep's program.
    ///
    /// # Errors
    ///
    /// When its maps are not pinned, or the kernel refuses to tie it to the flow table.
    pub(super) fn new(instance: &Instance, program: &ProgramFd, max_flows: u32) -> Result<Self> {
        let flows = MapData::from_pin(instance.map(names::FLOWS)).context("opening map `FLOWS`")?;
        let link = bpf::link_iterator(program.as_fd(), flows.fd().as_fd())
            .context("tying the idle sweep to map `FLOWS` (needs Linux 5.9)")?;
        let (passes, table) = (instance.array(names::SWEEP)?, instance.array(names::TABLE)?);
        Ok(Self { link, passes, table, pressure: Shared::default(), max_flows })
    }

    /// Does one pass. Blocks for as long as it takes, rests included.
    ///
    /// # Errors
    ///
    /// When the kernel ends it.
    pub(super) fn run(&mut self) -> Result<Pass> {
        let begin = SweepPass { limit: u64::MAX, slice: SLICE, ..SweepPass::default() };
        self.passes.set(SWEEP_RUNNING, begin, 0).context("writing map `SWEEP`")?;
        let mut iterator = bpf::iterate(self.link.as_fd()).context("beginning the idle sweep")?;
        let mut timing = Timing::default();
        let began = Instant::now();
        let last = loop {
            let flows = self.table.get(&0, 0).context("reading map `TABLE`")?.flows;
            let causes = self.pressure.with(|pressure| {
                pressure.flows(flows, self.max_flows);
                pressure.causes(Instant::now())
            });
            let start = cpu_time()?;
            let more = slice(&mut iterator).context("running the idle sweep")?;
            let took = cpu_time()?.saturating_sub(start);
            timing.add(took, causes);
            if !more {
                break took;
            }
            thread::sleep(self.pressure.with(|pressure| pressure.rest(took, Instant::now())));
        };
        let due = Due { began, ended: Instant::now(), last };
        let mut result = self.passes.get(&SWEEP_RUNNING, 0).context("reading map `SWEEP`")?;
        timing.note(&mut result, due.ended - due.began);
        result.ended = clock::now();
        self.passes.set(SWEEP_LAST, result, 0).context("writing map `SWEEP`")?;
        self.pressure.with(|pressure| pressure.learn(result.pressed, result.reclaimed, due.ended));
        Ok(Pass { due, result })
    }
}

/// One slice; false: it was the last one.
fn slice(iterator: &mut impl io::Read) -> io::Result<bool> {
    loop {
        match iterator.read(&mut [0]) {
            Ok(read) => return Ok(read > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The kernel's own limit for one read, 1,000,000 entries: a slice as any other.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

/// CPU time of this thread.
fn cpu_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Neither is negative.
    Ok(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32))
}

/// What slices took.
#[derive(Debug, Default)]
struct Timing {
    sum: Duration,
    longest: Duration,
    slices: u32,
    causes: u32,
}

impl Timing {
    fn add(&mut self, took: Duration, causes: u32) {
        self.sum += took;
        self.longest = self.longest.max(took);
        self.slices += 1;
        self.causes |= causes;
    }

    fn note(&self, pass: &mut SweepPass, wall: Duration) {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        (pass.cpu_ns, pass.wall_ns, pass.longest_ns) = (ns(self.sum), ns(wall), ns(self.longest));
        (pass.slices, pass.pressed) = (self.slices, self.causes);
    }
}

/// Names of `SWEEP_PRESSED_*`.
pub fn causes(pressed: u32) -> Vec<&'static str> {
    let names = [(SWEEP_PRESSED_ROOM, "table_nearly_full"), (SWEEP_PRESSED_REFUSALS, "refusals")];
    names.iter().filter(|(bit, _)| pressed & bit != 0).map(|(_, name)| *name).collect()
}

/// The sweep, as the loop knows it.
pub(super) struct Sweep {
    /// `None`: under way.
    sweeper: Option<Sweeper>,
    pressure: Shared,
    /// The last pass; `None`: there has been none.
    last: Option<Due>,
    /// After a pass that failed: not before.
    again: Option<Instant>,
    pub(super) status: SweepStatus,
}

impl Sweep {
    pub(super) fn new(sweeper: Sweeper) -> Self {
        let pressure = sweeper.pressure.clone();
        Self { sweeper: Some(sweeper), pressure, last: None, again: None, status: SweepStatus::default() }
    }

    /// Takes notice of a record from the data path: a refusal may be pressure.
    pub(super) fn note(&self, record: &Event) {
        if record.kind == EVENT_REFUSED && Reason::from_number(record.reason).is_some_and(pace::helps) {
            self.pressure.with(|pressure| pressure.refused(Instant::now()));
        }
    }

    fn next(&self, now: Instant) -> Instant {
        let next = self.last.map(|last| self.pressure.with(|pressure| last.next(pressure, now)));
        next.max(self.again).unwrap_or(now)
    }

    /// Takes a pass into the status.
    fn record(&mut self, pass: &Pass) {
        let milliseconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e3;
        let SweepPass { visited, reclaimed, pending, untold, live, slices, pressed, .. } = pass.result;
        let pause = self.next(pass.due.ended) - pass.due.ended;
        let live = TimerClass::ALL.iter().map(|class| (class.name().to_owned(), live[*class as usize]));
        self.status = SweepStatus {
            passes: self.status.passes + 1,
            milliseconds: milliseconds(pass.result.cpu_ns),
            wall_milliseconds: milliseconds(pass.result.wall_ns),
            slices,
            longest_slice_milliseconds: milliseconds(pass.result.longest_ns),
            visited,
            reclaimed,
            pending,
            untold,
            pressed_by: causes(pressed).into_iter().map(str::to_owned).collect(),
            ended: Some(seconds(SystemTime::now())),
            period_seconds: pause.as_secs_f64(),
            live: live.collect(),
        };
    }
}

impl Daemon {
    /// Begins a pass if it is time for one, with a look at addresses that are to go after it.
    pub(super) fn sweep_when_due(&mut self) {
        let now = Instant::now();
        if now < self.sweep.next(now) {
            return;
        }
        let Some(mut sweeper) = self.sweep.sweeper.take() else { return };
        let events = self.events.clone();
        let look = self.drain.look(&self.gateway);
        task::spawn_blocking(move || {
            let pass = sweeper.run().map(Box::new);
            let seen = look.map(drain::Look::take);
            // Fails only when the loop has ended.
            drop(events.blocking_send(super::Event::Swept(Box::new(sweeper), pass, seen)));
        });
    }

    /// Takes what a pass has found.
    pub(super) fn swept(&mut self, sweeper: Box<Sweeper>, pass: Result<Box<Pass>>) {
        self.sweep.sweeper = Some(*sweeper);
        match pass {
            Ok(pass) => {
                (self.sweep.last, self.sweep.again) = (Some(pass.due), None);
                self.sweep.record(&pass);
            }
            Err(error) => {
                self.failed_again(&error);
                self.sweep.again = Some(Instant::now() + AGAIN);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives these, in turn.
    struct Reads(Vec<io::Result<usize>>);

    impl io::Read for Reads {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.remove(0)
        }
    }

    #[test]
    fn a_pass_ends_when_nothing_is_read_and_not_before() {
        let error = |kind: io::ErrorKind| Err(kind.into());
        let read = |results| slice(&mut Reads(results)).map_err(|error| error.kind());
        assert_eq!(read(vec![Ok(1)]), Ok(true));
        assert_eq!(read(vec![Ok(0)]), Ok(false));
        assert_eq!(read(vec![error(io::ErrorKind::Interrupted), Ok(1)]), Ok(true));
        assert_eq!(read(vec![error(io::ErrorKind::WouldBlock)]), Ok(true));
        assert_eq!(read(vec![error(io::ErrorKind::OutOfMemory)]), Err(io::ErrorKind::OutOfMemory));
    }

    #[test]
    fn what_slices_took_is_summed_up() {
        let mut timing = Timing::default();
        for (took, causes) in [(2, 0), (5, SWEEP_PRESSED_ROOM), (1, 0)] {
            timing.add(Duration::from_millis(took), causes);
        }
        let mut pass = SweepPass::default();
        timing.note(&mut pass, Duration::from_millis(100));
        let expected = SweepPass {
            cpu_ns: 8_000_000,
            wall_ns: 100_000_000,
            longest_ns: 5_000_000,
            slices: 3,
            pressed: SWEEP_PRESSED_ROOM,
            ..SweepPass::default()
        };
        assert_eq!(pass, expected);
    }

    #[test]
    fn cpu_time_does_not_pass_while_the_thread_sleeps() {
        let (start, began) = (cpu_time().expect("clock"), Instant::now());
        thread::sleep(Duration::from_millis(50));
        let slept = began.elapsed();
        assert!(cpu_time().expect("clock") - start < slept / 2);
    }

    #[test]
    fn causes_have_names() {
        assert_eq!(causes(0), Vec::<&str>::new());
        assert_eq!(causes(SWEEP_PRESSED_ROOM | SWEEP_PRESSED_REFUSALS), ["table_nearly_full", "refusals"]);
    }
}
