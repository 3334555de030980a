// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the ports asked for exist, and how much of which address each rule gets.

use std::collections::{HashSet, VecDeque};

use nat_common::abi::config::CLASS_NAMES;

use super::{PlanError, STATIC_PORTS};
use crate::config::{Gateway, OutboundRule, grouped};

/// Rules that ask for more ports than all their addresses have, each for itself.
#[must_use]
pub fn over_committed(gateway: &Gateway) -> Vec<PlanError> {
    gateway
        .rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| over_committed_alone(gateway, index, rule))
        .collect()
}

fn over_committed_alone(gateway: &Gateway, index: usize, rule: &OutboundRule) -> Option<PlanError> {
    let backends = gateway.backends_of(rule).len() as u64;
    let addresses = gateway.addresses_of(rule).count() as u64;
    let (wanted, supply) = (demand(gateway, rule), addresses * u64::from(STATIC_PORTS));
    if wanted <= supply {
        return None;
    }
    let at_most = u32::try_from(supply / backends / 8 * 8).unwrap_or(0);
    let arithmetic = format!(
        "{} × {} ports = {} > {}; at most {} per backend",
        counted(backends, "backend"),
        grouped(rule.ports_per_backend),
        grouped(wanted),
        supply_of(gateway, "", supply, addresses, rule.frontends.iter().copied()),
        grouped(at_most)
    );
    Some(PlanError::OverCommitted { rules: vec![index], arithmetic, at_most: Some(at_most) })
}

/// Ports of one class that `rule` asks for.
fn demand(gateway: &Gateway, rule: &OutboundRule) -> u64 {
    gateway.backends_of(rule).len() as u64 * u64::from(rule.ports_per_backend)
}

fn counted(count: u64, noun: &str) -> String {
    let plural = match (count, noun) {
        (1, _) => "",
        (_, "address") => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", grouped(count))
}

/// `64,000 ports of 1 address (fe1)`.
fn supply_of(
    gateway: &Gateway,
    class: &str,
    supply: u64,
    addresses: u64,
    frontends: impl Iterator<Item = usize>,
) -> String {
    let mut names: Vec<&str> = frontends.map(|index| gateway.frontends[index].name.as_str()).collect();
    if names.len() > 4 {
        names.truncate(4);
        names.push("…");
    }
    format!("{} {class}ports of {} ({})", grouped(supply), counted(addresses, "address"), names.join(", "))
}

/// How many ports of `class` each rule gets on each of its addresses: by rule, then as positions in `addresses` of
/// that rule. A maximum flow, so it exists whenever the ports do.
///
/// # Errors
///
/// [`PlanError::OverCommitted`] with a set of rules that together ask for more than all their addresses have.
pub(super) fn shares(
    gateway: &Gateway,
    class: u32,
    addresses: &[Vec<usize>],
    address_count: usize,
) -> Result<Vec<Vec<u64>>, PlanError> {
    let mut flow = Flow {
        addresses,
        spare: vec![u64::from(STATIC_PORTS); address_count],
        shares: addresses.iter().map(|list| vec![0; list.len()]).collect(),
    };
    for (index, rule) in gateway.rules.iter().enumerate() {
        if !rule.protocol.classes().contains(&class) {
            continue;
        }
        let mut left = demand(gateway, rule);
        while left > 0 {
            match flow.augment(index, left) {
                Ok(moved) => left -= moved,
                Err(rules) => return Err(over_committed_together(gateway, class, rules)),
            }
        }
    }
    Ok(flow.shares)
}

struct Flow<'a> {
    addresses: &'a [Vec<usize>],
    spare: Vec<u64>,
    shares: Vec<Vec<u64>>,
}

/// How the search came to an address: from `rule`, which has it at `position`.
#[derive(Clone, Copy)]
struct Step {
    rule: usize,
    position: usize,
}

impl Flow<'_> {
    /// Gives `rule` up to `wanted` more ports, moving shares of other rules to other addresses where needed. Fails
    /// with the rules that compete for addresses that are all full.
    fn augment(&mut self, rule: usize, wanted: u64) -> Result<u64, Vec<usize>> {
        let mut came_by: Vec<Option<Step>> = vec![None; self.spare.len()];
        // The address that a rule was reached from; the searching rule has none.
        let mut reached: Vec<Option<Option<Step>>> = vec![None; self.addresses.len()];
        reached[rule] = Some(None);
        let mut queue = VecDeque::from([rule]);
        while let Some(at) = queue.pop_front() {
            for (position, address) in self.addresses[at].iter().enumerate() {
                if came_by[*address].is_some() {
                    continue;
                }
                came_by[*address] = Some(Step { rule: at, position });
                if self.spare[*address] > 0 {
                    return Ok(self.push(*address, wanted, &came_by, &reached));
                }
                for (other, list) in self.addresses.iter().enumerate() {
                    let Some(position) = list.iter().position(|known| known == address) else { continue };
                    if reached[other].is_none() && self.shares[other][position] > 0 {
                        reached[other] = Some(Some(Step { rule: other, position }));
                        queue.push_back(other);
                    }
                }
            }
        }
        Err((0..reached.len()).filter(|other| reached[*other].is_some()).collect())
    }

    /// Moves as much as the path to `address` carries.
    fn push(
        &mut self,
        address: usize,
        wanted: u64,
        came_by: &[Option<Step>],
        reached: &[Option<Option<Step>>],
    ) -> u64 {
        let mut gains = Vec::new();
        let mut losses = Vec::new();
        let mut at = address;
        while let Some(gain) = came_by[at] {
            gains.push(gain);
            let Some(Some(loss)) = reached[gain.rule] else { break };
            losses.push(loss);
            at = self.addresses[loss.rule][loss.position];
        }
        let amount = losses
            .iter()
            .map(|step| self.shares[step.rule][step.position])
            .fold(wanted.min(self.spare[address]), u64::min);
        self.spare[address] -= amount;
        for step in gains {
            self.shares[step.rule][step.position] += amount;
        }
        for step in losses {
            self.shares[step.rule][step.position] -= amount;
        }
        amount
    }
}

fn over_committed_together(gateway: &Gateway, class: u32, rules: Vec<usize>) -> PlanError {
    let class = CLASS_NAMES[class as usize];
    let parts: Vec<String> = rules
        .iter()
        .map(|index| {
            let rule = &gateway.rules[*index];
            let backends = gateway.backends_of(rule).len() as u64;
            format!("`{}`: {} × {}", rule.name, grouped(backends), grouped(rule.ports_per_backend))
        })
        .collect();
    let wanted: u64 = rules.iter().map(|index| demand(gateway, &gateway.rules[*index])).sum();
    let mut seen = HashSet::new();
    let mut frontends: Vec<usize> =
        rules.iter().flat_map(|index| gateway.rules[*index].frontends.clone()).collect();
    frontends.retain(|frontend| seen.insert(*frontend));
    let addresses: u64 = frontends.iter().map(|index| gateway.frontends[*index].addresses.len() as u64).sum();
    let supply = addresses * u64::from(STATIC_PORTS);
    let arithmetic = format!(
        "rules ask together for {} ports ({}) > {}",
        grouped(wanted),
        parts.join(", "),
        supply_of(gateway, &format!("{class} "), supply, addresses, frontends.into_iter())
    );
    PlanError::OverCommitted { rules, arithmetic, at_most: None }
}
