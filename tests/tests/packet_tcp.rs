// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sequence numbers in the flow table, and flows that the sweep hands to the daemon.

use std::collections::HashMap;

use aya::maps::{Map, MapData, RingBuf};
use nat_common::{
    abi::{
        config::banked,
        counters::Reason,
        event::IdleReset,
        flow::{FLOW_SEQUENCE, FlowEntry, HALF_OUTBOUND},
        grant::{RULE_FLOW_SHIFT, RULE_RESET_IDLE},
        names,
    },
    net::{
        reset::{self, End},
        sequence::WINDOW,
        state::TOLD,
        timers::GRACE,
    },
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{FRONTEND, SERVER, WEB},
    },
    packet::{ACK, FIN, PSH, Packet, RST, SYN},
};

const HTTP: ([u8; 4], u16) = (SERVER, 80);
const SEQUENCE: u32 = (FLOW_SEQUENCE as u32) << RULE_FLOW_SHIFT;
/// First numbers of backend and server.
const OUT: u32 = u32::MAX - 100;
const IN: u32 = 7000;

fn lab(flags: u32) -> Lab {
    Lab::new(World { rule_flags: flags, ..World::default().blocks(1024).table(4096, 4096, 0) }).expect("lab")
}

/// A segment of backend port `port`, and one of the server to SNAT port `outer`.
fn goes(lab: &Lab, port: u16, flags: u8, numbers: (u32, u32), data: usize) -> u16 {
    let packet = Packet::tcp((WEB, port), HTTP, flags).numbers(numbers.0, numbers.1).fill(data);
    let seen = lab.send(0, &packet).expect("one verdict");
    assert_eq!(seen.reason, Reason::TranslatedOut);
    seen.port().expect("sent")
}

fn comes(lab: &Lab, outer: u16, flags: u8, numbers: (u32, u32), data: usize) {
    let packet = Packet::tcp(HTTP, (FRONTEND, outer), flags).numbers(numbers.0, numbers.1).fill(data);
    assert_eq!(lab.send(1, &packet).expect("one verdict").reason, Reason::TranslatedIn);
}

fn handshake(lab: &Lab, port: u16) -> u16 {
    let outer = goes(lab, port, SYN, (OUT, 0), 0);
    comes(lab, outer, SYN | ACK, (IN, OUT + 1), 0);
    goes(lab, port, ACK, (OUT + 1, IN + 1), 0);
    outer
}

/// Both halves of the only flow, the outbound one first.
fn halves(lab: &Lab) -> [FlowEntry; 2] {
    let mut halves: Vec<FlowEntry> =
        lab.maps.all_flows().expect("flows").into_iter().map(|(_, entry)| entry).collect();
    halves.sort_by_key(|entry| entry.half & HALF_OUTBOUND == 0);
    halves.try_into().expect("one flow")
}

fn kept(lab: &Lab) -> [u32; 2] {
    halves(lab).map(|half| half.sequence)
}

/// Takes what the sweep has handed over.
fn handed_over(lab: &Lab) -> Vec<IdleReset> {
    let data = MapData::from_pin(lab.pins().join(names::RESETS)).expect("the ring buffer");
    let mut ring = RingBuf::try_from(Map::from_map_data(data).expect("a map")).expect("a ring buffer");
    let mut records = Vec::new();
    while let Some(record) = ring.next() {
        records.push(bytemuck::pod_read_unaligned(&record));
    }
    records
}

