// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! TC ingress on every inside and outside interface: keeps fragments that came before the first one of their datagram.
//!
//! XDP cannot keep a packet. What it leaves to the stack for that ([`crate::fragment::natgw_hold_back`]) is copied here
//! into a slot of `HELD` and dropped, so that the stack never sees it. The first fragment, when it comes, is left to this
//! program, too, and takes with it those that are held: its buffer is filled with one after the other, and cloned.
//!
//! Who keeps a fragment looks afterwards whether the first has come meanwhile; who brings the first looks for those that
//! are kept after it has said so in `FRAGMENTS`. So at least one of them sees the other, and the compare-and-swap of
//! the slot's word decides who sends.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    cty::c_void,
    helpers::generated::{bpf_loop, bpf_skb_change_head, bpf_skb_load_bytes},
};
use nat_common::{
    Tick,
    abi::{
        fragment::{
            FRAGMENT_AWAITED, FRAGMENT_KNOWN, FRAGMENT_NONE, FRAGMENT_REFUSED, FRAGMENT_STACK,
            FRAGMENT_WAITING, FragmentEntry, FragmentKey, HELD_BYTES, HELD_FILLING, HELD_NOTHING, HELD_READY,
            HELD_TICKS, HELD_WINDOW, held_slot, spread,
        },
        names::delay::FRAGMENT_TAKEN,
    },
    net::timers,
};

use crate::{
    atomic, clock, delay,
    fragment::{entry_of, party},
    guard::role_of,
    maps::{FRAGMENTS, HELD, HELD_DATA},
    parse::IPV4 as IPV4_HEADER,
    release::{Fate, inject, release, send},
    skb::{IPV4, L3, load},
    verdict,
};

/// "More fragments" and the offset, in the two bytes of the header.
const MORE_OR_OFFSET: [u8; 2] = [0x3f, 0xff];

/// Everything about one datagram. On the stack of [`ingress`], so that the callback of `bpf_loop` may have pointers in it.
#[repr(C)]
pub(crate) struct Work {
    pub(crate) skb: *mut __sk_buff,
    pub(crate) key: FragmentKey,
    pub(crate) entry: FragmentEntry,
    pub(crate) party: [u8; 4],
    pub(crate) start: u32,
    pub(crate) now: Tick,
    /// Interface it came by.
    pub(crate) ifindex: u32,
    /// IP total length in bytes.
    length: u32,
}

impl Work {
    const NOTHING: Self = Self {
        skb: core::ptr::null_mut(),
        key: FragmentKey { source: [0; 4], destination: [0; 4], id: [0; 2], protocol: 0, side: 0 },
        entry: FragmentEntry {
            identity: 0,
            source_port: [0; 2],
            destination_port: [0; 2],
            id: [0; 2],
            state: 0,
            icmp_type: 0,
            made: 0,
        },
        party: [0; 4],
        start: 0,
        now: 0,
        ifindex: 0,
        length: 0,
    };
}

