// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration that has been checked. Nothing past this point parses or validates again.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nat_common::abi::config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP};

use super::{
    options::{Options, RstCheck, TcpReset},
    timeouts::RuleTimers,
};

/// A whole configuration: every name refers to something, every number is within its bounds, and its port blocks
/// fit on its frontend addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Instance: names the pin directory and the socket.
    pub name: String,
    /// Interfaces that backends are behind.
    pub inside: Vec<String>,
    /// Interfaces that destinations are behind. One that is in both lists makes the gateway one-armed.
    pub outside: Vec<String>,
    /// How the XDP program is attached.
    pub xdp_mode: XdpMode,
    /// Flows that the table is made for.
    pub max_flows: u32,
    /// Whether missing frontend addresses and instance IPs are added to the outside interface.
    pub assign_frontends: bool,
    /// Frontends in the order of the file.
    pub frontends: Vec<Frontend>,
    /// Pools in the order of the file.
    pub pools: Vec<Pool>,
    /// Outbound rules in the order of the file; after them those that `[default_outbound]` stands for.
    pub rules: Vec<OutboundRule>,
    /// Backends that the tables are made for; `None`: 4,096, or as many as are configured if that is more.
    pub max_backends: Option<u32>,
    /// Which way out wins for a backend that has both an instance IP and an outbound rule.
    pub precedence: Precedence,
    /// What the sender of a packet hears that no outbound rule covers.
    pub on_refusal: Refusal,
    /// `[[deny]]`, `block_smtp` and `[[bypass]]`, in the order in which they are reported.
    pub policies: Vec<Policy>,
    /// `[[instance_ip]]`.
    pub instance_ips: Vec<InstanceIp>,
}

/// `gateway.precedence`: Azure's order is instance IP first with a Load Balancer ("Outbound connections"), NAT Gateway
/// first with a NAT Gateway ("NAT Gateway design").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precedence {
    /// The instance IP, then the outbound rule.
    #[default]
    InstanceFirst,
    /// The outbound rule; the instance IP for answers to inbound connections and for what no rule covers.
    RuleFirst,
}

/// `on_refusal`: what the sender of a refused packet hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// Nothing.
    #[default]
    Silent = 0,
    /// ICMP destination unreachable, code 13 (RFC 5508 REQ-8, RFC 1812).
    AdminProhibited = 1,
    /// ICMP destination unreachable, code 1.
    HostUnreachable = 2,
    /// TCP: RST; other protocols: as [`Self::AdminProhibited`].
    TcpReset = 3,
}

/// A run of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// What a [`Policy`] does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Refused.
    Deny,
    /// Forwarded untranslated (RFC 6888 REQ-6).
    Bypass,
}

/// Which new connections a [`Policy`] is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyDirection {
    /// From backends.
    #[default]
    Outbound,
    /// To instance IPs.
    Inbound,
}

/// A `[[deny]]` or `[[bypass]]`: all its conditions have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name, at most 48 bytes.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// What it is about; a bypass is always outbound.
    pub direction: PolicyDirection,
    /// Index into [`Gateway::pools`]; `None`: every backend.
    pub pool: Option<usize>,
    /// The far ends: destinations outbound, sources inbound. Never empty: `0.0.0.0/0` is all.
    pub remotes: Vec<Ipv4Net>,
    /// Protocol classes: bit `n` is class `n` (`nat_common::abi::config::CLASS_TCP`, …, `CLASS_OTHER`).
    pub classes: u32,
    /// Destination ports, TCP and UDP; empty: all.
    pub ports: Vec<PortRange>,
}

/// `[[instance_ip]]`: an address of a backend's own, 1:1 and without port rewriting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceIp {
    /// Private address; a member of some pool.
    pub backend: Ipv4Addr,
    /// Public address; no frontend's.
    pub address: Ipv4Addr,
}

/// `gateway.xdp_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// Native, or refuse to start.
    Native,
    /// Generic.
    Generic,
}

/// A named set of public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Name, at most 32 bytes.
    pub name: String,
    /// Addresses with prefixes expanded, in the order of the file.
    pub addresses: Vec<Ipv4Addr>,
    /// Ports that are never given to backends, on all its addresses; a range of `host_ports` included.
    pub reserved: Vec<PortRange>,
    /// Ports that are never given to backends on one address: the host's own, once they are known.
    pub reserved_on: Vec<(Ipv4Addr, PortRange)>,
    /// Ports that stay the host's own.
    pub host_ports: HostPorts,
}

impl Frontend {
    /// Ports of `address`, one of its own, that are never given to backends. They may overlap.
    #[must_use]
    pub fn reserved_of(&self, address: Ipv4Addr) -> Vec<PortRange> {
        let here = self.reserved_on.iter().filter(|(on, _)| *on == address).map(|(_, range)| *range);
        self.reserved.iter().copied().chain(here).collect()
    }
}

/// `host_ports` of a frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPorts {
    /// The host's ephemeral range (`net.ipv4.ip_local_port_range`) on addresses that the host has without natgw; none on
    /// others.
    #[default]
    Auto,
    /// None.
    None,
    /// These.
    Range(PortRange),
}

/// A named set of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Name, at most 32 bytes.
    pub name: String,
    /// Backends with prefixes expanded, in the order of the file.
    pub backends: Vec<Backend>,
}

/// A private address behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Configured name, at most 32 bytes.
    pub name: Option<String>,
    /// Private address.
    pub address: Ipv4Addr,
}

