// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits under several CPUs: never exceeded, and every count right afterwards.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use nat_common::{
    abi::{
        counters::Reason,
        grant::{Destination, Limits, Quota, quota_index},
    },
    net::timers::GRACE,
    tick,
};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World, together,
        world::{DB, FRONTEND, SERVER, WEB},
    },
    packet::{ACK, FIN, Packet, RST, SYN, verify::verify},
};

const THREADS: usize = 2;

fn counted(lab: &Lab, reason: Reason) -> u64 {
    lab.maps.sum_counters().expect("counters").packets[reason as usize]
}

fn frame(lab: &Lab, slot: usize, packet: &Packet) -> Vec<u8> {
    packet.clone().link(arriving(&lab.world, slot, packet)).frame()
}

/// Everything ends: what is left is nothing.
fn ends(lab: &mut Lab) {
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    lab.sweep(u64::MAX).expect("sweep");
    assert_eq!(lab.audit().expect("audit"), 0);
    for backend in 0..2 {
        let quota = lab.maps.quota.get(&quota_index(backend, false), 0).expect("quota");
        assert_eq!(quota, Quota { due: quota.due, ..Quota::default() });
    }
    let flows: Vec<u64> = lab.maps.towards.iter().map(|row| row.expect("towards").1.flows).collect();
    assert!(flows.iter().all(|flows| *flows == 0), "{flows:?}");
}

/// Both want the last places of every kind at once: as many as the limit says get one, no more and no fewer.
#[test]
fn the_last_places_of_every_limit() {
    const MOST: u32 = 16;
    let mut bounded = Limits::default();
    bounded.destinations[0] =
        Destination { classes: 0b111, reserved: 0, max_flows: MOST, ..Destination::default() };
    for (what, limits, refusal) in [
        ("max_flows", Limits { max_flows: MOST, ..Limits::default() }, Reason::FlowLimit),
        ("max_half_open", Limits { max_half_open: MOST, ..Limits::default() }, Reason::HalfOpenLimit),
        ("destination", bounded, Reason::DestinationLimit),
        (
            "rate",
            Limits { interval: 1 << 40, tolerance: u64::from(MOST) << 40, ..Limits::default() },
            Reason::RateLimit,
        ),
        ("max_ports", Limits { max_ports: MOST, ..Limits::default() }, Reason::PortCap),
    ] {
        let world = World { limits: Some(limits), ..World::default().blocks(256).table(4096, 4096, 0) };
        let mut lab = Lab::new(world).expect("lab");
        for round in 0..20 {
            let frames: Vec<Vec<Vec<u8>>> = (0..THREADS)
                .map(|thread| {
                    let port = |number| (WEB, 1 + 1000 * thread as u16 + number);
                    let to = (SERVER, 80);
                    (0..40).map(|number| frame(&lab, 0, &Packet::tcp(port(number), to, SYN))).collect()
                })
                .collect();
            let before = counted(&lab, refusal);
            let opened: usize = together(&lab, THREADS, |thread| {
                let sent = |frame: &&Vec<u8>| lab.run(0, frame).expect("runs").action == Action::Redirect;
                frames[thread].iter().filter(sent).count()
            })
            .into_iter()
            .sum();
            let refused = counted(&lab, refusal) - before;
            assert_eq!(opened as u64 + refused, 80, "{what}, round {round}: refused for another reason");
            assert_eq!(lab.audit().expect("audit"), opened, "{what}, round {round}");
            // Who oversteps takes back what it took, and meanwhile another may have been refused: then there is room.
            assert!(opened <= MOST as usize, "{what}, round {round}: {opened} of {MOST}");
            let mut more = 0;
            while lab.open(&Packet::tcp((WEB, 5000 + more), (SERVER, 80), SYN)).expect("runs").is_some() {
                more += 1;
            }
            assert_eq!(opened + usize::from(more), MOST as usize, "{what}, round {round}");
            if what == "rate" {
                lab.wait((MOST << 11) + 1).expect("clock");
                lab.sweep(u64::MAX).expect("sweep");
            } else {
                ends(&mut lab);
            }
        }
    }
}

