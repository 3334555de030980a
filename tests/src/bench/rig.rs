// SPDX-License-Identifier: MIT OR Apache-2.0
//! Both ends of the chain: the loaded object with generator, attacker and sinks, aimed and attached.

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader,
    maps::DevMap,
    programs::{Xdp, XdpMode},
};
use bench_ebpf::{HOMEWARD, OUTWARD};

use super::{chain::Chain, namespace::Namespace};

/// The loaded ends; dropping them detaches the sinks.
#[derive(Debug)]
pub(super) struct Rig<'a> {
    /// The chain that it works on.
    pub(super) chain: &'a Chain,
    /// Programs and maps.
    pub(super) ebpf: Ebpf,
}

impl<'a> Rig<'a> {
    /// Loads the object; `flows` of them can be answered.
    pub(super) fn load(object: &[u8], chain: &'a Chain, flows: u32) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LEARNT", flows.max(1))
            .load(object)
            .context("cannot load the benchmark object")?;
        for name in ["generate", "attack"] {
            load(&mut ebpf, name)?;
        }
        aim(&mut ebpf, &chain.generator, OUTWARD, "gen0")?;
        aim(&mut ebpf, &chain.sink, HOMEWARD, "sink0")?;
        attach(&mut ebpf, &chain.sink, "sink", "sink0")?;
        attach(&mut ebpf, &chain.generator, "home", "gen0")?;
        Ok(Self { chain, ebpf })
    }
}

/// Loads one XDP program of the object.
pub(super) fn load<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
    let program: &mut Xdp = program.try_into()?;
    program.load().with_context(|| format!("the kernel refuses program `{name}`"))?;
    Ok(program)
}

/// Puts a device of a namespace into place `index` of the map that programs send to.
pub(super) fn aim(ebpf: &mut Ebpf, at: &Namespace, index: u32, device: &str) -> anyhow::Result<()> {
    let number = at.ifindex(device)?;
    at.enter(|| {
        let mut target: DevMap<_> = ebpf.map_mut("TARGET").context("no map `TARGET`")?.try_into()?;
        target.set(index, number, None, 0).with_context(|| format!("cannot aim at {device}"))
    })?
}

/// Loads a program and attaches it to a device of a namespace in native mode.
pub(super) fn attach(ebpf: &mut Ebpf, at: &Namespace, name: &str, device: &str) -> anyhow::Result<()> {
    let number = at.ifindex(device)?;
    let program = load(ebpf, name)?;
    at.enter(|| {
        program
            .attach_to_if_index(number, XdpMode::Driver)
            .map(drop)
            .with_context(|| format!("cannot attach `{name}` to {device} in native mode"))
    })?
}
