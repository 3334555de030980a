// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where each backend's own block lies.

use std::collections::HashMap;

use nat_common::abi::grant::MAX_SEGMENTS;

use super::{
    model::{CLASS_COUNT, PortPlan, segments},
    space::{Piece, Runs, Space},
};
use crate::config::{Allocation, Gateway, Selection};

/// The pieces of one backend under one rule, by class.
pub(super) type BackendPieces = [Vec<Piece>; CLASS_COUNT];

/// Pieces by rule, then by backend of its pool, then by class.
pub(super) type Pieces = Vec<Vec<BackendPieces>>;

/// It does not fit so.
#[derive(Debug)]
pub(super) struct NoRoom;

/// Which of several addresses with room a paired backend gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// The least used one.
    Level,
    /// The most used one.
    Tight,
}

#[derive(Clone, Debug)]
pub(super) struct Layout<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) space: Space,
    pub(super) pieces: Pieces,
    /// The one address of a paired or pinned backend, by rule, then by backend.
    pub(super) homes: Vec<Vec<Option<usize>>>,
    pub(super) packing: Packing,
}

impl<'a> Layout<'a> {
    pub(super) fn new(gateway: &'a Gateway, packing: Packing) -> Self {
        let of_rule = |rule| gateway.backends_of(rule).iter().map(|_| BackendPieces::default()).collect();
        let homeless = |rule| vec![None; gateway.backends_of(rule).len()];
        Self {
            gateway,
            space: Space::new(gateway),
            pieces: gateway.rules.iter().map(of_rule).collect(),
            homes: gateway.rules.iter().map(homeless).collect(),
            packing,
        }
    }

    /// `frontend_selection` of a rule as far as it says where own blocks are.
    pub(super) fn selection(&self, rule: usize) -> Option<Selection> {
        let rule = &self.gateway.rules[rule];
        match (rule.allocation, rule.selection) {
            // What spreads is the common set.
            (Allocation::Dynamic, Some(Selection::Spread)) => None,
            (_, selection) => selection,
        }
    }

    pub(super) fn is_dynamic(&self, rule: usize) -> bool {
        self.gateway.rules[rule].allocation == Allocation::Dynamic
    }

