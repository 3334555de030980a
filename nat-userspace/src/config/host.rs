// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the configuration needs to know of the host: `host_ports = "auto"`.

use std::net::Ipv4Addr;

use super::{
    gateway::{Frontend, Gateway, HostPorts, PortRange},
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

/// Reserves the host's ports on each frontend whose addresses are also the host's own, as its `host_ports` says, and
/// gives one sentence, to be logged, for each frontend that `auto` changes. A second call changes nothing and says
/// nothing.
///
/// Ports are reserved on all addresses of the frontend.
pub fn keep_host_ports(gateway: &mut Gateway, facts: &HostFacts) -> Vec<String> {
    let mut sentences = Vec::new();
    for frontend in &mut gateway.frontends {
        match frontend.host_ports {
            HostPorts::None => {}
            HostPorts::Range(range) => {
                reserve(frontend, range);
            }
            HostPorts::Auto => {
                let own =
                    frontend.addresses.iter().find(|address| facts.addresses.contains(address)).copied();
                let given_out =
                    PortRange { first: facts.ephemeral.first.max(*GIVEN_OUT.start()), ..facts.ephemeral };
                let Some(own) = own.filter(|_| given_out.first <= given_out.last) else { continue };
                if reserve(frontend, given_out) {
                    sentences.push(format!(
                        "frontend `{}`: {own} is an address of this host, so its ports {} to {} stay the host's own, as `host_ports` does not say otherwise",
                        frontend.name, given_out.first, given_out.last
                    ));
                }
            }
        }
    }
    sentences
}

/// Whether `range` was not reserved wholly before.
pub(super) fn reserve(frontend: &mut Frontend, range: PortRange) -> bool {
    let mut all = frontend.reserved.clone();
    all.push(range);
    let all = merged(all);
    let changed = all != frontend.reserved;
    frontend.reserved = all;
    changed
}
