// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timers that a rule sets: profiles, which packets keep a UDP flow, timers by destination port, and packets of a flow whose
//! port rests.

use nat_common::{
    abi::{
        counters::Reason,
        grant::{PortTimer, RULE_UDP_BOTH, RULE_UDP_OUTBOUND},
    },
    net::{
        profiles::{PROFILES, Timers},
        timers::TimerClass,
    },
};

use super::timers::seconds;
use crate::{
    case::{Case, P1, rewritten},
    harness::{
        World,
        world::{FRONTEND, SERVER, WEB},
    },
    packet::{ACK, End, FIN, Packet, RST, SYN},
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
const DNS: End = (SERVER, 53);
const OUTER: End = (FRONTEND, P1);

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let profiles = PROFILES.iter().flat_map(|(name, timers)| profile(name, timers));
    profiles.chain(keepalives()).chain(directions()).chain(by_port()).chain(resting()).collect()
}

fn world(timers: &Timers) -> World {
    World {
        timeouts: timers.timeout_ticks(),
        rests: timers.rest_ticks(),
        rule_flags: timers.refresh.flags(),
        ..World::default()
    }
}

/// A flow in each state lives for exactly as long as the profile says.
fn profile(name: &'static str, timers: &Timers) -> Vec<Case> {
    let named = |state: &str| Case::new(format!("{name}_{state}").leak(), world(timers));
    let ticks = |class: TimerClass| seconds(timers.timeouts[class as usize]);
    let open = |state: &str| named(state).handshake(CLIENT, HTTP, P1);
    let half_closed = |state: &str| open(state).goes(Packet::tcp(CLIENT, HTTP, FIN | ACK), P1);
    let reply = Packet::tcp(HTTP, OUTER, ACK);
    let tcp = [
        (
            named("half_open").goes(Packet::tcp(CLIENT, HTTP, SYN), P1).opens(0, "tcp"),
            TimerClass::TcpHandshake,
        ),
        (open("established"), TimerClass::TcpEstablished),
        (half_closed("half_closed"), TimerClass::TcpHalfClosed),
        (half_closed("after_fin").comes(Packet::tcp(HTTP, OUTER, FIN | ACK), CLIENT), TimerClass::TcpClosed),
        (open("after_rst").comes(Packet::tcp(HTTP, OUTER, RST), CLIENT), TimerClass::TcpReset),
    ];
    let mut cases: Vec<Case> = tcp
        .into_iter()
        .map(|(case, class)| {
            // Where packets prolong nothing, one at the last moment changes nothing.
            let late = if class.refreshes() { ticks(class) + 1 } else { 1 };
            case.ticks(ticks(class))
                .comes(reply.clone(), CLIENT)
                .ticks(late)
                .outside(reply.clone())
                .drops(Reason::FlowExpired)
        })
        .collect();
    let udp = Packet::udp(CLIENT, DNS);
    let answer = Packet::udp(DNS, OUTER);
    cases.push(
        named("udp")
            .goes(udp.clone(), P1)
            .opens(0, "udp")
            .comes(answer.clone(), CLIENT)
            .ticks(ticks(TimerClass::Udp))
            .goes(udp, P1)
            .comes(answer.clone(), CLIENT)
            .ticks(ticks(TimerClass::Udp) + 1)
            .outside(answer)
            .drops(Reason::FlowExpired),
    );
    cases.push(
        named("icmp")
            .goes(Packet::ping((WEB, 7), SERVER), P1)
            .opens(0, "icmp")
            .ticks(ticks(TimerClass::Icmp))
            .comes(Packet::pong(SERVER, OUTER), (WEB, 7))
            .ticks(ticks(TimerClass::Icmp) + 1)
            .outside(Packet::pong(SERVER, OUTER))
            .drops(Reason::FlowExpired),
    );
    cases
}

/// Keepalives from one side only keep a connection, whichever side it is.
fn keepalives() -> Vec<Case> {
    let reply = Packet::tcp(HTTP, OUTER, ACK);
    let probe = Packet::tcp(CLIENT, HTTP, ACK);
    let mut inside = Case::new("keepalives_from_inside", World::default()).handshake(CLIENT, HTTP, P1);
    let mut outside = Case::new("keepalives_from_outside", World::default()).handshake(CLIENT, HTTP, P1);
    for _ in 0..5 {
        inside = inside.ticks(seconds(239)).goes(probe.clone(), P1);
        outside = outside.ticks(seconds(239)).comes(reply.clone(), CLIENT);
    }
    vec![inside.comes(reply, CLIENT), outside.goes(probe, P1)]
}

