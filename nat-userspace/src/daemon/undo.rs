// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a start or reload has done so far, so that a failure leaves the host as it was.

use std::net::Ipv4Addr;

use anyhow::Result;
use tracing::warn;

use super::{
    host::{self, HostState},
    netlink::Netlink,
    offload,
};
use crate::datapath::{
    attach,
    guard::{self, Hook},
    pin::Instance,
};

/// One thing that was done and can be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The instance's pins were made.
    Pins,
    /// An address was added to the interface with this index.
    Address(u32, Ipv4Addr),
    /// A TC program was attached to an interface.
    Tc(Hook, String),
    /// The XDP program was attached to a device.
    Xdp(String),
    /// Forwarding was switched on for an interface.
    Forwarding(String),
    /// VLAN tags are no longer stripped by a device.
    VlanStripping(String),
}

/// What has been done, in order.
#[derive(Debug, Default)]
pub(super) struct Journal(Vec<Done>);

impl Journal {
    /// Remembers `done`.
    pub(super) fn push(&mut self, done: Done) {
        self.0.push(done);
    }

    /// Undoes everything, last first. What cannot be undone is logged: there is already an error on its way.
    pub(super) async fn roll_back(self, instance: &Instance, netlink: &Netlink, state: &mut HostState) {
        for done in self.0.into_iter().rev() {
            if let Err(error) = undo(&done, instance, netlink, state).await {
                warn!("cleaning up after the failure: {error:#}");
            }
        }
        let recorded =
            if *state == HostState::default() { HostState::forget(instance) } else { state.write(instance) };
        if let Err(error) = recorded {
            warn!("cleaning up after the failure: {error:#}");
        }
    }
}

async fn undo(done: &Done, instance: &Instance, netlink: &Netlink, state: &mut HostState) -> Result<()> {
    match done {
        Done::Pins => {
            instance.remove_pins()?;
        }
        Done::Address(index, address) => {
            netlink.remove_address(*index, *address).await?;
            state.addresses.remove(address);
        }
        Done::Tc(hook, interface) => {
            guard::remove(instance, *hook, interface)?;
        }
        Done::Xdp(device) => {
            attach::remove(instance, device)?;
        }
        Done::Forwarding(interface) => {
            host::disable_forwarding(interface)?;
            state.forwarding.remove(interface);
        }
        Done::VlanStripping(device) => {
            offload::set_vlan_stripping(device, true)?;
            state.vlan_stripping.remove(device);
        }
    }
    Ok(())
}