/// Both open the same flow: one of them gives back what it counted.
#[test]
fn the_same_flow_at_once_counts_once() {
    const FLOWS: usize = 6000;
    let limits = Limits { max_flows: 60_000, max_half_open: 60_000, max_ports: 60_000, ..Limits::default() };
    let world = World { limits: Some(limits), ..World::default().blocks(8192).table(16_384, 16_384, 0) };
    let mut lab = Lab::new(world).expect("lab");
    let frames: Vec<Vec<u8>> =
        (1..=FLOWS).map(|port| frame(&lab, 0, &Packet::tcp((WEB, port as u16), (SERVER, 80), SYN))).collect();
    let steps = [AtomicUsize::new(0), AtomicUsize::new(0)];
    together(&lab, THREADS, |thread| {
        for (number, frame) in frames.iter().enumerate() {
            steps[thread].store(number + 1, Ordering::Release);
            for spins in 0u32.. {
                if steps[1 - thread].load(Ordering::Acquire) > number {
                    break;
                }
                if spins > 2000 {
                    thread::yield_now();
                }
            }
            lab.run(0, frame).expect("runs");
        }
    });
    println!("opened by both at once: {}", lab.maps.sum_counters().expect("counters").same_flow_races);
    assert_eq!(lab.audit().expect("audit"), FLOWS);
    let quota = lab.maps.quota.get(&quota_index(0, false), 0).expect("quota");
    assert_eq!((quota.flows, quota.half_open), (FLOWS as u64, FLOWS as u64));
    ends(&mut lab);
}

/// Connections begin, are established, close, are reset and begin again, on two threads and under the sweep, with every
/// limit within reach.
#[test]
fn everything_at_once() {
    let mut limits =
        Limits { max_flows: 45, max_half_open: 5, max_ports: 6, reserved: 5, ..Limits::default() };
    limits.destinations[0] = Destination {
        address: [192, 0, 2, 1],
        mask: [255; 4],
        classes: 0b111,
        reserved: 5,
        ..Destination::default()
    };
    let world = World { limits: Some(limits), ..World::default().blocks(64).table(1024, 40, 20) };
    let mut lab = Lab::new(world).expect("lab");
    for round in 0..90u32 {
        lab.sweep(u64::MAX).expect("sweep");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let lab = &lab;
            let workers: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || worker(lab, thread))).collect();
            let sweeper = scope.spawn(|| {
                let _entered = lab.namespace.enter().expect("the namespace");
                while !done.load(Ordering::Relaxed) {
                    lab.sweep_again().expect("sweep");
                }
            });
            for worker in workers {
                worker.join().expect("no panic");
            }
            done.store(true, Ordering::Relaxed);
            sweeper.join().expect("no panic");
        });
        lab.audit().unwrap_or_else(|error| panic!("round {round}: {error:#}"));
        // The next round starts among flows that have just expired, or are just about to.
        lab.wait([3, tick::from_seconds(15), tick::from_seconds(30) + round % 9][round as usize % 3])
            .expect("clock");
    }
    for reason in [Reason::FlowLimit, Reason::HalfOpenLimit, Reason::PortCap, Reason::TableShare] {
        println!("{reason:?}: {}", counted(&lab, reason));
    }
    assert!(counted(&lab, Reason::HalfOpenLimit) > 0 && counted(&lab, Reason::PortCap) > 0);
    ends(&mut lab);
}

fn worker(lab: &Lab, thread: usize) {
    let _entered = lab.namespace.enter().expect("the namespace");
    for number in 0..250u16 {
        let backend = if number % 3 == 0 { DB } else { WEB };
        let client = (backend, 1 + (number * 7 + thread as u16) % 23);
        let host = 1 + u8::try_from(number % 5).expect("small");
        let server = ([192, 0, 2, host], 80);
        lab.open(&Packet::udp(client, server)).expect("runs");
        let outcome = lab.run(0, &frame(lab, 0, &Packet::tcp(client, server, SYN))).expect("runs");
        if outcome.action != Action::Redirect {
            continue;
        }
        let outer = verify(&outcome.frame).expect("valid").source.1;
        let comes = |flags| {
            let packet = Packet::tcp(server, (FRONTEND, outer), flags);
            lab.run(1, &frame(lab, 1, &packet)).expect("runs");
        };
        let goes = |flags| {
            lab.run(0, &frame(lab, 0, &Packet::tcp(client, server, flags))).expect("runs");
        };
        match number % 4 {
            0 => comes(RST | ACK),
            1 => {
                comes(SYN | ACK);
                goes(ACK);
                goes(FIN | ACK);
                comes(FIN | ACK);
            }
            2 => goes(RST),
            _ => {}
        }
    }
}
