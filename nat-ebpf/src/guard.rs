// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The guard: TC egress on every outside interface.
//!
//! XDP sends what it translates itself; such packets never come here. What comes here was sent by the host's stack:
//! its own packets, which are let through, and what it forwards. A packet that the stack forwards from an inside
//! interface, or with a backend's address from anywhere, is either one that XDP left to it because the next hop's MAC
//! address was not known yet, and then its flow exists and it is translated here, or something that must not leave.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT},
    cty::c_void,
    helpers::generated::{bpf_l4_csum_replace, bpf_loop, bpf_skb_pull_data, bpf_skb_store_bytes},
};
use nat_common::{
    abi::{
        config::{FEATURE_POLICY, FrontendKey, ROLE_INSIDE},
        flow::{FLOW_CLAMP, FLOW_IDENTIFY, FlowEntry, FlowKey, HALF_OUTBOUND},
        fragment::{FRAGMENT_KNOWN, FRAGMENT_STACK, FRAGMENT_WAITING, FragmentKey},
    },
    net::{
        icmp,
        mss::{MOST_OPTIONS, Walk},
        protocol::{self, ESP, GRE},
        state,
    },
};

use crate::{
    allocate, atomic, clamp, clock,
    fragment::entry_of,
    ident, instance,
    lookup::word,
    maps::{CONTROL, FLOWS, FRONTENDS, PORT_BY_IFINDEX, PORTS},
    parse::{ICMP, TCP, UDP},
    policy,
    skb::{self, Edit, IPV4, L3, load},
    verdict,
};

/// Lets a packet out, translates it, or stops it.
#[inline(always)]
pub(crate) fn egress(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the program's argument.
    let (protocol, from) = unsafe { ((*skb).protocol, (*skb).ingress_ifindex) };
    if protocol != IPV4 || from == 0 {
        return TC_ACT_OK;
    }
    match forwarded(skb, role_of(from)) {
        Fate::Ours => TC_ACT_OK,
        Fate::Translated => {
            verdict::count(|counters| counters.guard_translated += 1);
            TC_ACT_OK
        }
        Fate::Stopped => {
            verdict::count(|counters| counters.guard_dropped += 1);
            TC_ACT_SHOT
        }
    }
}

enum Fate {
    Ours,
    Translated,
    Stopped,
}

/// Roles of a port, 0 if it is none.
#[inline(always)]
pub(crate) fn role_of(ifindex: u32) -> u8 {
    let Some(slot) = PORT_BY_IFINDEX.get_ptr(&ifindex) else { return 0 };
    // SAFETY: map value and array element.
    let Some(port) = PORTS.get_ptr(unsafe { *slot }) else { return 0 };
    // SAFETY: array element.
    unsafe { (*port).role }
}

#[inline(always)]
fn forwarded(skb: *mut __sk_buff, role: u8) -> Fate {
    let mut header = [0u8; 20];
    if !load(skb, 0, &mut header) || header[0] >> 4 != 4 {
        return Fate::Stopped;
    }
    let [source, destination] =
        [[header[12], header[13], header[14], header[15]], [header[16], header[17], header[18], header[19]]];
    if may_leave(skb, source, destination, role & ROLE_INSIDE != 0) {
        return Fate::Ours;
    }
    let fragment = header[6] & 0x3f != 0 || header[7] != 0;
    let transport = u32::from(header[0] & 0x0f) * 4;
    let mut first = [0u8; 8];
    if transport < 20 {
        return Fate::Stopped;
    }
    let seen = load(skb, transport, &mut first) && !fragment;
    let by_flow = if seen {
        by_flow(skb, &header, transport, &first)
    } else if fragment {
        by_datagram(skb, &header, transport, role)
    } else {
        None
    };
    let port = if seen { u32::from(u16::from_be_bytes([first[2], first[3]])) } else { policy::UNSEEN };
    match by_flow {
        Some(fate) => fate,
        None => without_flow(skb, &header, &first, port),
    }
}

/// Translates a packet of a flow; `None`: there is none.
#[inline(always)]
fn by_flow(skb: *mut __sk_buff, header: &[u8; 20], transport: u32, first: &[u8; 8]) -> Option<Fate> {
    let mut key = FlowKey {
        source: [header[12], header[13], header[14], header[15]],
        destination: [header[16], header[17], header[18], header[19]],
        protocol: header[9],
        ..FlowKey::default()
    };
    match key.protocol {
        TCP | UDP => {
            key.source_port = [first[0], first[1]];
            key.destination_port = [first[2], first[3]];
        }
        ICMP if icmp::is_request(first[0]) => key.source_port = [first[4], first[5]],
        number if protocol::has_ports(number) => {
            key.source_port = [first[0], first[1]];
            key.destination_port = [first[2], first[3]];
        }
        GRE | ESP => {}
        _ => return None,
    }
    translate(skb, header, &key, Part { transport, headless: false, id: None })
}

