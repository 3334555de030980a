// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuration as the data path sees it, and the small state kept beside it.
//!
//! Configuration tables are doubled: the control plane fills the bank that is not in use and then changes
//! [`Control::bank`] with one write. A packet reads the bank once. State (`*State`, [`Table`]) is not doubled, and
//! slots keep their meaning across reloads, so that a reload never touches a flow.

use super::layout;
use crate::{Tick, net::timers::TIMER_CLASSES};
use bytemuck::{Pod, Zeroable};

/// Backends per instance at most; the tables are made for [`Meta::max_backends`].
pub const MAX_BACKENDS: u32 = 65_536;
/// Backends that the tables are made for at least.
pub const MIN_BACKENDS: u32 = 4096;
/// Outbound rules per instance.
pub const MAX_RULES: u32 = 256;
/// Frontend addresses per instance.
pub const MAX_FRONTENDS: u32 = 256;
/// Logical interfaces per instance; slots are `u8` in [`super::flow::FlowEntry::slot`].
pub const MAX_PORTS: u32 = 64;
/// Banks of configuration.
pub const BANKS: u32 = 2;
/// "No such slot".
pub const NO_SLOT: u32 = u32::MAX;

/// Protocol classes have separate port inventories (TCP and UDP: Azure "Outbound connections", 2019 and 2023; ICMP
/// identifiers likewise).
pub const CLASS_TCP: u32 = 0;
/// See [`CLASS_TCP`].
pub const CLASS_UDP: u32 = 1;
/// See [`CLASS_TCP`].
pub const CLASS_ICMP: u32 = 2;
/// Protocols without ports, in policies only.
pub const CLASS_OTHER: u32 = 3;
/// Protocol classes.
pub const CLASSES: u32 = 4;
/// Names, as in configuration and JSON, of the classes that have ports.
pub const CLASS_NAMES: [&str; 3] = ["tcp", "udp", "icmp"];

/// Index of slot `slot` in a table that is kept in banks. Banks alternate, so that the index does not depend on how
/// many slots there are.
#[inline(always)]
#[must_use]
pub const fn banked(bank: u32, slot: u32) -> u32 {
    slot * BANKS + bank
}

/// What the maps are: written once, when they are made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Meta {
    /// [`META_MAGIC`].
    pub magic: u32,
    /// [`super::ABI_VERSION`].
    pub abi_version: u32,
    /// Flows the table was made for.
    pub max_flows: u32,
    /// Tick in which the maps were made: since when the instance translates.
    pub created: Tick,
    /// Backends the tables were made for.
    pub max_backends: u32,
    /// Zero.
    pub reserved: u32,
}
layout!(Meta, 24);

/// "NTGW".
pub const META_MAGIC: u32 = 0x4e54_4757;

/// What every slow-path decision reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// Bank in force, 0 or 1.
    pub bank: u32,
    /// Raised by the daemon whenever routes, neighbours, addresses, links or the configuration change: flows look
    /// up their next hop and timeouts again. Never 0.
    pub epoch: u32,
    /// Tick of the daemon's last sign of life. When it is old, flows look up their next hop every tick.
    pub heartbeat: Tick,
    /// Flows that each backend may always have.
    pub guaranteed_flows: u32,
    /// Flows above the guarantee, all backends together.
    pub burst_flows: u32,
    /// 1 when the guard is attached, so that a packet with an unresolved next hop may go to the stack.
    pub guarded: u32,
    /// Reloads so far.
    pub generation: u32,
    /// The time, in tests only ([`super::names::CONST_TEST_CLOCK`]).
    pub test_tick: Tick,
    /// `FEATURE_*` of the bank in force: what is off costs nothing.
    pub features: u32,
    /// Shortest idle timeout of any rule, in ticks: no port can come free sooner.
    pub shortest: Tick,
    /// What the sender of a packet hears that no rule covers: `REFUSAL_*` of [`super::grant`].
    pub on_refusal: u32,
    /// Backend slots in use: the highest taken one, plus one.
    pub backend_slots: u32,
}
layout!(Control, 48);

