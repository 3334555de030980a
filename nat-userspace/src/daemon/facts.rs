// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host has without natgw: see [`crate::config::keep_host_ports`].

use std::{collections::BTreeSet, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, anyhow};

use super::{host::HostState, netlink::Netlink};
use crate::{
    config::{HostFacts, PortRange},
    datapath::{layout::Device, pin::Instance},
    plan::PlanError,
};

/// Of the network namespace that this process is in.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Asks the kernel, and the record of `instance` for the addresses that natgw has added. Needs no root.
///
/// # Errors
///
/// When one of them does not answer.
pub fn of_this_host(instance: &Instance) -> Result<HostFacts> {
    facts(&devices()?, &HostState::read(instance)?)
}

/// Asks the kernel for the host's devices. Needs no root.
///
/// # Errors
///
/// When it does not answer.
pub fn devices() -> Result<Vec<Device>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Netlink::open()?.devices().await })
}

/// From what the kernel has said, and the record of what natgw has added.
///
/// # Errors
///
/// When the range of ephemeral ports cannot be read.
pub(super) fn facts(devices: &[Device], added: &HostState) -> Result<HostFacts> {
    let text = fs::read_to_string(EPHEMERAL).with_context(|| format!("reading `{EPHEMERAL}`"))?;
    let ephemeral =
        range(&text).with_context(|| format!("`{EPHEMERAL}` holds `{}`, expected two ports", text.trim()))?;
    Ok(HostFacts { addresses: own(devices, added), ephemeral })
}

fn range(text: &str) -> Option<PortRange> {
    let mut ports = text.split_whitespace().map(|port| port.parse().ok());
    Some(PortRange { first: ports.next()??, last: ports.next()?? })
}

fn own(devices: &[Device], added: &HostState) -> Vec<Ipv4Addr> {
    let all: BTreeSet<Ipv4Addr> =
        devices.iter().flat_map(|device| device.addresses.iter().copied()).collect();
    all.into_iter().filter(|address| !added.addresses.contains_key(address)).collect()
}

/// Why there is no plan, on a host that keeps ports of its own: `kept` is what has been said about them.
#[must_use]
pub fn explained(error: PlanError, kept: &[String]) -> anyhow::Error {
    if kept.is_empty() {
        return error.into();
    }
    anyhow!(error).context(kept.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_natgw_has_added_is_not_the_host_s_own() {
        let [lan, wan, added] = ["10.0.0.1", "198.51.100.1", "203.0.113.10"]
            .map(|address| address.parse::<Ipv4Addr>().expect("an address"));
        let device = |addresses: &[Ipv4Addr]| Device { addresses: addresses.to_vec(), ..Device::default() };
        let mut state = HostState::default();
        state.addresses.insert(added, "wan0".to_owned());
        assert_eq!(own(&[device(&[wan, added]), device(&[lan])], &state), [lan, wan]);
    }

    #[test]
    fn the_kernel_s_two_numbers_are_a_range() {
        assert_eq!(range("32768\t60999\n"), Some(PortRange { first: 32_768, last: 60_999 }));
        assert_eq!(range("32768\n"), None);
        assert_eq!(range("32768 99999"), None);
    }

    #[test]
    fn a_plan_that_does_not_fit_says_what_the_host_keeps() {
        let error = || PlanError::TooManySets { wanted: 2, limit: 1 };
        let plain = format!("{:#}", explained(error(), &[]));
        assert_eq!(plain, error().to_string());
        let why = "frontend `fe1`: 198.51.100.1 is an address of this host".to_owned();
        assert_eq!(
            format!("{:#}", explained(error(), std::slice::from_ref(&why))),
            format!("{why}: {plain}")
        );
    }
}
