// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single packets through the BPF programs, without a network: `BPF_PROG_TEST_RUN`.

mod audit;
pub mod drive;
pub mod lab;
pub mod maps;
pub mod pass;
mod plan;
pub mod sweep;
mod tc;
mod together;
pub mod world;

pub use lab::{Action, Lab, Outcome};
pub use together::together;
pub use world::World;
