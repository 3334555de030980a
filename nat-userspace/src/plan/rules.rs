// SPDX-License-Identifier: MIT OR Apache-2.0
//! Outbound rules as the data path sees them.

use nat_common::abi::{
    config::CLASS_TCP,
    flow::{FLOW_CLAMP, FLOW_IDENTIFY, FLOW_MAPPED, FLOW_SEQUENCE},
    grant::{
        Destination, Limits, MAX_PORT_TIMERS, PortTimer, RULE_FILTER_ADDRESS, RULE_FILTER_NONE,
        RULE_FLOW_SHIFT, RULE_KEEP_ID, RULE_LIMITED, RULE_MAPPED, RULE_PARITY, RULE_RESET_CHECK,
        RULE_RESET_IDLE, RULE_RESET_PACKET, RULE_WITHOUT_TCP,
    },
};
use nat_common::tick;

use super::model::{RuleSlot, Status};
use crate::config::{
    Clamp, DestinationLimit, Filtering, IpId, Mapping, Options, OutboundRule, PortTimeout, RstCheck,
};

/// A configured rule.
pub(super) fn slot(rule: &OutboundRule) -> RuleSlot {
    let limits = limits(rule);
    let limited = limits != Limits::default();
    RuleSlot {
        name: rule.name.clone(),
        timeouts: rule.timers.timers.timeout_ticks(),
        status: Status::Configured,
        on_refusal: rule.on_refusal as u32,
        flags: flags(rule, limited),
        limits,
        rests: rule.timers.timers.rest_ticks(),
        udp_ports: udp_ports(&rule.timers.udp_ports),
        segment_size: match rule.options.clamp {
            Clamp::Size(size) => size.into(),
            Clamp::Off | Clamp::Auto => 0,
        },
        protocols: rule.options.protocols,
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

fn flags(rule: &OutboundRule, limited: bool) -> u32 {
    let Options { mapping, clamp, ip_id, protocols: _ } = rule.options;
    let of_flow = |flag: u8| u32::from(flag) << RULE_FLOW_SHIFT;
    let when = |condition: bool, flags: u32| if condition { flags } else { 0 };
    let mapped = match mapping {
        Mapping::ByDestination => 0,
        Mapping::Independent { filtering, parity } => {
            let filter = match filtering {
                Filtering::Independent => RULE_FILTER_NONE,
                Filtering::Address => RULE_FILTER_ADDRESS,
                Filtering::AddressAndPort => 0,
            };
            let choice = when(parity, RULE_PARITY);
            RULE_MAPPED | of_flow(FLOW_MAPPED) | filter | choice
        }
    };
    let identification = match ip_id {
        IpId::Fragments => 0,
        IpId::All => of_flow(FLOW_IDENTIFY),
        IpId::Keep => RULE_KEEP_ID,
    };
    mapped
        | identification
        | when(limited, RULE_LIMITED)
        | tcp_flags(rule)
        | when(clamp != Clamp::Off, of_flow(FLOW_CLAMP))
        | rule.timers.timers.refresh.flags()
}

fn udp_ports(list: &[PortTimeout]) -> [PortTimer; MAX_PORT_TIMERS] {
    let mut timers = [PortTimer::default(); MAX_PORT_TIMERS];
    for (place, PortTimeout { ports, timeout }) in timers.iter_mut().zip(list) {
        *place = PortTimer { first: ports.first, last: ports.last, timeout: tick::from_seconds(*timeout) };
    }
    timers
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
    use nat_common::{
        abi::grant::{RULE_UDP_BOTH, protocol},
        net::{
            profiles::{AZURE_NAT, Timers},
            timers::TimerClass,
        },
    };

    use super::*;
    use crate::config::{Limits as Configured, PortRange, Protocol, Refusal, RuleTimers, TcpReset};

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

    #[test]
    fn options_are_flags() {
        let with = |options: Options| {
            let rule = OutboundRule { options, ..OutboundRule::default() };
            let slot = slot(&rule);
            assert_eq!(RuleSlot::from_abi(&slot.to_abi()), Some(slot.clone()));
            (slot.flags, slot.segment_size, slot.protocols)
        };
        let mapped = |filtering, parity| Options {
            mapping: Mapping::Independent { filtering, parity },
            ..Options::default()
        };
        let of_flow = |flag: u8| u32::from(flag) << 24;
        let independent = RULE_MAPPED | of_flow(FLOW_MAPPED);
        let clamp = |clamp| Options { clamp, ..Options::default() };
        let ip_id = |ip_id| Options { ip_id, ..Options::default() };
        for (options, wanted) in [
            (Options::default(), (0, 0, 0)),
            (mapped(Filtering::Address, false), (independent | RULE_FILTER_ADDRESS, 0, 0)),
            (mapped(Filtering::Independent, true), (independent | RULE_FILTER_NONE | RULE_PARITY, 0, 0)),
            (mapped(Filtering::AddressAndPort, false), (independent, 0, 0)),
            (clamp(Clamp::Auto), (of_flow(FLOW_CLAMP), 0, 0)),
            (clamp(Clamp::Size(1360)), (of_flow(FLOW_CLAMP), 1360, 0)),
            (ip_id(IpId::All), (of_flow(FLOW_IDENTIFY), 0, 0)),
            (ip_id(IpId::Keep), (RULE_KEEP_ID, 0, 0)),
            (Options { protocols: protocol::GRE, ..Options::default() }, (0, 0, protocol::GRE)),
        ] {
            assert_eq!(with(options), wanted, "{options:?}");
        }
    }

    #[test]
    fn timers_are_ticks_of_their_class() {
        let ports = PortRange { first: 53, last: 54 };
        let rule = OutboundRule {
            timers: RuleTimers { timers: AZURE_NAT, udp_ports: vec![PortTimeout { ports, timeout: 10 }] },
            ..OutboundRule::default()
        };
        let slot = slot(&rule);
        assert_eq!(slot.flags, RULE_UDP_BOTH);
        assert_eq!(slot.timeouts[TimerClass::TcpClosed as usize], tick::from_seconds(65));
        assert_eq!(slot.rests[TimerClass::Udp as usize], tick::from_seconds(65));
        assert_eq!(slot.rests[TimerClass::TcpEstablished as usize], 0);
        let by_port = PortTimer { first: 53, last: 54, timeout: tick::from_seconds(10) };
        assert_eq!(slot.udp_ports[..2], [by_port, PortTimer::default()]);
        // A port comes free after RST first; with UDP alone, after a DNS query and its rest.
        let shortest = |rule: &OutboundRule| {
            let plan = crate::plan::PortPlan { rules: vec![Some(super::slot(rule))], ..Default::default() };
            plan.shortest()
        };
        assert_eq!(shortest(&rule), tick::from_seconds(16));
        let udp = OutboundRule { protocol: Protocol::Udp, ..rule };
        assert_eq!(shortest(&udp), tick::from_seconds(60));
        let quick = Timers { rests: [0; 8], ..udp.timers.timers };
        let udp = OutboundRule { timers: RuleTimers { timers: quick, ..udp.timers }, ..udp };
        assert_eq!(shortest(&udp), tick::from_seconds(10));
    }
}
