// SPDX-License-Identifier: MIT OR Apache-2.0
//! An instance for tests: three backends, two rules, a flow in every state.

use bytemuck::Zeroable;
use nat_common::{
    Tick,
    abi::{
        ABI_VERSION,
        config::{
            CLASS_ICMP, CLASS_TCP, CLASS_UDP, CLASSES, Control, Frontend, META_MAGIC, Meta, PortConfig,
            ROLE_INSIDE, ROLE_OUTSIDE, SWEEP_PRESSED_REFUSALS, SweepPass, Table, VlanTag, padded,
        },
        counters::{Counters, Reason},
        event::ResetCounts,
        flow::{FlowEntry, FlowKey, HALF_INBOUND, HALF_OUTBOUND, inbound_key},
        grant::{BackendInfo, BackendState, Grant, GrantState, PortSet, Quota, Rule, Segment, grant_slot},
        policy::{PolicyInfo, PolicyState},
    },
    net::{state, timers},
    tick,
};

use super::{
    flows::{Filter, Flow, Flows, Join},
    instance::Instance,
};

/// Time of the reading.
pub(crate) const NOW: Tick = 1_000_000;
pub(crate) const BACKEND: [u8; 4] = [10, 0, 0, 4];
pub(crate) const DB1: [u8; 4] = [10, 0, 2, 7];
pub(crate) const FRONTEND: [u8; 4] = [203, 0, 113, 10];
pub(crate) const SECOND: [u8; 4] = [203, 0, 113, 11];
pub(crate) const SERVER: [u8; 4] = [198, 51, 100, 1];

/// `seconds` before the reading.
pub(crate) fn ago(seconds: u32) -> Tick {
    NOW - tick::from_seconds(seconds)
}

fn backend(address: [u8; 4], name: &str) -> BackendInfo {
    BackendInfo { address, status: 1, name: padded(name), pool: padded("web") }
}

fn set(id: u32, segments: &[([u8; 4], u16, u16)]) -> PortSet {
    let mut set = PortSet { id, segment_count: segments.len() as u32, ..PortSet::default() };
    for (place, (address, first, count)) in set.segments.iter_mut().zip(segments) {
        *place = Segment { address: *address, first: *first, count: *count };
        set.ports += u32::from(*count);
    }
    set
}

fn frontend(address: [u8; 4]) -> Frontend {
    Frontend { address, name: padded("fe1"), ..Frontend::zeroed() }
}

fn interface(name: &str, index: u32, role: u8) -> PortConfig {
    PortConfig {
        ifindex: index,
        lower: index,
        role,
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, index as u8],
        name: padded(name),
        ..PortConfig::zeroed()
    }
}

