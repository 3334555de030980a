// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that is counted, as rows with names, so that a test compares all of it and not only what it has in
//! mind.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Result;
use nat_common::abi::{
    config::{CLASS_NAMES, Table},
    counters::{Counters, REASON_SLOTS, Reason},
    grant::{BackendState, GrantState, Quota, grant_slot, quota_index},
};

use crate::harness::Lab;

/// A snapshot, or a change between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(pub BTreeMap<String, i64>);

impl Ledger {
    /// Reads every counter.
    ///
    /// # Errors
    ///
    /// Those of reading the maps.
    pub fn read(lab: &Lab) -> Result<Self> {
        let mut rows = Rows::default();
        // How a port is searched for depends on chance: `record_fallbacks` and `searches` are no part of it.
        let Counters {
            seen,
            seen_bytes,
            packets,
            bytes,
            guard_translated,
            guard_dropped,
            events_lost,
            record_fallbacks: _,
            searches: _,
            same_flow_races,
            refusals_icmp,
            refusals_reset,
            resets_on_packet,
            resets_doubted,
            fragments_held,
            fragments_released,
            fragments_expired,
            fragments_lost,
        } = lab.maps.sum_counters()?;
        rows.add("seen", seen);
        rows.add("seen_bytes", seen_bytes);
        for number in 0..REASON_SLOTS {
            let reason = u32::try_from(number).ok().and_then(Reason::from_number);
            let name = reason.map_or_else(|| number.to_string(), |reason| reason.name().to_owned());
            rows.add(&format!("packets.{name}"), packets[number]);
            rows.add(&format!("bytes.{name}"), bytes[number]);
        }
        rows.add("guard_translated", guard_translated);
        rows.add("guard_dropped", guard_dropped);
        rows.add("events_lost", events_lost);
        rows.add("same_flow_races", same_flow_races);
        rows.add("refusals_icmp", refusals_icmp);
        rows.add("refusals_reset", refusals_reset);
        rows.add("resets_on_packet", resets_on_packet);
        rows.add("resets_doubted", resets_doubted);
        rows.add("fragments_held", fragments_held);
        rows.add("fragments_released", fragments_released);
        rows.add("fragments_expired", fragments_expired);
        rows.add("fragments_lost", fragments_lost);
        for slot in 0..u32::try_from(lab.world.backends.len())? {
            let BackendState { flows, refused_rule, refused_policy } =
                lab.maps.backend_state.get(&slot, 0)?;
            rows.add(&format!("backend.{slot}.flows"), flows);
            rows.add(&format!("backend.{slot}.refused_rule"), refused_rule);
            rows.add(&format!("backend.{slot}.refused_policy"), refused_policy);
            // `due` is a time.
            let Quota { flows, half_open, due: _, destinations } =
                lab.maps.quota.get(&quota_index(slot, false), 0)?;
            rows.add(&format!("quota.{slot}.flows"), flows);
            rows.add(&format!("quota.{slot}.half_open"), half_open);
            for (number, flows) in destinations.into_iter().enumerate() {
                rows.add(&format!("quota.{slot}.destination.{number}"), flows);
            }
            for (class, name) in (0u32..).zip(CLASS_NAMES.into_iter().chain(["other"])) {
                // The rest are times, and how often a refusal was answered.
                let GrantState { flows, opened, refused, refused_table, refused_limit, .. } =
                    lab.maps.grant_state.get(&grant_slot(slot, class), 0)?;
                rows.add(&format!("grant.{slot}.{name}.flows"), flows);
                rows.add(&format!("grant.{slot}.{name}.opened"), opened);
                rows.add(&format!("grant.{slot}.{name}.refused"), refused);
                rows.add(&format!("grant.{slot}.{name}.refused_table"), refused_table);
                rows.add(&format!("grant.{slot}.{name}.refused_limit"), refused_limit);
            }
        }
        // Whether a flow that drains was noted depends on what was under pressure.
        let Table { burst, flows, swept, taken_over, drained: _, told, untold } =
            lab.maps.table.get(&0, 0)?;
        rows.add("table.burst", burst);
        rows.add("table.flows", flows);
        rows.add("table.swept", swept);
        rows.add("table.taken_over", taken_over);
        rows.add("table.told", told);
        rows.add("table.untold", untold);
        for (slot, _) in lab.world.policies.iter().enumerate() {
            let packets = lab.maps.policy_state.get(&u32::try_from(slot)?, 0)?.packets;
            rows.add(&format!("policy.{slot}"), packets);
        }
        for towards in lab.maps.towards.iter() {
            rows.total("towards", towards?.1.flows);
        }
        for peer in lab.maps.peers.iter() {
            rows.total("peers", peer?.1.sessions);
        }
        rows.add("entries", lab.maps.flows.keys().count() as u64);
        Ok(Self(rows.0))
    }

