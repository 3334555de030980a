// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cases, by subject.

use crate::case::Case;

pub mod deny;
pub mod errors;
pub mod forward;
pub mod fragments;
pub mod hairpin;
pub mod icmp_queries;
pub mod instance;
pub mod mapping;
pub mod mss;
pub mod policy;
pub mod precedence;
pub mod protocols;
pub mod refusal;
pub mod rests;
pub mod tcp;
pub mod timers;
pub mod translate;
pub mod vlan;

/// Every case.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        translate::cases(),
        policy::cases(),
        forward::cases(),
        fragments::cases(),
        errors::cases(),
        icmp_queries::cases(),
        mss::cases(),
        protocols::cases(),
        timers::cases(),
        rests::cases(),
        vlan::cases(),
        deny::cases(),
        instance::cases(),
        mapping::cases(),
        hairpin::cases(),
        precedence::cases(),
        refusal::cases(),
        tcp::cases(),
    ]
    .concat()
}
