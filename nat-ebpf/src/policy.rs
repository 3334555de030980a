// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Which policies a packet meets: `nat_common::abi::policy` says how they are classified.

use aya_ebpf::maps::lpm_trie::Key;
use nat_common::{
    abi::{
        config::{CLASS_ICMP, CLASS_OTHER, CLASS_TCP, CLASS_UDP},
        policy::{PREFIX_BANK_BITS, PolicyMasks, PolicyPrefix, policy_port_index},
    },
    ports::lowest_bit,
};

use crate::{
    atomic,
    maps::{POLICY_MASKS, POLICY_PORTS, POLICY_PREFIXES, POLICY_STATE},
    parse::{ICMP, Kind, Parsed, TCP, UDP},
};

/// [`Subject::port`]: the packet is a fragment, or has no ports.
pub(crate) const UNSEEN: u32 = u32::MAX;

/// A packet as policies see it.
pub(crate) struct Subject {
    /// Bank in force.
    pub(crate) bank: u32,
    /// Policies that are about its backend.
    pub(crate) policies: u64,
    /// The far end.
    pub(crate) remote: [u8; 4],
    /// IP protocol.
    pub(crate) protocol: u8,
    /// Destination port in host byte order, or [`UNSEEN`].
    // verifier: not an `Option`, of which LLVM copies the undefined part, too.
    pub(crate) port: u32,
    /// Whether the policy that applies counts the packet: one that comes to the guard has been counted.
    pub(crate) counted: bool,
    /// Whether the port will be known later: then a denial is none yet, and not counted.
    pub(crate) unsure: bool,
}

/// [`Subject::port`] of a packet.
#[inline(always)]
pub(crate) fn port_of(parsed: &Parsed) -> u32 {
    if parsed.kind == Kind::Query {
        u32::from(u16::from_be_bytes(parsed.key.destination_port))
    } else {
        UNSEEN
    }
}

/// What applies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Denied,
    Bypassed,
}

/// Whether a backend's packet is denied, or bypasses translation.
#[inline(always)]
pub(crate) fn outbound(subject: &Subject) -> Found {
    let Some(masks) = masks(subject.bank) else { return Found::Nothing };
    if applies(subject, masks, masks.deny_outbound, false) {
        return Found::Denied;
    }
    if applies(subject, masks, masks.bypass, true) {
        return Found::Bypassed;
    }
    Found::Nothing
}

/// Whether a packet for an instance IP is denied.
#[inline(always)]
pub(crate) fn inbound(subject: &Subject) -> Found {
    match masks(subject.bank) {
        Some(masks) if applies(subject, masks, masks.deny_inbound, false) => Found::Denied,
        _ => Found::Nothing,
    }
}

/// Policies about every source, for one that is no backend.
#[inline(always)]
pub(crate) fn of_strangers(bank: u32) -> u64 {
    masks(bank).map_or(0, |masks| masks.any_backend)
}

#[inline(always)]
fn masks(bank: u32) -> Option<&'static PolicyMasks> {
    // SAFETY: array element, written before its bank is put in force.
    POLICY_MASKS.get_ptr(bank).map(|masks| unsafe { &*masks })
}

/// Whether one of `kind` applies; if so, it counts the packet. Where the port cannot be seen (a fragment), one that names ports
/// applies unless `certain` is asked for: a denial must not be evaded by fragments, a bypass not be had by them.
#[inline(always)]
fn applies(subject: &Subject, masks: &PolicyMasks, kind: u64, certain: bool) -> bool {
    let class = match subject.protocol {
        TCP => CLASS_TCP,
        UDP => CLASS_UDP,
        ICMP => CLASS_ICMP,
        _ => CLASS_OTHER,
    };
    let mut found = subject.policies & kind & masks.classes[(class & 3) as usize];
    if found == 0 {
        return false;
    }
    found &= if class > CLASS_UDP || (subject.port == UNSEEN && certain) {
        masks.portless
    } else if subject.port == UNSEEN {
        u64::MAX
    } else {
        let index = policy_port_index(subject.bank, class, subject.port as u16);
        // SAFETY: array element.
        POLICY_PORTS.get_ptr(index).map_or(0, |mask| unsafe { *mask })
    };
    if found == 0 {
        return false;
    }
    let prefix = PolicyPrefix { bank: subject.bank.to_be_bytes(), address: subject.remote };
    found &= POLICY_PREFIXES.get(&Key::new(PREFIX_BANK_BITS + 32, prefix)).copied().unwrap_or(0);
    if found == 0 {
        return false;
    }
    if subject.counted
        && (certain || !subject.unsure)
        && let Some(state) = POLICY_STATE.get_ptr_mut(lowest_bit(found))
    {
        // SAFETY: a word of an array element.
        unsafe { atomic::add(&raw mut (*state).packets, 1) };
    }
    true
}
