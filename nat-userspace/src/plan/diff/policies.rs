// SPDX-License-Identifier: MIT OR Apache-2.0
//! Policies and instance IPs that differ.
//!
//! The tables do not hold policies as they were written but the masks that they come to, so that is what is compared:
//! two ways to write the same are no difference.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use nat_common::abi::config::{CLASS_TCP, CLASS_UDP};
use serde::{Serialize, Serializer};

use super::backends;
use crate::{
    config::class_names,
    plan::{PolicyPlan, PortPlan},
};

/// Policies that differ, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policies {
    /// New ones.
    pub added: Vec<Policy>,
    /// Those that leave.
    pub removed: Vec<Policy>,
    /// Those that say something else.
    pub changed: Vec<Policy>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Name.
    pub policy: String,
    /// What it says; `None`: it is not there.
    pub before: Option<Terms>,
    /// Likewise.
    pub after: Option<Terms>,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Terms {
    /// `deny` or `bypass`.
    pub action: &'static str,
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// Far ends, in order; prefixes within others are left out.
    #[serde(serialize_with = "as_text")]
    pub prefixes: Vec<Ipv4Net>,
    /// Protocols, or `all`.
    pub protocols: Vec<&'static str>,
    /// Destination ports, first and last of each run; `None`: all.
    pub ports: Option<Vec<[u16; 2]>>,
    /// Backends, in order; `None`: all.
    pub backends: Option<Vec<Ipv4Addr>>,
}

/// Instance IPs that differ, by backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstanceIps {
    /// Of backends that had none.
    pub added: Vec<InstanceIp>,
    /// Of backends that have none any more.
    pub removed: Vec<InstanceIp>,
    /// Of backends that have another one.
    pub changed: Vec<InstanceIp>,
}

/// An instance IP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceIp {
    /// Backend.
    pub backend: Ipv4Addr,
    /// Its name.
    pub name: Option<String>,
    /// Its instance IP; `None`: it has none.
    pub before: Option<Ipv4Addr>,
    /// Likewise.
    pub after: Option<Ipv4Addr>,
    /// Live flows of the backend on frontend addresses: they go on there.
    pub flows: u64,
}

fn as_text<S: Serializer>(prefixes: &[Ipv4Net], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(prefixes.iter().map(Ipv4Net::to_string))
}

