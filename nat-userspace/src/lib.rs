// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control plane of natgw.

pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod demo;
pub mod plan;
pub mod preflight;
pub mod view;
