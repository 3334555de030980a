// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random packets through the data path and through a plain NAT on hash maps: they must agree about everything, after
//! every step.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use nat_common::{
    abi::{
        counters::Reason,
        flow::{FlowEntry, FlowKey, HALF_BURST, HALF_OUTBOUND},
    },
    tick,
};
use nat_tests::{
    harness::{
        Lab, World,
        drive::Seen,
        world::{DB, FIRST_PORT, FRONTEND, SERVER, SERVER2, WEB},
    },
    model::{Allowed, Key, Limits, Model, Transport},
    packet::{ACK, End, FIN, Packet, RST, SYN, UNREACHABLE},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

const MAX_FLOWS: u32 = 24;
const GUARANTEED: u32 = 8;
const BURST: u32 = 6;
const BACKENDS: [[u8; 4]; 2] = [WEB, DB];

#[derive(Clone, Debug)]
enum Step {
    Out(Key, u8),
    In(Transport, End, u16, u8),
    ErrorIn(Transport, End, u16),
    ErrorOut(Key),
    Wait(u32),
    Sweep,
}

fn destination(transport: Transport) -> impl Strategy<Value = End> {
    let port = match transport {
        Transport::Tcp => 80,
        Transport::Udp => 53,
        Transport::Ping => 0,
    };
    prop_oneof![3 => Just((SERVER, port)), 1 => Just((SERVER2, port))]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![3 => Just(Transport::Tcp), 2 => Just(Transport::Udp), 1 => Just(Transport::Ping)]
}

fn key() -> impl Strategy<Value = Key> {
    (transport(), 0..2usize, prop_oneof![1 => 1..12u16, 1 => 1..4u16]).prop_flat_map(
        |(transport, backend, port)| {
            let inner = (BACKENDS[backend], port);
            destination(transport).prop_map(move |destination| (transport, inner, destination))
        },
    )
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(SYN),
        5 => Just(ACK),
        3 => Just(SYN | ACK),
        4 => Just(FIN | ACK),
        1 => Just(RST),
        1 => Just(RST | ACK),
        1 => Just(SYN | FIN),
        1 => Just(0),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let outer = || {
        (transport(), 0..16u16).prop_flat_map(|(transport, offset)| {
            destination(transport).prop_map(move |end| (transport, end, FIRST_PORT + offset))
        })
    };
    // Around every timer: 15, 30, 60 and 240 s, with and without the grace that follows.
    let wait = prop_oneof![
        4 => 0..3u32,
        3 => prop::sample::select(vec![15u32, 30, 60, 120, 240]).prop_flat_map(|seconds| {
            let ticks = tick::from_seconds(seconds);
            ticks - 1..ticks + 7
        }),
    ];
    prop_oneof![
        12 => (key(), flags()).prop_map(|(key, flags)| Step::Out(key, flags)),
        6 => (outer(), flags()).prop_map(|((transport, end, port), flags)| Step::In(transport, end, port, flags)),
        1 => outer().prop_map(|(transport, end, port)| Step::ErrorIn(transport, end, port)),
        1 => key().prop_map(Step::ErrorOut),
        3 => wait.prop_map(Step::Wait),
        1 => Just(Step::Sweep),
    ]
}

fn outward((transport, inner, destination): Key, flags: u8) -> Packet {
    match transport {
        Transport::Tcp => Packet::tcp(inner, destination, flags),
        Transport::Udp => Packet::udp(inner, destination),
        Transport::Ping => Packet::ping(inner, destination.0),
    }
}

fn inward(transport: Transport, from: End, to: End, flags: u8) -> Packet {
    match transport {
        Transport::Tcp => Packet::tcp(from, to, flags),
        Transport::Udp => Packet::udp(from, to),
        Transport::Ping => Packet::pong(from.0, to),
    }
}

/// Compares, and tells the model which port a new flow got.
fn compare(model: &mut Model, step: &Step, allowed: &Allowed, seen: &Seen) -> Result<()> {
    match (allowed, step) {
        (Allowed::Verdict(reason), _) => {
            ensure!(seen.reason == *reason && seen.sent.is_none(), "{:?} instead of {reason:?}", seen.reason);
        }
        (Allowed::Opened(_, true), _) if seen.reason == Reason::NoFreePort => {}
        (Allowed::Opened(ports, _), Step::Out(key, flags)) => {
            ensure!(seen.reason == Reason::TranslatedOut, "{:?} instead of one of {ports:?}", seen.reason);
            let sent = seen.sent.as_ref().context("not sent")?;
            ensure!(ports.contains(&sent.source.1), "port {} is not one of {ports:?}", sent.source.1);
            ensure!((sent.source.0, sent.destination) == (FRONTEND, key.2), "{sent:?}");
            model.opened(*key, sent.source.1, *flags);
        }
        (Allowed::Sent(reason, end), _) => {
            ensure!(seen.reason == *reason, "{:?} instead of {reason:?}", seen.reason);
            let sent = seen.sent.as_ref().context("not sent")?;
            let (found, expected) = match step {
                Step::Out(key, _) => ((sent.source, sent.destination), ((FRONTEND, end.1), key.2)),
                Step::In(_, from, ..) => ((sent.source, sent.destination), (*from, *end)),
                Step::ErrorIn(_, from, _) => (sent.quoted.context("nothing quoted")?, (*end, *from)),
                Step::ErrorOut(key) => (sent.quoted.context("nothing quoted")?, (key.2, (FRONTEND, end.1))),
                Step::Wait(_) | Step::Sweep => bail!("not a packet"),
            };
            ensure!(found == expected, "{found:?} instead of {expected:?}");
        }
        (Allowed::Opened(..), _) => bail!("only a packet from inside opens a flow"),
    }
    Ok(())
}

fn run(lab: &mut Lab, model: &mut Model, step: &Step) -> Result<()> {
    let (allowed, slot, packet) = match step {
        Step::Wait(ticks) => {
            model.now += ticks;
            return lab.wait(*ticks);
        }
        Step::Sweep => {
            let expected = model.sweep();
            let before = lab.maps.all_flows()?;
            let found = lab.sweep(10_000)?;
            ensure!(
                found.reclaimed == expected as u64,
                "{found:?}, expected to reclaim {expected}, of\n{before:#?}"
            );
            return Ok(());
        }
        Step::Out(key, flags) => (model.out(*key, *flags), 0, outward(*key, *flags)),
        Step::In(transport, from, port, flags) => {
            let packet = inward(*transport, *from, (FRONTEND, *port), *flags);
            (model.inward(*transport, *from, *port, *flags), 1, packet)
        }
        Step::ErrorIn(transport, from, port) => {
            let quoted = outward((*transport, (FRONTEND, *port), *from), ACK);
            let packet = Packet::error(SERVER, UNREACHABLE, 1, &quoted);
            (model.error_in(*transport, *from, *port), 1, packet)
        }
        Step::ErrorOut(key) => {
            let quoted = inward(key.0, key.2, key.1, ACK);
            (model.error_out(key), 0, Packet::error(key.1.0, UNREACHABLE, 3, &quoted))
        }
    };
    let seen = lab.send(slot, &packet)?;
    compare(model, step, &allowed, &seen)
}

/// The flow table as the model would write it: port and whether it took from the common budget.
fn table(lab: &Lab) -> Result<BTreeMap<Key, (u16, bool)>> {
    let outbound = |(_, entry): &(FlowKey, FlowEntry)| entry.half & HALF_OUTBOUND != 0;
    let rows = lab.maps.all_flows()?.into_iter().filter(outbound).map(|(key, entry)| {
        let transport = match key.protocol {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            _ => Transport::Ping,
        };
        let inner = (key.source, u16::from_be_bytes(key.source_port));
        let destination = (key.destination, u16::from_be_bytes(key.destination_port));
        ((transport, inner, destination), (u16::from_be_bytes(entry.port), entry.half & HALF_BURST != 0))
    });
    Ok(rows.collect())
}

fn run_all(lab: &mut Lab, steps: &[Step]) -> Result<()> {
    lab.reset()?;
    let limits = Limits {
        max_flows: MAX_FLOWS as usize,
        guaranteed: GUARANTEED as usize,
        burst: BURST as usize,
        blocks: vec![(WEB, FIRST_PORT, 8), (DB, FIRST_PORT + 8, 8)],
        ticks: tick::from_seconds,
    };
    let mut model = Model::new(limits, lab.now);
    for (number, step) in steps.iter().enumerate() {
        let place = || format!("step {number}: {step:?}");
        run(lab, &mut model, step).with_context(place)?;
        lab.audit().with_context(place)?;
        let expected: BTreeMap<Key, (u16, bool)> =
            model.flows.iter().map(|(key, flow)| (*key, (flow.port, flow.burst))).collect();
        let found = table(lab)?;
        ensure!(found == expected, "{}\n  table {found:?}\n  model {expected:?}", place());
    }
    Ok(())
}

#[test]
fn the_data_path_and_the_model_agree() {
    let world = World::default().table(MAX_FLOWS, GUARANTEED, BURST);
    let lab = std::cell::RefCell::new(Lab::new(world).expect("lab"));
    // A fixed seed: the same sequences in every run. Which ports are drawn is random all the same.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: 150, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let steps = prop::collection::vec(step(), 20..160);
    let result = runner.run(&steps, |steps| {
        run_all(&mut lab.borrow_mut(), &steps).map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
