// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets between backends by way of their mappings, with the sender's external source (RFC 4787 REQ-9, RFC 5382 REQ-8,
//! RFC 5508 REQ-7).

use nat_common::abi::{
    counters::Reason,
    grant::{RULE_FILTER_ADDRESS, RULE_FILTER_NONE},
};

use crate::{
    case::{Case, Expect, P1, P2, P3},
    harness::{
        World,
        world::{DB, FRONTEND, GATEWAY_INSIDE, SERVER, STRANGER, WEB},
    },
    packet::{ACK, End, FIN, Packet, SYN, TIME_EXCEEDED, UNREACHABLE},
};

/// The one who is called, and its external address and port.
const HOST: End = (DB, 5000);
const HOST_OUTSIDE: End = (FRONTEND, P1);
/// The one who calls.
const CALLER: End = (WEB, 40_000);
const CALLER_OUTSIDE: End = (FRONTEND, P2);
const STUN: End = (SERVER, 3478);

impl Case {
    /// A packet of a backend to a mapping leaves inside, from `source` to `destination`.
    #[must_use]
    pub fn turns(self, packet: Packet, source: End, destination: End) -> Self {
        let sent = packet.clone().from(source).to(destination).hop();
        self.inside(packet).back(sent).because(Reason::Hairpinned)
    }

    /// Backend 1 has a mapping.
    #[must_use]
    fn registered(self) -> Self {
        self.goes(Packet::udp(HOST, STUN), P1).opens(1, "udp").maps(1)
    }

    /// The last packet opens the caller's mapping and session, and the host's session.
    #[must_use]
    fn calls(self, class: &str) -> Self {
        self.opens(0, class).maps(0).opens(1, class)
    }
}

fn open() -> World {
    World::default().mapped(RULE_FILTER_NONE)
}

fn by_address() -> World {
    World::default().mapped(RULE_FILTER_ADDRESS)
}

fn call() -> Packet {
    Packet::udp(CALLER, HOST_OUTSIDE)
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [datagrams(), connections(), filtering(), errors(), limits()].concat()
}

fn datagrams() -> Vec<Case> {
    let answer = Packet::udp(HOST, CALLER_OUTSIDE);
    vec![
        Case::new("hairpin_udp", open())
            .registered()
            .turns(call(), CALLER_OUTSIDE, HOST)
            .calls("udp")
            .turns(answer.clone(), HOST_OUTSIDE, CALLER)
            .turns(call().fill(1000), CALLER_OUTSIDE, HOST)
            .ticks(3)
            .turns(answer.clone().fill(77), HOST_OUTSIDE, CALLER)
            .turns(call().no_checksum(), CALLER_OUTSIDE, HOST)
            .turns(answer.clone().padded().fill(2), HOST_OUTSIDE, CALLER)
            // What it is to others has not changed.
            .comes(Packet::udp(STUN, HOST_OUTSIDE), HOST)
            .goes(Packet::udp(CALLER, STUN), P2)
            .opens(0, "udp"),
        Case::new("hairpin_to_itself", open())
            .goes(Packet::udp(CALLER, STUN), P1)
            .opens(0, "udp")
            .maps(0)
            .turns(Packet::udp(CALLER, (FRONTEND, P1)), (FRONTEND, P1), CALLER)
            .opens(0, "udp")
            .turns(Packet::udp(CALLER, (FRONTEND, P1)).fill(9), (FRONTEND, P1), CALLER),
        Case::new("hairpin_between_ports_of_one_backend", open())
            .goes(Packet::udp(CALLER, STUN), P1)
            .opens(0, "udp")
            .maps(0)
            .turns(Packet::udp((WEB, 40_001), (FRONTEND, P1)), CALLER_OUTSIDE, CALLER)
            .opens(0, "udp")
            .maps(0)
            .opens(0, "udp")
            .turns(Packet::udp(CALLER, CALLER_OUTSIDE), (FRONTEND, P1), (WEB, 40_001)),
        // The frontend is an address that the host does not own.
        Case::new(
            "hairpin_where_the_frontend_is_routed",
            World { frontends: vec![(FRONTEND, false)], ..open() },
        )
        .registered()
        .turns(call(), CALLER_OUTSIDE, HOST)
        .calls("udp")
        .turns(answer, HOST_OUTSIDE, CALLER),
        Case::new("hairpin_only_to_mappings", open())
            .registered()
            .inside(Packet::udp(CALLER, (FRONTEND, 2000)))
            .passes(Reason::Local)
            .inside(Packet::tcp(CALLER, HOST_OUTSIDE, SYN))
            .passes(Reason::Local)
            .inside(Packet::udp((STRANGER, 9), HOST_OUTSIDE))
            .passes(Reason::Local)
            .inside(Packet::ping((WEB, 7), FRONTEND))
            .passes(Reason::Local),
        Case::new("hairpin_ends_with_the_mapping", open())
            .registered()
            .ticks(super::timers::seconds(240) + 1)
            .inside(call())
            .passes(Reason::Local),
    ]
}

