// SPDX-License-Identifier: MIT OR Apache-2.0
//! Free ports of each frontend address and protocol class.

use std::{borrow::Cow, collections::HashMap, net::Ipv4Addr};

use super::model::CLASS_COUNT;
use crate::config::{Allocation, Gateway, PortRange};

/// First port that is given to backends.
pub const FIRST_PORT: u32 = 1024;
/// Ports of an address and protocol that static allocation gives out: 1024–65023 (Azure "Outbound connections",
/// 2023).
pub const STATIC_PORTS: u32 = 64_000;
/// Ports of an address and protocol that dynamic allocation gives out: 1024–65535 (Azure "NAT Gateway resource").
pub const DYNAMIC_PORTS: u32 = 64_512;

/// A run of ports on one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index of the address in [`Space::addresses`].
    pub(super) address: usize,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Piece {
    pub(super) const fn end(&self) -> u32 {
        self.first + self.count
    }
}

/// Free runs of ports: ascending, disjoint, not adjacent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runs(Vec<(u32, u32)>);

impl Runs {
    /// The first `count` ports that are given to backends.
    pub(super) fn first(count: u32) -> Self {
        Self(vec![(FIRST_PORT, count)])
    }

    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// Without every 8-port block that one of `ranges` has a port in: a used port takes its whole block (Azure
    /// "Outbound connections", 2023).
    pub(super) fn without(&self, ranges: &[PortRange]) -> Self {
        let mut left = self.0.clone();
        for range in ranges {
            let (from, to) = (u32::from(range.first) / 8 * 8, u32::from(range.last) / 8 * 8 + 8);
            let parts = left.into_iter().flat_map(|(first, count)| {
                let end = first + count;
                let below = (first, end.min(from).saturating_sub(first));
                let above = (first.max(to), end.saturating_sub(first.max(to)));
                [below, above]
            });
            left = parts.filter(|(_, count)| *count > 0).collect();
        }
        Self(left)
    }

    /// What lies from `first` on.
    pub(super) fn above(&self, first: u32) -> Self {
        let cut = |(start, count): (u32, u32)| {
            let from = start.max(first);
            (from, (start + count).saturating_sub(from))
        };
        Self(self.0.iter().copied().map(cut).filter(|(_, count)| *count > 0).collect())
    }

    /// What of `count` ports from `first` on is free.
    pub(super) fn within(&self, first: u32, count: u32) -> Self {
        Self(vec![(first, count)]).intersect(self)
    }

    /// What is not free in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut left = self.clone();
        self.intersect(other).0.iter().for_each(|(first, count)| left.take(*first, *count));
        left
    }

    /// Number of ports.
    pub(super) fn total(&self) -> u32 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// First port of the lowest run that `count` ports fit in.
    pub(super) fn lowest_fit(&self, count: u32) -> Option<u32> {
        self.0.iter().find(|(_, free)| *free >= count).map(|(first, _)| *first)
    }

    /// As (first port, count).
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    /// First port of the smallest run that `count` ports fit in.
    pub(super) fn best_fit(&self, count: u32) -> Option<u32> {
        let fitting = self.0.iter().filter(|(_, free)| *free >= count);
        fitting.min_by_key(|(_, free)| *free).map(|(first, _)| *first)
    }

    /// Free ports from `first` on without a gap.
    pub(super) fn free_from(&self, first: u32) -> u32 {
        let index = self.0.partition_point(|(start, _)| *start <= first);
        let Some((start, count)) = index.checked_sub(1).map(|index| self.0[index]) else { return 0 };
        (start + count).saturating_sub(first)
    }

    /// Takes ports that are free.
    fn take(&mut self, first: u32, count: u32) {
        let index = self.0.partition_point(|(start, _)| *start <= first) - 1;
        let (start, free) = self.0[index];
        let after = (first + count, start + free - first - count);
        self.0[index].1 = first - start;
        if after.1 > 0 {
            self.0.insert(index + 1, after);
        }
        if self.0[index].1 == 0 {
            self.0.remove(index);
        }
    }

    /// Gives back ports that are taken.
    fn release(&mut self, first: u32, count: u32) {
        let index = self.0.partition_point(|(start, _)| *start < first);
        self.0.insert(index, (first, count));
        if self.0.get(index + 1).is_some_and(|(next, _)| *next == first + count) {
            self.0[index].1 += self.0.remove(index + 1).1;
        }
        if index > 0 && self.0[index - 1].0 + self.0[index - 1].1 == first {
            self.0[index - 1].1 += self.0.remove(index).1;
        }
    }

    /// What is free in both.
    pub(super) fn intersect(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some((a, a_count)), Some((b, b_count))) = (left.peek(), right.peek()) {
            let (first, end) = ((*a).max(*b), (a + a_count).min(b + b_count));
            if first < end {
                both.push((first, end - first));
            }
            if a + a_count < b + b_count {
                left.next();
            } else {
                right.next();
            }
        }
        Self(both)
    }
}

