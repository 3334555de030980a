// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What a packet from outside is that arrived for a frontend and belongs to no flow: an answer that came too late, or
//! the host's own business.

use nat_common::{
    abi::{
        config::{
            CLAIMED_BYTES, CLASS_OTHER, Control, FEATURE_MAPPING, FRONTEND_LOCAL, Frontend, FrontendKey,
            MAX_FRONTENDS, banked,
        },
        counters::Reason,
    },
    net::icmp,
};

use crate::{
    classify::{HOLD, ICMP_ERROR, UNSOLICITED},
    fragment,
    maps::{FRONTEND_INFO, FRONTENDS},
    parse::{Kind, LATER, Parsed, TINY},
    verdict::Verdict,
};

#[inline(always)]
pub(crate) fn frontend_of(bank: u32, address: [u8; 4]) -> Option<*const Frontend> {
    let slot = FRONTENDS.get_ptr(&FrontendKey { address, bank })?;
    // SAFETY: map value, written as a whole word.
    let slot = unsafe { *slot };
    if slot >= MAX_FRONTENDS {
        return None;
    }
    FRONTEND_INFO.get_ptr(banked(bank, slot))
}

/// Arrived outside for a frontend, and no flow.
#[inline(always)]
pub(crate) fn packet(parsed: &Parsed, control: &Control, frontend: *const Frontend) -> Result<u64, Verdict> {
    // SAFETY: array element.
    let flags = unsafe { (*frontend).flags };
    let local = flags & FRONTEND_LOCAL != 0;
    let unclaimed = |reason| Err(Verdict::of(if local { Reason::HostTraffic } else { reason }));
    match parsed.kind {
        Kind::Fragment if fragment::awaits_first(parsed) => Ok(HOLD),
        Kind::Fragment if parsed.fragment == TINY => Err(Verdict::of(Reason::FragmentTiny)),
        Kind::Fragment => unclaimed(Reason::Fragment),
        Kind::IcmpError => Ok(ICMP_ERROR),
        Kind::IcmpOther => unclaimed(Reason::IcmpUnsupported),
        Kind::OtherProtocol => unclaimed(Reason::ProtocolUnsupported),
        Kind::Query if u32::from(parsed.class) == CLASS_OTHER => unclaimed(Reason::ProtocolUnsupported),
        Kind::Query => {
            let request = parsed.key.protocol == crate::parse::ICMP && icmp::is_request(parsed.icmp_type);
            if !request && claimed(frontend, u32::from(parsed.class), parsed.key.destination_port) {
                // Only a first fragment opens a session.
                if control.features & FEATURE_MAPPING != 0 && parsed.fragment != LATER {
                    return Ok(UNSOLICITED);
                }
                return Err(Verdict::of(Reason::NoMapping));
            }
            unclaimed(Reason::NoMapping)
        }
    }
}

/// What becomes of an ICMP error from outside that quotes no flow: the host's own, if it owns the address and no
/// backend holds the quoted port.
#[inline(always)]
pub(crate) fn stray_error(bank: u32, address: [u8; 4], class: u32, port: [u8; 2]) -> Reason {
    let Some(frontend) = frontend_of(bank, address) else { return Reason::IcmpErrorNoFlow };
    // SAFETY: array element.
    let local = unsafe { (*frontend).flags } & FRONTEND_LOCAL != 0;
    if local && !claimed(frontend, class, port) { Reason::HostTraffic } else { Reason::IcmpErrorNoFlow }
}

/// Whether some backend holds the port. Of other protocols nobody holds one: their flows are found, or not.
#[inline(always)]
fn claimed(frontend: *const Frontend, class: u32, port: [u8; 2]) -> bool {
    let block = usize::from(u16::from_be_bytes(port)) >> 3;
    let byte = (block >> 3) & (CLAIMED_BYTES - 1);
    if class >= CLASS_OTHER {
        return false;
    }
    // SAFETY: array element; class and byte are within the bitmap.
    let bits =
        unsafe { *(&raw const (*frontend).claimed).cast::<u8>().add(class as usize * CLAIMED_BYTES + byte) };
    bits & (1 << (block & 7)) != 0
}
