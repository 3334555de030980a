// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the natgw data path and control plane share.
//!
//! Two kinds of things live here and nothing else:
//!
//! * [`abi`]: every byte that crosses the boundary between the BPF programs and user space (map keys and
//!   values, ring-buffer records, names of maps, programs and pins), `#[repr(C)]`, without padding.
//! * [`net`] and [`ports`]: packet arithmetic and state machines as pure functions. The data path calls them as
//!   they are, and `cargo test` proves them without a kernel.
//!
//! There is no I/O, no clock and no allocation here: time is an argument, in [`Tick`]s.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod net;
pub mod ports;
pub mod tick;

pub use tick::Tick;
