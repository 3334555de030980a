// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why there is no plan, and what would help.

use super::space::{DYNAMIC_PORTS, STATIC_PORTS};
use crate::config::{Allocation, Gateway, Selection, grouped};

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
    /// There are enough ports, but not where `frontend_selection` wants them.
    #[error("rule `{name}`: {arithmetic}")]
    NotThere {
        /// Index into [`Gateway::rules`].
        rule: [usize; 1],
        /// Its name.
        name: String,
        /// What is wanted and what there is, in words.
        arithmetic: String,
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
    /// Nothing would be left for a backend that has no block of its own.
    #[error("rule `{name}`: no port is left for its backends: all are reserved")]
    NothingLeft {
        /// Index into [`Gateway::rules`].
        rule: [usize; 1],
        /// Its name.
        name: String,
    },
    /// More blocks of their own than the data path has room for.
    #[error("backends would have {wanted} different port blocks, {limit} are possible")]
    TooManySets {
        /// Asked for.
        wanted: usize,
        /// Possible.
        limit: usize,
    },
    /// More backends than the tables were made for.
    #[error(
        "{wanted} backends are configured, but the tables are made for {limit}: `max_backends` says how many, and \
         takes effect after `natgw detach` and a start"
    )]
    TooManyBackends {
        /// Configured ones.
        wanted: usize,
        /// Room.
        limit: usize,
    },
    /// Removed backends or rules whose flows are still alive take slots that new ones need.
    #[error(
        "not enough slots for {kind}: {wanted} configured, {draining} removed with live flows, {limit} possible"
    )]
    NoSlot {
        /// `backends`, `rules`, `frontend addresses`, `policies` or `policy prefixes`.
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
            Self::NotThere { rule, .. }
            | Self::TooManyPieces { rule, .. }
            | Self::NothingLeft { rule, .. } => rule,
            Self::NoSlot { .. } | Self::TooManyBackends { .. } | Self::TooManySets { .. } => &[],
        }
    }

    /// What would help.
    #[must_use]
    pub fn help(&self, gateway: &Gateway) -> Option<String> {
        let dynamic = |rule: usize| gateway.rules[rule].allocation == Allocation::Dynamic;
        match self {
            // Ports are given in blocks of 8.
            Self::OverCommitted { at_most: Some(..8), .. } => Some(
                "reserve or exclude fewer ports, have fewer backends, or add frontend addresses".to_owned(),
            ),
            Self::OverCommitted { at_most: Some(ports), rules, .. } => {
                let (key, each) = match rules.first() {
                    Some(rule) if dynamic(*rule) => ("min_ports", DYNAMIC_PORTS),
                    _ => ("ports_per_backend", STATIC_PORTS),
                };
                Some(format!(
                    "set `{key} = {ports}` or less, or add frontend addresses ({} ports each)",
                    grouped(each)
                ))
            }
            Self::OverCommitted { .. } => {
                Some("lower `ports_per_backend` of these rules, or add frontend addresses".to_owned())
            }
            Self::NotThere { rule: [rule], .. } => Some(match gateway.rules[*rule].selection {
                Some(Selection::Pinned) => {
                    "pin some of these backends to other addresses, or lower what each gets".to_owned()
                }
                _ => {
                    "lower what each backend gets, add frontend addresses, or leave `frontend_selection` out"
                        .to_owned()
                }
            }),
            Self::TooManyPieces { rule: [rule], .. } if dynamic(*rule) => Some(
                "fewer frontend addresses, or reserved ports at the end of the range, make fewer pieces"
                    .to_owned(),
            ),
            Self::TooManyPieces { rule: [rule], .. } => {
                let ports = gateway.rules[*rule].ports_per_backend;
                Some(format!("choose a `ports_per_backend` that divides 64,000, near {ports}"))
            }
            Self::NothingLeft { .. } => Some("reserve or exclude fewer ports".to_owned()),
            Self::TooManySets { .. } => {
                Some("for so many backends use `allocation = \"dynamic\"` without `min_ports`".to_owned())
            }
            Self::TooManyBackends { .. } => None,
            Self::NoSlot { draining: 0, .. } => Some("configure fewer".to_owned()),
            Self::NoSlot { .. } => Some("reload again when their flows have ended".to_owned()),
        }
    }
}