/// The tables.
pub(crate) fn instance() -> Instance {
    let mut grants = vec![Grant::zeroed(); 3 * CLASSES as usize];
    let mut grant_states = vec![GrantState::zeroed(); grants.len()];
    for class in [CLASS_TCP, CLASS_UDP, CLASS_ICMP] {
        grants[grant_slot(0, class) as usize] = Grant { own: 1, ..Grant::zeroed() };
        grants[grant_slot(1, class) as usize] = Grant { own: 2, ..Grant::zeroed() };
    }
    grants[grant_slot(2, CLASS_TCP) as usize] = Grant { own: 3, rule: 1, ..Grant::zeroed() };
    grant_states[grant_slot(0, CLASS_TCP) as usize] = GrantState { refused: 1234, ..GrantState::zeroed() };
    // A connection that was idle for too long rests for a moment.
    let mut rests = [0; timers::TIMER_CLASSES];
    rests[timers::TimerClass::TcpEstablished as usize] = tick::from_seconds(8);
    let mut policies = vec![PolicyInfo::zeroed(); 4];
    policies[1] = PolicyInfo { kind: 1, name: padded("no-smtp"), ..PolicyInfo::zeroed() };
    let mut policy_states = vec![PolicyState::zeroed(); 4];
    policy_states[1].packets = 42;
    let mut vlan = interface("wan0.20", 5, ROLE_OUTSIDE);
    vlan.lower = 3;
    vlan.tag_count = 1;
    vlan.tags[0] = VlanTag { protocol: [0x81, 0], control: [0, 20] };
    vlan.address = [203, 0, 113, 1];
    Instance {
        name: "default".to_owned(),
        now: NOW,
        meta: Meta {
            magic: META_MAGIC,
            abi_version: ABI_VERSION,
            max_flows: 1 << 20,
            created: ago(7300),
            max_backends: 4096,
            reserved: 0,
        },
        control: Control { epoch: 3, heartbeat: NOW - 1, guarded: 1, backend_slots: 3, ..Control::zeroed() },
        table: Table { flows: 12, burst: 1, swept: 345, taken_over: 6, told: 3, ..Table::default() },
        resets: ResetCounts { framed: 5, routed: 1, failed: 0 },
        sweep: SweepPass {
            visited: 24,
            reclaimed: 2,
            pending: 3,
            untold: 1,
            cpu_ns: 12_340_000,
            wall_ns: 61_700_000,
            longest_ns: 1_500_000,
            slices: 9,
            pressed: SWEEP_PRESSED_REFUSALS,
            ended: ago(3),
            ..SweepPass::zeroed()
        },
        interfaces: vec![interface("lan0", 2, ROLE_INSIDE), vlan, PortConfig::zeroed()],
        backends: vec![
            backend(BACKEND, ""),
            backend(DB1, "db1"),
            backend([10, 0, 1, 1], ""),
            BackendInfo::zeroed(),
        ],
        rules: vec![
            Rule {
                timeouts: timers::azure_lb(240),
                rests,
                status: 1,
                name: padded("web-out"),
                ..Rule::zeroed()
            },
            Rule { timeouts: timers::azure_lb(600), status: 2, name: padded("old"), ..Rule::zeroed() },
            Rule::zeroed(),
        ],
        frontends: vec![frontend(FRONTEND), frontend(SECOND), Frontend::zeroed()],
        backend_states: vec![BackendState::zeroed(); 3],
        grants,
        grant_states,
        sets: vec![
            set(1 << 14, &[(FRONTEND, 1024, 8)]),
            set(1 << 14 | 1, &[(FRONTEND, 1032, 8), (SECOND, 1024, 16)]),
            set(1 << 14 | 2, &[(SECOND, 2048, 1024)]),
        ],
        quotas: vec![Quota::zeroed(); 6],
        policies,
        policy_states,
        instances: Vec::new(),
        held: (3, 1),
    }
}

/// [`instance`], in which the first two backends have 8 TCP ports in common and beside them their own ones.
pub(crate) fn sharing() -> Instance {
    let mut instance = instance();
    instance.sets.push(set(1 << 14 | 3, &[(FRONTEND, 2048, 4), (SECOND, 4096, 4)]));
    for slot in [0, 1] {
        instance.grants[grant_slot(slot, CLASS_TCP) as usize].shared = 4;
    }
    instance.grants[grant_slot(0, CLASS_UDP) as usize] = Grant { shared: 4, ..Grant::zeroed() };
    instance
}

/// A flow before it is put into halves.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) slot: u32,
    pub(crate) class: u32,
    pub(crate) bits: u32,
    pub(crate) source: ([u8; 4], u16),
    pub(crate) frontend: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
    pub(crate) idle: u32,
    pub(crate) packets: u64,
}

/// A TCP connection of the first backend, established.
pub(crate) const TCP: Spec = Spec {
    slot: 0,
    class: CLASS_TCP,
    bits: state::SYN_OUT | state::SYN_IN | state::ESTABLISHED,
    source: (BACKEND, 40_000),
    frontend: (FRONTEND, 1024),
    destination: (SERVER, 443),
    idle: 10,
    packets: 1500,
};

impl Spec {
    /// Both halves.
    pub(crate) fn halves(&self) -> [(FlowKey, FlowEntry); 2] {
        let protocol = [6, 17, 1][self.class as usize];
        let key = FlowKey {
            source: self.source.0,
            source_port: self.source.1.to_be_bytes(),
            destination: self.destination.0,
            destination_port: self.destination.1.to_be_bytes(),
            protocol,
            zone: [0; 3],
        };
        let out = FlowEntry {
            identity: key.fold(),
            state: self.bits | u32::from(self.source.1) << 16,
            address: self.frontend.0,
            port: self.frontend.1.to_be_bytes(),
            half: HALF_OUTBOUND,
            touched: ago(self.idle + 5),
            grant: grant_slot(self.slot, self.class),
            created: ago(self.idle + 60),
            packets: self.packets,
            bytes: self.packets * 100,
            ..FlowEntry::default()
        };
        let peer = inbound_key(&key, out.address, out.port);
        let inbound = FlowEntry {
            identity: peer.fold(),
            address: key.source,
            port: key.source_port,
            half: HALF_INBOUND,
            touched: ago(self.idle),
            packets: self.packets * 2,
            bytes: self.packets * 3000,
            ..out
        };
        [(key, out), (peer, inbound)]
    }
}

