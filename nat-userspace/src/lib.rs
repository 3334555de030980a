// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control plane of natgw.

pub mod config;
pub mod daemon;
pub mod plan;
