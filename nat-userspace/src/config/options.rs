// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a rule does with its flows beside giving them ports: mapping, segment sizes, identification, other protocols.

use std::{collections::HashMap, ops::Range};

use nat_common::abi::grant::protocol;
use toml::Spanned;

use super::{
    decode::{Report, WordOrNumber},
    gateway::Protocol,
    schema::{RuleSection, Strings},
    validate::{choice, word},
};
use crate::config::names::did_you_mean;

/// What a rule does with its flows beside giving them ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `mapping` and what goes with it.
    pub mapping: Mapping,
    /// `mss_clamp`.
    pub clamp: Clamp,
    /// `ip_id`.
    pub ip_id: IpId,
    /// `other_protocols`: bits of `nat_common::abi::grant::protocol`.
    pub protocols: u32,
}

/// `mapping`: what a SNAT port belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// To one flow; towards other destinations it may belong to others (RFC 7857 §3).
    #[default]
    ByDestination,
    /// To one inner address and port, whatever it is used for (RFC 4787 REQ-1).
    Independent {
        /// `filtering`.
        filtering: Filtering,
        /// `port_parity`.
        parity: bool,
    },
}

/// `filtering`: who may send to a mapping (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Anybody.
    Independent,
    /// The addresses that it has sent to.
    #[default]
    Address,
    /// The addresses and ports that it has sent to.
    AddressAndPort,
}

/// `mss_clamp`: what becomes of the maximum segment size in SYN segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clamp {
    /// It stays.
    #[default]
    Off,
    /// At most what fits both links.
    Auto,
    /// At most so many bytes.
    Size(u16),
}

/// `ip_id`: what becomes of the IP identification (RFC 6864).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpId {
    /// Fragments get a new one.
    #[default]
    Fragments,
    /// So does what could be fragmented later.
    All,
    /// It stays.
    Keep,
}

/// `tcp_reset`: who hears of the end of a TCP connection that was idle for too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpReset {
    /// Nobody.
    #[default]
    Off,
    /// Both ends, when the timer fires.
    OnIdle,
    /// Whoever sends a segment afterwards.
    OnPacket,
    /// Both ends, and whoever sends a segment nevertheless.
    Both,
}

