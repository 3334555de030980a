// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Records of taken ports: finding, making, marking and clearing. What they are for: `ports`.

use nat_common::{
    abi::{
        config::banked,
        flow::FlowKey,
        grant::{Grant, PortSet},
        names::delay::{BIT_CLEAR, FLOW_GONE},
        record::{PortRecord, RecordKey, RootKey, RootRecord, pressed_slot},
    },
    ports::{SEGMENT_MASK, WORD_MASK, leaf_of, segment_of},
};

use crate::{
    allocate::NOEXIST,
    atomic, delay,
    maps::{CONTROL, GRANTS, PRESSED, RECORDS, ROOTS, SETS, TABLE},
    ports::Search,
};

/// Where the last collision towards the destination of `key` is noted.
#[inline(always)]
pub(crate) fn pressed(key: &FlowKey) -> Option<*mut u64> {
    PRESSED.get_ptr_mut(pressed_slot(key.destination, key.destination_port, key.protocol))
}

/// The key of a leaf's record.
#[inline(always)]
pub(crate) fn record_key(key: &FlowKey, address: [u8; 4], leaf: u32) -> RecordKey {
    RecordKey {
        address,
        destination: key.destination,
        destination_port: key.destination_port,
        protocol: key.protocol,
        leaf: leaf as u8,
    }
}

/// The key of a set's root.
#[inline(always)]
pub(crate) fn root_key(key: &FlowKey, set: u32) -> RootKey {
    RootKey {
        set,
        destination: key.destination,
        destination_port: key.destination_port,
        protocol: key.protocol,
        reserved: 0,
    }
}

/// The record of a leaf, made if it is not there.
#[inline(always)]
pub(crate) fn record_of(search: &mut Search, key: &RecordKey, tag: u64) -> Option<*mut PortRecord> {
    if let Some(record) = RECORDS.get_ptr_mut(key) {
        return Some(record);
    }
    search.blank.tag = tag;
    // Exists already: another CPU was first, and its record is found below.
    let _ = RECORDS.insert(key, &search.blank, NOEXIST);
    RECORDS.get_ptr_mut(key)
}

/// The root of a set, made if it is not there.
#[inline(always)]
pub(crate) fn root_of(search: &mut Search, key: &RootKey, tag: u64) -> Option<*mut RootRecord> {
    if let Some(root) = ROOTS.get_ptr_mut(key) {
        return Some(root);
    }
    search.blank_root.tag = tag;
    let _ = ROOTS.insert(key, &search.blank_root, NOEXIST);
    ROOTS.get_ptr_mut(key)
}

/// The word of a record with this index.
#[inline(always)]
pub(crate) fn word_of(record: *mut PortRecord, index: u32) -> *mut u64 {
    // SAFETY: the index is masked to the array's length.
    unsafe { (&raw mut (*record).words).cast::<u64>().add((index & WORD_MASK) as usize) }
}

/// The full leaves of a segment.
#[inline(always)]
pub(crate) fn full_of(root: *mut RootRecord, segment: u32) -> *mut u64 {
    // SAFETY: the index is masked to the array's length.
    unsafe { (&raw mut (*root).full).cast::<u64>().add((segment & SEGMENT_MASK) as usize) }
}

/// Sets the bit of a port that has just been claimed.
#[inline(always)]
pub(crate) fn mark(key: &RecordKey, port: [u8; 2]) {
    let Some(record) = RECORDS.get_ptr_mut(key) else { return };
    let bit = u32::from(u16::from_be_bytes(port));
    let (word, mask) = (word_of(record, bit >> 6), 1u64 << (bit & 63));
    // SAFETY: words of a map value of an LRU map. In one that was recycled meanwhile the bit is taken back, as a release does:
    // somebody may have seen the leaf full.
    unsafe {
        if atomic::fetch_or(word, mask) & mask == 0 && atomic::load(&raw const (*record).tag) != key.tag() {
            atomic::fetch_and(word, !mask);
            atomic::fetch_add(&raw mut (*record).epoch, 1);
        }
    }
}

/// Clears a port's bit, and that of its leaf, after its flow has left the table.
///
/// The leaf first, then the root: whoever sets a root's bit looks at the leaf again afterwards.
#[inline(never)]
pub(crate) fn release(slot: u32, key: &FlowKey, address: [u8; 4], port: [u8; 2]) {
    // SAFETY: array element.
    if pressed(key).is_none_or(|pressed| unsafe { *pressed } == 0) {
        return;
    }
    delay::at(FLOW_GONE);
    if let Some(found) = RECORDS.get_ptr_mut(&record_key(key, address, leaf_of(port))) {
        let bit = u32::from(u16::from_be_bytes(port));
        // SAFETY: words of a map value. In a recycled record a bit that is cleared by mistake costs one try.
        unsafe {
            atomic::fetch_and(word_of(found, bit >> 6), !(1u64 << (bit & 63)));
            atomic::fetch_add(&raw mut (*found).epoch, 1);
        }
    }
    delay::at(BIT_CLEAR);
    let Some(control) = CONTROL.get_ptr(0) else { return };
    // SAFETY: array element.
    let bank = unsafe { core::ptr::read_volatile(&raw const (*control).bank) };
    let known = clear_root(bank & 1, slot, key, address, port);
    // SAFETY: array elements. A configuration that came in between may have put the port into another set.
    unsafe {
        let moved = core::ptr::read_volatile(&raw const (*control).bank) != bank;
        if (!known || moved)
            && let Some(table) = TABLE.get_ptr_mut(0)
        {
            atomic::fetch_add(&raw mut (*table).drained, 1);
        }
    }
}

/// Clears the bit in the root of the set that has the port; false if none of the grant's has.
#[inline(always)]
fn clear_root(bank: u32, slot: u32, key: &FlowKey, address: [u8; 4], port: [u8; 2]) -> bool {
    let Some(grant) = GRANTS.get_ptr(banked(bank, slot)) else { return false };
    // SAFETY: array element.
    let Grant { own, shared, .. } = unsafe { *grant };
    (own != 0 && clear_in(banked(bank, own - 1), key, address, port))
        || (shared != 0 && clear_in(banked(bank, shared - 1), key, address, port))
}

#[inline(never)]
fn clear_in(set: u32, key: &FlowKey, address: [u8; 4], port: [u8; 2]) -> bool {
    let Some(set) = SETS.get_ptr(set) else { return false };
    // SAFETY: array element.
    let set: &PortSet = unsafe { &*set };
    let Some(segment) = segment_of(set, address, port) else { return false };
    if let Some(root) = ROOTS.get_ptr_mut(&root_key(key, set.id)) {
        // SAFETY: words of a map value; in a recycled root a bit that is cleared by mistake costs one look.
        unsafe {
            atomic::fetch_and(full_of(root, segment), !(1u64 << leaf_of(port)));
            atomic::fetch_add(&raw mut (*root).epoch, 1);
        }
    }
    true
}
