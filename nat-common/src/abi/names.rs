// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of maps, programs, constants and pins: one spelling for both sides and for tests.

/// Directory below which every instance keeps its pins: `<PIN_ROOT>/<instance>/`.
pub const PIN_ROOT: &str = "/sys/fs/bpf/natgw";

/// XDP program: the data path.
pub const PROGRAM_XDP: &str = "natgw_xdp";
/// TC egress program: translates or stops what the kernel itself forwards from inside to outside.
pub const PROGRAM_GUARD: &str = "natgw_guard";
/// TC ingress program: keeps fragments that came before the first one of their datagram.
pub const PROGRAM_HOLD: &str = "natgw_hold";
/// Iterator over [`FLOWS`]: the idle sweep. Reading a byte from it is one slice, reading nothing the end of a pass.
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
/// [`super::record::RootKey`] → [`super::record::RootRecord`].
pub const ROOTS: &str = "ROOTS";
/// [`super::record::pressed_slot`] → [`super::record::Pressure`].
pub const PRESSED: &str = "PRESSED";
/// [`super::grant::BackendKey`] → [`super::grant::BackendRef`].
pub const BACKENDS: &str = "BACKENDS";
/// [`super::config::banked`] backend slot → [`super::grant::BackendInfo`].
pub const BACKEND_INFO: &str = "BACKEND_INFO";
/// [`super::config::banked`] [`super::grant::grant_slot`] → [`super::grant::Grant`].
pub const GRANTS: &str = "GRANTS";
/// [`super::config::banked`] set slot → [`super::grant::PortSet`].
pub const SETS: &str = "SETS";
/// [`super::grant::grant_slot`] → [`super::grant::GrantState`].
pub const GRANT_STATE: &str = "GRANT_STATE";
/// [`super::grant::quota_index`] → [`super::grant::Quota`].
pub const QUOTA: &str = "QUOTA";
/// [`super::grant::TowardsKey`] → [`super::grant::Towards`].
pub const TOWARDS: &str = "TOWARDS";
/// [`super::grant::PeerKey`] → [`super::grant::Peer`].
pub const PEERS: &str = "PEERS";
/// Backend slot → [`super::grant::BackendState`].
pub const BACKEND_STATE: &str = "BACKEND_STATE";
/// [`super::config::banked`] rule slot → [`super::grant::Rule`].
pub const RULES: &str = "RULES";
/// [`super::config::FrontendKey`] → frontend slot.
pub const FRONTENDS: &str = "FRONTENDS";
/// [`super::config::banked`] frontend slot → [`super::config::Frontend`].
pub const FRONTEND_INFO: &str = "FRONTEND_INFO";
/// Longest prefix of [`super::policy::PolicyPrefix`] → policies, as a mask.
pub const POLICY_PREFIXES: &str = "POLICY_PREFIXES";
/// [`super::policy::policy_port_index`] → policies, as a mask.
pub const POLICY_PORTS: &str = "POLICY_PORTS";
/// Bank → [`super::policy::PolicyMasks`].
pub const POLICY_MASKS: &str = "POLICY_MASKS";
/// [`super::config::banked`] policy slot → [`super::policy::PolicyInfo`].
pub const POLICY_INFO: &str = "POLICY_INFO";
/// Policy slot → [`super::policy::PolicyState`].
pub const POLICY_STATE: &str = "POLICY_STATE";
/// [`super::policy::InstanceKey`] → [`super::policy::Instance`].
pub const INSTANCES: &str = "INSTANCES";
/// 0 → [`super::counters::Counters`], per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// 0 → [`super::config::Table`]: shared table budget.
pub const TABLE: &str = "TABLE";
/// [`super::config::SWEEP_RUNNING`], [`super::config::SWEEP_LAST`] → [`super::config::SweepPass`].
pub const SWEEP: &str = "SWEEP";
/// 0 → token bucket of generated ICMP errors, per CPU.
pub const ICMP_BUDGET: &str = "ICMP_BUDGET";
/// [`super::fragment::FragmentKey`] → [`super::fragment::FragmentEntry`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// A hash of a backend's or frontend's address → [`super::fragment::FragmentShare`].
pub const FRAGMENT_SHARES: &str = "FRAGMENT_SHARES";
/// [`super::fragment::held_slot`] → [`super::fragment::HeldFragment`].
pub const HELD: &str = "HELD";
/// Likewise → the fragment, from its IP header on.
pub const HELD_DATA: &str = "HELD_DATA";
/// A hash of frontend, destination and protocol → the next IP identification, as `u64`.
pub const IDENTS: &str = "IDENTS";
/// Ring buffer of [`super::event::Event`].
pub const EVENTS: &str = "EVENTS";

