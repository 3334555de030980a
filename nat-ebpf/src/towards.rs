// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Flows of a backend to one destination, counted for rules with `max_ports`. An element is there while its count is not
//! zero.

use nat_common::abi::{
    flow::FlowKey,
    grant::{TOWARDS_GONE, Towards, TowardsKey},
};

use crate::{
    allocate::{EEXIST, NOEXIST},
    atomic,
    maps::TOWARDS,
};

/// Whether a flow was counted.
pub(crate) enum Taken {
    Yes,
    Full,
    Race,
    Fault,
}

#[inline(always)]
pub(crate) fn key_of(key: &FlowKey, grant: u32) -> TowardsKey {
    TowardsKey {
        grant,
        destination: key.destination,
        destination_port: key.destination_port,
        reserved: [0; 2],
    }
}

/// Counts a flow of a backend to one destination, up to `most`.
#[inline(always)]
pub(crate) fn take(key: &TowardsKey, most: u32) -> Taken {
    for _ in 0..4 {
        if let Some(count) = TOWARDS.get_ptr_mut(key) {
            // SAFETY: words of a map value; one that has changed hands is recognised by its tag, and left as it was.
            unsafe {
                let others = atomic::fetch_add(&raw mut (*count).flows, 1);
                let same = atomic::load(&raw const (*count).tag) == key.tag();
                if same && others < u64::from(most) {
                    return Taken::Yes;
                }
                if same && others < TOWARDS_GONE {
                    give_back(key);
                    return Taken::Full;
                }
                atomic::add(&raw mut (*count).flows, u64::MAX);
            }
        } else {
            match TOWARDS.insert(key, &Towards { flows: 1, tag: key.tag() }, NOEXIST) {
                Ok(()) => return Taken::Yes,
                Err(EEXIST) => {}
                Err(_) => return Taken::Fault,
            }
        }
    }
    Taken::Race
}

#[inline(always)]
pub(crate) fn give_back(key: &TowardsKey) {
    let Some(count) = TOWARDS.get_ptr_mut(key) else { return };
    // SAFETY: words of a map value.
    unsafe {
        if atomic::fetch_add(&raw mut (*count).flows, u64::MAX) == 1
            && atomic::compare_swap(&raw mut (*count).flows, 0, TOWARDS_GONE)
        {
            let _ = TOWARDS.remove(key);
        }
    }
}
