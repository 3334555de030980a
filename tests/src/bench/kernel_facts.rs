// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel says about natgw's maps and programs, and its sweep run from outside.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::{
    maps::{Array, Map, MapData, MapInfo},
    programs::{ProgramFd, loaded_programs},
};
use nat_common::abi::{
    config::SweepArgs,
    names::{FLOWS, PINNED_MAPS, PROGRAM_SWEEP, SWEEP},
};
use serde::Serialize;

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

/// The idle sweep of a running instance, for running it as often as one likes.
pub(super) struct Sweep {
    program: ProgramFd,
    arguments: Array<MapData, SweepArgs>,
}

impl Sweep {
    /// Finds the sweep that the daemon has loaded; `None`: there is none of that name.
    pub(super) fn find(pins: &Path) -> anyhow::Result<Option<Self>> {
        let Some(program) =
            users(pins)?.into_iter().find(|program| program.name_as_str() == Some(PROGRAM_SWEEP))
        else {
            return Ok(None);
        };
        let map =
            Map::Array(MapData::from_pin(pins.join(SWEEP)).context("no arguments of a sweep are pinned")?);
        Ok(Some(Self { program: program.fd()?, arguments: map.try_into()? }))
    }

    /// One pass over the whole table, and how many entries it looked at.
    pub(super) fn pass(&mut self) -> anyhow::Result<(Duration, u64)> {
        self.arguments.set(0, SweepArgs { limit: u64::MAX, ..SweepArgs::default() }, 0)?;
        let start = Instant::now();
        test_run(self.program.as_fd())?;
        let took = start.elapsed();
        Ok((took, self.arguments.get(&0, 0)?.visited))
    }
}

/// First fields of the kernel's `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data: [u32; 2],
    pointers: [u64; 2],
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    contexts: [u64; 2],
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// Runs a raw tracepoint's program once, on this CPU.
fn test_run(program: BorrowedFd<'_>) -> anyhow::Result<()> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    let attributes = TestRun { program: u32::try_from(program.as_raw_fd())?, ..TestRun::default() };
    // SAFETY: the attributes are a prefix of the kernel's union, of the size given, and hold no pointers.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw const attributes, size_of::<TestRun>())
    };
    ensure!(done == 0, "cannot run the sweep: {}", io::Error::last_os_error());
    Ok(())
}
