// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What the gateway itself sends: ICMP errors (RFC 792, RFC 1191, RFC 1812 §4.3.2), and RST to connections that it
//! refuses ([`crate::reset`]). The frame is turned round on the interface it came from: its sender's MAC address is
//! the way back.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    },
};
use nat_common::{
    abi::{
        config::ICMP_ERRORS_PER_TICK,
        counters::Reason,
        grant::{REFUSAL_HOST_UNREACHABLE, REFUSAL_SILENT, REFUSAL_TCP_RESET},
    },
    net::icmp,
    tick,
};
use network_types::{icmp::Icmpv4Hdr, ip::Ipv4Hdr};

use crate::{
    frame,
    maps::{ICMP_BUDGET, PORTS},
    parse::{ETHERNET, ICMP, Kind, LATER, Parsed, TAG, TCP},
    reset, translate,
    verdict::{self, Verdict},
};

/// Bytes put in front of the quoted packet.
const HEADERS: usize = size_of::<Ipv4Hdr>() + size_of::<Icmpv4Hdr>();
/// Bytes quoted after the IP header (RFC 792: 64 bits).
const QUOTED: usize = 8;
/// Longest Ethernet header with tags.
const MAX_L2: usize = 22;

/// Answers a packet; the verdict that remains if it must not be answered is silence.
#[inline(always)]
pub(crate) fn send(ctx: *mut xdp_md, parsed: &Parsed, slot: u32, verdict: Verdict, mtu: u16) -> Verdict {
    if verdict.style() != REFUSAL_SILENT {
        return refusal(ctx, parsed, slot, verdict);
    }
    let (kind, code, reason, silent) = if verdict.is_ttl() {
        (icmp::TIME_EXCEEDED, 0, Reason::TtlExceeded, Reason::TtlExceededSilent)
    } else {
        (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, Reason::TooBig, Reason::TooBigSilent)
    };
    let [high, low] = mtu.to_be_bytes();
    let message = u32::from_be_bytes([kind, code, high, low]);
    if (verdict.is_ttl() || parsed.dont_fragment) && natgw_answer(ctx, parsed, slot, message) != 0 {
        Verdict::sent(reason, xdp_action::XDP_TX)
    } else {
        Verdict::of(silent)
    }
}

/// Tells the sender of a packet that it was refused.
#[inline(always)]
fn refusal(ctx: *mut xdp_md, parsed: &Parsed, slot: u32, verdict: Verdict) -> Verdict {
    if verdict.style() == REFUSAL_TCP_RESET && parsed.key.protocol == TCP {
        if reset::natgw_reset(ctx, parsed, slot) == 0 {
            return verdict.silent();
        }
        if verdict.is(Reason::FlowExpired) || verdict.is(Reason::TcpNoFlow) {
            verdict::count(|counters| counters.resets_on_packet += 1);
        } else {
            verdict::count(|counters| counters.refusals_reset += 1);
        }
        return verdict.answered();
    }
    let code = if verdict.style() == REFUSAL_HOST_UNREACHABLE {
        icmp::CODE_HOST_UNREACHABLE
    } else {
        icmp::CODE_ADMIN_PROHIBITED
    };
    if natgw_answer(ctx, parsed, slot, u32::from_be_bytes([icmp::UNREACHABLE, code, 0, 0])) == 0 {
        return verdict.silent();
    }
    verdict::count(|counters| counters.refusals_icmp += 1);
    verdict.answered()
}

/// Turns the frame into an ICMP error to its sender. 0, and the frame not to be used, if there must not be one.
///
/// verifier: global, so that it is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn natgw_answer(
    ctx: *mut xdp_md,
    parsed: *const Parsed,
    slot: u32,
    message: u32,
) -> u32 {
    if parsed.is_null() {
        return 0;
    }
    // SAFETY: not null, and the only caller passes a whole value.
    u32::from(answer(ctx, unsafe { &*parsed }, slot, message))
}