    /// What changed since `before`: only rows that did.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let rows = self.0.iter().filter_map(|(name, now)| {
            let change = now - before.0.get(name).copied().unwrap_or(0);
            (change != 0).then(|| (name.clone(), change))
        });
        Self(rows.collect())
    }

    /// The value of a row, zero if there is none.
    #[must_use]
    pub fn get(&self, row: &str) -> i64 {
        self.0.get(row).copied().unwrap_or(0)
    }

    /// Packets that got this verdict.
    #[must_use]
    pub fn packets(&self, reason: Reason) -> i64 {
        self.get(&format!("packets.{}", reason.name()))
    }

    /// Adds to a row.
    pub fn add(&mut self, row: &str, change: i64) {
        let value = self.0.entry(row.to_owned()).or_default();
        *value += change;
        if *value == 0 {
            self.0.remove(row);
        }
    }

    /// Whether packets and bytes by reason add up to what was seen.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        let sum = |prefix: &str| -> i64 {
            self.0.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
        };
        sum("packets.") == self.get("seen") && sum("bytes.") == self.get("seen_bytes")
    }

    /// Rows in which two changes differ, as text; empty when they are equal.
    #[must_use]
    pub fn difference(&self, found: &Self) -> String {
        let mut out = String::new();
        for name in self.0.keys().chain(found.0.keys().filter(|name| !self.0.contains_key(*name))) {
            let (expected, found) = (self.get(name), found.get(name));
            if expected != found {
                let _ = writeln!(out, "  {name}: expected {expected:+}, found {found:+}");
            }
        }
        out
    }

    /// The change that one packet of `length` bytes with this verdict makes, and nothing else.
    #[must_use]
    pub fn packet(reason: Reason, length: usize) -> Self {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        let mut change = Self::default();
        change.add("seen", 1);
        change.add("seen_bytes", length);
        change.add(&format!("packets.{}", reason.name()), 1);
        change.add(&format!("bytes.{}", reason.name()), length);
        change
    }

    /// A flow of the backend was opened.
    pub fn opened(&mut self, backend: usize, class: &str) {
        self.add(&format!("grant.{backend}.{class}.opened"), 1);
        self.alive(backend, class, 1);
    }

    /// The number of flows of the backend, within its guaranteed share, changed.
    pub fn alive(&mut self, backend: usize, class: &str, flows: i64) {
        self.add(&format!("grant.{backend}.{class}.flows"), flows);
        self.add(&format!("backend.{backend}.flows"), flows);
        self.add("table.flows", flows);
        self.add("entries", 2 * flows);
    }
}

#[derive(Default)]
struct Rows(BTreeMap<String, i64>);

impl Rows {
    fn add(&mut self, name: &str, value: u64) {
        self.0.insert(name.to_owned(), i64::try_from(value).unwrap_or(i64::MIN));
    }

    fn total(&mut self, name: &str, value: u64) {
        *self.0.entry(name.to_owned()).or_default() += i64::try_from(value).unwrap_or(i64::MIN);
    }
}
