// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow table when it is full, and who may have how much of it.

use nat_common::{
    abi::{
        config::CLASS_UDP,
        counters::Reason,
        flow::{FlowEntry, FlowKey},
    },
    net::timers::GRACE,
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        world::{DB, SERVER, WEB},
    },
    ledger::Ledger,
    packet::Packet,
};

fn udp(backend: [u8; 4], port: u16) -> Packet {
    Packet::udp((backend, port), (SERVER, 53))
}

fn reason(lab: &Lab, packet: &Packet) -> Reason {
    lab.send(0, packet).expect("one verdict").reason
}

#[test]
fn a_full_table_refuses_and_evicts_nothing() {
    let lab = Lab::new(World::default().blocks(64).table(16, 1000, 0)).expect("lab");
    for number in 1..=16 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut, "flow {number}");
    }
    let before = Ledger::read(&lab).expect("ledger");
    let packet = udp(DB, 1);
    assert_eq!(reason(&lab, &packet), Reason::TableFull);
    let length = packet.packet().len() + 14;
    let mut expected = Ledger::packet(Reason::TableFull, length);
    expected.add("grant.1.udp.refused_table", 1);
    let found = Ledger::read(&lab).expect("ledger").since(&before);
    assert_eq!(expected.difference(&found), "");
    for number in 1..=16 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut, "flow {number} is still there");
    }
    assert_eq!(lab.audit().expect("audit"), 16);
}

#[test]
fn room_for_one_half_is_no_room() {
    let mut lab = Lab::new(World::default().blocks(64).table(4, 1000, 0)).expect("lab");
    // One element is taken, so that seven are left: three flows, and a half.
    let foreign = FlowKey { protocol: 253, ..FlowKey::default() };
    lab.maps.flows.insert(foreign, FlowEntry::default(), 0).expect("one element");
    for number in 1..=3 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut);
    }
    for number in 4..=9 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TableFull);
    }
    assert_eq!(lab.grant(0, CLASS_UDP).expect("counts"), [3, 3, 0, 6]);
    lab.maps.flows.remove(&foreign).expect("it is still there");
    assert_eq!(lab.audit().expect("no half is left behind"), 3);
    assert_eq!(reason(&lab, &udp(WEB, 4)), Reason::TranslatedOut);
}

#[test]
fn a_full_table_has_room_again_after_a_sweep() {
    let mut lab = Lab::new(World::default().blocks(64).table(16, 1000, 0)).expect("lab");
    for round in 0..4 {
        for number in 1..=16 {
            assert_eq!(reason(&lab, &udp(WEB, round * 100 + number)), Reason::TranslatedOut);
        }
        assert_eq!(reason(&lab, &udp(WEB, round * 100 + 17)), Reason::TableFull);
        lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
        assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 16);
    }
    assert_eq!(lab.audit().expect("audit"), 0);
}

#[test]
fn a_backend_cannot_take_another_s_share() {
    // Four flows for each of the two, two more for whoever comes first.
    let mut lab = Lab::new(World::default().blocks(64).table(10, 4, 2)).expect("lab");
    for number in 1..=6 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut, "flow {number}");
    }
    for number in 7..=20 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TableShare);
    }
    assert_eq!(lab.grant(0, CLASS_UDP).expect("counts"), [6, 6, 0, 14]);
    assert_eq!(lab.maps.table.get(&0, 0).expect("table").burst, 2);
    for number in 1..=4 {
        assert_eq!(reason(&lab, &udp(DB, number)), Reason::TranslatedOut, "the other's flow {number}");
    }
    assert_eq!(reason(&lab, &udp(DB, 5)), Reason::TableShare);
    assert_eq!(lab.audit().expect("audit"), 10);
    // What is over comes back to where it was taken from.
    lab.wait(tick::from_seconds(240)).expect("clock");
    for number in 1..=4 {
        assert_eq!(reason(&lab, &udp(DB, number)), Reason::TranslatedOut);
    }
    lab.wait(1 + GRACE).expect("clock");
    assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 6);
    assert_eq!(lab.audit().expect("audit"), 4);
    for number in 5..=6 {
        assert_eq!(reason(&lab, &udp(DB, number)), Reason::TranslatedOut, "the common budget is back");
    }
    assert_eq!(reason(&lab, &udp(DB, 7)), Reason::TableShare);
    for number in 1..=4 {
        assert_eq!(reason(&lab, &udp(WEB, 30 + number)), Reason::TranslatedOut);
    }
    assert_eq!(lab.audit().expect("audit"), 10);
}

/// The guarantee is for as many flows at any time, not for the first ones.
#[test]
fn what_a_backend_gives_back_of_its_guarantee_it_gets_again() {
    let mut lab = Lab::new(World::default().blocks(64).table(10, 4, 2)).expect("lab");
    for number in 1..=6 {
        assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut);
    }
    for round in 0..3 {
        // All but two go on; those two were opened within the guarantee.
        lab.wait(tick::from_seconds(200)).expect("clock");
        let over = [1 + 10 * round, 2 + 10 * round];
        for number in 3..=6 {
            assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut);
        }
        lab.wait(tick::from_seconds(40) + 1 + GRACE).expect("clock");
        assert_eq!(lab.sweep(1000).expect("sweep").reclaimed, 2, "flows {over:?}");
        for number in [11 + 10 * round, 12 + 10 * round] {
            assert_eq!(reason(&lab, &udp(WEB, number)), Reason::TranslatedOut, "flow {number}");
        }
        assert_eq!(reason(&lab, &udp(WEB, 99)), Reason::TableShare);
        assert_eq!(lab.audit().expect("audit"), 6);
    }
}
