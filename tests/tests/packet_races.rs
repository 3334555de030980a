// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several threads in the data path at once. Whatever interleaving happens, the table must be whole afterwards.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use nat_common::{abi::counters::Reason, net::timers::GRACE, tick};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World, together,
        world::{DB, FIRST_PORT, FRONTEND, SERVER, WEB},
    },
    packet::{ACK, FIN, Packet, SYN, verify::verify},
};

const THREADS: usize = 4;

/// Lets two threads do their `number`th step at the same moment, as nearly as two CPUs can.
struct Lockstep([AtomicUsize; 2]);

impl Lockstep {
    fn wait(&self, thread: usize, number: usize) {
        self.0[thread].store(number + 1, Ordering::Release);
        for spins in 0u32.. {
            if self.0[1 - thread].load(Ordering::Acquire) > number {
                return;
            }
            // With a single CPU the other one has to be let in.
            if spins > 2000 {
                thread::yield_now();
            }
        }
    }
}

/// Verdicts that are no other thread's doing.
fn counted(lab: &Lab, reason: Reason) -> u64 {
    lab.maps.sum_counters().expect("counters").packets[reason as usize]
}

fn adds_up(lab: &Lab) {
    let counters = lab.maps.sum_counters().expect("counters");
    assert_eq!(counters.packets.iter().sum::<u64>(), counters.seen);
    assert_eq!(counters.bytes.iter().sum::<u64>(), counters.seen_bytes);
}

#[test]
fn everyone_opens_the_same_flows() {
    const FLOWS: u16 = 8000;
    let lab = Lab::new(World::default().blocks(8192).table(16_384, 16_384, 0)).expect("lab");
    let lockstep = Lockstep([AtomicUsize::new(0), AtomicUsize::new(0)]);
    // Frames are built beforehand, so that there is nothing between the starting signal and the program.
    let frames: Vec<Vec<u8>> = (1..=FLOWS)
        .map(|port| {
            let packet = Packet::udp((WEB, port), (SERVER, 53));
            packet.clone().link(arriving(&lab.world, 0, &packet)).frame()
        })
        .collect();
    let results = together(&lab, THREADS, |thread| -> Vec<Option<u16>> {
        let open = |(number, frame): (usize, &Vec<u8>)| {
            if thread < 2 {
                lockstep.wait(thread, number);
            }
            let outcome = lab.run(0, frame).expect("runs");
            let sent = outcome.action == Action::Redirect;
            sent.then(|| verify(&outcome.frame).expect("valid").source.1)
        };
        // Only two threads run in step; the others would keep them from it.
        if thread < 2 { frames.iter().enumerate().map(open).collect() } else { Vec::new() }
    });
    let results = &results[..2];
    println!("opened by both at once: {}", lab.maps.sum_counters().expect("counters").same_flow_races);
    for flow in 0..usize::from(FLOWS) {
        let ports: BTreeSet<u16> = results.iter().filter_map(|ports| ports[flow]).collect();
        assert_eq!(ports.len(), 1, "flow {flow} got {ports:?}");
    }
    let refused = counted(&lab, Reason::FlowRace) + counted(&lab, Reason::FlowRecycled);
    let lost = results.iter().flatten().filter(|port| port.is_none()).count();
    assert_eq!(lost as u64, refused, "lost for no other reason than a race");
    assert_eq!(lab.audit().expect("audit"), usize::from(FLOWS));
    adds_up(&lab);
}

#[test]
fn everyone_wants_the_last_ports() {
    const DESTINATIONS: u8 = 200;
    let lab = Lab::new(World::default().table(16_384, 16_384, 0)).expect("lab");
    let results = together(&lab, THREADS, |thread| {
        let mut got = Vec::new();
        for host in 0..DESTINATIONS {
            for number in 0..6 {
                let client = (WEB, 1 + 100 * thread as u16 + number);
                let destination = ([198, 18, 0, host], 9);
                if let Some(port) = lab.open(&Packet::udp(client, destination)).expect("runs") {
                    got.push((host, port));
                }
            }
        }
        got
    });
    let mut ports: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
    for (host, port) in results.into_iter().flatten() {
        assert!(ports.entry(host).or_default().insert(port), "{port} twice for host {host}");
    }
    for (host, ports) in &ports {
        assert_eq!(
            *ports,
            (FIRST_PORT..FIRST_PORT + 8).collect(),
            "host {host}: refused while a port was free"
        );
    }
    assert_eq!(ports.len(), usize::from(DESTINATIONS));
    assert_eq!(lab.audit().expect("audit"), 8 * usize::from(DESTINATIONS));
    let refused = counted(&lab, Reason::NoFreePort);
    assert_eq!(refused, (THREADS as u64 * 6 - 8) * u64::from(DESTINATIONS));
    adds_up(&lab);
}

