// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sweep: an iterator over the flow table. Independent of the daemon's own way to run it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use anyhow::{Context as _, Result};
use aya::{Btf, Ebpf, maps::MapData, programs::Iter};
use nat_common::abi::{
    config::{SWEEP_RUNNING, SweepPass},
    names,
};

use super::{Lab, pass::bpf};

const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
const BPF_TRACE_ITER: u32 = 28;

/// First fields of the kernel's `union bpf_attr` for `BPF_LINK_CREATE` of an iterator.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Address of the map's descriptor, and its size.
    info: u64,
    info_length: u64,
}

/// The sweep's program, tied to a flow table.
#[derive(Debug)]
pub struct Sweep {
    link: OwnedFd,
}

impl Sweep {
    /// Has the verifier accept the sweep of an object whose maps are pinned in `pins`.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn load(ebpf: &mut Ebpf, pins: &Path) -> Result<Self> {
        static TYPES: OnceLock<Btf> = OnceLock::new();
        let types = match TYPES.get() {
            Some(types) => types,
            None => {
                let types = Btf::from_sys_fs().context("the kernel has no type information")?;
                TYPES.get_or_init(|| types)
            }
        };
        let program: &mut Iter =
            ebpf.program_mut(names::PROGRAM_SWEEP).context("no sweep in the object")?.try_into()?;
        program.load("bpf_map_elem", types).with_context(|| format!("program {}", names::PROGRAM_SWEEP))?;
        Self::over(program.fd()?.as_fd(), pins)
    }

    /// Ties a sweep that is loaded to the flow table that is pinned in `pins`.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn over(program: BorrowedFd<'_>, pins: &Path) -> Result<Self> {
        let flows = MapData::from_pin(pins.join(names::FLOWS)).context("map FLOWS")?;
        let info = u32::try_from(flows.fd().as_fd().as_raw_fd())?;
        let link = Link {
            program: u32::try_from(program.as_raw_fd())?,
            target: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            info: &raw const info as u64,
            info_length: size_of_val(&info) as u64,
        };
        Ok(Self { link: bpf(BPF_LINK_CREATE, &link).context("tying the sweep to FLOWS")? })
    }

    /// Begins a pass with what is in `SWEEP`.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn begin(&self) -> Result<Slices> {
        let link = [u32::try_from(self.link.as_raw_fd())?, 0];
        Ok(Slices(bpf(BPF_ITER_CREATE, &link).context("beginning a sweep")?.into()))
    }
}

/// A pass that has begun.
#[derive(Debug)]
pub struct Slices(File);

impl Slices {
    /// Does one slice; false: it was the last one.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn one(&mut self) -> Result<bool> {
        match self.0.read(&mut [0]) {
            Ok(read) => Ok(read > 0),
            // The kernel ends a read after 1,000,000 entries by itself.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error).context("sweeping"),
        }
    }

    /// Does all that are left; how many there were.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn all(&mut self) -> Result<usize> {
        let mut slices = 1;
        while self.one()? {
            slices += 1;
        }
        Ok(slices)
    }
}

impl Lab {
    /// One pass of the sweep, in one slice, that reclaims at most `limit` flows.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn sweep(&mut self, limit: u64) -> Result<SweepPass> {
        self.maps.sweep.set(SWEEP_RUNNING, SweepPass { limit, ..SweepPass::default() }, 0)?;
        self.sweep_again()
    }

    /// Another pass with the arguments as the last one left them, for threads that share the lab.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it.
    pub fn sweep_again(&self) -> Result<SweepPass> {
        self.sweep.begin()?.all()?;
        self.swept()
    }

    /// Begins a pass whose slices end after so much work.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn sweep_in_slices(&mut self, slice: u64) -> Result<Slices> {
        let begin = SweepPass { limit: u64::MAX, slice, ..SweepPass::default() };
        self.maps.sweep.set(SWEEP_RUNNING, begin, 0)?;
        self.sweep.begin()
    }

    /// What the pass that is under way, or was last, has found so far.
    ///
    /// # Errors
    ///
    /// Those of reading the map.
    pub fn swept(&self) -> Result<SweepPass> {
        Ok(self.maps.sweep.get(&SWEEP_RUNNING, 0)?)
    }
}
