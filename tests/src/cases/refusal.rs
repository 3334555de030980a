// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the sender of a refused packet hears.

use nat_common::abi::{
    counters::Reason,
    grant::{
        Destination, Limits, REFUSAL_ADMIN_PROHIBITED, REFUSAL_HOST_UNREACHABLE, REFUSAL_TCP_RESET,
        REFUSALS_PER_TICK,
    },
};

use crate::{
    case::{Case, P1, P2},
    harness::{
        World,
        world::{Act, Backend, DB, FIRST_PORT, NEAR, Policy, SERVER, SERVER2, STRANGER, WEB},
    },
    packet::{ACK, End, FIN, PSH, Packet, RST, SYN, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const OTHER_CLIENT: End = (WEB, 40_001);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
/// Codes of ICMP unreachable (RFC 792, RFC 1812 §5.2.7.1).
const HOST: u8 = 1;
const PROHIBITED: u8 = 13;

/// Every kind of refusal, how to bring it about by a second flow, and the row of the ledger that counts it.
fn reasons() -> Vec<(&'static str, Reason, World, &'static str)> {
    let limited = |limits| World { limits: Some(limits), ..World::default() };
    let one_port = World { backends: vec![Backend::paired(WEB, FIRST_PORT, 1)], ..World::default() };
    let mut destination = Limits::default();
    destination.destinations[0] = Destination {
        address: SERVER,
        mask: [255; 4],
        port: [0; 2],
        classes: 0b111,
        reserved: 0,
        max_flows: 1,
    };
    vec![
        ("no_free_port", Reason::NoFreePort, one_port, "refused"),
        ("table_share", Reason::TableShare, World { guaranteed: 1, ..World::default() }, "refused_table"),
        (
            "flow_limit",
            Reason::FlowLimit,
            limited(Limits { max_flows: 1, ..Limits::default() }),
            "refused_limit",
        ),
        ("destination_limit", Reason::DestinationLimit, limited(destination), "refused_limit"),
        ("port_cap", Reason::PortCap, limited(Limits { max_ports: 1, ..Limits::default() }), "refused_limit"),
        (
            "rate_limit",
            Reason::RateLimit,
            limited(Limits { interval: 1 << 40, tolerance: 1 << 40, ..Limits::default() }),
            "refused_limit",
        ),
        (
            "half_open_limit",
            Reason::HalfOpenLimit,
            limited(Limits { max_half_open: 1, ..Limits::default() }),
            "refused_limit",
        ),
    ]
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, reason, world, row) in reasons() {
        for style in 0..=REFUSAL_TCP_RESET {
            cases.push(second_flow(name, reason, World { on_refusal: style, ..world.clone() }, row));
        }
    }
    cases.extend(resets());
    cases.extend(unreachables());
    cases.extend(silence());
    cases
}

/// The first flow is admitted, the second one refused, in the style of the world.
fn second_flow(name: &str, reason: Reason, world: World, row: &str) -> Case {
    const STYLES: [&str; 4] = ["silently", "by_prohibition", "by_unreachability", "by_reset"];
    let style = world.on_refusal;
    let limits = world.limits.unwrap_or_default();
    let limited = world.limits.is_some();
    // Cases have static names; there are 28 of these.
    let name = format!("{name}_{}", STYLES[style as usize]).leak();
    let mut case = Case::new(name, world)
        .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
        .opens(0, "tcp")
        .counted(&limits, limited);
    let refused = Packet::tcp(OTHER_CLIENT, HTTP, SYN).tcp_options(&[2, 4, 5, 180]);
    case = case.inside(refused);
    case = match style {
        0 => case.drops(reason),
        REFUSAL_ADMIN_PROHIBITED => case.told(PROHIBITED, reason),
        REFUSAL_HOST_UNREACHABLE => case.told(HOST, reason),
        _ => case.reset(reason),
    };
    case.change(&format!("grant.0.tcp.{row}"), 1)
}

impl Case {
    /// The flow that the last packet opens is counted against limits.
    #[must_use]
    fn counted(self, limits: &Limits, limited: bool) -> Self {
        if !limited {
            return self;
        }
        let case = self.change("quota.0.flows", 1).change("quota.0.half_open", 1);
        let case = if limits.max_ports == 0 { case } else { case.change("towards", 1) };
        if limits.destinations[0].classes == 0 { case } else { case.change("quota.0.destination.0", 1) }
    }

    #[must_use]
    fn denied_aloud(self) -> Self {
        self.change("policy.0", 1).change("backend.0.refused_policy", 1)
    }
}

/// Everything to `SERVER` is denied.
fn deny(style: u32) -> World {
    let policy = Policy::new(Act::DenyOutbound, &[(SERVER, 32)]);
    World { on_refusal: style, ..World::default().policies(&[policy]) }
}

fn resets() -> Vec<Case> {
    let mut case = Case::new("reset_answers_every_segment", deny(REFUSAL_TCP_RESET));
    for packet in [
        Packet::tcp(CLIENT, HTTP, SYN),
        Packet::tcp(CLIENT, HTTP, SYN).tcp_options(&[1; 40]),
        Packet::tcp(CLIENT, HTTP, SYN).fill(1000),
        Packet::tcp(CLIENT, HTTP, SYN).options(&[1; 40]).tcp_options(&[1; 8]).fill(13),
        Packet::tcp(CLIENT, HTTP, SYN).padded(),
        Packet::tcp(CLIENT, HTTP, SYN | ACK),
        Packet::tcp(CLIENT, HTTP, PSH | ACK).fill(99),
        Packet::tcp(CLIENT, HTTP, FIN | ACK),
        Packet::tcp(CLIENT, HTTP, FIN).fill(7),
        Packet::tcp(CLIENT, HTTP, SYN | FIN).fill(7),
        Packet::tcp(CLIENT, HTTP, 0),
    ] {
        case = case.inside(packet).reset(Reason::Denied).denied_aloud();
    }
    let tags = [(0x88a8, 300), (0x8100, 10)];
    let tagged = |name, tags: &[(u16, u16)]| {
        Case::new(name, deny(REFUSAL_TCP_RESET).tagged(0, tags))
            .inside(Packet::tcp(CLIENT, HTTP, SYN).fill(30))
            .reset(Reason::Denied)
            .denied_aloud()
            .inside(Packet::udp(CLIENT, DNS))
            .told(PROHIBITED, Reason::Denied)
            .denied_aloud()
    };
    let one_armed = World { policies: deny(0).policies, on_refusal: REFUSAL_TCP_RESET, ..World::one_armed() };
    vec![
        case,
        tagged("reset_with_one_tag", &tags[1..]),
        tagged("reset_with_two_tags", &tags),
        Case::new("reset_one_armed", one_armed)
            .inside(Packet::tcp(CLIENT, HTTP, SYN))
            .reset(Reason::Denied)
            .denied_aloud(),
        Case::new("reset_is_for_tcp", deny(REFUSAL_TCP_RESET))
            .inside(Packet::udp(CLIENT, DNS))
            .told(PROHIBITED, Reason::Denied)
            .denied_aloud()
            .inside(Packet::ping((WEB, 1), SERVER))
            .told(PROHIBITED, Reason::Denied)
            .denied_aloud(),
        Case::new("reset_is_not_answered", deny(REFUSAL_TCP_RESET))
            .inside(Packet::tcp(CLIENT, HTTP, RST))
            .drops(Reason::Denied)
            .denied_aloud()
            .inside(Packet::tcp(CLIENT, HTTP, RST | ACK))
            .drops(Reason::Denied)
            .denied_aloud(),
    ]
}

fn unreachables() -> Vec<Case> {
    let mut denied = Case::new("denied_by_unreachability", deny(REFUSAL_HOST_UNREACHABLE));
    for packet in [
        Packet::udp(CLIENT, DNS),
        Packet::udp(CLIENT, DNS).fill(1400),
        Packet::udp(CLIENT, DNS).fill(0).padded(),
        Packet::tcp(CLIENT, HTTP, SYN).options(&[1; 40]),
        Packet::ping((WEB, 1), SERVER),
        Packet::other(WEB, SERVER, 50),
    ] {
        denied = denied.inside(packet).told(HOST, Reason::Denied).denied_aloud();
    }
    let no_rule = |style| {
        let mut world = World { on_refusal: style, ..World::default() };
        world.backends[0].ports[1].clear();
        world
    };
    vec![
        denied,
        Case::new("no_rule_by_prohibition", no_rule(REFUSAL_ADMIN_PROHIBITED))
            .inside(Packet::udp(CLIENT, DNS))
            .told(PROHIBITED, Reason::NoOutboundRule)
            .change("backend.0.refused_rule", 1)
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp"),
        Case::new("no_rule_by_unreachability", no_rule(REFUSAL_HOST_UNREACHABLE))
            .inside(Packet::udp(CLIENT, DNS))
            .told(HOST, Reason::NoOutboundRule)
            .change("backend.0.refused_rule", 1),
        Case::new("no_rule_by_reset", {
            let mut world = no_rule(REFUSAL_TCP_RESET);
            world.backends[0].ports[0].clear();
            world
        })
        .inside(Packet::tcp(CLIENT, HTTP, SYN))
        .reset(Reason::NoOutboundRule)
        .change("backend.0.refused_rule", 1)
        // Only backends hear anything.
        .inside(Packet::tcp((STRANGER, 1), HTTP, SYN))
        .drops(Reason::NoOutboundRule),
        // Refused, but not for want of a rule: nothing is said about what no rule could take.
        Case::new("what_is_not_refused_is_not_answered", World { on_refusal: 1, ..World::default() })
            .inside(Packet::other(WEB, SERVER, 50))
            .drops(Reason::ProtocolUnsupported)
            .inside(Packet::tcp(CLIENT, HTTP, ACK))
            .drops(Reason::TcpNoFlow),
    ]
}

fn silence() -> Vec<Case> {
    let mut never = Vec::new();
    for (name, style) in [
        ("never_answered_by_prohibition", REFUSAL_ADMIN_PROHIBITED),
        ("never_answered_by_reset", REFUSAL_TCP_RESET),
    ] {
        let mut case = Case::new(name, deny(style));
        for packet in [
            Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)),
            Packet::icmp(WEB, SERVER, 5, 1),
            Packet::other(WEB, SERVER, 50).fill(7),
        ] {
            case = case.inside(packet).drops(Reason::Denied).denied_aloud();
        }
        never.push(case);
    }
    // What comes in from outside is refused without a word, whoever asked for words.
    let world = World {
        policies: vec![Policy::new(Act::DenyInbound, &[(SERVER, 32)])],
        on_refusal: REFUSAL_TCP_RESET,
        ..World::default().instance()
    };
    never.push(
        Case::new("nobody_outside_hears_of_a_denial", world)
            .outside(Packet::tcp(HTTP, (crate::harness::world::PUBLIC, 22), SYN))
            .drops(Reason::Denied)
            .change("policy.0", 1),
    );
    never.push(storm("a_storm_is_answered_so_often_by_icmp", REFUSAL_ADMIN_PROHIBITED));
    never.push(storm("a_storm_is_answered_so_often_by_reset", REFUSAL_TCP_RESET));
    never
}

