// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the counting sinks at both ends of the chain have seen.

use anyhow::Context as _;
use aya::{
    maps::{PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use bench_ebpf::{HOMEWARD, OUTWARD, Sink as Counters};

use super::{
    chain::{BACKEND_NET, BACKENDS, DESTINATIONS, FIRST_DESTINATION, FRONTEND, FRONTENDS},
    rig::Rig,
    workload::{PORT_BASE, PORT_STRIDE},
};

const SIZE: usize = size_of::<Counters>();

/// What both sinks counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    /// At the destinations.
    pub(super) outward: Counters,
    /// At the backends.
    pub(super) homeward: Counters,
}

impl Arrived {
    /// Packets in both directions.
    pub(super) const fn packets(&self) -> u64 {
        self.outward.packets + self.homeward.packets
    }

    /// Packets whose checksums were verified.
    pub(super) const fn checked(&self) -> u64 {
        self.outward.checked + self.homeward.checked
    }
}

impl Rig<'_> {
    /// Sets all counters to zero and verifies from now on every packet whose number and-ed with `check_mask` is 0;
    /// with `learn`, notes down where flows come from.
    pub(super) fn reset(&mut self, check_mask: u32, learn: bool) -> anyhow::Result<()> {
        let fresh = Counters {
            frontend: FRONTEND.to_bits(),
            frontends: FRONTENDS,
            backend_net: BACKEND_NET.0.to_bits(),
            backend_mask: BACKEND_NET.1.to_bits(),
            check_mask,
            learn: u32::from(learn),
            destination_base: FIRST_DESTINATION.to_bits(),
            backends: BACKENDS,
            destinations: DESTINATIONS,
            port_base: PORT_BASE,
            port_stride: PORT_STRIDE,
            ..Counters::default()
        };
        let bytes: [u8; SIZE] = bytemuck::cast(fresh);
        let cpus = nr_cpus().map_err(|(file, error)| anyhow::anyhow!("cannot read {file}: {error}"))?;
        let mut map: PerCpuArray<_, [u8; SIZE]> =
            self.ebpf.map_mut("SINK").context("no map `SINK`")?.try_into()?;
        for index in [OUTWARD, HOMEWARD] {
            map.set(index, PerCpuValues::try_from(vec![bytes; cpus])?, 0)
                .context("cannot reset the sink's counters")?;
        }
        Ok(())
    }

    /// Counters of each possible CPU at one end.
    pub(super) fn per_cpu(&self, end: u32) -> anyhow::Result<Vec<Counters>> {
        let map: PerCpuArray<_, [u8; SIZE]> = self.ebpf.map("SINK").context("no map `SINK`")?.try_into()?;
        let values = map.get(&end, 0).context("cannot read the sink's counters")?;
        Ok(values.iter().map(|bytes| bytemuck::pod_read_unaligned(bytes)).collect())
    }

    /// Counters of all CPUs together; the settings are left zero.
    pub(super) fn arrived(&self) -> anyhow::Result<Arrived> {
        let total = |end| {
            anyhow::Ok(self.per_cpu(end)?.iter().fold(Counters::default(), |sum, cpu| Counters {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
                from_frontend: sum.from_frontend + cpu.from_frontend,
                from_backend: sum.from_backend + cpu.from_backend,
                to_backend: sum.to_backend + cpu.to_backend,
                checked: sum.checked + cpu.checked,
                bad: sum.bad + cpu.bad,
                learnt: sum.learnt + cpu.learnt,
                attack: sum.attack + cpu.attack,
                ..Counters::default()
            }))
        };
        Ok(Arrived { outward: total(OUTWARD)?, homeward: total(HOMEWARD)? })
    }

    /// Share of the packets that reached a sink on one of `cpus`.
    pub(super) fn share_on(&self, cpus: &[usize]) -> anyhow::Result<f64> {
        let (mut near, mut all) = (0, 0);
        for end in [OUTWARD, HOMEWARD] {
            let per_cpu = self.per_cpu(end)?;
            near += cpus.iter().filter_map(|cpu| per_cpu.get(*cpu)).map(|cpu| cpu.packets).sum::<u64>();
            all += per_cpu.iter().map(|cpu| cpu.packets).sum::<u64>();
        }
        Ok(near as f64 / all as f64)
    }
}
