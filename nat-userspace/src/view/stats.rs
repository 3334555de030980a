// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packets, bytes and verdicts.
//!
//! A CPU counts a packet as seen before it counts its verdict, and the kernel copies the counters of one CPU after
//! the other while packets go on. A single reading under traffic is therefore off by the packets in flight, in
//! either direction. [`Reading::judge`] takes two readings one after the other: whatever the first has seen has got
//! its verdict by the second, except one packet a CPU, and whatever the first has judged has been seen by then.

use std::collections::BTreeMap;

use nat_common::abi::{
    config::{Table, name_of},
    counters::{Counters, Fate, REASON_SLOTS, Reason},
    policy::{PolicyInfo, PolicyState},
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    instance::Instance,
    refusals::{self, Refusals},
    resets::Resets,
};

/// Counters of all CPUs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// CPUs.
    pub cpus: u64,
    /// Their sum.
    pub sum: Counters,
}

impl Reading {
    /// Adds up.
    #[must_use]
    pub fn of(cpus: &[Counters]) -> Self {
        let mut sum: Counters = bytemuck::Zeroable::zeroed();
        for cpu in cpus {
            let Counters {
                seen,
                seen_bytes,
                packets,
                bytes,
                guard_translated,
                guard_dropped,
                events_lost,
                record_fallbacks,
                searches,
                same_flow_races,
                refusals_icmp,
                refusals_reset,
                resets_on_packet,
                resets_doubted,
                fragments_held,
                fragments_released,
                fragments_expired,
                fragments_lost,
            } = cpu;
            sum.seen += seen;
            sum.seen_bytes += seen_bytes;
            for slot in 0..REASON_SLOTS {
                sum.packets[slot] += packets[slot];
                sum.bytes[slot] += bytes[slot];
            }
            sum.guard_translated += guard_translated;
            sum.guard_dropped += guard_dropped;
            sum.events_lost += events_lost;
            sum.record_fallbacks += record_fallbacks;
            sum.searches += searches;
            sum.same_flow_races += same_flow_races;
            sum.refusals_icmp += refusals_icmp;
            sum.refusals_reset += refusals_reset;
            sum.resets_on_packet += resets_on_packet;
            sum.resets_doubted += resets_doubted;
            sum.fragments_held += fragments_held;
            sum.fragments_released += fragments_released;
            sum.fragments_expired += fragments_expired;
            sum.fragments_lost += fragments_lost;
        }
        Self { cpus: cpus.len() as u64, sum }
    }

    /// Packets with a verdict, also one that has no name here.
    #[must_use]
    pub fn judged(&self) -> u64 {
        self.sum.packets.iter().sum()
    }

    /// Whether the verdicts of this reading and a later one add up to the packets seen.
    #[must_use]
    pub fn judge(&self, later: &Self) -> Integrity {
        let unaccounted = i128::from(later.sum.seen) - i128::from(later.judged());
        let consistent = if self.sum == later.sum {
            unaccounted == 0
        } else {
            self.sum.seen <= later.judged() + self.cpus && self.judged() <= later.sum.seen
        };
        Integrity { unaccounted: i64::try_from(unaccounted).unwrap_or(i64::MAX), consistent }
    }
}

/// Whether every packet has got exactly one verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Integrity {
    /// Packets seen less verdicts; under traffic, packets in flight while the counters were read.
    pub unaccounted: i64,
    /// Whether that is explained by packets in flight.
    pub consistent: bool,
}

/// Counts by reason, in the order of their numbers. JSON: an object with every reason, zeros included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByReason(pub [u64; REASON_SLOTS]);

impl ByReason {
    /// Count of one reason.
    #[must_use]
    pub const fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Count of all reasons of one fate.
    #[must_use]
    pub fn fate(&self, fate: Fate) -> u64 {
        Reason::ALL.iter().filter(|reason| reason.fate() == fate).map(|reason| self.of(*reason)).sum()
    }
}

impl Serialize for ByReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Reason::ALL.len()))?;
        for reason in Reason::ALL {
            map.serialize_entry(reason.name(), &self.of(*reason))?;
        }
        map.end()
    }
}

