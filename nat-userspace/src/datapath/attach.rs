// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the XDP program to devices, through links that are pinned and therefore outlive this process.

use std::{fs, io, os::fd::AsFd as _};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf,
    programs::{
        ProgramError, XdpMode as AyaMode,
        links::{FdLink, LinkError, PinnedLink},
        loaded_programs,
        xdp::XdpLink,
    },
};
use tracing::{info, warn};

use super::{load, pin::Instance, refusal};
use crate::config::XdpMode;

/// How a program came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the network stack.
    Native,
    /// In the network stack: works everywhere, slower.
    Generic,
}

impl Mode {
    /// As in status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// What has to be done to have a program of ours on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is there.
    Attach,
    /// A pin is left of a device that is gone: remove it, then attach.
    AttachAfresh,
    /// A program of ours runs there: replace it in one step.
    Replace,
    /// Somebody else's program, by its number, is there.
    Foreign(u32),
}

/// Decides from the program that the device has and the one that our pinned link holds. Every device has a program
/// of its own, so equal numbers mean that the link is on this very device.
#[must_use]
pub const fn step(on_device: Option<u32>, on_link: Option<u32>) -> Step {
    match (on_device, on_link) {
        (None, None) => Step::Attach,
        (None, Some(_)) => Step::AttachAfresh,
        (Some(device), Some(link)) if device == link => Step::Replace,
        (Some(device), _) => Step::Foreign(device),
    }
}

/// The program that the link pinned for `device` holds; `None`: no such pin.
///
/// # Errors
///
/// When there is a pin that is not a link or cannot be opened.
pub fn pinned_program(instance: &Instance, device: &str) -> Result<Option<u32>> {
    let path = instance.xdp_link(device);
    let link = match PinnedLink::from_pin(&path) {
        Ok(link) => FdLink::from(link),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("opening link `{}`", path.display())),
    };
    let info = link.info().with_context(|| format!("asking link `{}`", path.display()))?;
    Ok(Some(info.program_id()))
}

/// Puts the XDP program of `ebpf` on `device`, which has program `on_device` now. Returns its mode and whether it
/// was attached anew.
///
/// # Errors
///
/// When another program is there, or the kernel or driver refuses; then nothing has changed.
pub fn put(
    instance: &Instance,
    ebpf: &mut Ebpf,
    device: &str,
    on_device: Option<(u32, bool)>,
    wanted: XdpMode,
) -> Result<(Mode, bool)> {
    let pinned = pinned_program(instance, device)?;
    match step(on_device.map(|(program, _)| program), pinned) {
        Step::Foreign(program) => bail!(
            "interface `{device}` has an XDP program already: {}; remove it with `ip link set dev {device} xdp off` \
             or stop what attached it",
            describe(program)
        ),
        Step::Replace => {
            replace(instance, ebpf, device)?;
            let native = on_device.is_some_and(|(_, native)| native);
            Ok((if native { Mode::Native } else { Mode::Generic }, false))
        }
        Step::AttachAfresh => {
            let path = instance.xdp_link(device);
            fs::remove_file(&path).with_context(|| format!("removing stale link `{}`", path.display()))?;
            attach(instance, ebpf, device, wanted).map(|mode| (mode, true))
        }
        Step::Attach => attach(instance, ebpf, device, wanted).map(|mode| (mode, true)),
    }
}

/// Number and name of a program, for people.
fn describe(program: u32) -> String {
    let found = loaded_programs().filter_map(Result::ok).find(|info| info.id() == program);
    match found.as_ref().and_then(|info| info.name_as_str()) {
        Some(name) if !name.is_empty() => format!("program {program} `{name}`"),
        _ => format!("program {program}"),
    }
}

