// SPDX-License-Identifier: MIT OR Apache-2.0
//! Endpoint-independent mapping and the three filterings (RFC 4787 §4 and §5).

use nat_common::{
    abi::{
        counters::Reason,
        grant::{RULE_FILTER_ADDRESS, RULE_FILTER_NONE},
    },
    net::timers::TimerClass,
};

use super::timers::seconds;
use crate::{
    case::{Case, Expect, P1, P2, P3},
    harness::{
        World,
        world::{DB, FRONTEND, GATEWAY_OUTSIDE, SERVER, SERVER2, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN, TIME_EXCEEDED},
};

const CLIENT: End = (WEB, 40_000);
const OUTER: End = (FRONTEND, P1);
const DNS: End = (SERVER, 53);
const HTTP: End = (SERVER, 80);
/// The same address, another port.
const OTHER_PORT: End = (SERVER, 5353);
/// Another address.
const OTHER: End = (SERVER2, 53);

impl Case {
    /// The last packet opens a mapping of the backend.
    #[must_use]
    pub fn maps(self, backend: usize) -> Self {
        self.mapped(backend, 1)
    }

    /// The last packet changes the number of mappings of the backend.
    #[must_use]
    pub fn mapped(self, backend: usize, mappings: i64) -> Self {
        self.change(&format!("backend.{backend}.flows"), mappings)
            .change("table.flows", mappings)
            .change("entries", 2 * mappings)
    }

    /// The last packet opens a session of backend 0 in the place of one that was over.
    #[must_use]
    fn anew_from_outside(self, class: &str) -> Self {
        self.change(&format!("grant.0.{class}.opened"), 1)
    }

    /// A mapped datagram to `destination` from the first inner end, whose mapping there is already.
    #[must_use]
    fn session(self, destination: End) -> Self {
        self.goes(Packet::udp(CLIENT, destination), P1).opens(0, "udp")
    }

    /// A packet from outside is not let in.
    #[must_use]
    fn closed(self, packet: Packet) -> Self {
        self.outside(packet).drops(Reason::NoMapping)
    }
}

/// Whoever the backend has not sent to is not let in.
fn closed() -> World {
    World::default().mapped(0)
}

fn by_address() -> World {
    World::default().mapped(RULE_FILTER_ADDRESS)
}

fn open() -> World {
    World::default().mapped(RULE_FILTER_NONE)
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [mappings(), filtering(), from_outside(), endings(), around()].concat()
}

fn first(name: &'static str, world: World) -> Case {
    Case::new(name, world).session(DNS).maps(0)
}

fn mappings() -> Vec<Case> {
    vec![
        first("one_port_for_every_destination", closed())
            .session(OTHER_PORT)
            .session(OTHER)
            .comes(Packet::udp(OTHER, OUTER), CLIENT)
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .goes(Packet::udp(CLIENT, OTHER_PORT).fill(99), P1),
        Case::new("mapped_tcp_has_one_port_for_every_destination", closed())
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .maps(0)
            .goes(Packet::tcp(CLIENT, (SERVER2, 80), SYN), P1)
            .opens(0, "tcp")
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1)
            .inside(Packet::tcp(CLIENT, (SERVER2, 443), ACK))
            .drops(Reason::TcpNoFlow),
        Case::new("mapped_ping_has_one_identifier_for_every_destination", open())
            .goes(Packet::ping((WEB, 77), SERVER), P1)
            .opens(0, "icmp")
            .maps(0)
            .goes(Packet::ping((WEB, 77), SERVER2), P1)
            .opens(0, "icmp")
            .comes(Packet::pong(SERVER2, OUTER), (WEB, 77))
            // Nobody asked this one.
            .closed(Packet::pong([192, 0, 2, 90], OUTER)),
        first("each_inner_end_has_a_port_of_its_own", closed())
            .goes(Packet::udp((WEB, 40_001), DNS), P2)
            .opens(0, "udp")
            .maps(0)
            .goes(Packet::udp((DB, 40_000), DNS), P3)
            .opens(1, "udp")
            .maps(1)
            .goes(Packet::udp((WEB, 40_001), OTHER), P2)
            .opens(0, "udp"),
    ]
}

