// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration that has been checked. Nothing past this point parses or validates again.

use std::net::Ipv4Addr;

use nat_common::{
    Tick,
    abi::config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP},
    net::timers::{self, TIMER_CLASSES},
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
    /// Whether missing frontend addresses are added to the outside interface.
    pub assign_frontends: bool,
    /// Frontends in the order of the file.
    pub frontends: Vec<Frontend>,
    /// Pools in the order of the file.
    pub pools: Vec<Pool>,
    /// Outbound rules in the order of the file.
    pub rules: Vec<OutboundRule>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Name, at most 32 bytes.
    pub name: String,
    /// Addresses with prefixes expanded, in the order of the file.
    pub addresses: Vec<Ipv4Addr>,
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
}

impl Protocol {
    /// Protocol classes (`nat_common::abi::config::CLASS_TCP`, …) that the rule has ports for.
    #[must_use]
    pub const fn classes(self) -> &'static [u32] {
        match self {
            Self::All => &[CLASS_TCP, CLASS_UDP, CLASS_ICMP],
            Self::Tcp => &[CLASS_TCP],
            Self::Udp => &[CLASS_UDP],
        }
    }

    /// As in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Ties a pool to frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundRule {
    /// Name, at most 48 bytes.
    pub name: String,
    /// Index into [`Gateway::pools`].
    pub pool: usize,
    /// Indices into [`Gateway::frontends`], without repetition.
    pub frontends: Vec<usize>,
    /// Protocols.
    pub protocol: Protocol,
    /// Ports of each backend and protocol class: a positive multiple of 8. The default tiers are already applied.
    pub ports_per_backend: u32,
    /// Whether the file gives `ports_per_backend`; false: it follows from the default tiers.
    pub ports_explicit: bool,
    /// Seconds an established TCP connection may be idle.
    pub idle_timeout: u32,
}

impl OutboundRule {
    /// Timeouts of the rule's flows in ticks, by `nat_common::net::timers::TimerClass`.
    #[must_use]
    pub const fn timeouts(&self) -> [Tick; TIMER_CLASSES] {
        timers::azure_lb(self.idle_timeout)
    }
}

impl Gateway {
    /// Backends of `rule`.
    #[must_use]
    pub fn backends_of(&self, rule: &OutboundRule) -> &[Backend] {
        &self.pools[rule.pool].backends
    }

    /// Frontend addresses of `rule`, in the order of its `frontends`.
    pub fn addresses_of(&self, rule: &OutboundRule) -> impl Iterator<Item = Ipv4Addr> {
        rule.frontends.iter().flat_map(|frontend| self.frontends[*frontend].addresses.iter().copied())
    }
}
