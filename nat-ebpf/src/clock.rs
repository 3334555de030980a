// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Time.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use nat_common::{Tick, tick};

use crate::{
    constants,
    maps::{CONTROL, SCRATCH},
};

/// The current tick: of the coarse clock, which moves with the timer interrupt, as `jiffies` do. So it is asked once for each of them on
/// each CPU; that `jiffies` has not moved takes an instruction to see, as the verifier puts it in place of the call.
#[inline(always)]
pub(crate) fn now() -> Tick {
    if constants::test_clock() {
        // SAFETY: array element, only ever written as a whole word.
        return CONTROL.get_ptr(0).map_or(0, |control| unsafe { (*control).test_tick });
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own element. `tick` before `jiffies`: what interrupts in between makes it be read again.
    unsafe {
        let jiffies = bpf_jiffies64();
        if (*scratch).jiffies != jiffies {
            (&raw mut (*scratch).tick).write_volatile(u64::from(tick::from_ns(bpf_ktime_get_coarse_ns())));
            (&raw mut (*scratch).jiffies).write_volatile(jiffies);
        }
        (*scratch).tick as Tick
    }
}

/// The current tick for the sweep: tracing programs have only the precise clock.
#[inline(always)]
pub(crate) fn now_in_sweep() -> Tick {
    if constants::test_clock() {
        return now();
    }
    // SAFETY: no arguments.
    tick::from_ns(unsafe { bpf_ktime_get_ns() })
}
