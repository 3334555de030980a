// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ICMP errors do not do, whatever state their flow is in; and frames in several buffers.

use std::collections::BTreeMap;

use nat_common::{
    abi::{
        counters::Reason,
        flow::{FlowEntry, FlowKey},
        grant::protocol,
    },
    net::timers::{TimerClass, class_of},
};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World,
        world::{Backend, FIRST_PORT, FRONTEND, GATEWAY_INSIDE, GATEWAY_OUTSIDE, ROUTER, SERVER, WEB},
    },
    packet::{
        ACK, End, FIN, PARAMETER_PROBLEM, PSH, Packet, RST, SYN, TIME_EXCEEDED, UNREACHABLE, diff::diff,
        verify::verify,
    },
};

const CLIENT: End = (WEB, 40_000);
const HTTP: End = (SERVER, 80);
/// The only port.
const OUTER: End = (FRONTEND, FIRST_PORT);

/// One port, so that it is known.
fn world() -> World {
    let mut world = World { protocols: protocol::UDP_LITE, ..World::default() };
    world.backends[0] = Backend::paired(WEB, FIRST_PORT, 1);
    world
}

fn table(lab: &Lab) -> BTreeMap<Vec<u8>, (FlowKey, FlowEntry)> {
    let flows = lab.maps.all_flows().expect("flows");
    flows.into_iter().map(|(key, entry)| (bytemuck::bytes_of(&key).to_vec(), (key, entry))).collect()
}

/// RFC 5508 REQ-4…6, RFC 5382 REQ-9 and 10, RFC 4787 REQ-12: an error neither prolongs a flow, nor ends it, nor changes
/// anything of it.
#[test]
fn errors_change_nothing_of_a_flow_in_any_state() {
    let open = [(true, SYN), (false, SYN | ACK), (true, ACK)];
    let tcp = |more: &[(bool, u8)]| -> Vec<(bool, Packet)> {
        [&open[..], more].concat().into_iter().map(|(out, flags)| segment(out, flags)).collect()
    };
    let lives: [(TimerClass, Vec<(bool, Packet)>); 8] = [
        (TimerClass::TcpHandshake, vec![segment(true, SYN)]),
        (TimerClass::TcpEstablished, tcp(&[])),
        (TimerClass::TcpHalfClosed, tcp(&[(true, FIN | ACK)])),
        (TimerClass::TcpClosed, tcp(&[(true, FIN | ACK), (false, FIN | ACK)])),
        (TimerClass::TcpReset, tcp(&[(false, RST)])),
        (TimerClass::Udp, vec![(true, Packet::udp(CLIENT, HTTP)), (false, Packet::udp(HTTP, OUTER))]),
        (TimerClass::Icmp, vec![(true, Packet::ping(CLIENT, SERVER)), (false, Packet::pong(SERVER, OUTER))]),
        (TimerClass::Other, vec![(true, Packet::covered(CLIENT, HTTP, 136))]),
    ];
    let mut lab = Lab::new(world()).expect("lab");
    for (state, packets) in lives {
        lab.reset().expect("reset");
        for (outbound, packet) in &packets {
            let seen = lab.send(usize::from(!outbound), packet).expect("one verdict");
            assert!(seen.sent.is_some(), "{state:?}: {packet:?}: {seen:?}");
        }
        let before = table(&lab);
        let (_, first) = before.values().next().expect("a flow");
        assert_eq!(class_of(first.grant % 4, first.state & 0xffff), state);
        // In another tick, so that a touch would be seen.
        lab.wait(3).expect("time passes");
        let sent = packets[0].1.clone().from((FRONTEND, FIRST_PORT)).hop();
        let got = match &packets[0].1 {
            ping if state == TimerClass::Icmp => Packet::pong(SERVER, ping.source),
            other => other.clone().from(HTTP).to(CLIENT),
        };
        for (kind, code) in
            [(UNREACHABLE, 1), (UNREACHABLE, 3), (UNREACHABLE, 4), (TIME_EXCEEDED, 0), (PARAMETER_PROBLEM, 0)]
        {
            let inbound = lab.send(1, &Packet::error(ROUTER, kind, code, &sent)).expect("one verdict");
            assert_eq!(inbound.reason, Reason::IcmpErrorIn, "{state:?}");
            let outbound = lab.send(0, &Packet::error(WEB, kind, code, &got)).expect("one verdict");
            assert_eq!(outbound.reason, Reason::IcmpErrorOut, "{state:?}");
        }
        assert_eq!(table(&lab), before, "{state:?}");
        lab.audit().expect("audit");
    }
}

