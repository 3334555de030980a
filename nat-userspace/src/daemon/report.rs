// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the daemon's status together.

use std::net::Ipv4Addr;

use nat_common::abi::config::{PortConfig, ROLE_INSIDE, ROLE_OUTSIDE, name_of};

use super::{
    netlink::Neighbour,
    run::Daemon,
    status::{DaemonStatus, InterfaceStatus, NextHopStatus},
};
use crate::datapath::{attach::Mode, layout};

impl Daemon {
    pub(super) fn status(&self) -> DaemonStatus {
        DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.gateway.instance().name().to_owned(),
            config: self.in_force.display().to_string(),
            started: self.started,
            ready: self.ready,
            interfaces: self.interfaces(),
            last_reload: self.last_reload.clone(),
            sweep: self.sweep.status.clone(),
            next_hops: self.next_hops(),
            errors: self.errors.list(),
            events: self.said.list(),
        }
    }

    fn interfaces(&self) -> Vec<InterfaceStatus> {
        let layout = self.gateway.layout();
        let mut interfaces: Vec<InterfaceStatus> =
            layout.ports.values().map(|port| self.interface(port)).collect();
        let config = self.gateway.config();
        interfaces.extend(layout.absent.iter().map(|name| InterfaceStatus {
            name: name.clone(),
            role: role_name(config.inside.contains(name), config.outside.contains(name)).to_owned(),
            mode: "absent".to_owned(),
            ..InterfaceStatus::default()
        }));
        interfaces
    }

    fn interface(&self, port: &PortConfig) -> InterfaceStatus {
        let lowers = &self.gateway.layout().lowers;
        let device = lowers.iter().find(|lower| lower.constants.lower == port.lower);
        let device = device.map_or_else(String::new, |lower| lower.name.clone());
        let address = Ipv4Addr::from(port.address);
        InterfaceStatus {
            name: name_of(&port.name).to_owned(),
            mode: self.gateway.mode(&device).map_or("absent", Mode::name).to_owned(),
            device,
            role: role_name(port.role & ROLE_INSIDE != 0, port.role & ROLE_OUTSIDE != 0).to_owned(),
            vlans: layout::tag_key(port).vlan[..usize::from(port.tag_count)].to_vec(),
            mtu: u32::from(port.mtu),
            address: (!address.is_unspecified()).then_some(address),
        }
    }

    fn next_hops(&self) -> Vec<NextHopStatus> {
        let layout = self.gateway.layout();
        let status = |((index, address), known): ((u32, Ipv4Addr), Option<Neighbour>)| {
            let (state, mac) = match known {
                Some(Neighbour::Resolved(mac) | Neighbour::Fixed(mac)) => ("resolved", Some(mac)),
                Some(Neighbour::Failed) => ("failed", None),
                Some(Neighbour::Unresolved) | None => ("unresolved", None),
            };
            NextHopStatus {
                address,
                interface: layout.name_of(index).map_or_else(|| index.to_string(), str::to_owned),
                state: state.to_owned(),
                mac: mac.map(mac_text),
            }
        };
        self.hops.iter().map(status).collect()
    }
}

const fn role_name(inside: bool, outside: bool) -> &'static str {
    match (inside, outside) {
        (true, true) => "both",
        (true, false) => "inside",
        _ => "outside",
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_roles_read_as_usual() {
        assert_eq!(mac_text([0x02, 0, 0, 0xab, 0, 9]), "02:00:00:ab:00:09");
        assert_eq!(role_name(true, true), "both");
        assert_eq!(role_name(false, true), "outside");
    }
}