/// A UDP flow whose idle time counts by direction.
fn directions() -> Vec<Case> {
    let udp = Packet::udp(CLIENT, DNS);
    let answer = Packet::udp(DNS, OUTER);
    let with = |name, rule_flags| {
        Case::new(name, World { rule_flags, ..World::default() }).goes(udp.clone(), P1).opens(0, "udp")
    };
    let again = |case: Case| {
        case.inside(udp.clone()).out(rewritten(&udp, FRONTEND, P1)).change("grant.0.udp.opened", 1)
    };
    let half = seconds(240) / 2;
    let only_out = |name, flags| with(name, flags).ticks(half).goes(udp.clone(), P1).ticks(half + 1);
    let only_in = |name, flags| {
        with(name, flags).ticks(half).comes(answer.clone(), CLIENT).ticks(half + 1).outside(answer.clone())
    };
    let mut both = with("both_directions_keep_it", RULE_UDP_BOTH);
    for _ in 0..5 {
        both = both.ticks(seconds(239)).goes(udp.clone(), P1).comes(answer.clone(), CLIENT);
    }
    vec![
        both,
        again(only_out("both_an_unanswered_flow_ends", RULE_UDP_BOTH)),
        only_in("both_inbound_alone_does_not_keep", RULE_UDP_BOTH).drops(Reason::FlowExpired),
        // What was answered once counts from its answer.
        with("both_counts_from_the_last_answer", RULE_UDP_BOTH)
            .ticks(half)
            .comes(answer.clone(), CLIENT)
            .goes(udp.clone(), P1)
            .ticks(half)
            .goes(udp.clone(), P1)
            .ticks(half)
            .comes(answer.clone(), CLIENT),
        // A new flow on the tuple has a time of its own, also for the direction that has not answered yet.
        again(only_out("both_a_new_flow_begins_anew", RULE_UDP_BOTH))
            .ticks(seconds(240))
            .comes(answer.clone(), CLIENT),
        only_out("outbound_keeps_by_itself", RULE_UDP_OUTBOUND)
            .goes(udp.clone(), P1)
            .comes(answer.clone(), CLIENT),
        only_in("outbound_ignores_inbound", RULE_UDP_OUTBOUND).drops(Reason::FlowExpired),
        again(
            with("outbound_ends_despite_answers", RULE_UDP_OUTBOUND)
                .ticks(half)
                .comes(answer, CLIENT)
                .ticks(half + 1),
        ),
        // TCP has one timer for both.
        Case::new("directions_are_about_udp", World { rule_flags: RULE_UDP_BOTH, ..World::default() })
            .handshake(CLIENT, HTTP, P1)
            .ticks(half)
            .comes(Packet::tcp(HTTP, OUTER, ACK), CLIENT)
            .ticks(half + 1)
            .goes(Packet::tcp(CLIENT, HTTP, ACK), P1),
    ]
}

/// UDP timers by destination port.
fn by_port() -> Vec<Case> {
    let timer = |first, last, timeout| PortTimer { first, last, timeout: seconds(timeout) };
    let mut world = World::default();
    world.udp_ports[0] = timer(53, 53, 10);
    world.udp_ports[1] = timer(50, 60, 20);
    world.udp_ports[7] = timer(5000, 65_000, 600);
    let to = |name: &'static str, port: u16, timeout: u32| {
        let (out, answer) = (Packet::udp(CLIENT, (SERVER, port)), Packet::udp((SERVER, port), OUTER));
        Case::new(name, world.clone())
            .goes(out, P1)
            .opens(0, "udp")
            .ticks(seconds(timeout))
            .comes(answer.clone(), CLIENT)
            .ticks(seconds(timeout) + 1)
            .outside(answer)
            .drops(Reason::FlowExpired)
    };
    vec![
        to("port_53_has_10_seconds", 53, 10),
        to("port_52_has_20_seconds", 52, 20),
        to("port_60_has_20_seconds", 60, 20),
        to("port_61_has_what_others_have", 61, 240),
        to("port_5000_has_600_seconds", 5000, 600),
        to("port_65000_has_600_seconds", 65_000, 600),
        // The same port of TCP has TCP's timer.
        Case::new("ports_are_those_of_udp", world.clone())
            .handshake(CLIENT, (SERVER, 53), P1)
            .ticks(seconds(240))
            .comes(Packet::tcp((SERVER, 53), OUTER, ACK), CLIENT),
        // It is the destination's port, not the client's.
        Case::new("a_client_s_port_is_none_of_them", world)
            .goes(Packet::udp((WEB, 53), (SERVER, 61)), P1)
            .opens(0, "udp")
            .ticks(seconds(240))
            .comes(Packet::udp((SERVER, 61), OUTER), (WEB, 53)),
    ]
}

/// While a port rests, its flow is over for packets from outside; one from inside takes it up again, on the same port.
fn resting() -> Vec<Case> {
    let mut world = World::default();
    world.rests[TimerClass::Udp as usize] = seconds(600);
    world.rests[TimerClass::TcpEstablished as usize] = seconds(600);
    let udp = Packet::udp(CLIENT, DNS);
    let answer = Packet::udp(DNS, OUTER);
    let syn = Packet::tcp(CLIENT, HTTP, SYN);
    vec![
        Case::new("a_resting_flow_is_over", world.clone())
            .goes(udp.clone(), P1)
            .opens(0, "udp")
            .ticks(seconds(240) + 1)
            .outside(answer.clone())
            .drops(Reason::FlowExpired)
            .ticks(seconds(590))
            .outside(answer.clone())
            .drops(Reason::FlowExpired)
            .inside(udp.clone())
            .out(rewritten(&udp, FRONTEND, P1))
            .change("grant.0.udp.opened", 1)
            .comes(answer, CLIENT),
        Case::new("a_resting_connection_opens_again_by_syn_only", world)
            .handshake(CLIENT, HTTP, P1)
            .ticks(seconds(500))
            .inside(Packet::tcp(CLIENT, HTTP, ACK))
            .drops(Reason::FlowExpired)
            .inside(syn.clone())
            .out(rewritten(&syn, FRONTEND, P1))
            .change("grant.0.tcp.opened", 1),
    ]
}
