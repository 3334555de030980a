// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Which addresses outside an inner end has sessions with: who may send to its mapping where filtering is
//! address-dependent (RFC 4787 §5). An element is there while its count is not zero.

use nat_common::{
    Tick,
    abi::grant::{Peer, PeerKey, TOWARDS_GONE},
    net::timers,
};

use crate::{
    allocate::{EEXIST, NOEXIST},
    atomic,
    maps::PEERS,
    towards::Taken,
};

/// Counts a session that may live until tick `until`.
#[inline(always)]
pub(crate) fn take(key: &PeerKey, until: Tick) -> Taken {
    for _ in 0..4 {
        if let Some(peer) = PEERS.get_ptr_mut(key) {
            // SAFETY: words of a map value; one that has changed hands is recognised by its tag, and left as it was.
            unsafe {
                let others = atomic::fetch_add(&raw mut (*peer).sessions, 1);
                if atomic::load(&raw const (*peer).tag) == key.tag() && others < TOWARDS_GONE {
                    later(peer, until);
                    return Taken::Yes;
                }
                atomic::add(&raw mut (*peer).sessions, u64::MAX);
            }
        } else {
            match PEERS.insert(key, &Peer { sessions: 1, tag: key.tag(), until: u64::from(until) }, NOEXIST) {
                Ok(()) => return Taken::Yes,
                Err(EEXIST) => {}
                Err(_) => return Taken::Fault,
            }
        }
    }
    Taken::Race
}

#[inline(always)]
pub(crate) fn give_back(key: &PeerKey) {
    let Some(peer) = PEERS.get_ptr_mut(key) else { return };
    // SAFETY: words of a map value.
    unsafe {
        if atomic::fetch_add(&raw mut (*peer).sessions, u64::MAX) == 1
            && atomic::compare_swap(&raw mut (*peer).sessions, 0, TOWARDS_GONE)
        {
            let _ = PEERS.remove(key);
        }
    }
}

/// A session is alive, and may be until `until`.
#[inline(always)]
pub(crate) fn extend(key: &PeerKey, until: Tick) {
    if let Some(peer) = PEERS.get_ptr_mut(key) {
        later(peer, until);
    }
}

/// Of two that write at once the later may lose; the next packet of its session says it again.
#[inline(always)]
fn later(peer: *mut Peer, until: Tick) {
    for _ in 0..4 {
        // SAFETY: a word of a map value.
        unsafe {
            let known = atomic::load(&raw const (*peer).until);
            if (known as Tick).wrapping_sub(until) as i32 >= 0
                || atomic::compare_swap(&raw mut (*peer).until, known, u64::from(until))
            {
                return;
            }
        }
    }
}

/// Whether a session with that address may be alive.
#[inline(always)]
pub(crate) fn known(key: &PeerKey, now: Tick) -> bool {
    PEERS.get_ptr(key).is_some_and(|peer| {
        // SAFETY: words of a map value.
        unsafe {
            atomic::load(&raw const (*peer).tag) == key.tag()
                && !timers::expired(now, atomic::load(&raw const (*peer).until) as Tick, 0)
        }
    })
}