/// Translates a fragment of a datagram that XDP has left to the stack, whole or in fragments; `None`: it has not.
#[inline(always)]
fn by_datagram(skb: *mut __sk_buff, header: &[u8; 20], transport: u32, role: u8) -> Option<Fate> {
    let datagram = FragmentKey {
        source: [header[12], header[13], header[14], header[15]],
        destination: [header[16], header[17], header[18], header[19]],
        id: [header[4], header[5]],
        protocol: header[9],
        side: role & 3,
    };
    let entry = entry_of(&datagram, clock::now());
    match entry.state & !FRAGMENT_WAITING {
        FRAGMENT_KNOWN => {}
        // Bypassed, as XDP has found with the ports at hand.
        FRAGMENT_STACK if role & ROLE_INSIDE != 0 => return Some(Fate::Ours),
        _ => return None,
    }
    let key = FlowKey {
        source: datagram.source,
        destination: datagram.destination,
        source_port: entry.source_port,
        destination_port: entry.destination_port,
        protocol: datagram.protocol,
        zone: [0; 3],
    };
    let headless = header[6] & 0x1f != 0 || header[7] != 0;
    translate(skb, header, &key, Part { transport, headless, id: Some(entry.id) }).or(Some(Fate::Stopped))
}

/// What is known of a packet beside its tuple.
struct Part {
    /// Offset of the transport header from the IP header.
    transport: u32,
    /// There is none: a later fragment.
    headless: bool,
    /// Identification to write, if that is settled.
    id: Option<[u8; 2]>,
}

#[inline(always)]
fn translate(skb: *mut __sk_buff, header: &[u8; 20], key: &FlowKey, part: Part) -> Option<Fate> {
    let entry = FLOWS.get_ptr_mut(key)?;
    let first = word(entry);
    // SAFETY: a map value; identity compared after reading.
    let (address, port, half, flags) =
        unsafe { ((*entry).address, (*entry).port, (*entry).half, (*entry).flags) };
    let state = (first >> 32) as u32;
    if half & HALF_OUTBOUND == 0 || state & state::DEAD != 0 || word(entry) as u32 != key.fold() {
        return Some(Fate::Stopped);
    }
    // SAFETY: a map value.
    unsafe {
        atomic::add(&raw mut (*entry).packets, 1);
        atomic::add(&raw mut (*entry).bytes, u64::from(u16::from_be_bytes([header[2], header[3]])));
    }
    if key.protocol == TCP && !part.headless && flags & FLOW_CLAMP != 0 {
        clamped(skb, key, entry, part.transport);
    }
    let atomic_datagram = header[6] & 0x40 != 0;
    let id = match part.id {
        Some(id) => id,
        None if flags & FLOW_IDENTIFY != 0 && !atomic_datagram => {
            ident::next(address, key.destination, key.protocol)
        }
        None => [header[4], header[5]],
    };
    let edit = Edit { address, port, id, outbound: true, decrement: 0 };
    let done = (part.headless || skb::transport(skb, key, part.transport, &edit))
        && skb::network(skb, header, &edit);
    Some(if done { Fate::Translated } else { Fate::Stopped })
}

/// Clamps the maximum segment size in a SYN segment: see [`clamp`].
#[inline(never)]
fn clamped(skb: *mut __sk_buff, key: &FlowKey, entry: *const FlowEntry, transport: u32) -> u32 {
    let mut tcp = [0u8; 20];
    if !load(skb, transport, &mut tcp) || tcp[13] & state::tcp_flag::SYN == 0 {
        return 0;
    }
    // SAFETY: the program's argument.
    let (from, to) = unsafe { ((*skb).ingress_ifindex, (*skb).ifindex) };
    let [from, to] = [mtu_of(from), mtu_of(to)];
    let most = clamp::most(key, entry, if from < to { from } else { to });
    let (start, end) = (transport + 20, transport + u32::from(tcp[12] >> 4) * 4);
    let mut options = Options { skb, walk: Walk::new(start, end) };
    // SAFETY: `step` has the signature that the helper wants, and the context outlives the call.
    unsafe { bpf_loop(MOST_OPTIONS, step as *mut c_void, (&raw mut options).cast(), 0) };
    let (at, found) = (options.walk.value_at, options.walk.value as u16);
    if !options.walk.found() || found <= most {
        return 0;
    }
    // At an odd place the bytes belong to two words: see `clamp::change`.
    let odd = (at - transport) & 1 != 0;
    let [old, new] = [found, most].map(|size| if odd { size.swap_bytes() } else { size });
    let [old, new] = [old, new].map(|size| u64::from(size.to_be()));
    let at = L3 + at;
    // SAFETY: as in `rewrite`, which finds what was pulled.
    let done = unsafe {
        bpf_skb_pull_data(skb, at + 2) == 0
            && bpf_l4_csum_replace(skb, L3 + transport + clamp::CHECKSUM as u32, old, new, 2) == 0
            && bpf_skb_store_bytes(skb, at, most.to_be_bytes().as_ptr().cast(), 2, 0) == 0
    };
    u32::from(done)
}

