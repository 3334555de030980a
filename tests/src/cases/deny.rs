// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies: what backends may not open, and what leaves untranslated.

use nat_common::abi::counters::Reason;

use crate::{
    case::{Case, I1, P1, P2, rewritten},
    harness::{
        World,
        world::{Act, DB, FRONTEND, NEAR, Policy, SERVER, SERVER2, STRANGER, WEB},
    },
    packet::{ACK, End, Packet, SYN, UNREACHABLE},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const ALL: ([u8; 4], u8) = ([0; 4], 0);
const NET: ([u8; 4], u8) = ([192, 0, 2, 0], 24);
// Protocol classes, as bits.
const TCP: u32 = 1;
const UDP: u32 = 1 << 1;
const ICMP: u32 = 1 << 2;
const OTHER: u32 = 1 << 3;

fn deny(remotes: &[([u8; 4], u8)]) -> Policy {
    Policy::new(Act::DenyOutbound, remotes)
}

fn bypass(remotes: &[([u8; 4], u8)]) -> Policy {
    Policy::new(Act::Bypass, remotes)
}

impl Case {
    /// The last packet is denied by this policy; `backend` is whose it is.
    #[must_use]
    fn denied(self, policy: usize, backend: Option<usize>) -> Self {
        let case = self.drops(Reason::Denied).change(&format!("policy.{policy}"), 1);
        match backend {
            Some(slot) => case.change(&format!("backend.{slot}.refused_policy"), 1),
            None => case,
        }
    }

    /// The last packet is bypassed by this policy.
    #[must_use]
    fn bypassed(self, policy: usize) -> Self {
        self.passes(Reason::Bypassed).change(&format!("policy.{policy}"), 1)
    }
}

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [prefixes(), protocols(), subjects(), fragments(), bypasses()].concat()
}

/// A packet to `address` from backend 0.
fn to(address: [u8; 4]) -> Packet {
    Packet::udp(CLIENT, (address, 53))
}

fn prefixes() -> Vec<Case> {
    vec![
        Case::new("denied_by_prefix", World::default().policies(&[deny(&[NET])]))
            .inside(to(SERVER))
            .denied(0, Some(0))
            .inside(to([192, 0, 2, 0]))
            .denied(0, Some(0))
            .inside(to([192, 0, 2, 255]))
            .denied(0, Some(0))
            .goes(to([192, 0, 3, 0]), P1)
            .opens(0, "udp")
            .goes(to([192, 0, 1, 255]), P2)
            .opens(0, "udp"),
        // The longest prefix that matches stands for all that cover it.
        Case::new(
            "denied_by_the_lowest_slot_of_those_that_cover",
            World::default().policies(&[
                deny(&[(SERVER, 32)]).only(TCP, &[]),
                deny(&[NET]).only(UDP, &[]),
                deny(&[ALL]).only(TCP | ICMP, &[]),
                deny(&[(SERVER2, 32), NET]),
            ]),
        )
        .inside(Packet::tcp(CLIENT, HTTP, SYN))
        .denied(0, Some(0))
        .inside(to(SERVER))
        .denied(1, Some(0))
        .inside(Packet::tcp(CLIENT, (SERVER2, 80), SYN))
        .denied(2, Some(0))
        .inside(Packet::ping((WEB, 1), SERVER))
        .denied(2, Some(0))
        .inside(Packet::other(WEB, SERVER2, 50))
        .denied(3, Some(0))
        .inside(Packet::tcp(CLIENT, (NEAR, 80), SYN))
        .denied(2, Some(0))
        .goes(to(NEAR), P1)
        .opens(0, "udp"),
        Case::new("denied_everywhere", World::default().policies(&[deny(&[ALL])]))
            .inside(to([1, 1, 1, 1]))
            .denied(0, Some(0))
            .inside(Packet::tcp((DB, 1), HTTP, SYN))
            .denied(0, Some(1))
            // Nothing that stays inside, or is the gateway's own.
            .inside(to(DB))
            .passes(Reason::NotOutbound)
            .inside(Packet::udp(CLIENT, ([224, 0, 0, 251], 5353)))
            .passes(Reason::Multicast),
    ]
}

