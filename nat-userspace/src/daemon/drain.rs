// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontend addresses that natgw has added and that have left the configuration: they stay, so that the host answers
//! ARP for them and their flows go on, until the last of these has ended.
//!
//! Whether flows are left is seen by a walk over the flow table, on the sweep's thread, and only while there is such
//! an address.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;
use nat_common::abi::flow::{FlowEntry, FlowKey, HALF_OUTBOUND};

use super::{gateway::Gateway, run::Daemon};
use crate::datapath::tables::Tables;

/// Shortest time between two walks.
const PERIOD: Duration = Duration::from_secs(2);
/// A walk may take one part in so many of a CPU's time: 5 %, as the sweep.
const REST: u32 = 20;

/// When to look next.
#[derive(Debug, Default)]
pub(super) struct Drain {
    next: Option<Instant>,
}

/// A walk to be made.
#[derive(Debug)]
pub(super) struct Look {
    instance: String,
    generation: u32,
    addresses: BTreeSet<Ipv4Addr>,
}

/// A walk that was made.
#[derive(Debug)]
pub(super) struct Seen {
    /// Of the configuration that was in force when it was asked for.
    generation: u32,
    took: Duration,
    /// Addresses that no flow uses.
    idle: Result<BTreeSet<Ipv4Addr>>,
}

impl Drain {
    /// The walk that is due; `None`: not yet, or there is nothing to look for.
    pub(super) fn look(&self, gateway: &Gateway) -> Option<Look> {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return None;
        }
        let addresses = gateway.departing();
        (!addresses.is_empty()).then(|| Look {
            instance: gateway.instance().name().to_owned(),
            generation: gateway.generation(),
            addresses,
        })
    }
}

impl Look {
    /// Walks over the flow table. Blocks for as long as it takes.
    pub(super) fn take(self) -> Seen {
        let start = Instant::now();
        let idle = self.idle();
        Seen { generation: self.generation, took: start.elapsed(), idle }
    }

    fn idle(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let mut idle = self.addresses.clone();
        Tables::open(&self.instance)?.for_each_half(&mut |key, entry| {
            idle.remove(&frontend_of(key, entry));
        })?;
        Ok(idle)
    }
}

/// Of either half: while a flow is opened or removed, one of them is there alone.
fn frontend_of(key: &FlowKey, entry: &FlowEntry) -> Ipv4Addr {
    if entry.half & HALF_OUTBOUND != 0 { entry.address } else { key.destination }.into()
}

impl Daemon {
    /// Takes what a walk has found: addresses without flows go.
    pub(super) async fn drained(&mut self, seen: Option<Seen>) {
        let Some(Seen { generation, took, idle }) = seen else { return };
        self.drain.next = Some(Instant::now() + PERIOD.max(took * REST));
        // After another change of configuration, an address may have come back and gone again, with flows.
        if generation != self.gateway.generation() {
            return;
        }
        let done = match idle {
            Ok(idle) => self.gateway.release(&idle).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            self.failed_again(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nat_common::abi::flow::{HALF_BURST, HALF_INBOUND};

    #[test]
    fn both_halves_tell_the_frontend_address() {
        let (backend, frontend, server) = ([10, 0, 0, 4], [203, 0, 113, 10], [198, 51, 100, 1]);
        let key = FlowKey { source: backend, destination: server, ..FlowKey::default() };
        let outbound =
            FlowEntry { address: frontend, half: HALF_OUTBOUND | HALF_BURST, ..FlowEntry::default() };
        assert_eq!(frontend_of(&key, &outbound).octets(), frontend);
        let key = FlowKey { source: server, destination: frontend, ..FlowKey::default() };
        let inbound = FlowEntry { address: backend, half: HALF_INBOUND, ..FlowEntry::default() };
        assert_eq!(frontend_of(&key, &inbound).octets(), frontend);
    }
}
