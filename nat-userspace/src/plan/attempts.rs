// SPDX-License-Identifier: MIT OR Apache-2.0
//! The attempts at a layout, in their order: see [`super`].

use std::collections::{BTreeMap, HashSet, VecDeque};

use nat_common::abi::grant::{MAX_SEGMENTS, MAX_SETS, SET_ORDERED, Segment};

use super::{
    PlanError, capacity,
    layout::{Layout, Packing, Pieces},
    model::{CLASS_COUNT, PortPlan},
    shares::shares,
    space::{FIRST_PORT, Piece, Runs, Space},
};
use crate::config::{Allocation, Gateway, Selection};

/// Segments and flags of a set.
pub(super) type SetKey = (u32, Vec<Segment>);

/// Own and shared set of each class.
pub(super) type BackendSets = [(Option<SetKey>, Option<usize>); CLASS_COUNT];

/// A whole layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Laid {
    /// By rule, then by backend: its own set, and the index of its common one in [`Self::shared`].
    pub(super) backends: Vec<Vec<BackendSets>>,
    /// Common sets.
    pub(super) shared: Vec<SetKey>,
}

/// Finds room for every block.
pub(super) fn lay_out(gateway: &Gateway, previous: &PortPlan) -> Result<Laid, PlanError> {
    if let Some(error) = capacity::over_committed(gateway).into_iter().next() {
        return Err(error);
    }
    if previous.backends.iter().any(Option::is_some) {
        let mut kept = Layout::new(gateway, Packing::Level);
        kept.keep(previous);
        if kept.fill_all(|_, _| true).is_ok()
            && let Ok(laid) = finish(gateway, &kept.pieces, &kept.homes)
        {
            return Ok(laid);
        }
    }
    let paired = gateway.rules.iter().any(|rule| rule.selection == Some(Selection::Paired));
    let packings = if paired { &[Packing::Level, Packing::Tight][..] } else { &[Packing::Level] };
    for packing in packings {
        let mut anew = Layout::new(gateway, *packing);
        if anew.fill_all(|_, _| true).is_ok()
            && let Ok(laid) = finish(gateway, &anew.pieces, &anew.homes)
        {
            return Ok(laid);
        }
    }
    let mut result = in_a_row(gateway, Packing::Level);
    if result.is_err() && paired {
        result = in_a_row(gateway, Packing::Tight);
    }
    result
}

/// Constrained rules as ever; for the others, every class for itself: the maximum flow's shares, filled without gaps.
fn in_a_row(gateway: &Gateway, packing: Packing) -> Result<Laid, PlanError> {
    let mut layout = Layout::new(gateway, packing);
    let constrained = |layout: &Layout<'_>, rule: usize| layout.selection(rule).is_some();
    layout.fill_all(constrained).map_err(|rule| capacity::not_there(gateway, &layout.space, rule))?;
    for class in 0..CLASS_COUNT {
        let rules: Vec<usize> = (0..gateway.rules.len())
            .filter(|rule| !constrained(&layout, *rule) && layout.classes(*rule).contains(&(class as u32)))
            .collect();
        let mut areas = Areas::new(&layout.space, &rules, class, gateway.rules.len());
        let mut demands = vec![0; gateway.rules.len()];
        for rule in &rules {
            demands[*rule] = capacity::demand(gateway, &gateway.rules[*rule]);
        }
        let spare: Vec<u64> =
            areas.runs.iter().map(|runs| runs.iter().map(|run| u64::from(run.count)).sum()).collect();
        let shares = shares(&areas.by_rule, spare.clone(), &demands).map_err(|rules| {
            let involved: HashSet<usize> =
                rules.iter().flat_map(|rule| areas.by_rule[*rule].clone()).collect();
            let supply = involved.iter().map(|area| spare[*area]).sum();
            capacity::over_committed_together(gateway, class, rules, supply)
        })?;
        for rule in rules {
            let mut runs = areas.take(rule, &shares[rule]);
            let ports = gateway.rules[rule].ports_per_backend;
            for backend in &mut layout.pieces[rule] {
                cut(&mut runs, ports, &mut backend[class]);
            }
        }
    }
    finish(gateway, &layout.pieces, &layout.homes)
}

