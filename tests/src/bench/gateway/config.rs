// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a gateway is to translate, and natgw's configuration file for it.

use std::{fmt::Write as _, net::Ipv4Addr};

use crate::bench::chain::{ATTACKER, FRONTEND, backends};

/// Backends of the configuration that start and reload are measured with.
pub(in crate::bench) const LARGE_BACKENDS: u32 = 1000;
/// Its frontends, of one address each.
pub(in crate::bench) const LARGE_FRONTENDS: u32 = 64;
/// Its ports of each backend: 16 backends share an address.
const LARGE_PORTS: u32 = 4000;

/// How ports are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Rule {
    /// So many for each backend alone, of one address.
    Static(u32),
    /// All backends draw on all ports of these addresses.
    Dynamic {
        /// Addresses, from the frontend's on.
        addresses: u8,
    },
}

/// What a gateway is to do.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Setup {
    /// How ports are given.
    pub(in crate::bench) rule: Rule,
    /// Whether [`ATTACKER`] is a backend too.
    pub(in crate::bench) attacker: bool,
    /// Places in natgw's flow table.
    pub(in crate::bench) max_flows: u32,
}

impl Setup {
    /// Frontend addresses in use.
    pub(in crate::bench) const fn addresses(&self) -> u8 {
        match self.rule {
            Rule::Static(_) => 1,
            Rule::Dynamic { addresses } => addresses,
        }
    }
}

/// The configuration of an instance.
pub(super) fn text(instance: &str, setup: &Setup) -> String {
    let backends = list(backends().chain(setup.attacker.then_some(ATTACKER)));
    let addresses =
        list((0..u32::from(setup.addresses())).map(|index| Ipv4Addr::from(FRONTEND.to_bits() + index)));
    let allocation = match setup.rule {
        Rule::Static(ports) => format!("allocation = \"static\"\nports_per_backend = {ports}"),
        Rule::Dynamic { .. } => "allocation = \"dynamic\"".to_owned(),
    };
    format!(
        "{}\n[[frontend]]\nname = \"fe1\"\naddresses = [{addresses}]\nhost_ports = \"none\"\n\n\
         [[pool]]\nname = \"senders\"\nbackends = [{backends}]\n\n\
         [[outbound_rule]]\nname = \"out\"\npool = \"senders\"\nfrontends = [\"fe1\"]\nprotocol = \"all\"\n\
         {allocation}\n",
        gateway(instance, setup.max_flows)
    )
}

/// A configuration with many backends and frontends; `variant` decides how many ports each backend has, so that going
/// from one to another moves every block.
pub(in crate::bench) fn large(instance: &str, max_flows: u32, variant: bool) -> String {
    let first = Ipv4Addr::new(10, 0, 4, 1).to_bits();
    let backends = list((0..LARGE_BACKENDS).map(|index| Ipv4Addr::from(first + index)));
    let mut text = gateway(instance, max_flows);
    let mut names = String::new();
    for index in 0..LARGE_FRONTENDS {
        let address = Ipv4Addr::from(FRONTEND.to_bits() + index);
        // Writing to a String cannot fail.
        let _infallible = write!(
            text,
            "[[frontend]]\nname = \"fe{index}\"\naddresses = [\"{address}\"]\nhost_ports = \"none\"\n\n"
        );
        let _infallible = write!(names, "\"fe{index}\", ");
    }
    let ports = if variant { LARGE_PORTS - 8 } else { LARGE_PORTS };
    let _infallible = write!(
        text,
        "[[pool]]\nname = \"senders\"\nbackends = [{backends}]\n\n\
         [[outbound_rule]]\nname = \"out\"\npool = \"senders\"\nfrontends = [{}]\nprotocol = \"all\"\n\
         allocation = \"static\"\nports_per_backend = {ports}\n",
        names.trim_end_matches(", ")
    );
    text
}

fn gateway(instance: &str, max_flows: u32) -> String {
    format!(
        "[gateway]\nname = \"{instance}\"\ninside = [\"lan0\"]\noutside = [\"wan0\"]\nxdp_mode = \"native\"\n\
         max_flows = {max_flows}\n\n"
    )
}

fn list(addresses: impl Iterator<Item = Ipv4Addr>) -> String {
    addresses.map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ")
}
