// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::{
    cli::snapshot::{self, JSON, TABLE, parsed},
    view::{example, flows::Join},
};

fn shown(format: Format, words: &[&str]) -> Vec<u8> {
    shown_of(&example::instance(), &example::specs(), format, words)
}

fn shown_of(instance: &Instance, specs: &[example::Spec], format: Format, words: &[&str]) -> Vec<u8> {
    let args: Args = parsed(words).expect("right options");
    let filter = Filter { backend: None, ..args.filter(instance).expect("a backend") };
    let mut join = Join::new(instance, &filter);
    specs.iter().flat_map(example::Spec::halves).for_each(|(key, entry)| join.add(&key, &entry));
    let ports = PortUse::of(instance, &join.finish().flows);
    let mut out = Vec::new();
    print(&mut out, format, &args, instance, Presence::Up, &ports).expect("memory");
    out
}

#[test]
fn tables() {
    snapshot::check("ports.txt", &shown(TABLE, &[]));
    snapshot::check("ports_db1.txt", &shown(TABLE, &["--backend", "db1", "--protocol", "tcp"]));
    snapshot::check("ports_by_destination.txt", &shown(TABLE, &["--by-destination", "--limit", "1"]));
}

#[test]
fn json() {
    snapshot::check("ports.json", &shown(JSON, &["--backend", "10.0.0.4"]));
    snapshot::check("ports_by_destination.json", &shown(JSON, &["--by-destination"]));
}

#[test]
fn shared_ports() {
    let held = |slot, source, number: u16, frontend| example::Spec {
        slot,
        source: (source, 100 + number),
        frontend,
        ..example::TCP
    };
    let mut specs: Vec<_> =
        (0..4).map(|n| held(0, example::BACKEND, n, (example::FRONTEND, 2048 + n))).collect();
    specs.push(held(1, example::DB1, 9, (example::SECOND, 4096)));
    let shown = |words: &[&str]| shown_of(&example::sharing(), &specs, TABLE, words);
    snapshot::check("ports_shared.txt", &shown(&[]));
    snapshot::check("ports_shared_by_destination.txt", &shown(&["--by-destination", "--backend", "db1"]));
}

#[test]
fn a_full_block_stands_out() {
    assert_eq!(share(8, 8), Cell(Paint::Bad, "100%".to_owned()));
    assert_eq!(share(7, 8), Cell(Paint::Notice, "88%".to_owned()));
    assert_eq!(share(1, 8), Cell(Paint::Plain, "13%".to_owned()));
    assert_eq!(share(0, 0), Cell(Paint::Plain, "0%".to_owned()));
}
