// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timers of a rule, and named sets of them.
//!
//! `docs/timers.md` has every figure with its source; a test reads that table and compares it with [`PROFILES`].

use super::timers::{Refresh, TIMER_CLASSES, TimerClass};
use crate::{Tick, tick};

/// Timers of a rule, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Idle timeouts, by [`TimerClass`].
    pub timeouts: [u32; TIMER_CLASSES],
    /// How long a port rests, by the class in which its flow ended.
    pub rests: [u32; TIMER_CLASSES],
    /// Which packets keep a UDP flow.
    pub refresh: Refresh,
}

impl Timers {
    /// [`Self::timeouts`] in ticks.
    #[must_use]
    pub fn timeout_ticks(&self) -> [Tick; TIMER_CLASSES] {
        self.timeouts.map(tick::from_seconds)
    }

    /// [`Self::rests`] in ticks.
    #[must_use]
    pub fn rest_ticks(&self) -> [Tick; TIMER_CLASSES] {
        self.rests.map(tick::from_seconds)
    }

    /// Sets what a port rests after a flow that ended idle, other than UDP. After FIN and RST it needs no rest of its own:
    /// [`TimerClass::TcpClosed`] and [`TimerClass::TcpReset`] are one.
    #[must_use]
    pub const fn with_idle_rest(mut self, seconds: u32) -> Self {
        self.rests[TimerClass::TcpHandshake as usize] = seconds;
        self.rests[TimerClass::TcpEstablished as usize] = seconds;
        self.rests[TimerClass::TcpHalfClosed as usize] = seconds;
        self.rests[TimerClass::Icmp as usize] = seconds;
        self.rests[TimerClass::Other as usize] = seconds;
        self
    }

    /// Sets what a port rests after a UDP flow.
    #[must_use]
    pub const fn with_udp_rest(mut self, seconds: u32) -> Self {
        self.rests[TimerClass::Udp as usize] = seconds;
        self
    }
}

/// `timeouts` in the order of [`TimerClass::ALL`].
const fn timers(timeouts: [u32; TIMER_CLASSES], refresh: Refresh, idle_rest: u32, udp_rest: u32) -> Timers {
    let none = Timers { timeouts, rests: [0; TIMER_CLASSES], refresh };
    none.with_idle_rest(idle_rest).with_udp_rest(udp_rest)
}

/// Outbound rules of Azure Load Balancer.
pub const AZURE_LB: Timers = timers([30, 240, 240, 240, 15, 240, 60, 240], Refresh::Either, 0, 0);
/// Azure NAT Gateway.
pub const AZURE_NAT: Timers = timers([30, 240, 240, 65, 16, 240, 60, 240], Refresh::Both, 0, 65);
/// NAT gateway of AWS.
pub const AWS: Timers = timers([350, 350, 350, 65, 16, 350, 350, 350], Refresh::Either, 0, 0);
/// RFC 4787, 5382, 5508, 6888 and 7857.
pub const RFC: Timers = timers([240, 7440, 7440, 240, 240, 300, 60, 300], Refresh::Either, 120, 120);

/// Every set by the name that it has in configuration; the first is the default.
pub const PROFILES: [(&str, Timers); 4] =
    [("azure-lb", AZURE_LB), ("azure-nat", AZURE_NAT), ("aws", AWS), ("rfc", RFC)];
