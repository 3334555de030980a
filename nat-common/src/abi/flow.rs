// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flow table.
//!
//! A flow is two entries of one hash map, its *halves*. The outbound half is found by packets from the backend
//! (key: inner tuple), the inbound half by packets from the destination (key: outer tuple, seen from outside).
//! Inserting the inbound half with `BPF_NOEXIST` is the one atomic operation that claims a SNAT port.
//!
//! Key and entry are 16 and 64 bytes, so that with the kernel's 48-byte element header
//! (`struct htab_elem`, kernel/bpf/hashtab.c, Linux 6.18) an element is 128 bytes: two cache lines.

use super::layout;
use crate::Tick;
use bytemuck::{Pod, Zeroable};

/// A 5-tuple exactly as it stands in the packet that finds the entry.
///
/// For ICMP echo the identifier takes the place of the port at the inner side: `source_port` outbound,
/// `destination_port` inbound; the other one is zero (RFC 5508 §3.1).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address, network byte order.
    pub source: [u8; 4],
    /// Destination address, network byte order.
    pub destination: [u8; 4],
    /// Source port or identifier, network byte order.
    pub source_port: [u8; 2],
    /// Destination port or identifier, network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// First byte: `ZONE_*`; the others are zero.
    pub zone: [u8; 3],
}
layout!(FlowKey, 16);

impl FlowKey {
    /// Folds the key into 32 bits for [`FlowEntry::identity`].
    ///
    /// Not a hash against adversaries: it only has to differ, with high probability, between two keys that occupy
    /// the same map element one after the other.
    #[inline(always)]
    #[must_use]
    pub fn fold(&self) -> u32 {
        let [source, destination, ports, rest] = *bytemuck::cast_ref::<Self, [u32; 4]>(self);
        (source ^ destination.rotate_left(11)).wrapping_mul(0x9e37_79b1)
            ^ (ports.wrapping_add(rest.rotate_left(24))).wrapping_mul(0x85eb_ca6b)
    }

    /// Sets both ports, as loaded from the packet. As one word, because the look-up reads it as one: a load that spans two
    /// stores waits for both to reach the cache.
    #[inline(always)]
    pub fn set_ports(&mut self, [source, destination]: [u16; 2]) {
        let ([a, b], [c, d]) = (source.to_ne_bytes(), destination.to_ne_bytes());
        bytemuck::cast_mut::<Self, [u32; 4]>(self)[2] = u32::from_ne_bytes([a, b, c, d]);
    }

    /// Sets the protocol, and the zone to [`ZONE_FLOW`]; as one word, see [`Self::set_ports`].
    #[inline(always)]
    pub fn set_protocol(&mut self, protocol: u8) {
        bytemuck::cast_mut::<Self, [u32; 4]>(self)[3] = u32::from_ne_bytes([protocol, ZONE_FLOW, 0, 0]);
    }

    /// The key with both ends exchanged.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            zone: self.zone,
        }
    }
}

/// One half of a flow.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// [`FlowKey::fold`] of this half's key. Elements of a preallocated map are recycled at once, without a grace
    /// period: a reader checks this again after it has copied what it needs.
    pub identity: u32,
    /// Low 16 bits: what has been seen ([`crate::net::state`]), high 16 bits: nonce of the flow, equal in both
    /// halves. Shares an aligned 64-bit word with `identity`, so that one compare-and-swap changes the state only
    /// of the flow that was meant.
    pub state: u32,
    /// Address to write: the frontend's (outbound half) or the backend's (inbound half).
    pub address: [u8; 4],
    /// Port or identifier to write, network byte order.
    pub port: [u8; 2],
    /// [`HALF_OUTBOUND`] or [`HALF_INBOUND`], and what the flow was counted in: [`HALF_BURST`], ….
    pub half: u8,
    /// Slot of the port the packet leaves by.
    pub slot: u8,
    /// When this half last saw a packet, or 0: never.
    pub touched: Tick,
    /// [`super::config::Control::epoch`] at which the next hop below was looked up.
    pub epoch: u32,
    /// [`super::grant::grant_slot`]: backend slot × 4 + protocol class.
    pub grant: u32,
    /// When the flow was opened.
    pub created: Tick,
    /// Destination MAC address of the next hop.
    pub next_hop: [u8; 6],
    /// Largest IP packet that fits the route, in bytes.
    pub mtu: u16,
    /// Rule slot.
    pub rule: u16,
    /// Number of the rule's destination that the flow was counted in, plus one; 0: none. And [`DESTINATION_ASIDE`].
    pub destination: u8,
    /// `FLOW_*`: what is done beside translation, fixed when the flow is opened.
    pub flags: u8,
    /// [`FLOW_SEQUENCE`]: the TCP sequence number after the last one that the sender of this half has used (its SND.NXT,
    /// RFC 9293 §3.3.1, as seen here), host byte order. [`FLOW_MAPPING`], outbound half: its sessions, [`MAPPING_GONE`];
    /// inbound half: the tick until which any of them may live.
    pub sequence: u32,
    /// Packets translated by this half.
    pub packets: u64,
    /// Bytes translated by this half: IP total length.
    pub bytes: u64,
}
layout!(FlowEntry, 64);