/// As in [`clamp`].
#[repr(C)]
struct Options {
    skb: *mut __sk_buff,
    walk: Walk,
}

/// Looks at the next option. 0: again, 1: done.
unsafe extern "C" fn step(_index: u32, options: *mut c_void) -> i64 {
    // SAFETY: the caller's state.
    let Options { skb, walk } = unsafe { &mut *options.cast::<Options>() };
    let mut four = [0; 4];
    if !walk.goes_on() || !load(*skb, walk.at, &mut four) {
        return 1;
    }
    walk.step(four);
    0
}

/// MTU of an interface, if it is one of ours.
#[inline(always)]
fn mtu_of(ifindex: u32) -> u16 {
    // SAFETY: map value.
    PORT_BY_IFINDEX.get_ptr(&ifindex).map_or(u16::MAX, |slot| clamp::link(unsafe { *slot }))
}

/// What may leave although it belongs to no flow: to a bypassed destination as it is, and from an instance IP's backend
/// with that address.
#[inline(always)]
fn without_flow(skb: *mut __sk_buff, header: &[u8; 20], first: &[u8; 8], port: u32) -> Fate {
    let Some(control) = CONTROL.get_ptr(0) else { return Fate::Stopped };
    // SAFETY: array element.
    let (features, bank) = unsafe { ((*control).features, (*control).bank & 1) };
    if features == 0 {
        return Fate::Stopped;
    }
    let source = [header[12], header[13], header[14], header[15]];
    let backend = allocate::backend(bank, source);
    if features & FEATURE_POLICY != 0 {
        // SAFETY: map value.
        let policies =
            backend.map_or_else(|| policy::of_strangers(bank), |backend| unsafe { (*backend).policies });
        let remote = [header[16], header[17], header[18], header[19]];
        let subject = policy::Subject {
            bank,
            policies,
            remote,
            protocol: header[9],
            port,
            counted: false,
            unsure: false,
        };
        match policy::outbound(&subject) {
            policy::Found::Nothing => {}
            policy::Found::Denied => return Fate::Stopped,
            policy::Found::Bypassed => return Fate::Ours,
        }
    }
    // SAFETY: map value.
    let public = backend.map_or([0; 4], |backend| unsafe { (*backend).instance });
    if public == [0; 4] {
        return Fate::Stopped;
    }
    let later = header[6] & 0x1f != 0 || header[7] != 0;
    // It quotes the private address, too. XDP left it to the stack for want of a MAC address; the next one will do.
    if header[9] == ICMP && !later && icmp::kind(first[0]) == icmp::Kind::Error {
        return Fate::Stopped;
    }
    let transport = u32::from(header[0] & 0x0f) * 4;
    let offset = if later { None } else { instance::checksum_offset(header[9]) };
    let checksum = offset.map_or(0, |offset| L3 + transport + offset as u32);
    if readdress(skb, header, public, checksum) { Fate::Translated } else { Fate::Stopped }
}

/// Writes another source address; `checksum` is the offset of a checksum that covers it, 0: there is none.
#[inline(never)]
fn readdress(skb: *mut __sk_buff, header: &[u8; 20], address: [u8; 4], checksum: u32) -> bool {
    let source = [header[12], header[13], header[14], header[15]];
    let old = u64::from(u32::from_ne_bytes(source));
    let new = u64::from(u32::from_ne_bytes(address));
    let flags = if instance::zero_is_none(header[9]) { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
    // SAFETY: the context is the program's own.
    let covered = checksum == 0
        || unsafe {
            bpf_skb_pull_data(skb, checksum + 2) == 0
                && bpf_l4_csum_replace(skb, checksum, old, new, flags | u64::from(BPF_F_PSEUDO_HDR) | 4) == 0
        };
    covered && skb::source(skb, source, address)
}

/// A packet that already has a frontend's address has nothing to hide. One-armed, what goes to a backend leaves by this
/// interface, too, but not to the outside. What came by another interface than an inside one is stopped only if it has
/// a backend's address.
#[inline(always)]
fn may_leave(skb: *mut __sk_buff, source: [u8; 4], destination: [u8; 4], from_inside: bool) -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: array element; the program's argument.
    let (bank, to) = unsafe { ((*control).bank & 1, (*skb).ifindex) };
    FRONTENDS.get_ptr(&FrontendKey { address: source, bank }).is_some()
        || instance::of_address(bank, source).is_some()
        || (!from_inside && !allocate::is_backend(bank, source))
        || (role_of(to) & ROLE_INSIDE != 0 && allocate::is_backend(bank, destination))
}
