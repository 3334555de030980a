// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a SNAT port towards a destination, as `docs/timers.md` tells it.

use nat_common::{
    Tick,
    abi::{
        flow::{FlowEntry, FlowKey},
        grant::Rule,
    },
    net::timers::{self, Refresh, Seen, TIMER_CLASSES, TimerClass},
};
use serde::Serialize;

/// What a port is held for. One that no flow holds is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Life {
    /// A connection has begun, and is not answered yet.
    Claimed,
    /// A flow uses it.
    Live,
    /// Its connection is ending: a FIN or a RST has been seen.
    Closing,
    /// Its flow is over, and it rests.
    Cooling,
}

impl Life {
    /// In order.
    pub const ALL: [Self; 4] = [Self::Claimed, Self::Live, Self::Closing, Self::Cooling];

    /// Of the port of a flow that `class` governs.
    #[must_use]
    pub const fn of(class: TimerClass, over: bool) -> Self {
        match class {
            _ if over => Self::Cooling,
            TimerClass::TcpHandshake => Self::Claimed,
            TimerClass::TcpHalfClosed | TimerClass::TcpClosed | TimerClass::TcpReset => Self::Closing,
            TimerClass::TcpEstablished | TimerClass::Udp | TimerClass::Icmp | TimerClass::Other => Self::Live,
        }
    }

    /// Name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Live => "live",
            Self::Closing => "closing",
            Self::Cooling => "cooling",
        }
    }
}

/// Flows by the life of their port. Field names are those of the JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lives {
    /// [`Life::Claimed`].
    pub claimed: u64,
    /// [`Life::Live`].
    pub live: u64,
    /// [`Life::Closing`].
    pub closing: u64,
    /// [`Life::Cooling`].
    pub cooling: u64,
}

impl Lives {
    /// Counts one more.
    pub const fn add(&mut self, life: Life) {
        *match life {
            Life::Claimed => &mut self.claimed,
            Life::Live => &mut self.live,
            Life::Closing => &mut self.closing,
            Life::Cooling => &mut self.cooling,
        } += 1;
    }
}

/// When a flow ends and its port comes free, in ticks from the reading, if nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remaining {
    /// Whether it is over.
    pub(super) over: bool,
    /// Until it is.
    pub(super) expires: Tick,
    /// Until its port is free.
    pub(super) releases: Tick,
}

/// Judged as the data path does.
pub(super) fn remaining(
    rule: Option<&Rule>,
    class: TimerClass,
    key: &FlowKey,
    (out, inbound): (&FlowEntry, &FlowEntry),
    now: Tick,
) -> Remaining {
    let index = class as usize % TIMER_CLASSES;
    let mut timeout = rule.map_or(0, |rule| rule.timeouts[index]);
    let mut refresh = Refresh::Either;
    if let Some(rule) = rule.filter(|_| class == TimerClass::Udp) {
        refresh = Refresh::of_flags(rule.flags);
        match timers::port_timeout(&rule.udp_ports, u16::from_be_bytes(key.destination_port)) {
            0 => {}
            by_port => timeout = by_port,
        }
    }
    let rest = timers::rest(rule.map_or(0, |rule| rule.rests[index]));
    let seen = Seen { created: out.created, outbound: out.touched, inbound: inbound.touched };
    let Some(last) = timers::last(refresh, &seen) else {
        return Remaining { over: true, expires: 0, releases: 0 };
    };
    // The table is read after the clock: a packet in between is not from the future.
    let since = now.saturating_sub(last);
    let over = timers::expired(now, last, timeout);
    Remaining {
        over,
        expires: if over { 0 } else { timeout.saturating_sub(since) },
        releases: (timeout + rest).saturating_sub(since),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{
        abi::grant::{PortTimer, RULE_UDP_BOTH},
        tick::from_seconds,
    };

    use super::*;

    #[test]
    fn every_state_is_in_one_life() {
        let of = |class| Life::of(class, false).name();
        let named = TimerClass::ALL.map(|class| (class.name(), of(class)));
        let wanted = [
            ("handshake", "claimed"),
            ("established", "live"),
            ("half-closed", "closing"),
            ("closed", "closing"),
            ("reset", "closing"),
            ("udp", "live"),
            ("icmp", "live"),
            ("other", "live"),
        ];
        assert_eq!(named, wanted);
        assert!(TimerClass::ALL.into_iter().all(|class| Life::of(class, true) == Life::Cooling));
    }

    #[test]
    fn lives_add_up() {
        let mut lives = Lives::default();
        for (number, life) in Life::ALL.into_iter().enumerate() {
            (0..=number).for_each(|_| lives.add(life));
        }
        assert_eq!(lives, Lives { claimed: 1, live: 2, closing: 3, cooling: 4 });
    }

    #[test]
    fn what_remains_follows_direction_port_and_rest() {
        const NOW: Tick = 1_000_000;
        let ago = |seconds| NOW - from_seconds(seconds);
        let mut rule = Rule::zeroed();
        rule.timeouts[TimerClass::Udp as usize] = from_seconds(240);
        let key = FlowKey { destination_port: 53u16.to_be_bytes(), ..FlowKey::default() };
        let out = FlowEntry { created: ago(500), touched: ago(10), ..FlowEntry::default() };
        let inbound = FlowEntry { created: ago(500), touched: ago(100), ..FlowEntry::default() };
        let seconds = |rule: &Rule, inbound: &FlowEntry| {
            let found = remaining(Some(rule), TimerClass::Udp, &key, (&out, inbound), NOW);
            let to_seconds = nat_common::tick::to_seconds;
            (found.over, to_seconds(found.expires), to_seconds(found.releases))
        };
        assert_eq!(seconds(&rule, &inbound), (false, 230, 232));
        rule.rests[TimerClass::Udp as usize] = from_seconds(65);
        assert_eq!(seconds(&rule, &inbound), (false, 230, 295));
        rule.flags = RULE_UDP_BOTH;
        assert_eq!(seconds(&rule, &inbound), (false, 140, 205));
        // Never answered, and opened long ago.
        let silent = FlowEntry { touched: 0, ..inbound };
        assert_eq!(seconds(&rule, &silent), (true, 0, 0));
        rule.udp_ports[0] = PortTimer { first: 53, last: 53, timeout: from_seconds(60) };
        assert_eq!(seconds(&rule, &inbound), (true, 0, 25));
        rule.flags = 0;
        assert_eq!(seconds(&rule, &inbound), (false, 49, 115));
    }
}
