// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Every map. Names, keys and values: `nat_common::abi`. Sizes of `FLOWS` and `RECORDS` are set when the object is
//! loaded. "Writer" is who changes elements after start; user space reads all of them.

use aya_ebpf::{
    macros::map,
    maps::{Array, DevMap, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use nat_common::abi::{
    config::{
        BANKS, BackendInfo, BackendKey, BackendState, CLASSES, Control, Frontend, FrontendKey, Grant,
        GrantState, IcmpBudget, MAX_BACKENDS, MAX_FRONTENDS, MAX_PORTS, MAX_RULES, Meta, PortConfig, PortTag,
        Rule, SweepArgs, Table,
    },
    counters::Counters,
    flow::{FlowEntry, FlowKey},
    record::{PortRecord, RecordKey},
};

use crate::{icmp_error::Work, ports::Search};

/// Writer: data path, sweep. Full: the new flow is refused (`table_full`), nothing is evicted. Preallocated:
/// memory taken at packet time can fail.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowEntry> = HashMap::with_max_entries(2048, 0);
/// Writer: data path. Full: the least recently used record goes; it is only a hint.
#[map]
pub(crate) static RECORDS: LruHashMap<RecordKey, PortRecord> = LruHashMap::with_max_entries(4096, 0);
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
pub(crate) static BACKENDS: HashMap<BackendKey, u32> = HashMap::with_max_entries(BANKS * MAX_BACKENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static BACKEND_INFO: Array<BackendInfo> = Array::with_max_entries(BANKS * MAX_BACKENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static GRANTS: Array<Grant> = Array::with_max_entries(BANKS * MAX_BACKENDS * CLASSES, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static GRANT_STATE: Array<GrantState> = Array::with_max_entries(MAX_BACKENDS * CLASSES, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static BACKEND_STATE: Array<BackendState> = Array::with_max_entries(MAX_BACKENDS, 0);
/// Writer: daemon, in the bank that is not in force.
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(BANKS * MAX_RULES, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, u32> = HashMap::with_max_entries(BANKS * MAX_FRONTENDS, 0);
/// Writer: daemon, likewise.
#[map]
pub(crate) static FRONTEND_INFO: Array<Frontend> = Array::with_max_entries(BANKS * MAX_FRONTENDS, 0);
/// Writer: data path, guard; each CPU its own copy.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path, sweep.
#[map]
pub(crate) static TABLE: Array<Table> = Array::with_max_entries(1, 0);
/// Writer: daemon before, sweep during a pass.
#[map]
pub(crate) static SWEEP: Array<SweepArgs> = Array::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy.
#[map]
pub(crate) static ICMP_BUDGET: PerCpuArray<IcmpBudget> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path. Full: the event is lost and counted.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Writer: data path; each CPU its own copy. Scratch of one search, not read by user space.
#[map]
pub(crate) static SEARCH: PerCpuArray<Search> = PerCpuArray::with_max_entries(1, 0);
/// Writer: data path; each CPU its own copy. Scratch of one ICMP error, likewise.
#[map]
pub(crate) static ICMP_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);