fn protocols() -> Vec<Case> {
    vec![
        Case::new("port_25", World::default().policies(&[deny(&[ALL]).only(TCP, &[25])]))
            .inside(Packet::tcp(CLIENT, (SERVER, 25), SYN))
            .denied(0, Some(0))
            .goes(Packet::tcp(CLIENT, (SERVER, 26), SYN), P1)
            .opens(0, "tcp")
            .goes(Packet::udp(CLIENT, (SERVER, 25)), P2)
            .opens(0, "udp")
            .inside(Packet::ping((WEB, 25), SERVER2))
            .out(Packet::ping((FRONTEND, crate::case::P3), SERVER2).hop())
            .opens(0, "icmp"),
        Case::new(
            "ports_of_two_policies",
            World::default()
                .policies(&[deny(&[NET]).only(TCP | UDP, &[80, 65_535]), deny(&[ALL]).only(UDP, &[53, 80])]),
        )
        .inside(Packet::udp(CLIENT, (SERVER, 80)))
        .denied(0, Some(0))
        .inside(Packet::udp(CLIENT, (NEAR, 80)))
        .denied(1, Some(0))
        .inside(to(SERVER))
        .denied(1, Some(0))
        .inside(Packet::udp(CLIENT, (SERVER, 65_535)))
        .denied(0, Some(0))
        .goes(Packet::tcp(CLIENT, (SERVER, 53), SYN), P1)
        .opens(0, "tcp"),
        Case::new("denied_by_protocol", World::default().policies(&[deny(&[ALL]).only(OTHER, &[])]))
            .inside(Packet::other(WEB, SERVER, 47))
            .denied(0, Some(0))
            .inside(Packet::covered(CLIENT, DNS, 136))
            .denied(0, Some(0))
            .goes(to(SERVER), P1)
            .opens(0, "udp"),
        Case::new("denied_icmp", World::default().policies(&[deny(&[NET]).only(ICMP, &[])]))
            .inside(Packet::ping((WEB, 1), SERVER))
            .denied(0, Some(0))
            .inside(Packet::icmp(WEB, SERVER, 13, 0))
            .denied(0, Some(0))
            .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)))
            .denied(0, Some(0))
            .goes(to(SERVER), P1)
            .opens(0, "udp"),
        // An error about a living flow is still one that may not leave.
        Case::new(
            "errors_to_a_denied_destination",
            World::default().policies(&[deny(&[NET]).only(ICMP | TCP, &[])]),
        )
        .goes(to(SERVER), P1)
        .opens(0, "udp")
        .inside(Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)))
        .denied(0, Some(0))
        .comes(Packet::udp(DNS, (FRONTEND, P1)), CLIENT),
    ]
}

fn subjects() -> Vec<Case> {
    let of_db = deny(&[ALL]).of(DB);
    vec![
        Case::new("denied_to_one_backend", World::default().policies(std::slice::from_ref(&of_db)))
            .inside(Packet::udp((DB, 1), DNS))
            .denied(0, Some(1))
            .goes(to(SERVER), P1)
            .opens(0, "udp")
            // Not about strangers either.
            .inside(Packet::udp((STRANGER, 1), DNS))
            .drops(Reason::NoOutboundRule),
        Case::new("denied_to_strangers_too", World::default().policies(&[of_db, deny(&[NET])]))
            .inside(Packet::udp((STRANGER, 1), DNS))
            .denied(1, None)
            .inside(Packet::udp((STRANGER, 1), (NEAR, 53)))
            .drops(Reason::NoOutboundRule),
        Case::new("denied_comes_before_no_rule", {
            let mut world = World::default().policies(&[deny(&[NET])]);
            world.backends[0].ports = [vec![], vec![], vec![]];
            world
        })
        .inside(to(SERVER))
        .denied(0, Some(0))
        .inside(to(NEAR))
        .drops(Reason::NoOutboundRule)
        .change("backend.0.refused_rule", 1),
        Case::new("denied_with_an_instance_ip", World::default().instance().policies(&[deny(&[NET])]))
            .inside(to(SERVER))
            .denied(0, Some(0))
            .inside(Packet::other(WEB, SERVER, 50))
            .denied(0, Some(0))
            .leaves(to(NEAR)),
    ]
}

