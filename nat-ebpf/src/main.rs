// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The natgw data path.
//!
//! A packet's way is the sequence of calls in [`forward`]: parse → look up → (miss: classify → route → allocate) →
//! emit, which translates and sends. Each stage is a file, and ends early with a [`Verdict`]; nothing is written to
//! a packet before everything that can fail has succeeded.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "aya's map methods take keys by value or by reference: by value they are copied to the stack, of which there are 512 bytes"
)]
#![feature(asm_experimental_arch)]

mod allocate;
mod answer;
mod atomic;
mod clamp;
mod classify;
mod clock;
mod constants;
mod delay;
mod emit;
mod event;
mod fragment;
mod frame;
mod full;
mod guard;
mod hairpin;
mod hold;
mod icmp_error;
mod ident;
mod inbound;
mod instance;
mod join;
mod keep;
mod late;
mod life;
mod limits;
mod log;
mod lookup;
mod maintain;
mod mapping;
mod maps;
mod opening;
mod parse;
mod peers;
mod pick;
mod piece;
mod policy;
mod ports;
mod reap;
mod record;
mod release;
mod requote;
mod reset;
mod route;
mod scratch;
mod sequence;
mod skb;
mod sweep;
mod tell;
mod towards;
mod translate;
mod verdict;
mod walk;

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

use nat_common::{
    abi::{config::CLASS_TCP, counters::Reason, flow::FLOW_SEQUENCE},
    net::state::{Direction, tcp_flag},
};

use crate::{
    classify::Arrival,
    frame::Frame,
    lookup::{Found, Rewrite},
    parse::{Kind, Parsed},
    verdict::Verdict,
};

/// Entry point on every configured device.
///
/// Frames may be in several buffers (`BPF_F_XDP_HAS_FRAGS`, Linux 5.18), of which the first has the headers. A driver that
/// has no such frames runs it all the same. All programs that share `TX_PORTS` have to agree in this: the kernel refuses
/// others (kernel/bpf/core.c, `__bpf_prog_map_compatible`).
#[xdp(frags)]
pub(crate) fn natgw_xdp(ctx: XdpContext) -> u32 {
    let ctx = ctx.ctx;
    let Some(counters) = verdict::open() else {
        return aya_ebpf::bindings::xdp_action::XDP_DROP;
    };
    let mut size = Frame::of_xdp(ctx).len();
    let mut room = MaybeUninit::uninit();
    let parsed = Parsed::begin(&mut room);
    let mut arrival = Arrival::default();
    let verdict = forward(ctx, &mut size, parsed, &mut arrival).unwrap_or_else(|verdict| verdict);
    let verdict = if verdict.is_translated() { verdict } else { end(ctx, parsed, &arrival, verdict) };
    verdict::conclude(counters, size as u64, verdict)
}

/// What there is to do about a packet that was not translated.
#[inline(always)]
fn end(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival, verdict: Verdict) -> Verdict {
    // Before an answer is made of the frame.
    if parsed.fragment == parse::FIRST {
        let passed = u32::from(verdict.is_pass());
        fragment::natgw_first_ended(ctx, parsed, arrival, verdict.reason(), passed);
    }
    let verdict = match verdict.wants_answer() {
        Some(mtu) => answer::send(ctx, parsed, arrival.slot, verdict, mtu),
        None => verdict,
    };
    log::verdict(ctx, parsed, verdict.reason());
    verdict
}

/// Decides about one frame; `size` is that of its first buffer, and becomes that of all. `Ok` and `Err` are both verdicts;
/// `?` is the early exit.
#[inline(always)]
fn forward(
    ctx: *mut xdp_md,
    size: &mut usize,
    parsed: &mut Parsed,
    arrival: &mut Arrival,
) -> Result<Verdict, Verdict> {
    parse::packet(ctx, size, parsed)?;
    classify::ingress(parsed, clock::now(), arrival)?;
    if parsed.kind == Kind::Fragment {
        let code = fragment::natgw_fragment(ctx, parsed, arrival);
        if code != fragment::GO_ON {
            return Err(Verdict::from_code(code));
        }
    }
    let rewrite = match lookup::flow(ctx, parsed, arrival)? {
        Found::Alive(rewrite) => rewrite,
        Found::Missing => match missed(ctx, parsed, arrival) {
            classify::OPEN => {
                opened(allocate::natgw_open())?;
                lookup::opened(&parsed.key, Direction::Outbound)?
            }
            classify::OPEN_INBOUND => {
                opened(allocate::natgw_open())?;
                opened_inbound(ctx, parsed, arrival)?
            }
            classify::JOIN => {
                join()?;
                lookup::opened(&parsed.key, Direction::Outbound)?
            }
            classify::JOIN_INBOUND => {
                join()?;
                opened_inbound(ctx, parsed, arrival)?
            }
            classify::INSTANCE => {
                return Err(Verdict::from_code(instance::natgw_instance(ctx, parsed)));
            }
            classify::ICMP_ERROR => {
                let code = match icmp_error::natgw_icmp_error(ctx, parsed, arrival) {
                    icmp_error::HAIRPIN => icmp_error::natgw_icmp_hairpin(ctx, parsed, arrival),
                    code => code,
                };
                let code = match code {
                    icmp_error::REWRITE if icmp_error::natgw_icmp_sound(ctx, parsed) == 0 => {
                        return Err(Verdict::of(Reason::BadChecksum));
                    }
                    icmp_error::REWRITE => icmp_error::natgw_icmp_rewrite(ctx, parsed),
                    code => code,
                };
                return Err(Verdict::from_code(code));
            }
            classify::HOLD => {
                return Err(Verdict::from_code(fragment::natgw_hold_back(ctx, parsed, arrival)));
            }
            code => return Err(Verdict::from_code(code)),
        },
    };
    // SAFETY: a map value; of a recycled one, the numbers of a stranger move by a window at most.
    if unsafe { (*rewrite.entry).flags } & FLOW_SEQUENCE != 0 && parsed.fragment != parse::LATER {
        sequence::natgw_sequence(ctx, parsed, rewrite.entry);
    }
    if rewrite.slot == route::HAIRPIN {
        return hairpin(ctx, parsed, arrival, &rewrite);
    }
    emit::flow(ctx, parsed, arrival, &rewrite)
}

