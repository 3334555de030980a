// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guard: what the kernel itself would send outside.

use nat_common::abi::counters::Reason;
use nat_tests::{
    case::leaving,
    harness::{
        Lab, World,
        world::{DB, FRONTEND, GATEWAY_OUTSIDE, SERVER, SILENT, STRANGER, WEB},
    },
    ledger::Ledger,
    packet::{ACK, Packet, SYN, UNREACHABLE, diff::diff},
};

const OK: u32 = 0;
const SHOT: u32 = 2;
const CLIENT: ([u8; 4], u16) = (WEB, 40_000);

struct Stack {
    lab: Lab,
    inside: u32,
}

impl Stack {
    fn new() -> Self {
        Self::of(World::default())
    }

    fn of(world: World) -> Self {
        let lab = Lab::new(world).expect("lab");
        let inside = lab.namespace.index("lan0").expect("lan0");
        Self { lab, inside }
    }

    fn frame(&self, packet: &Packet) -> Vec<u8> {
        packet.clone().link(leaving(&self.lab.world, 1, packet)).frame()
    }

    /// The guard's decision about a packet that came in by `from`, its frame, and what was counted.
    fn sends(&self, from: u32, packet: &Packet) -> (u32, Vec<u8>, Ledger) {
        let before = Ledger::read(&self.lab).expect("ledger");
        let (action, frame) = self.lab.guard(1, from, &self.frame(packet)).expect("runs");
        (action, frame, Ledger::read(&self.lab).expect("ledger").since(&before))
    }

    fn passes_as_it_is(&self, from: u32, packet: &Packet) {
        let (action, frame, change) = self.sends(from, packet);
        assert_eq!(action, OK, "{packet:?}");
        assert_eq!(frame, self.frame(packet));
        assert_eq!(change, Ledger::default());
    }

    fn is_stopped(&self, packet: &Packet) {
        let (action, _, change) = self.sends(self.inside, packet);
        assert_eq!(action, SHOT, "{packet:?}");
        assert_eq!((change.get("guard_dropped"), change.0.len()), (1, 1), "{change:?}");
    }

    /// XDP leaves the packet to the stack; the guard translates it on its way out.
    fn is_translated(&self, packet: &Packet, class: u32) {
        self.becomes(packet, packet, class);
    }

    /// Likewise, and leaves as `clamped` would.
    fn becomes(&self, packet: &Packet, clamped: &Packet, class: u32) {
        let seen = self.lab.send(0, packet).expect("one verdict");
        assert_eq!(seen.reason, Reason::NeighbourUnresolved);
        let flows = self.lab.maps.all_flows().expect("flows");
        let half = flows.iter().map(|(key, entry)| (key, entry)).find(|(key, entry)| {
            (key.source, key.source_port) == (packet.source.0, packet.source.1.to_be_bytes())
                && entry.grant == class
        });
        let (_, half) = half.expect("the flow was opened");
        let port = u16::from_be_bytes(half.port);
        // The kernel has counted the hop already.
        let forwarded = packet.clone().hop();
        let (action, frame, change) = self.sends(self.inside, &forwarded);
        assert_eq!(action, OK);
        let expected = self.frame(&clamped.clone().hop().from((FRONTEND, port)));
        assert_eq!(frame, expected, "{}", diff(&expected, &frame));
        assert_eq!((change.get("guard_translated"), change.0.len()), (1, 1), "{change:?}");
    }
}

#[test]
fn what_waits_for_a_neighbour_leaves_translated() {
    let stack = Stack::new();
    let tcp = Packet::tcp(CLIENT, (SILENT, 80), SYN);
    stack.is_translated(&tcp.clone().tcp_options(&[2, 4, 5, 180]), 0);
    stack.is_translated(&tcp.clone().from((WEB, 40_001)).options(&[1; 12]).fill(5), 0);
    stack.is_translated(&Packet::udp(CLIENT, (SILENT, 53)), 1);
    stack.is_translated(&Packet::udp((WEB, 40_001), (SILENT, 53)).fill(0), 1);
    stack.is_translated(&Packet::udp((WEB, 40_002), (SILENT, 53)).no_checksum().fill(7), 1);
    stack.is_translated(&Packet::ping((WEB, 77), SILENT).fill(31), 2);
}

/// Other protocols likewise, and what does not fit is clamped here, too.
#[test]
fn other_protocols_that_wait_for_a_neighbour_leave_translated() {
    let stack = Stack::of(World { protocols: 0b1_1111, ..World::default() });
    for number in [136, 33] {
        let port = 100 * u16::from(number);
        let packet = |port| Packet::covered((WEB, port), (SILENT, 9), number);
        stack.is_translated(&packet(port), 3);
        stack.is_translated(&packet(port + 1).fill(501).options(&[1; 8]), 3);
    }
    stack.is_translated(&Packet::sctp((WEB, 40_003), (SILENT, 9)).fill(77), 3);
    stack.is_translated(&Packet::other(WEB, SILENT, 47), 3);
    let stack = Stack::of(World { protocols: 0b1_1111, ..World::default() });
    stack.is_translated(&Packet::other(WEB, SILENT, 50).options(&[1; 12]).fill(9), 3);
    stack.is_translated(&Packet::query((WEB, 5), (SILENT, 0), 13), 2);
}

