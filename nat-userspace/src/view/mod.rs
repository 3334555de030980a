// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tables mean: flows, port use, verdicts and state of an instance, from one reading of its maps.
//!
//! Pure: no kernel, no clock. [`crate::datapath::tables`] makes the readings, [`crate::cli`] prints the results.
//! The serialised forms are the documented JSON (docs/json.md).

pub mod destinations;
pub mod flows;
pub mod instance;
pub mod life;
pub mod ports;
pub mod refusals;
pub mod resets;
pub mod rules;
pub mod stats;
pub mod status;

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod tests;
