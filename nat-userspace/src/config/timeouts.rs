// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[outbound_rule.timeouts]` and `idle_timeout`: timers of a rule.

use std::ops::RangeInclusive;

use nat_common::{
    abi::grant::MAX_PORT_TIMERS,
    net::{
        profiles::{AZURE_LB, PROFILES, Timers},
        timers::{Refresh, TimerClass},
    },
};
use toml::Spanned;

use super::{
    decode::Report,
    gateway::{PortRange, Protocol},
    ports::{DESTINATIONS, ports},
    schema::{TimeoutsSection, UdpPortsSection},
    validate::word,
    values::{Fault, seconds, seconds_or_none},
};

/// Idle timeouts that Azure accepts for outbound rules, in seconds ("Outbound rules").
const AZURE_IDLE: RangeInclusive<u32> = 240..=7200;

/// Timers of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTimers {
    /// By what has been seen of a flow, in seconds.
    pub timers: Timers,
    /// Idle timeouts of UDP flows by destination port; the first that matches counts. At most [`MAX_PORT_TIMERS`].
    pub udp_ports: Vec<PortTimeout>,
}

impl Default for RuleTimers {
    fn default() -> Self {
        Self { timers: AZURE_LB, udp_ports: Vec::new() }
    }
}

impl RuleTimers {
    /// Seconds that an established TCP connection may be idle.
    #[must_use]
    pub const fn established(&self) -> u32 {
        self.timers.timeouts[TimerClass::TcpEstablished as usize]
    }
}

/// An idle timeout of UDP flows to some ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortTimeout {
    /// Destination ports.
    pub ports: PortRange,
    /// Seconds.
    pub timeout: u32,
}

/// What a key of the table sets, in the order of the documentation.
const KEYS: [(&str, Kind, Part); 10] = [
    ("half_open", Kind::Timeout(TimerClass::TcpHandshake), Part::Tcp),
    ("established", Kind::Timeout(TimerClass::TcpEstablished), Part::Tcp),
    ("half_closed", Kind::Timeout(TimerClass::TcpHalfClosed), Part::Tcp),
    ("after_fin", Kind::Timeout(TimerClass::TcpClosed), Part::Tcp),
    ("after_rst", Kind::Timeout(TimerClass::TcpReset), Part::Tcp),
    ("after_idle", Kind::IdleRest, Part::Any),
    ("udp", Kind::Timeout(TimerClass::Udp), Part::Udp),
    ("after_udp", Kind::UdpRest, Part::Udp),
    ("icmp", Kind::Timeout(TimerClass::Icmp), Part::Icmp),
    ("other", Kind::Timeout(TimerClass::Other), Part::Other),
];

#[derive(Clone, Copy)]
enum Kind {
    Timeout(TimerClass),
    IdleRest,
    UdpRest,
}

/// Flows that a key is about.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Any,
    Tcp,
    Udp,
    Icmp,
    Other,
}

impl Part {
    /// Whether a rule for `protocol`, with `others` beside it, has such flows.
    fn is_in(self, protocol: Protocol, others: bool) -> bool {
        match self {
            Self::Tcp => matches!(protocol, Protocol::All | Protocol::Tcp),
            Self::Udp => matches!(protocol, Protocol::All | Protocol::Udp),
            Self::Icmp => protocol == Protocol::All,
            Self::Other => others,
            // UDP has a rest of its own.
            Self::Any => protocol != Protocol::Udp,
        }
    }
}

/// The seconds of key `name` in `timers`, as the documentation's table names it.
#[cfg(test)]
pub(super) fn seconds_of(timers: &Timers, name: &str) -> Option<u32> {
    let (_, kind, _) = KEYS.into_iter().find(|(key, _, _)| *key == name)?;
    Some(match kind {
        Kind::Timeout(class) => timers.timeouts[class as usize],
        Kind::IdleRest => timers.rests[TimerClass::TcpEstablished as usize],
        Kind::UdpRest => timers.rests[TimerClass::Udp as usize],
    })
}

/// Timers of a rule for `protocol`, and `others` beside it.
pub(super) fn timers(
    idle_timeout: Option<&Spanned<String>>,
    section: Option<&TimeoutsSection>,
    protocol: Protocol,
    others: bool,
    report: &mut Report,
) -> RuleTimers {
    let mut timers = section.map(|section| table(section, protocol, others, report)).unwrap_or_default();
    if let Some(value) = idle_timeout {
        let established =
            section.and_then(|section| section.keys.iter().find(|(key, _)| *key == "established"));
        if let Some((_, other)) = established {
            report
                .error(value.span(), "both `idle_timeout` and `established` are given")
                .also(other.span(), "`established` in `timeouts`")
                .help("they are the same timer: remove one");
        }
        if let Some(seconds) = idle(value, protocol, report) {
            timers.timers.timeouts[TimerClass::TcpEstablished as usize] = seconds;
        }
    }
    timers
}

