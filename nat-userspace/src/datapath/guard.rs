// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the TC programs: the guard to egress of outside interfaces, the hold to ingress of all; by a pinned TCX link
//! where the kernel has them (6.6), else as a `clsact` filter, which the kernel keeps without a pin.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};
use nat_common::abi::names;
use tracing::info;

use super::{load, pin::Instance};

/// Priority and handle of the filter on kernels without TCX: fixed, so that a later start finds and replaces it.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6e67);

/// A TC program, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Egress of outside interfaces: nothing leaves untranslated.
    Guard,
    /// Ingress of every interface: fragments wait for the first one of their datagram.
    Hold,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Guard, Self::Hold];

    /// What it is called in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Hold => "hold",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Guard => names::PROGRAM_GUARD,
            Self::Hold => names::PROGRAM_HOLD,
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::Guard => TcAttachType::Egress,
            Self::Hold => TcAttachType::Ingress,
        }
    }

    /// The guard is the last to see what leaves, the hold the first to see what comes in.
    fn order(self) -> LinkOrder {
        match self {
            Self::Guard => LinkOrder::last(),
            Self::Hold => LinkOrder::first(),
        }
    }

    fn link(self, instance: &Instance, interface: &str) -> PathBuf {
        match self {
            Self::Guard => instance.guard_link(interface),
            Self::Hold => instance.hold_link(interface),
        }
    }

    /// Interfaces with a pinned link of it.
    ///
    /// # Errors
    ///
    /// When the pin directory exists and cannot be read.
    pub fn interfaces(self, instance: &Instance) -> Result<Vec<String>> {
        match self {
            Self::Guard => instance.guard_interfaces(),
            Self::Hold => instance.hold_interfaces(),
        }
    }
}

/// Whether the kernel has TCX links, which are pinned: since Linux 6.6.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Puts a TC program of `ebpf` on `interface`; true: it was not there before.
///
/// # Errors
///
/// When the kernel refuses; then nothing has changed.
pub fn put(instance: &Instance, ebpf: &mut Ebpf, hook: Hook, interface: &str) -> Result<bool> {
    let mut put = || {
        if has_tcx() { put_link(instance, ebpf, hook, interface) } else { put_filter(ebpf, hook, interface) }
    };
    let new = put().with_context(|| format!("attaching the {} to `{interface}`", hook.name()))?;
    if new {
        info!("{interface}: {} attached", hook.name());
    }
    Ok(new)
}

fn put_link(instance: &Instance, ebpf: &mut Ebpf, hook: Hook, interface: &str) -> Result<bool> {
    let path = hook.link(instance, interface);
    let program = load::classifier(ebpf, hook.program())?;
    match PinnedLink::from_pin(&path) {
        Ok(link) => {
            let link = FdLink::from(link);
            if is_on(&link, hook, interface)? {
                let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
                drop(program.take_link(id)?);
                return Ok(false);
            }
            // Of a device that had this name before.
            fs::remove_file(&path)?;
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let options = TcAttachOptions::TcxOrder(hook.order());
    let id = program.attach_with_options(interface, hook.direction(), options)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&path).with_context(|| format!("pinning link `{}`", path.display()))?;
    Ok(true)
}

fn is_on(link: &FdLink, hook: Hook, interface: &str) -> Result<bool> {
    let program = link.info()?.program_id();
    let (_revision, attached) = SchedClassifier::query_tcx(interface, hook.direction())?;
    Ok(attached.iter().any(|info| info.id() == program))
}

fn put_filter(ebpf: &mut Ebpf, hook: Hook, interface: &str) -> Result<bool> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::AlreadyAttached) | Ok(()) => {}
        // aya 0.14 tells `AlreadyAttached` in its own words; the outside interface has the guard's already.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let program = load::classifier(ebpf, hook.program())?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let attached =
        program.attach_with_options(interface, hook.direction(), TcAttachOptions::Netlink(options));
    let (id, new) = match attached {
        Ok(id) => (id, true),
        Err(ProgramError::TcError(_)) => {
            let old = SchedClassifierLink::attached(interface, hook.direction(), PRIORITY, HANDLE, None)?;
            (program.attach_to_link(old)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    // Dropping the link would take the filter off again; it is to stay.
    std::mem::forget(program.take_link(id)?);
    Ok(new)
}

/// Takes a TC program off `interface`; false: it was not there.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove(instance: &Instance, hook: Hook, interface: &str) -> Result<bool> {
    let path = hook.link(instance, interface);
    let removed = match fs::remove_file(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("removing link `{}`", path.display())),
    };
    let removed = removed
        || !has_tcx() && tc::qdisc_detach_program(interface, hook.direction(), hook.program()).is_ok();
    if removed {
        info!("{interface}: {} detached", hook.name());
    }
    Ok(removed)
}
