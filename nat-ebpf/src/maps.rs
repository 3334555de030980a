// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Every map. Names, keys and values: `nat_common::abi`. Sizes of tables that grow with flows or backends are set when
//! the object is loaded. "Writer" is who changes elements after start; user space reads all of them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
};
use nat_common::abi::{
    config::{
        BANKS, CLASSES, Control, Frontend, FrontendKey, IcmpBudget, MAX_FRONTENDS, MAX_PORTS, MAX_RULES,
        MIN_BACKENDS, Meta, PortConfig, PortTag, SWEEP_SLOTS, SweepPass, Table,
    },
    counters::Counters,
    event::{RESETS_BYTES, ResetCounts},
    flow::{FlowEntry, FlowKey},
    fragment::{
        FRAGMENT_ENTRIES, FRAGMENT_SHARES as SHARE_SLOTS, FragmentEntry, FragmentKey, FragmentShare,
        HELD_BYTES, HELD_SLOTS, HeldFragment, IDENT_BUCKETS,
    },
    grant::{
        BackendInfo, BackendKey, BackendRef, BackendState, Grant, GrantState, MAX_SETS, Peer, PeerKey,
        PortSet, Quota, Rule, Towards, TowardsKey,
    },
    policy::{
        Instance, InstanceKey, MAX_INSTANCES, MAX_POLICIES, MAX_POLICY_PREFIXES,
        POLICY_PORTS as POLICY_PORT_SLOTS, PolicyInfo, PolicyMasks, PolicyPrefix, PolicyState,
    },
    record::{PRESSED_SLOTS, PortRecord, RecordKey, RootKey, RootRecord},
};

use crate::{hairpin::Turn, icmp_error::Work, ports::Search, scratch::Scratch};