/// Fragments that came before the first one of their datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Waiting now.
    pub now: u64,
    /// Kept so far.
    pub total: u64,
    /// Of these, sent on when the first had come.
    pub released: u64,
    /// Of these, given up because it did not.
    pub expired: u64,
    /// Not kept, for want of a slot or because they were too long; or not to be sent on.
    pub lost: u64,
}

/// What the guard did with packets that the stack forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// Translated.
    pub translated: u64,
    /// Stopped: they would have left untranslated.
    pub dropped: u64,
}

/// How often the data path had to leave its short paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Internals {
    /// Events that found the ring buffer full.
    pub events_lost: u64,
    /// New flows whose ports were tried one by one.
    pub record_fallbacks: u64,
    /// Searches for an expired port.
    pub searches: u64,
    /// Two CPUs opened the same flow.
    pub same_flow_races: u64,
    /// Refused packets whose sender was told by ICMP.
    pub refusals_icmp: u64,
    /// Refused packets whose sender was told by RST.
    pub refusals_reset: u64,
}

/// A policy and what it applied to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyCount {
    /// Name.
    pub name: String,
    /// `deny`, `deny_inbound` or `bypass`.
    pub kind: &'static str,
    /// Packets.
    pub packets: u64,
}

/// Policies by slot, with their counts.
#[must_use]
pub fn policies(instance: &Instance) -> Vec<PolicyCount> {
    let count = |(policy, state): (&PolicyInfo, &PolicyState)| {
        let kind = match policy.kind {
            1 => "deny",
            2 => "deny_inbound",
            3 => "bypass",
            _ => return None,
        };
        Some(PolicyCount { name: name_of(&policy.name).to_owned(), kind, packets: state.packets })
    };
    instance.policies.iter().zip(&instance.policy_states).filter_map(count).collect()
}

/// The flow table's own counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TableCounts {
    /// Flows it holds, expired ones included.
    pub flows: u64,
    /// Of these, above their backend's guaranteed share.
    pub burst: u64,
    /// Flows reclaimed by the sweep.
    pub swept: u64,
    /// Flows reclaimed by the data path because their place was needed.
    pub taken_over: u64,
}

/// The document of `natgw stats`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Instance.
    pub name: String,
    /// Packets that entered the XDP program.
    pub packets_seen: u64,
    /// Bytes in their frames.
    pub bytes_seen: u64,
    /// Packets by reason.
    pub verdicts: ByReason,
    /// Frame bytes by reason.
    pub bytes: ByReason,
    /// Packets by fate.
    pub fates: BTreeMap<&'static str, u64>,
    /// Guard.
    pub guard: Guard,
    /// Fragments out of order.
    pub fragments: Held,
    /// Slow paths and losses.
    pub internals: Internals,
    /// TCP resets.
    pub resets: Resets,
    /// Policies.
    pub policies: Vec<PolicyCount>,
    /// Backends that were refused anything.
    pub refusals: Vec<Refusals>,
    /// Flow table.
    pub table: TableCounts,
    /// Whether the verdicts add up.
    pub integrity: Integrity,
    /// Since the last document of a `--watch`.
    pub rates: Option<Rates>,
}

/// Per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Seconds that they are taken over.
    pub interval_seconds: f64,
    /// Packets per second.
    pub packets_seen: f64,
    /// Bytes per second.
    pub bytes_seen: f64,
    /// Packets per second by reason.
    pub verdicts: BTreeMap<&'static str, f64>,
}

/// Fates in the order of tables, with their names in JSON.
pub const FATES: [(Fate, &str); 4] = [
    (Fate::Translated, "translated"),
    (Fate::Answered, "answered"),
    (Fate::Passed, "passed"),
    (Fate::Dropped, "dropped"),
];

