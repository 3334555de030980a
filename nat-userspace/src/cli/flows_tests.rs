// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::{
    cli::snapshot::{self, JSON, TABLE, parsed},
    view::example,
};

fn shown(format: Format, presence: Presence, words: &[&str]) -> Vec<u8> {
    let instance = example::instance();
    let args: Args = parsed(words).expect("right options");
    let filter = args.filter(&instance).expect("a backend");
    let mut flows = example::joined(&instance, &filter);
    let mut out = Vec::new();
    print(&mut out, format, &args, &instance, presence, &mut flows).expect("memory");
    out
}

#[test]
fn table() {
    snapshot::check("flows.txt", &shown(TABLE, Presence::Up, &["--all"]));
    snapshot::check(
        "flows_down.txt",
        &shown(TABLE, Presence::Down(75), &["--backend", "db1", "--limit", "1"]),
    );
    snapshot::check("flows_none.txt", &shown(TABLE, Presence::Up, &["--destination", "192.0.2.1"]));
}

#[test]
fn json() {
    snapshot::check("flows.json", &shown(JSON, Presence::Up, &["--all"]));
    let none = shown(JSON, Presence::Up, &["--destination", "192.0.2.1"]);
    assert_eq!(none, b"[]\n");
}

#[test]
fn json_has_all_flows_and_tables_the_first() {
    let limit = |words: &[&str], json| parsed::<Args>(words).expect("right options").limit(json);
    assert_eq!((limit(&[], true), limit(&[], false)), (None, Some(100)));
    assert_eq!((limit(&["--limit=0"], true), limit(&["--limit=0"], false)), (None, None));
    assert_eq!((limit(&["--limit=7"], true), limit(&["--limit=7"], false)), (Some(7), Some(7)));
}

#[test]
fn destinations_are_addresses_networks_and_ports() {
    let parsed = |text| destination(text).map(|to| (to.network.to_string(), to.port));
    assert_eq!(parsed("198.51.100.1"), Ok(("198.51.100.1/32".to_owned(), None)));
    assert_eq!(parsed("198.51.100.1:443"), Ok(("198.51.100.1/32".to_owned(), Some(443))));
    assert_eq!(parsed("198.51.100.0/24"), Ok(("198.51.100.0/24".to_owned(), None)));
    assert_eq!(parsed("198.51.100.0/24:53"), Ok(("198.51.100.0/24".to_owned(), Some(53))));
    for wrong in [
        "",
        "web",
        "198.51.100",
        "198.51.100.1:",
        "198.51.100.1:65536",
        "198.51.100.0/33",
        "::1",
        "1.2.3.4:5:6",
    ] {
        assert!(destination(wrong).is_err_and(|text| text.contains("ADDR/LEN:PORT")), "{wrong}");
    }
}

#[test]
fn wrong_options_say_what_would_be_right() {
    for (words, right) in [
        (
            ["--state", "open"],
            "expected one of handshake, established, half-closed, closed, reset, udp, icmp, other, expired",
        ),
        (["--protocol", "sctp"], "expected tcp, udp, icmp or other"),
        (["--destination", "web"], "198.51.100.0/24:443"),
        (["--sort", "size"], "possible values: idle, bytes, packets, created"),
        (["--name", "../etc"], "1 to 32 letters"),
        (["--watch=0", "--json"], "expected seconds from 0.1 to 86400"),
    ] {
        let error = parsed::<Args>(&words).expect_err(words[1]);
        assert!(error.to_string().contains(right), "{words:?}: {error}");
        assert_eq!(error.exit_code(), 2);
    }
    let args: Args = parsed(&["--backend", "db9"]).expect("a name like any other");
    let error = args.filter(&example::instance()).expect_err("nobody has that name");
    assert_eq!(
        error.to_string(),
        "no backend `db9` in instance `default`: expected an IPv4 address or a name (`db1`)"
    );
    assert_eq!(crate::cli::exit_code(&error), ExitCode::from(2));
}
