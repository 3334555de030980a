// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Sending what [`crate::hold`] has kept: each fragment in the buffer of the packet that is at hand.

use aya_ebpf::{
    bindings::__sk_buff,
    cty::c_void,
    helpers::generated::{bpf_clone_redirect, bpf_loop, bpf_skb_change_tail, bpf_skb_store_bytes},
};
use nat_common::{
    Tick,
    abi::{
        config::{ROLE_INSIDE, ROLE_OUTSIDE},
        flow::{FlowEntry, FlowKey, HALF_OUTBOUND},
        fragment::{
            FRAGMENT_STACK, FRAGMENT_WAITING, FragmentKey, HELD_BYTES, HELD_LEAVING, HELD_READY, HELD_TICKS,
            HELD_WINDOW, HeldFragment, held_slot,
        },
    },
    net::{state, timers},
};

use crate::{
    atomic,
    hold::{Work, held_length, word_of},
    lookup::word,
    maps::{FLOWS, HELD, HELD_DATA, PORT_BY_IFINDEX, PORTS},
    parse::IPV4 as IPV4_HEADER,
    route,
    skb::{self, Edit, L3, load},
    verdict,
};

/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;

/// Sends every fragment of the datagram that is held.
#[inline(always)]
pub(crate) fn release(work: &mut Work) {
    // SAFETY: the callback gets a pointer to what it expects.
    unsafe { bpf_loop(HELD_WINDOW, leave as *mut c_void, core::ptr::from_mut(work).cast(), 0) };
}

/// `bpf_loop` callback: sends what is in slot `step` of the window, if it belongs to the datagram.
#[inline(never)]
extern "C" fn leave(step: u32, work: *mut c_void) -> i64 {
    // SAFETY: the only caller passes a `Work`.
    let work = unsafe { &*work.cast::<Work>() };
    let number = held_slot(work.party, work.start, step);
    let Some(slot) = HELD.get_ptr_mut(number) else { return 1 };
    // SAFETY: array element.
    unsafe {
        let seen = atomic::load(&raw const (*slot).word);
        if seen as u32 != HELD_READY || !same(&raw const (*slot).key, &work.key) {
            return 0;
        }
        let leaving = word_of((seen >> 32) as Tick, HELD_LEAVING);
        if !atomic::compare_swap(&raw mut (*slot).word, seen, leaving) {
            return 0;
        }
        let old = timers::expired(work.now, (seen >> 32) as Tick, HELD_TICKS);
        let gone = !old && load_into(work.skb, number, slot) && dispatch(work);
        atomic::compare_swap(&raw mut (*slot).word, leaving, 0);
        verdict::count(|counters| match (old, gone) {
            (true, _) => counters.fragments_expired += 1,
            (_, true) => counters.fragments_released += 1,
            _ => counters.fragments_lost += 1,
        });
    }
    0
}

/// # Safety
/// `slot` points into a map value.
#[inline(always)]
unsafe fn same(slot: *const FragmentKey, key: &FragmentKey) -> bool {
    // SAFETY: by the caller's promise; keys are aligned to 2 bytes.
    let [a, b, c] = unsafe { slot.cast::<[u32; 3]>().read_unaligned() };
    // SAFETY: a reference.
    let [d, e, f] = unsafe { core::ptr::from_ref(key).cast::<[u32; 3]>().read_unaligned() };
    a == d && b == e && c == f
}

/// Makes the buffer the fragment in a slot, behind whatever Ethernet header.
#[inline(always)]
fn load_into(skb: *mut __sk_buff, number: u32, slot: *const HeldFragment) -> bool {
    let Some(data) = HELD_DATA.get_ptr(number) else { return false };
    // SAFETY: this CPU's own since it swapped the word; the buffer holds `length` bytes.
    unsafe {
        let stored = (*slot).length;
        if stored < IPV4_HEADER as u32 || stored as usize > HELD_BYTES {
            return false;
        }
        let length = held_length(stored);
        bpf_skb_change_tail(skb, L3 + length, 0) == 0
            && bpf_skb_store_bytes(skb, L3, data.cast(), length, 0) == 0
    }
}

/// Sends a fragment that was held where its datagram goes.
#[inline(always)]
fn dispatch(work: &Work) -> bool {
    if work.entry.state & !FRAGMENT_WAITING == FRAGMENT_STACK {
        return inject(work);
    }
    match send(work, false) {
        Fate::Sent => true,
        Fate::Lost => false,
        Fate::Stack => inject(work),
    }
}

