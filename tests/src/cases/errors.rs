// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP errors about flows, in both directions, with the packet they quote.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, P1},
    harness::{
        World,
        world::{DB, FRONTEND, NEAR, ROUTER, SERVER, STRANGER, WEB},
    },
    packet::{ACK, End, PARAMETER_PROBLEM, Packet, SYN, TIME_EXCEEDED, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);

impl Case {
    /// An error from outside that quotes `seen`, a packet as it left the gateway, reaches the backend quoting the
    /// packet as `inner` sent it.
    #[must_use]
    pub fn error_in(self, error: impl Fn(&Packet) -> Packet, seen: &Packet, inner: End) -> Self {
        let expected = error(&seen.clone().from(inner)).hop();
        self.outside(error(seen)).back(expected).because(Reason::IcmpErrorIn)
    }

    /// An error from inside that quotes `seen`, a packet as the backend got it, leaves from the frontend quoting
    /// the packet as it was sent to `outer`.
    #[must_use]
    pub fn error_out(self, error: impl Fn(&Packet) -> Packet, seen: &Packet, outer: End) -> Self {
        let expected = error(&seen.clone().to(outer)).from((FRONTEND, 0)).hop();
        self.inside(error(seen)).out(expected).because(Reason::IcmpErrorOut)
    }
}

/// Every type and code that is translated: all sixteen kinds of unreachable, both of time exceeded, three of
/// parameter problem.
fn kinds() -> impl Iterator<Item = (u8, u8)> {
    let unreachable = (0..16).map(|code| (UNREACHABLE, code));
    let exceeded = (0..2).map(|code| (TIME_EXCEEDED, code));
    unreachable.chain(exceeded).chain((0..3).map(|code| (PARAMETER_PROBLEM, code)))
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![every_kind()];
    cases.extend(quotes());
    cases.extend(senders());
    cases.extend(refused());
    cases
}

fn every_kind() -> Case {
    let mut case = Case::new("every_kind_of_error", World::default())
        .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
        .opens(0, "tcp")
        .comes(Packet::tcp(HTTP, OUTER, SYN | ACK), CLIENT);
    let sent = Packet::tcp(OUTER, HTTP, ACK).ttl(57).fill(13);
    let got = Packet::tcp(HTTP, CLIENT, ACK).ttl(44).fill(13);
    for (kind, code) in kinds() {
        let rest = match (kind, code) {
            (UNREACHABLE, 4) => [0, 0, 0x05, 0x78],
            (PARAMETER_PROBLEM, 0) => [20, 0, 0, 0],
            _ => [0; 4],
        };
        case = case
            .error_in(|quote| Packet::error(ROUTER, kind, code, quote).rest(rest), &sent, CLIENT)
            .error_out(|quote| Packet::error(WEB, kind, code, quote).rest(rest), &got, OUTER);
    }
    case
}