/// A flow in every state, and the port at 100% for one destination.
pub(crate) fn specs() -> Vec<Spec> {
    let established = TCP.bits;
    let mut specs = vec![
        TCP,
        Spec { source: (DB1, 5432), slot: 1, frontend: (SECOND, 1039), idle: 200, packets: 7, ..TCP },
        Spec { bits: state::SYN_OUT, source: (BACKEND, 40_001), frontend: (FRONTEND, 1025), idle: 1, ..TCP },
        Spec {
            bits: established | state::FIN_OUT,
            source: (BACKEND, 40_002),
            frontend: (FRONTEND, 1026),
            ..TCP
        },
        Spec {
            bits: established | state::FIN_OUT | state::FIN_IN,
            source: (BACKEND, 40_003),
            frontend: (FRONTEND, 1027),
            ..TCP
        },
        Spec {
            bits: state::SYN_OUT | state::RST,
            source: (BACKEND, 40_004),
            frontend: (FRONTEND, 1028),
            ..TCP
        },
        // Over for a long time, but not reclaimed.
        Spec { source: (BACKEND, 40_005), frontend: (FRONTEND, 1029), idle: 250, ..TCP },
        // Over a moment ago: its port is not free yet.
        Spec { source: (BACKEND, 40_006), frontend: (FRONTEND, 1030), idle: 241, ..TCP },
    ];
    let udp = Spec { class: CLASS_UDP, bits: 0, destination: (SERVER, 53), packets: 1, ..TCP };
    specs.extend((0..8).map(|number| Spec {
        source: (BACKEND, 5000 + number),
        frontend: (FRONTEND, 1024 + number),
        idle: 30 + u32::from(number),
        ..udp
    }));
    specs.push(Spec {
        class: CLASS_ICMP,
        bits: 0,
        source: (DB1, 77),
        slot: 1,
        frontend: (FRONTEND, 1033),
        destination: ([8, 8, 8, 8], 0),
        ..TCP
    });
    // On a port that the backend no longer has.
    specs.push(Spec { source: (BACKEND, 40_007), frontend: (FRONTEND, 9000), ..TCP });
    specs
}

/// The halves of `specs`, in an order that has nothing to do with flows.
pub(crate) fn halves(specs: &[Spec]) -> Vec<(FlowKey, FlowEntry)> {
    let mut halves: Vec<_> = specs.iter().flat_map(Spec::halves).collect();
    halves.sort_by_key(|(key, _)| key.fold());
    halves
}

/// The flows that `filter` admits.
pub(crate) fn joined(instance: &Instance, filter: &Filter) -> Flows {
    let mut join = Join::new(instance, filter);
    for (key, entry) in halves(&specs()) {
        join.add(&key, &entry);
    }
    join.finish()
}

/// Every flow, also expired ones.
pub(crate) fn every_flow(instance: &Instance) -> Vec<Flow> {
    joined(instance, &Filter { expired: true, ..Filter::default() }).flows
}

/// Counters of two CPUs.
pub(crate) fn counters() -> Vec<Counters> {
    let mut cpu = Counters::zeroed();
    for (reason, packets) in [
        (Reason::TranslatedOut, 1_234_567),
        (Reason::TranslatedIn, 2_345_678),
        (Reason::TtlExceeded, 3),
        (Reason::NotIpv4, 42),
        (Reason::NoFreePort, 617),
    ] {
        cpu.packets[reason as usize] = packets;
        cpu.bytes[reason as usize] = packets * 1000;
        cpu.seen += packets;
        cpu.seen_bytes += packets * 1000;
    }
    let mut other = cpu;
    other.guard_translated = 4;
    other.guard_dropped = 1;
    (other.fragments_held, other.fragments_released, other.fragments_expired) = (9, 5, 1);
    vec![cpu, other]
}
