// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much of which area each rule gets: a maximum flow, so it exists whenever the ports do.
//!
//! An *area* is a part of an address that the same rules may use: a whole address, unless rules exclude ports.

use std::collections::VecDeque;

/// How many ports each rule gets of each of its areas: by rule, then as positions in `areas` of that rule. `spare` is
/// how many ports each area has, `demands` how many each rule needs.
///
/// # Errors
///
/// A set of rules that together ask for more than all their areas have.
pub(super) fn shares(
    areas: &[Vec<usize>],
    spare: Vec<u64>,
    demands: &[u64],
) -> Result<Vec<Vec<u64>>, Vec<usize>> {
    let mut flow = Flow { areas, spare, shares: areas.iter().map(|list| vec![0; list.len()]).collect() };
    for (rule, demand) in demands.iter().enumerate() {
        let mut left = *demand;
        while left > 0 {
            left -= flow.augment(rule, left)?;
        }
    }
    Ok(flow.shares)
}

struct Flow<'a> {
    areas: &'a [Vec<usize>],
    spare: Vec<u64>,
    shares: Vec<Vec<u64>>,
}

/// How the search came to an area: from `rule`, which has it at `position`.
#[derive(Clone, Copy)]
struct Step {
    rule: usize,
    position: usize,
}

impl Flow<'_> {
    /// Gives `rule` up to `wanted` more ports, moving shares of other rules to other areas where needed. Fails
    /// with the rules that compete for areas that are all full.
    fn augment(&mut self, rule: usize, wanted: u64) -> Result<u64, Vec<usize>> {
        let mut came_by: Vec<Option<Step>> = vec![None; self.spare.len()];
        // The area that a rule was reached from; the searching rule has none.
        let mut reached: Vec<Option<Option<Step>>> = vec![None; self.areas.len()];
        reached[rule] = Some(None);
        let mut queue = VecDeque::from([rule]);
        while let Some(at) = queue.pop_front() {
            for (position, area) in self.areas[at].iter().enumerate() {
                if came_by[*area].is_some() {
                    continue;
                }
                came_by[*area] = Some(Step { rule: at, position });
                if self.spare[*area] > 0 {
                    return Ok(self.push(*area, wanted, &came_by, &reached));
                }
                for (other, list) in self.areas.iter().enumerate() {
                    let Some(position) = list.iter().position(|known| known == area) else { continue };
                    if reached[other].is_none() && self.shares[other][position] > 0 {
                        reached[other] = Some(Some(Step { rule: other, position }));
                        queue.push_back(other);
                    }
                }
            }
        }
        Err((0..reached.len()).filter(|other| reached[*other].is_some()).collect())
    }

    /// Moves as much as the path to `area` carries.
    fn push(
        &mut self,
        area: usize,
        wanted: u64,
        came_by: &[Option<Step>],
        reached: &[Option<Option<Step>>],
    ) -> u64 {
        let mut gains = Vec::new();
        let mut losses = Vec::new();
        let mut at = area;
        while let Some(gain) = came_by[at] {
            gains.push(gain);
            let Some(Some(loss)) = reached[gain.rule] else { break };
            losses.push(loss);
            at = self.areas[loss.rule][loss.position];
        }
        let amount = losses
            .iter()
            .map(|step| self.shares[step.rule][step.position])
            .fold(wanted.min(self.spare[area]), u64::min);
        self.spare[area] -= amount;
        for step in gains {
            self.shares[step.rule][step.position] += amount;
        }
        for step in losses {
            self.shares[step.rule][step.position] -= amount;
        }
        amount
    }
}
