// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared.
#![no_std]
