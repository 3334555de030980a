// SPDX-License-Identifier: MIT OR Apache-2.0
//! The long-running side of natgw. Translation does not depend on it: see ARCHITECTURE.md.

pub mod client;
pub mod status;