/// Parts of addresses that the same rules may use.
struct Areas {
    /// Free runs of each area, ascending.
    runs: Vec<VecDeque<Piece>>,
    /// Areas of each rule.
    by_rule: Vec<Vec<usize>>,
}

impl Areas {
    fn new(space: &Space, rules: &[usize], class: usize, rule_count: usize) -> Self {
        let mut areas = Self { runs: Vec::new(), by_rule: vec![Vec::new(); rule_count] };
        for address in 0..space.addresses.len() {
            let here = rules.iter().copied().filter(|rule| space.by_rule[*rule].contains(&address));
            let here: Vec<usize> = here.collect();
            // What is free, by the rules that may use it.
            let mut parts: BTreeMap<Vec<usize>, Runs> = BTreeMap::new();
            parts.insert(Vec::new(), space.free_in(address, class).clone());
            for rule in &here {
                let Some(allowed) = space.allowed(*rule) else {
                    parts = parts.into_iter().map(|(users, runs)| (with(&users, *rule), runs)).collect();
                    continue;
                };
                let mut divided = BTreeMap::new();
                for (users, runs) in parts {
                    divided.insert(with(&users, *rule), runs.intersect(allowed));
                    divided.insert(users, runs.minus(allowed));
                }
                parts = divided;
            }
            for (users, runs) in
                parts.into_iter().filter(|(users, runs)| !users.is_empty() && runs.total() > 0)
            {
                users.iter().for_each(|rule| areas.by_rule[*rule].push(areas.runs.len()));
                areas.runs.push(runs.iter().map(|(first, count)| Piece { address, first, count }).collect());
            }
        }
        areas
    }

    /// Takes `shares` of the areas of `rule`.
    fn take(&mut self, rule: usize, shares: &[u64]) -> VecDeque<Piece> {
        let mut taken = VecDeque::new();
        for (area, share) in self.by_rule[rule].iter().zip(shares) {
            // A share is at most the ports of one address.
            let mut pieces = Vec::new();
            cut(&mut self.runs[*area], *share as u32, &mut pieces);
            taken.extend(pieces);
        }
        taken
    }
}

fn with(users: &[usize], rule: usize) -> Vec<usize> {
    users.iter().copied().chain([rule]).collect()
}

/// Moves `count` ports from the front of `runs` to `pieces`.
fn cut(runs: &mut VecDeque<Piece>, count: u32, pieces: &mut Vec<Piece>) {
    let mut left = count;
    while let Some(run) = runs.front_mut().filter(|_| left > 0) {
        let taken = run.count.min(left);
        pieces.push(Piece { count: taken, ..*run });
        left -= taken;
        run.first += taken;
        run.count -= taken;
        if run.count == 0 {
            runs.pop_front();
        }
    }
}

/// Adds the common sets, and checks that the data path has room for all sets.
fn finish(gateway: &Gateway, pieces: &Pieces, homes: &[Vec<Option<usize>>]) -> Result<Laid, PlanError> {
    let space = Space::new(gateway);
    let mut laid = Laid { backends: Vec::new(), shared: Vec::new() };
    for (rule, of_rule) in pieces.iter().enumerate() {
        let mut of_backends: Vec<BackendSets> = Vec::new();
        for of_backend in of_rule {
            let mut sets = BackendSets::default();
            for (set, pieces) in sets.iter_mut().zip(of_backend) {
                set.0 = own_set(gateway, &space, rule, pieces)?;
            }
            of_backends.push(sets);
        }
        if gateway.rules[rule].allocation == Allocation::Dynamic {
            share(gateway, &space, rule, of_rule, &homes[rule], &mut of_backends, &mut laid.shared)?;
        }
        laid.backends.push(of_backends);
    }
    let own = laid.backends.iter().flatten().flatten().filter_map(|(own, _)| own.as_ref());
    let different: HashSet<&SetKey> = own.chain(&laid.shared).collect();
    if different.len() > MAX_SETS as usize {
        return Err(PlanError::TooManySets { wanted: different.len(), limit: MAX_SETS as usize });
    }
    Ok(laid)
}

