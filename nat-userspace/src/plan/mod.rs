// SPDX-License-Identifier: MIT OR Apache-2.0
//! The port planner: which ports of which frontend address each backend may use. Pure: no clock, no files, no maps.
//!
//! [`plan`] tries, and takes the first that works:
//!
//! 1. with a previous plan, everything stays where it is, shrunk blocks keep their first part, and what is new or
//!    grown gets free room; a rule that does not fit so is laid out anew, alone;
//! 2. all rules are laid out anew, block by block, each on its least committed address;
//! 3. a maximum flow from rules to addresses says how much of which address each rule gets, and blocks follow each
//!    other without gaps. This finds room whenever there is any.
//!
//! 2 and 3 do not look at the previous plan, so what fits on its own (`natgw check`) fits after any history. Slots
//! and versions follow the previous plan in every case.

mod capacity;
pub mod diff;
mod layout;
mod model;
mod runs;
mod slots;
mod space;
#[cfg(test)]
mod tests;

pub use self::{
    capacity::over_committed,
    model::{
        BackendSlot, CLASS_COUNT, Claimed, FrontendSlot, LiveSlots, NoFlows, PortPlan, RuleSlot, Status,
        segments,
    },
    runs::{Change, Run},
    space::{FIRST_PORT, STATIC_PORTS},
};
use crate::config::{Gateway, grouped};

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More ports are asked for than there are.
    #[error("{arithmetic}")]
    OverCommitted {
        /// Indices into [`Gateway::rules`] of the rules that ask for them, ascending.
        rules: Vec<usize>,
        /// The sum, in words.
        arithmetic: String,
        /// Most ports per backend that would fit, where one rule alone asks too much.
        at_most: Option<u32>,
    },
    /// There are enough ports, but a backend would get them in too many pieces.
    #[error("rule `{name}`: a backend's ports would be in more than {limit} pieces")]
    TooManyPieces {
        /// Index into [`Gateway::rules`].
        rule: [usize; 1],
        /// Its name.
        name: String,
        /// Most pieces.
        limit: usize,
    },
    /// Removed backends or rules whose flows are still alive take slots that new ones need.
    #[error(
        "not enough slots for {kind}: {wanted} configured, {draining} removed with live flows, {limit} possible"
    )]
    NoSlot {
        /// `backends` or `rules`.
        kind: &'static str,
        /// Configured ones.
        wanted: usize,
        /// Removed ones with live flows.
        draining: usize,
        /// Slots.
        limit: usize,
    },
}

impl PlanError {
    /// The rules it is about, as indices into [`Gateway::rules`], ascending.
    #[must_use]
    pub fn rules(&self) -> &[usize] {
        match self {
            Self::OverCommitted { rules, .. } => rules,
            Self::TooManyPieces { rule, .. } => rule,
            Self::NoSlot { .. } => &[],
        }
    }

    /// What would help.
    #[must_use]
    pub fn help(&self, gateway: &Gateway) -> Option<String> {
        match self {
            Self::OverCommitted { at_most: Some(ports), .. } => Some(format!(
                "set `ports_per_backend = {ports}` or less, or add frontend addresses ({} ports each)",
                grouped(STATIC_PORTS)
            )),
            Self::OverCommitted { .. } => {
                Some("lower `ports_per_backend` of these rules, or add frontend addresses".to_owned())
            }
            Self::TooManyPieces { rule: [rule], .. } => {
                let ports = gateway.rules[*rule].ports_per_backend;
                Some(format!("choose a `ports_per_backend` that divides 64,000, near {ports}"))
            }
            Self::NoSlot { .. } => Some("reload again when their flows have ended".to_owned()),
        }
    }
}

/// Plans `gateway`. With the plan in force as `previous`, what has not changed stays as it is; `live` tells which
/// slots of it flows still refer to, and those are not given to others.
///
/// # Errors
///
/// Ports or slots do not suffice. Without `previous` this cannot happen for a [`Gateway`] from
/// [`crate::config::load`]; with it, only [`PlanError::NoSlot`] can.
pub fn plan(
    gateway: &Gateway,
    previous: Option<&PortPlan>,
    live: &dyn LiveSlots,
) -> Result<PortPlan, PlanError> {
    let nothing = PortPlan::default();
    let previous = previous.unwrap_or(&nothing);
    let mut plan = slots::assign(gateway, previous, live)?;
    let pieces = layout::lay_out(gateway, previous)?;
    slots::fill_grants(gateway, previous, &pieces, &mut plan);
    Ok(plan)
}