fn segment(outbound: bool, flags: u8) -> (bool, Packet) {
    (outbound, if outbound { Packet::tcp(CLIENT, HTTP, flags) } else { Packet::tcp(HTTP, OUTER, flags) })
}

/// A router may quote a packet whose UDP checksum is wrong, or zero: what is wrong stays wrong by as much, so that the
/// receiver sees what the router saw.
#[test]
fn a_wrong_quoted_checksum_stays_wrong_by_as_much() {
    let lab = Lab::new(world()).expect("lab");
    lab.send(0, &Packet::udp(CLIENT, HTTP)).expect("opens");
    let (sent, inner) = (Packet::udp(OUTER, HTTP).fill(33), Packet::udp(CLIENT, HTTP).fill(33));
    for off in [0u16, 1, 0x00ff, 0x8000, 0xfffe] {
        // The datagram as raw bytes: its checksum is the right one and `off` more (RFC 1071: with the carry).
        let raw = |packet: &Packet| {
            let bytes = packet.packet()[20..].to_vec();
            let sum = u32::from(u16::from_be_bytes([bytes[6], bytes[7]])) + u32::from(off);
            let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            [&bytes[..6], &sum.to_be_bytes(), &bytes[8..]].concat()
        };
        let quote = |packet: &Packet| {
            let carrier = Packet::other(packet.source.0, packet.destination.0, 17);
            Packet::error(ROUTER, UNREACHABLE, 1, &carrier.data(&raw(packet)))
        };
        let error = quote(&sent);
        let frame = error.clone().link(arriving(&lab.world, 1, &error)).frame();
        let outcome = lab.run(1, &frame).expect("runs");
        assert_eq!(outcome.action, Action::Redirect);
        let expected = quote(&inner).hop().packet();
        assert_eq!(expected, outcome.frame[14..], "{off:#x}: {}", diff(&expected, &outcome.frame[14..]));
    }
}

fn jumbo() -> World {
    world().mtu(0, 9000).mtu(1, 9000)
}

/// Nine thousand bytes are in three buffers here. They are translated, and counted whole.
#[test]
fn frames_in_several_buffers_are_translated_and_counted_whole() {
    let lab = Lab::new(jumbo()).expect("lab");
    let before = lab.maps.sum_counters().expect("counters");
    let mut bytes = 0;
    for length in [1400, 3400, 3472, 3500, 4096, 8000, 9000 - 28] {
        let out = Packet::udp(CLIENT, HTTP).fill(length).df();
        let seen = lab.send(0, &out).expect("one verdict");
        assert_eq!(seen.reason, Reason::TranslatedOut, "{length}");
        assert_eq!(seen.sent.expect("sent").packet, out.clone().from(OUTER).hop().packet(), "{length}");
        let back = Packet::udp(HTTP, OUTER).fill(length).df();
        let seen = lab.send(1, &back).expect("one verdict");
        assert_eq!(seen.sent.expect("sent").packet, back.to(CLIENT).hop().packet(), "{length}");
        bytes += 2 * (14 + 28 + length as u64);
    }
    let after = lab.maps.sum_counters().expect("counters");
    assert_eq!(after.seen_bytes - before.seen_bytes, bytes);
    assert_eq!(after.bytes.iter().sum::<u64>() - before.bytes.iter().sum::<u64>(), bytes);
    let of_halves: u64 = table(&lab).values().map(|(_, entry)| entry.bytes).sum();
    assert_eq!(of_halves, bytes - 14 * 14, "without Ethernet headers");
    lab.audit().expect("audit");
}

