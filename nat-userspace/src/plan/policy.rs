// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies and instance IPs as the data path's tables hold them: every condition of a packet becomes a mask of the
//! policies that agree to it (see `nat_common::abi::policy`).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use nat_common::abi::config::{name_of, padded};
use nat_common::abi::{
    config::{
        CLASS_TCP, CLASS_UDP, CLASSES, FEATURE_INSTANCE, FEATURE_MAPPING, FEATURE_POLICY, FEATURE_RULE_FIRST,
    },
    policy::{MAX_INSTANCES, MAX_POLICIES, MAX_POLICY_PREFIXES, PolicyInfo, PolicyMasks},
};

use super::{PlanError, model::PortPlan, slots::Table};
use crate::config::{Action, Gateway, Mapping, Policy, PolicyDirection, Precedence};

/// A policy with a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySlot {
    /// Name: what the slot is remembered by.
    pub name: String,
    /// [`PolicyInfo::kind`].
    pub kind: u32,
}

impl PolicySlot {
    /// As the table holds it.
    #[must_use]
    pub fn to_abi(&self) -> PolicyInfo {
        PolicyInfo { kind: self.kind, reserved: 0, name: padded(&self.name) }
    }

    /// From the table; `None`: slot free.
    #[must_use]
    pub fn from_abi(info: &PolicyInfo) -> Option<Self> {
        (info.kind != 0).then(|| Self { name: name_of(&info.name).to_owned(), kind: info.kind })
    }
}

/// Everything the tables of policies and instance IPs are filled from. Read back from the tables it has only
/// [`Self::slots`] and [`Self::instances`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyPlan {
    /// By policy slot.
    pub slots: Vec<Option<PolicySlot>>,
    /// Policies by prefix: the longest that covers a far end has those of all that cover it.
    pub prefixes: BTreeMap<Ipv4Net, u64>,
    /// Policies by destination port, TCP first: each entry holds from its port up to the next one's.
    pub ports: [BTreeMap<u16, u64>; 2],
    /// What other conditions agree to.
    pub masks: PolicyMasks,
    /// By backend slot.
    pub backends: Vec<u64>,
    /// Backend slots by instance IP.
    pub instances: BTreeMap<Ipv4Addr, u32>,
}

impl PolicyPlan {
    /// Policies about the backend in `slot`.
    #[must_use]
    pub fn of_backend(&self, slot: u32) -> u64 {
        self.backends.get(slot as usize).copied().unwrap_or(self.masks.any_backend)
    }
}

/// Fills in policies, instance IPs and what is said about refusals; `plan` has its slots.
pub(super) fn fill(gateway: &Gateway, previous: &PortPlan, plan: &mut PortPlan) -> Result<(), PlanError> {
    let too_many = |kind, wanted: usize, limit: u32| {
        let limit = limit as usize;
        (wanted > limit).then_some(PlanError::NoSlot { kind, wanted, draining: 0, limit }).map_or(Ok(()), Err)
    };
    let table = Table {
        kind: "policies",
        limit: MAX_POLICIES as usize,
        key: |policy: &PolicySlot| policy.name.clone(),
        drained: |_, _: &PolicySlot| None,
    };
    let wanted =
        gateway.policies.iter().map(|policy| PolicySlot { name: policy.name.clone(), kind: kind(policy) });
    let slots = table.assign(&previous.policy.slots, wanted.collect())?;
    let bits: Vec<u64> = gateway
        .policies
        .iter()
        .map(|policy| {
            let slot =
                slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.name == policy.name));
            slot.map_or(0, |slot| 1 << slot)
        })
        .collect();
    let policies: Vec<(u64, &Policy)> = bits.into_iter().zip(&gateway.policies).collect();
    let instances = gateway
        .instance_ips
        .iter()
        .filter_map(|instance| Some((instance.address, plan.backend_slot(instance.backend)?)));
    plan.policy = PolicyPlan {
        slots,
        prefixes: prefixes(&policies),
        ports: [CLASS_TCP, CLASS_UDP].map(|class| ports(&policies, class)),
        masks: masks(&policies),
        backends: backends(gateway, &policies, plan),
        instances: instances.collect(),
    };
    too_many("policy prefixes", plan.policy.prefixes.len(), MAX_POLICY_PREFIXES)?;
    too_many("instance IPs", plan.policy.instances.len(), MAX_INSTANCES)?;
    plan.on_refusal = gateway.on_refusal as u32;
    plan.features = [
        (FEATURE_POLICY, !policies.is_empty()),
        (FEATURE_INSTANCE, !plan.policy.instances.is_empty()),
        (FEATURE_RULE_FIRST, gateway.precedence == Precedence::RuleFirst),
        (FEATURE_MAPPING, gateway.rules.iter().any(|rule| rule.options.mapping != Mapping::ByDestination)),
    ]
    .into_iter()
    .filter(|(_, on)| *on)
    .fold(0, |features, (feature, _)| features | feature);
    Ok(())
}