/// What became of a fragment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Translated and sent; or given to the stack, translated.
    Sent,
    /// It cannot be sent.
    Lost,
    /// The stack is to have it: as it is, and the guard translates it; or already translated.
    Stack,
}

/// Gives the stack what is in the buffer, as if it came in now.
#[inline(always)]
pub(crate) fn inject(work: &Work) -> bool {
    let Some(slot) = PORT_BY_IFINDEX.get_ptr(&work.ifindex) else { return false };
    // SAFETY: map value and array element.
    let Some(port) = PORTS.get_ptr(unsafe { *slot }) else { return false };
    // SAFETY: array element; the program's own context.
    unsafe {
        ethernet(work.skb, (*port).mac, [0; 6]) && bpf_clone_redirect(work.skb, work.ifindex, INGRESS) == 0
    }
}

#[inline(always)]
fn ethernet(skb: *mut __sk_buff, to: [u8; 6], from: [u8; 6]) -> bool {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (to, from);
    skb::store(skb, 0, &[a, b, c, d, e, f, g, h, i, j, k, l, 8, 0])
}

/// Translates the fragment in the buffer and sends it, by the flow of its datagram.
///
/// verifier: not inlined, so that the stacks of [`crate::hold::ingress`] and [`leave`] do not both have room for it.
#[inline(never)]
pub(crate) fn send(work: &Work, first: bool) -> Fate {
    let key = FlowKey {
        source: work.key.source,
        destination: work.key.destination,
        source_port: work.entry.source_port,
        destination_port: work.entry.destination_port,
        protocol: work.key.protocol,
        zone: [0; 3],
    };
    let mut header = [0u8; IPV4_HEADER];
    let Some(entry) = FLOWS.get_ptr_mut(&key) else { return Fate::Lost };
    if !load(work.skb, 0, &mut header) {
        return Fate::Lost;
    }
    let Some(way) = way(&key, entry, work.key.side) else { return Fate::Lost };
    let length = u16::from_be_bytes([header[2], header[3]]);
    let stack = way.slot == route::FOREIGN || length > way.mtu;
    if stack && way.edit.outbound {
        return Fate::Stack;
    }
    // The stack's answer would show the backend's address to whoever sent it.
    if length > way.mtu && header[6] & 0x40 != 0 {
        return Fate::Lost;
    }
    let edit = Edit { id: work.entry.id, decrement: u8::from(!stack), ..way.edit };
    let transport = u32::from(header[0] & 0x0f) * 4;
    if header[8] <= 1
        || (first && !skb::transport(work.skb, &key, transport, &edit))
        || !skb::network(work.skb, &header, &edit)
    {
        return Fate::Lost;
    }
    // SAFETY: a map value, as in `emit::count`.
    unsafe {
        atomic::add(&raw mut (*entry).packets, 1);
        atomic::add(&raw mut (*entry).bytes, u64::from(length));
    }
    if stack {
        return Fate::Stack;
    }
    let Some(port) = PORTS.get_ptr(u32::from(way.slot)) else { return Fate::Lost };
    // SAFETY: array element; the program's own context.
    let sent = unsafe {
        ethernet(work.skb, way.next_hop, (*port).mac) && bpf_clone_redirect(work.skb, (*port).ifindex, 0) == 0
    };
    if sent { Fate::Sent } else { Fate::Lost }
}

struct Way {
    edit: Edit,
    slot: u8,
    mtu: u16,
    next_hop: [u8; 6],
}

/// What a half says, if it is alive and for this side.
#[inline(always)]
fn way(key: &FlowKey, entry: *const FlowEntry, side: u8) -> Option<Way> {
    let first = word(entry);
    // SAFETY: a map value; identity compared after reading.
    let (way, half) = unsafe {
        let half = (*entry).half;
        let edit = Edit {
            address: (*entry).address,
            port: (*entry).port,
            id: [0; 2],
            outbound: half & HALF_OUTBOUND != 0,
            decrement: 0,
        };
        let way = Way { edit, slot: (*entry).slot, mtu: (*entry).mtu, next_hop: (*entry).next_hop };
        (way, half)
    };
    let wanted = if half & HALF_OUTBOUND != 0 { ROLE_INSIDE } else { ROLE_OUTSIDE };
    let dead = (first >> 32) as u32 & state::DEAD != 0;
    if first as u32 != key.fold()
        || dead
        || word(entry) as u32 != first as u32
        || side & wanted == 0
        || way.slot == route::NOWHERE
    {
        return None;
    }
    Some(way)
}
