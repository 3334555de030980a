// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The search in bitmaps: what is known to be taken towards one destination.
//!
//! A *leaf* has a bit for each of 1,024 ports of an address, a *root* a bit for each leaf of a set that is full. A leaf's
//! bit is set before its port is tried and stays set if the port turns out to be taken; it is cleared after a flow has
//! left the table, and then that of the root. So a bit may be 0 while the port is taken (costs one try) and is 1 without
//! it only between a claimer's set and its insert, or a releaser's delete and its clear. A root's bit is announced,
//! set, and checked against the leaf. A root without a zero bit, without announcements, and no release since before the
//! look: every port is taken.

use nat_common::{
    abi::{
        grant::{MAX_SEGMENTS, PortSet, Segment},
        names::delay::{BIT_SET, LEAF_SEEN, ROOT_COPIED, ROOT_SET},
        record::{LEAF_PORTS, LEAF_SHIFT, LEAF_WORDS, PortRecord, RecordKey, RootRecord},
    },
    ports::{SEGMENT_MASK, WORD_MASK, free_bit, leaves, valid_bits, within_leaf},
};

use crate::{
    atomic, delay,
    maps::{RECORDS, ROOTS, TABLE},
    ports::{
        CLAIMED, CUT, MOST_TRIES, PHASE_BLIND, PHASE_PICK, PHASE_ROOT, SEARCHING, Search, Tried,
        attempt_port, failed,
    },
    record::{full_of, record_key, record_of, root_key, root_of, word_of},
    verdict, walk,
};

/// Ports in a row that are taken, from a random one on, that show a crowd: where half of them are taken one look in 4,096
/// meets as many, where nine tenths are one in four.
const CROWDED: u32 = 12;
/// Looks at a root that another CPU is changing, until its bits are not believed for this packet.
const MOST_SPINS: u32 = 64;

/// Takes a copy of the set's root.
#[inline(never)]
pub(crate) fn root(search: &mut Search, set: *const PortSet) -> u32 {
    // SAFETY: array element.
    let id = unsafe { (*set).id };
    let key = root_key(&search.key, id);
    let tag = key.tag();
    let Some(root) = root_of(search, &key, tag) else {
        verdict::count(|counters| counters.record_fallbacks += 1);
        search.phase = PHASE_BLIND;
        return SEARCHING;
    };
    search.spins += 1;
    // SAFETY: words of a map value of an LRU map: it may be recycled; the tag tells.
    unsafe {
        renew(root);
        search.epoch = atomic::load(&raw const (*root).epoch);
        for segment in 0..search.full.len() {
            search.full[segment] = atomic::load(full_of(root, segment as u32));
        }
        // After the bits: whoever announces itself later sets one later.
        if atomic::load(&raw const (*root).pending) != 0 {
            if search.spins <= MOST_SPINS {
                return SEARCHING;
            }
            search.full = [0; MAX_SEGMENTS];
        }
        if atomic::load(&raw const (*root).tag) != tag {
            return SEARCHING;
        }
    }
    search.seen = 0;
    search.phase = PHASE_PICK;
    SEARCHING
}

/// Forgets what a root says if flows have ended since on ports that have left their grant: their bits were cleared in
/// the leaves only.
///
/// # Safety
/// `root` is a map value.
#[inline(always)]
unsafe fn renew(root: *mut RootRecord) {
    let Some(table) = TABLE.get_ptr(0) else { return };
    // SAFETY: by the caller's promise; array element.
    unsafe {
        let drained = atomic::load(&raw const (*table).drained);
        if atomic::load(&raw const (*root).drained) == drained {
            return;
        }
        for segment in 0..MAX_SEGMENTS {
            atomic::fetch_and(full_of(root, segment as u32), 0);
        }
        atomic::fetch_add(&raw mut (*root).epoch, 1);
        // Last: until then nobody takes the old bits for current ones.
        (&raw mut (*root).drained).write_volatile(drained);
    }
}

/// Looks for a leaf with a free port in the current segment.
#[inline(never)]
pub(crate) fn segment(search: &mut Search, set: *const PortSet) -> u32 {
    let index = search.segment & SEGMENT_MASK;
    // SAFETY: array element; the index is masked.
    let (segment, count) = unsafe { ((*set).segments[index as usize], (*set).segment_count) };
    if let Some(leaf) = free_bit(search.full[index as usize], leaves(segment), search.leaf) {
        search.leaf = leaf;
        return self::leaf(search, set, segment);
    }
    search.seen += 1;
    search.leaf = 0;
    search.segment = if index + 1 < count { index + 1 } else { 0 };
    if search.seen < count {
        return SEARCHING;
    }
    delay::at(ROOT_COPIED);
    let key = root_key(&search.key, set_id(set));
    let Some(root) = ROOTS.get_ptr(&key) else {
        search.phase = PHASE_ROOT;
        return SEARCHING;
    };
    // SAFETY: words of a map value.
    let same = unsafe {
        atomic::load(&raw const (*root).epoch) == search.epoch
            && atomic::load(&raw const (*root).tag) == key.tag()
    };
    if !same {
        search.phase = PHASE_ROOT;
        return SEARCHING;
    }
    walk::begin(search, root)
}

#[inline(always)]
pub(crate) fn set_id(set: *const PortSet) -> u32 {
    // SAFETY: array element.
    unsafe { (*set).id }
}

