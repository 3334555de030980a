// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sweep in slices: bounded, complete, and harmless to what happens between them.

use nat_common::{
    abi::{
        config::{SWEEP_REMOVAL, SweepPass},
        counters::Reason,
    },
    net::timers::{GRACE, TimerClass},
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        sweep::Slices,
        world::{FRONTEND, SERVER, WEB},
    },
    packet::Packet,
};

/// Flows of a table that is swept in many slices.
const FLOWS: u16 = 1500;
/// Work of a slice.
const SLICE: u64 = 64;

fn udp(number: u16) -> Packet {
    Packet::udp((WEB, 1000), (SERVER, number))
}

/// Opens flows to as many ports of the server; where each was sent from.
fn open(lab: &Lab, numbers: std::ops::Range<u16>) -> Vec<(u16, u16)> {
    numbers.map(|number| (number, lab.open(&udp(number)).expect("runs").expect("sent"))).collect()
}

fn lab() -> Lab {
    Lab::new(World::default().blocks(64).table(4096, 4096, 0)).expect("lab")
}

/// Does the slices that are left, each within its bounds; `between` is called after each. How many there were.
fn bounded(lab: &mut Lab, slices: &mut Slices, mut between: impl FnMut(&mut Lab)) -> usize {
    let (mut count, mut before) = (0, lab.swept().expect("map"));
    loop {
        let more = slices.one().expect("a slice");
        let after = lab.swept().expect("map");
        let work = |pass: &SweepPass| pass.visited + SWEEP_REMOVAL * pass.reclaimed;
        let done = work(&after) - work(&before);
        assert!(done <= SLICE + SWEEP_REMOVAL, "slice {count}: {before:?} {after:?}");
        count += 1;
        if !more {
            return count;
        }
        assert!(done >= SLICE, "slice {count} ended early: {before:?} {after:?}");
        between(lab);
        before = lab.swept().expect("map");
    }
}

#[test]
fn slices_meet_every_flow_once() {
    let mut lab = lab();
    open(&lab, 0..FLOWS);
    for _ in 0..2 {
        let mut slices = lab.sweep_in_slices(SLICE).expect("sweep");
        let count = bounded(&mut lab, &mut slices, |_| ());
        let pass = lab.swept().expect("map");
        assert_eq!(pass.visited, 2 * u64::from(FLOWS));
        assert_eq!(pass.live[TimerClass::Udp as usize], u64::from(FLOWS));
        assert_eq!(count as u64, 2 * u64::from(FLOWS) / SLICE + 1);
    }
}

/// What is removed in a bucket before a slice ends there may hide a flow of the same bucket, till the next pass.
#[test]
fn slices_reclaim_everything_that_is_over() {
    let mut lab = lab();
    open(&lab, 0..FLOWS);
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    let mut slices = lab.sweep_in_slices(SLICE).expect("sweep");
    let count = bounded(&mut lab, &mut slices, |_| ()) as u64;
    let first = lab.swept().expect("map");
    assert!(count > u64::from(FLOWS) * (SWEEP_REMOVAL + 1) / (SLICE + SWEEP_REMOVAL), "{count}");
    let missed = u64::from(FLOWS) - first.reclaimed;
    assert!(missed <= count / 4, "{missed} of {FLOWS} missed in {count} slices");
    lab.audit().expect("both halves or none");
    pass_until_swept(&mut lab, u64::from(FLOWS));
    assert_eq!(lab.audit().expect("audit"), 0);
}

/// Passes until so many flows have been swept in all: what one hides from itself the next one meets, unless it hides it once more.
fn pass_until_swept(lab: &mut Lab, flows: u64) {
    let swept = |lab: &Lab| lab.maps.table.get(&0, 0).expect("table").swept;
    for _ in 0..5 {
        let mut slices = lab.sweep_in_slices(SLICE).expect("sweep");
        bounded(lab, &mut slices, |_| ());
        if swept(lab) >= flows {
            break;
        }
    }
    assert_eq!(swept(lab), flows);
}

#[test]
fn what_happens_between_slices_is_not_harmed() {
    let mut lab = lab();
    let live = open(&lab, 0..FLOWS / 2);
    lab.wait(tick::from_seconds(239)).expect("clock");
    // In use all the time, while the others end.
    for &(number, _) in &live {
        assert!(lab.open(&udp(number)).expect("runs").is_some());
    }
    let ended = open(&lab, 10_000..10_000 + FLOWS / 2).len() as u64;
    lab.wait(tick::from_seconds(120)).expect("clock");
    for &(number, _) in &live {
        assert!(lab.open(&udp(number)).expect("runs").is_some());
    }
    lab.wait(tick::from_seconds(120) + 1 + GRACE).expect("clock");
    let (mut next, mut opened) = (20_000, Vec::new());
    let mut slices = lab.sweep_in_slices(SLICE).expect("sweep");
    bounded(&mut lab, &mut slices, |lab| {
        opened.extend(open(lab, next..next + 5));
        next += 5;
        // Of those that are about to end, and those that have just come.
        let (number, port) = live[usize::from(next) % live.len()];
        let answer = Packet::udp((SERVER, number), (FRONTEND, port));
        assert_eq!(lab.send(1, &answer).expect("one verdict").reason, Reason::TranslatedIn);
    });
    assert!(opened.len() > 100, "{}", opened.len());
    pass_until_swept(&mut lab, ended);
    for (number, port) in live.into_iter().chain(opened) {
        let answer = Packet::udp((SERVER, number), (FRONTEND, port));
        let seen = lab.send(1, &answer).expect("one verdict");
        assert_eq!(seen.reason, Reason::TranslatedIn, "flow {number}");
    }
    lab.audit().expect("both halves or none");
}

/// A daemon that is killed in the middle of a pass leaves what it has not done to the next one, which begins anew.
#[test]
fn a_pass_that_is_not_finished_hinders_no_other() {
    let mut lab = lab();
    open(&lab, 0..FLOWS);
    lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
    let mut slices = lab.sweep_in_slices(SLICE).expect("sweep");
    for _ in 0..10 {
        assert!(slices.one().expect("a slice"));
    }
    let left = lab.swept().expect("map");
    assert!((1..u64::from(FLOWS) / 2).contains(&left.reclaimed), "{left:?}");
    drop(slices);
    pass_until_swept(&mut lab, u64::from(FLOWS));
    assert_eq!(lab.audit().expect("audit"), 0);
}

/// Two passes at once, as when a thread of one that is ending sweeps beside the next one's: each flow is removed once.
#[test]
fn two_passes_at_once_remove_each_flow_once() {
    let mut lab = lab();
    for round in 0..8 {
        open(&lab, 0..FLOWS);
        lab.wait(tick::from_seconds(240) + 1 + GRACE).expect("clock");
        let mut one = lab.sweep_in_slices(SLICE).expect("sweep");
        let mut other = lab.sweep_in_slices(SLICE).expect("sweep");
        // Side by side, so that they meet at the same flows.
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let sweeper = scope.spawn(|| {
                start.wait();
                one.all().expect("slices")
            });
            start.wait();
            other.all().expect("slices");
            sweeper.join().expect("no panic");
        });
        pass_until_swept(&mut lab, (round + 1) * u64::from(FLOWS));
        assert_eq!(lab.maps.table.get(&0, 0).expect("table").flows, 0, "round {round}");
        assert_eq!(lab.audit().expect("audit"), 0);
    }
}
