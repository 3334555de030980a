// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of maps, programs, constants and pins: one spelling for both sides and for tests.

/// Directory below which every instance keeps its pins: `<PIN_ROOT>/<instance>/`.
pub const PIN_ROOT: &str = "/sys/fs/bpf/natgw";

/// XDP program: the data path.
pub const PROGRAM_XDP: &str = "natgw_xdp";
/// TC egress program: translates or stops what the kernel itself forwards from inside to outside.
pub const PROGRAM_GUARD: &str = "natgw_guard";
/// Raw tracepoint program, run only through `BPF_PROG_TEST_RUN`: one pass of the idle sweep.
pub const PROGRAM_SWEEP: &str = "natgw_sweep";

/// [`super::flow::FlowKey`] → [`super::flow::FlowEntry`].
pub const FLOWS: &str = "FLOWS";
/// [`super::record::RecordKey`] → [`super::record::PortRecord`].
pub const RECORDS: &str = "RECORDS";
/// 0 → [`super::config::Meta`].
pub const META: &str = "META";
/// 0 → [`super::config::Control`].
pub const CONTROL: &str = "CONTROL";
/// Port slot → [`super::config::PortConfig`].
pub const PORTS: &str = "PORTS";
/// [`super::config::PortTag`] → port slot.
pub const PORT_BY_TAG: &str = "PORT_BY_TAG";
/// Interface index → port slot.
pub const PORT_BY_IFINDEX: &str = "PORT_BY_IFINDEX";
/// Port slot → interface to transmit on (devmap).
pub const TX_PORTS: &str = "TX_PORTS";
/// [`super::config::BackendKey`] → backend slot.
pub const BACKENDS: &str = "BACKENDS";
/// [`super::config::backend_index`] → [`super::config::BackendInfo`].
pub const BACKEND_INFO: &str = "BACKEND_INFO";
/// [`super::config::grant_index`] → [`super::config::Grant`].
pub const GRANTS: &str = "GRANTS";
/// [`super::config::grant_slot`] → [`super::config::GrantState`].
pub const GRANT_STATE: &str = "GRANT_STATE";
/// Backend slot → [`super::config::BackendState`].
pub const BACKEND_STATE: &str = "BACKEND_STATE";
/// [`super::config::rule_index`] → [`super::config::Rule`].
pub const RULES: &str = "RULES";
/// [`super::config::FrontendKey`] → frontend slot.
pub const FRONTENDS: &str = "FRONTENDS";
/// [`super::config::frontend_index`] → [`super::config::Frontend`].
pub const FRONTEND_INFO: &str = "FRONTEND_INFO";
/// 0 → [`super::counters::Counters`], per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// 0 → [`super::config::Table`]: shared table budget.
pub const TABLE: &str = "TABLE";
/// 0 → [`super::config::SweepArgs`], written before a sweep; results are read back from it.
pub const SWEEP: &str = "SWEEP";
/// 0 → token bucket of generated ICMP errors, per CPU.
pub const ICMP_BUDGET: &str = "ICMP_BUDGET";
/// Ring buffer of [`super::event::Event`].
pub const EVENTS: &str = "EVENTS";

/// Maps that are pinned: all except per-CPU scratch ([`ICMP_BUDGET`], `SEARCH`, `ICMP_WORK`) and the log buffer of
/// aya-log.
pub const PINNED_MAPS: [&str; 20] = [
    FLOWS,
    RECORDS,
    META,
    CONTROL,
    PORTS,
    PORT_BY_TAG,
    PORT_BY_IFINDEX,
    TX_PORTS,
    BACKENDS,
    BACKEND_INFO,
    GRANTS,
    GRANT_STATE,
    BACKEND_STATE,
    RULES,
    FRONTENDS,
    FRONTEND_INFO,
    COUNTERS,
    TABLE,
    SWEEP,
    EVENTS,
];

/// Load-time constant (`u32`): slot of the port that untagged frames of this interface belong to, or
/// [`super::config::NO_SLOT`].
pub const CONST_SLOT: &str = "SLOT";
/// Load-time constant (`u32`): roles of that port.
pub const CONST_ROLE: &str = "ROLE";
/// Load-time constant (`u32`): index of the interface the program is attached to.
pub const CONST_LOWER: &str = "LOWER";
/// Load-time constant (`u32`): 1 when a configured VLAN interface sits on this interface.
pub const CONST_TRUNK: &str = "TRUNK";
/// Load-time constant (`u32`): 1 in tests, where time is [`super::config::Control::test_tick`].
pub const CONST_TEST_CLOCK: &str = "TEST_CLOCK";
