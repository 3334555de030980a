// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Records of taken ports: finding, making, marking and clearing. What they are for: `ports`.

use nat_common::{
    abi::{
        config::{Grant, grant_index},
        flow::FlowKey,
        record::{LEAF_PORTS, PortRecord, RecordKey},
    },
    ports::{WORD_MASK, number_of},
};

use crate::{
    allocate::NOEXIST,
    atomic,
    maps::{CONTROL, GRANT_STATE, GRANTS, RECORDS},
    ports::Search,
};

/// The key of a leaf's record towards the destination searched for.
#[inline(always)]
pub(crate) fn record_key(search: &Search, grant: *const Grant, leaf: u32) -> RecordKey {
    RecordKey {
        grant: search.slot,
        destination: search.key.destination,
        destination_port: search.key.destination_port,
        leaf: leaf as u16,
        // SAFETY: array element.
        version: unsafe { (*grant).version },
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

/// The word of a record with this index.
#[inline(always)]
pub(crate) fn word_of(record: *mut PortRecord, index: u32) -> *mut u64 {
    // SAFETY: the index is masked to the array's length.
    unsafe { (&raw mut (*record).words).cast::<u64>().add((index & WORD_MASK) as usize) }
}

/// Sets a bit.
#[inline(always)]
pub(crate) fn mark(key: &RecordKey, bit: u32) {
    if let Some(record) = RECORDS.get_ptr_mut(key) {
        // SAFETY: a word of a map value.
        unsafe { atomic::fetch_or(word_of(record, bit >> 6), 1u64 << (bit & 63)) };
    }
}

/// Clears a port's bit after its flow has left the table.
#[inline(always)]
pub(crate) fn release(slot: u32, key: &FlowKey, address: [u8; 4], port: [u8; 2]) {
    let (Some(control), Some(state)) = (CONTROL.get_ptr(0), GRANT_STATE.get_ptr(slot)) else { return };
    // SAFETY: array elements.
    let (bank, pressed) = unsafe { ((*control).bank & 1, (*state).pressed) };
    if pressed == 0 {
        return;
    }
    let Some(grant) = GRANTS.get_ptr(grant_index(bank, slot)) else { return };
    // SAFETY: array element.
    let (number, version) = unsafe { (number_of(&*grant, address, port), (*grant).version) };
    let Some(number) = number else { return };
    let record = RecordKey {
        grant: slot,
        destination: key.destination,
        destination_port: key.destination_port,
        leaf: (number / LEAF_PORTS) as u16,
        version,
    };
    if let Some(found) = RECORDS.get_ptr_mut(&record) {
        let bit = number % LEAF_PORTS;
        // SAFETY: words of a map value. In a recycled record a bit that is cleared by mistake costs one try.
        unsafe {
            atomic::and(word_of(found, bit >> 6), !(1u64 << (bit & 63)));
            atomic::add(&raw mut (*found).epoch, 1);
        }
    }
}
