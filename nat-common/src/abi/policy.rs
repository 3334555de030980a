// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies (deny, bypass) and instance IPs.
//!
//! Policies are classified by bit vectors (Lakshman and Stiliadis, SIGCOMM 1998): every condition of a packet gives a
//! mask of the policies that agree to it, and their intersection is what applies. So the cost does not depend on the
//! number of policies.

use super::layout;
use bytemuck::{Pod, Zeroable};

/// Policies per instance: bits of a mask.
pub const MAX_POLICIES: u32 = 64;
/// Instance IPs per instance.
pub const MAX_INSTANCES: u32 = 4096;
/// Distinct prefixes of all policies.
pub const MAX_POLICY_PREFIXES: u32 = 8192;

/// Data of a key of `POLICY_PREFIXES`, a longest-prefix-match trie; the prefix length counts the bits of the bank, too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PolicyPrefix {
    /// Bank, network byte order.
    pub bank: [u8; 4],
    /// Network address, network byte order.
    pub address: [u8; 4],
}
layout!(PolicyPrefix, 8);

/// Bits of [`PolicyPrefix`] before the address.
pub const PREFIX_BANK_BITS: u32 = 32;

/// Index into `POLICY_PORTS`: policies by destination port, TCP (class 0) or UDP (class 1).
#[inline(always)]
#[must_use]
pub const fn policy_port_index(bank: u32, class: u32, port: u16) -> u32 {
    (port as u32) << 2 | (class & 1) << 1 | bank & 1
}

/// Elements of `POLICY_PORTS`.
pub const POLICY_PORTS: u32 = 65_536 * 4;

/// Value of `POLICY_MASKS`, by bank: which policies agree to what, bit `n` for policy slot `n`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PolicyMasks {
    /// By protocol class.
    pub classes: [u64; 4],
    /// To packets without a destination port that can be seen (other protocols, ICMP): those that name no ports.
    pub portless: u64,
    /// Denials of what backends open.
    pub deny_outbound: u64,
    /// Denials of what arrives for an instance IP.
    pub deny_inbound: u64,
    /// Bypasses.
    pub bypass: u64,
    /// To sources that are no backend: those that name no pool.
    pub any_backend: u64,
}
layout!(PolicyMasks, 72);

/// Who a policy slot is. Not read by the data path.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PolicyInfo {
    /// 0: slot free; 1: deny outbound; 2: deny inbound; 3: bypass.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// Name, NUL-padded.
    pub name: [u8; 48],
}
layout!(PolicyInfo, 56);

/// Running state of a policy, kept across reloads as long as its name stays.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PolicyState {
    /// Packets it applied to.
    pub packets: u64,
}
layout!(PolicyState, 8);

/// Key of `INSTANCES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct InstanceKey {
    /// Public address, network byte order.
    pub address: [u8; 4],
    /// Bank.
    pub bank: u32,
}
layout!(InstanceKey, 8);

/// Value of `INSTANCES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Instance {
    /// Private address of its backend, network byte order.
    pub backend: [u8; 4],
    /// Backend slot.
    pub slot: u32,
    /// Policies that are about the backend: bit `n` is policy slot `n`.
    pub policies: u64,
}
layout!(Instance, 16);
