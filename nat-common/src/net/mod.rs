// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packet arithmetic and state machines, pure.

pub mod checksum;
pub mod icmp;
pub mod mss;
pub mod profiles;
pub mod protocol;
pub mod reset;
pub mod sequence;
pub mod state;
pub mod timers;