#[inline(always)]
fn answer(ctx: *mut xdp_md, parsed: &Parsed, slot: u32, message: u32) -> bool {
    if !matches!(parsed.kind, Kind::Query | Kind::OtherProtocol)
        || parsed.total() < parsed.header() + QUOTED
        // RFC 1122 §3.2.2: no error about another fragment than the first.
        || parsed.fragment >= LATER
        || matches!(parsed.key.source[0], 0 | 127 | 224..)
        || !within_budget()
    {
        return false;
    }
    let Some(port) = PORTS.get_ptr(slot) else { return false };
    // SAFETY: array element.
    let address = unsafe { (*port).address };
    let (l3, quoted) = (parsed.network(), parsed.header() + QUOTED);
    if address == [0; 4] || l3 > MAX_L2 || !is_for_us(ctx, slot) {
        return false;
    }
    // SAFETY: the context is the program's own. `bpf_xdp_get_buff_len`: Linux 5.18.
    unsafe {
        let surplus = bpf_xdp_get_buff_len(ctx) as usize - l3 - quoted;
        if bpf_xdp_adjust_head(ctx, -(HEADERS as i32)) != 0
            || bpf_xdp_adjust_tail(ctx, -(surplus as i32)) != 0
        {
            return false;
        }
    }
    let (start, length) = (l3 + size_of::<Ipv4Hdr>(), size_of::<Icmpv4Hdr>() + quoted);
    turn_round(ctx, usize::from(parsed.tags), HEADERS)
        && headers(ctx, parsed, address, message)
        && write_checksum(ctx, l3 + 10, l3, size_of::<Ipv4Hdr>())
        && write_checksum(ctx, start + 2, start, length)
}

/// Whether a frame was sent to this interface. One that was flooded, broadcast or overheard is somebody else's to answer.
#[inline(never)]
pub(crate) fn is_for_us(ctx: *mut xdp_md, slot: u32) -> bool {
    let (Some(port), Some(found)) = (PORTS.get_ptr(slot), frame::load::<[u8; 6]>(ctx, 0)) else {
        return false;
    };
    // SAFETY: array element.
    found == unsafe { (*port).mac }
}

/// The Ethernet header from where it was to where it belongs now, with the addresses exchanged and the same tags.
#[inline(never)]
pub(crate) fn turn_round(ctx: *mut xdp_md, tags: usize, from: usize) -> bool {
    let (Some(destination), Some(source), Some(ethertype)) = (
        frame::load::<[u8; 6]>(ctx, from),
        frame::load::<[u8; 6]>(ctx, from + 6),
        frame::load::<[u8; 2]>(ctx, from + 12),
    ) else {
        return false;
    };
    frame::store(ctx, 0, &source);
    frame::store(ctx, 6, &destination);
    frame::store(ctx, 12, &ethertype);
    for tag in 0..2 {
        let at = ETHERNET + tag * TAG;
        if tag < tags
            && let Some(bytes) = frame::load::<[u8; TAG]>(ctx, from + at)
        {
            frame::store(ctx, at, &bytes);
        }
    }
    true
}

/// IPv4 and ICMP headers, checksums zero.
#[inline(never)]
fn headers(ctx: *mut xdp_md, parsed: &Parsed, address: [u8; 4], message: u32) -> bool {
    let [total_high, total_low] = ((HEADERS + parsed.header() + QUOTED) as u16).to_be_bytes();
    let [kind, code, high, low] = message.to_be_bytes();
    let ([a, b, c, d], [e, f, g, h]) = (address, parsed.key.source);
    // Type of service: internetwork control (RFC 1812 §4.3.2.5). Not to be fragmented, TTL 64.
    let ip = [0x45, 0xc0, total_high, total_low, 0, 0, 0x40, 0, 64, ICMP, 0, 0, a, b, c, d, e, f, g, h];
    let icmp = [kind, code, 0, 0, 0, 0, high, low];
    let at = parsed.network();
    frame::store::<[u8; size_of::<Ipv4Hdr>()]>(ctx, at, &ip)
        && frame::store::<[u8; size_of::<Icmpv4Hdr>()]>(ctx, at + size_of::<Ipv4Hdr>(), &icmp)
}

/// Writes the checksum of `length` bytes from `start` to `at`, where there is zero.
#[inline(always)]
fn write_checksum(ctx: *mut xdp_md, at: usize, start: usize, length: usize) -> bool {
    let sum = translate::sum(ctx, start as u32, length as u32);
    sum != translate::UNREADABLE && frame::store(ctx, at, &(!(sum as u16)).to_ne_bytes())
}

/// Takes one answer from this CPU's budget.
#[inline(always)]
pub(crate) fn within_budget() -> bool {
    let Some(budget) = ICMP_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: real time also in tests: the budget protects the network, not a flow.
    let now = tick::from_ns(unsafe { bpf_ktime_get_coarse_ns() });
    // SAFETY: this CPU's own element.
    unsafe {
        if (*budget).tick != now {
            (*budget).tick = now;
            (*budget).left = ICMP_ERRORS_PER_TICK;
        }
        if (*budget).left == 0 {
            return false;
        }
        (*budget).left -= 1;
    }
    true
}
