// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the configuration needs to know of the host: `host_ports = "auto"`, and instance IPs that are its own.

use std::net::Ipv4Addr;

use super::{
    gateway::{Frontend, Gateway, HostPorts, InstanceIp, PortRange},
    ports::{GIVEN_OUT, merged},
};

/// What is known of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Addresses that the host has without natgw.
    pub addresses: Vec<Ipv4Addr>,
    /// Ports that its own connections leave from (`net.ipv4.ip_local_port_range`).
    pub ephemeral: PortRange,
}

/// Reserves the host's ports on those frontend addresses that are also the host's own, as their frontend's `host_ports`
/// says (an explicit range: on all of its addresses), and gives one sentence, to be logged, for each frontend that `auto`
/// changes. A second call changes nothing and says nothing.
pub fn keep_host_ports(gateway: &mut Gateway, facts: &HostFacts) -> Vec<String> {
    let mut sentences = Vec::new();
    let kept = PortRange { first: facts.ephemeral.first.max(*GIVEN_OUT.start()), ..facts.ephemeral };
    for frontend in &mut gateway.frontends {
        match frontend.host_ports {
            HostPorts::None => {}
            HostPorts::Range(range) => reserve(frontend, range),
            HostPorts::Auto if kept.first <= kept.last => {
                sentences.extend(reserve_own(frontend, facts, kept));
            }
            HostPorts::Auto => {}
        }
    }
    sentences
}

fn reserve_own(frontend: &mut Frontend, facts: &HostFacts, kept: PortRange) -> Option<String> {
    let own = frontend.addresses.iter().filter(|address| facts.addresses.contains(address));
    let new: Vec<_> =
        own.map(|address| (*address, kept)).filter(|entry| !frontend.reserved_on.contains(entry)).collect();
    let names: Vec<String> = new.iter().map(|(address, _)| address.to_string()).collect();
    let (is, its) = if names.len() == 1 { ("is an address", "its") } else { ("are addresses", "their") };
    frontend.reserved_on.extend(new);
    (!names.is_empty()).then(|| {
        format!(
            "frontend `{}`: {} {is} of this host, so {its} ports {} to {} stay the host's own, as `host_ports` does not say otherwise",
            frontend.name, names.join(", "), kept.first, kept.last
        )
    })
}

/// What is said about instance IPs that are addresses of the host: a sentence each.
#[must_use]
pub fn taken_from_host(gateway: &Gateway, facts: &HostFacts) -> Vec<String> {
    let own = gateway.instance_ips.iter().filter(|instance| facts.addresses.contains(&instance.address));
    let sentence = |instance: &InstanceIp| {
        format!(
            "instance IP {} is an address of this host: all that arrives for it goes to backend {}, nothing to the host itself",
            instance.address, instance.backend
        )
    };
    own.map(sentence).collect()
}

/// Reserves `range` on all addresses of the frontend.
pub(super) fn reserve(frontend: &mut Frontend, range: PortRange) {
    frontend.reserved.push(range);
    frontend.reserved = merged(std::mem::take(&mut frontend.reserved));
}