/// Keeps a fragment, sends it with those that are kept, or leaves it alone.
#[inline(always)]
pub(crate) fn ingress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the program's argument.
    let (protocol, ifindex) = unsafe { ((*skb).protocol, (*skb).ifindex) };
    if protocol != IPV4 {
        return TC_ACT_UNSPEC;
    }
    let mut work = Work { skb, ifindex, ..Work::NOTHING };
    let seen = look(&mut work);
    if seen == NO_FRAGMENT {
        return TC_ACT_UNSPEC;
    }
    let first = seen == FIRST_FRAGMENT;
    if first && work.entry.state & FRAGMENT_WAITING != 0 {
        together(&mut work);
        return TC_ACT_SHOT;
    }
    match work.entry.state & !FRAGMENT_WAITING {
        FRAGMENT_AWAITED if !first => {
            if keep(&mut work) != 0 {
                release(&mut work);
            }
            TC_ACT_SHOT
        }
        FRAGMENT_KNOWN => match send(&work, first) {
            Fate::Stack => TC_ACT_UNSPEC,
            Fate::Sent | Fate::Lost => TC_ACT_SHOT,
        },
        FRAGMENT_REFUSED if !first => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// Sends a first fragment, and those that wait for it.
#[inline(always)]
fn together(work: &mut Work) {
    // Before anything is given to the stack: it comes by here again, and must not be taken for the first another time.
    work.entry.state &= !FRAGMENT_WAITING;
    if FRAGMENTS.insert(&work.key, &work.entry, 0).is_err() {
        verdict::count(|counters| counters.fragments_lost += 1);
        return;
    }
    if work.entry.state == FRAGMENT_STACK || send(work, true) == Fate::Stack {
        inject(work);
    }
    release(work);
}

/// [`look`]: a whole packet, or none at all.
const NO_FRAGMENT: u32 = 0;
/// [`look`]: the first fragment of a datagram.
const FIRST_FRAGMENT: u32 = 1;
/// [`look`]: a later one.
const LATER_FRAGMENT: u32 = 2;

/// Reads the header, and what is known about its datagram.
#[inline(never)]
fn look(work: &mut Work) -> u32 {
    let mut header = [0u8; IPV4_HEADER];
    if !load(work.skb, 0, &mut header) || header[0] >> 4 != 4 {
        return NO_FRAGMENT;
    }
    let [high, low] = [header[6] & MORE_OR_OFFSET[0], header[7] & MORE_OR_OFFSET[1]];
    if high == 0 && low == 0 {
        return NO_FRAGMENT;
    }
    work.key = FragmentKey {
        source: [header[12], header[13], header[14], header[15]],
        destination: [header[16], header[17], header[18], header[19]],
        id: [header[4], header[5]],
        protocol: header[9],
        side: role_of(work.ifindex) & 3,
    };
    work.length = u32::from(u16::from_be_bytes([header[2], header[3]]));
    work.now = clock::now();
    work.entry = entry_of(&work.key, work.now);
    if work.entry.state == FRAGMENT_NONE || !begins_with_ethernet(work.skb, &header) {
        return NO_FRAGMENT;
    }
    work.party = party(&work.key);
    work.start = spread(work.key.destination) ^ u32::from(u16::from_be_bytes(work.key.id));
    if high & 0x1f == 0 && low == 0 { FIRST_FRAGMENT } else { LATER_FRAGMENT }
}

/// Puts the Ethernet header back, which is missing where generic XDP has copied the packet: the copy has no `mac_len`, by
/// which the kernel goes back to it (`skb_pp_cow_data`, net/core/skbuff.c, Linux 6.18). False: it cannot be done.
#[inline(always)]
fn begins_with_ethernet(skb: *mut __sk_buff, header: &[u8; IPV4_HEADER]) -> bool {
    let mut found = [0u8; IPV4_HEADER];
    // SAFETY: the buffer has the length that is passed; the program's own context.
    unsafe {
        let read = bpf_skb_load_bytes(skb.cast(), L3, found.as_mut_ptr().cast(), IPV4_HEADER as u32);
        (read == 0 && words(&found) == words(header)) || bpf_skb_change_head(skb, L3, 0) == 0
    }
}

/// An IPv4 header in words: a comparison byte by byte becomes a call to `memcmp`.
#[inline(always)]
fn words(header: &[u8; IPV4_HEADER]) -> [u32; 5] {
    // SAFETY: the same size; read without an assumption about alignment.
    unsafe { header.as_ptr().cast::<[u32; 5]>().read_unaligned() }
}

/// Copies the fragment into a slot. 1: its first one has come in the meantime, so what is held is to be sent.
///
/// verifier: not inlined, for the stack.
#[inline(never)]
fn keep(work: &mut Work) -> u32 {
    let length = work.length;
    let mut found = NO_SLOT;
    if length as usize <= HELD_BYTES && length >= IPV4_HEADER as u32 {
        let mut search = Search { party: work.party, start: work.start, now: work.now, found };
        // SAFETY: the callback gets a pointer to what it expects.
        unsafe { bpf_loop(HELD_WINDOW, take as *mut c_void, (&raw mut search).cast(), 0) };
        found = search.found;
    }
    let (Some(slot), Some(data)) = (HELD.get_ptr_mut(found), HELD_DATA.get_ptr_mut(found)) else {
        verdict::count(|counters| counters.fragments_lost += 1);
        return 0;
    };
    // SAFETY: this CPU's own since it swapped the word; the buffer holds `length` bytes.
    unsafe {
        (*slot).key = work.key;
        (*slot).length = length;
        let length = held_length(length);
        let filling = word_of(work.now, HELD_FILLING);
        if bpf_skb_load_bytes(work.skb.cast(), L3, data.cast(), length) != 0 {
            atomic::compare_swap(&raw mut (*slot).word, filling, 0);
            verdict::count(|counters| counters.fragments_lost += 1);
            return 0;
        }
        delay::at(FRAGMENT_TAKEN);
        verdict::count(|counters| counters.fragments_held += 1);
        atomic::compare_swap(&raw mut (*slot).word, filling, word_of(work.now, HELD_READY));
    }
    work.entry = entry_of(&work.key, work.now);
    u32::from(matches!(work.entry.state & !FRAGMENT_WAITING, FRAGMENT_KNOWN | FRAGMENT_STACK))
}

const NO_SLOT: u32 = u32::MAX;

/// A length from 1 to [`HELD_BYTES`] as it is, and any other one brought there.
///
/// verifier: in one register, by instructions that LLVM does not see through. It knows what it has compared and passes
/// another register on, of whose bounds the verifier of Linux 6.1 and 6.12 knows nothing.
#[inline(always)]
pub(crate) fn held_length(length: u32) -> u32 {
    const { assert!(HELD_BYTES == 2048, "the mask below") };
    let mut bounded = u64::from(length);
    // SAFETY: arithmetic in one register.
    unsafe {
        asm!("{x} += -1", "{x} &= 2047", "{x} += 1", x = inout(reg) bounded, options(pure, nomem, nostack));
    }
    bounded as u32
}

/// [`HeldFragment::word`].
///
/// [`HeldFragment::word`]: nat_common::abi::fragment::HeldFragment::word
pub(crate) const fn word_of(now: Tick, state: u32) -> u64 {
    (now as u64) << 32 | state as u64
}

/// The search for a free slot in a window.
#[repr(C)]
struct Search {
    party: [u8; 4],
    start: u32,
    now: Tick,
    found: u32,
}

/// `bpf_loop` callback: takes slot `step` of the window if it is free, or what is in it too old; 1: done.
#[inline(never)]
extern "C" fn take(step: u32, search: *mut c_void) -> i64 {
    // SAFETY: the only caller passes a `Search`.
    let search = unsafe { &mut *search.cast::<Search>() };
    let number = held_slot(search.party, search.start, step);
    let Some(slot) = HELD.get_ptr_mut(number) else { return 1 };
    // SAFETY: a word of an array element.
    unsafe {
        let seen = atomic::load(&raw const (*slot).word);
        let old = timers::expired(search.now, (seen >> 32) as Tick, HELD_TICKS);
        if (seen as u32 != HELD_NOTHING && !old)
            || !atomic::compare_swap(&raw mut (*slot).word, seen, word_of(search.now, HELD_FILLING))
        {
            return 0;
        }
        if seen as u32 == HELD_READY {
            verdict::count(|counters| counters.fragments_expired += 1);
        }
    }
    search.found = number;
    1
}