fn attach(instance: &Instance, ebpf: &mut Ebpf, device: &str, wanted: XdpMode) -> Result<Mode> {
    // A program that the verifier refuses would be refused in generic mode as well.
    load::xdp(ebpf)?;
    let generic = |ebpf: &mut Ebpf| attach_in(instance, ebpf, device, AyaMode::Skb).map(|()| Mode::Generic);
    let native = |ebpf: &mut Ebpf| attach_in(instance, ebpf, device, AyaMode::Driver).map(|()| Mode::Native);
    match wanted {
        XdpMode::Native => native(ebpf).with_context(|| {
            format!(
                "attaching to `{device}` in native mode; `xdp_mode = \"auto\"` would fall back to generic"
            )
        }),
        XdpMode::Generic => generic(ebpf).with_context(|| format!("attaching to `{device}` in generic mode")),
        XdpMode::Auto => native(ebpf).or_else(|why| {
            warn!("{device}: native XDP is not to be had, falling back to generic: {why:#}");
            generic(ebpf).with_context(|| format!("attaching to `{device}` in generic mode"))
        }),
    }
}

fn attach_in(instance: &Instance, ebpf: &mut Ebpf, device: &str, mode: AyaMode) -> Result<()> {
    let program = load::xdp(ebpf)?;
    let attached = program.attach(device, mode);
    let id = match attached {
        Ok(id) => id,
        Err(error) => {
            let native = matches!(mode, AyaMode::Driver);
            let said = program.fd().ok().filter(|_| native);
            let said = said.and_then(|program| refusal::reason(program.as_fd(), device));
            return Err(explain(error, said));
        }
    };
    let link = program.take_link(id)?;
    // aya falls back to a netlink attachment on EINVAL. That one would end with this process.
    let link = FdLink::try_from(link)
        .map_err(|_| anyhow!("the kernel made no link for it: native XDP links need Linux 5.9"))?;
    let path = instance.xdp_link(device);
    link.pin(&path).with_context(|| format!("pinning link `{}`", path.display()))?;
    info!(
        "{device}: XDP program attached, {}",
        if matches!(mode, AyaMode::Skb) { "generic" } else { "native" }
    );
    Ok(())
}

/// Adds the driver's own words, else what the error number of the link system call means here.
fn explain(error: ProgramError, said: Option<String>) -> anyhow::Error {
    if let Some(said) = said {
        return anyhow::Error::from(error).context(said);
    }
    let number = match &error {
        ProgramError::SyscallError(syscall) => syscall.io_error.raw_os_error(),
        _ => None,
    };
    let hint = match number {
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP, or not with LRO or header split on",
        Some(libc::ERANGE | libc::EMSGSIZE) => "the MTU of the device, or of its peer, is too large for XDP",
        Some(libc::EBUSY) => "another XDP program, or the other mode, is in use on the device",
        Some(libc::EPERM) => "CAP_NET_ADMIN and CAP_BPF are needed",
        Some(libc::ENOMEM) => "the driver found no memory or queues for XDP",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(hint)
}

fn replace(instance: &Instance, ebpf: &mut Ebpf, device: &str) -> Result<()> {
    let path = instance.xdp_link(device);
    let mut attempt = || -> Result<()> {
        let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(&path)?))?;
        let program = load::xdp(ebpf)?;
        let id = program.attach_to_link(link)?;
        // The pin holds the link: giving up this handle detaches nothing.
        drop(program.take_link(id)?);
        Ok(())
    };
    attempt().with_context(|| format!("replacing the XDP program on `{device}`"))?;
    info!("{device}: XDP program replaced, flows kept");
    Ok(())
}

/// Takes our program off `device`; false: there was none.
///
/// # Errors
///
/// When the pin cannot be removed.
pub fn remove(instance: &Instance, device: &str) -> Result<bool> {
    let path = instance.xdp_link(device);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => {
            result.with_context(|| format!("removing link `{}`", path.display()))?;
            info!("{device}: XDP program detached");
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_program_is_replaced() {
        assert_eq!(step(None, None), Step::Attach);
        assert_eq!(step(None, Some(7)), Step::AttachAfresh);
        assert_eq!(step(Some(7), Some(7)), Step::Replace);
        assert_eq!(step(Some(8), Some(7)), Step::Foreign(8));
        assert_eq!(step(Some(8), None), Step::Foreign(8));
    }
}