fn table(section: &TimeoutsSection, protocol: Protocol, others: bool, report: &mut Report) -> RuleTimers {
    let profile = section.profile.as_ref().and_then(|value| word("profile", value, &PROFILES, &[], report));
    let mut timers = profile.unwrap_or(AZURE_LB);
    for (key, value) in &section.keys {
        let Some((_, kind, part)) = KEYS.into_iter().find(|(known, _, _)| known == key) else { continue };
        let read = if matches!(kind, Kind::Timeout(_)) { seconds } else { seconds_or_none };
        let Some(seconds) = told(value, read(value.get_ref()), report) else { continue };
        match kind {
            Kind::Timeout(class) => timers.timeouts[class as usize] = seconds,
            Kind::IdleRest => timers = timers.with_idle_rest(seconds),
            Kind::UdpRest => timers = timers.with_udp_rest(seconds),
        }
        no_effect(key, value, part, protocol, others, report);
    }
    if let Some(value) = &section.udp_refresh {
        if let Some(refresh) = word("udp_refresh", value, &Refresh::ALL, &[], report) {
            timers.refresh = refresh;
        }
        no_effect("udp_refresh", value, Part::Udp, protocol, others, report);
    }
    RuleTimers { timers, udp_ports: udp_ports(section, protocol, report) }
}

/// Warns of a key that is about flows which the rule does not have.
fn no_effect(
    key: &str,
    value: &Spanned<String>,
    part: Part,
    protocol: Protocol,
    others: bool,
    report: &mut Report,
) {
    if part.is_in(protocol, others) {
        return;
    }
    let message = if part == Part::Other && protocol == Protocol::All {
        format!("`{key}` has no effect without `other_protocols`")
    } else {
        format!("`{key}` has no effect on a rule for {}", protocol.name())
    };
    report.warning(value.span(), message).help("remove it");
}

fn told(value: &Spanned<String>, found: Result<u32, Fault>, report: &mut Report) -> Option<u32> {
    match found {
        Ok(seconds) => Some(seconds),
        Err(fault) => {
            report.error(value.span(), fault.message).help(fault.help);
            None
        }
    }
}

fn udp_ports(section: &TimeoutsSection, protocol: Protocol, report: &mut Report) -> Vec<PortTimeout> {
    let mut list: Vec<PortTimeout> = Vec::new();
    for entry in &section.udp_ports {
        let timeout = entry.timeout.as_ref().and_then(|value| told(value, seconds(value.get_ref()), report));
        let given = entry.ports.as_ref().map(|given| ports(given, &DESTINATIONS, report)).unwrap_or_default();
        if let Some(empty) = entry.ports.as_ref().filter(|given| given.get_ref().is_empty()) {
            report.error(empty.span(), "`ports` is empty").help("for example `ports = [53]`");
        }
        unreached(&list, &given, entry, report);
        let timeout = timeout.unwrap_or(1);
        list.extend(given.into_iter().map(|ports| PortTimeout { ports, timeout }));
    }
    let Some(last) = section.udp_ports.last() else { return list };
    if list.len() > MAX_PORT_TIMERS {
        report
            .error(last.span.clone(), format!("{} ranges of ports in `udp_ports`", list.len()))
            .help(format!("at most {MAX_PORT_TIMERS} are possible, all its tables together"));
        list.truncate(MAX_PORT_TIMERS);
    }
    if !Part::Udp.is_in(protocol, false) {
        report
            .warning(
                last.span.clone(),
                format!("`udp_ports` has no effect on a rule for {}", protocol.name()),
            )
            .help("remove it");
    }
    list
}

/// Warns of ports that earlier tables have all.
fn unreached(earlier: &[PortTimeout], ports: &[PortRange], entry: &UdpPortsSection, report: &mut Report) {
    let covered = |range: &PortRange| {
        earlier.iter().any(|timer| timer.ports.first <= range.first && range.last <= timer.ports.last)
    };
    if !ports.is_empty() && ports.iter().all(covered) {
        report
            .warning(entry.span.clone(), "these ports are all in a table before")
            .help("the first table that matches counts: put the narrower one first");
    }
}

/// Seconds of `idle_timeout`.
fn idle(value: &Spanned<String>, protocol: Protocol, report: &mut Report) -> Option<u32> {
    let text = value.get_ref();
    let seconds = told(value, seconds(text), report)?;
    if protocol == Protocol::Udp {
        report
            .warning(value.span(), "`idle_timeout` has no effect on a rule for udp")
            .help("it is the timer of established TCP connections");
    } else if !AZURE_IDLE.contains(&seconds) {
        report
            .warning(
                value.span(),
                format!("idle timeout `{text}` is outside the 4m to 120m that Azure accepts"),
            )
            .help("natgw keeps to it; for Azure's behaviour choose from `4m` to `120m`");
    }
    Some(seconds)
}