/// One backend uses up what it may hear in a tick. Its other protocols and the other backend still hear.
fn storm(name: &'static str, style: u32) -> Case {
    let mut case = Case::new(name, deny(style));
    let told = |case: Case| {
        if style == REFUSAL_TCP_RESET {
            case.reset(Reason::Denied)
        } else {
            case.told(PROHIBITED, Reason::Denied)
        }
    };
    for round in 0..2 {
        for _ in 0..REFUSALS_PER_TICK {
            case = told(case.inside(Packet::tcp(CLIENT, HTTP, SYN))).denied_aloud();
        }
        for _ in 0..3 {
            case = case.inside(Packet::tcp(OTHER_CLIENT, HTTP, SYN)).drops(Reason::Denied).denied_aloud();
        }
        case = case.inside(Packet::udp(CLIENT, DNS)).told(PROHIBITED, Reason::Denied).denied_aloud();
        case = told(case.inside(Packet::tcp((DB, 1), HTTP, SYN)))
            .change("policy.0", 1)
            .change("backend.1.refused_policy", 1);
        case = case
            .goes(Packet::tcp((WEB, 1), (if round == 0 { NEAR } else { SERVER2 }, 80), SYN), [P1, P2][round])
            .opens(0, "tcp");
        case = case.ticks(1);
    }
    told(case.inside(Packet::tcp(CLIENT, HTTP, SYN))).denied_aloud()
}
