// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one backend's flood does to another one: its packets lost and its new flows refused, and what they cost, alone
//! and between the attacker's, in nanoseconds of single runs of the XDP program.

use std::fmt::Write as _;

use anyhow::ensure;
use serde::Serialize;

use super::{ports::median, signal};
use crate::{
    case::arriving,
    harness::{
        Action, Lab, World,
        world::{DB, SERVER, WEB},
    },
    packet::{ACK, Packet, SYN},
};

/// Packets of the attacker between two of the victim.
const BETWEEN: u32 = 16;
/// New flows that the victim opens, and packets of open ones that it sends.
const TURNS: u16 = 8000;
/// Flows of the victim that are open before.
const OPEN: u16 = 256;
/// Places in the table that each is guaranteed; as many are for both.
const GUARANTEED: u32 = 16_384;

/// One attack.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Packets of open flows that the victim sends, and flows that it opens.
    turns: u16,
    /// What the attacker does.
    attack: &'static str,
    /// Packets of the attacker.
    attacker_sent: u64,
    /// Of these, refused.
    attacker_refused: u64,
    /// Packets of the victim's open flows that were lost.
    established_lost: u64,
    /// New flows of the victim that were refused.
    new_refused: u64,
    /// Median ns of a packet of an open flow.
    established_ns: u64,
    /// Median ns of a new flow.
    new_ns: u64,
}

type Attack = fn(u32) -> Packet;

const ATTACKS: [(&str, Option<Attack>); 4] = [
    ("none", None),
    (
        "SYN flood",
        Some(|n| Packet::tcp((WEB, port(n, 50_000)), ([10, 201, (n >> 8) as u8, n as u8], 80), SYN)),
    ),
    ("port scan", Some(|n| Packet::tcp((WEB, 40_000), (SERVER, port(n, 65_535)), SYN))),
    ("exhausted destination", Some(|n| Packet::tcp((WEB, port(n, 65_535)), (SERVER, 80), SYN))),
];

const fn port(number: u32, most: u32) -> u16 {
    (1 + number % most) as u16
}

/// Measures every attack, with at most so many packets of the victim.
///
/// # Errors
///
/// When the kernel refuses to run the program.
pub(super) fn run(most: u64) -> anyhow::Result<Vec<Row>> {
    let turns = u16::try_from(most).unwrap_or(TURNS).min(TURNS);
    ATTACKS.into_iter().map(|(name, attack)| row(name, attack, turns)).collect()
}

fn row(name: &'static str, attack: Option<Attack>, turns: u16) -> anyhow::Result<Row> {
    signal::check()?;
    let world = World::default().blocks(16_384).table(4 * GUARANTEED, GUARANTEED, 2 * GUARANTEED);
    let lab = Lab::new(world)?;
    let frame = |packet: Packet| packet.clone().link(arriving(&lab.world, 0, &packet)).frame();
    let victim = |number, flags| frame(Packet::tcp((DB, number), (SERVER, 80), flags));
    for number in 1..=OPEN {
        ensure!(lab.run(0, &victim(number, SYN))?.action == Action::Redirect, "flow {number} of the victim");
    }
    let (mut sent, mut refused, mut lost, mut turned_away) = (0, 0, 0, 0);
    let (mut established, mut new) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        for _ in 0..BETWEEN {
            if let Some(attack) = attack {
                let action = lab.run(0, &frame(attack(sent as u32)))?.action;
                sent += 1;
                refused += u64::from(action != Action::Redirect);
            }
        }
        let (action, ns) = lab.timed(0, &victim(1 + turn % OPEN, ACK))?;
        lost += u64::from(action != Action::Redirect);
        established.push(ns);
        let (action, ns) = lab.timed(0, &victim(OPEN + 1 + turn, SYN))?;
        turned_away += u64::from(action != Action::Redirect);
        new.push(ns);
    }
    Ok(Row {
        turns,
        attack: name,
        attacker_sent: sent,
        attacker_refused: refused,
        established_lost: lost,
        new_refused: turned_away,
        established_ns: median(&mut established),
        new_ns: median(&mut new),
    })
}

/// The figures, in at most 100 columns.
pub(super) fn table(rows: &[Row]) -> String {
    let turns = rows.first().map_or(0, |row| row.turns);
    let mut text = format!(
        "\n{turns} packets of open flows and {turns} new flows of a backend, {BETWEEN} packets of another between two\n\n\
         {:<23}{:>9}{:>9}{:>14}{:>13}{:>16}{:>10}\n",
        "attack", "sent", "refused", "victim lost", "new refused", "established ns", "new ns"
    );
    for row in rows {
        let _infallible = writeln!(
            text,
            "{:<23}{:>9}{:>9}{:>14}{:>13}{:>16}{:>10}",
            row.attack,
            row.attacker_sent,
            row.attacker_refused,
            row.established_lost,
            row.new_refused,
            row.established_ns,
            row.new_ns
        );
    }
    text
}
