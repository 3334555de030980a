// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the ends of TCP connections were told by RST, and which RST segments were not believed.

use nat_common::abi::{counters::Counters, event::ResetCounts};
use serde::Serialize;

use super::instance::Instance;

/// Counts since the instance was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resets {
    /// Segments on a connection that is over, or on none, whose sender was told.
    pub on_packet: u64,
    /// Connections that ended idle and were handed to the daemon.
    pub on_idle: u64,
    /// Those that were not, because it did not keep up.
    pub on_idle_missed: u64,
    /// Segments sent for them as translated packets leave.
    pub framed: u64,
    /// Segments sent for them through the host's stack.
    pub routed: u64,
    /// Segments that could not be sent.
    pub failed: u64,
    /// RST segments that were translated and not believed.
    pub not_believed: u64,
}

impl Resets {
    /// From the tables.
    #[must_use]
    pub fn of(instance: &Instance, sum: &Counters) -> Self {
        let ResetCounts { framed, routed, failed } = instance.resets;
        Self {
            on_packet: sum.resets_on_packet,
            on_idle: instance.table.told,
            on_idle_missed: instance.table.untold,
            framed,
            routed,
            failed,
            not_believed: sum.resets_doubted,
        }
    }

    /// Whether there was nothing to count.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.on_packet | self.on_idle | self.on_idle_missed | self.failed | self.not_believed == 0
    }
}
