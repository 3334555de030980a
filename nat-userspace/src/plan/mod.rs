// SPDX-License-Identifier: MIT OR Apache-2.0
//! The port planner: which ports of which frontend address each backend may use. Pure: no clock, no files, no maps.
//!
//! Every backend of a static rule gets a block of its own; those of a dynamic rule get `min_ports` each, at the bottom of
//! the rule's addresses, and share what is above. [`plan`] tries, and takes the first that works:
//!
//! 1. with a previous plan, everything stays where it is, shrunk blocks keep their first part, and what is new or
//!    grown gets free room; a rule that does not fit so is laid out anew, alone;
//! 2. all rules are laid out anew, first those whose `frontend_selection` leaves little choice, then the others, block
//!    by block, each on its least committed address;
//! 3. as 2, but for those others a maximum flow from rules to addresses says how much of which address each rule gets,
//!    and blocks follow each other without gaps. This finds room for them whenever there is any.
//!
//! 2 and 3 do not look at the previous plan, so what fits on its own (`natgw check`) fits after any history. Slots
//! and the numbers of port sets follow the previous plan in every case.

mod attempts;
mod capacity;
mod constrained;
pub mod diff;
mod error;
mod layout;
mod model;
mod policy;
mod rules;
mod runs;
mod sets;
mod shares;
mod slots;
mod space;
#[cfg(test)]
mod tests;

pub use self::{
    capacity::over_committed,
    error::PlanError,
    model::{
        BackendSlot, CLASS_COUNT, Claimed, FrontendSlot, GRANT_CLASSES, LiveSlots, NoFlows, PortPlan,
        RuleSlot, Status, segments, table_shares, table_size,
    },
    policy::{PolicyPlan, PolicySlot},
    runs::{Change, Run},
    space::{DYNAMIC_PORTS, FIRST_PORT, STATIC_PORTS},
};
use crate::config::Gateway;

/// Plans `gateway`. With the plan in force as `previous`, what has not changed stays as it is; `live` tells which
/// slots of it flows still refer to, and those are not given to others.
///
/// # Errors
///
/// Ports or slots do not suffice. Without `previous` this cannot happen for a [`Gateway`] from
/// [`crate::config::load`]; with it, only [`PlanError::NoSlot`] and [`PlanError::TooManyBackends`] can.
pub fn plan(
    gateway: &Gateway,
    previous: Option<&PortPlan>,
    live: &dyn LiveSlots,
) -> Result<PortPlan, PlanError> {
    let nothing = PortPlan::default();
    let previous = previous.unwrap_or(&nothing);
    let mut plan = slots::assign(gateway, previous, live)?;
    let laid = attempts::lay_out(gateway, previous)?;
    sets::fill(gateway, previous, &laid, &mut plan);
    policy::fill(gateway, previous, &mut plan)?;
    Ok(plan)
}
