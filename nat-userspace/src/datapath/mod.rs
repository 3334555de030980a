// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that touches BPF objects: loading, pins, attaching, and the tables.

pub mod attach;
pub mod bank;
pub mod batch;
pub mod bpf;
pub mod guard;
pub mod layout;
pub mod load;
pub mod pin;
pub mod policy;
pub mod ports;
mod refusal;
pub mod shape;
pub mod tables;
