// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a flow lives without packets, by what has been seen of it.

use super::{profiles::AZURE_LB, state};
use crate::{
    Tick,
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP},
        grant::{RULE_UDP_BOTH, RULE_UDP_OUTBOUND},
    },
    tick,
};

/// Number of [`TimerClass`]es, rounded up to a power of two so that an index can be masked.
pub const TIMER_CLASSES: usize = 8;

/// Which timer governs a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum TimerClass {
    /// TCP handshake not finished.
    TcpHandshake = 0,
    /// TCP established.
    TcpEstablished = 1,
    /// One side has sent FIN.
    TcpHalfClosed = 2,
    /// Both sides have sent FIN: the port cools down.
    TcpClosed = 3,
    /// A RST was seen: the port cools down.
    TcpReset = 4,
    /// UDP.
    Udp = 5,
    /// ICMP query.
    Icmp = 6,
    /// Another protocol.
    Other = 7,
}

impl TimerClass {
    /// Every class, in numerical order.
    pub const ALL: [Self; 8] = [
        Self::TcpHandshake,
        Self::TcpEstablished,
        Self::TcpHalfClosed,
        Self::TcpClosed,
        Self::TcpReset,
        Self::Udp,
        Self::Icmp,
        Self::Other,
    ];

    /// State name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpHandshake => "handshake",
            Self::TcpEstablished => "established",
            Self::TcpHalfClosed => "half-closed",
            Self::TcpClosed => "closed",
            Self::TcpReset => "reset",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }

    /// Whether packets prolong the flow. They do not once it is over: a port that cools down becomes free at its
    /// time, however often the last segment is retransmitted.
    #[inline(always)]
    #[must_use]
    pub const fn refreshes(self) -> bool {
        !matches!(self, Self::TcpClosed | Self::TcpReset)
    }
}

/// The timer that governs a flow of `class` (`CLASS_TCP`, …) in `state` ([`state`] bits).
#[inline(always)]
#[must_use]
pub const fn class_of(class: u32, state: u32) -> TimerClass {
    if class == CLASS_UDP {
        return TimerClass::Udp;
    }
    if class == CLASS_ICMP {
        return TimerClass::Icmp;
    }
    if class != CLASS_TCP {
        return TimerClass::Other;
    }
    if state & state::RST != 0 {
        TimerClass::TcpReset
    } else if state & state::FIN_OUT != 0 && state & state::FIN_IN != 0 {
        TimerClass::TcpClosed
    } else if state & (state::FIN_OUT | state::FIN_IN) != 0 {
        TimerClass::TcpHalfClosed
    } else if state & state::ESTABLISHED != 0 {
        TimerClass::TcpEstablished
    } else {
        TimerClass::TcpHandshake
    }
}

/// Whether a flow last touched at `touched` is over at `now`. Strictly later: with whole ticks only this gives at
/// least `timeout` of idle time.
#[inline(always)]
#[must_use]
pub const fn expired(now: Tick, touched: Tick, timeout: Tick) -> bool {
    now.wrapping_sub(touched) as i32 > timeout as i32
}

/// Ticks between a flow's end and its removal: any packet that had found it alive has long been sent (about 2 s).
pub const GRACE: Tick = 4;

/// Longest timeout that can be configured: [`expired`] compares signed 32-bit tick differences.
pub const MAX_TIMEOUT_SECONDS: u32 = 30 * 86_400;

/// Which packets keep a UDP flow (RFC 4787 REQ-6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Refresh {
    /// Those of either direction.
    #[default]
    Either,
    /// It is over as soon as one direction has been idle for its timeout.
    Both,
    /// Those from inside.
    Outbound,
}

impl Refresh {
    /// All, with their words in configuration.
    pub const ALL: [(&'static str, Self); 3] =
        [("either", Self::Either), ("both", Self::Both), ("outbound", Self::Outbound)];

    /// As `RULE_*` flags of [`crate::abi::grant::Rule::flags`].
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::Either => 0,
            Self::Both => RULE_UDP_BOTH,
            Self::Outbound => RULE_UDP_OUTBOUND,
        }
    }

    /// Of [`crate::abi::grant::Rule::flags`].
    #[inline(always)]
    #[must_use]
    pub const fn of_flags(flags: u32) -> Self {
        if flags & RULE_UDP_BOTH != 0 {
            Self::Both
        } else if flags & RULE_UDP_OUTBOUND != 0 {
            Self::Outbound
        } else {
            Self::Either
        }
    }
}

/// Timers of [`super::profiles::AZURE_LB`] in ticks, with another idle timeout of established connections, in seconds.
#[must_use]
pub const fn azure_lb(idle_timeout: u32) -> [Tick; TIMER_CLASSES] {
    let mut ticks = [0; TIMER_CLASSES];
    let mut class = 0;
    while class < TIMER_CLASSES {
        ticks[class] = tick::from_seconds(AZURE_LB.timeouts[class]);
        class += 1;
    }
    ticks[TimerClass::TcpEstablished as usize] = tick::from_seconds(idle_timeout);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_lives_for_at_least_its_timeout() {
        let timeout = tick::from_seconds(240);
        assert!(!expired(1000 + timeout, 1000, timeout));
        assert!(expired(1000 + timeout + 1, 1000, timeout));
    }

    #[test]
    fn a_clock_read_before_the_touch_does_not_expire_it() {
        assert!(!expired(999, 1000, 0));
    }

    #[test]
    fn expiry_survives_the_wrap_of_the_tick() {
        assert!(!expired(3, u32::MAX - 2, 10));
        assert!(expired(20, u32::MAX - 2, 10));
    }

    #[test]
    fn the_longest_timeout_is_comparable() {
        assert!(tick::from_seconds(MAX_TIMEOUT_SECONDS) < i32::MAX as u32 / 2);
    }
}
