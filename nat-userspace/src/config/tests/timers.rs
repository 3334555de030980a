// SPDX-License-Identifier: MIT OR Apache-2.0
//! Profiles of timers: what documentation, code and configuration say is the same.

use nat_common::net::{
    profiles::{PROFILES, Timers},
    timers::Refresh,
};

use super::*;
use crate::config::timeouts::seconds_of;

const TEXT: &str = "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n[[frontend]]\nname = 'fe'\n\
                    addresses = ['203.0.113.10']\n[[pool]]\nname = 'p'\nbackends = ['10.0.0.4']\n\
                    [[outbound_rule]]\nname = 'r'\npool = 'p'\nfrontends = ['fe']\nother_protocols = ['gre']\n";

fn timers(more: &str) -> RuleTimers {
    let (gateway, warnings) =
        parse(NAME, format!("{TEXT}{more}\n")).unwrap_or_else(|error| panic!("{error}"));
    assert!(warnings.is_empty(), "{}", warnings[0]);
    gateway.rules[0].timers.clone()
}

/// `30 s`, or a word of `udp_refresh`.
fn cell(timers: &Timers, key: &str) -> String {
    match seconds_of(timers, key) {
        Some(seconds) => format!("{seconds} s"),
        None => {
            let name = Refresh::ALL.into_iter().find(|(_, refresh)| *refresh == timers.refresh);
            name.map(|(name, _)| name.to_owned()).expect("a word for it")
        }
    }
}

#[test]
fn the_table_of_profiles_is_what_the_code_has() {
    let text = fs::read_to_string(Path::new(ROOT).join("../docs/timers.md")).expect("documentation");
    let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
    let text: &'static str = text.leak();
    let mut lines = text.lines().skip_while(|line| !line.starts_with("| key |"));
    let head = cells(lines.next().expect("the table's head"));
    let names: Vec<&str> = head[2..6].iter().map(|name| name.trim_matches('`')).collect();
    assert_eq!(names, PROFILES.map(|(name, _)| name));
    let mut found = 0;
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let row = cells(line);
        let key = row[1].trim_matches('`');
        for ((name, timers), said) in PROFILES.iter().zip(&row[2..6]) {
            assert_eq!(*said, cell(timers, key), "`{key}` of `{name}`");
            found += 1;
        }
    }
    assert_eq!(found, 4 * 11, "every key has a row");
}

#[test]
fn a_profile_is_what_its_name_says() {
    for (name, profile) in PROFILES {
        let found = timers(&format!("[outbound_rule.timeouts]\nprofile = '{name}'"));
        assert_eq!(found, RuleTimers { timers: profile, udp_ports: Vec::new() }, "{name}");
    }
    assert_eq!(timers(""), timers("[outbound_rule.timeouts]\nprofile = 'azure-lb'"));
}

#[test]
fn every_key_changes_its_own_timer_only() {
    let keys = [
        "half_open",
        "established",
        "half_closed",
        "after_fin",
        "after_rst",
        "after_idle",
        "udp",
        "after_udp",
        "icmp",
        "other",
    ];
    for changed in keys {
        let found = timers(&format!("[outbound_rule.timeouts]\nprofile = 'rfc'\n{changed} = '17s'"));
        let (_, rfc) = PROFILES[3];
        for key in keys {
            let wanted = if key == changed { Some(17) } else { seconds_of(&rfc, key) };
            assert_eq!(seconds_of(&found.timers, key), wanted, "`{changed}` given, `{key}` read");
        }
        assert_eq!(found.timers.refresh, rfc.refresh);
    }
    let idle = timers("idle_timeout = '30m'\n[outbound_rule.timeouts]\nprofile = 'rfc'");
    assert_eq!(idle.established(), 1800);
}

#[test]
fn ports_keep_their_order() {
    let found = timers(
        "[outbound_rule.timeouts]\nudp_refresh = 'both'\n\
         udp_ports = [{ ports = [5353, 53], timeout = '10s' }, { ports = ['1-100'], timeout = '1m' }]",
    );
    let of = |first, last, timeout| PortTimeout { ports: PortRange { first, last }, timeout };
    assert_eq!(found.udp_ports, [of(53, 53, 10), of(5353, 5353, 10), of(1, 100, 60)]);
    assert_eq!(found.timers.refresh, Refresh::Both);
}