/// The gateway answers such frames, too: they shrink to what is quoted.
#[test]
fn frames_in_several_buffers_are_answered() {
    let lab = Lab::new(jumbo().mtu(1, 1500)).expect("lab");
    let big = Packet::udp(CLIENT, HTTP).fill(8000).df();
    let seen = lab.send(0, &big).expect("one verdict");
    assert_eq!(seen.reason, Reason::TooBig);
    let answer = seen.sent.expect("answered");
    assert_eq!(answer.icmp, Some((UNREACHABLE, 4, [0, 0, 5, 220])));
    assert_eq!((answer.source.0, answer.packet.len()), (GATEWAY_INSIDE, 56));
    let seen = lab.send(0, &Packet::udp(CLIENT, HTTP).fill(8000).ttl(1)).expect("one verdict");
    assert_eq!(seen.reason, Reason::TtlExceeded);
    assert_eq!(seen.sent.expect("answered").icmp, Some((TIME_EXCEEDED, 0, [0; 4])));
    // Outside to inside, where the link is the smaller one.
    let lab = Lab::new(jumbo().mtu(0, 1500)).expect("lab");
    lab.send(0, &Packet::udp(CLIENT, HTTP)).expect("opens");
    let seen = lab.send(1, &Packet::udp(HTTP, OUTER).fill(8000).df()).expect("one verdict");
    let answer = seen.sent.expect("answered");
    assert_eq!((answer.icmp, answer.source.0), (Some((UNREACHABLE, 4, [0, 0, 5, 220])), GATEWAY_OUTSIDE));
    assert_eq!(answer.quoted, Some((HTTP, OUTER)), "as the outside knows it");
}

/// A refused segment becomes its RST, with the length of all of its data acknowledged.
#[test]
fn a_segment_in_several_buffers_is_reset() {
    let lab = Lab::new(World { on_refusal: 3, guaranteed: 0, ..jumbo() }).expect("lab");
    let segment = Packet::tcp(CLIENT, HTTP, SYN | PSH).fill(8000);
    let seen = lab.send(0, &segment).expect("one verdict");
    assert_eq!(seen.reason, Reason::TableShare);
    let reset = seen.sent.expect("answered");
    assert_eq!((reset.source, reset.destination, reset.packet.len()), (HTTP, CLIENT, 40));
    let acknowledged = u32::from_be_bytes(reset.packet[28..32].try_into().expect("four bytes"));
    assert_eq!(acknowledged, 0x0102_0304 + 8000 + 1);
}

/// Errors that quote much, and lengths that lie, beyond the first buffer.
#[test]
fn errors_and_lies_in_several_buffers() {
    let lab = Lab::new(jumbo()).expect("lab");
    lab.send(0, &Packet::udp(CLIENT, HTTP)).expect("opens");
    let sent = Packet::udp(OUTER, HTTP).fill(8000);
    let error = Packet::error(ROUTER, UNREACHABLE, 1, &sent);
    let seen = lab.send(1, &error).expect("one verdict");
    assert_eq!(seen.reason, Reason::IcmpErrorIn);
    let expected = Packet::error(ROUTER, UNREACHABLE, 1, &sent.clone().from(CLIENT)).hop();
    assert_eq!(seen.sent.expect("sent").packet, expected.packet());
    let mut frame = error.clone().link(arriving(&lab.world, 1, &error)).frame();
    // The last byte, far beyond the first buffer.
    *frame.last_mut().expect("a byte") ^= 1;
    assert_eq!(lab.send_frame(1, &frame).expect("one verdict").reason, Reason::BadChecksum);
    let mut frame = sent.clone().link(arriving(&lab.world, 1, &sent)).frame();
    frame.truncate(frame.len() - 1);
    let before = lab.maps.sum_counters().expect("counters").seen_bytes;
    assert_eq!(lab.send_frame(1, &frame).expect("one verdict").reason, Reason::Malformed);
    // Not IPv4 either: counted whole all the same.
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(lab.send_frame(1, &frame).expect("one verdict").reason, Reason::NotIpv4);
    let seen = lab.maps.sum_counters().expect("counters").seen_bytes - before;
    assert_eq!(seen, 2 * frame.len() as u64);
    assert!(verify(&frame).is_err());
}
