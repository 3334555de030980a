// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads the embedded BPF object: once for each device with an XDP program, because what distinguishes the devices
//! are load-time constants that let the verifier drop the code a device does not need.

use std::{num::NonZeroUsize, thread};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{Iter, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use nat_common::abi::{config::NO_SLOT, names};
use tracing::debug;

use super::{
    layout::Lower,
    pin::Instance,
    shape::{self, Room},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw.bpf.o"));

/// The embedded BPF object.
///
/// # Errors
///
/// When this program was built without it.
pub fn object() -> Result<&'static [u8]> {
    ensure!(
        !OBJECT.is_empty(),
        "this natgw was built without its BPF object: build it with `cargo xtask build`"
    );
    Ok(OBJECT)
}

/// What distinguishes the program of one device from that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constants {
    /// Slot of the port that untagged frames belong to, or [`NO_SLOT`].
    pub slot: u32,
    /// Roles of that port.
    pub role: u32,
    /// Index of the device.
    pub lower: u32,
    /// 1 when a configured VLAN interface sits on the device.
    pub trunk: u32,
}

impl Constants {
    /// For programs that belong to no device: guard, hold and sweep.
    pub const NO_DEVICE: Self = Self { slot: NO_SLOT, role: 0, lower: 0, trunk: 0 };
}

/// How chatty the BPF side is: 0 nothing and at no cost, 1 error … 5 trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogLevel(pub u8);

/// Loads programs that work on one instance's maps.
#[derive(Debug)]
pub struct Loader {
    instance: Instance,
    room: Room,
    log: LogLevel,
}

impl Loader {
    /// For an instance whose maps are, or are to be, made for `room`.
    #[must_use]
    pub const fn new(instance: Instance, room: Room, log: LogLevel) -> Self {
        Self { instance, room, log }
    }

    /// Loads the object with `constants`. Maps that are pinned are opened, the others are made and pinned, so the
    /// pins have to be examined first ([`super::pin::examine`]).
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map or the object does not fit this program.
    pub fn load(&self, constants: Constants) -> Result<Ebpf> {
        let Constants { slot, role, lower, trunk } = constants;
        let mut loader = EbpfLoader::new();
        loader
            .override_global(names::CONST_SLOT, &slot, true)
            .override_global(names::CONST_ROLE, &role, true)
            .override_global(names::CONST_LOWER, &lower, true)
            .override_global(names::CONST_TRUNK, &trunk, true)
            .override_global(aya_log::LEVEL, &self.log.0, false);
        for map in names::PINNED_MAPS {
            loader.map_pin_path(map, self.instance.map(map));
            if let Some(entries) = shape::sized(map, self.room) {
                loader.map_max_entries(map, entries);
            }
        }
        loader.load(object()?).with_context(|| {
            format!(
                "loading the BPF object for instance `{}` with room for {} flows and {} backends",
                self.instance.name(),
                self.room.flows,
                self.room.backends
            )
        })
    }

    /// Loads the object once for each of `devices`, with its XDP program accepted by the verifier: that takes most of the time
    /// of a start, so as many at a time as there are CPUs. The results are in the order of the devices.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had; each result fails as [`Self::load`] and [`xdp`].
    pub fn load_verified(&self, devices: &[Lower]) -> Result<Vec<Result<Ebpf>>> {
        let at_a_time = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut loaded = Vec::with_capacity(devices.len());
        for some in devices.chunks(at_a_time) {
            thread::scope(|scope| {
                let mut loads = Vec::with_capacity(some.len());
                for device in some {
                    let load = || self.verified(device.constants);
                    loads
                        .push(thread::Builder::new().spawn_scoped(scope, load).context("starting a thread")?);
                }
                for (load, device) in loads.into_iter().zip(some) {
                    let done = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    loaded.push(done.with_context(|| format!("loading the program of `{}`", device.name)));
                }
                anyhow::Ok(())
            })?;
        }
        Ok(loaded)
    }

    fn verified(&self, constants: Constants) -> Result<Ebpf> {
        let mut ebpf = self.load(constants)?;
        xdp(&mut ebpf)?;
        Ok(ebpf)
    }
}

/// The XDP program of a loaded object, accepted by the verifier.
///
/// # Errors
///
/// When the object has none, or the verifier refuses it; its reasons are in the error.
pub fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program: &mut Xdp = program(ebpf, names::PROGRAM_XDP)?.try_into()?;
    if program.fd().is_err() {
        program.load().map_err(|error| refused(names::PROGRAM_XDP, error))?;
    }
    Ok(program)
}

/// A TC program of a loaded object, accepted by the verifier.
///
/// # Errors
///
/// As [`xdp`].
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = program(ebpf, name)?.try_into()?;
    if program.fd().is_err() {
        program.load().map_err(|error| refused(name, error))?;
    }
    Ok(program)
}

/// The sweep of a loaded object, accepted by the verifier.
///
/// # Errors
///
/// As [`xdp`]; also on a kernel without type information (`CONFIG_DEBUG_INFO_BTF`), by which it knows iterators.
pub fn sweep(ebpf: &mut Ebpf) -> Result<ProgramFd> {
    let types = Btf::from_sys_fs()
        .context("reading /sys/kernel/btf/vmlinux: the sweep needs a kernel with CONFIG_DEBUG_INFO_BTF")?;
    let program: &mut Iter = program(ebpf, names::PROGRAM_SWEEP)?.try_into()?;
    program.load("bpf_map_elem", &types).map_err(|error| refused(names::PROGRAM_SWEEP, error))?;
    Ok(program.fd()?.try_clone()?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).with_context(|| format!("the BPF object has no program `{name}`"))
}

/// Lines of the verifier's log that go into an error: the reason is at the end.
const LOG_LINES: usize = 12;

/// The error of a program that did not load, with the end of the verifier's log; all of it goes to the debug log.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return anyhow::Error::from(error).context(format!("loading program `{name}`"));
    };
    let log = verifier_log.to_string();
    debug!("verifier log of `{name}`:\n{log}");
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
    anyhow::Error::from(io_error)
        .context(format!("the kernel refused program `{name}`, saying at last:\n  {end}\n"))
}