fn connections() -> Vec<Case> {
    let registered = |name| {
        Case::new(name, open())
            .goes(Packet::tcp(HOST, (SERVER, 80), SYN), P1)
            .opens(1, "tcp")
            .maps(1)
            .comes(Packet::tcp((SERVER, 80), HOST_OUTSIDE, SYN | ACK), HOST)
            .goes(Packet::tcp(HOST, (SERVER, 80), ACK), P1)
    };
    let to = |flags| Packet::tcp(CALLER, HOST_OUTSIDE, flags);
    let from = |flags| Packet::tcp(HOST, CALLER_OUTSIDE, flags);
    vec![
        registered("hairpin_tcp")
            .inside(to(ACK))
            .drops(Reason::TcpNoFlow)
            .turns(to(SYN), CALLER_OUTSIDE, HOST)
            .calls("tcp")
            .turns(from(SYN | ACK), HOST_OUTSIDE, CALLER)
            .turns(to(ACK), CALLER_OUTSIDE, HOST)
            .turns(to(ACK).fill(1200), CALLER_OUTSIDE, HOST)
            .turns(from(ACK).fill(500), HOST_OUTSIDE, CALLER)
            .turns(to(FIN | ACK), CALLER_OUTSIDE, HOST)
            .turns(from(FIN | ACK), HOST_OUTSIDE, CALLER),
        registered("hairpin_tcp_both_at_once")
            .turns(to(SYN), CALLER_OUTSIDE, HOST)
            .calls("tcp")
            .turns(from(SYN), HOST_OUTSIDE, CALLER)
            .turns(to(SYN | ACK), CALLER_OUTSIDE, HOST)
            .turns(from(SYN | ACK), HOST_OUTSIDE, CALLER),
    ]
}

fn filtering() -> Vec<Case> {
    vec![
        // Filtering sees the external source. What is sent opens the sender's side, so that the other may call back.
        Case::new("hairpin_filtered_by_address", by_address())
            .registered()
            .change("peers", 1)
            .inside(call())
            .drops(Reason::NoMapping)
            .opens(0, "udp")
            .maps(0)
            .change("peers", 1)
            .goes(Packet::udp(CALLER, STUN), P2)
            .opens(0, "udp")
            .change("peers", 1)
            .turns(Packet::udp(HOST, CALLER_OUTSIDE), HOST_OUTSIDE, CALLER)
            .opens(1, "udp")
            .change("peers", 1)
            .turns(call(), CALLER_OUTSIDE, HOST),
        // It has called one port of that address: another one is let in.
        Case::new("hairpin_filtered_by_address_of_the_frontend", by_address())
            .registered()
            .change("peers", 1)
            .goes(Packet::udp((WEB, 1), STUN), P3)
            .opens(0, "udp")
            .maps(0)
            .change("peers", 1)
            .inside(Packet::udp(HOST, (FRONTEND, P3)))
            .drops(Reason::NoMapping)
            .opens(1, "udp")
            .change("peers", 1)
            .turns(call(), CALLER_OUTSIDE, HOST)
            .calls("udp")
            .change("peers", 2),
        Case::new("hairpin_filtered_by_address_and_port", World::default().mapped(0))
            .registered()
            .inside(call())
            .drops(Reason::NoMapping)
            .opens(0, "udp")
            .maps(0)
            .goes(Packet::udp(CALLER, STUN), P2)
            .opens(0, "udp")
            .turns(Packet::udp(HOST, CALLER_OUTSIDE), HOST_OUTSIDE, CALLER)
            .opens(1, "udp")
            .turns(call(), CALLER_OUTSIDE, HOST),
        Case::new("without_mapping_no_hairpin", World::default())
            .goes(Packet::udp(HOST, STUN), P1)
            .opens(1, "udp")
            .inside(call())
            .passes(Reason::Local),
    ]
}

fn errors() -> Vec<Case> {
    // As the host got it, and as the caller sent it.
    let got = Packet::udp(CALLER_OUTSIDE, HOST).ttl(50).fill(40);
    let sent = got.clone().from(CALLER).to(HOST_OUTSIDE);
    let error = |source, quote: &Packet| Packet::error(source, UNREACHABLE, 3, quote);
    let reaches = |case: Case, error: Packet, expected: Packet| {
        let expected = expected.from((FRONTEND, 0)).to((WEB, 0)).hop();
        case.inside(error).back(expected).because(Reason::Hairpinned)
    };
    let connected =
        |name| Case::new(name, open()).registered().turns(call(), CALLER_OUTSIDE, HOST).calls("udp");
    let mut short = connected("hairpin_error_quoting_8_bytes");
    short = reaches(short, error(DB, &got).keep(28), error(DB, &sent).keep(28));
    vec![
        reaches(connected("hairpin_error"), error(DB, &got), error(DB, &sent)),
        short,
        connected("hairpin_error_about_nothing")
            .inside(error(DB, &got.clone().to((DB, 5001))))
            .drops(Reason::IcmpErrorNoFlow),
        // The error quotes what the gateway dropped: the caller's own packet, as it sent it.
        connected("hairpin_ttl")
            .inside(call().ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded),
    ]
}

fn limits() -> Vec<Case> {
    let mut no_rule = open();
    no_rule.backends[0].ports = [vec![], vec![], vec![]];
    vec![
        Case::new("hairpin_needs_a_rule", no_rule).registered().inside(call()).passes(Reason::Local),
        Case::new("hairpin_takes_no_more_than_half_of_the_host_s_share", World { guaranteed: 4, ..open() })
            .registered()
            .inside(call())
            .drops(Reason::TableShare)
            .change("grant.1.udp.refused_table", 1)
            .opens(0, "udp")
            .maps(0),
        Case::new(
            "hairpin_to_a_backend_whose_mac_address_is_not_known",
            open().extra(&["neigh del 10.0.0.5 dev lan0"]),
        )
        .registered()
        .inside(call())
        .drops(Reason::HairpinUnresolved)
        .calls("udp"),
    ]
}
