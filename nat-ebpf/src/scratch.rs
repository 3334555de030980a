// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Room for what helpers read and write. In a map instead of on the stack, of which a chain of calls has 512 bytes in all.

use aya_ebpf::bindings::bpf_fib_lookup;

use crate::translate::SUM_BYTES;

/// One for each CPU; nobody relies on what is in it.
#[repr(C, align(8))]
pub(crate) struct Scratch {
    /// `jiffies` when `tick` was read.
    pub(crate) jiffies: u64,
    /// See [`crate::clock`].
    pub(crate) tick: u64,
    pub(crate) fib: bpf_fib_lookup,
    pub(crate) bytes: [u16; SUM_BYTES / 2],
}

/// Zeroes a value by words: an assignment would become a call to `memset`.
///
/// # Safety
/// `value` can be written, is aligned to 8 bytes, and zero is a value of its type.
#[inline(always)]
pub(crate) unsafe fn clear<T>(value: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) }
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: by the caller's promise.
        unsafe { value.cast::<u64>().add(word).write_volatile(0) };
    }
}