/// What is to be done about a packet without a flow: see [`classify::natgw_miss`].
#[inline(always)]
fn missed(ctx: *mut xdp_md, parsed: &Parsed, arrival: &mut Arrival) -> u64 {
    let mut next = classify::natgw_miss(ctx, parsed, arrival);
    if next == classify::AIM {
        arrival.role |= hairpin::natgw_aim(parsed, arrival);
        next = classify::natgw_miss(ctx, parsed, arrival);
    }
    match next {
        classify::UNSOLICITED => opening::natgw_unsolicited(ctx, parsed, arrival),
        code => code,
    }
}

/// Opens a session of a mapped inner end, and its mapping if it is the first.
#[inline(always)]
fn join() -> Result<(), Verdict> {
    let mut code = join::natgw_join();
    if code == join::MAP {
        code = join::natgw_mapped(allocate::natgw_open());
    }
    if code != join::JOINED {
        return Err(Verdict::from_code(code));
    }
    opened(allocate::natgw_open())
}

/// What was opened from outside: its next hop is looked up as that of any other inbound half.
#[inline(always)]
fn opened_inbound(ctx: *mut xdp_md, parsed: &Parsed, arrival: &Arrival) -> Result<Rewrite, Verdict> {
    if maintain::natgw_maintain(ctx, parsed, arrival) != maintain::ALIVE {
        return Err(Verdict::of(Reason::FlowRace));
    }
    lookup::opened(&parsed.key, Direction::Inbound)
}

/// A packet of a flow to the SNAT port of a mapping: looked up again, and both ends translated.
#[inline(always)]
fn hairpin(
    ctx: *mut xdp_md,
    parsed: &mut Parsed,
    arrival: &mut Arrival,
    first: &Rewrite,
) -> Result<Verdict, Verdict> {
    // What is rewritten twice is written where a later fragment has no ports.
    if parsed.fragment != parse::WHOLE {
        return Err(Verdict::of(Reason::Fragment));
    }
    if parsed.ttl <= 1 {
        return Err(Verdict::answer(Reason::TtlExceeded, 0));
    }
    let (address, port) = (u32::from_ne_bytes(first.address), u32::from(u16::from_ne_bytes(first.port)));
    if hairpin::natgw_turn(parsed, arrival, address, port) != 0 {
        return Err(Verdict::of(Reason::NotConfigured));
    }
    let mut code = hairpin::natgw_second(ctx, parsed, arrival, 0);
    if code == hairpin::TOUCH {
        let resets = u32::from(parsed.class) == CLASS_TCP && parsed.flags & tcp_flag::RST != 0;
        if resets && sequence::natgw_believed(ctx, parsed) == 0 {
            arrival.role |= classify::DOUBTED;
        }
        code = match maintain::natgw_maintain(ctx, parsed, arrival) {
            maintain::ALIVE => hairpin::natgw_second(ctx, parsed, arrival, 1),
            maintain::GONE => hairpin::MISSING,
            maintain::EXPIRED => late::natgw_late(parsed, arrival),
            maintain::REMOVE if maintain::natgw_remove(parsed) == maintain::GONE => hairpin::MISSING,
            _ => Verdict::of(Reason::FlowRace).to_code(),
        };
    }
    if code == hairpin::MISSING {
        code = match missed(ctx, parsed, arrival) {
            classify::JOIN_INBOUND => match join() {
                Ok(()) if maintain::natgw_maintain(ctx, parsed, arrival) == maintain::ALIVE => {
                    hairpin::natgw_second(ctx, parsed, arrival, 1)
                }
                Ok(()) => Verdict::of(Reason::FlowRace).to_code(),
                Err(verdict) => verdict.to_code(),
            },
            // Whatever else it has become: the configuration has changed.
            code if code >> 63 == 0 => Verdict::of(Reason::FlowRace).to_code(),
            code => code,
        };
    }
    if code != hairpin::FOUND {
        hairpin::natgw_turn_back(parsed);
        return Err(Verdict::from_code(code));
    }
    emit::count(parsed, first);
    Ok(Verdict::from_code(hairpin::natgw_turned(ctx, parsed)))
}

#[inline(always)]
fn opened(code: u64) -> Result<(), Verdict> {
    if code == allocate::OPENED { Ok(()) } else { Err(Verdict::from_code(code)) }
}

/// Entry point on egress of every outside interface.
#[classifier]
pub(crate) fn natgw_guard(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    guard::egress(skb)
}

/// Entry point on ingress of every inside and outside interface.
#[classifier]
pub(crate) fn natgw_hold(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    hold::ingress(skb)
}

/// The idle sweep: called by the kernel for each entry of the flow table while the daemon reads from the iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub(crate) extern "C" fn natgw_sweep(context: *const sweep::Context) -> i32 {
    sweep::element(context);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