impl Policies {
    /// How many differ.
    #[must_use]
    pub fn count(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

impl InstanceIps {
    /// How many differ.
    #[must_use]
    pub fn count(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

/// Splits what both sides know of each key into added, removed and changed.
fn split<K: Ord + Clone, V: PartialEq, R>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    row: impl Fn(&K, Option<&V>, Option<&V>) -> R,
    differ: impl Fn(&K, &V, &V) -> bool,
) -> [Vec<R>; 3] {
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (before.get(key), after.get(key));
        let list = match (old, new) {
            (None, _) => 0,
            (_, None) => 1,
            (Some(old), Some(new)) if differ(key, old, new) => 2,
            _ => continue,
        };
        lists[list].push(row(key, old, new));
    }
    lists
}

pub(super) fn policies(before: &PortPlan, after: &PortPlan) -> Policies {
    let (old, new) = (terms(before), terms(after));
    // A backend that comes or goes does not change what policies say about the others.
    let (were, are) = (backends(before), backends(after));
    let stay = |terms: &Terms| -> Terms {
        let mut terms = terms.clone();
        if let Some(list) = &mut terms.backends {
            list.retain(|backend| were.contains_key(backend) && are.contains_key(backend));
        }
        terms
    };
    let row = |name: &String, before: Option<&Terms>, after: Option<&Terms>| Policy {
        policy: name.clone(),
        before: before.cloned(),
        after: after.cloned(),
    };
    let [added, removed, changed] = split(&old, &new, row, |_, old, new| stay(old) != stay(new));
    Policies { added, removed, changed }
}

fn terms(plan: &PortPlan) -> BTreeMap<String, Terms> {
    let prefixes = own_prefixes(&plan.policy);
    let slots = plan.policy.slots.iter().enumerate();
    slots
        .filter_map(|(slot, policy)| {
            let policy = policy.as_ref()?;
            let bit = 1u64 << slot;
            let masks = &plan.policy.masks;
            let classes = (0..).zip(masks.classes).filter(|(_, mask)| mask & bit != 0);
            let classes = classes.fold(0, |all, (class, _): (u32, _)| all | 1 << class);
            let with_ports = [CLASS_TCP, CLASS_UDP].into_iter().find(|class| classes >> class & 1 == 1);
            let ports = with_ports.filter(|_| masks.portless & bit == 0);
            let terms = Terms {
                action: if policy.kind == 3 { "bypass" } else { "deny" },
                direction: if policy.kind == 2 { "inbound" } else { "outbound" },
                prefixes: prefixes.iter().filter(|(_, own)| own & bit != 0).map(|(net, _)| *net).collect(),
                protocols: class_names(classes),
                ports: ports.map(|class| runs(&plan.policy.ports[class as usize], bit)),
                backends: (masks.any_backend & bit == 0).then(|| about(plan, bit)),
            };
            Some((policy.name.clone(), terms))
        })
        .collect()
}

/// Prefixes with the policies that no wider prefix has.
fn own_prefixes(policy: &PolicyPlan) -> Vec<(Ipv4Net, u64)> {
    let mut sorted: Vec<(Ipv4Net, u64)> = policy.prefixes.iter().map(|(net, mask)| (*net, *mask)).collect();
    sorted.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    let mut around: Vec<(Ipv4Net, u64)> = Vec::new();
    let own = sorted.into_iter().map(|(net, mask)| {
        while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            around.pop();
        }
        let wider = around.last().map_or(0, |(_, mask)| *mask);
        around.push((net, mask));
        (net, mask & !wider)
    });
    own.collect()
}

/// Runs of ports whose masks have `bit`.
fn runs(changes: &BTreeMap<u16, u64>, bit: u64) -> Vec<[u16; 2]> {
    let mut runs: Vec<[u16; 2]> = Vec::new();
    let mut inside = false;
    for (port, mask) in changes {
        let now = mask & bit != 0;
        match runs.last_mut().filter(|_| inside) {
            Some(run) if !now => run[1] = port - 1,
            None if now => runs.push([*port, u16::MAX]),
            _ => {}
        }
        inside = now;
    }
    runs
}

fn about(plan: &PortPlan, bit: u64) -> Vec<Ipv4Addr> {
    let all = backends(plan);
    let slots = (0..).zip(&plan.backends).filter(|(slot, _)| plan.policy.of_backend(*slot) & bit != 0);
    let addresses = slots.filter_map(|(_, backend)| Some(backend.as_ref()?.address));
    addresses.filter(|address| all.contains_key(address)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// `flows`: live flows on frontend addresses by backend slot of `before`.
pub(super) fn instance_ips(before: &PortPlan, after: &PortPlan, flows: &HashMap<u32, u64>) -> InstanceIps {
    let by_backend = |plan: &PortPlan| -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        let backend = |slot: u32| plan.backends.get(slot as usize).and_then(Option::as_ref);
        let all = plan.policy.instances.iter();
        all.filter_map(|(address, slot)| Some((backend(*slot)?.address, *address))).collect()
    };
    let (were, are) = (backends(before), backends(after));
    let of_backend = |backend| before.backend_slot(backend).and_then(|slot| flows.get(&slot).copied());
    let row = |backend: &Ipv4Addr, before: Option<&Ipv4Addr>, after: Option<&Ipv4Addr>| InstanceIp {
        backend: *backend,
        name: are.get(backend).or_else(|| were.get(backend)).and_then(|backend| super::named(backend.name)),
        before: before.copied(),
        after: after.copied(),
        flows: of_backend(*backend).unwrap_or(0),
    };
    let [added, removed, changed] =
        split(&by_backend(before), &by_backend(after), row, |_, old, new| old != new);
    InstanceIps { added, removed, changed }
}
