// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verdict reasons and counters.
//!
//! [`Reason`] is closed: every packet that enters the data path ends in exactly one of them, at one place
//! (`nat-ebpf/src/verdict.rs`), so that the counts add up to the packets seen.

use super::layout;
use bytemuck::{Pod, Zeroable};

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Translated and sent.
    Translated,
    /// Answered with an ICMP error to its sender.
    Answered,
    /// Left to the host's network stack as it is.
    Passed,
    /// Gone.
    Dropped,
}

macro_rules! reasons {
    ($($variant:ident = $number:literal, $name:literal, $fate:ident, $help:literal;)*) => {
        /// Why a packet got its verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $(#[doc = $help] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in numerical order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Name in JSON, metrics and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What becomes of such a packet.
            #[must_use]
            pub const fn fate(self) -> Fate {
                match self { $(Self::$variant => Fate::$fate,)* }
            }

            /// One sentence for an operator.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

reasons! {
    TranslatedOut = 0, "translated_out", Translated, "outbound packet of a flow, translated and sent";
    TranslatedIn = 1, "translated_in", Translated, "inbound packet of a flow, translated back and sent";
    IcmpErrorOut = 2, "icmp_error_out", Translated, "ICMP error from inside about a flow, translated with the packet it quotes";
    IcmpErrorIn = 3, "icmp_error_in", Translated, "ICMP error from outside about a flow, translated with the packet it quotes";
    TranslatedToStack = 4, "translated_to_stack", Translated, "inbound packet translated back and left to the stack, which resolves the backend's MAC address";
    InstanceOut = 5, "instance_out", Translated, "outbound packet of a backend with an instance IP, which became its source";
    InstanceIn = 6, "instance_in", Translated, "inbound packet for an instance IP, sent to its backend";
    TtlExceeded = 7, "ttl_exceeded", Answered, "TTL ran out here, answered with ICMP time exceeded";
    TooBig = 8, "too_big", Answered, "larger than the next link and not to be fragmented, answered with ICMP fragmentation needed";
    NotIpv4 = 9, "not_ipv4", Passed, "ARP, IPv6 or another ethertype";
    OtherVlan = 10, "other_vlan", Passed, "tagged for a VLAN, or untagged on a trunk, that is not configured here";
    Local = 11, "local", Passed, "for one of the gateway's own addresses, or the routing tables know no way at all: the stack takes or answers it";
    NotOutbound = 12, "not_outbound", Passed, "its route does not leave by an outside interface (backend to backend)";
    NotFrontend = 13, "not_frontend", Passed, "arrived outside for an address that is not a frontend";
    HostTraffic = 14, "host_traffic", Passed, "for a frontend address that the host owns, to a port that no backend holds";
    Multicast = 15, "multicast", Passed, "multicast or broadcast";
    NeighbourUnresolved = 16, "neighbour_unresolved", Passed, "next hop has no MAC address yet: the stack resolves it and forwards, the guard translates";
    NoRoute = 17, "no_route", Passed, "its route is a blackhole, unreachable, prohibited or encapsulated: the stack answers";
    NoOutboundRule = 18, "no_outbound_rule", Dropped, "no outbound rule covers this source address and protocol";
    NoFreePort = 19, "no_free_port", Dropped, "every port of the backend is taken for this destination";
    NoMapping = 20, "no_mapping", Dropped, "arrived outside for a port that a backend holds, but no flow matches";
    FlowExpired = 21, "flow_expired", Dropped, "the flow it belongs to has been idle for too long";
    TableFull = 22, "table_full", Dropped, "the flow table is full";
    TableShare = 23, "table_share", Dropped, "the backend has used up its share of the flow table";
    TableError = 24, "table_error", Dropped, "the kernel refused a table update for another reason than a full table";
    Fragment = 25, "fragment", Dropped, "a fragment of another protocol than TCP, UDP and ICMP echo: not translated";
    Malformed = 26, "malformed", Dropped, "lengths or header fields contradict each other or the frame";
    BadChecksum = 27, "bad_checksum", Dropped, "wrong checksum: of the IPv4 header in a packet that would open a flow, or of an ICMP error that would be translated";
    TcpNoFlow = 28, "tcp_no_flow", Dropped, "TCP segment that opens nothing (not a SYN) and matches no flow";
    ProtocolUnsupported = 29, "protocol_unsupported", Dropped, "IP protocol that is not translated, or that the outbound rule does not name (`other_protocols`)";
    IcmpUnsupported = 30, "icmp_unsupported", Dropped, "ICMP type that is neither a query nor an error, or a reply to no request";
    IcmpErrorNoFlow = 31, "icmp_error_no_flow", Dropped, "ICMP error that quotes no flow of ours";
    TtlExceededSilent = 32, "ttl_exceeded_silent", Dropped, "TTL ran out here, not answered: rate limit, or the packet must not be answered";
    TooBigSilent = 33, "too_big_silent", Dropped, "larger than the next link, not answered: rate limit, or must not be answered";
    WrongSide = 34, "wrong_side", Dropped, "matches a flow, but arrived from the wrong side";
    FlowRace = 35, "flow_race", Dropped, "another CPU was changing the flow at the same moment";
    FlowRecycled = 36, "flow_recycled", Dropped, "the table entry changed hands while it was read";
    ForwardingOff = 37, "forwarding_off", Passed, "forwarding is off on the interface it came from, so the stack forwards nothing either";
    InvalidSource = 38, "invalid_source", Dropped, "source address that no host may have (zero, loopback, multicast, broadcast)";
    NotConfigured = 39, "not_configured", Dropped, "the data path's own tables are not there: a defect or a half-finished start";
    RouteLost = 40, "route_lost", Dropped, "the flow's route is gone or no longer leaves by an outside interface";
    ForeignInterface = 41, "foreign_interface", Dropped, "from a backend, and its route leaves by an interface that is neither inside nor outside: nothing guards it";
    Bypassed = 42, "bypassed", Passed, "to a `[[bypass]]` destination: forwarded untranslated by the stack";
    Denied = 43, "denied", Dropped, "a `[[deny]]` or `block_smtp` is against it";
    FlowLimit = 44, "flow_limit", Dropped, "the backend has as many flows as its rule allows (`max_flows`)";
    HalfOpenLimit = 45, "half_open_limit", Dropped, "the backend has as many unfinished TCP handshakes as its rule allows (`max_half_open`)";
    RateLimit = 46, "rate_limit", Dropped, "the backend opens flows faster than its rule allows (`new_flows_per_second`)";
    DestinationLimit = 47, "destination_limit", Dropped, "the backend has as many flows to this destination as its rule allows (`[[outbound_rule.destination]]`)";
    PortCap = 48, "port_cap", Dropped, "the backend has as many flows to this destination as its rule allows (`max_ports`)";
    SearchCut = 49, "search_cut", Dropped, "the search for a free port was cut short; what it learnt is kept, and the next packet goes on from there";
    Hairpinned = 50, "hairpinned", Translated, "from a backend to the SNAT port of a mapping: translated twice, and sent to the mapping's backend";
    HairpinUnresolved = 51, "hairpin_unresolved", Dropped, "from a backend to the SNAT port of a mapping, whose backend's MAC address is not known yet";
    FragmentHeld = 52, "fragment_held", Passed, "a fragment that came before the first one of its datagram, or the first one that others wait for: kept, and sent with it, by the program on TC ingress";
    FragmentOrphan = 53, "fragment_orphan", Dropped, "a later fragment of a datagram whose first fragment was dropped, or whose flow is gone";
    FragmentTiny = 54, "fragment_tiny", Dropped, "a first fragment without a whole transport header, or a TCP fragment that would overwrite one (RFC 1858, RFC 3128)";
    FragmentLimit = 55, "fragment_limit", Dropped, "the backend, or the frontend, begins more fragmented datagrams than there is room for";
    TooBigToStack = 56, "too_big_to_stack", Passed, "larger than the next link and may be fragmented: the stack does so, the guard translates the pieces";
}

impl Reason {
    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

/// Room for reasons in [`Counters`]; a power of two, so that an index can be masked.
pub const REASON_SLOTS: usize = 64;
const _: () = assert!(Reason::ALL.len() <= REASON_SLOTS);

/// Counters of one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Packets that entered the XDP program.
    pub seen: u64,
    /// Bytes in their frames.
    pub seen_bytes: u64,
    /// Packets by [`Reason`].
    pub packets: [u64; REASON_SLOTS],
    /// Frame bytes by [`Reason`].
    pub bytes: [u64; REASON_SLOTS],
    /// Guard: packets that the stack forwarded and the guard translated.
    pub guard_translated: u64,
    /// Guard: packets that the stack would have forwarded untranslated.
    pub guard_dropped: u64,
    /// Events that found the ring buffer full.
    pub events_lost: u64,
    /// New flows for which a record could not be made or had been evicted, so that ports were tried one by one.
    pub record_fallbacks: u64,
    /// Searches through every port of a leaf for one that has expired.
    pub searches: u64,
    /// Two CPUs opened the same flow; one of them gave its port back.
    pub same_flow_races: u64,
    /// Refused packets whose sender was told by ICMP.
    pub refusals_icmp: u64,
    /// Refused packets whose sender was told by RST.
    pub refusals_reset: u64,
    /// TCP segments on a flow that is over, or on none, whose sender was told by RST
    /// ([`super::grant::RULE_RESET_PACKET`]).
    pub resets_on_packet: u64,
    /// RST segments that were translated and not believed ([`super::grant::RULE_RESET_CHECK`]).
    pub resets_doubted: u64,
    /// Fragments that were held until the first one of their datagram came.
    pub fragments_held: u64,
    /// Of these, sent on, or given to the stack, when it had come.
    pub fragments_released: u64,
    /// Of these, overwritten because it did not come in time. Those still in place are in `HELD`.
    pub fragments_expired: u64,
    /// Fragments that could not be held: no slot, or too long; or could not be sent on.
    pub fragments_lost: u64,
}
layout!(Counters, 16 + 16 * REASON_SLOTS + 112);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_unique() {
        let mut names = std::collections::HashSet::new();
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number, "{reason:?}");
            assert_eq!(Reason::from_number(*reason as u32), Some(*reason));
            assert!(names.insert(reason.name()), "{reason:?}");
            assert!(!reason.help().ends_with('.'), "{reason:?}");
        }
        assert_eq!(Reason::from_number(REASON_SLOTS as u32), None);
    }
}
