// SPDX-License-Identifier: MIT OR Apache-2.0
//! Free ports of each frontend address and protocol class.

use std::{collections::HashMap, net::Ipv4Addr};

use super::model::CLASS_COUNT;
use crate::config::Gateway;

/// First port that is given to backends.
pub const FIRST_PORT: u32 = 1024;
/// Ports of an address and protocol that static allocation gives out: 1024–65023 (Azure "Outbound connections",
/// 2023).
pub const STATIC_PORTS: u32 = 64_000;

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
    fn full() -> Self {
        Self(vec![(FIRST_PORT, STATIC_PORTS)])
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
    fn intersect(&self, other: &Self) -> Self {
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
    free: Vec<[Runs; CLASS_COUNT]>,
    taken: Vec<u64>,
}

impl Space {
    pub(super) fn new(gateway: &Gateway) -> Self {
        let addresses: Vec<Ipv4Addr> =
            gateway.frontends.iter().flat_map(|frontend| frontend.addresses.iter().copied()).collect();
        let free = addresses.iter().map(|_| std::array::from_fn(|_| Runs::full())).collect();
        let taken = vec![0; addresses.len()];
        Self { addresses, free, taken }
    }

    /// For each rule, its addresses as indices.
    pub(super) fn addresses_by_rule(&self, gateway: &Gateway) -> Vec<Vec<usize>> {
        let index: HashMap<Ipv4Addr, usize> =
            self.addresses.iter().enumerate().map(|(index, address)| (*address, index)).collect();
        let of_rule = |rule| gateway.addresses_of(rule).map(|address| index[&address]).collect();
        gateway.rules.iter().map(of_rule).collect()
    }

    /// Ports taken on `address`, all classes together.
    pub(super) fn taken(&self, address: usize) -> u64 {
        self.taken[address]
    }

    /// Runs of ports on `address` that are free in every one of `classes`.
    pub(super) fn free(&self, address: usize, classes: &[u32]) -> std::borrow::Cow<'_, Runs> {
        use std::borrow::Cow;
        let free = &self.free[address];
        let Some((first, rest)) = classes.split_first() else { return Cow::Owned(Runs(Vec::new())) };
        let mut common = Cow::Borrowed(&free[*first as usize]);
        for class in rest {
            let other = &free[*class as usize];
            if *common != *other {
                common = Cow::Owned(common.intersect(other));
            }
        }
        common
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
        let mut runs = Runs::full();
        runs.take(2048, 8);
        runs.take(1024, 8);
        assert_eq!(runs.0, [(1032, 1016), (2056, 62_968)]);
        assert_eq!((runs.free_from(1032), runs.free_from(2040), runs.free_from(2048)), (1016, 8, 0));
        runs.release(2048, 8);
        runs.release(1024, 8);
        assert_eq!(runs, Runs::full());
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
