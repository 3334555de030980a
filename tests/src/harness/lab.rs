// SPDX-License-Identifier: MIT OR Apache-2.0
//! A [`World`] made real: interfaces in a namespace, the BPF programs loaded, the maps filled.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use nat_common::{
    Tick,
    abi::{
        config::{Control, NO_SLOT, ROLE_OUTSIDE},
        names,
    },
};

use super::{maps::Maps, pass::Pass, plan, sweep::Sweep, world::World};
use crate::ns::{Entered, Namespace};

/// First tick of every test; far from zero, so that differences cannot underflow unnoticed.
pub const START: Tick = 1_000_000;

/// What the XDP program decided (`enum xdp_action`, linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `XDP_ABORTED`.
    Aborted,
    /// `XDP_DROP`.
    Drop,
    /// `XDP_PASS`.
    Pass,
    /// `XDP_TX`.
    Tx,
    /// `XDP_REDIRECT`.
    Redirect,
}

/// Decision and frame after one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The decision.
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// How long the program took, in nanoseconds.
    pub ns: u64,
}

/// A gateway for single packets.
pub struct Lab {
    /// What it was made from.
    pub world: World,
    /// The data path's maps.
    pub maps: Maps,
    /// The namespace the interfaces are in.
    pub namespace: Namespace,
    /// The time, in ticks.
    pub now: Tick,
    /// Device, its index, and what was loaded for it.
    pub(super) programs: Vec<(&'static str, u32, Ebpf)>,
    pub(super) sweep: Sweep,
    pins: PathBuf,
    _entered: Entered,
    _pass: Vec<Pass>,
}

/// The BPF object under test.
///
/// # Errors
///
/// When it has not been built; the sentence says how.
pub fn object() -> Result<Vec<u8>> {
    let path = std::env::var_os("NATGW_BPF_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/natgw.bpf.o"),
        PathBuf::from,
    );
    std::fs::read(&path)
        .with_context(|| format!("no BPF object at {}: build it with `cargo xtask build`", path.display()))
}

impl Lab {
    /// Builds the interfaces, loads the programs and fills the maps. The calling thread is in the namespace until
    /// the lab is dropped.
    ///
    /// # Errors
    ///
    /// With the step that failed; everything made until then is removed.
    pub fn new(world: World) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let object = object()?;
        let namespace = Namespace::new()?;
        namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip(&world.commands())?;
        if world.forwarding {
            namespace.sysctl("ipv4/ip_forward", "1")?;
        }
        let entered = namespace.enter()?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/natgw-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&pins)
            .with_context(|| format!("creating {}: is bpffs mounted on /sys/fs/bpf?", pins.display()))?;
        let guard = RemoveOnError(Some(&pins));
        let mut programs: Vec<(&'static str, u32, Ebpf)> = Vec::new();
        let mut passes = Vec::new();
        for port in &world.ports {
            if programs.iter().all(|(lower, ..)| *lower != port.lower) {
                let index = namespace.index(port.lower)?;
                passes.push(Pass::attach(index)?);
                programs.push((port.lower, index, load(&world, index, port.lower, &pins, &object)?));
            }
        }
        let maps = Maps::open(&pins)?;
        let (_, _, ebpf) = programs.first_mut().context("a world without ports")?;
        let sweep = Sweep::load(ebpf, &pins)?;
        guard.keep();
        let mut lab = Self {
            world,
            maps,
            namespace,
            now: START,
            programs,
            sweep,
            pins,
            _entered: entered,
            _pass: passes,
        };
        plan::fill(&lab.world, &lab.namespace, &mut lab.maps, START)?;
        let mut control = Control {
            bank: 0,
            epoch: 1,
            heartbeat: START,
            guaranteed_flows: lab.world.guaranteed,
            burst_flows: lab.world.burst,
            guarded: lab.world.guarded.into(),
            generation: 1,
            test_tick: START,
            ..Control::default()
        };
        plan::control(&lab.world, &mut control);
        lab.maps.control.set(0, control, 0)?;
        Ok(lab)
    }

    /// Runs the XDP program of the device under port `slot` on `frame`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it: frames under 14 bytes or over about 3,500.
    pub fn run(&self, slot: usize, frame: &[u8]) -> Result<Outcome> {
        run_xdp(self.xdp(slot)?, self.device(slot).1, frame)
    }

    /// As [`Lab::run`]: the action, and how long the program took in nanoseconds.
    ///
    /// # Errors
    ///
    /// As [`Lab::run`].
    pub fn timed(&self, slot: usize, frame: &[u8]) -> Result<(Action, u64)> {
        let outcome = self.run(slot, frame)?;
        Ok((outcome.action, outcome.ns))
    }

    /// The XDP program of the device under port `slot`.
    ///
    /// # Errors
    ///
    /// When the object has none.
    pub fn xdp(&self, slot: usize) -> Result<&Xdp> {
        let program =
            self.device(slot).2.program(names::PROGRAM_XDP).context("no XDP program in the object")?;
        Ok(program.try_into()?)
    }

    /// Sets the time. The daemon counts as alive.
    ///
    /// # Errors
    ///
    /// Those of writing the map.
    pub fn set_time(&mut self, now: Tick) -> Result<()> {
        self.now = now;
        self.control(|control| (control.test_tick, control.heartbeat) = (now, now))
    }

    /// Lets `ticks` pass.
    ///
    /// # Errors
    ///
    /// Those of writing the map.
    pub fn wait(&mut self, ticks: Tick) -> Result<()> {
        self.set_time(self.now + ticks)
    }

    /// Changes `CONTROL`.
    ///
    /// # Errors
    ///
    /// Those of reading and writing the map.
    pub fn control(&mut self, change: impl FnOnce(&mut Control)) -> Result<()> {
        let mut control = self.maps.control.get(&0, 0)?;
        change(&mut control);
        Ok(self.maps.control.set(0, control, 0)?)
    }

    /// Replaces the backends' grants in the bank in force, as a reload would.
    ///
    /// # Errors
    ///
    /// Those of writing the maps.
    pub fn rewrite_backends(&mut self, world: World) -> Result<()> {
        self.world = world;
        plan::backends(&self.world, &mut self.maps)?;
        let mut control = self.maps.control.get(&0, 0)?;
        plan::control(&self.world, &mut control);
        control.generation += 1;
        Ok(self.maps.control.set(0, control, 0)?)
    }

    /// Likewise with the policies, the backends' and everyone's.
    ///
    /// # Errors
    ///
    /// Those of writing the maps.
    pub fn rewrite_policies(&mut self, world: World) -> Result<()> {
        plan::policies(&world, &mut self.maps)?;
        self.rewrite_backends(world)
    }

    /// Back to the beginning: no flows, nothing counted, and a new time far from the old one.
    ///
    /// # Errors
    ///
    /// Those of writing the maps.
    pub fn reset(&mut self) -> Result<()> {
        self.maps.clear()?;
        self.set_time(self.now + 100_000)
    }

    /// Directory of the pinned maps.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    pub(super) fn device(&self, slot: usize) -> &(&'static str, u32, Ebpf) {
        let lower = self.world.ports[slot].lower;
        let found = self.programs.iter().find(|(name, ..)| *name == lower);
        found.expect("a program was loaded for every device")
    }
}

