// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules as the data path sees them.

use nat_common::abi::{
    config::CLASS_TCP,
    grant::{Destination, Limits, RULE_LIMITED, RULE_WITHOUT_TCP},
};

use super::model::{RuleSlot, Status};
use crate::config::{DestinationLimit, OutboundRule};

/// A configured rule.
pub(super) fn slot(rule: &OutboundRule) -> RuleSlot {
    let limits = limits(rule);
    let without_tcp = !rule.protocol.classes().contains(&CLASS_TCP);
    let limited = limits != Limits::default();
    RuleSlot {
        name: rule.name.clone(),
        timeouts: rule.timeouts(),
        status: Status::Configured,
        on_refusal: rule.on_refusal as u32,
        flags: if limited { RULE_LIMITED } else { 0 } | if without_tcp { RULE_WITHOUT_TCP } else { 0 },
        limits,
        rests: Default::default(),
        udp_ports: Default::default(),
        segment_size: 0,
        protocols: 0,
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

fn limits(rule: &OutboundRule) -> Limits {
    let limits = &rule.limits;
    let interval = NANOSECONDS.checked_div(limits.new_flows_per_second.into()).unwrap_or(0);
    let mut abi = Limits {
        interval,
        tolerance: u64::from(limits.new_flow_burst) * interval,
        max_flows: limits.max_flows,
        max_half_open: limits.max_half_open,
        max_ports: rule.max_ports,
        reserved: rule.destinations.iter().fold(0, |sum, to| u32::saturating_add(sum, to.reserved)),
        ..Limits::default()
    };
    if interval == 0 {
        abi.tolerance = 0;
    }
    for (place, to) in abi.destinations.iter_mut().zip(&rule.destinations) {
        *place = destination(to);
    }
    abi
}

fn destination(to: &DestinationLimit) -> Destination {
    Destination {
        address: to.prefix.network().octets(),
        mask: to.prefix.netmask().octets(),
        port: to.port.unwrap_or(0).to_be_bytes(),
        // Four classes.
        classes: to.classes as u16,
        reserved: to.reserved,
        max_flows: to.max_flows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits as Configured, Protocol, Refusal};

    #[test]
    fn limits_are_as_the_data_path_counts() {
        let to = DestinationLimit {
            prefix: "198.51.100.77/24".parse().expect("a prefix"),
            port: Some(443),
            classes: 1,
            reserved: 5,
            max_flows: 20,
        };
        let mut rule = OutboundRule {
            protocol: Protocol::Udp,
            limits: Configured { new_flows_per_second: 1000, new_flow_burst: 50, ..Configured::default() },
            on_refusal: Refusal::TcpReset,
            destinations: vec![to, DestinationLimit { port: None, reserved: 7, ..to }],
            idle_timeout: 240,
            ..OutboundRule::default()
        };
        let slot = slot(&rule);
        assert_eq!(
            (slot.limits.interval, slot.limits.tolerance, slot.limits.reserved),
            (1_000_000, 50_000_000, 12)
        );
        assert_eq!(slot.flags, RULE_LIMITED | RULE_WITHOUT_TCP);
        assert_eq!(slot.on_refusal, nat_common::abi::grant::REFUSAL_TCP_RESET);
        let [first, second, third, ..] = slot.limits.destinations;
        assert_eq!(
            (first.address, first.mask, first.port),
            ([198, 51, 100, 0], [255, 255, 255, 0], [1, 187])
        );
        assert_eq!((second.port, second.reserved, third.classes), ([0, 0], 7, 0));
        assert_eq!(RuleSlot::from_abi(&slot.to_abi()), Some(slot));
        rule.destinations.clear();
        rule.limits = Configured::default();
        rule.protocol = Protocol::All;
        assert_eq!(super::slot(&rule).flags, 0);
        rule.max_ports = 8;
        assert_eq!(super::slot(&rule).flags, RULE_LIMITED);
    }
}
