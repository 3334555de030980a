// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! IP identifications of what is sent: unique for each pair of addresses and protocol for as long as 16 bits allow
//! (RFC 6864 §4.3, RFC 7857 §10), because backends that share a frontend number their packets independently.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use nat_common::abi::fragment::{IDENT_BUCKETS, spread};

use crate::{atomic, maps::IDENTS};

/// The next identification from `source` to `destination`.
///
/// As Linux' `ip_idents`: pairs that meet in a counter share it, which leaves its numbers unique; the start is random
/// (RFC 7739 §3).
#[inline(always)]
pub(crate) fn next(source: [u8; 4], destination: [u8; 4], protocol: u8) -> [u8; 2] {
    let bucket = spread(source) ^ spread(destination).rotate_left(5) ^ u32::from(protocol);
    let Some(counter) = IDENTS.get_ptr_mut(bucket & (IDENT_BUCKETS - 1)) else { return [0; 2] };
    // SAFETY: a word of an array element. The high bit says that it has begun.
    unsafe {
        if atomic::load(counter) == 0 {
            atomic::compare_swap(counter, 0, 1 << 63 | u64::from(bpf_get_prandom_u32()));
        }
        (atomic::fetch_add(counter, 1) as u16).to_be_bytes()
    }
}
