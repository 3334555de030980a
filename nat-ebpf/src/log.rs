// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Log lines through aya-log, for debugging. The level is a load-time constant and 0 unless the daemon is started with
//! `--bpf-log`: the verifier then removes what is in here.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::debug;

use crate::parse::Parsed;

/// One line for a packet that was not translated: the number of its reason, its tuple, its protocol.
///
/// verifier: a function of its own, so that its stack does not add to the entry point's.
#[inline(never)]
pub(crate) fn verdict(ctx: *mut xdp_md, parsed: &Parsed, reason: u32) {
    let ctx = XdpContext::new(ctx);
    debug!(
        &ctx,
        "reason {} protocol {} {:i}:{} -> {:i}:{}",
        reason,
        parsed.key.protocol,
        u32::from_be_bytes(parsed.key.source),
        u16::from_be_bytes(parsed.key.source_port),
        u32::from_be_bytes(parsed.key.destination),
        u16::from_be_bytes(parsed.key.destination_port)
    );
}
