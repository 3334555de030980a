// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a reload would do to the host, or leave for another start, and the tables do not tell.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::plan::Restart;
use crate::{
    config::{Gateway, XdpMode},
    datapath::layout::Device,
    view::instance::Instance,
};

/// Addresses that a reload adds to the host.
pub(super) fn added(gateway: &Gateway, devices: &[Device]) -> Vec<Ipv4Addr> {
    let there: BTreeSet<&Ipv4Addr> = devices.iter().flat_map(|device| &device.addresses).collect();
    let wanted =
        gateway.public_addresses().filter(|address| gateway.assign_frontends && !there.contains(address));
    wanted.collect::<BTreeSet<_>>().into_iter().collect()
}

/// A program stays in the mode that it was attached in.
pub(super) fn other_mode(before: &Instance, gateway: &Gateway, devices: &[Device]) -> Option<Restart> {
    let configured = match gateway.xdp_mode {
        XdpMode::Auto => return None,
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    };
    let used = before.interfaces.iter().filter(|port| port.role != 0);
    let modes = used.filter_map(|port| {
        let (_, native) = devices.iter().find(|device| device.index == port.lower)?.xdp?;
        Some(if native { "native" } else { "generic" })
    });
    let in_force = modes.into_iter().find(|mode| *mode != configured)?;
    Some(Restart { setting: "xdp_mode", in_force: in_force.to_owned(), configured: configured.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, view::example};

    fn gateway(keys: &str) -> Gateway {
        let text = format!(
            "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n{keys}[[frontend]]\nname = 'fe1'\n\
             addresses = ['203.0.113.10', '203.0.113.11']\n[[pool]]\nname = 'web'\nbackends = ['10.0.0.4']\n\
             [[outbound_rule]]\nname = 'out'\npool = 'web'\nfrontends = ['fe1']\n\
             [[instance_ip]]\nbackend = '10.0.0.4'\naddress = '203.0.113.50'\n"
        );
        config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}")).0
    }

    fn device(index: u32, addresses: &[&str], native: bool) -> Device {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        Device { index, addresses, xdp: Some((7, native)), ..Device::default() }
    }

    #[test]
    fn addresses_that_the_host_lacks_are_added() {
        let devices = [device(2, &["10.0.0.1"], true), device(3, &["203.0.113.11"], true)];
        let text = |keys| added(&gateway(keys), &devices).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(""), ["203.0.113.10", "203.0.113.50"]);
        assert!(text("assign_frontends = false\n").is_empty());
    }

    #[test]
    fn another_mode_waits_for_another_start() {
        // The example's interfaces are on devices 2 and 3.
        let devices = |native| [device(2, &[], true), device(3, &[], native)];
        let row = |keys, native| other_mode(&example::instance(), &gateway(keys), &devices(native));
        let waits = row("xdp_mode = 'native'\n", false).expect("a row");
        assert_eq!((waits.in_force.as_str(), waits.configured.as_str()), ("generic", "native"));
        assert_eq!(row("xdp_mode = 'native'\n", true), None);
        assert_eq!(row("", false), None);
        assert!(row("xdp_mode = 'generic'\n", false).is_some_and(|row| row.in_force == "native"));
    }
}
