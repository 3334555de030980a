// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where each backend's block lies.

use std::collections::HashMap;

use nat_common::abi::config::MAX_SEGMENTS;

use super::{
    PlanError, capacity,
    model::{CLASS_COUNT, PortPlan, segments},
    space::{Piece, Space},
};
use crate::config::Gateway;

/// The pieces of one backend under one rule, by class.
pub(super) type BackendPieces = [Vec<Piece>; CLASS_COUNT];

/// Pieces by rule, then by backend of its pool, then by class.
pub(super) type Pieces = Vec<Vec<BackendPieces>>;

/// It does not fit so.
struct NoRoom;

/// Finds room for every block: see [`super`] for the order of attempts.
pub(super) fn lay_out(gateway: &Gateway, previous: &PortPlan) -> Result<Pieces, PlanError> {
    if let Some(error) = capacity::over_committed(gateway).into_iter().next() {
        return Err(error);
    }
    let mut kept = Layout::new(gateway);
    kept.keep(previous);
    if kept.fill_all().is_ok() {
        return Ok(kept.pieces);
    }
    let mut anew = Layout::new(gateway);
    if anew.fill_all().is_ok() {
        return Ok(anew.pieces);
    }
    in_a_row(gateway)
}

struct Layout<'a> {
    gateway: &'a Gateway,
    space: Space,
    addresses: Vec<Vec<usize>>,
    pieces: Pieces,
}

impl<'a> Layout<'a> {
    fn new(gateway: &'a Gateway) -> Self {
        let space = Space::new(gateway);
        let addresses = space.addresses_by_rule(gateway);
        Self { gateway, space, addresses, pieces: no_pieces(gateway) }
    }

    /// Takes over what the previous plan gave and the configuration still allows.
    fn keep(&mut self, previous: &PortPlan) {
        let slots: HashMap<_, _> = (0..)
            .zip(&previous.backends)
            .filter_map(|(slot, backend)| Some((backend.as_ref()?.address, slot)))
            .collect();
        for (rule_index, rule) in self.gateway.rules.iter().enumerate() {
            let addresses: HashMap<[u8; 4], usize> = self.addresses[rule_index]
                .iter()
                .map(|index| (self.space.addresses[*index].octets(), *index))
                .collect();
            for (backend_index, backend) in self.gateway.backends_of(rule).iter().enumerate() {
                let grants = slots.get(&backend.address).and_then(|slot: &usize| previous.grants.get(*slot));
                let Some(grants) = grants else { continue };
                for class in rule.protocol.classes() {
                    let mut left = rule.ports_per_backend;
                    for segment in segments(&grants[*class as usize]) {
                        let Some(address) = addresses.get(&segment.address) else { continue };
                        let first = u32::from(segment.first);
                        let count = u32::from(segment.count).min(left);
                        let free = self.space.free(*address, &[*class]).free_from(first);
                        if count == 0 || free < count || !first.is_multiple_of(8) {
                            continue;
                        }
                        let piece = Piece { address: *address, first, count };
                        self.space.take(piece, &[*class]);
                        self.pieces[rule_index][backend_index][*class as usize].push(piece);
                        left -= count;
                    }
                }
            }
        }
    }

    /// Completes every rule, those with the fewest addresses first, for they have the least choice.
    fn fill_all(&mut self) -> Result<(), NoRoom> {
        let mut order: Vec<usize> = (0..self.gateway.rules.len()).collect();
        order.sort_by_key(|rule| self.addresses[*rule].len());
        for rule in order {
            if self.fill_rule(rule).is_err() {
                self.clear_rule(rule);
                self.fill_rule(rule)?;
            }
        }
        Ok(())
    }

    fn clear_rule(&mut self, rule: usize) {
        for backend in &mut self.pieces[rule] {
            for (class, pieces) in (0..).zip(backend) {
                for piece in pieces.drain(..) {
                    self.space.release(piece, &[class]);
                }
            }
        }
    }