/// Which protocols an outbound rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, UDP and ICMP queries.
    #[default]
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP queries; only in the rules that `[default_outbound]` stands for.
    Icmp,
}

impl Protocol {
    /// Protocol classes (`nat_common::abi::config::CLASS_TCP`, …) that the rule has ports for.
    #[must_use]
    pub const fn classes(self) -> &'static [u32] {
        match self {
            Self::All => &[CLASS_TCP, CLASS_UDP, CLASS_ICMP],
            Self::Tcp => &[CLASS_TCP],
            Self::Udp => &[CLASS_UDP],
            Self::Icmp => &[CLASS_ICMP],
        }
    }

    /// As in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// Ties a pool to frontends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundRule {
    /// Name, at most 48 bytes.
    pub name: String,
    /// Index into [`Gateway::pools`]; without meaning if there is [`Self::default_for`].
    pub pool: usize,
    /// Indices into [`Gateway::frontends`], without repetition.
    pub frontends: Vec<usize>,
    /// Protocols.
    pub protocol: Protocol,
    /// Where ports come from.
    pub allocation: Allocation,
    /// Ports of each backend and protocol class that no other backend may use: a multiple of 8. Static: positive, the
    /// default tiers are already applied. Dynamic: `min_ports`, possibly 0.
    pub ports_per_backend: u32,
    /// Whether the file gives `ports_per_backend`; false: it follows from the default tiers.
    pub ports_explicit: bool,
    /// `idle_timeout` and `[outbound_rule.timeouts]`.
    pub timers: RuleTimers,
    /// What is done with flows beside giving them ports.
    pub options: Options,
    /// Dynamic: most flows of a backend and protocol class to one destination (address and port); 0: no cap.
    pub max_ports: u32,
    /// Which of several frontend addresses a flow leaves from; `None`: paired as far as that fits (static), spread
    /// (dynamic).
    pub selection: Option<Selection>,
    /// [`Selection::Pinned`]: frontend address by backend; every backend has one.
    pub pins: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Ports that this rule's backends never get.
    pub excluded: Vec<PortRange>,
    /// What each backend may use up.
    pub limits: Limits,
    /// What each backend may use up towards certain destinations; the first that matches counts. At most
    /// `nat_common::abi::grant::MAX_DESTINATIONS`.
    pub destinations: Vec<DestinationLimit>,
    /// What the sender of a refused packet hears.
    pub on_refusal: Refusal,
    /// Who hears of the end of an idle TCP connection.
    pub tcp_reset: TcpReset,
    /// Which RST ends a flow.
    pub rst_check: RstCheck,
    /// Made by `[default_outbound]`: these backends, which no other rule covers, instead of [`Self::pool`].
    pub default_for: Option<Vec<Backend>>,
}

/// `allocation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// Each backend has a block of its own (Azure Load Balancer).
    #[default]
    Static,
    /// All backends draw on all ports of the rule's addresses (Azure NAT Gateway). No other rule for the same protocol
    /// uses these addresses.
    Dynamic,
}

/// `frontend_selection`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// A backend leaves from one address only (RFC 4787 REQ-2).
    Paired,
    /// Each backend uses all addresses at once.
    Spread,
    /// The next address is used when the one before is full.
    DrainFirst,
    /// [`OutboundRule::pins`] says which.
    Pinned,
}

/// `[outbound_rule.limits]`, of each backend; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Flows at the same time, all protocols of the rule together.
    pub max_flows: u32,
    /// TCP handshakes that are not finished.
    pub max_half_open: u32,
    /// New flows in a second.
    pub new_flows_per_second: u32,
    /// New flows at once, if there were none for long; positive if there is a rate.
    pub new_flow_burst: u32,
}

/// `[[outbound_rule.destination]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationLimit {
    /// Destinations.
    pub prefix: Ipv4Net,
    /// Destination port; `None`: all.
    pub port: Option<u16>,
    /// Protocol classes, as [`Policy::classes`].
    pub classes: u32,
    /// Flows that each backend can always have to them, whatever it does elsewhere.
    pub reserved: u32,
    /// Most flows of each backend to them, all together; 0: no limit.
    pub max_flows: u32,
}

impl Refusal {
    /// All, with their words in configuration.
    pub const ALL: [(&'static str, Self); 4] = [
        ("silent", Self::Silent),
        ("icmp-admin-prohibited", Self::AdminProhibited),
        ("icmp-host-unreachable", Self::HostUnreachable),
        ("tcp-reset", Self::TcpReset),
    ];
}

impl Gateway {
    /// Backends of `rule`.
    #[must_use]
    pub fn backends_of<'a>(&'a self, rule: &'a OutboundRule) -> &'a [Backend] {
        rule.default_for.as_ref().unwrap_or(&self.pools[rule.pool].backends)
    }

    /// Addresses that packets from outside are sent to: those of frontends, and instance IPs.
    pub fn public_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let frontends = self.frontends.iter().flat_map(|frontend| frontend.addresses.iter().copied());
        frontends.chain(self.instance_ips.iter().map(|instance| instance.address))
    }

    /// Frontend addresses of `rule`, in the order of its `frontends`.
    pub fn addresses_of(&self, rule: &OutboundRule) -> impl Iterator<Item = Ipv4Addr> {
        rule.frontends.iter().flat_map(|frontend| self.frontends[*frontend].addresses.iter().copied())
    }
}
