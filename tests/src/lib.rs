// SPDX-License-Identifier: MIT OR Apache-2.0
//! Test support.

pub mod bench;
pub mod case;
pub mod cases;
pub mod harness;
pub mod ledger;
pub mod model;
pub mod netns;
pub mod ns;
pub mod packet;
pub mod pcap;

/// Leaves a test that cannot be run here, and says so where it is seen and counted.
#[macro_export]
macro_rules! skip {
    ($test:literal, $($reason:tt)*) => {{
        println!("SKIPPED: {}: {}", $test, format_args!($($reason)*));
        return;
    }};
}
