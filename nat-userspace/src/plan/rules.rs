// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules as the data path sees them.

use nat_common::abi::{
    config::CLASS_TCP,
    flow::FLOW_SEQUENCE,
    grant::{
        Destination, Limits, RULE_FLOW_SHIFT, RULE_LIMITED, RULE_RESET_CHECK, RULE_RESET_IDLE,
        RULE_RESET_PACKET, RULE_WITHOUT_TCP,
    },
};

use super::model::{RuleSlot, Status};
use crate::config::{DestinationLimit, OutboundRule, RstCheck};

/// A configured rule.
pub(super) fn slot(rule: &OutboundRule) -> RuleSlot {
    let limits = limits(rule);
    let limited = if limits == Limits::default() { 0 } else { RULE_LIMITED };
    RuleSlot {
        name: rule.name.clone(),
        timeouts: rule.timeouts(),
        status: Status::Configured,
        on_refusal: rule.on_refusal as u32,
        flags: limited | tcp_flags(rule),
        limits,
        rests: Default::default(),
        udp_ports: Default::default(),
        segment_size: 0,
        protocols: 0,
    }
}

/// Flags that are about TCP.
fn tcp_flags(rule: &OutboundRule) -> u32 {
    if !rule.protocol.classes().contains(&CLASS_TCP) {
        return RULE_WITHOUT_TCP;
    }
    let (idle, check) = (rule.tcp_reset.on_idle(), rule.rst_check == RstCheck::InWindow);
    // A RST that its receiver believes, and the judgement on one, need sequence numbers.
    let flow = if idle || check { FLOW_SEQUENCE } else { 0 };
    let flags =
        [(idle, RULE_RESET_IDLE), (rule.tcp_reset.on_packet(), RULE_RESET_PACKET), (check, RULE_RESET_CHECK)];
    let wanted = flags.into_iter().filter(|(wanted, _)| *wanted);
    wanted.fold(u32::from(flow) << RULE_FLOW_SHIFT, |all, (_, flag)| all | flag)
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
    use crate::config::{Limits as Configured, Protocol, Refusal, TcpReset};

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
    #[test]
    fn sequence_numbers_are_kept_where_they_are_needed() {
        let sequence = u32::from(FLOW_SEQUENCE) << RULE_FLOW_SHIFT;
        let check = RULE_RESET_CHECK | sequence;
        for (tcp_reset, rst_check, flags) in [
            (TcpReset::Off, RstCheck::None, 0),
            (TcpReset::OnPacket, RstCheck::None, RULE_RESET_PACKET),
            (TcpReset::OnIdle, RstCheck::None, RULE_RESET_IDLE | sequence),
            (TcpReset::Both, RstCheck::None, RULE_RESET_IDLE | RULE_RESET_PACKET | sequence),
            (TcpReset::Off, RstCheck::InWindow, check),
            (TcpReset::Both, RstCheck::InWindow, RULE_RESET_IDLE | RULE_RESET_PACKET | check),
        ] {
            let mut rule = OutboundRule { tcp_reset, rst_check, ..OutboundRule::default() };
            assert_eq!(slot(&rule).flags, flags, "{tcp_reset:?} {rst_check:?}");
            rule.protocol = Protocol::Udp;
            assert_eq!(slot(&rule).flags, RULE_WITHOUT_TCP);
        }
    }
}
