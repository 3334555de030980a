// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Atomic read-modify-write on 64-bit words in maps.
//!
//! `core::sync::atomic` has no read-modify-write for BPF targets, hence assembly. The instructions with a result
//! (`BPF_FETCH`, `BPF_CMPXCHG`) need Linux 5.12, commit 5ffa25502b5a.

use core::arch::asm;

/// Adds without a result.
///
/// # Safety
/// `word` is an aligned 64-bit word of a map value.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) }
}

/// Adds and returns what was there.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    let mut result = value;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) result)
    }
    result
}

/// Sets bits and returns what was there.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_or(word: *mut u64, value: u64) -> u64 {
    let mut result = value;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("{value} = atomic_fetch_or((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) result)
    }
    result
}

/// Keeps only the bits in `value`.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn and(word: *mut u64, value: u64) {
    // SAFETY: by the caller's promise.
    unsafe { asm!("lock *(u64 *)({word} + 0) &= {value}", word = in(reg) word, value = in(reg) value) }
}

/// Keeps only the bits in `value` and returns what was there. With a result, the operation is a full barrier.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_and(word: *mut u64, value: u64) -> u64 {
    let mut result = value;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("{value} = atomic_fetch_and((u64 *)({word} + 0), {value})", word = in(reg) word, value = inout(reg) result)
    }
    result
}

/// Replaces `expected` by `new`; false if something else was there.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn compare_swap(word: *mut u64, expected: u64, new: u64) -> bool {
    let mut result = expected;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") result)
    }
    result == expected
}

/// Reads a word that other CPUs change.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn load(word: *const u64) -> u64 {
    // SAFETY: by the caller's promise.
    unsafe { core::ptr::read_volatile(word) }
}
