// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Packets as the stack has them: reading and rewriting for the TC programs. The helpers know about checksums that the
//! device is still to compute, and about packets that are not in one piece; arithmetic on the bytes would not.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes_relative, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
};
use nat_common::{
    abi::flow::FlowKey,
    net::{
        checksum::Delta,
        protocol::{self, DCCP, UDP_LITE},
    },
};

use crate::parse::{ICMP, TCP, UDP};

/// Ethertype of IPv4 in `__sk_buff.protocol`, network byte order.
pub(crate) const IPV4: u32 = 0x0800u16.to_be() as u32;
/// Offset of the IPv4 header in the frame; VLAN tags are not in the data, neither on egress nor on ingress of a logical
/// interface.
pub(crate) const L3: u32 = 14;

/// Copies bytes at `offset` from the IP header.
#[inline(always)]
pub(crate) fn load<const N: usize>(skb: *mut __sk_buff, offset: u32, into: &mut [u8; N]) -> bool {
    const FROM_NETWORK_HEADER: u32 = 1;
    // SAFETY: the buffer has the length that is passed.
    unsafe {
        bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            into.as_mut_ptr().cast(),
            N as u32,
            FROM_NETWORK_HEADER,
        ) == 0
    }
}

/// Overwrites bytes of the frame at `offset`.
#[inline(always)]
pub(crate) fn store<const N: usize>(skb: *mut __sk_buff, offset: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: the buffer has the length that is passed.
    unsafe { bpf_skb_store_bytes(skb, offset, bytes.as_ptr().cast(), N as u32, 0) == 0 }
}

/// What to write into a packet of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Edit {
    /// New source (outbound) or destination address.
    pub(crate) address: [u8; 4],
    /// New port or identifier.
    pub(crate) port: [u8; 2],
    /// IP identification.
    pub(crate) id: [u8; 2],
    pub(crate) outbound: bool,
    /// What to take from the TTL.
    pub(crate) decrement: u8,
}

/// Rewrites the transport header of a whole packet or first fragment. A packet for which any step fails has to be
/// dropped: none leaves half-written.
#[inline(always)]
pub(crate) fn transport(skb: *mut __sk_buff, key: &FlowKey, at: u32, edit: &Edit) -> bool {
    let l4 = L3 + at;
    let (address, port) =
        if edit.outbound { (key.source, key.source_port) } else { (key.destination, key.destination_port) };
    let (old_address, new_address) =
        (u64::from(u32::from_ne_bytes(address)), u64::from(u32::from_ne_bytes(edit.address)));
    let (old_port, new_port) =
        (u64::from(u16::from_ne_bytes(port)), u64::from(u16::from_ne_bytes(edit.port)));
    let end = if edit.outbound { 0 } else { 2 };
    if protocol::keeps_port(key.protocol) {
        return true;
    }
    let (checksum, port_offset, flags) = match key.protocol {
        TCP => (l4 + 16, l4 + end, 0),
        UDP | UDP_LITE => (l4 + 6, l4 + end, u64::from(BPF_F_MARK_MANGLED_0)),
        DCCP => (l4 + 6, l4 + end, 0),
        _ => (l4 + 2, l4 + 4, 0),
    };
    // SAFETY: the context is the program's own; buffers have the lengths that are passed.
    unsafe {
        bpf_skb_pull_data(skb, l4 + 8) == 0
            && (key.protocol == ICMP
                || bpf_l4_csum_replace(
                    skb,
                    checksum,
                    old_address,
                    new_address,
                    flags | u64::from(BPF_F_PSEUDO_HDR) | 4,
                ) == 0)
            && bpf_l4_csum_replace(skb, checksum, old_port, new_port, flags | 2) == 0
            && bpf_skb_store_bytes(skb, port_offset, edit.port.as_ptr().cast(), 2, 0) == 0
    }
}

/// Rewrites the IP header. As for [`transport`], a packet for which this fails has to be dropped.
#[inline(always)]
pub(crate) fn network(skb: *mut __sk_buff, header: &[u8; 20], edit: &Edit) -> bool {
    let old = if edit.outbound {
        [header[12], header[13], header[14], header[15]]
    } else {
        [header[16], header[17], header[18], header[19]]
    };
    let at = if edit.outbound { 12 } else { 16 };
    let ttl = header[8].wrapping_sub(edit.decrement);
    let checksum = Delta::ZERO
        .address(old, edit.address)
        .word([header[4], header[5]], edit.id)
        .word([header[8], header[9]], [ttl, header[9]])
        .apply([header[10], header[11]]);
    // The sum over a header with a right checksum is always the same: `skb->csum` stays valid.
    store(skb, L3 + 4, &edit.id)
        && store(skb, L3 + 8, &[ttl])
        && store(skb, L3 + 10, &checksum)
        && store(skb, L3 + at, &edit.address)
}

/// Writes another source address into an IP header, and nothing else.
#[inline(always)]
pub(crate) fn source(skb: *mut __sk_buff, old: [u8; 4], new: [u8; 4]) -> bool {
    let (before, after) = (u64::from(u32::from_ne_bytes(old)), u64::from(u32::from_ne_bytes(new)));
    // SAFETY: as in `transport`.
    unsafe {
        bpf_l3_csum_replace(skb, L3 + 10, before, after, 4) == 0
            && bpf_skb_store_bytes(skb, L3 + 12, new.as_ptr().cast(), 4, 0) == 0
    }
}