/// [`FlowEntry::half`]: found by packets from the backend.
pub const HALF_OUTBOUND: u8 = 1;
/// [`FlowEntry::half`]: found by packets from the destination.
pub const HALF_INBOUND: u8 = 2;
/// [`FlowEntry::half`]: the flow is above its backend's guaranteed share of the table and takes from the common
/// budget ([`super::config::Table::burst`]).
pub const HALF_BURST: u8 = 0x80;
/// [`FlowEntry::half`]: the flow is counted in its backend's [`super::grant::Quota`].
pub const HALF_LIMITED: u8 = 0x40;
/// [`FlowEntry::half`]: and there on what its destination has reserved, not in [`super::grant::Quota::flows`].
pub const HALF_RESERVED: u8 = 0x20;
/// [`FlowEntry::destination`]: what the destination has reserved was set aside from the backend's guaranteed share of the
/// table, so that the flow is not counted there.
pub const DESTINATION_ASIDE: u8 = 0x80;
/// [`FlowEntry::half`]: the flow is counted in `TOWARDS`.
pub const HALF_CAPPED: u8 = 0x10;
/// [`FlowEntry::half`]: the rule is not for TCP ([`super::grant::quota_index`]).
pub const HALF_WITHOUT_TCP: u8 = 0x08;
/// [`FlowEntry::half`]: opened from outside, on an instance IP.
pub const HALF_INSTANCE: u8 = 0x04;

/// [`FlowEntry::flags`]: TCP sequence numbers are kept in [`FlowEntry::sequence`].
pub const FLOW_SEQUENCE: u8 = 1;
/// [`FlowEntry::flags`]: the flow's SNAT port belongs to a mapping ([`ZONE_MAPPING`]), not to the flow.
pub const FLOW_MAPPED: u8 = 1 << 1;
/// [`FlowEntry::flags`]: SYN segments get a smaller maximum segment size if theirs does not fit.
pub const FLOW_CLAMP: u8 = 1 << 2;
/// [`FlowEntry::flags`]: packets that may be fragmented get a new IP identification.
pub const FLOW_IDENTIFY: u8 = 1 << 3;

/// [`FlowEntry::flags`]: the flow is counted in `PEERS`.
pub const FLOW_PEER: u8 = 1 << 6;
/// [`FlowEntry::flags`]: this is a mapping itself.
pub const FLOW_MAPPING: u8 = 1 << 7;
/// [`FlowEntry::sequence`] of a mapping's outbound half: the mapping is being removed.
pub const MAPPING_GONE: u32 = 1 << 31;

/// [`FlowKey::zone`]: flows.
pub const ZONE_FLOW: u8 = 0;
/// [`FlowKey::zone`]: endpoint-independent mappings, kept as flows to the destination 0.0.0.0:0.
pub const ZONE_MAPPING: u8 = 1;

/// Entries of the flow table: two for each flow, and two more where that is a power of two. The kernel makes as many
/// buckets as entries, rounded up to a power of two (`htab_map_alloc`, kernel/bpf/hashtab.c, Linux 6.18): with the two, at
/// most half of the buckets are in use, so that a look-up hardly ever goes past another flow's element, which at a
/// million flows is a cache miss.
#[must_use]
pub const fn table_entries(max_flows: u32) -> u32 {
    let entries = max_flows.saturating_mul(2);
    if entries.is_power_of_two() { entries + 2 } else { entries }
}