    fn fill_rule(&mut self, rule: usize) -> Result<(), NoRoom> {
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
    fn alike(&self, rule: usize, backend: usize) -> Vec<&'static [u32]> {
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
        let beside = |piece: &Piece| self.space.free(piece.address, classes).free_from(piece.end());
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
        if missing == 0 {
            return Ok(pieces);
        }
        let more = match self.whole(rule, missing, classes) {
            Some(piece) => vec![piece],
            None => self.split(rule, missing, classes)?,
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
        let candidates = self.addresses[rule].iter().filter_map(|address| {
            let first = self.space.free(*address, classes).best_fit(count)?;
            Some((self.space.taken(*address), Piece { address: *address, first, count }))
        });
        candidates.min_by_key(|(taken, _)| *taken).map(|(_, piece)| piece)
    }

    /// Room for `count` ports in the largest runs, and for the last of them in the smallest run that suffices.
    fn split(&self, rule: usize, count: u32, classes: &[u32]) -> Result<Vec<Piece>, NoRoom> {
        let mut runs: Vec<Piece> = Vec::new();
        for address in &self.addresses[rule] {
            let free = self.space.free(*address, classes);
            runs.extend(free.iter().map(|(first, count)| Piece { address: *address, first, count }));
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.count));
        let mut pieces = Vec::new();
        let mut left = count;
        for (index, run) in runs.iter().enumerate() {
            if run.count < left {
                pieces.push(*run);
                left -= run.count;
                continue;
            }
            let sufficing = runs[index..].iter().take_while(|run| run.count >= left);
            let last = sufficing.last().unwrap_or(run);
            pieces.push(Piece { count: left, ..*last });
            return Ok(pieces);
        }
        Err(NoRoom)
    }
}

fn no_pieces(gateway: &Gateway) -> Pieces {
    let of_rule = |rule| gateway.backends_of(rule).iter().map(|_| BackendPieces::default()).collect();
    gateway.rules.iter().map(of_rule).collect()
}

/// Every class for itself: the maximum flow's shares, filled without gaps.
fn in_a_row(gateway: &Gateway) -> Result<Pieces, PlanError> {
    let space = Space::new(gateway);
    let addresses = space.addresses_by_rule(gateway);
    let mut pieces = no_pieces(gateway);
    for class in 0..CLASS_COUNT {
        let class_number = class as u32;
        let shares = capacity::shares(gateway, class_number, &addresses, space.addresses.len())?;
        let mut next = vec![super::FIRST_PORT; space.addresses.len()];
        for (index, rule) in gateway.rules.iter().enumerate() {
            if !rule.protocol.classes().contains(&class_number) {
                continue;
            }
            let mut areas = Vec::new();
            for (address, share) in addresses[index].iter().zip(&shares[index]) {
                // A share is at most the ports of one address.
                let count = *share as u32;
                areas.push(Piece { address: *address, first: next[*address], count });
                next[*address] += count;
            }
            areas.retain(|area| area.count > 0);
            areas.reverse();
            for backend in &mut pieces[index] {
                cut(&mut areas, rule.ports_per_backend, &mut backend[class]);
                if backend[class].len() > MAX_SEGMENTS {
                    let name = rule.name.clone();
                    return Err(PlanError::TooManyPieces { rule: [index], name, limit: MAX_SEGMENTS });
                }
            }
        }
    }
    Ok(pieces)
}

/// Moves `count` ports from the end of `areas` to `pieces`.
fn cut(areas: &mut Vec<Piece>, count: u32, pieces: &mut Vec<Piece>) {
    let mut left = count;
    while let Some(area) = areas.last_mut().filter(|_| left > 0) {
        let taken = area.count.min(left);
        pieces.push(Piece { count: taken, ..*area });
        left -= taken;
        area.first += taken;
        area.count -= taken;
        if area.count == 0 {
            areas.pop();
        }
    }
}
