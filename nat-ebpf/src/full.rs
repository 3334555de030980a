// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! A refusal without a search: the roots say that every port is taken, and that no flow on one of them can be over yet.
//!
//! The same comparisons as in [`crate::pick`] and [`crate::walk`], which stay the only ones that find a port, or learn
//! that there is none. Before anything is counted, so that a storm of refusals writes to nothing that others read.

use nat_common::{
    Tick,
    abi::{
        config::{BANKS, MAX_RULES, banked},
        grant::{MAX_SEGMENTS, RULE_LIMITED},
        names::delay::ROOT_COPIED,
        record::Pressure,
    },
    net::protocol,
    ports::leaves,
};

use crate::{
    atomic, delay,
    maps::{CONTROL, GRANTS, ROOTS, RULES, SETS, TABLE},
    ports::Search,
    record::{full_of, pressed, root_key},
    walk::before,
};

/// Whether the flow that `search` asks for is to be refused for want of ports, as far as that is known. False says nothing.
///
/// Not asked of rules with limits, which come before ports.
#[inline(always)]
pub(crate) fn known(search: &Search) -> bool {
    // SAFETY: a word of an array element, a hint.
    let pressure = pressed(&search.key).map_or(0, |word| unsafe { word.read_volatile() });
    let crowded = pressure != 0 && Pressure(pressure).probes(search.now) == 0;
    if !crowded || search.joined != 0 || search.fixed != 0 || protocol::keeps_port(search.key.protocol) {
        return false;
    }
    let (Some(grant), Some(rule)) =
        (GRANTS.get_ptr(search.grant), RULES.get_ptr(search.rule % (BANKS * MAX_RULES)))
    else {
        return false;
    };
    // SAFETY: array elements.
    let (own, shared, limited) =
        unsafe { ((*grant).own, (*grant).shared, (*rule).flags & RULE_LIMITED != 0) };
    !limited
        && (own != 0 || shared != 0)
        && (own == 0 || all_taken(search, banked(search.bank, own - 1)))
        && (shared == 0 || all_taken(search, banked(search.bank, shared - 1)))
}

/// Whether one set's root says so.
#[inline(never)]
fn all_taken(search: &Search, set: u32) -> bool {
    let (Some(set), Some(control), Some(table)) = (SETS.get_ptr(set), CONTROL.get_ptr(0), TABLE.get_ptr(0))
    else {
        return false;
    };
    // SAFETY: array element.
    let key = root_key(&search.key, unsafe { (*set).id });
    let Some(root) = ROOTS.get_ptr_mut(&key) else { return false };
    // SAFETY: words of a map value of an LRU map: it may be recycled; the tag tells. `due` and `generation` are written as
    // one word, see `walk`.
    unsafe {
        let epoch = atomic::load(&raw const (*root).epoch);
        let due = atomic::load((&raw const (*root).due).cast());
        let (due, generation) = (due as Tick, (due >> 32) as u32);
        if generation != (*control).generation || due == 0 || !before(search.now, due) {
            return false;
        }
        if atomic::load(&raw const (*root).drained) != atomic::load(&raw const (*table).drained) {
            return false;
        }
        for index in 0..MAX_SEGMENTS {
            if index as u32 >= (*set).segment_count {
                break;
            }
            if leaves((*set).segments[index]) & !atomic::load(full_of(root, index as u32)) != 0 {
                return false;
            }
            // Between one word and the next a port may be released in the one and another claimed in the other.
            delay::at(ROOT_COPIED);
        }
        // After the bits: whoever announces itself later sets one later.
        if atomic::load(&raw const (*root).pending) != 0 {
            return false;
        }
        // Looked up anew: to a root that was evicted, releases are not noted.
        ROOTS.get_ptr(&key).is_some_and(|root| {
            atomic::load(&raw const (*root).epoch) == epoch
                && atomic::load(&raw const (*root).tag) == key.tag()
        })
    }
}