impl TcpReset {
    /// All, with their words in configuration.
    pub const ALL: [(&'static str, Self); 4] =
        [("off", Self::Off), ("on-idle", Self::OnIdle), ("on-packet", Self::OnPacket), ("both", Self::Both)];

    /// Whether both ends are told when the timer fires.
    #[must_use]
    pub const fn on_idle(self) -> bool {
        matches!(self, Self::OnIdle | Self::Both)
    }

    /// Whether the talker is told.
    #[must_use]
    pub const fn on_packet(self) -> bool {
        matches!(self, Self::OnPacket | Self::Both)
    }
}

/// `rst_check`: which RST ends a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RstCheck {
    /// Every one.
    #[default]
    None,
    /// One whose sequence number its receiver may take for right.
    InWindow,
}

impl RstCheck {
    /// All, with their words in configuration.
    pub const ALL: [(&'static str, Self); 2] = [("none", Self::None), ("in-window", Self::InWindow)];
}

/// `other_protocols` with their bits.
pub const PROTOCOLS: [(&str, u32); 5] = [
    ("sctp", protocol::SCTP),
    ("udp-lite", protocol::UDP_LITE),
    ("dccp", protocol::DCCP),
    ("gre", protocol::GRE),
    ("esp", protocol::ESP),
];

/// Segment sizes that `mss_clamp` can be: from what every host has to accept (RFC 9293 §3.7.1) to what fits the largest
/// IP packet.
const SEGMENT_SIZES: std::ops::RangeInclusive<i64> = 536..=65_495;

/// Options of a rule for `protocol`.
pub(super) fn options(section: &RuleSection, protocol: Protocol, report: &mut Report) -> Options {
    Options {
        mapping: mapping(section, report),
        clamp: section.mss_clamp.as_ref().map(|value| clamp(value, protocol, report)).unwrap_or_default(),
        ip_id: choice(
            "ip_id",
            section.ip_id.as_ref(),
            &[("fragments", IpId::Fragments), ("all", IpId::All), ("keep", IpId::Keep)],
            &[],
            report,
        ),
        protocols: section
            .other_protocols
            .as_ref()
            .map_or(0, |list| protocols(list, section, protocol, report)),
    }
}

fn mapping(section: &RuleSection, report: &mut Report) -> Mapping {
    const WORDS: [(&str, bool); 2] = [("address-and-port-dependent", false), ("endpoint-independent", true)];
    let independent = match &section.mapping {
        Some(value) => match word("mapping", value, &WORDS, &[], report) {
            Some(independent) => independent,
            // What goes with it cannot be judged.
            None => return Mapping::default(),
        },
        None => false,
    };
    let filtering = choice(
        "filtering",
        section.filtering.as_ref(),
        &[
            ("endpoint-independent", Filtering::Independent),
            ("address-dependent", Filtering::Address),
            ("address-and-port-dependent", Filtering::AddressAndPort),
        ],
        &[],
        report,
    );
    if independent {
        let is = |key: &Option<Spanned<bool>>| key.as_ref().is_some_and(|value| *value.get_ref());
        return Mapping::Independent { filtering, parity: is(&section.port_parity) };
    }
    let given: [(&str, Option<Range<usize>>); 2] = [
        ("filtering", section.filtering.as_ref().map(Spanned::span)),
        ("port_parity", section.port_parity.as_ref().map(Spanned::span)),
    ];
    for (key, place) in given {
        let Some(place) = place else { continue };
        report.error(place, format!("`{key}` needs `mapping = \"endpoint-independent\"`")).help(
            "set the mapping too, or remove it: a port that serves many destinations is open to those only",
        );
    }
    Mapping::ByDestination
}

fn clamp(value: &Spanned<WordOrNumber>, protocol: Protocol, report: &mut Report) -> Clamp {
    let found = match value.get_ref() {
        WordOrNumber::Word(text) if text == "off" => return Clamp::Off,
        WordOrNumber::Word(text) if text == "auto" => Ok(Clamp::Auto),
        WordOrNumber::Word(text) => Err(format!("`{text}`")),
        WordOrNumber::Number(number) => match u16::try_from(*number) {
            Ok(size) if SEGMENT_SIZES.contains(number) => Ok(Clamp::Size(size)),
            _ => Err(number.to_string()),
        },
    };
    match found {
        Ok(_) if protocol == Protocol::Udp => {
            report
                .warning(value.span(), "`mss_clamp` has no effect on a rule for udp")
                .help("it is about TCP segments: remove it");
            Clamp::Off
        }
        Ok(clamp) => clamp,
        Err(found) => {
            report
                .error(value.span(), format!("`mss_clamp` cannot be {found}"))
                .help("possible: `\"off\"`, `\"auto\"`, or bytes from 536 to 65,495");
            Clamp::Off
        }
    }
}

fn protocols(list: &Strings, section: &RuleSection, protocol: Protocol, report: &mut Report) -> u32 {
    let names = || PROTOCOLS.into_iter().map(|(name, _)| name);
    let mut bits = 0;
    let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
    for entry in list.get_ref() {
        let text = entry.get_ref().as_str();
        let Some((_, bit)) = PROTOCOLS.into_iter().find(|(name, _)| *name == text) else {
            let help = did_you_mean(text, names()).unwrap_or_else(|| {
                format!(
                    "possible: {}",
                    names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
                )
            });
            report.error(entry.span(), format!("`other_protocols` cannot have `{text}`")).help(help);
            continue;
        };
        if let Some(first) = seen.insert(text, entry.span()) {
            report
                .error(entry.span(), format!("`{text}` is in `other_protocols` twice"))
                .also(first, "first here")
                .help("remove one");
        }
        bits |= bit;
    }
    if let Some(other) = section.protocol.as_ref().filter(|_| protocol != Protocol::All && bits != 0) {
        report
            .error(list.span(), format!("`other_protocols` in a rule for {}", protocol.name()))
            .also(other.span(), "protocol here")
            .help("they belong to a rule for all protocols: remove `protocol`, or `other_protocols`");
    }
    bits
}
