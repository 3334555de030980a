// SPDX-License-Identifier: MIT OR Apache-2.0
//! Project commands.
fn main() {}
