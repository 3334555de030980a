// SPDX-License-Identifier: MIT OR Apache-2.0
//! The natgw command.
fn main() {}