const fn kind(policy: &Policy) -> u32 {
    match (policy.action, policy.direction) {
        (Action::Deny, PolicyDirection::Outbound) => 1,
        (Action::Deny, PolicyDirection::Inbound) => 2,
        (Action::Bypass, _) => 3,
    }
}

/// Bits of the policies for which `agrees` holds.
fn mask(policies: &[(u64, &Policy)], agrees: impl Fn(&Policy) -> bool) -> u64 {
    policies.iter().filter(|(_, policy)| agrees(policy)).fold(0, |mask, (bit, _)| mask | bit)
}

fn prefixes(policies: &[(u64, &Policy)]) -> BTreeMap<Ipv4Net, u64> {
    let mut given: BTreeMap<Ipv4Net, u64> = BTreeMap::new();
    for (bit, policy) in policies {
        for remote in &policy.remotes {
            *given.entry(remote.trunc()).or_default() |= bit;
        }
    }
    // A network sorts directly before what it contains, so the networks around the current one form a stack.
    let mut around: Vec<(Ipv4Net, u64)> = Vec::new();
    let mut covered = BTreeMap::new();
    let mut sorted: Vec<(Ipv4Net, u64)> = given.into_iter().collect();
    sorted.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    for (net, own) in sorted {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        let all = own | around.last().map_or(0, |(_, mask)| *mask);
        around.push((net, all));
        covered.insert(net, all);
    }
    covered
}

/// Where along the ports the policies that agree change, and to what.
fn ports(policies: &[(u64, &Policy)], class: u32) -> BTreeMap<u16, u64> {
    let mut edges = BTreeSet::from([0]);
    let of_class = |policy: &&Policy| policy.classes >> class & 1 == 1;
    for range in policies.iter().map(|(_, policy)| *policy).filter(of_class).flat_map(|policy| &policy.ports)
    {
        edges.insert(range.first);
        edges.extend(range.last.checked_add(1));
    }
    let at = |port: u16| {
        mask(policies, |policy| {
            policy.ports.is_empty()
                || of_class(&policy)
                    && policy.ports.iter().any(|range| (range.first..=range.last).contains(&port))
        })
    };
    edges.into_iter().map(|port| (port, at(port))).collect()
}

fn masks(policies: &[(u64, &Policy)]) -> PolicyMasks {
    let mut masks = PolicyMasks {
        portless: mask(policies, |policy| policy.ports.is_empty()),
        deny_outbound: mask(policies, |policy| kind(policy) == 1),
        deny_inbound: mask(policies, |policy| kind(policy) == 2),
        bypass: mask(policies, |policy| kind(policy) == 3),
        any_backend: mask(policies, |policy| policy.pool.is_none()),
        ..PolicyMasks::default()
    };
    for (class, place) in (0..CLASSES).zip(&mut masks.classes) {
        let has_ports = class == CLASS_TCP || class == CLASS_UDP;
        *place = mask(policies, |policy| {
            policy.classes >> class & 1 == 1 && (has_ports || policy.ports.is_empty())
        });
    }
    masks
}

fn backends(gateway: &Gateway, policies: &[(u64, &Policy)], plan: &PortPlan) -> Vec<u64> {
    let all = mask(policies, |policy| policy.pool.is_none());
    let mut masks = vec![all; plan.backends.len()];
    let pools: HashSet<usize> = policies.iter().filter_map(|(_, policy)| policy.pool).collect();
    let slots: std::collections::HashMap<Ipv4Addr, usize> = plan
        .backends
        .iter()
        .enumerate()
        .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
        .collect();
    for pool in pools {
        let of_pool = mask(policies, |policy| policy.pool == Some(pool));
        for backend in &gateway.pools[pool].backends {
            if let Some(slot) = slots.get(&backend.address) {
                masks[*slot] |= of_pool;
            }
        }
    }
    masks
}