/// Free ports of all frontend addresses.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) addresses: Vec<Ipv4Addr>,
    /// For each rule, its addresses as indices.
    pub(super) by_rule: Vec<Vec<usize>>,
    free: Vec<[Runs; CLASS_COUNT]>,
    taken: Vec<u64>,
    /// By rule; `None`: nothing is excluded.
    allowed: Vec<Option<Runs>>,
}

impl Space {
    pub(super) fn new(gateway: &Gateway) -> Self {
        let mut addresses = Vec::new();
        let mut free: Vec<[Runs; CLASS_COUNT]> = Vec::new();
        for frontend in &gateway.frontends {
            for address in &frontend.addresses {
                let runs = Runs::first(STATIC_PORTS).without(&frontend.reserved_of(*address));
                addresses.push(*address);
                free.push(std::array::from_fn(|_| runs.clone()));
            }
        }
        let index: HashMap<Ipv4Addr, usize> =
            addresses.iter().enumerate().map(|(index, address)| (*address, index)).collect();
        let of_rule = |rule| gateway.addresses_of(rule).map(|address| index[&address]).collect();
        for rule in gateway.rules.iter().filter(|rule| rule.allocation == Allocation::Dynamic) {
            for frontend in rule.frontends.iter().map(|frontend| &gateway.frontends[*frontend]) {
                for address in &frontend.addresses {
                    let runs = Runs::first(DYNAMIC_PORTS).without(&frontend.reserved_of(*address));
                    for class in rule.protocol.classes() {
                        free[index[address]][*class as usize] = runs.clone();
                    }
                }
            }
        }
        let allowed = |excluded: &Vec<PortRange>| {
            (!excluded.is_empty()).then(|| Runs::first(DYNAMIC_PORTS).without(excluded))
        };
        Self {
            by_rule: gateway.rules.iter().map(of_rule).collect(),
            free,
            taken: vec![0; addresses.len()],
            allowed: gateway.rules.iter().map(|rule| allowed(&rule.excluded)).collect(),
            addresses,
        }
    }

    /// Ports taken on `address`, all classes together.
    pub(super) fn taken(&self, address: usize) -> u64 {
        self.taken[address]
    }

    /// What `rule` may use of an address; `None`: everything.
    pub(super) fn allowed(&self, rule: usize) -> Option<&Runs> {
        self.allowed[rule].as_ref()
    }

    /// Runs of ports on `address` that are free for anybody in `class`.
    pub(super) fn free_in(&self, address: usize, class: usize) -> &Runs {
        &self.free[address][class]
    }