/// Runs `program` on a frame that arrives at interface `index` of the calling thread's namespace.
///
/// # Errors
///
/// When the kernel refuses to run it.
pub fn run_xdp(program: &Xdp, index: u32, frame: &[u8]) -> Result<Outcome> {
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, u32::try_from(frame.len())?, 0, index, 0, 0];
    let mut out = vec![0; frame.len() + 1024];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::cast_slice(&context)),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("running the XDP program on {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    let action = match result.return_value {
        0 => Action::Aborted,
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Tx,
        4 => Action::Redirect,
        other => bail!("the XDP program returned {other}"),
    };
    let ns = u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX);
    Ok(Outcome { action, frame: out, ns })
}

fn load(world: &World, index: u32, lower: &str, pins: &Path, object: &[u8]) -> Result<Ebpf> {
    let on_lower = || (0u32..).zip(&world.ports).filter(|(_, port)| port.lower == lower);
    let untagged = on_lower().find(|(_, port)| port.tags.is_empty());
    let slot = untagged.map_or(NO_SLOT, |(slot, _)| slot);
    let role = untagged.map_or(0, |(_, port)| u32::from(port.role));
    let trunk = u32::from(on_lower().any(|(_, port)| !port.tags.is_empty()));
    let flows = world.max_flows * 2;
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::CONST_SLOT, &slot, true)
        .override_global(names::CONST_ROLE, &role, true)
        .override_global(names::CONST_LOWER, &index, true)
        .override_global(names::CONST_TRUNK, &trunk, true)
        .override_global(names::CONST_TEST_CLOCK, &1u32, true)
        .override_global(names::CONST_DELAY, &world.delay, true)
        .map_max_entries(names::FLOWS, flows)
        .map_max_entries(names::RECORDS, 8192)
        .map_max_entries(names::TOWARDS, world.max_flows)
        .map_max_entries(names::PEERS, world.max_flows);
    for name in names::PINNED_MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader.load(object).context("loading the BPF object")?;
    let program = |name: &str| format!("program {name} for {lower}");
    let xdp: &mut Xdp = ebpf.program_mut(names::PROGRAM_XDP).context("no XDP program")?.try_into()?;
    xdp.load().with_context(|| program(names::PROGRAM_XDP))?;
    if world.ports.iter().any(|port| port.lower == lower && port.role & ROLE_OUTSIDE != 0) {
        let guard: &mut SchedClassifier =
            ebpf.program_mut(names::PROGRAM_GUARD).context("no guard")?.try_into()?;
        guard.load().with_context(|| program(names::PROGRAM_GUARD))?;
    }
    if lower == world.ports[0].lower {
        let hold: &mut SchedClassifier =
            ebpf.program_mut(names::PROGRAM_HOLD).context("no hold")?.try_into()?;
        hold.load().with_context(|| program(names::PROGRAM_HOLD))?;
    }
    Ok(ebpf)
}

struct RemoveOnError<'a>(Option<&'a Path>);

impl RemoveOnError<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnError<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}
