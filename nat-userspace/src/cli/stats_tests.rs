// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::{
    cli::snapshot::{self, JSON, TABLE},
    view::example,
};

fn stats() -> Stats {
    let reading = Reading::of(&example::counters());
    Stats::new(&example::instance(), &reading, reading.judge(&reading))
}

fn shown(all: bool, presence: Presence, stats: &Stats) -> Vec<u8> {
    let mut out = Vec::new();
    print(&mut out, TABLE, all, presence, stats).expect("memory");
    out
}

#[test]
fn tables() {
    snapshot::check("stats.txt", &shown(false, Presence::Up, &stats()));
    snapshot::check("stats_all.txt", &shown(true, Presence::Down(4000), &stats()));
    let mut earlier = stats();
    earlier.packets_seen -= 5000;
    earlier.bytes_seen -= 5_000_000;
    earlier.verdicts.0[Reason::TranslatedOut as usize] -= 5000;
    snapshot::check("stats_rates.txt", &shown(false, Presence::Up, &stats().since(&earlier, 2.0)));
}

#[test]
fn json() {
    let mut out = Vec::new();
    render::document(&mut out, &stats(), JSON.one_line).expect("memory");
    snapshot::check("stats.json", &out);
    let document: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    let verdicts = document["verdicts"].as_object().expect("an object");
    assert_eq!(verdicts.len(), Reason::ALL.len(), "zeros are not left out");
    let sum: u64 = verdicts.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(Some(sum), document["packets_seen"].as_u64());
}

#[test]
fn what_does_not_add_up_is_said_loudly() {
    let mut stats = stats();
    stats.integrity = crate::view::stats::Integrity { unaccounted: 7, consistent: false };
    let text = String::from_utf8(shown(false, Presence::Up, &stats)).expect("text");
    assert!(text.contains("do NOT add up: 7 packets seen have none"), "{text}");
    stats.integrity = crate::view::stats::Integrity { unaccounted: -2, consistent: true };
    let text = String::from_utf8(shown(false, Presence::Up, &stats)).expect("text");
    assert!(text.contains("packets in flight (-2)"), "{text}");
}
