// SPDX-License-Identifier: MIT OR Apache-2.0
//! `mss_clamp`: the maximum segment size in SYN segments of both directions.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, Expect, P1, P2, returned, rewritten},
    harness::{
        World,
        world::{FRONTEND, NARROW, SERVER, WEB},
    },
    packet::{ACK, End, FIN, PSH, Packet, SYN},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const OUTER: End = (FRONTEND, P1);

/// Clamped to what fits, behind links of these MTUs.
fn auto(inside: u16, outside: u16) -> World {
    World { segment_size: Some(0), ..World::default() }.mtu(0, inside).mtu(1, outside)
}

/// Options as Linux sends them.
fn options(size: u16) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    vec![2, 4, high, low, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]
}

fn syn(size: u16) -> Packet {
    Packet::tcp(CLIENT, HTTP, SYN).tcp_options(&options(size))
}

fn syn_ack(size: u16) -> Packet {
    Packet::tcp(HTTP, OUTER, SYN | ACK).tcp_options(&options(size))
}

impl Case {
    /// A segment from inside leaves like `clamped` would.
    #[must_use]
    fn goes_as(self, packet: Packet, clamped: &Packet, port: u16) -> Self {
        self.inside(packet).out(rewritten(clamped, FRONTEND, port))
    }

    /// A segment from outside reaches the backend as `clamped` would.
    #[must_use]
    fn comes_as(self, packet: Packet, clamped: &Packet) -> Self {
        self.outside(packet).back(returned(clamped, CLIENT.0, CLIENT.1))
    }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("mss_that_does_not_fit_outside", auto(1500, 1400))
            .goes_as(syn(1460), &syn(1360), P1)
            .opens(0, "tcp")
            // Repeated within the tick, in which nothing else is looked at.
            .goes_as(syn(1460), &syn(1360), P1)
            .goes_as(syn(1361), &syn(1360), P1)
            .goes(syn(1360), P1)
            .goes(syn(536), P1)
            .goes(syn(0), P1)
            .comes_as(syn_ack(1460), &syn_ack(1360))
            .comes_as(syn_ack(65_535), &syn_ack(1360))
            .comes(syn_ack(1220), CLIENT)
            .goes(Packet::tcp(CLIENT, HTTP, ACK).tcp_options(&options(1460)), P1)
            .goes(Packet::tcp(CLIENT, HTTP, PSH | ACK).tcp_options(&options(1460)).fill(1320), P1)
            .comes(Packet::tcp(HTTP, OUTER, FIN | ACK).tcp_options(&options(1460)), CLIENT),
        Case::new("mss_that_does_not_fit_inside", auto(1280, 1500))
            .goes_as(syn(1460), &syn(1240), P1)
            .opens(0, "tcp")
            .comes_as(syn_ack(1460), &syn_ack(1240)),
        Case::new("mss_of_jumbo_frames", auto(9000, 1500))
            .goes_as(syn(8960), &syn(1460), P1)
            .opens(0, "tcp")
            .comes(syn_ack(1460), CLIENT),
        Case::new("mss_as_the_rule_says", World { segment_size: Some(1200), ..World::default() })
            .goes_as(syn(1460), &syn(1200), P1)
            .opens(0, "tcp")
            .goes(syn(1000), P1)
            .comes_as(syn_ack(1460), &syn_ack(1200)),
        Case::new("mss_of_a_rule_that_says_nothing", World::default().mtu(1, 1400))
            .goes(syn(1460), P1)
            .opens(0, "tcp")
            .comes(syn_ack(1460), CLIENT),
        narrow(),
        simultaneous(),
        Case::new("mss_towards_tags", auto(1500, 1400).tagged(0, &[(0x8100, 4)]))
            .goes_as(syn(1460), &syn(1360), P1)
            .opens(0, "tcp")
            .comes_as(syn_ack(1460), &syn_ack(1360)),
        Case::new("mss_by_way_of_the_stack", auto(1500, 1400).extra(&["neigh del 10.0.0.4 dev lan0"]))
            .goes_as(syn(1460), &syn(1360), P1)
            .opens(0, "tcp")
            .outside(syn_ack(1460))
            .then(Expect::PassedAs(Box::new(syn_ack(1360).to(CLIENT))), Reason::TranslatedToStack),
    ];
    cases.push(places());
    cases
}

/// The route's MTU counts, in both directions, where it is smaller than the links'.
fn narrow() -> Case {
    let (syn, syn_ack) = (|size| syn(size).to((NARROW, 80)), |size| syn_ack(size).from((NARROW, 80)));
    Case::new("mss_that_does_not_fit_the_route", auto(1500, 1500))
        .goes_as(syn(1460), &syn(960), P1)
        .opens(0, "tcp")
        .comes_as(syn_ack(1460), &syn_ack(960))
}

fn simultaneous() -> Case {
    let theirs = |size| Packet::tcp(HTTP, OUTER, SYN).tcp_options(&options(size));
    let ours = |size| Packet::tcp(CLIENT, HTTP, SYN | ACK).tcp_options(&options(size));
    Case::new("mss_in_a_simultaneous_open", auto(1500, 1400))
        .goes_as(syn(1460), &syn(1360), P1)
        .opens(0, "tcp")
        .comes_as(theirs(1460), &theirs(1360))
        .goes_as(ours(1460), &ours(1360), P1)
}

/// Wherever the option is, at even and odd places; and lists that make no sense, which stay as they are.
fn places() -> Case {
    let segment = |options: &[u8]| Packet::tcp(CLIENT, (SERVER, 443), SYN).tcp_options(options);
    let mut case = Case::new("mss_wherever_it_is", auto(1500, 1400)).goes(segment(&[]), P2).opens(0, "tcp");
    for before in 0..=36 {
        let list = |low| {
            let mut list = vec![1; before];
            list.extend([2, 4, 5, low]);
            list.resize(list.len().next_multiple_of(4), 0);
            list
        };
        for extra in [&[][..], &[1; 8]] {
            case = case.goes_as(segment(&list(180)).options(extra), &segment(&list(80)).options(extra), P2);
        }
    }
    let nonsense: [&[u8]; 8] = [
        &[0, 2, 4, 5, 180, 0, 0, 0],
        &[3, 0, 2, 4, 5, 180, 0, 0],
        &[3, 1, 2, 4, 5, 180, 0, 0],
        &[8, 255, 2, 4, 5, 180, 0, 0],
        &[2, 3, 5, 180],
        &[2, 5, 5, 180, 0, 0, 0, 0],
        &[1, 1, 1, 2],
        &[1; 40],
    ];
    for list in nonsense {
        case = case.goes(segment(list), P2).goes(segment(list).data(&[2, 4, 5, 180]), P2);
    }
    case
}