/// Ports of later fragments are those of the first: denied and bypassed like it, not before and not otherwise.
fn fragments() -> Vec<Case> {
    let later = |protocol| Packet::other(WEB, SERVER, protocol).fragment(false, 185);
    let to = |port| Packet::tcp(CLIENT, (SERVER, port), SYN).fill(64).fragment(true, 0);
    vec![
        Case::new("fragments_do_not_evade", World::default().policies(&[deny(&[NET]).only(TCP, &[25])]))
            .inside(later(6))
            .passes(Reason::FragmentHeld)
            .inside(to(25))
            .denied(0, Some(0))
            .inside(later(6))
            .drops(Reason::FragmentOrphan)
            .inside(later(6).id(7))
            .passes(Reason::FragmentHeld)
            .inside(later(50))
            .drops(Reason::Fragment)
            .goes(Packet::udp(CLIENT, DNS), P1)
            .opens(0, "udp"),
        Case::new(
            "fragments_are_judged_by_port",
            World::default().policies(&[deny(&[NET]).only(TCP, &[25])]),
        )
        .inside(to(80))
        .out(rewritten(&to(80), FRONTEND, P1).id(I1))
        .opens(0, "tcp")
        .inside(later(6))
        .out(rewritten(&later(6), FRONTEND, 0).id(I1)),
        Case::new(
            "fragments_are_bypassed_by_port",
            World::default().policies(&[bypass(&[NET]).only(TCP, &[80])]),
        )
        .inside(to(80))
        .bypassed(0)
        .inside(later(6))
        .bypassed(0)
        .inside(later(6).id(7))
        .passes(Reason::FragmentHeld)
        .inside(Packet::tcp(CLIENT, HTTP, SYN))
        .bypassed(0),
    ]
}

fn bypasses() -> Vec<Case> {
    let mut whole = Case::new("bypass_of_a_prefix", World::default().policies(&[bypass(&[NET])]));
    for packet in [
        to(SERVER),
        Packet::tcp(CLIENT, HTTP, SYN),
        Packet::tcp(CLIENT, HTTP, ACK),
        Packet::ping((WEB, 1), SERVER),
        Packet::pong(WEB, (SERVER, 1)),
        Packet::icmp(WEB, SERVER, 13, 0),
        Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT)),
        Packet::other(WEB, SERVER, 50),
        Packet::other(WEB, SERVER, 47).fill(3),
        Packet::udp(CLIENT, DNS).fill(64).fragment(true, 0),
        Packet::other(WEB, SERVER, 17).fragment(true, 9),
        Packet::udp((STRANGER, 1), DNS),
        to(SERVER).ttl(1),
    ] {
        whole = whole.inside(packet).bypassed(0);
    }
    vec![
        whole.goes(to(NEAR), P1).opens(0, "udp"),
        Case::new(
            "deny_wins_over_bypass",
            World::default().policies(&[bypass(&[NET]), bypass(&[ALL]).of(DB), deny(&[(SERVER, 32)])]),
        )
        .inside(to(SERVER))
        .denied(2, Some(0))
        .inside(to(SERVER2))
        .bypassed(0)
        .inside(Packet::udp((DB, 1), (NEAR, 53)))
        .bypassed(1)
        .goes(to(NEAR), P1)
        .opens(0, "udp"),
        Case::new("bypass_of_one_backend", World::default().policies(&[bypass(&[NET]).of(DB)]))
            .inside(Packet::udp((DB, 1), DNS))
            .bypassed(0)
            .goes(to(SERVER), P1)
            .opens(0, "udp")
            .inside(Packet::udp((STRANGER, 1), DNS))
            .drops(Reason::NoOutboundRule),
        Case::new("bypass_with_an_instance_ip", World::default().instance().policies(&[bypass(&[NET])]))
            .inside(to(SERVER))
            .bypassed(0)
            .leaves(to(NEAR)),
        Case::new("bypass_with_impossible_sources", World::default().policies(&[bypass(&[NET])]))
            .inside(Packet::udp(([127, 0, 0, 1], 68), DNS))
            .drops(Reason::InvalidSource),
    ]
}
