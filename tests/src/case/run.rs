// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs cases and says everything about the first step of each that went wrong.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Case, Expect, I1, Input, P1, Step,
    answer::{self, Answer},
    arriving, leaving,
};
use crate::{
    harness::{Action, Lab, Outcome},
    ledger::Ledger,
    packet::{Packet, diff::diff, verify::verify},
    pcap,
};

/// Runs every case, those of equal worlds one after the other in one lab.
///
/// # Panics
///
/// When a case fails, after all have been run; the message has all failures.
pub fn run_all(cases: &[Case]) {
    let mut failures = Vec::new();
    let mut labs: Vec<Lab> = Vec::new();
    for case in cases {
        if labs.last().is_none_or(|lab| lab.world != case.world) {
            labs.clear();
            labs.push(Lab::new(case.world.clone()).expect("the lab is built"));
        }
        let lab = labs.last_mut().expect("just built");
        if let Err(error) = lab.reset().and_then(|()| run(lab, case)) {
            failures.push(format!("{}: {error:#}", case.name));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases failed:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// Placeholder ports and what they turned out to stand for.
type Bindings = HashMap<u16, u16>;

fn run(lab: &mut Lab, case: &Case) -> Result<()> {
    let mut bindings = Bindings::new();
    let mut frames = Vec::new();
    let mut before = Ledger::read(lab)?;
    for (number, step) in case.steps.iter().enumerate() {
        lab.wait(step.wait)?;
        let frame = input(lab, step, &bindings);
        frames.push(frame.clone());
        let outcome = lab.run(step.slot, &frame)?;
        frames.push(outcome.frame.clone());
        let after = Ledger::read(lab)?;
        let verdict = judge(lab, step, &frame, &outcome, &mut bindings).and_then(|()| {
            let mut expected = Ledger::packet(step.reason, frame.len());
            for (row, change) in &step.changes {
                expected.add(row, *change);
            }
            let difference = expected.difference(&after.since(&before));
            ensure!(difference.is_empty(), "the ledger:\n{difference}");
            ensure!(after.adds_up(), "verdicts do not add up to packets seen");
            Ok(())
        });
        if let Err(error) = verdict {
            let path = pcap::write(case.name, &frames)?;
            let changes = after.since(&before);
            bail!(
                "step {}: {error:#}\n  found: {:?}, {:?}\n  frames: {}",
                number + 1,
                outcome.action,
                changes.0,
                path.display()
            );
        }
        before = after;
    }
    lab.audit().context("after the last step")?;
    Ok(())
}

fn input(lab: &Lab, step: &Step, bindings: &Bindings) -> Vec<u8> {
    match &step.input {
        Input::Frame(frame) => frame.clone(),
        Input::Packet(packet) => incoming(lab, step.slot, packet, bindings),
        Input::Patched(packet, patches) => {
            let mut frame = incoming(lab, step.slot, packet, bindings);
            for (at, bytes) in patches {
                frame[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            frame
        }
    }
}

fn incoming(lab: &Lab, slot: usize, packet: &Packet, bindings: &Bindings) -> Vec<u8> {
    let mut packet = packet.clone();
    fill_in(&mut packet, bindings);
    if packet.link.is_none() {
        packet.link = Some(arriving(&lab.world, slot, &packet));
    }
    packet.frame()
}

/// Replaces placeholders by what they stand for.
fn fill_in(packet: &mut Packet, bindings: &Bindings) {
    packet.map_ports(&mut |port| bindings.get(&port).copied().unwrap_or(port));
    packet.map_ids(&mut |id| bindings.get(&id).copied().unwrap_or(id));
}

fn judge(lab: &Lab, step: &Step, frame: &[u8], outcome: &Outcome, bindings: &mut Bindings) -> Result<()> {
    let action = |wanted: &[Action]| -> Result<()> {
        ensure!(wanted.contains(&outcome.action), "{:?} instead of {wanted:?}", outcome.action);
        Ok(())
    };
    match &step.expect {
        Expect::Sent(slot, packet) => {
            let same = lab.world.ports[*slot].lower == lab.world.ports[step.slot].lower;
            action(if same { &[Action::Tx, Action::Redirect] } else { &[Action::Redirect] })?;
            let mut packet = packet.as_ref().clone();
            bind(lab, &packet, &outcome.frame, bindings)?;
            fill_in(&mut packet, bindings);
            if packet.link.is_none() {
                packet.link = Some(leaving(&lab.world, *slot, &packet));
            }
            same_frame(&packet.frame(), &outcome.frame)
        }
        Expect::PassedAs(packet) => {
            action(&[Action::Pass])?;
            let mut packet = packet.as_ref().clone();
            bind_id(&packet, &outcome.frame, bindings)?;
            fill_in(&mut packet, bindings);
            if packet.link.is_none() {
                packet.link = Some(arriving(&lab.world, step.slot, &packet));
            }
            same_frame(&packet.frame(), &outcome.frame)
        }
        Expect::Dropped => {
            action(&[Action::Drop])?;
            same_frame(frame, &outcome.frame)
        }
        Expect::Passed => {
            action(&[Action::Pass])?;
            same_frame(frame, &outcome.frame)
        }
        Expect::Answered(kind, code, rest, source) => {
            action(&[Action::Tx, Action::Redirect])?;
            let answer = Answer { frame, message: (*kind, *code, *rest), source: *source };
            answer.check(&outcome.frame).map_err(anyhow::Error::msg)
        }
        Expect::Reset => {
            action(&[Action::Tx, Action::Redirect])?;
            answer::check_reset(frame, &outcome.frame).map_err(anyhow::Error::msg)
        }
    }
}

/// Learns what a placeholder in the expected source stands for, and checks that the backend may use it.
fn bind(lab: &Lab, expected: &Packet, found: &[u8], bindings: &mut Bindings) -> Result<()> {
    bind_id(expected, found, bindings)?;
    let placeholder = expected.source.1;
    if placeholder < P1 || bindings.contains_key(&placeholder) {
        return Ok(());
    }
    let parsed = verify(found).map_err(anyhow::Error::msg).context("the frame that was sent")?;
    let (address, port) = parsed.source;
    let granted = lab.world.backends.iter().any(|backend| {
        let mut runs = backend.ports.iter().flatten();
        runs.any(|(on, first, count)| *on == address && port >= *first && port - first < *count)
    });
    ensure!(granted, "sent from {address:?}:{port}, which no backend was granted");
    bindings.insert(placeholder, port);
    Ok(())
}

/// Learns what a placeholder for an identification stands for, and that no other stands for the same.
fn bind_id(expected: &Packet, found: &[u8], bindings: &mut Bindings) -> Result<()> {
    let placeholder = expected.id;
    if !(I1..P1).contains(&placeholder) || bindings.contains_key(&placeholder) {
        return Ok(());
    }
    let parsed = verify(found).map_err(anyhow::Error::msg).context("the frame that was sent")?;
    let id = u16::from_be_bytes([parsed.packet[4], parsed.packet[5]]);
    let taken = bindings.iter().any(|(other, value)| (I1..P1).contains(other) && *value == id);
    ensure!(!taken, "identification {id:#06x} a second time");
    bindings.insert(placeholder, id);
    Ok(())
}

fn same_frame(expected: &[u8], found: &[u8]) -> Result<()> {
    ensure!(expected == found, "{}", diff(expected, found));
    Ok(())
}