/// [`Control::features`]: there are policies.
pub const FEATURE_POLICY: u32 = 1;
/// [`Control::features`]: there are instance IPs.
pub const FEATURE_INSTANCE: u32 = 1 << 1;
/// [`Control::features`]: an outbound rule wins over an instance IP.
pub const FEATURE_RULE_FIRST: u32 = 1 << 2;

/// [`Control::features`]: a rule has endpoint-independent mapping.
pub const FEATURE_MAPPING: u32 = 1 << 3;

/// Ticks without a heartbeat after which the daemon counts as dead (about 3 s).
pub const HEARTBEAT_TICKS: Tick = 6;

/// [`PortConfig::role`]: backends are behind this port.
pub const ROLE_INSIDE: u8 = 1;
/// [`PortConfig::role`]: destinations are behind this port.
pub const ROLE_OUTSIDE: u8 = 2;

/// A logical interface: a device, or a VLAN (or VLAN in VLAN) on one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortConfig {
    /// The logical interface.
    pub ifindex: u32,
    /// The device at the bottom, where the XDP program is attached and frames are sent.
    pub lower: u32,
    /// Tags on its frames, outermost first; unused ones zero.
    pub tags: [VlanTag; 2],
    /// Number of tags.
    pub tag_count: u8,
    /// [`ROLE_INSIDE`] and [`ROLE_OUTSIDE`]; 0: slot not in use.
    pub role: u8,
    /// Interface MTU in bytes.
    pub mtu: u16,
    /// Source MAC address for frames sent here.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
    /// Address that ICMP errors come from, network byte order; zero: none, errors are not sent.
    pub address: [u8; 4],
    /// Interface name, NUL-padded.
    pub name: [u8; 16],
}
layout!(PortConfig, 48);

/// An 802.1Q or 802.1ad tag as on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct VlanTag {
    /// 0x8100 or 0x88a8, network byte order.
    pub protocol: [u8; 2],
    /// Tag control information, network byte order. In configuration only the 12-bit VLAN number.
    pub control: [u8; 2],
}
layout!(VlanTag, 4);

/// Key of `PORT_BY_TAG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PortTag {
    /// The device at the bottom.
    pub lower: u32,
    /// VLAN numbers, host byte order, outermost first; 0: no tag.
    pub vlan: [u16; 2],
}
layout!(PortTag, 8);

/// Key of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FrontendKey {
    /// Public address, network byte order.
    pub address: [u8; 4],
    /// Bank.
    pub bank: u32,
}
layout!(FrontendKey, 8);

/// 8-port blocks in 65,536 ports, in bytes of a bitmap.
pub const CLAIMED_BYTES: usize = 65_536 / 8 / 8;

/// One public address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Frontend {
    /// Public address, network byte order; zero: slot free.
    pub address: [u8; 4],
    /// [`FRONTEND_LOCAL`], [`FRONTEND_DRAINING`].
    pub flags: u32,
    /// Name of the frontend in the configuration, NUL-padded.
    pub name: [u8; 32],
    /// By class: bit `n` of byte `b` set when the 8-port block `8 b + n` is granted to a backend. Unsolicited
    /// packets to such a port are dropped; to another one they go to the host if it owns the address.
    pub claimed: [[u8; CLAIMED_BYTES]; 3],
}
layout!(Frontend, 40 + 3 * CLAIMED_BYTES);

/// [`Frontend::flags`]: the host owns the address.
pub const FRONTEND_LOCAL: u32 = 1;
/// [`Frontend::flags`]: no longer in the configuration, but flows of it are still alive.
pub const FRONTEND_DRAINING: u32 = 1 << 1;

/// The budget that all backends share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Table {
    /// Flows alive above their backend's guarantee.
    pub burst: u64,
    /// Flows alive.
    pub flows: u64,
    /// Flows reclaimed by the sweep.
    pub swept: u64,
    /// Flows reclaimed by the data path itself because it needed their place.
    pub taken_over: u64,
    /// Flows that ended on ports which no longer belong to their grant: summaries of full leaves made before are not
    /// believed any more ([`super::record::RootRecord::drained`]).
    pub drained: u64,
    /// TCP flows that ended idle and were handed to the daemon, to tell both ends.
    pub told: u64,
    /// TCP flows that ended idle and could not be handed over in time: nobody took them from a full ring buffer.
    pub untold: u64,
}
layout!(Table, 56);

