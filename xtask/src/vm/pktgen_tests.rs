// SPDX-License-Identifier: MIT OR Apache-2.0
//! pktgen: cycles of flows, the script word by word, results.
use std::collections::HashSet;

use super::*;

fn plan(cycle: Cycle, threads: u32) -> Plan {
    Plan {
        device: "eth0".to_owned(),
        gateway_mac: "02:00:00:00:00:02".to_owned(),
        source: Ipv4Addr::new(10, 0, 1, 1),
        destination: Ipv4Addr::new(10, 128, 0, 1),
        cycle,
        packets: 100_001,
        rate: Some(30_000),
        frame: 60,
        threads,
        burst: 1,
    }
}

/// What mod_cur_headers of the kernel's net/core/pktgen.c does with each packet: every field one on, from its lowest
/// value again after its highest.
fn tuples(cycle: Cycle) -> impl Iterator<Item = (u32, u32, u32)> {
    let Cycle { backends, ports, destinations } = cycle;
    (1_u32..).map(move |n| (n % backends, n % ports, n % destinations))
}

#[test]
fn a_cycle_has_exactly_the_flows_that_were_asked_for() {
    for flows in [1, 7, 50, 256, 1000, 60_000, 65_520] {
        let cycle = Cycle::of(flows).expect("that many flows can be had");
        let seen: HashSet<_> = tuples(cycle).take(3 * flows as usize).collect();
        assert_eq!(seen.len(), flows as usize, "{cycle:?}");
    }
}

#[test]
fn no_port_is_shared_between_backends_and_none_has_more_than_its_block() {
    for cycle in [Cycle::of(60_000).expect("exact"), Cycle::of(1_000_000).expect("exact"), Cycle::NEW_FLOWS] {
        let mut owner = vec![None; cycle.ports as usize];
        for (backend, port, _) in tuples(cycle).take(2 * cycle.ports as usize) {
            assert_eq!(*owner[port as usize].get_or_insert(backend), backend, "{cycle:?}");
        }
        for backend in 0..cycle.backends {
            let ports = owner.iter().filter(|port| **port == Some(backend)).count();
            assert!(ports <= PORTS_PER_BACKEND as usize, "{cycle:?}: {ports}");
        }
    }
}

#[test]
fn new_flows_do_not_repeat_within_a_cycle() {
    let seen: HashSet<_> = tuples(Cycle::NEW_FLOWS).take(Cycle::NEW_FLOWS.flows() as usize).collect();
    assert_eq!(seen.len(), Cycle::NEW_FLOWS.flows() as usize);
}

#[test]
fn flows_that_cannot_be_had_are_answered_with_some_that_can() {
    // A power of two has no divisors without a common one: all ports or all destinations.
    let error = Cycle::of(65_536).expect_err("neither so many ports nor so many destinations").to_string();
    let near: u32 = error.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number at the end");
    assert!(near > 65_000 && Cycle::of(near).is_ok(), "{error}");
}

#[test]
fn the_script_is_as_it_was_reviewed() {
    let text = plan(Cycle { backends: 50, ports: 20_000, destinations: 3 }, 1).script();
    let expected = "\
set -eu
p=/proc/net/pktgen
[ -d $p ] || modprobe pktgen
w() { echo \"$2\" > \"$p/$1\" || { echo \"pktgen refuses '$2' for $1\" >&2; exit 1; }; }
clear() { for t in $p/kpktgend_*; do echo rem_device_all > \"$t\"; done; }
trap 'echo stop > $p/pgctrl; clear; exit 1' INT TERM HUP
clear
w kpktgend_0 \"add_device eth0\"
w eth0 \"count 100001\"
w eth0 \"clone_skb 0\"
w eth0 \"burst 1\"
w eth0 \"pkt_size 60\"
w eth0 \"delay 0\"
w eth0 \"dst_mac 02:00:00:00:00:02\"
w eth0 \"src_min 10.0.1.1\"
w eth0 \"src_max 10.0.1.50\"
w eth0 \"dst_min 10.128.0.1\"
w eth0 \"dst_max 10.128.0.3\"
w eth0 \"udp_src_min 1024\"
w eth0 \"udp_src_max 21024\"
w eth0 \"udp_dst_min 9000\"
w eth0 \"udp_dst_max 9000\"
w eth0 \"flag UDPCSUM\"
w eth0 \"ratep 30000\"
p=/proc/net/pktgen
echo start > $p/pgctrl
for d in eth0; do echo \"$d\"; sed -n '/^Result/,$p' \"$p/$d\"; done
for t in $p/kpktgend_*; do echo rem_device_all > \"$t\"; done
";
    assert_eq!(text, expected);
}

#[test]
fn threads_share_packets_and_rate_and_have_destinations_of_their_own() {
    let text = plan(Cycle { backends: 50, ports: 100, destinations: 3 }, 2).script();
    for line in [
        "w kpktgend_0 \"add_device eth0@0\"",
        "w kpktgend_1 \"add_device eth0@1\"",
        "w eth0@0 \"count 50001\"",
        "w eth0@1 \"count 50000\"",
        "w eth0@0 \"dst_max 10.128.0.3\"",
        "w eth0@1 \"dst_min 10.128.0.4\"",
        "w eth0@1 \"queue_map_min 1\"",
        "w eth0@1 \"ratep 15000\"",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
    }
}

#[test]
fn results_are_read_and_anything_else_is_quoted() {
    let text = "Result: OK: 2000123(c1990000+d10123) usec, 200000 (60byte,0frags)\n  \
                99993pps 47Mb/sec (47996640bps) errors: 12\n";
    let sent = Sent::parse(text).expect("as the kernel writes it");
    assert_eq!(sent, Sent { packets: 200_000, microseconds: 2_000_123, errors: 12 });
    let error = Sent::parse("Result: Flag !SHARED unknown").expect_err("no success").to_string();
    assert!(error.ends_with("Flag !SHARED unknown"), "{error}");
}