fn quotes() -> Vec<Case> {
    let udp = |name| Case::new(name, World::default()).goes(Packet::udp(CLIENT, DNS), P1).opens(0, "udp");
    let tcp =
        |name| Case::new(name, World::default()).goes(Packet::tcp(CLIENT, HTTP, SYN), P1).opens(0, "tcp");
    let unreachable = |quote: &Packet| Packet::error(ROUTER, UNREACHABLE, 1, quote);
    let answer = |quote: &Packet| Packet::error(WEB, UNREACHABLE, 3, quote);
    let short = |quote: &Packet| unreachable(quote).keep(28);
    let short_answer = |quote: &Packet| answer(quote).keep(28);
    let sent = Packet::udp(OUTER, DNS).ttl(50);
    let got = Packet::udp(DNS, CLIENT).ttl(50);
    let sent_tcp = Packet::tcp(OUTER, HTTP, SYN).ttl(50);
    let got_tcp = Packet::tcp(HTTP, CLIENT, SYN | ACK).ttl(50);
    let mut cases = vec![
        udp("quoted_udp").error_in(unreachable, &sent, CLIENT).error_out(answer, &got, OUTER),
        udp("quoted_udp_of_odd_length").error_in(unreachable, &sent.clone().fill(5), CLIENT).error_out(
            answer,
            &got.clone().fill(77),
            OUTER,
        ),
        udp("quoted_udp_without_checksum")
            .error_in(unreachable, &sent.clone().no_checksum(), CLIENT)
            .error_out(answer, &got.clone().no_checksum(), OUTER)
            .error_in(short, &sent.clone().no_checksum(), CLIENT)
            .error_out(short_answer, &got.clone().no_checksum(), OUTER),
        udp("quoted_only_8_bytes").error_in(short, &sent.clone().fill(500), CLIENT).error_out(
            short_answer,
            &got.clone().fill(500),
            OUTER,
        ),
        tcp("quoted_tcp_only_8_bytes").error_in(short, &sent_tcp, CLIENT).error_out(
            short_answer,
            &got_tcp,
            OUTER,
        ),
        udp("quoted_with_ip_options")
            .error_in(unreachable, &sent.clone().options(&[1; 12]), CLIENT)
            .error_out(answer, &got.clone().options(&[1; 40]), OUTER)
            .error_in(|quote| unreachable(quote).keep(28 + 40), &sent.clone().options(&[1; 40]), CLIENT)
            .error_in(|quote| unreachable(quote).options(&[1; 8]), &sent, CLIENT)
            .error_out(|quote| answer(quote).options(&[1; 40]), &got, OUTER),
        udp("quoted_with_trailing_extension").error_in(|quote| unreachable(quote).fill(20), &sent, CLIENT),
    ];
    // Every length a quotation may be cut to: odd ones leave half a checksum word.
    let mut cut = tcp("quoted_tcp_cut_at_every_length");
    // 37 bytes end in the middle of the TCP checksum: what a translator does to half a number is its own business.
    for keep in (28..=60).filter(|keep| *keep != 37) {
        cut = cut
            .error_in(|quote| unreachable(quote).keep(keep), &sent_tcp.clone().fill(20), CLIENT)
            .error_out(|quote| answer(quote).keep(keep), &got_tcp.clone().fill(20), OUTER);
    }
    cases.push(cut);
    let ping = Case::new("quoted_ping", World::default())
        .goes(Packet::ping((WEB, 77), SERVER), P1)
        .opens(0, "icmp")
        .error_in(unreachable, &Packet::ping(OUTER, SERVER).ttl(3), (WEB, 77))
        .error_in(short, &Packet::ping(OUTER, SERVER).ttl(3).fill(31), (WEB, 77))
        .error_out(answer, &Packet::pong(SERVER, (WEB, 77)), OUTER);
    cases.push(ping);
    cases
}

fn senders() -> Vec<Case> {
    let sent = Packet::udp((FRONTEND, P1), (NEAR, 53)).ttl(63);
    let got = Packet::udp((NEAR, 53), CLIENT).ttl(63);
    vec![
        Case::new("errors_from_the_destination_and_on_the_way", World::default())
            .goes(Packet::udp(CLIENT, (NEAR, 53)), P1)
            .opens(0, "udp")
            .error_in(|quote| Packet::error(NEAR, UNREACHABLE, 3, quote), &sent, CLIENT)
            .error_in(|quote| Packet::error(SERVER, TIME_EXCEEDED, 0, quote), &sent, CLIENT)
            .error_out(|quote| Packet::error(WEB, UNREACHABLE, 3, quote), &got, OUTER),
        Case::new("an_inside_router_s_address_does_not_leave", World::default())
            .goes(Packet::udp(CLIENT, (NEAR, 53)), P1)
            .opens(0, "udp")
            .error_out(|quote| Packet::error(STRANGER, TIME_EXCEEDED, 0, quote), &got, OUTER)
            .error_out(|quote| Packet::error(DB, UNREACHABLE, 1, quote), &got, OUTER),
        Case::new("an_error_does_not_keep_a_flow_alive", World::default())
            .goes(Packet::udp(CLIENT, (NEAR, 53)), P1)
            .opens(0, "udp")
            .ticks(super::timers::seconds(200))
            .error_in(|quote| Packet::error(ROUTER, TIME_EXCEEDED, 0, quote), &sent, CLIENT)
            .ticks(super::timers::seconds(100))
            .outside(Packet::udp((NEAR, 53), OUTER))
            .drops(Reason::FlowExpired),
    ]
}

fn refused() -> Vec<Case> {
    let sent = Packet::udp(OUTER, DNS);
    vec![
        Case::new("errors_that_quote_something_else", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::udp(OUTER, (SERVER, 54))))
            .drops(Reason::IcmpErrorNoFlow)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::tcp(OUTER, DNS, SYN)))
            .drops(Reason::IcmpErrorNoFlow)
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, (WEB, 40_001))))
            .drops(Reason::IcmpErrorNoFlow),
        Case::new("errors_that_quote_too_little", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(27))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(19))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(0))
            .passes(Reason::HostTraffic)
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)).keep(27))
            .drops(Reason::IcmpErrorNoFlow),
        Case::new("errors_about_an_expired_flow", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .ticks(super::timers::seconds(240) + 1)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent))
            .drops(Reason::IcmpErrorNoFlow),
    ]
}