/// Writer: data path, sweep. Full: the new flow is refused (`table_full`), nothing is evicted. Preallocated:
/// memory taken at packet time can fail.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowEntry> = HashMap::with_max_entries(2048, 0);
/// Writer: data path. Full: the least recently used record goes; it is only a hint.
#[map]
pub(crate) static RECORDS: LruHashMap<RecordKey, PortRecord> = LruHashMap::with_max_entries(4096, 0);
/// Writer: data path. Full: likewise.
#[map]
pub(crate) static ROOTS: LruHashMap<RootKey, RootRecord> = LruHashMap::with_max_entries(1024, 0);
/// Writer: data path.
#[map]
pub(crate) static PRESSED: Array<u64> = Array::with_max_entries(PRESSED_SLOTS, 0);
/// Writer: none after start.
#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, 0);
/// Writer: daemon.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
/// Writer: daemon.
#[map]
pub(crate) static PORTS: Array<PortConfig> = Array::with_max_entries(MAX_PORTS, 0);
/// Writer: daemon.
#[map]
pub(crate) static PORT_BY_TAG: HashMap<PortTag, u32> = HashMap::with_max_entries(MAX_PORTS, 0);
/// Writer: daemon.
#[map]
pub(crate) static PORT_BY_IFINDEX: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PORTS, 0);
/// Writer: daemon.
#[map]
pub(crate) static TX_PORTS: DevMap = DevMap::with_max_entries(MAX_PORTS, 0);
/// Writer: daemon, in the bank that is not in force.
#[map]
pub(crate) static BACKENDS: HashMap<BackendKey, BackendRef> =
    HashMap::with_max_entries(BANKS * MIN_BACKENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static BACKEND_INFO: Array<BackendInfo> = Array::with_max_entries(BANKS * MIN_BACKENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static GRANTS: Array<Grant> = Array::with_max_entries(BANKS * MIN_BACKENDS * CLASSES, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static SETS: Array<PortSet> = Array::with_max_entries(BANKS * MAX_SETS, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static GRANT_STATE: Array<GrantState> = Array::with_max_entries(MIN_BACKENDS * CLASSES, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static QUOTA: Array<Quota> = Array::with_max_entries(MIN_BACKENDS * 2, 0);
/// Writer: data path, sweep. Only for rules with `max_ports`, so not preallocated.
#[map]
pub(crate) static TOWARDS: HashMap<TowardsKey, Towards> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Writer: data path, sweep. Only for rules with address-dependent filtering, so not preallocated.
#[map]
pub(crate) static PEERS: HashMap<PeerKey, Peer> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
/// Writer: data path, sweep.
#[map]
pub(crate) static BACKEND_STATE: Array<BackendState> = Array::with_max_entries(MIN_BACKENDS, 0);
/// Writer: daemon, in the bank that is not in force.
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(BANKS * MAX_RULES, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::with_max_entries(BANKS * MAX_FRONTENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static FRONTEND_INFO: Array<Frontend> = Array::with_max_entries(BANKS * MAX_FRONTENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static POLICY_PREFIXES: LpmTrie<PolicyPrefix, u64> =
    LpmTrie::with_max_entries(BANKS * MAX_POLICY_PREFIXES, BPF_F_NO_PREALLOC);
/// Writer: daemon, likewise.
#[map]
pub(crate) static POLICY_PORTS: Array<u64> = Array::with_max_entries(POLICY_PORT_SLOTS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static POLICY_MASKS: Array<PolicyMasks> = Array::with_max_entries(BANKS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static POLICY_INFO: Array<PolicyInfo> = Array::with_max_entries(BANKS * MAX_POLICIES, 0);
/// Writer: data path.
#[map]
pub(crate) static POLICY_STATE: Array<PolicyState> = Array::with_max_entries(MAX_POLICIES, 0);
/// Writer: daemon, in the bank that is not in force.
#[map]
pub(crate) static INSTANCES: HashMap<InstanceKey, Instance> =
    HashMap::with_max_entries(BANKS * MAX_INSTANCES, 0);
/// Writer: data path, guard; each CPU its own copy.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static TABLE: Array<Table> = Array::with_max_entries(1, 0);
/// Writer: daemon before and after, sweep during a pass.
#[map]
pub(crate) static SWEEP: Array<SweepPass> = Array::with_max_entries(SWEEP_SLOTS, 0);
/// Writer: data path; each CPU its own copy.
#[map]
pub(crate) static ICMP_BUDGET: PerCpuArray<IcmpBudget> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path. Full: the least recently used goes; how many come in a tick is bounded, so that it is old.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry> =
    LruHashMap::with_max_entries(FRAGMENT_ENTRIES, 0);
/// Writer: data path.
#[map]
pub(crate) static FRAGMENT_SHARES: Array<FragmentShare> = Array::with_max_entries(SHARE_SLOTS, 0);
/// Writer: data path, TC ingress. Full: the fragment is lost and counted.
#[map]
pub(crate) static HELD: Array<HeldFragment> = Array::with_max_entries(HELD_SLOTS, 0);
/// Writer: TC ingress, the CPU that holds the slot.
#[map]
pub(crate) static HELD_DATA: Array<[u8; HELD_BYTES]> = Array::with_max_entries(HELD_SLOTS, 0);
/// Writer: data path, guard.
#[map]
pub(crate) static IDENTS: Array<u64> = Array::with_max_entries(IDENT_BUCKETS, 0);
/// Writer: data path. Full: the event is lost and counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Writer: sweep. Full: the flow waits for the next pass.
#[map]
pub(crate) static RESETS: RingBuf = RingBuf::with_byte_size(RESETS_BYTES, 0);
/// Writer: daemon.
#[map]
pub(crate) static RESET_COUNTS: Array<ResetCounts> = Array::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy. Scratch of one helper's call, not read by user space.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy. Scratch of one search, likewise.
#[map]
pub(crate) static SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy. Scratch of one ICMP error or packet of an instance IP, likewise.
#[map]
pub(crate) static ICMP_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy. Scratch of one hairpinned packet, likewise.
#[map]
pub(crate) static TURN: PerCpuArray<Turn> = PerCpuArray::with_max_entries(1, 0);
