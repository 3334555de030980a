// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends translation and puts back what was changed on the host.

use std::{fs, io};

use anyhow::{Context as _, Result};
use nat_common::abi::names;

use super::{
    host::{self, HostState},
    lock::Lock,
    netlink::Netlink,
    offload,
};
use crate::datapath::{
    attach,
    guard::{self, Hook},
    pin::Instance,
};

/// Removes programs, pins, added addresses and switched settings of `instance`. Returns what was done, in words;
/// empty: there was nothing. May be repeated after a failure.
///
/// # Errors
///
/// When a daemon runs for the instance, or the kernel refuses; what was removed until then stays removed.
pub async fn detach(instance: &Instance) -> Result<Vec<String>> {
    let _lock = Lock::take(instance)
        .context("stop the daemon first (systemctl stop natgw, or send it SIGTERM), then detach")?;
    let mut done = Vec::new();
    // Forwarding goes first: without XDP and with forwarding on, packets would leave untranslated.
    let mut state = HostState::read(instance)?;
    restore_forwarding(instance, &mut state, &mut done)?;
    for device in instance.xdp_devices()? {
        attach::remove(instance, &device)?;
        done.push(format!("XDP program removed from `{device}`"));
    }
    for hook in Hook::ALL {
        let mut on = hook.interfaces(instance)?;
        if !guard::has_tcx() {
            // Filters have no pins to find them by.
            on = Netlink::open()?.devices().await?.into_iter().map(|device| device.name).collect();
        }
        for interface in on {
            if guard::remove(instance, hook, &interface)? {
                done.push(format!("{} removed from `{interface}`", hook.name()));
            }
        }
    }
    let pins = instance.remove_pins()?;
    if !pins.is_empty() {
        done.push(format!("{} pins removed from `{}`", pins.len(), instance.pins().display()));
    }
    restore_addresses(instance, &mut state, &mut done).await?;
    while let Some(device) = state.vlan_stripping.first().cloned() {
        if offload::set_vlan_stripping(&device, true).is_ok() {
            done.push(format!("VLAN stripping of `{device}` switched on again"));
        }
        state.vlan_stripping.remove(&device);
    }
    HostState::forget(instance)?;
    // A daemon that was killed leaves its socket; the lock says that nobody listens on it.
    match fs::remove_file(instance.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing `{}`", instance.socket().display()));
        }
        _ => {}
    }
    // Another instance may still have pins there; then it stays.
    let _ = fs::remove_dir(names::PIN_ROOT);
    Ok(done)
}

fn restore_forwarding(instance: &Instance, state: &mut HostState, done: &mut Vec<String>) -> Result<()> {
    while let Some(interface) = state.forwarding.first().cloned() {
        if host::disable_forwarding(&interface)? {
            done.push(format!("IPv4 forwarding of `{interface}` switched off again"));
        }
        state.forwarding.remove(&interface);
        state.write(instance)?;
    }
    Ok(())
}

async fn restore_addresses(instance: &Instance, state: &mut HostState, done: &mut Vec<String>) -> Result<()> {
    if state.addresses.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    let devices = netlink.devices().await?;
    while let Some((address, interface)) = state.addresses.pop_first() {
        let device = devices.iter().find(|device| device.name == interface);
        if let Some(device) = device
            && netlink.remove_address(device.index, address).await?
        {
            done.push(format!("address {address} removed from `{interface}`"));
        }
        state.write(instance)?;
    }
    Ok(())
}
