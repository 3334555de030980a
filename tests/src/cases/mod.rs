// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cases, by subject.

use crate::case::Case;

pub mod errors;
pub mod forward;
pub mod policy;
pub mod timers;
pub mod translate;
pub mod vlan;

/// Every case.
#[must_use]
pub fn all() -> Vec<Case> {
    [translate::cases(), policy::cases(), forward::cases(), errors::cases(), timers::cases(), vlan::cases()]
        .concat()
}
