// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a flow lives without packets, by what has been seen of it.

use super::{profiles::AZURE_LB, state};
use crate::{
    Tick,
    abi::{
        config::{CLASS_ICMP, CLASS_TCP, CLASS_UDP},
        grant::{MAX_PORT_TIMERS, PortTimer, RULE_UDP_BOTH, RULE_UDP_OUTBOUND},
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

/// When each direction of a flow last saw a packet; 0: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When the flow was opened.
    pub created: Tick,
    /// From inside.
    pub outbound: Tick,
    /// From outside.
    pub inbound: Tick,
}

/// The tick that a flow's idle time counts from; `None`: no half of it has ever seen a packet, so it is none. A direction
/// that never saw a packet counts from the opening.
#[inline(always)]
#[must_use]
pub const fn last(refresh: Refresh, seen: &Seen) -> Option<Tick> {
    let Seen { created, outbound, inbound } = *seen;
    if outbound == 0 && inbound == 0 {
        return None;
    }
    Some(match refresh {
        Refresh::Either => {
            if inbound != 0 && (outbound == 0 || is_before(outbound, inbound)) {
                inbound
            } else {
                outbound
            }
        }
        Refresh::Both => {
            let (outbound, inbound) = (or(outbound, created), or(inbound, created));
            if is_before(outbound, inbound) { outbound } else { inbound }
        }
        Refresh::Outbound => or(outbound, created),
    })
}

#[inline(always)]
const fn or(touched: Tick, created: Tick) -> Tick {
    if touched == 0 { created } else { touched }
}

#[inline(always)]
const fn is_before(first: Tick, second: Tick) -> bool {
    (first.wrapping_sub(second) as i32) < 0
}

/// The idle timeout of UDP flows to destination port `port`, in ticks; 0: none of its own. The first entry that matches
/// counts.
#[inline(always)]
#[must_use]
pub const fn port_timeout(timers: &[PortTimer; MAX_PORT_TIMERS], port: u16) -> Tick {
    let mut index = 0;
    while index < MAX_PORT_TIMERS {
        let timer = &timers[index];
        if timer.last != 0 && timer.first <= port && port <= timer.last {
            return timer.timeout;
        }
        index += 1;
    }
    0
}

/// Ticks from a flow's end until its port can go to another one, where `rest` is configured.
#[inline(always)]
#[must_use]
pub const fn rest(rest: Tick) -> Tick {
    if rest > GRACE { rest } else { GRACE }
}

/// Ticks between a flow's end and its removal at least: any packet that had found it alive has long been sent (about 2 s).
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

    const HOUR: Tick = tick::from_seconds(3600);

    fn seen(created: Tick, outbound: Tick, inbound: Tick) -> Seen {
        Seen { created, outbound, inbound }
    }

    #[test]
    fn idle_time_counts_from_the_packets_that_refresh() {
        use Refresh::{Both, Either, Outbound};
        for (refresh, flow, wanted) in [
            (Either, seen(10, 20, 30), Some(30)),
            (Either, seen(10, 30, 20), Some(30)),
            (Either, seen(10, 20, 0), Some(20)),
            (Either, seen(10, 0, 20), Some(20)),
            (Both, seen(10, 20, 30), Some(20)),
            (Both, seen(10, 30, 20), Some(20)),
            // A direction without packets counts from the opening.
            (Both, seen(10, 30, 0), Some(10)),
            (Both, seen(10, 0, 30), Some(10)),
            (Outbound, seen(10, 20, 30), Some(20)),
            (Outbound, seen(10, 30, 20), Some(30)),
            (Outbound, seen(10, 0, 30), Some(10)),
            // Nobody's.
            (Either, seen(10, 0, 0), None),
            (Both, seen(10, 0, 0), None),
            (Outbound, seen(10, 0, 0), None),
            // Over the wrap of the tick.
            (Either, seen(Tick::MAX - 9, Tick::MAX, 5), Some(5)),
            (Both, seen(Tick::MAX - 9, Tick::MAX, 5), Some(Tick::MAX)),
        ] {
            assert_eq!(last(refresh, &flow), wanted, "{refresh:?} {flow:?}");
        }
    }

    /// Numbers without a pattern, the same in every run.
    fn numbers() -> impl FnMut(u32) -> u32 {
        let mut state = 0x2545_f491u32;
        move |below| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % below
        }
    }

    /// Two hours of packets at random, told again from the list of them: a flow lives at `now` exactly if the packets that
    /// refresh it were never further apart than its timeout. Times wrap in between.
    #[test]
    fn a_flow_lives_as_long_as_its_packets_keep_it() {
        let mut number = numbers();
        let mut ends = [0; 3];
        for round in 0..3000 {
            let start = Tick::MAX - number(4 * HOUR);
            let timeout = tick::from_seconds(1 + number(7200));
            let (_, refresh) = Refresh::ALL[round % 3];
            let mut flow = seen(start, start, 0);
            let mut packets = [vec![0], vec![]];
            let mut at = 0;
            while at < 2 * HOUR {
                at += 1 + number(timeout + timeout / 8);
                let now = start.wrapping_add(at);
                let since = |packets: &[Tick]| at - packets.last().copied().unwrap_or(0);
                let (out, back) = (since(&packets[0]), since(&packets[1]));
                let idle = match refresh {
                    Refresh::Either => out.min(back),
                    Refresh::Both => out.max(back),
                    Refresh::Outbound => out,
                };
                let over = last(refresh, &flow).is_none_or(|last| expired(now, last, timeout));
                assert_eq!(over, idle > timeout, "{refresh:?}, {flow:?}, timeout {timeout}, now {now}");
                if over {
                    ends[round % 3] += 1;
                    break;
                }
                // Tick 0 is "never": a packet in it goes unseen, once in 73 years.
                if now != 0 {
                    let inbound = number(2) == 1;
                    packets[usize::from(inbound)].push(at);
                    *(if inbound { &mut flow.inbound } else { &mut flow.outbound }) = now;
                }
            }
        }
        assert!(ends.iter().all(|ends| *ends > 100), "{ends:?}");
    }

    #[test]
    fn two_hours_and_four_minutes_are_not_too_long() {
        let timeout = tick::from_seconds(7440);
        let mut touched = 1_000_000;
        // Keepalives every two hours, for ten days, from either side in turn.
        for round in 0u32..120 {
            let now = touched + tick::from_seconds(7200);
            let flow = if round.is_multiple_of(2) { seen(1, touched, 5) } else { seen(1, 5, touched) };
            assert_eq!(last(Refresh::Either, &flow).map(|last| expired(now, last, timeout)), Some(false));
            touched = now;
        }
        assert!(expired(touched + timeout + 1, touched, timeout));
    }

    #[test]
    fn the_first_port_that_matches_counts() {
        let timer = |first, last, timeout| PortTimer { first, last, timeout };
        let mut timers = [PortTimer::default(); MAX_PORT_TIMERS];
        assert!((0..=u16::MAX).all(|port| port_timeout(&timers, port) == 0));
        timers[0] = timer(53, 53, 10);
        timers[1] = timer(50, 60, 20);
        timers[7] = timer(60, u16::MAX, 30);
        for (port, wanted) in
            [(49, 0), (50, 20), (52, 20), (53, 10), (54, 20), (60, 20), (61, 30), (u16::MAX, 30), (0, 0)]
        {
            assert_eq!(port_timeout(&timers, port), wanted, "port {port}");
        }
    }

    #[test]
    fn a_port_rests_for_the_grace_at_least() {
        for (given, wanted) in [(0, GRACE), (1, GRACE), (GRACE, GRACE), (GRACE + 1, GRACE + 1), (HOUR, HOUR)]
        {
            assert_eq!(rest(given), wanted);
        }
    }

    #[test]
    fn a_flag_says_what_refreshes() {
        for (name, refresh) in Refresh::ALL {
            assert_eq!(Refresh::of_flags(refresh.flags()), refresh, "{name}");
            assert_eq!(Refresh::of_flags(refresh.flags() | 1), refresh, "{name}");
        }
    }
}
