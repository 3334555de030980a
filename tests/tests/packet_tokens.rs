// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exactness under contention: every port of a set is taken, and several CPUs give one back and take one, again and
//! again. Whoever gives one back first is entitled to one: a refusal is a defect.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use nat_common::abi::{
    counters::Reason,
    names::{
        self,
        delay::{ANEW, LEAF_SEEN, ROOT_COPIED, ROOT_SET},
    },
};
use nat_tests::{
    case::arriving,
    harness::{
        Action, Lab, World,
        world::{Backend, DB, FRONTEND, Pool, SERVER, WEB},
    },
    packet::{Packet, RST, SYN},
};

const THREADS: usize = 3;

/// A new connection on the tuple of a reset one gives its port back at once and then takes any free one.
fn world(runs: Vec<([u8; 4], u16, u16)>) -> World {
    let none = |address| Backend { address, ports: [vec![], vec![], vec![]] };
    World {
        backends: vec![none(WEB), none(DB)],
        pools: vec![Pool { runs, ordered: false, backends: vec![WEB, DB] }],
        delay: ANEW,
        ..World::default().table(65_536, 32_768, 0)
    }
}

struct Frames {
    syn: Vec<u8>,
    rst: Vec<u8>,
}

fn frames(lab: &Lab, number: u16) -> Frames {
    let frame = |flags| {
        let packet =
            Packet::tcp((if number.is_multiple_of(2) { WEB } else { DB }, number), (SERVER, 80), flags);
        packet.clone().link(arriving(&lab.world, 0, &packet)).frame()
    };
    Frames { syn: frame(SYN), rst: frame(RST) }
}

/// Every one of `ports` flows is opened; then each thread resets its share of them and opens them again, `rounds` times.
fn churn(world: World, ports: u16, rounds: usize) {
    let lab = Lab::new(world).expect("lab");
    let all: Vec<Frames> = (1..=ports).map(|number| frames(&lab, number)).collect();
    for (number, flow) in all.iter().enumerate() {
        assert_eq!(lab.run(0, &flow.syn).expect("runs").action, Action::Redirect, "flow {number}");
    }
    let one_more = frames(&lab, ports + 1);
    assert_eq!(lab.run(0, &one_more.syn).expect("runs").action, Action::Drop, "there are no more ports");
    let (barrier, lost) = (Barrier::new(THREADS), AtomicU64::new(0));
    thread::scope(|scope| {
        for share in all.chunks(all.len().div_ceil(THREADS)) {
            let (lab, barrier, lost) = (&lab, &barrier, &lost);
            scope.spawn(move || {
                let _entered = lab.namespace.enter().expect("the namespace");
                barrier.wait();
                for _ in 0..rounds {
                    for flow in share {
                        assert_eq!(lab.run(0, &flow.rst).expect("runs").action, Action::Redirect);
                        // A verdict like `flow_race` may lose the packet, not the port: the sender repeats it.
                        let opened = (0..3).any(|_| {
                            let sent = lab.run(0, &flow.syn).expect("runs").action == Action::Redirect;
                            lost.fetch_add(u64::from(!sent), Ordering::Relaxed);
                            sent
                        });
                        assert!(opened, "no port, although one was given back");
                    }
                }
            });
        }
    });
    let counters = lab.maps.sum_counters().expect("counters");
    let refused =
        counters.packets[Reason::NoFreePort as usize] + counters.packets[Reason::SearchCut as usize];
    assert_eq!(refused, 1, "refusals; {} packets lost", lost.load(Ordering::Relaxed));
    assert_eq!(lab.run(0, &one_more.syn).expect("runs").action, Action::Drop, "there are no more ports");
    assert_eq!(lab.audit().expect("audit"), usize::from(ports));
}

/// The same with a wait in the window of each race in turn, and in several at once.
#[test]
fn with_a_wait_at_every_step() {
    let together = [LEAF_SEEN | ROOT_SET, LEAF_SEEN | ROOT_SET | ROOT_COPIED, 0xffff];
    for delay in names::delay::ALL.into_iter().chain(together) {
        println!("waiting at {delay:#b}");
        let runs = (1..=3u16).map(|leaf| (FRONTEND, leaf * 1024, 2)).collect();
        churn(World { delay: delay | ANEW, ..world(runs) }, 6, 4000);
    }
}

#[test]
fn a_small_block_at_a_hundred_percent() {
    churn(world(vec![(FRONTEND, 1024, 8)]), 8, 8000);
}

#[test]
fn a_leaf_at_a_hundred_percent() {
    churn(world(vec![(FRONTEND, 1024, 1024)]), 1024, 60);
}

#[test]
fn several_leaves_at_a_hundred_percent() {
    // Leaves of 8 ports: that they are full is said and unsaid all the time.
    let runs = (1..=8u16).map(|leaf| (FRONTEND, leaf * 1024, 8)).collect();
    churn(world(runs), 64, 1000);
}

#[test]
fn a_segment_over_many_leaves_at_a_hundred_percent() {
    churn(world(vec![(FRONTEND, 2000, 6000)]), 6000, 10);
}