    /// Runs of ports on `address` that are free for `rule` in every one of `classes`.
    pub(super) fn free(&self, rule: usize, address: usize, classes: &[u32]) -> Cow<'_, Runs> {
        let free = &self.free[address];
        let Some((first, rest)) = classes.split_first() else { return Cow::Owned(Runs::none()) };
        let mut common = Cow::Borrowed(&free[*first as usize]);
        for class in rest {
            let other = &free[*class as usize];
            if *common != *other {
                common = Cow::Owned(common.intersect(other));
            }
        }
        match self.allowed(rule) {
            Some(allowed) => Cow::Owned(common.intersect(allowed)),
            None => common,
        }
    }

    /// Ports that are free for `rule` on all its addresses in `class`.
    pub(super) fn supply(&self, rule: usize, class: u32) -> u64 {
        let free = |address: &usize| u64::from(self.free(rule, *address, &[class]).total());
        self.by_rule[rule].iter().map(free).sum()
    }

    /// Takes a piece that is free in every one of `classes`.
    pub(super) fn take(&mut self, piece: Piece, classes: &[u32]) {
        for class in classes {
            self.free[piece.address][*class as usize].take(piece.first, piece.count);
            self.taken[piece.address] += u64::from(piece.count);
        }
    }

    /// Gives back a piece that is taken in every one of `classes`.
    pub(super) fn release(&mut self, piece: Piece, classes: &[u32]) {
        for class in classes {
            self.free[piece.address][*class as usize].release(piece.first, piece.count);
            self.taken[piece.address] -= u64::from(piece.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Frontend;

    fn runs_of(taken: &[bool]) -> Runs {
        let mut runs = Runs(Vec::new());
        for (port, taken) in (FIRST_PORT..).zip(taken) {
            if !taken {
                runs.release(port, 1);
            }
        }
        runs
    }

    #[test]
    fn taking_splits_and_releasing_joins() {
        let mut runs = Runs::first(STATIC_PORTS);
        runs.take(2048, 8);
        runs.take(1024, 8);
        assert_eq!(runs.0, [(1032, 1016), (2056, 62_968)]);
        assert_eq!((runs.free_from(1032), runs.free_from(2040), runs.free_from(2048)), (1016, 8, 0));
        runs.release(2048, 8);
        runs.release(1024, 8);
        assert_eq!(runs, Runs::first(STATIC_PORTS));
    }

    #[test]
    fn a_reserved_port_takes_its_block() {
        let range = |first, last| PortRange { first, last };
        let runs = Runs::first(64).without(&[range(1029, 1029), range(1047, 1050), range(80, 90)]);
        assert_eq!(runs.0, [(1032, 8), (1056, 32)]);
        assert_eq!((runs.total(), runs.lowest_fit(9), runs.best_fit(8)), (40, Some(1056), Some(1032)));
        assert_eq!(runs.above(1034).0, [(1034, 6), (1056, 32)]);
        assert_eq!(runs.within(1024, 40).0, [(1032, 8), (1056, 8)]);
        assert_eq!(Runs::first(DYNAMIC_PORTS).without(&[range(65_535, 65_535)]).total(), DYNAMIC_PORTS - 8);
    }

    #[test]
    fn what_the_host_keeps_is_missing_on_its_own_address_only() {
        let addresses = [Ipv4Addr::new(203, 0, 113, 10), Ipv4Addr::new(203, 0, 113, 11)];
        let range = |first, last| PortRange { first, last };
        let frontend = Frontend {
            addresses: addresses.to_vec(),
            reserved: vec![range(1024, 1031)],
            reserved_on: vec![(addresses[1], range(32_768, 60_999))],
            ..Frontend::default()
        };
        let free = |address| Runs::first(STATIC_PORTS).without(&frontend.reserved_of(address)).total();
        assert_eq!(addresses.map(free), [STATIC_PORTS - 8, STATIC_PORTS - 8 - 28_232]);

        let text = "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n[[frontend]]\nname = 'fe'\n\
                    addresses = ['203.0.113.10', '203.0.113.11']\n[[pool]]\nname = 'web'\n\
                    backends = ['10.0.0.4']\n[[outbound_rule]]\nname = 'out'\npool = 'web'\nfrontends = ['fe']\n";
        for (allocation, all) in [("static", STATIC_PORTS), ("dynamic", DYNAMIC_PORTS)] {
            let text = format!("{text}allocation = '{allocation}'\n");
            let (mut gateway, _) = crate::config::parse("natgw.toml", text).expect("it is right");
            gateway.frontends[0] = frontend.clone();
            let space = Space::new(&gateway);
            assert_eq!(space.supply(0, 0), u64::from(2 * (all - 8) - 28_232), "{allocation}");
        }
    }

    proptest! {
        #[test]
        fn intersection_is_what_is_free_in_both(pairs in prop::collection::vec(any::<(bool, bool)>(), 0..64)) {
            let left: Vec<bool> = pairs.iter().map(|pair| pair.0).collect();
            let right: Vec<bool> = pairs.iter().map(|pair| pair.1).collect();
            let either: Vec<bool> = pairs.iter().map(|pair| pair.0 || pair.1).collect();
            prop_assert_eq!(runs_of(&left).intersect(&runs_of(&right)), runs_of(&either));
        }
    }
}