#[test]
fn the_next_number_of_each_side_is_kept() {
    let lab = lab(SEQUENCE);
    let outer = handshake(&lab, 1);
    assert_eq!(kept(&lab), [OUT + 1, IN + 1]);
    // Over the wrap, and a retransmission after it.
    goes(&lab, 1, PSH | ACK, (OUT + 1, IN + 1), 500);
    assert_eq!(kept(&lab), [OUT.wrapping_add(501), IN + 1]);
    goes(&lab, 1, PSH | ACK, (OUT + 1, IN + 1), 200);
    goes(&lab, 1, ACK, (OUT.wrapping_add(500), IN + 1), 0);
    assert_eq!(kept(&lab), [OUT.wrapping_add(501), IN + 1]);
    // IP and TCP options are no data.
    let options = Packet::tcp(HTTP, (FRONTEND, outer), ACK)
        .numbers(IN + 1, OUT.wrapping_add(501))
        .tcp_options(&[1; 12])
        .options(&[1; 8])
        .fill(30);
    assert_eq!(lab.send(1, &options).expect("one verdict").reason, Reason::TranslatedIn);
    assert_eq!(kept(&lab), [OUT.wrapping_add(501), IN + 31]);
    // Padding of the frame is none, either.
    let padded = Packet::tcp(HTTP, (FRONTEND, outer), ACK).numbers(IN + 31, 0).padded();
    assert_eq!(lab.send(1, &padded).expect("one verdict").reason, Reason::TranslatedIn);
    assert_eq!(kept(&lab)[1], IN + 31);
    comes(&lab, outer, FIN | ACK, (IN + 31, OUT.wrapping_add(501)), 10);
    assert_eq!(kept(&lab)[1], IN + 42);
}

#[test]
fn strays_do_not_move_what_is_kept() {
    let lab = lab(SEQUENCE);
    let outer = handshake(&lab, 1);
    for far in [WINDOW + 2, 1 << 30, 1 << 31, u32::MAX - 1] {
        comes(&lab, outer, ACK, (IN.wrapping_add(far), 0x4444_4444), 0);
        assert_eq!(kept(&lab)[1], IN + 1, "{far:#x}");
    }
    comes(&lab, outer, RST, (IN + 500, 0), 0);
    comes(&lab, outer, SYN, (IN + 500, 0), 0);
    assert_eq!(kept(&lab), [OUT + 1, IN + 1]);
    // One that acknowledges what the backend has sent is the connection's own.
    comes(&lab, outer, ACK, (IN + 5 * WINDOW, OUT + 1), 3);
    assert_eq!(kept(&lab)[1], IN + 5 * WINDOW + 3);
}

#[test]
fn numbers_are_kept_only_where_they_are_asked_for() {
    let without = lab(RULE_RESET_IDLE);
    handshake(&without, 1);
    assert_eq!(kept(&without), [0, 0]);
    let with = lab(SEQUENCE);
    with.send(0, &Packet::udp((WEB, 1), HTTP)).expect("one verdict");
    assert_eq!(halves(&with).map(|half| half.flags & FLOW_SEQUENCE), [0, 0], "of UDP");
}

#[test]
fn an_idle_flow_is_handed_over_once_and_reclaimed_later() {
    let mut lab = lab(SEQUENCE | RULE_RESET_IDLE);
    let outer = handshake(&lab, 1);
    goes(&lab, 1, PSH | ACK, (OUT + 1, IN + 1), 40);
    comes(&lab, outer, PSH | ACK, (IN + 1, OUT + 41), 50);
    let [out, back] = halves(&lab);
    lab.wait(tick::from_seconds(240)).expect("clock");
    lab.sweep(100).expect("sweep");
    assert!(handed_over(&lab).is_empty(), "it is alive");
    lab.wait(1).expect("clock");
    lab.sweep(100).expect("sweep");
    assert!(handed_over(&lab).is_empty(), "somebody may have found it alive a moment ago");
    lab.wait(1).expect("clock");
    let found = lab.sweep(100).expect("sweep");
    assert_eq!((found.reclaimed, found.pending), (0, 1));
    let records = handed_over(&lab);
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.key.source, record.key.destination), (WEB, SERVER));
    assert_eq!((record.address, u16::from_be_bytes(record.port)), (FRONTEND, outer));
    assert_eq!(record.sequences, [OUT + 41, IN + 51]);
    assert_eq!((record.slots, record.epochs), ([out.slot, back.slot], [out.epoch, back.epoch]));
    assert_eq!(record.next_hops, [out.next_hop, back.next_hop]);
    assert_eq!(halves(&lab).map(|half| half.state & TOLD), [TOLD, TOLD]);
    assert_eq!(lab.maps.table.get(&0, 0).expect("table").told, 1);
    // Once: neither while it waits, nor when it goes.
    lab.wait(GRACE - 2).expect("clock");
    assert_eq!(lab.sweep(100).expect("sweep").reclaimed, 0);
    lab.wait(1).expect("clock");
    assert_eq!(lab.sweep(100).expect("sweep").reclaimed, 1);
    assert!(handed_over(&lab).is_empty());
    assert_eq!(lab.audit().expect("audit"), 0);
}