/// Looks for a zero bit in the record of the current leaf.
#[inline(always)]
fn leaf(search: &mut Search, set: *const PortSet, segment: Segment) -> u32 {
    let key = record_key(&search.key, segment.address, search.leaf);
    let tag = key.tag();
    let Some(record) = record_of(search, &key, tag) else {
        verdict::count(|counters| counters.record_fallbacks += 1);
        search.phase = PHASE_BLIND;
        return SEARCHING;
    };
    // SAFETY: words of a map value of an LRU map: it may be recycled; the tag tells.
    let (epoch, found) =
        unsafe { (atomic::load(&raw const (*record).epoch), atomic::load(&raw const (*record).tag)) };
    search.tries += 1;
    if search.tries > MOST_TRIES {
        return CUT;
    }
    if found != tag {
        return SEARCHING;
    }
    let (from, to) = within_leaf(segment, search.leaf);
    let preferred = search.preferred;
    // Twice if some are preferred to others.
    let rounds = if preferred == u64::MAX { LEAF_WORDS as u32 } else { 2 * LEAF_WORDS as u32 };
    for offset in 0..2 * LEAF_WORDS as u32 {
        if offset >= rounds {
            break;
        }
        let index = ((search.start >> 6) + offset) & WORD_MASK;
        // SAFETY: a word of a map value.
        let taken = unsafe { atomic::load(word_of(record, index)) };
        let mut valid = valid_bits(index, from, to);
        if offset < LEAF_WORDS as u32 {
            valid &= preferred;
        }
        if let Some(bit) = free_bit(taken, valid, search.start & 63) {
            let row = bit.wrapping_sub(search.start) & 63;
            if offset == 0 && row >= CROWDED && valid >> (search.start & 63) & 1 != 0 {
                search.crowded = 1;
            }
            return take(search, set, &segment, record, tag, index * 64 + bit);
        }
        if valid != 0 && preferred == u64::MAX {
            search.crowded = 1;
        }
    }
    leaf_is_full(search, set, &key, epoch);
    SEARCHING
}

/// Sets a bit and tries its port.
#[inline(always)]
fn take(
    search: &mut Search,
    set: *const PortSet,
    segment: &Segment,
    record: *mut PortRecord,
    tag: u64,
    bit: u32,
) -> u32 {
    let slot = word_of(record, bit >> 6);
    let mask = 1u64 << (bit & 63);
    // SAFETY: words of a map value; a recycled record is recognised by its tag and the bit taken back.
    unsafe {
        if atomic::fetch_or(slot, mask) & mask != 0 {
            return SEARCHING;
        }
        if atomic::load(&raw const (*record).tag) != tag {
            atomic::and(slot, !mask);
            return SEARCHING;
        }
    }
    let port = (search.leaf << LEAF_SHIFT) + (bit & (LEAF_PORTS - 1));
    delay::at(BIT_SET);
    match attempt_port(search, segment.address, (port as u16).to_be_bytes()) {
        Tried::Claimed => CLAIMED,
        Tried::Taken => SEARCHING,
        Tried::Failed(reason) => {
            take_back(search, set, record, bit);
            failed(reason)
        }
    }
}

/// Clears the bit of a port that was not taken after all, as a release does: somebody may have seen the leaf full
/// meanwhile, and said so in the root.
#[inline(never)]
fn take_back(search: &Search, set: *const PortSet, record: *mut PortRecord, bit: u32) {
    // SAFETY: words of map values.
    unsafe {
        atomic::fetch_and(word_of(record, bit >> 6), !(1u64 << (bit & 63)));
        atomic::fetch_add(&raw mut (*record).epoch, 1);
        if let Some(root) = ROOTS.get_ptr_mut(&root_key(&search.key, set_id(set))) {
            atomic::fetch_and(full_of(root, search.segment), !(1u64 << (search.leaf & 63)));
            atomic::fetch_add(&raw mut (*root).epoch, 1);
        }
    }
}

/// The current leaf has no free port: says so in the root, unless one was released meanwhile.
#[inline(always)]
fn leaf_is_full(search: &mut Search, set: *const PortSet, leaf: &RecordKey, epoch: u64) {
    if !still_full(leaf, epoch) {
        return;
    }
    delay::at(LEAF_SEEN);
    let index = search.segment & SEGMENT_MASK;
    let bit = 1u64 << (search.leaf & 63);
    search.full[index as usize] |= bit;
    let key = root_key(&search.key, set_id(set));
    let Some(root) = ROOTS.get_ptr_mut(&key) else { return };
    // SAFETY: words of a map value. In a recycled root the bit is taken back; a count of announcements that is off for
    // that reason makes the root not believed, until it is recycled again.
    unsafe {
        atomic::fetch_add(&raw mut (*root).pending, 1);
        atomic::fetch_or(full_of(root, index), bit);
        delay::at(ROOT_SET);
        if !still_full(leaf, epoch) || atomic::load(&raw const (*root).tag) != key.tag() {
            atomic::fetch_and(full_of(root, index), !bit);
            atomic::fetch_add(&raw mut (*root).epoch, 1);
        }
        atomic::fetch_add(&raw mut (*root).pending, u64::MAX);
    }
}

/// Whether nothing was released in a leaf since its epoch was `epoch`. Looked up anew: to a record that was evicted,
/// releases are not noted.
#[inline(always)]
fn still_full(key: &RecordKey, epoch: u64) -> bool {
    RECORDS.get_ptr(key).is_some_and(|record| {
        // SAFETY: words of a map value.
        unsafe {
            atomic::load(&raw const (*record).epoch) == epoch
                && atomic::load(&raw const (*record).tag) == key.tag()
        }
    })
}