#[test]
fn a_syn_that_waits_for_a_neighbour_leaves_clamped() {
    let stack = Stack::of(World { segment_size: Some(0), ..World::default() }.mtu(1, 1400).blocks(16));
    let syn = |options: &[u8]| Packet::tcp(CLIENT, (SILENT, 80), SYN).tcp_options(options).options(&[1; 8]);
    stack.becomes(&syn(&[2, 4, 5, 180]), &syn(&[2, 4, 5, 80]), 0);
    for before in 1..8 {
        let list = |low| [&vec![1; before][..], &[2, 4, 5, low], &vec![0; (4 - before % 4) % 4][..]].concat();
        let from = (WEB, 40_000 + u16::try_from(before).expect("small"));
        stack.becomes(&syn(&list(180)).from(from), &syn(&list(80)).from(from), 0);
    }
    stack.becomes(&syn(&[2, 4, 5, 80]).from((WEB, 1)), &syn(&[2, 4, 5, 80]).from((WEB, 1)), 0);
}

#[test]
fn what_the_host_itself_sends_is_its_own_business() {
    let stack = Stack::new();
    stack.passes_as_it_is(0, &Packet::udp((GATEWAY_OUTSIDE, 5), (SERVER, 53)));
    stack.passes_as_it_is(0, &Packet::tcp((FRONTEND, 5), (SERVER, 53), SYN));
    stack.passes_as_it_is(
        0,
        &Packet::error(GATEWAY_OUTSIDE, UNREACHABLE, 1, &Packet::udp((SERVER, 1), (FRONTEND, 2))),
    );
}

#[test]
fn what_comes_from_elsewhere_is_not_ours() {
    let stack = Stack::new();
    let outside = stack.lab.namespace.index("wan0").expect("wan0");
    stack.passes_as_it_is(outside, &Packet::udp((SERVER, 5), (SILENT, 53)));
}

/// Neither does a backend's address that comes from where no backend is: forged outside, or by way of an interface
/// that is not natgw's.
#[test]
fn a_backend_s_address_does_not_leave_wherever_it_comes_from() {
    let stack = Stack::new();
    stack
        .lab
        .namespace
        .ip(&["link add other0 type veth peer name other1", "link set other0 up"])
        .expect("other0");
    for interface in ["wan0", "other0"] {
        let from = stack.lab.namespace.index(interface).expect("index");
        for packet in [Packet::udp((WEB, 1), (SERVER, 53)), Packet::tcp((DB, 1), (SILENT, 80), SYN)] {
            let (action, _, change) = stack.sends(from, &packet);
            assert_eq!(action, SHOT, "from {interface}: {packet:?}");
            assert_eq!(change.get("guard_dropped"), 1);
        }
    }
}

#[test]
fn what_has_no_flow_does_not_leave() {
    let stack = Stack::new();
    stack.is_stopped(&Packet::udp((WEB, 1), (SERVER, 53)));
    stack.is_stopped(&Packet::udp((STRANGER, 1), (SERVER, 53)));
    stack.is_stopped(&Packet::tcp((DB, 1), (SERVER, 53), ACK));
    stack.is_stopped(&Packet::ping((WEB, 1), SERVER));
    stack.is_stopped(&Packet::pong(WEB, (SERVER, 1)));
    stack.is_stopped(&Packet::icmp(WEB, SERVER, 13, 0));
    stack.is_stopped(&Packet::other(WEB, SERVER, 47));
    stack.is_stopped(&Packet::other(WEB, SERVER, 17).fragment(false, 100));
    stack.is_stopped(&Packet::udp((WEB, 1), (SERVER, 53)).fill(40).fragment(true, 0));
    stack.is_stopped(&Packet::error(WEB, UNREACHABLE, 3, &Packet::udp((SERVER, 53), (WEB, 1))));
}

/// Those that XDP has left to the stack do (`packet_fragments`).
#[test]
fn other_fragments_of_a_flow_do_not_leave() {
    let stack = Stack::new();
    let packet = Packet::udp(CLIENT, (SILENT, 53)).fill(64);
    stack.is_translated(&packet, 1);
    stack.is_stopped(&packet.clone().fragment(true, 0).id(7));
    stack.is_stopped(&Packet::other(WEB, SILENT, 17).fragment(false, 8).id(7));
}
