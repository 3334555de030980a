// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is changed on the host besides BPF, and the record from which `detach` puts it back.
//!
//! A change is recorded before it is made: a process killed in between leaves at most a record of something that
//! did not happen, which is harmless to undo.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::datapath::pin::Instance;

/// The record, as JSON in [`Instance::state`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HostState {
    /// Interfaces whose forwarding switch was off.
    pub(super) forwarding: BTreeSet<String>,
    /// Addresses that were added, with the interface they were added to.
    pub(super) addresses: BTreeMap<Ipv4Addr, String>,
    /// Devices whose VLAN stripping was on.
    pub(super) vlan_stripping: BTreeSet<String>,
}

impl HostState {
    /// The record of `instance`; empty when there is none.
    ///
    /// # Errors
    ///
    /// When it is there and cannot be read.
    pub(super) fn read(instance: &Instance) -> Result<Self> {
        let path = instance.state();
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            text => text
                .map_err(anyhow::Error::from)
                .and_then(|text| Ok(serde_json::from_slice(&text)?))
                .with_context(|| format!("reading `{}`, the record of what natgw changed", path.display())),
        }
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(super) fn write(&self, instance: &Instance) -> Result<()> {
        let path = instance.state();
        let fresh = path.with_extension("state.new");
        let text = serde_json::to_vec_pretty(self).context("encoding the record")?;
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("writing `{}`", path.display()))
    }

    /// Removes the record.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be removed.
    pub(super) fn forget(instance: &Instance) -> Result<()> {
        let path = instance.state();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing `{}`", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Switches IPv4 forwarding on where it is off, and returns the interfaces concerned. Without it the kernel answers
/// route look-ups for packets of that interface with "forwarding is off".
///
/// # Errors
///
/// When a switch cannot be read or written; those before it in the list are on.
pub(super) fn enable_forwarding(
    instance: &Instance,
    state: &mut HostState,
    interfaces: &[String],
) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    for interface in interfaces {
        let path = forwarding_switch(interface);
        let value = fs::read_to_string(&path).with_context(|| format!("reading `{}`", path.display()))?;
        if value.trim() != "0" {
            continue;
        }
        state.forwarding.insert(interface.clone());
        state.write(instance)?;
        fs::write(&path, "1").with_context(|| {
            format!("switching IPv4 forwarding on for `{interface}` (writing 1 to `{}`)", path.display())
        })?;
        info!("{interface}: IPv4 forwarding switched on");
        changed.push(interface.clone());
    }
    Ok(changed)
}

/// Switches IPv4 forwarding off again; false: the interface is gone.
///
/// # Errors
///
/// When the switch is there and cannot be written.
pub(super) fn disable_forwarding(interface: &str) -> Result<bool> {
    let path = forwarding_switch(interface);
    match fs::write(&path, "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true).with_context(|| format!("writing 0 to `{}`", path.display())),
    }
}

fn forwarding_switch(interface: &str) -> PathBuf {
    // Dots in interface names are plain characters in paths; only sysctl(8) writes them as slashes.
    PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_as_written() {
        let state = HostState {
            forwarding: BTreeSet::from(["lan0.10".to_owned()]),
            addresses: BTreeMap::from([(Ipv4Addr::new(203, 0, 113, 10), "wan0".to_owned())]),
            vlan_stripping: BTreeSet::from(["lan0".to_owned()]),
        };
        let text = serde_json::to_string(&state).expect("encodes");
        assert_eq!(serde_json::from_str::<HostState>(&text).expect("decodes"), state);
        assert_eq!(serde_json::from_str::<HostState>("{}").expect("decodes"), HostState::default());
    }
}
