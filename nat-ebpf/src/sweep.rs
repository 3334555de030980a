// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The idle sweep: reclaims what has expired. Expiry itself does not need it, see `lookup`.
//!
//! An iterator (`iter/bpf_map_elem`) over the flow table, in the context of the daemon, which reads from its descriptor: the
//! kernel calls the program for one entry after the other. A slice ends when the program writes a byte: then a read of one
//! byte is satisfied (kernel/bpf/bpf_iter.c, `bpf_seq_read`), and the next one goes on from there. The kernel keeps its
//! place as a bucket and a number of elements in it, and holds the RCU read lock for one bucket at a time
//! (kernel/bpf/hashtab.c, `bpf_hash_map_seq_find_next`). So what is removed before that place may hide an element of the
//! same bucket at the end of a slice, and an element that is removed and recycled at once may end its bucket: what a pass
//! misses in this way is met by the next one. What is inserted before that place may be met twice, which changes counts.

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use nat_common::{
    abi::{
        config::{CLASSES, Control, SWEEP_REMOVAL, SWEEP_RUNNING, SweepPass},
        flow::{FlowEntry, FlowKey, HALF_OUTBOUND, ZONE_FLOW},
    },
    net::{
        state,
        timers::{self, TIMER_CLASSES},
    },
};

use crate::{
    atomic, clock,
    life::{expired, reclaimable},
    lookup::word,
    mapping,
    maps::{CONTROL, SWEEP, TABLE},
    reap, tell,
};

/// The kernel's `struct bpf_iter_meta` (include/linux/bpf.h).
#[repr(C)]
pub(crate) struct Meta {
    file: *mut seq_file,
    session: u64,
    number: u64,
}

/// The kernel's `struct bpf_iter__bpf_map_elem` (kernel/bpf/map_iter.c).
#[repr(C)]
pub(crate) struct Context {
    meta: *const Meta,
    map: *const core::ffi::c_void,
    /// Null, as the value: every entry has been visited.
    key: *const FlowKey,
    value: *mut FlowEntry,
}

/// Looks at one entry, and ends the slice when it has done its work.
#[inline(always)]
pub(crate) fn element(context: *const Context) {
    // SAFETY: the kernel's context, whose fields the verifier knows.
    let (key, entry) = unsafe { ((*context).key, (*context).value) };
    let (Some(pass), Some(control)) = (SWEEP.get_ptr_mut(SWEEP_RUNNING), CONTROL.get_ptr(0)) else { return };
    // SAFETY: array elements; the daemon runs one pass at a time.
    let (pass, control) = unsafe { (&mut *pass, &*control) };
    if key.is_null() || entry.is_null() {
        pass.work = 0;
        return;
    }
    if pass.work == 0 {
        pass.now = clock::now_in_sweep();
    }
    pass.visited += 1;
    pass.work += 1;
    visit(key, entry, pass, control);
    if pass.slice != 0 && pass.work >= pass.slice {
        pass.work = 0;
        let byte = 0u8;
        // SAFETY: the kernel's context, as above; one byte of the stack.
        unsafe { bpf_seq_write((*(*context).meta).file, (&raw const byte).cast(), 1) };
    }
}

#[inline(always)]
fn visit(key: *const FlowKey, entry: *mut FlowEntry, pass: &mut SweepPass, control: &Control) {
    // SAFETY: the element that the kernel passes. Its key moves away with it when it is removed, so it is copied first.
    unsafe {
        if (*entry).half & HALF_OUTBOUND == 0 {
            return;
        }
        let key = *key;
        let first = word(entry);
        let bits = (first >> 32) as u32;
        if bits & state::DEAD != 0 {
            return;
        }
        let now = pass.now;
        if key.zone[0] != ZONE_FLOW {
            of_mapping(&key, entry, first, pass, control);
            return;
        }
        let timer = timers::class_of((*entry).grant % CLASSES, bits & state::MASK);
        if !expired(&key, entry, timer, control, now, 0) {
            pass.live[timer as usize & (TIMER_CLASSES - 1)] += 1;
            return;
        }
        let untold = tell::wanted(entry, bits, timer, control);
        if untold {
            // Told in this pass or the next one, and only then reclaimed; however long ago it ended, one try it has.
            let settled = expired(&key, entry, timer, control, now, tell::SETTLED);
            let told = settled && tell::hand_over(&key, entry, first, now);
            if told {
                pass.work += SWEEP_REMOVAL;
            }
            if told || !expired(&key, entry, timer, control, now, tell::PATIENCE) {
                pass.pending += 1;
                pass.untold += u64::from(!told);
                return;
            }
        }
        if pass.reclaimed >= pass.limit || !reclaimable(&key, entry, timer, control, now) {
            pass.pending += 1;
            return;
        }
        if reclaim(&key, entry, first, pass) && untold {
            tell::given_up();
        }
    }
}

/// Looks at a mapping: no connection, so it is not counted among those that live.
#[inline(always)]
fn of_mapping(key: &FlowKey, entry: *mut FlowEntry, first: u64, pass: &mut SweepPass, control: &Control) {
    if mapping::over(key, entry, control, pass.now, false) == mapping::ALIVE {
        return;
    }
    let judged = mapping::over(key, entry, control, pass.now, true);
    if judged == mapping::ALIVE || pass.reclaimed >= pass.limit {
        pass.pending += 1;
    } else if mapping::remove(key, entry, first, judged) {
        swept(pass);
    }
}

#[inline(always)]
fn swept(pass: &mut SweepPass) {
    pass.reclaimed += 1;
    pass.work += SWEEP_REMOVAL;
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).swept, 1) };
    }
}

#[inline(always)]
fn reclaim(key: &FlowKey, entry: *mut FlowEntry, first: u64, pass: &mut SweepPass) -> bool {
    let removed = reap::flow(key, entry, first);
    if removed {
        swept(pass);
    }
    removed
}
