// SPDX-License-Identifier: MIT OR Apache-2.0
//! Test support.

pub mod bench;
pub mod case;
pub mod cases;
pub mod harness;
pub mod ledger;
pub mod model;
pub mod ns;
pub mod packet;
pub mod pcap;