fn own_set(
    gateway: &Gateway,
    space: &Space,
    rule: usize,
    pieces: &[Piece],
) -> Result<Option<SetKey>, PlanError> {
    let Some(first) = pieces.first() else { return Ok(None) };
    let one_address = pieces.iter().all(|piece| piece.address == first.address);
    let ordered = gateway.rules[rule].selection == Some(Selection::DrainFirst) && !one_address;
    let mut pieces = pieces.to_vec();
    if ordered {
        let place = |piece: &Piece| space.by_rule[rule].iter().position(|address| *address == piece.address);
        pieces.sort_by_key(place);
    }
    set(gateway, space, rule, pieces.into_iter(), ordered).map(Some)
}

fn set(
    gateway: &Gateway,
    space: &Space,
    rule: usize,
    pieces: impl Iterator<Item = Piece>,
    ordered: bool,
) -> Result<SetKey, PlanError> {
    // First ports are below 65,536; a run of all 64,512 ports fits a `u16`, too.
    let segment = |piece: Piece| Segment {
        address: space.addresses[piece.address].octets(),
        first: piece.first as u16,
        count: piece.count as u16,
    };
    let segments: Vec<Segment> = pieces.map(segment).collect();
    if segments.len() > MAX_SEGMENTS {
        let name = gateway.rules[rule].name.clone();
        return Err(PlanError::TooManyPieces { rule: [rule], name, limit: MAX_SEGMENTS });
    }
    Ok((if ordered { SET_ORDERED } else { 0 }, segments))
}

/// What a dynamic rule's backends share: on each address, what is above the highest block of their own.
fn share(
    gateway: &Gateway,
    space: &Space,
    rule: usize,
    pieces: &[[Vec<Piece>; CLASS_COUNT]],
    homes: &[Option<usize>],
    sets: &mut [BackendSets],
    shared: &mut Vec<SetKey>,
) -> Result<(), PlanError> {
    let rule_of = &gateway.rules[rule];
    let single = matches!(rule_of.selection, Some(Selection::Paired | Selection::Pinned));
    let ordered = rule_of.selection == Some(Selection::DrainFirst);
    for class in rule_of.protocol.classes() {
        let class = *class as usize;
        let mut ends = BTreeMap::new();
        for piece in pieces.iter().flat_map(|backend| &backend[class]) {
            let end: &mut u32 = ends.entry(piece.address).or_default();
            *end = (*end).max(piece.end());
        }
        let above = |address: usize| {
            let end = ends.get(&address).copied().unwrap_or(FIRST_PORT);
            let free = space.free(rule, address, &[class as u32]).above(end);
            free.iter().map(|(first, count)| Piece { address, first, count }).collect::<Vec<_>>()
        };
        let mut index: BTreeMap<Option<usize>, Option<usize>> = BTreeMap::new();
        let common: Vec<Option<usize>> = if single { homes.to_vec() } else { vec![None; sets.len()] };
        for (home, sets) in common.into_iter().zip(sets.iter_mut()) {
            let known = index.get(&home).copied();
            let at = match known {
                Some(at) => at,
                None => {
                    let addresses = home.map_or_else(|| space.by_rule[rule].clone(), |home| vec![home]);
                    let list = addresses.into_iter().flat_map(above);
                    let key = set(gateway, space, rule, list, ordered)?;
                    let at = (!key.1.is_empty()).then_some(shared.len());
                    shared.extend(at.map(|_| key));
                    index.insert(home, at);
                    at
                }
            };
            sets[class].1 = at;
            if sets[class] == (None, None) {
                return Err(PlanError::NothingLeft { rule: [rule], name: rule_of.name.clone() });
            }
        }
    }
    Ok(())
}