/// Ring buffer of [`super::event::IdleReset`].
pub const RESETS: &str = "RESETS";
/// 0 → [`super::event::ResetCounts`].
pub const RESET_COUNTS: &str = "RESET_COUNTS";

/// Maps that are pinned: all except per-CPU scratch ([`ICMP_BUDGET`], `SCRATCH`, `SEARCH`, `ICMP_WORK`, `TURN`) and the log buffer of
/// aya-log.
pub const PINNED_MAPS: [&str; 39] = [
    FLOWS,
    RECORDS,
    ROOTS,
    PRESSED,
    META,
    CONTROL,
    PORTS,
    PORT_BY_TAG,
    PORT_BY_IFINDEX,
    TX_PORTS,
    BACKENDS,
    BACKEND_INFO,
    GRANTS,
    SETS,
    GRANT_STATE,
    QUOTA,
    TOWARDS,
    PEERS,
    BACKEND_STATE,
    RULES,
    FRONTENDS,
    FRONTEND_INFO,
    POLICY_PREFIXES,
    POLICY_PORTS,
    POLICY_MASKS,
    POLICY_INFO,
    POLICY_STATE,
    INSTANCES,
    COUNTERS,
    TABLE,
    SWEEP,
    FRAGMENTS,
    FRAGMENT_SHARES,
    HELD,
    HELD_DATA,
    IDENTS,
    EVENTS,
    RESETS,
    RESET_COUNTS,
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
/// Load-time constant (`u32`): in tests, the steps ([`delay`], ORed) at which a CPU lets the others go ahead; else 0.
pub const CONST_DELAY: &str = "DELAY";

/// Values of [`CONST_DELAY`]: where a race has its window.
pub mod delay {
    /// A port's bit is set, the port not yet tried.
    pub const BIT_SET: u32 = 1;
    /// A leaf was seen to be full, its root does not say so yet.
    pub const LEAF_SEEN: u32 = 1 << 1;
    /// A root says that a leaf is full, which was not yet looked at again.
    pub const ROOT_SET: u32 = 1 << 2;
    /// A root was copied, its epoch not yet compared.
    pub const ROOT_COPIED: u32 = 1 << 3;
    /// A flow has left the table, its port's bit is still set.
    pub const FLOW_GONE: u32 = 1 << 4;
    /// A port's bit is clear, that of its leaf in the root is still set.
    pub const BIT_CLEAR: u32 = 1 << 5;
    /// A mapping was judged to be over, and is not yet being removed.
    pub const MAPPING_JUDGED: u32 = 1 << 6;
    /// A fragment is being kept, and not yet to be found by the first one of its datagram.
    pub const FRAGMENT_TAKEN: u32 = 1 << 7;
    /// No step: a new connection on the tuple of one that is over gives its port back first, and takes any.
    pub const ANEW: u32 = 1 << 16;
    /// Every step.
    pub const ALL: [u32; 8] =
        [BIT_SET, LEAF_SEEN, ROOT_SET, ROOT_COPIED, FLOW_GONE, BIT_CLEAR, MAPPING_JUDGED, FRAGMENT_TAKEN];
}