fn filtering() -> Vec<Case> {
    vec![
        first("filtered_by_address_and_port", closed())
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .closed(Packet::udp(OTHER_PORT, OUTER))
            .closed(Packet::udp(OTHER, OUTER)),
        first("filtered_by_address", by_address())
            .change("peers", 1)
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .closed(Packet::udp(OTHER, OUTER))
            .comes(Packet::udp(OTHER_PORT, OUTER), CLIENT)
            .opens(0, "udp")
            .change("peers", 1)
            .goes(Packet::udp(CLIENT, OTHER_PORT), P1)
            .session(OTHER)
            .change("peers", 1)
            .comes(Packet::udp((SERVER2, 9), OUTER), CLIENT)
            .opens(0, "udp")
            .change("peers", 1),
        first("not_filtered", open())
            .comes(Packet::udp(OTHER_PORT, OUTER), CLIENT)
            .opens(0, "udp")
            .comes(Packet::udp(OTHER, OUTER), CLIENT)
            .opens(0, "udp")
            .goes(Packet::udp(CLIENT, OTHER), P1)
            .comes(Packet::udp(OTHER, OUTER).fill(900), CLIENT),
        // The same numbers in another protocol, and ports that nobody has a mapping on.
        first("only_the_mapping_s_own_port_is_open", open())
            .closed(Packet::tcp(OTHER, OUTER, SYN))
            .closed(Packet::pong(SERVER2, OUTER))
            .closed(Packet::udp(OTHER, (FRONTEND, 1032)))
            .outside(Packet::udp(OTHER, (FRONTEND, 2000)))
            .passes(Reason::HostTraffic),
        Case::new("without_mapping_nothing_comes_in", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .closed(Packet::udp(OTHER, OUTER)),
    ]
}

fn from_outside() -> Vec<Case> {
    let tcp = |name| Case::new(name, open()).goes(Packet::tcp(CLIENT, HTTP, SYN), P1).opens(0, "tcp").maps(0);
    vec![
        tcp("mapped_tcp_from_outside")
            .comes(Packet::tcp(OTHER, OUTER, SYN), CLIENT)
            .opens(0, "tcp")
            .goes(Packet::tcp(CLIENT, OTHER, SYN | ACK), P1)
            .comes(Packet::tcp(OTHER, OUTER, ACK), CLIENT)
            .comes(Packet::tcp(OTHER, OUTER, FIN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, OTHER, FIN | ACK), P1),
        tcp("mapped_tcp_from_outside_needs_a_syn")
            .closed(Packet::tcp(OTHER, OUTER, ACK))
            .closed(Packet::tcp(OTHER, OUTER, SYN | ACK))
            .closed(Packet::tcp(OTHER, OUTER, RST)),
        first("mapped_ttl_and_checksum_from_outside", open())
            .outside(Packet::udp(OTHER, OUTER).ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_OUTSIDE), Reason::TtlExceeded)
            .outside_patched(Packet::udp(OTHER, OUTER), &[(24, &[0x00, 0x01])])
            .drops(Reason::BadChecksum)
            .outside(Packet::udp((WEB, 9), OUTER))
            .drops(Reason::InvalidSource),
        // Half of what is guaranteed is kept for what the backend begins itself; nobody outside hears of it.
        first("mapped_sessions_from_outside_leave_room", World { guaranteed: 8, on_refusal: 1, ..open() })
            .comes(Packet::udp(OTHER, OUTER), CLIENT)
            .opens(0, "udp")
            .comes(Packet::udp(OTHER_PORT, OUTER), CLIENT)
            .opens(0, "udp")
            .outside(Packet::udp((SERVER2, 9), OUTER))
            .drops(Reason::TableShare)
            .change("grant.0.udp.refused_table", 1)
            .session((SERVER2, 9)),
    ]
}

