// SPDX-License-Identifier: MIT OR Apache-2.0
//! Blocks of rules whose `frontend_selection` says on which address they are.

use std::{collections::HashMap, net::Ipv4Addr};

use nat_common::abi::grant::MAX_SEGMENTS;

use super::{
    layout::{Layout, NoRoom, Packing},
    model::{PortPlan, segments},
    space::Piece,
};
use crate::config::Selection;

impl Layout<'_> {
    /// Most ports of one class that a backend may keep on `address`.
    pub(super) fn most(&self, rule: usize, backend: usize, address: usize) -> u32 {
        let all = self.gateway.rules[rule].ports_per_backend;
        match self.selection(rule) {
            None | Some(Selection::DrainFirst) => all,
            Some(Selection::Paired | Selection::Pinned) if self.homes[rule][backend] == Some(address) => all,
            Some(Selection::Paired | Selection::Pinned) => 0,
            Some(Selection::Spread) => {
                let position = self.space.by_rule[rule].iter().position(|known| *known == address);
                position.map_or(0, |position| self.even_share(rule, position))
            }
        }
    }

    /// Ports of each backend on the address at `position`: 8-port blocks dealt out in turn.
    fn even_share(&self, rule: usize, position: usize) -> u32 {
        let blocks = self.gateway.rules[rule].ports_per_backend / 8;
        let addresses = u32::try_from(self.space.by_rule[rule].len()).unwrap_or(u32::MAX).max(1);
        let extra = position < (blocks % addresses) as usize;
        (blocks / addresses + u32::from(extra)) * 8
    }

    /// The one address that a paired or pinned backend is to stay on.
    pub(super) fn home_before(
        &self,
        rule: usize,
        backend: usize,
        previous: &PortPlan,
        slot: usize,
        addresses: &HashMap<[u8; 4], usize>,
    ) -> Option<usize> {
        match self.selection(rule)? {
            Selection::Pinned => self.pinned(rule, backend),
            Selection::Paired => {
                let mut ports: HashMap<usize, u64> = HashMap::new();
                for class in self.classes(rule) {
                    let own = previous.own(slot, *class as usize).map(segments).unwrap_or_default();
                    for segment in own {
                        let Some(address) = addresses.get(&segment.address) else { continue };
                        *ports.entry(*address).or_default() += u64::from(segment.count);
                    }
                    let shared = previous.shared(slot, *class as usize).map(segments).unwrap_or_default();
                    if let Some((first, rest)) = shared.split_first()
                        && rest.iter().all(|segment| segment.address == first.address)
                        && let Some(address) = addresses.get(&first.address)
                    {
                        ports.entry(*address).or_default();
                    }
                }
                ports
                    .into_iter()
                    .max_by_key(|(address, ports)| (*ports, std::cmp::Reverse(*address)))
                    .map(|(a, _)| a)
            }
            _ => None,
        }
    }

    fn pinned(&self, rule: usize, backend: usize) -> Option<usize> {
        let rule_of = &self.gateway.rules[rule];
        let who: Ipv4Addr = self.gateway.backends_of(rule_of).get(backend)?.address;
        let wanted = rule_of.pins.get(&who)?;
        self.space.by_rule[rule].iter().copied().find(|address| self.space.addresses[*address] == *wanted)
    }

    /// Completes a rule with a selection: first backends that have ports already, for they have the least choice.
    pub(super) fn fill_constrained(&mut self, rule: usize) -> Result<(), NoRoom> {
        let has_ports = |layout: &Self, backend: usize| {
            layout.homes[rule][backend].is_some()
                || layout.pieces[rule][backend].iter().any(|pieces| !pieces.is_empty())
        };
        let (settled, new): (Vec<usize>, Vec<usize>) =
            (0..self.pieces[rule].len()).partition(|backend| has_ports(self, *backend));
        let mut guests: HashMap<usize, u32> = HashMap::new();
        for home in self.homes[rule].iter().flatten() {
            *guests.entry(*home).or_default() += 1;
        }
        for backend in settled.into_iter().chain(new) {
            match self.selection(rule) {
                Some(Selection::Paired) => self.fill_paired(rule, backend, &mut guests)?,
                Some(Selection::Pinned) => {
                    let home = self.pinned(rule, backend).ok_or(NoRoom)?;
                    self.homes[rule][backend] = Some(home);
                    if !self.has_room(rule, backend, home) {
                        return Err(NoRoom);
                    }
                    self.fill_backend(rule, backend)?;
                }
                _ => self.fill_backend(rule, backend)?,
            }
        }
        Ok(())
    }

    fn fill_paired(
        &mut self,
        rule: usize,
        backend: usize,
        guests: &mut HashMap<usize, u32>,
    ) -> Result<(), NoRoom> {
        let before = self.homes[rule][backend];
        let mut others: Vec<usize> =
            self.space.by_rule[rule].iter().copied().filter(|address| Some(*address) != before).collect();
        others.sort_by_key(|address| {
            let guests = guests.get(address).copied().unwrap_or(0);
            match self.packing {
                _ if self.is_dynamic(rule) => (u64::from(guests), 0),
                Packing::Level => (self.space.taken(*address), guests),
                Packing::Tight => (u64::MAX - self.space.taken(*address), 0),
            }
        });
        for address in before.into_iter().chain(others) {
            if !self.has_room(rule, backend, address) {
                continue;
            }
            if let Some(left) = self.homes[rule][backend].replace(address).filter(|left| *left != address) {
                self.leave(rule, backend, left);
            }
            if self.fill_backend(rule, backend).is_ok() {
                if let Some(before) = before {
                    guests.entry(before).and_modify(|guests| *guests -= 1);
                }
                *guests.entry(address).or_default() += 1;
                return Ok(());
            }
        }
        Err(NoRoom)
    }

    /// Whether `address` has all ports that the backend needs; for one that only shares, whether it has any.
    fn has_room(&self, rule: usize, backend: usize, address: usize) -> bool {
        let wanted = self.gateway.rules[rule].ports_per_backend;
        self.classes(rule).iter().all(|class| {
            let own = self.pieces[rule][backend][*class as usize].iter();
            let have: u32 = own.filter(|piece| piece.address == address).map(|piece| piece.count).sum();
            have + self.space.free(rule, address, &[*class]).total() >= wanted.max(8)
        })
    }

    fn leave(&mut self, rule: usize, backend: usize, address: usize) {
        for (class, pieces) in (0..).zip(&mut self.pieces[rule][backend]) {
            pieces.retain(|piece| {
                let stays = piece.address != address;
                if !stays {
                    self.space.release(*piece, &[class]);
                }
                stays
            });
        }
    }

    /// Completes a backend where its selection wants it, all classes alike where that is possible.
    fn fill_backend(&mut self, rule: usize, backend: usize) -> Result<(), NoRoom> {
        let all = self.classes(rule);
        if self.alike(rule, backend) == [all] && self.fill_there(rule, backend, all).is_ok() {
            return Ok(());
        }
        all.chunks(1).try_for_each(|class| self.fill_there(rule, backend, class))
    }

    fn fill_there(&mut self, rule: usize, backend: usize, classes: &[u32]) -> Result<(), NoRoom> {
        let Some(class) = classes.first() else { return Ok(()) };
        let before = self.pieces[rule][backend][*class as usize].clone();
        let after = self.complete_there(rule, backend, &before, classes).or_else(|NoRoom| {
            // Too many pieces, perhaps: the whole block in another place.
            before.iter().for_each(|piece| self.space.release(*piece, classes));
            let moved = self.complete_there(rule, backend, &[], classes);
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

    /// `pieces` with what is missing of the block. Changes nothing if there is no room.
    fn complete_there(
        &mut self,
        rule: usize,
        backend: usize,
        pieces: &[Piece],
        classes: &[u32],
    ) -> Result<Vec<Piece>, NoRoom> {
        let mut pieces = pieces.to_vec();
        let mut added = Vec::new();
        for (address, missing) in self.missing_there(rule, backend, &pieces, classes) {
            let free = self.space.free(rule, address, classes);
            let beside = |piece: &&mut Piece| {
                piece.address == address && missing > 0 && free.free_from(piece.end()) >= missing
            };
            if let Some(piece) = pieces.iter_mut().find(beside) {
                added.push(Piece { address, first: piece.end(), count: missing });
                piece.count += missing;
            } else if let Some(first) = self.fit(rule, &free, missing).filter(|_| missing > 0) {
                let piece = Piece { address, first, count: missing };
                added.push(piece);
                pieces.push(piece);
            } else {
                let more = self.split(rule, self.runs(rule, &[address], classes), missing)?;
                added.extend(&more);
                pieces.extend(more);
            }
        }
        if pieces.len() > MAX_SEGMENTS {
            return Err(NoRoom);
        }
        added.iter().for_each(|piece| self.space.take(*piece, classes));
        Ok(pieces)
    }

    /// How many ports are missing on which address.
    fn missing_there(
        &self,
        rule: usize,
        backend: usize,
        pieces: &[Piece],
        classes: &[u32],
    ) -> Vec<(usize, u32)> {
        let have = |address: usize| -> u32 {
            pieces.iter().filter(|piece| piece.address == address).map(|piece| piece.count).sum()
        };
        let addresses = self.space.by_rule[rule].iter().copied();
        if self.selection(rule) != Some(Selection::DrainFirst) {
            let missing =
                |address| (address, self.most(rule, backend, address).saturating_sub(have(address)));
            return addresses.map(missing).filter(|(_, missing)| *missing > 0).collect();
        }
        let all: u32 = pieces.iter().map(|piece| piece.count).sum();
        let mut left = self.gateway.rules[rule].ports_per_backend.saturating_sub(all);
        let mut wanted = Vec::new();
        for address in addresses {
            let here = left.min(self.space.free(rule, address, classes).total());
            left -= here;
            wanted.extend((here > 0).then_some((address, here)));
        }
        // What has no place is asked of the last address, which has none.
        let last = self.space.by_rule[rule].last().copied().filter(|_| left > 0);
        wanted.extend(last.map(|address| (address, u32::MAX)));
        wanted
    }
}