impl Stats {
    /// From a reading and the tables.
    #[must_use]
    pub fn new(instance: &Instance, reading: &Reading, integrity: Integrity) -> Self {
        let sum = &reading.sum;
        let verdicts = ByReason(sum.packets);
        let Table { burst, flows, swept, taken_over, .. } = instance.table;
        Self {
            name: instance.name.clone(),
            packets_seen: sum.seen,
            bytes_seen: sum.seen_bytes,
            fates: FATES.iter().map(|(fate, name)| (*name, verdicts.fate(*fate))).collect(),
            verdicts,
            bytes: ByReason(sum.bytes),
            guard: Guard { translated: sum.guard_translated, dropped: sum.guard_dropped },
            fragments: Held {
                now: instance.held.0,
                total: sum.fragments_held,
                released: sum.fragments_released,
                // Those that nobody has overwritten yet, too.
                expired: sum.fragments_expired + instance.held.1,
                lost: sum.fragments_lost,
            },
            internals: Internals {
                events_lost: sum.events_lost,
                record_fallbacks: sum.record_fallbacks,
                searches: sum.searches,
                same_flow_races: sum.same_flow_races,
                refusals_icmp: sum.refusals_icmp,
                refusals_reset: sum.refusals_reset,
            },
            resets: Resets::of(instance, sum),
            policies: policies(instance),
            refusals: refusals::rows(instance),
            table: TableCounts { flows, burst, swept, taken_over },
            integrity,
            rates: None,
        }
    }

    /// Adds what has come since `earlier`, `seconds` ago.
    #[must_use]
    pub fn since(mut self, earlier: &Self, seconds: f64) -> Self {
        let rate = |now: u64, then: u64| per_second(now.saturating_sub(then), seconds);
        let verdict =
            |reason: &Reason| (reason.name(), rate(self.verdicts.of(*reason), earlier.verdicts.of(*reason)));
        self.rates = Some(Rates {
            interval_seconds: (seconds * 1000.0).round() / 1000.0,
            packets_seen: rate(self.packets_seen, earlier.packets_seen),
            bytes_seen: rate(self.bytes_seen, earlier.bytes_seen),
            verdicts: Reason::ALL.iter().map(verdict).collect(),
        });
        self
    }
}

/// To a tenth: the counters do not tell more.
fn per_second(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate; 53 bits are plenty")]
    let rate = count as f64 / seconds.max(1e-3);
    (rate * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seen: u64, judged: u64) -> Reading {
        let mut sum: Counters = bytemuck::Zeroable::zeroed();
        sum.seen = seen;
        sum.packets[Reason::TranslatedOut as usize] = judged;
        Reading { cpus: 2, sum }
    }

    #[test]
    fn idle_counters_have_to_add_up_exactly() {
        assert!(reading(10, 10).judge(&reading(10, 10)).consistent);
        let short = reading(10, 9).judge(&reading(10, 9));
        assert_eq!(short, Integrity { unaccounted: 1, consistent: false });
        assert!(!reading(10, 11).judge(&reading(10, 11)).consistent);
    }

    #[test]
    fn moving_counters_may_have_a_packet_in_flight_on_each_cpu() {
        assert!(reading(100, 99).judge(&reading(200, 200)).consistent);
        assert!(reading(100, 103).judge(&reading(200, 198)).consistent);
        // 50 packets have been seen and have no verdict long after.
        assert!(!reading(100, 50).judge(&reading(101, 51)).consistent);
        // More verdicts than packets.
        assert!(!reading(100, 200).judge(&reading(101, 201)).consistent);
    }

    #[test]
    fn cpus_add_up() {
        let mut cpu = reading(3, 3).sum;
        cpu.bytes[Reason::Multicast as usize] = 60;
        cpu.same_flow_races = 1;
        let both = Reading::of(&[cpu, cpu]);
        assert_eq!((both.cpus, both.sum.seen, both.judged(), both.sum.same_flow_races), (2, 6, 6, 2));
        assert_eq!(both.sum.bytes[Reason::Multicast as usize], 120);
    }

    #[test]
    fn rates_are_differences_per_second() {
        let stats = |seen| {
            let reading = reading(seen, seen);
            Stats::new(&crate::view::example::instance(), &reading, reading.judge(&reading))
        };
        let rates = stats(300).since(&stats(100), 2.0).rates.expect("two readings");
        assert!((rates.packets_seen - 100.0).abs() < 1e-9);
        assert!((rates.verdicts["translated_out"] - 100.0).abs() < 1e-9);
        assert!((rates.verdicts["no_free_port"]).abs() < 1e-9);
    }
}