/// As [`open`], UDP ports resting for 65 seconds.
fn open_and_resting() -> World {
    let mut world = open();
    world.rests[TimerClass::Udp as usize] = seconds(65);
    world
}

fn endings() -> Vec<Case> {
    vec![
        first("a_late_packet_from_outside_does_not_end_the_rest", open_and_resting())
            .ticks(seconds(240) + 1)
            .outside(Packet::udp(DNS, OUTER))
            .drops(Reason::FlowExpired)
            .ticks(seconds(60))
            .outside(Packet::udp(DNS, OUTER))
            .drops(Reason::FlowExpired),
        first("a_mapping_ends_with_its_timer", open())
            .ticks(seconds(240) + 1)
            .closed(Packet::udp(OTHER, OUTER)),
        first("a_session_keeps_its_mapping", open())
            .ticks(seconds(200))
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .ticks(seconds(200))
            .comes(Packet::udp(OTHER, OUTER), CLIENT)
            .opens(0, "udp"),
        first("any_destination_keeps_the_mapping", by_address())
            .change("peers", 1)
            .ticks(seconds(200))
            .session(OTHER)
            .change("peers", 1)
            .ticks(seconds(200))
            // Its session is over, and so is what it was let in for.
            .closed(Packet::udp(OTHER_PORT, OUTER))
            .comes(Packet::udp((SERVER2, 9), OUTER), CLIENT)
            .opens(0, "udp")
            .change("peers", 1),
        first("an_expired_session_opens_again_from_outside", open())
            .ticks(seconds(200))
            .session(OTHER)
            .ticks(seconds(200))
            .comes(Packet::udp(DNS, OUTER), CLIENT)
            .anew_from_outside("udp")
            .goes(Packet::udp(CLIENT, DNS), P1),
        first("an_expired_session_opens_again_from_inside", closed())
            .ticks(seconds(200))
            .session(OTHER)
            .ticks(seconds(200))
            .outside(Packet::udp(DNS, OUTER))
            .drops(Reason::FlowExpired)
            .goes(Packet::udp(CLIENT, DNS), P1)
            .change("grant.0.udp.opened", 1),
        Case::new("a_closed_mapped_connection_reopens_on_its_port", closed())
            .handshake_mapped()
            .goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT)
            .ticks(3)
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .change("grant.0.tcp.opened", 1)
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT),
    ]
}

impl Case {
    #[must_use]
    fn handshake_mapped(self) -> Self {
        self.goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .maps(0)
            .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1)
    }
}

fn around() -> Vec<Case> {
    use crate::harness::world::{GATEWAY_INSIDE, ROUTER};
    use crate::packet::UNREACHABLE;
    let sent = Packet::udp(OUTER, DNS).ttl(50);
    let got = Packet::udp(OTHER, CLIENT).ttl(50);
    vec![
        first("errors_about_mapped_sessions", open())
            .comes(Packet::udp(OTHER, OUTER), CLIENT)
            .opens(0, "udp")
            .error_in(|quote| Packet::error(ROUTER, UNREACHABLE, 1, quote), &sent, CLIENT)
            .error_out(|quote| Packet::error(WEB, UNREACHABLE, 3, quote), &got, OUTER),
        first("a_refused_session_leaves_no_mapping", World { guaranteed: 3, on_refusal: 1, ..closed() })
            .inside(Packet::udp((WEB, 40_001), DNS))
            .told(13, Reason::TableShare)
            .change("grant.0.udp.refused_table", 1)
            .session(OTHER)
            .inside(Packet::udp(CLIENT, OTHER_PORT).ttl(1))
            .then(Expect::Answered(TIME_EXCEEDED, 0, [0; 4], GATEWAY_INSIDE), Reason::TtlExceeded),
    ]
}