    pub(super) fn classes(&self, rule: usize) -> &'static [u32] {
        self.gateway.rules[rule].protocol.classes()
    }

    /// Rules in the order in which they are laid out: those without choice first, then those with little, large blocks
    /// before small ones; of the others, those with the fewest addresses first.
    pub(super) fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.gateway.rules.len()).collect();
        order.sort_by_key(|rule| {
            let freedom = match self.selection(*rule) {
                Some(Selection::Pinned) => 0,
                Some(Selection::Spread) => 1,
                Some(Selection::Paired) => 2,
                Some(Selection::DrainFirst) => 3,
                None => 4,
            };
            let ports = std::cmp::Reverse(self.gateway.rules[*rule].ports_per_backend);
            (
                freedom,
                (freedom == 4).then_some(self.space.by_rule[*rule].len()),
                (freedom < 4).then_some(ports),
            )
        });
        order
    }

    /// Takes over what the previous plan gave and the configuration still allows.
    pub(super) fn keep(&mut self, previous: &PortPlan) {
        let slots: HashMap<_, usize> = (0..)
            .zip(&previous.backends)
            .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
            .collect();
        for rule in 0..self.gateway.rules.len() {
            let addresses: HashMap<[u8; 4], usize> = self.space.by_rule[rule]
                .iter()
                .map(|index| (self.space.addresses[*index].octets(), *index))
                .collect();
            for (index, backend) in self.gateway.backends_of(&self.gateway.rules[rule]).iter().enumerate() {
                let Some(slot) = slots.get(&backend.address) else { continue };
                self.keep_backend(rule, index, previous, *slot, &addresses);
            }
        }
    }

    fn keep_backend(
        &mut self,
        rule: usize,
        backend: usize,
        previous: &PortPlan,
        slot: usize,
        addresses: &HashMap<[u8; 4], usize>,
    ) {
        self.homes[rule][backend] = self.home_before(rule, backend, previous, slot, addresses);
        for class in self.classes(rule) {
            let Some(set) = previous.own(slot, *class as usize) else { continue };
            let mut left = self.gateway.rules[rule].ports_per_backend;
            for segment in segments(set) {
                let Some(address) = addresses.get(&segment.address) else { continue };
                let have = self.pieces[rule][backend][*class as usize]
                    .iter()
                    .filter(|piece| piece.address == *address)
                    .map(|piece| piece.count)
                    .sum();
                let mut here = left.min(self.most(rule, backend, *address).saturating_sub(have));
                let free = self.space.free(rule, *address, &[*class]);
                let kept = free.within(u32::from(segment.first), u32::from(segment.count));
                for (first, count) in kept.iter() {
                    let count = count.min(here);
                    if count == 0 || !first.is_multiple_of(8) {
                        continue;
                    }
                    let piece = Piece { address: *address, first, count };
                    self.space.take(piece, &[*class]);
                    self.pieces[rule][backend][*class as usize].push(piece);
                    left -= count;
                    here -= count;
                }
            }
        }
    }

    /// Completes every rule in the order of [`Self::order`] for which `wanted` holds.
    ///
    /// # Errors
    ///
    /// The rule that there is no room for; it has no pieces then.
    pub(super) fn fill_all(&mut self, wanted: impl Fn(&Self, usize) -> bool) -> Result<(), usize> {
        for rule in self.order() {
            if !wanted(self, rule) {
                continue;
            }
            if self.fill_rule(rule).is_err() || self.is_wasteful(rule) {
                self.clear_rule(rule);
                if self.fill_rule(rule).is_err() {
                    self.clear_rule(rule);
                    return Err(rule);
                }
            }
        }
        Ok(())
    }

    /// Whether most of the region that own blocks of a dynamic rule keep from the common set is holes.
    fn is_wasteful(&self, rule: usize) -> bool {
        if !self.is_dynamic(rule) {
            return false;
        }
        self.classes(rule).iter().any(|class| {
            let mut ends: HashMap<usize, (u32, u32)> = HashMap::new();
            for piece in self.pieces[rule].iter().flat_map(|backend| &backend[*class as usize]) {
                let (end, used) = ends.entry(piece.address).or_default();
                *end = (*end).max(piece.end());
                *used += piece.count;
            }
            ends.into_iter().any(|(address, (end, used))| {
                let region = end - super::FIRST_PORT;
                let holes =
                    self.space.free(rule, address, &[*class]).within(super::FIRST_PORT, region).total();
                holes > used
            })
        })
    }

    pub(super) fn clear_rule(&mut self, rule: usize) {
        for backend in &mut self.pieces[rule] {
            for (class, pieces) in (0..).zip(backend) {
                for piece in pieces.drain(..) {
                    self.space.release(piece, &[class]);
                }
            }
        }
    }

    fn fill_rule(&mut self, rule: usize) -> Result<(), NoRoom> {
        if self.selection(rule).is_some() {
            return self.fill_constrained(rule);
        }
        // Room beside a block goes to that block, before a block without such room could take it.
        for backend in 0..self.pieces[rule].len() {
            for classes in self.alike(rule, backend) {
                self.extend(rule, backend, classes);
            }
        }
        for backend in 0..self.pieces[rule].len() {
            let all = self.gateway.rules[rule].protocol.classes();
            let groups = self.alike(rule, backend);
            if groups == [all] && self.fill(rule, backend, all).is_ok() {
                continue;
            }
            for class in all.chunks(1) {
                self.fill(rule, backend, class)?;
            }
        }
        Ok(())
    }

    /// The classes of a backend that can be treated as one because their pieces are the same: all or none.
    pub(super) fn alike(&self, rule: usize, backend: usize) -> Vec<&'static [u32]> {
        let classes = self.gateway.rules[rule].protocol.classes();
        let pieces = &self.pieces[rule][backend];
        if classes.windows(2).all(|pair| pieces[pair[0] as usize] == pieces[pair[1] as usize]) {
            vec![classes]
        } else {
            classes.chunks(1).collect()
        }
    }

    /// Completes a backend's block in place, if there is room beside one of its pieces.
    fn extend(&mut self, rule: usize, backend: usize, classes: &[u32]) {
        let Some(class) = classes.first() else { return };
        let pieces = &self.pieces[rule][backend][*class as usize];
        let missing = self.missing(rule, pieces);
        let beside = |piece: &Piece| self.space.free(rule, piece.address, classes).free_from(piece.end());
        let Some(index) = pieces.iter().position(|piece| beside(piece) >= missing).filter(|_| missing > 0)
        else {
            return;
        };
        let piece = pieces[index];
        self.space.take(Piece { first: piece.end(), count: missing, ..piece }, classes);
        for class in classes {
            self.pieces[rule][backend][*class as usize][index].count += missing;
        }
    }

    fn missing(&self, rule: usize, pieces: &[Piece]) -> u32 {
        self.gateway.rules[rule].ports_per_backend - pieces.iter().map(|piece| piece.count).sum::<u32>()
    }

    /// Completes a backend's block, the same in every one of `classes`, which are alike so far. Changes nothing if
    /// there is no room.
    fn fill(&mut self, rule: usize, backend: usize, classes: &[u32]) -> Result<(), NoRoom> {
        let Some(class) = classes.first() else { return Ok(()) };
        let wanted = self.gateway.rules[rule].ports_per_backend;
        let before = self.pieces[rule][backend][*class as usize].clone();
        let missing = self.missing(rule, &before);
        let after = self.complete(rule, &before, missing, classes).or_else(|NoRoom| {
            // Too many pieces, perhaps: the whole block in another place.
            before.iter().for_each(|piece| self.space.release(*piece, classes));
            let moved = self.complete(rule, &[], wanted, classes);
            if moved.is_err() {
                before.iter().for_each(|piece| self.space.take(*piece, classes));
            }
            moved
        })?;
        for class in classes {
            self.pieces[rule][backend][*class as usize].clone_from(&after);
        }
        Ok(())
    }

    /// `pieces` with `missing` more ports: in one piece, else in as few as possible.
    fn complete(
        &mut self,
        rule: usize,
        pieces: &[Piece],
        missing: u32,
        classes: &[u32],
    ) -> Result<Vec<Piece>, NoRoom> {
        let mut pieces = pieces.to_vec();
        let more = match self.whole(rule, missing, classes) {
            _ if missing == 0 => Vec::new(),
            Some(piece) => vec![piece],
            None => {
                let runs = self.runs(rule, &self.space.by_rule[rule], classes);
                self.split(rule, runs, missing)?
            }
        };
        if pieces.len() + more.len() > MAX_SEGMENTS {
            return Err(NoRoom);
        }
        more.iter().for_each(|piece| self.space.take(*piece, classes));
        pieces.extend(more);
        Ok(pieces)
    }

    /// Room for `count` ports in one piece on the least committed address that has it.
    fn whole(&self, rule: usize, count: u32, classes: &[u32]) -> Option<Piece> {
        let candidates = self.space.by_rule[rule].iter().filter_map(|address| {
            let first = self.fit(rule, &self.space.free(rule, *address, classes), count)?;
            Some((self.space.taken(*address), Piece { address: *address, first, count }))
        });
        candidates.min_by_key(|(taken, _)| *taken).map(|(_, piece)| piece)
    }

    /// Where in `free` a piece goes: in the smallest run, or, under a common set, at the bottom.
    pub(super) fn fit(&self, rule: usize, free: &Runs, count: u32) -> Option<u32> {
        if self.is_dynamic(rule) { free.lowest_fit(count) } else { free.best_fit(count) }
    }

    /// Free runs of ports on `addresses`.
    pub(super) fn runs(&self, rule: usize, addresses: &[usize], classes: &[u32]) -> Vec<Piece> {
        let mut runs: Vec<Piece> = Vec::new();
        for address in addresses {
            let free = self.space.free(rule, *address, classes);
            runs.extend(free.iter().map(|(first, count)| Piece { address: *address, first, count }));
        }
        runs
    }

    /// Room for `count` ports in the largest of `runs`, and for the last of them in the smallest run that suffices;
    /// under a common set, in the lowest runs.
    pub(super) fn split(&self, rule: usize, mut runs: Vec<Piece>, count: u32) -> Result<Vec<Piece>, NoRoom> {
        let dynamic = self.is_dynamic(rule);
        if dynamic {
            runs.sort_by_key(|run| run.first);
        } else {
            runs.sort_by_key(|run| std::cmp::Reverse(run.count));
        }
        let mut pieces = Vec::new();
        let mut left = count;
        for (index, run) in runs.iter().enumerate() {
            if left == 0 {
                break;
            }
            if run.count < left {
                pieces.push(*run);
                left -= run.count;
                continue;
            }
            let sufficing = runs[index..].iter().take_while(|run| run.count >= left && !dynamic);
            let last = sufficing.last().unwrap_or(run);
            pieces.push(Piece { count: left, ..*last });
            left = 0;
        }
        if left == 0 { Ok(pieces) } else { Err(NoRoom) }
    }
}
