// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a new flow costs by how full the ports are, and a refusal when there is none: nanoseconds of single runs of the
//! XDP program, as `BPF_PROG_TEST_RUN` counts them.
//!
//! Ports are taken by real new flows to one destination after the other, until each has none left. Every run is one
//! packet from cold caches (a system call lies between), so figures are to be compared with each other only.

use std::fmt::Write as _;

use anyhow::ensure;
use nat_common::abi::{counters::Reason, names::delay::ANEW};
use serde::Serialize;

use super::signal;
use crate::{
    case::arriving,
    harness::{
        Action, Lab, World,
        world::{Backend, FRONTEND, Pool},
    },
    packet::{Packet, RST, SYN},
};

/// Ports: addresses and ports of each.
const SETS: [(u8, u16); 5] = [(1, 64), (1, 1024), (1, 64_512), (4, 64_512), (16, 64_512)];
/// Shares of the ports in use, in tenths of a percent.
const OCCUPANCY: [u32; 8] = [100, 250, 500, 800, 900, 950, 990, 999];
/// Measurements of one figure, at least where there are as many ports.
const SAMPLES: usize = 2000;

/// Medians for one set of ports.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Ports in the set.
    ports: u32,
    /// ns of a new flow, by [`OCCUPANCY`].
    new_flow: Vec<u64>,
    /// ns of a refusal.
    refusal: u64,
    /// ns of giving one port back and taking another, with half of the ports in use and with all of them.
    exchange: [u64; 2],
}

/// Measures every set of at most so many ports.
///
/// # Errors
///
/// When a packet does not end as it must.
pub(super) fn run(most: u64) -> anyhow::Result<Vec<Row>> {
    SETS.into_iter()
        .filter(|(addresses, each)| u64::from(*addresses) * u64::from(*each) <= most)
        .map(|(addresses, each)| row(addresses, each))
        .collect()
}

fn world(addresses: u8, each: u16, flows: u32) -> World {
    let runs: Vec<_> =
        (0..addresses).map(|number| ([203, 0, 113, FRONTEND[3] + number], 1024, each)).collect();
    let backends: Vec<[u8; 4]> = (0..BACKENDS).map(backend).collect();
    World {
        backends: backends
            .iter()
            .map(|address| Backend { address: *address, ports: [vec![], vec![], vec![]] })
            .collect(),
        frontends: runs.iter().map(|(address, ..)| (*address, false)).collect(),
        pools: vec![Pool { runs, ordered: false, backends }],
        // A new connection on the tuple of a reset one then gives its port back and takes any.
        delay: ANEW,
        ..World::default().table(flows, flows, 0)
    }
}

/// Backends, so that there are enough source ports for a million flows to one destination.
const BACKENDS: u32 = 20;

fn backend(number: u32) -> [u8; 4] {
    [10, 0, 0, 4 + number as u8]
}

/// The `number`th flow to a destination.
fn flow(lab: &Lab, destination: u32, number: u32, flags: u8) -> Vec<u8> {
    let [.., high, low] = destination.to_be_bytes();
    let source = (backend(number / 60_000), 1 + (number % 60_000) as u16);
    let packet = Packet::tcp(source, ([10, 200, high, low], 80), flags);
    packet.clone().link(arriving(&lab.world, 0, &packet)).frame()
}

fn row(addresses: u8, each: u16) -> anyhow::Result<Row> {
    signal::check()?;
    let ports = u32::from(addresses) * u32::from(each);
    let destinations = u32::try_from(SAMPLES * 20)?.div_ceil(ports).clamp(1, 200);
    let lab = Lab::new(world(addresses, each, (ports + 1) * destinations))?;
    let mut costs: Vec<Vec<u64>> = vec![Vec::new(); OCCUPANCY.len()];
    let (mut refusals, mut exchanges) = (Vec::new(), [Vec::new(), Vec::new()]);
    for destination in 0..destinations {
        let churn = |from: u32, to: u32, costs: &mut Vec<u64>| -> anyhow::Result<()> {
            let wanted = SAMPLES.div_ceil(destinations as usize) as u32;
            for turn in 0..wanted {
                let number = from + turn * 7919 % (to - from);
                ensure!(lab.timed(0, &flow(&lab, destination, number, RST))?.0 == Action::Redirect, "reset");
                let (action, ns) = lab.timed(0, &flow(&lab, destination, number, SYN))?;
                ensure!(action == Action::Redirect, "an exchange of ports: {action:?}");
                costs.push(ns);
            }
            Ok(())
        };
        for number in 0..ports {
            let (action, ns) = lab.timed(0, &flow(&lab, destination, number, SYN))?;
            ensure!(
                action == Action::Redirect,
                "flow {number} of {ports} to destination {destination}: {action:?}"
            );
            for (place, share) in OCCUPANCY.iter().enumerate() {
                let at = u64::from(ports) * u64::from(*share) / 1000;
                let window = (u64::from(ports) / 100).max(1);
                if u64::from(number) <= at && u64::from(number) + window > at {
                    costs[place].push(ns);
                }
            }
            if number == ports / 2 {
                churn(0, ports / 2, &mut exchanges[0])?;
            }
        }
        churn(0, ports, &mut exchanges[1])?;
        for number in 0..SAMPLES.div_ceil(destinations as usize) as u32 {
            let (action, ns) = lab.timed(0, &flow(&lab, destination, ports + number % 64, SYN))?;
            ensure!(action == Action::Drop, "a port too many: {action:?}");
            refusals.push(ns);
        }
    }
    let refused = lab.maps.sum_counters()?.packets[Reason::NoFreePort as usize];
    ensure!(refused == refusals.len() as u64, "{refused} refusals for want of ports");
    Ok(Row {
        ports,
        new_flow: costs.iter_mut().map(|costs| median(costs)).collect(),
        refusal: median(&mut refusals),
        exchange: exchanges.map(|mut costs| median(&mut costs)),
    })
}

pub(super) fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// The figures, in at most 100 columns.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text =
        "\nns of a packet that opens a flow, by ports in use towards its destination\n\n".to_owned();
    let _infallible = write!(text, "{:>9}", "ports");
    for share in OCCUPANCY {
        let _infallible = write!(text, "{:>8}", format!("{}%", f64::from(share) / 10.0));
    }
    let _infallible = writeln!(text, "{:>9}{:>17}", "refused", "exchanged 50/100%");
    for Row { ports, new_flow, refusal, exchange: [half, full] } in rows {
        let _infallible = write!(text, "{ports:>9}");
        for ns in new_flow {
            let _infallible = write!(text, "{ns:>8}");
        }
        let _infallible = writeln!(text, "{refusal:>9}{:>17}", format!("{half} / {full}"));
    }
    text
}