#[test]
fn only_open_connections_that_ended_idle_are_handed_over() {
    let mut lab = lab(SEQUENCE | RULE_RESET_IDLE);
    goes(&lab, 1, SYN, (OUT, 0), 0);
    let reset = handshake(&lab, 2);
    comes(&lab, reset, RST, (IN + 1, 0), 0);
    let closed = handshake(&lab, 3);
    goes(&lab, 3, FIN | ACK, (OUT + 1, IN + 1), 0);
    comes(&lab, closed, FIN | ACK, (IN + 1, OUT + 2), 0);
    handshake(&lab, 4);
    goes(&lab, 4, FIN | ACK, (OUT + 1, IN + 1), 0);
    handshake(&lab, 5);
    lab.send(0, &Packet::udp((WEB, 6), HTTP)).expect("one verdict");
    lab.wait(tick::from_seconds(240) + 2).expect("clock");
    lab.sweep(100).expect("sweep");
    let ports = |records: Vec<IdleReset>| {
        let mut ports: Vec<u16> =
            records.iter().map(|record| u16::from_be_bytes(record.key.source_port)).collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(handed_over(&lab)), [4, 5]);
    // And not without the rule's wish.
    let mut off = self::lab(SEQUENCE);
    handshake(&off, 1);
    off.wait(tick::from_seconds(240) + 2).expect("clock");
    off.sweep(100).expect("sweep");
    assert!(handed_over(&off).is_empty());
}

#[test]
fn a_new_connection_after_the_handing_over_is_alive() {
    let mut lab = lab(SEQUENCE | RULE_RESET_IDLE);
    let outer = handshake(&lab, 1);
    lab.wait(tick::from_seconds(240) + 2).expect("clock");
    lab.sweep(100).expect("sweep");
    assert_eq!(handed_over(&lab).len(), 1);
    let late = Packet::tcp(HTTP, (FRONTEND, outer), ACK);
    assert_eq!(lab.send(1, &late).expect("one verdict").reason, Reason::FlowExpired);
    assert_eq!(goes(&lab, 1, SYN, (9, 0), 0), outer, "on its port");
    comes(&lab, outer, SYN | ACK, (5, 10), 0);
    goes(&lab, 1, ACK, (10, 6), 0);
    assert_eq!((kept(&lab), halves(&lab)[0].state & TOLD), ([10, 6], 0));
    lab.wait(tick::from_seconds(240) + 2).expect("clock");
    lab.sweep(100).expect("sweep");
    assert_eq!(handed_over(&lab)[0].sequences, [10, 6], "its own end is told, too");
}

/// What a rule asks for after a reload holds for new connections, also on the tuple of one that is over.
#[test]
fn a_new_connection_on_an_old_tuple_asks_its_rule_again() {
    let mut lab = lab(0);
    let outer = handshake(&lab, 1);
    comes(&lab, outer, RST, (IN + 1, 0), 0);
    let index = banked(0, 0);
    let mut rule = lab.maps.rules.get(&index, 0).expect("the rule");
    rule.flags |= SEQUENCE;
    lab.maps.rules.set(index, rule, 0).expect("the rule");
    goes(&lab, 1, ACK, (OUT + 1, IN + 1), 0);
    assert_eq!((kept(&lab), halves(&lab).map(|half| half.flags)), ([0, 0], [0, 0]), "the old one");
    goes(&lab, 1, SYN, (900, 0), 0);
    comes(&lab, outer, SYN | ACK, (500, 901), 0);
    assert_eq!((kept(&lab), halves(&lab).map(|half| half.flags)), ([901, 501], [FLOW_SEQUENCE; 2]));
}

