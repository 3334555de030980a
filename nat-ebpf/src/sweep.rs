// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The idle sweep: reclaims what has expired. Expiry itself does not need it, see `lookup`.
//!
//! Runs in the daemon's context through `BPF_PROG_TEST_RUN` of a raw tracepoint program, which, unlike that of an XDP
//! program, does not keep softirqs off the CPU meanwhile (net/bpf/test_run.c, `bpf_prog_test_run_raw_tp`).

use aya_ebpf::{cty::c_void, helpers::generated::bpf_for_each_map_elem};
use nat_common::{
    abi::{
        config::{CLASSES, Control, SweepArgs},
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
    maps::{CONTROL, FLOWS, SWEEP, TABLE},
    reap, tell,
};

/// Visits every entry (Linux 5.13).
#[inline(always)]
pub(crate) fn pass() {
    let Some(args) = SWEEP.get_ptr_mut(0) else { return };
    // SAFETY: array element; the daemon runs one pass at a time.
    unsafe { (*args).now = clock::now_in_sweep() };
    // SAFETY: `visit` has the signature that the helper wants for a hash map and uses no context.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const FLOWS).cast_mut().cast(),
            visit as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
}

/// Looks at one entry. Always 0: go on.
unsafe extern "C" fn visit(
    _map: *mut c_void,
    key: *const FlowKey,
    entry: *mut FlowEntry,
    _context: *mut c_void,
) -> i64 {
    let (Some(args), Some(control)) = (SWEEP.get_ptr_mut(0), CONTROL.get_ptr(0)) else { return 0 };
    // SAFETY: array elements, and the element that the helper passes. Its key moves away with it when it is removed,
    // so it is copied first.
    unsafe {
        let args = &mut *args;
        args.visited += 1;
        if (*entry).half & HALF_OUTBOUND == 0 {
            return 0;
        }
        let key = *key;
        let first = word(entry);
        let bits = (first >> 32) as u32;
        if bits & state::DEAD != 0 {
            return 0;
        }
        let now = args.now;
        if key.zone[0] != ZONE_FLOW {
            of_mapping(&key, entry, first, args, &*control);
            return 0;
        }
        let timer = timers::class_of((*entry).grant % CLASSES, bits & state::MASK);
        if !expired(&key, entry, timer, &*control, now, 0) {
            args.live[timer as usize & (TIMER_CLASSES - 1)] += 1;
            return 0;
        }
        let untold = tell::wanted(entry, bits, timer, &*control);
        if untold {
            // Told in this pass or the next one, and only then reclaimed; however long ago it ended, one try it has.
            let settled = expired(&key, entry, timer, &*control, now, tell::SETTLED);
            let told = settled && tell::hand_over(&key, entry, first, now);
            if told || !expired(&key, entry, timer, &*control, now, tell::PATIENCE) {
                args.pending += 1;
                return 0;
            }
        }
        if args.reclaimed >= args.limit || !reclaimable(&key, entry, timer, &*control, now) {
            args.pending += 1;
            return 0;
        }
        if reclaim(&key, entry, first, args) && untold {
            tell::given_up();
        }
    }
    0
}

/// Looks at a mapping: no connection, so it is not counted among those that live.
#[inline(always)]
fn of_mapping(key: &FlowKey, entry: *mut FlowEntry, first: u64, args: &mut SweepArgs, control: &Control) {
    if mapping::over(key, entry, control, args.now, false) == mapping::ALIVE {
        return;
    }
    let judged = mapping::over(key, entry, control, args.now, true);
    if judged == mapping::ALIVE || args.reclaimed >= args.limit {
        args.pending += 1;
    } else if mapping::remove(key, entry, first, judged) {
        swept(args);
    }
}

#[inline(always)]
fn swept(args: &mut SweepArgs) {
    args.reclaimed += 1;
    if let Some(table) = TABLE.get_ptr_mut(0) {
        // SAFETY: array element.
        unsafe { atomic::add(&raw mut (*table).swept, 1) };
    }
}

#[inline(always)]
fn reclaim(key: &FlowKey, entry: *mut FlowEntry, first: u64, args: &mut SweepArgs) -> bool {
    let removed = reap::flow(key, entry, first);
    if removed {
        swept(args);
    }
    removed
}
