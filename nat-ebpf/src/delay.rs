// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Waits in the windows of races, so that tests can meet them. The step is a load-time constant and none in production:
//! the verifier then removes what is in here.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};

use crate::constants;

/// Turns of a wait: some microseconds, long enough for several packets of another CPU.
const TURNS: u32 = 1024;

/// Waits if `step` (`nat_common::abi::names::delay`) is among those; every second time, so that waiting and going on meet.
#[inline(always)]
pub(crate) fn at(step: u32) {
    if constants::delay() & step != 0 {
        wait();
    }
}

#[inline(never)]
fn wait() {
    // SAFETY: no arguments.
    unsafe {
        if bpf_get_prandom_u32() & 1 != 0 {
            for _ in 0..TURNS / 8 {
                // verifier: it walks every turn of a loop, for each state of who waits; so there are few with many calls.
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
                bpf_ktime_get_ns();
            }
        }
    }
}
