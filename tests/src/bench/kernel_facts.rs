// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel says about natgw's maps and programs, and its sweep run from outside.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use nat_common::{
    abi::{
        config::{Control, SWEEP_RUNNING, SweepPass},
        names::{CONTROL, FLOWS, PINNED_MAPS, PROGRAM_SWEEP, SWEEP},
    },
    tick,
};
use serde::Serialize;

use crate::harness::sweep as harness;

/// Work of a slice, and how often its time the daemon rests: as in nat-userspace/src/daemon/{sweep,pace}.rs.
const SLICE: u64 = 8192;
pub(super) const REST: u32 = 19;

/// Bytes that the kernel accounts for one map.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MapFacts {
    /// Name.
    pub(super) name: &'static str,
    /// `memlock` of the map's descriptor.
    pub(super) bytes: u64,
}

/// What `bpf_prog_info` says of one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ProgramFacts {
    /// Name, at most 15 bytes.
    pub(super) name: String,
    /// Bytes of BPF instructions after the verifier's rewrites; 8 each.
    pub(super) xlated_bytes: Option<u32>,
    /// Bytes of machine code.
    pub(super) jited_bytes: u32,
    /// Instructions that the verifier went through; it gives up at 1,000,000.
    pub(super) verified_instructions: Option<u32>,
}

/// Memory of every pinned map of an instance, the greatest first.
pub(super) fn maps(pins: &Path) -> anyhow::Result<Vec<MapFacts>> {
    let mut maps = Vec::new();
    for name in PINNED_MAPS {
        let path = pins.join(name);
        let info = MapInfo::from_pin(&path).with_context(|| format!("no map at {}", path.display()))?;
        let fd = info.fd().with_context(|| format!("cannot open {}", path.display()))?;
        maps.push(MapFacts { name, bytes: memlock(fd.as_fd())? });
    }
    maps.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    Ok(maps)
}

fn memlock(fd: BorrowedFd<'_>) -> anyhow::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("{path} has no `memlock`"))
}

/// Programs that use the flow table of an instance.
fn users(pins: &Path) -> anyhow::Result<Vec<aya::programs::ProgramInfo>> {
    let flows = MapInfo::from_pin(pins.join(FLOWS)).context("no flow table is pinned")?.id();
    let mut found = Vec::new();
    // Programs of others come and go while they are listed.
    for program in loaded_programs().filter_map(Result::ok) {
        if program.map_ids().is_ok_and(|ids| ids.is_some_and(|ids| ids.contains(&flows))) {
            found.push(program);
        }
    }
    Ok(found)
}

/// Programs of an instance; the same program loaded for several devices is named once.
pub(super) fn programs(pins: &Path) -> anyhow::Result<Vec<ProgramFacts>> {
    let mut programs: Vec<ProgramFacts> = users(pins)?
        .into_iter()
        .map(|program| ProgramFacts {
            name: program.name_as_str().unwrap_or("?").to_owned(),
            xlated_bytes: program.size_translated(),
            jited_bytes: program.size_jitted(),
            verified_instructions: program.verified_instruction_count(),
        })
        .collect();
    programs.sort_by(|one, other| {
        let key = |facts: &ProgramFacts| (facts.name.clone(), facts.jited_bytes, facts.verified_instructions);
        key(one).cmp(&key(other))
    });
    programs.dedup();
    Ok(programs)
}

/// The idle sweep of a running instance whose daemon stands still, for running it as often as one likes.
pub(super) struct Sweep {
    sweep: harness::Sweep,
    passes: Array<MapData, SweepPass>,
    control: Array<MapData, Control>,
}

/// A pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// CPU time of all slices.
    pub(super) cpu: Duration,
    /// CPU time of the slice that took most of it.
    pub(super) longest: Duration,
    /// Slices.
    pub(super) slices: u32,
    /// Entries looked at.
    pub(super) visited: u64,
}

impl Sweep {
    /// Finds the sweep that the daemon has loaded; `None`: there is none of that name.
    pub(super) fn find(pins: &Path) -> anyhow::Result<Option<Self>> {
        let Some(program) =
            users(pins)?.into_iter().find(|program| program.name_as_str() == Some(PROGRAM_SWEEP))
        else {
            return Ok(None);
        };
        let map = |name: &str| -> anyhow::Result<Map> {
            Ok(Map::Array(
                MapData::from_pin(pins.join(name)).with_context(|| format!("no {name} is pinned"))?,
            ))
        };
        let sweep = harness::Sweep::over(program.fd()?.as_fd(), pins)?;
        let (passes, control) = (map(SWEEP)?.try_into()?, map(CONTROL)?.try_into()?);
        Ok(Some(Self { sweep, passes, control }))
    }

    /// One pass over the whole table in slices as the daemon's, with a rest of so many times its CPU time after each;
    /// `None`: `end` was set meanwhile.
    pub(super) fn pass(&mut self, rest: u32, end: &AtomicBool) -> anyhow::Result<Option<Pass>> {
        let begin = SweepPass { limit: u64::MAX, slice: SLICE, ..SweepPass::default() };
        self.passes.set(SWEEP_RUNNING, begin, 0)?;
        let mut slices = self.sweep.begin()?;
        let mut pass = Pass { cpu: Duration::ZERO, longest: Duration::ZERO, slices: 0, visited: 0 };
        loop {
            let start = cpu_time()?;
            let more = slices.one()?;
            let took = cpu_time()?.saturating_sub(start);
            (pass.cpu, pass.longest) = (pass.cpu + took, pass.longest.max(took));
            pass.slices += 1;
            self.beat()?;
            thread::sleep(took * rest);
            if !more {
                break;
            }
            if end.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        pass.visited = self.passes.get(&SWEEP_RUNNING, 0)?.visited;
        Ok(Some(pass))
    }

    /// Gives the sign of life that the daemon would give: without it packets look up their routes themselves.
    fn beat(&mut self) -> anyhow::Result<()> {
        let mut control = self.control.get(&0, 0)?;
        let now = tick::from_ns(u64::try_from(time(libc::CLOCK_MONOTONIC)?.as_nanos())?);
        if control.heartbeat != now {
            control.heartbeat = now;
            self.control.set(0, control, 0)?;
        }
        Ok(())
    }
}

/// CPU time of the calling thread.
fn cpu_time() -> anyhow::Result<Duration> {
    time(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn time(clock: libc::clockid_t) -> anyhow::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which outlives the call.
    let done = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(done == 0, "cannot read clock {clock}: {}", io::Error::last_os_error());
    Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec)?))
}
