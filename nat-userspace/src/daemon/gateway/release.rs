// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontend addresses and instance IPs that natgw has added to an interface, and that go again.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;
use tracing::info;

use super::Gateway;

impl Gateway {
    /// Added addresses that the configuration in force does not name.
    pub(in crate::daemon) fn departing(&self) -> BTreeSet<Ipv4Addr> {
        if self.host.addresses.is_empty() {
            return BTreeSet::new();
        }
        let used: BTreeSet<Ipv4Addr> = self.config.public_addresses().collect();
        self.host.addresses.keys().filter(|address| !used.contains(address)).copied().collect()
    }

    /// Changes of configuration so far.
    pub(in crate::daemon) const fn generation(&self) -> u32 {
        self.control.value().generation
    }

    /// Removes those of `idle` that are departing from their interfaces. One whose interface is gone is forgotten.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what is still recorded is still there.
    pub(in crate::daemon) async fn release(&mut self, idle: &BTreeSet<Ipv4Addr>) -> Result<()> {
        let leaving: Vec<Ipv4Addr> = self.departing().intersection(idle).copied().collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let devices = self.netlink.devices().await?;
        for address in leaving {
            let Some(interface) = self.host.addresses.get(&address) else { continue };
            if let Some(device) = devices.iter().find(|device| device.name == *interface)
                && self.netlink.remove_address(device.index, address).await?
            {
                info!("{interface}: address {address} removed: not configured, and its last flow has ended");
            }
            self.host.addresses.remove(&address);
            self.host.write(&self.instance)?;
        }
        Ok(())
    }
}