#[test]
fn everyone_wants_the_last_places() {
    let mut lab = Lab::new(World::default().blocks(8192).table(512, 16_384, 0)).expect("lab");
    for round in 0..10 {
        let results = together(&lab, THREADS, |thread| {
            let client = |number| (if thread % 2 == 0 { WEB } else { DB }, 1 + 1000 * thread as u16 + number);
            let open = |number| lab.open(&Packet::udp(client(number), (SERVER, 53))).expect("runs");
            (0..400).filter_map(open).count()
        });
        let flows = lab.audit().expect("both halves or none");
        assert_eq!(flows, results.iter().sum::<usize>(), "round {round}");
        assert!(flows <= 512);
        // Threads that stood in each other's way may have left a place. It is not lost.
        let mut more = 0;
        while lab.open(&Packet::udp((WEB, 60_000 + more), (SERVER, 53))).expect("runs").is_some() {
            more += 1;
        }
        assert_eq!(lab.audit().expect("audit"), 512);
        lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
        assert_eq!(lab.sweep(10_000).expect("sweep").reclaimed, 512);
    }
    adds_up(&lab);
}

#[test]
fn both_ends_close_at_once() {
    let mut lab = Lab::new(World::default().blocks(1024).table(2048, 2048, 0)).expect("lab");
    let server = (SERVER, 80);
    let flows: Vec<(u16, u16)> = (1..=600)
        .map(|port| {
            let outer = lab.open(&Packet::tcp((WEB, port), server, SYN)).expect("runs").expect("sent");
            lab.send(1, &Packet::tcp(server, (FRONTEND, outer), SYN | ACK)).expect("one verdict");
            lab.send(0, &Packet::tcp((WEB, port), server, ACK)).expect("one verdict");
            (port, outer)
        })
        .collect();
    together(&lab, THREADS, |thread| {
        for (port, outer) in &flows {
            let slot = thread % 2;
            let packet = if slot == 0 {
                Packet::tcp((WEB, *port), server, FIN | ACK)
            } else {
                Packet::tcp(server, (FRONTEND, *outer), FIN | ACK)
            };
            let link = arriving(&lab.world, slot, &packet);
            lab.run(slot, &packet.link(link).frame()).expect("runs");
        }
    });
    for (key, entry) in lab.maps.all_flows().expect("flows") {
        use nat_common::net::state::{FIN_IN, FIN_OUT};
        assert_eq!(entry.state & (FIN_IN | FIN_OUT), FIN_IN | FIN_OUT, "{key:?} {entry:?}");
    }
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    assert_eq!(lab.sweep(10_000).expect("sweep").reclaimed, 600);
    adds_up(&lab);
}

/// One thread sweeps and lets time fly while the others open, use and let go of flows.
#[test]
fn flows_come_and_go_under_the_sweep() {
    let mut lab = Lab::new(World::default().table(1024, 1024, 0)).expect("lab");
    for round in 0..40 {
        // Arguments for every pass of this round: no limit that it could reach, and every second time in short slices.
        lab.sweep_in_slices(u64::from(round % 2) * 16).expect("sweep").all().expect("slices");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let lab = &lab;
            let workers: Vec<_> = (0..2u16)
                .map(|thread| {
                    scope.spawn(move || {
                        let _entered = lab.namespace.enter().expect("the namespace");
                        for number in 0..300u16 {
                            let client = (WEB, 1 + (number * 7 + thread) % 23);
                            let host = 1 + u8::try_from(number % 5).expect("small");
                            lab.open(&Packet::udp(client, ([192, 0, 2, host], 53))).expect("runs");
                            lab.open(&Packet::tcp(client, ([192, 0, 2, host], 80), SYN)).expect("runs");
                        }
                    })
                })
                .collect();
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
        adds_up(&lab);
        // The next round starts among flows that have just expired, or are just about to.
        lab.wait(tick::from_seconds(30) + round % 9).expect("clock");
    }
}
