// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::{
    cli::snapshot::{self, JSON, TABLE, parsed},
    view::example,
};

fn shown(format: Format, words: &[&str]) -> Vec<u8> {
    let instance = example::instance();
    let args: Args = parsed(words).expect("right options");
    let filter = args.filter(&instance).expect("a backend");
    let flows = example::joined(&instance, &filter).flows;
    let ports = PortUse::of(&instance, &flows);
    let mut out = Vec::new();
    print(&mut out, format, &args, &instance, Presence::Up, &ports).expect("memory");
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
fn a_full_block_stands_out() {
    assert_eq!(share(8, 8), Cell(Paint::Bad, "100%".to_owned()));
    assert_eq!(share(7, 8), Cell(Paint::Notice, "88%".to_owned()));
    assert_eq!(share(1, 8), Cell(Paint::Plain, "13%".to_owned()));
    assert_eq!(share(0, 0), Cell(Paint::Plain, "0%".to_owned()));
}