/// Kernel memory of the flow table, in bytes: an element is the kernel's header of 48 bytes, key and entry; a bucket is 16
/// bytes. 288 to 320 bytes a flow.
#[must_use]
pub const fn table_bytes(max_flows: u32) -> u64 {
    let entries = table_entries(max_flows) as u64;
    entries * (48 + size_of::<FlowKey>() + size_of::<FlowEntry>()) as u64 + entries.next_power_of_two() * 16
}

/// Key of the inbound half that belongs to an outbound key translated to `address:port`.
#[inline(always)]
#[must_use]
pub const fn inbound_key(outbound: &FlowKey, address: [u8; 4], port: [u8; 2]) -> FlowKey {
    FlowKey {
        source: outbound.destination,
        destination: address,
        source_port: outbound.destination_port,
        destination_port: port,
        protocol: outbound.protocol,
        zone: outbound.zone,
    }
}

/// Key of the mapping (its outbound half) that an inner end has.
#[inline(always)]
#[must_use]
pub const fn mapping_key(address: [u8; 4], port: [u8; 2], protocol: u8) -> FlowKey {
    FlowKey {
        source: address,
        destination: [0; 4],
        source_port: port,
        destination_port: [0; 2],
        protocol,
        zone: [ZONE_MAPPING, 0, 0],
    }
}

/// Key of the mapping (its inbound half) that a SNAT port belongs to.
#[inline(always)]
#[must_use]
pub const fn mapped_port_key(address: [u8; 4], port: [u8; 2], protocol: u8) -> FlowKey {
    inbound_key(&mapping_key([0; 4], [0; 2], protocol), address, port)
}

/// Key of the other half: where `entry` under `key` points to.
#[inline(always)]
#[must_use]
pub const fn peer_key(key: &FlowKey, address: [u8; 4], port: [u8; 2], half: u8) -> FlowKey {
    if half & HALF_OUTBOUND != 0 {
        inbound_key(key, address, port)
    } else {
        FlowKey {
            source: address,
            destination: key.source,
            source_port: port,
            destination_port: key.source_port,
            protocol: key.protocol,
            zone: key.zone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: FlowKey = FlowKey {
        source: [10, 0, 0, 4],
        destination: [198, 51, 100, 1],
        source_port: [0x9c, 0x40],
        destination_port: [0, 80],
        protocol: 6,
        zone: [0; 3],
    };

    #[test]
    fn the_peer_of_the_peer_is_the_half_itself() {
        let (address, port) = ([203, 0, 113, 10], [4, 1]);
        let inbound = peer_key(&OUT, address, port, HALF_OUTBOUND | HALF_BURST);
        assert_eq!(inbound.destination, address);
        assert_eq!(peer_key(&inbound, OUT.source, OUT.source_port, HALF_INBOUND), OUT);
    }

    #[test]
    fn no_table_has_more_entries_than_half_its_buckets_where_they_are_a_power_of_two() {
        assert_eq!(table_entries(1 << 20), (1 << 21) + 2);
        assert_eq!(table_entries(3 << 19), 3 << 20);
        for max_flows in [1024, 1 << 20, 1 << 24, 1500, 3 << 19, 1_000_000] {
            let each = table_bytes(max_flows) / u64::from(max_flows);
            assert!((288..=321).contains(&each), "{max_flows}: {each} bytes");
        }
    }

    #[test]
    fn a_mapping_s_halves_point_to_each_other() {
        let (address, port) = ([203, 0, 113, 10], [4, 1]);
        let key = mapping_key(OUT.source, OUT.source_port, OUT.protocol);
        assert_eq!(
            peer_key(&key, address, port, HALF_OUTBOUND),
            mapped_port_key(address, port, OUT.protocol)
        );
        assert_ne!(key.fold(), FlowKey { zone: [0; 3], ..key }.fold());
    }

    #[test]
    fn neighbouring_keys_fold_differently() {
        let mut seen = std::collections::HashSet::new();
        for host in 0..64u8 {
            for port in 0..1024u16 {
                let key = FlowKey { source: [10, 0, 0, host], source_port: port.to_be_bytes(), ..OUT };
                assert!(seen.insert(key.fold()), "{key:?}");
                assert_ne!(key.fold(), key.reversed().fold());
            }
        }
    }
}
