// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the guard to outside interfaces: by a pinned TCX link where the kernel has them (6.6), else as a
//! `clsact` filter, which the kernel keeps without a pin.

use std::{fs, io};

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

/// Whether the kernel has TCX links, which are pinned: since Linux 6.6.
#[must_use]
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Puts the guard of `ebpf` on `interface`; true: it was not there before.
///
/// # Errors
///
/// When the kernel refuses; then nothing has changed.
pub fn put(instance: &Instance, ebpf: &mut Ebpf, interface: &str) -> Result<bool> {
    let mut put = || {
        if has_tcx() { put_link(instance, ebpf, interface) } else { put_filter(ebpf, interface) }
    };
    let new = put().with_context(|| format!("attaching the guard to `{interface}`"))?;
    if new {
        info!("{interface}: guard attached");
    }
    Ok(new)
}

fn put_link(instance: &Instance, ebpf: &mut Ebpf, interface: &str) -> Result<bool> {
    let path = instance.guard_link(interface);
    let program = load::guard(ebpf)?;
    match PinnedLink::from_pin(&path) {
        Ok(link) => {
            let link = FdLink::from(link);
            if is_on(&link, interface)? {
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
    let options = TcAttachOptions::TcxOrder(LinkOrder::last());
    let id = program.attach_with_options(interface, TcAttachType::Egress, options)?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&path).with_context(|| format!("pinning link `{}`", path.display()))?;
    Ok(true)
}

fn is_on(link: &FdLink, interface: &str) -> Result<bool> {
    let program = link.info()?.program_id();
    let (_revision, attached) = SchedClassifier::query_tcx(interface, TcAttachType::Egress)?;
    Ok(attached.iter().any(|info| info.id() == program))
}

fn put_filter(ebpf: &mut Ebpf, interface: &str) -> Result<bool> {
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::AlreadyAttached) | Ok(()) => {}
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    let program = load::guard(ebpf)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let attached =
        program.attach_with_options(interface, TcAttachType::Egress, TcAttachOptions::Netlink(options));
    let (id, new) = match attached {
        Ok(id) => (id, true),
        Err(ProgramError::TcError(_)) => {
            let old = SchedClassifierLink::attached(interface, TcAttachType::Egress, PRIORITY, HANDLE, None)?;
            (program.attach_to_link(old)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    // Dropping the link would take the filter off again; it is to stay.
    std::mem::forget(program.take_link(id)?);
    Ok(new)
}

/// Takes the guard off `interface`; false: there was none.
///
/// # Errors
///
/// When the kernel refuses.
pub fn remove(instance: &Instance, interface: &str) -> Result<bool> {
    let path = instance.guard_link(interface);
    let removed = match fs::remove_file(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("removing link `{}`", path.display())),
    };
    let removed = removed
        || !has_tcx()
            && tc::qdisc_detach_program(interface, TcAttachType::Egress, names::PROGRAM_GUARD).is_ok();
    if removed {
        info!("{interface}: guard detached");
    }
    Ok(removed)
}