/// Elements of the map `SWEEP`.
pub const SWEEP_SLOTS: u32 = 2;
/// Element of the pass that is under way: the daemon writes it before, the sweep during a pass.
pub const SWEEP_RUNNING: u32 = 0;
/// Element of the last pass that has ended, written by the daemon.
pub const SWEEP_LAST: u32 = SWEEP_SLOTS - 1;
/// Work of removing a flow, or of handing one over, in [`SweepPass::work`]; looking at an entry is 1.
pub const SWEEP_REMOVAL: u64 = 16;

/// [`SweepPass::pressed`]: the table is nearly full.
pub const SWEEP_PRESSED_ROOM: u32 = 1;
/// [`SweepPass::pressed`]: the data path has refused flows that would have found room or a port among those that are over.
pub const SWEEP_PRESSED_REFUSALS: u32 = 2;

/// Arguments and result of one pass of the sweep over the flow table, which is done in slices.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SweepPass {
    /// In: most flows to reclaim in this pass.
    pub limit: u64,
    /// In: work after which a slice ends; 0: the pass is one slice.
    pub slice: u64,
    /// Work done in the slice that is under way.
    pub work: u64,
    /// Out: entries looked at, both halves.
    pub visited: u64,
    /// Out: flows reclaimed.
    pub reclaimed: u64,
    /// Out: flows that are over and wait: for their port's rest, or until both ends are told, or were above the limit.
    pub pending: u64,
    /// Out: of these, TCP flows whose ends are still to be told ([`super::grant::RULE_RESET_IDLE`]).
    pub untold: u64,
    /// Out: flows alive by [`crate::net::timers::TimerClass`].
    pub live: [u64; TIMER_CLASSES],
    /// CPU time of all slices in nanoseconds. This and what follows is the daemon's.
    pub cpu_ns: u64,
    /// Time from the pass's begin to its end, rests included, in nanoseconds.
    pub wall_ns: u64,
    /// CPU time of the slice that took most of it, in nanoseconds.
    pub longest_ns: u64,
    /// Slices.
    pub slices: u32,
    /// Why the sweep did not spare itself: `SWEEP_PRESSED_*`.
    pub pressed: u32,
    /// Out, the sweep's: when the slice that is under way began.
    pub now: Tick,
    /// When the pass ended; 0: it has not.
    pub ended: Tick,
}
layout!(SweepPass, 96 + 8 * TIMER_CLASSES);

/// Token bucket of generated ICMP errors on one CPU (RFC 1812 §4.3.2.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct IcmpBudget {
    /// Tick in which the bucket was last filled.
    pub tick: Tick,
    /// Errors that may still be sent in this tick.
    pub left: u32,
}
layout!(IcmpBudget, 8);

/// ICMP errors that one CPU may generate for one device per tick: about 1,000 a second, as Linux' `icmp_msgs_per_sec`.
pub const ICMP_ERRORS_PER_TICK: u32 = 512;

/// The bytes of a NUL-padded name as text; what is not UTF-8 is replaced by nothing.
#[must_use]
pub fn name_of(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..end]).unwrap_or_default()
}

/// Pads `name` with NULs; what does not fit is cut at a character boundary.
#[must_use]
pub fn padded<const N: usize>(name: &str) -> [u8; N] {
    let mut out = [0; N];
    let mut end = name.len().min(N);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    out[..end].copy_from_slice(&name.as_bytes()[..end]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_padding() {
        assert_eq!(name_of(&padded::<16>("wan0")), "wan0");
        assert_eq!(name_of(&padded::<4>("outside")), "outs");
        assert_eq!(name_of(&padded::<4>("aßß")), "aß");
        assert_eq!(name_of(&[0; 8]), "");
    }

    #[test]
    fn banks_do_not_overlap() {
        let indices: std::collections::HashSet<u32> =
            (0..64).flat_map(|slot| [banked(0, slot), banked(1, slot)]).collect();
        assert_eq!(indices.len(), 128);
        assert_eq!(indices.iter().max(), Some(&127));
    }
}
