// SPDX-License-Identifier: MIT OR Apache-2.0
//! The counting sink at the end of the chain.

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{PerCpuArray, PerCpuValues},
    programs::{Xdp, XdpMode},
    util::nr_cpus,
};
use bench_ebpf::Sink as Counters;

use super::chain::{BACKEND_NET, Chain, FRONTEND};

const SIZE: usize = size_of::<Counters>();

/// The attached sink program.
#[derive(Debug)]
pub(super) struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// Loads the sink and attaches it to `sink0` in native mode.
    pub(super) fn attach(object: &[u8], chain: &Chain) -> anyhow::Result<Self> {
        let device = chain.sink.ifindex("sink0")?;
        let ebpf = chain.sink.enter(|| -> anyhow::Result<Ebpf> {
            let mut ebpf = Ebpf::load(object).context("cannot load the benchmark object")?;
            let program: &mut Xdp = ebpf.program_mut("sink").context("no program `sink`")?.try_into()?;
            program.load().context("the kernel refuses program `sink`")?;
            program
                .attach_to_if_index(device, XdpMode::Driver)
                .context("cannot attach `sink` to sink0 in native mode")?;
            Ok(ebpf)
        })??;
        Ok(Self { ebpf })
    }

    /// Sets all counters to zero and verifies from now on every packet whose number and-ed with `check_mask` is 0.
    pub(super) fn reset(&mut self, check_mask: u32) -> anyhow::Result<()> {
        let fresh = Counters {
            frontend: FRONTEND.to_bits(),
            backend_net: BACKEND_NET.0.to_bits(),
            backend_mask: BACKEND_NET.1.to_bits(),
            check_mask,
            ..Counters::default()
        };
        let bytes: [u8; SIZE] = bytemuck::cast(fresh);
        let cpus = nr_cpus().map_err(|(file, error)| anyhow::anyhow!("cannot read {file}: {error}"))?;
        let mut map: PerCpuArray<_, [u8; SIZE]> =
            self.ebpf.map_mut("SINK").context("no map `SINK`")?.try_into()?;
        map.set(0, PerCpuValues::try_from(vec![bytes; cpus])?, 0).context("cannot reset the sink's counters")
    }

    /// Counters of each possible CPU.
    pub(super) fn per_cpu(&self) -> anyhow::Result<Vec<Counters>> {
        let map: PerCpuArray<_, [u8; SIZE]> = self.ebpf.map("SINK").context("no map `SINK`")?.try_into()?;
        let values = map.get(&0, 0).context("cannot read the sink's counters")?;
        Ok(values.iter().map(|bytes| bytemuck::pod_read_unaligned(bytes)).collect())
    }

    /// Counters of all CPUs together; the settings are left zero.
    pub(super) fn total(&self) -> anyhow::Result<Counters> {
        Ok(self.per_cpu()?.iter().fold(Counters::default(), |sum, cpu| Counters {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
            from_frontend: sum.from_frontend + cpu.from_frontend,
            from_backend: sum.from_backend + cpu.from_backend,
            checked: sum.checked + cpu.checked,
            bad: sum.bad + cpu.bad,
            ..Counters::default()
        }))
    }
}