/// More flows than the buffer has room for: what is taken from it makes room, what nobody takes is given up, and nothing
/// stays in the table.
#[test]
fn a_full_buffer_delays_and_does_not_keep() {
    const FLOWS: u16 = 600;
    let mut lab = lab(SEQUENCE | RULE_RESET_IDLE);
    let mut taken: HashMap<u16, u32> = HashMap::new();
    let mut told = 0;
    let mut round = |lab: &mut Lab, take: bool| {
        for port in 1..=FLOWS {
            handshake(lab, port);
        }
        lab.wait(tick::from_seconds(240) + 2).expect("clock");
        lab.sweep(10_000).expect("sweep");
        told += u64::from(FLOWS);
        if take {
            for record in handed_over(lab) {
                *taken.entry(u16::from_be_bytes(record.key.source_port)).or_default() += 1;
            }
        }
        lab.wait(GRACE).expect("clock");
        lab.sweep(10_000).expect("sweep");
        assert_eq!(lab.audit().expect("audit"), 0);
        assert_eq!(lab.maps.table.get(&0, 0).expect("table").told, told);
    };
    round(&mut lab, true);
    // 8,192 records at most: fourteen rounds without a reader fill it.
    for _ in 0..13 {
        round(&mut lab, false);
    }
    assert!(taken.len() == usize::from(FLOWS) && taken.values().all(|times| *times == 1));
    for port in 1..=FLOWS {
        handshake(&lab, port);
    }
    lab.wait(tick::from_seconds(240) + 2).expect("clock");
    let found = lab.sweep(10_000).expect("sweep");
    let table = lab.maps.table.get(&0, 0).expect("table");
    assert_eq!((found.reclaimed, table.untold), (0, 0));
    let waiting = u64::from(FLOWS) - (table.told - told);
    assert!(waiting > 0, "there was room for all: {table:?}");
    // Those that were told go at their time; the others wait for the reader, and not for ever.
    lab.wait(GRACE).expect("clock");
    lab.sweep(10_000).expect("sweep");
    assert_eq!(lab.audit().expect("audit") as u64, waiting);
    lab.wait(64).expect("clock");
    lab.sweep(10_000).expect("sweep");
    assert_eq!(lab.audit().expect("audit"), 0);
    assert_eq!(lab.maps.table.get(&0, 0).expect("table").untold, waiting);
}

#[test]
fn a_made_reset_is_as_another_library_makes_it() {
    let from = End { address: FRONTEND, port: 1031u16.to_be_bytes() };
    let to = End { address: SERVER, port: 80u16.to_be_bytes() };
    for numbers in [(0, 0), (0x0102_0304, 0xfffe_fdfc), (u32::MAX, 1)] {
        let mut ip = etherparse::Ipv4Header::new(20, 64, etherparse::IpNumber::TCP, FRONTEND, SERVER)
            .expect("a header");
        ip.dont_fragment = true;
        ip.header_checksum = ip.calc_header_checksum();
        let mut tcp = etherparse::TcpHeader::new(1031, 80, numbers.0, 0);
        (tcp.rst, tcp.ack, tcp.acknowledgment_number) = (true, true, numbers.1);
        tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[]).expect("a short segment");
        let expected = [ip.to_bytes().to_vec(), tcp.to_bytes().to_vec()].concat();
        assert_eq!(reset::packet(from, to, numbers.0, numbers.1).to_vec(), expected);
    }
}
