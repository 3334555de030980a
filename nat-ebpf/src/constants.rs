// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Load-time constants: the program is loaded once for each device, and the verifier removes what a device does not
//! need. Names and meaning: `nat_common::abi::names::CONST_*`.

use aya_ebpf::Global;
use nat_common::abi::config::NO_SLOT;

#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(NO_SLOT);
#[unsafe(no_mangle)]
static ROLE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static LOWER: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TRUNK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TEST_CLOCK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DELAY: Global<u32> = Global::new(0);

/// Slot of the port that untagged frames belong to.
#[inline(always)]
pub(crate) fn slot() -> u32 {
    SLOT.load()
}

/// Roles of that port.
#[inline(always)]
pub(crate) fn role() -> u32 {
    ROLE.load()
}

/// Index of the device.
#[inline(always)]
pub(crate) fn lower() -> u32 {
    LOWER.load()
}

/// Whether tagged frames are of interest here.
#[inline(always)]
pub(crate) fn trunk() -> bool {
    TRUNK.load() != 0
}

/// Whether time comes from `Control::test_tick`.
#[inline(always)]
pub(crate) fn test_clock() -> bool {
    TEST_CLOCK.load() != 0
}

/// The steps at which to wait, and `ANEW`, in tests.
#[inline(always)]
pub(crate) fn delay() -> u32 {
    DELAY.load()
}
