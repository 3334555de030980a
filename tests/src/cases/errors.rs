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

/// Maximum segment size, SACK permitted, timestamps, window scale: as Linux sends them.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

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
    for keep in (24..=60).filter(|keep| *keep != 37) {
        cut = cut
            .error_in(|quote| unreachable(quote).keep(keep), &sent_tcp.clone().fill(20), CLIENT)
            .error_out(|quote| answer(quote).keep(keep), &got_tcp.clone().fill(20), OUTER);
    }
    cases.push(cut);
    let mut cut = udp("quoted_udp_cut_at_every_length");
    // 27 bytes end in the middle of the UDP checksum.
    for keep in (24..=48).filter(|keep| *keep != 27) {
        cut = cut.error_in(|quote| unreachable(quote).keep(keep), &sent.clone().fill(20), CLIENT).error_out(
            |quote| answer(quote).keep(keep),
            &got.clone().fill(20),
            OUTER,
        );
    }
    cases.push(cut);
    cases.push(
        tcp("quoted_syn_with_options")
            .error_in(unreachable, &sent_tcp.clone().tcp_options(&SYN_OPTIONS), CLIENT)
            .error_out(answer, &got_tcp.clone().tcp_options(&SYN_OPTIONS), OUTER)
            .error_in(
                |quote| unreachable(quote).keep(48),
                &sent_tcp.clone().tcp_options(&SYN_OPTIONS),
                CLIENT,
            ),
    );
    cases.extend(extended());
    let ping = Case::new("quoted_ping", World::default())
        .goes(Packet::ping((WEB, 77), SERVER), P1)
        .opens(0, "icmp")
        .error_in(unreachable, &Packet::ping(OUTER, SERVER).ttl(3), (WEB, 77))
        .error_in(short, &Packet::ping(OUTER, SERVER).ttl(3).fill(31), (WEB, 77))
        .error_out(answer, &Packet::pong(SERVER, (WEB, 77)), OUTER);
    cases.push(ping);
    cases
}

/// Errors with an extension (RFC 4884): the length of the quotation in 32-bit words in byte 5, the quotation padded to 128
/// bytes, then the extension with a checksum of its own, here an MPLS label (RFC 4950). None of it may change.
fn extended() -> Vec<Case> {
    let extension = [0x20, 0, 0x95, 0x2b, 0, 8, 1, 1, 0x00, 0x01, 0x21, 0x3f];
    let error = |from, quote: &Packet| {
        let mut tail = vec![0; 128 - quote.packet().len()];
        tail.extend(extension);
        Packet::error(from, TIME_EXCEEDED, 0, quote).rest([0, 32, 0, 0]).data(&tail)
    };
    let udp = Packet::udp(OUTER, DNS).ttl(1).fill(60);
    let tcp = Packet::tcp(OUTER, HTTP, ACK).ttl(1).options(&[1; 40]).fill(13);
    vec![
        Case::new("quoted_with_an_extension", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .error_in(|quote| error(ROUTER, quote), &udp, CLIENT)
            .error_out(|quote| error(STRANGER, quote), &Packet::udp(DNS, CLIENT).fill(77), OUTER),
        Case::new("quoted_tcp_with_an_extension", World::default())
            .goes(Packet::tcp(CLIENT, HTTP, SYN), P1)
            .opens(0, "tcp")
            .error_in(|quote| error(ROUTER, quote), &tcp, CLIENT)
            .error_out(|quote| error(WEB, quote), &Packet::tcp(HTTP, CLIENT, ACK), OUTER),
    ]
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
        Case::new("errors_that_quote_what_was_translated_already", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            // By a router inside that is not ours, and by somebody outside who knows private addresses.
            .inside(Packet::error(STRANGER, TIME_EXCEEDED, 0, &sent).to((WEB, 0)))
            .passes(Reason::NotOutbound)
            .inside(Packet::error(STRANGER, TIME_EXCEEDED, 0, &sent).to((SERVER, 0)))
            .drops(Reason::WrongSide)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::udp(CLIENT, DNS)).to((FRONTEND, 0)))
            .drops(Reason::IcmpErrorNoFlow)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::udp(DNS, CLIENT)).to((FRONTEND, 0)))
            .drops(Reason::WrongSide),
        Case::new("errors_that_quote_errors", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::error(ROUTER, TIME_EXCEEDED, 0, &Packet::error(FRONTEND, UNREACHABLE, 3, &sent)))
            .passes(Reason::HostTraffic)
            .inside(Packet::error(WEB, TIME_EXCEEDED, 0, &Packet::error(SERVER, UNREACHABLE, 3, &sent)))
            .drops(Reason::IcmpErrorNoFlow),
        Case::new("errors_with_a_wrong_checksum", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            // Its own (RFC 5508 REQ-3 (a)), and the quoted header's (b).
            .outside_patched(Packet::error(ROUTER, UNREACHABLE, 1, &sent.clone().fill(99)), &[(36, &[0, 1])])
            .drops(Reason::BadChecksum)
            .outside_patched(Packet::error(ROUTER, UNREACHABLE, 1, &sent.clone().fill(600)), &[(660, &[9])])
            .drops(Reason::BadChecksum)
            .inside_patched(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)), &[(36, &[0, 1])])
            .drops(Reason::BadChecksum)
            .outside_patched(Packet::error(ROUTER, UNREACHABLE, 1, &sent), &[(52, &[0, 1])])
            .passes(Reason::HostTraffic)
            .error_in(|quote| Packet::error(ROUTER, UNREACHABLE, 1, quote), &sent.clone().fill(1400), CLIENT)
            .error_in(|quote| Packet::error(ROUTER, UNREACHABLE, 1, quote), &sent.clone().fill(1401), CLIENT),
        Case::new("errors_that_quote_too_little", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(23))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(19))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent).keep(0))
            .passes(Reason::HostTraffic)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &Packet::ping(OUTER, SERVER)).keep(27))
            .passes(Reason::HostTraffic)
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)).keep(23))
            .drops(Reason::IcmpErrorNoFlow),
        Case::new("errors_about_an_expired_flow", World::default())
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp")
            .ticks(super::timers::seconds(240) + 1)
            .outside(Packet::error(ROUTER, UNREACHABLE, 1, &sent))
            .drops(Reason::IcmpErrorNoFlow),
    ]
}
