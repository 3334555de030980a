// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether KVM can be used. That /dev/kvm is there says little: nested virtualisation may hang on the first instruction. So a
//! guest kernel has to write its first line within a deadline.
use std::{fs, path::Path, time::Duration};

use anyhow::Result;

use super::{
    kernel::Kernel,
    machine::{Accel, Process, Spec},
    stop::Stop,
};

/// A kernel under KVM writes its first line within a second.
const LIMIT: Duration = Duration::from_secs(10);
const FIRST_LINE: &str = "Linux version";

/// KVM if it has been seen to work, or else emulation; and why.
///
/// # Errors
///
/// Only on a signal.
pub(crate) fn choose(kernel: &Kernel, logs: &Path, stop: &Stop) -> Result<(Accel, String)> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Ok((Accel::Tcg, format!("/dev/kvm cannot be opened: {error}")));
    }
    let spec = Spec {
        name: "probe",
        accel: Accel::Kvm,
        kernel: &kernel.image,
        initramfs: None,
        memory: 256,
        nics: Vec::new(),
        sockets: logs,
        logs,
    };
    let mut process = Process::spawn(&spec)?;
    let booted = stop.wait("under KVM a kernel writes its first line", LIMIT, || {
        if fs::read(spec.console()).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(FIRST_LINE)) {
            return Ok(Some(()));
        }
        process.alive().map(|()| None)
    });
    stop.check()?;
    Ok(match booted {
        Ok(()) => (Accel::Kvm, "a guest kernel booted with it".to_owned()),
        Err(error) => (
            Accel::Tcg,
            error.to_string().lines().filter(|line| !line.is_empty()).take(2).collect::<Vec<_>>().join(": "),
        ),
    })
}
