// SPDX-License-Identifier: MIT OR Apache-2.0
//! The translating instance: starts or adopts it, changes its configuration, follows its interfaces.
//!
//! Order matters for invariant 1 (no leak). On a first start: configuration, then the guard, then XDP, then
//! forwarding. While XDP hands packets to the stack, the guard is there; before XDP is there, the host does not
//! forward more than it did before.

mod change;
mod release;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::ProgramFd,
};
use nat_common::abi::{
    ABI_VERSION,
    config::{Control, META_MAGIC, Meta},
    grant::MAX_SETS,
    names,
};
use tracing::warn;

use super::{
    host::HostState,
    netlink::Netlink,
    undo::{Done, Journal},
};
use crate::{
    clock, config,
    datapath::{
        attach::{self, Mode},
        bank::{self, ControlCell, Filled},
        layout::{self, Device, Layout, Lower},
        load::{self, Constants, Loader, LogLevel},
        pin::{self, Existing, Instance},
        ports,
        shape::Room,
        tables::Tables,
    },
    plan::{PortPlan, table_size},
};

/// A device with an XDP program of this process.
#[derive(Debug)]
struct Attached {
    constants: Constants,
    mode: Mode,
    /// Kept for its log buffer.
    ebpf: Ebpf,
}

/// An instance that this process controls.
pub(super) struct Gateway {
    instance: Instance,
    netlink: Netlink,
    loader: Loader,
    meta: Meta,
    config: config::Gateway,
    plan: PortPlan,
    layout: Layout,
    control: ControlCell,
    /// What each bank of the tables may hold.
    filled: [Filled; 2],
    host: HostState,
    guard: Ebpf,
    attached: BTreeMap<String, Attached>,
    /// Something could not be brought in line with [`Self::layout`] yet.
    unfinished: bool,
}

impl Gateway {
    /// Starts translating by `config`, or takes over what an earlier process started. What else the process needs is
    /// made by `needs`, from the maps and before any packet is touched, so that nothing can fail afterwards.
    ///
    /// # Errors
    ///
    /// Anything that prevents it; the host is then as it was before, and what an earlier process left in force is
    /// in force again.
    pub(super) async fn start<T>(
        instance: Instance,
        config: config::Gateway,
        log: LogLevel,
        needs: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(Self, T)> {
        let netlink = Netlink::open()?;
        let devices = netlink.devices().await?;
        // Before anything is made: the usual mistakes.
        layout::resolve(&config.inside, &config.outside, &devices, &BTreeMap::new())?.complete(&devices)?;
        let existing = pin::examine(&instance, load::object()?)?;
        if existing == Existing::Unfinished {
            warn!("removing what a start that was interrupted left in `{}`", instance.pins().display());
            instance.remove_pins()?;
        }
        let adopted = matches!(existing, Existing::Adoptable(_));
        let mut journal = Journal::default();
        let mut host = HostState::read(&instance)?;
        if instance.make_pins()? {
            journal.push(Done::Pins);
        }
        let prepared = Self::prepare(instance.clone(), netlink.clone(), &config, existing, log);
        let prepared = prepared.and_then(|gateway| needs(&gateway).map(|needed| (gateway, needed)));
        let (mut gateway, needed) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                journal.roll_back(&instance, &netlink, &mut host).await;
                return Err(error);
            }
        };
        gateway.host = host;
        let before = if adopted { Some(gateway.in_force(&devices)?) } else { None };
        let Err(error) = gateway.change(config, &devices, &mut journal).await else {
            return Ok((gateway, needed));
        };
        journal.roll_back(&gateway.instance, &gateway.netlink, &mut gateway.host).await;
        if let Some((control, layout)) = before {
            gateway.layout = layout;
            gateway.put_back(&control);
        }
        Err(error)
    }

    /// What the tables of an earlier process hold.
    fn in_force(&self, devices: &[Device]) -> Result<(Control, Layout)> {
        let reading = Tables::open(self.instance.name())?.instance()?;
        Ok((*self.control.value(), layout::recorded(&reading.interfaces, devices)))
    }

    /// Opens or makes the maps.
    fn prepare(
        instance: Instance,
        netlink: Netlink,
        config: &config::Gateway,
        existing: Existing,
        log: LogLevel,
    ) -> Result<Self> {
        let room = match existing {
            Existing::Adoptable(meta) => meta.into(),
            _ => Room { flows: config.max_flows, backends: table_size(config) },
        };
        if room.flows != config.max_flows {
            warn!(
                "max_flows stays {}, as the flow table was made: {} takes effect after `natgw detach`",
                room.flows, config.max_flows
            );
        }
        if let Some(wanted) = config.max_backends.filter(|wanted| *wanted != room.backends) {
            warn!(
                "max_backends stays {}, as the tables were made: {wanted} takes effect after `natgw detach`",
                room.backends
            );
        }
        let loader = Loader::new(instance.clone(), room, log);
        let guard = loader.load(Constants::NO_DEVICE)?;
        let meta = match existing {
            Existing::Adoptable(meta) => meta,
            _ => {
                let meta = Meta {
                    magic: META_MAGIC,
                    abi_version: ABI_VERSION,
                    max_flows: room.flows,
                    created: clock::now(),
                    max_backends: room.backends,
                    reserved: 0,
                };
                let mut map: Array<MapData, Meta> = instance.array(names::META)?;
                map.set(0, meta, 0).context("writing map `META`")?;
                meta
            }
        };
        let control = ControlCell::open(&instance)?;
        // What an earlier process has left in either bank is not known.
        let filled = match existing {
            Existing::Adoptable(meta) => Filled { backends: meta.max_backends, sets: MAX_SETS },
            _ => Filled::default(),
        };
        Ok(Self {
            instance,
            netlink,
            loader,
            meta,
            config: config.clone(),
            plan: PortPlan::default(),
            layout: Layout::default(),
            control,
            filled: [filled; 2],
            host: HostState::default(),
            guard,
            attached: BTreeMap::new(),
            unfinished: false,
        })
    }

    /// Puts another configuration in force.
    ///
    /// # Errors
    ///
    /// Anything that prevents it; the old configuration is then still in force.
    pub(super) async fn reload(&mut self, config: config::Gateway) -> Result<()> {
        ensure!(
            config.name == self.instance.name(),
            "the instance name cannot change from `{}` to `{}` while it runs: `natgw detach`, then start again",
            self.instance.name(),
            config.name
        );
        let devices = self.netlink.devices().await?;
        let mut journal = Journal::default();
        let before = (*self.control.value(), self.layout.clone(), self.config.clone(), self.plan.clone());
        let Err(error) = self.change(config, &devices, &mut journal).await else { return Ok(()) };
        let (control, layout, config, plan) = before;
        journal.roll_back(&self.instance, &self.netlink, &mut self.host).await;
        (self.layout, self.config, self.plan) = (layout, config, plan);
        self.put_back(&control);
        Err(error)
    }

    /// Puts the bank of `before` and [`Self::layout`] in force again. What fails is logged: there is already an error
    /// on its way.
    fn put_back(&mut self, before: &Control) {
        let lowers = self.layout.lowers.clone();
        self.attached.retain(|device, _| lowers.iter().any(|lower| lower.name == *device));
        if let Err(error) = self.try_put_back(before, &lowers) {
            warn!("going back to the old configuration: {error:#}");
            self.unfinished = true;
        }
    }

    fn try_put_back(&mut self, before: &Control, lowers: &[Lower]) -> Result<()> {
        self.control.update(|control| {
            let epoch = bank::epoch_after(control.epoch);
            // The generation goes on: sets that were in force for a moment have numbers of theirs.
            let generation = control.generation.wrapping_add(1);
            *control = Control { epoch, heartbeat: control.heartbeat, generation, ..*before };
        })?;
        self.plan.generation = self.control.value().generation;
        ports::write(&self.instance, &self.layout)?;
        // A device that this process has put no program on still has the one it had.
        for lower in lowers {
            if self.attached.get(&lower.name).is_some_and(|attached| attached.constants != lower.constants) {
                let on_device = attach::pinned_program(&self.instance, &lower.name)?;
                let ebpf = self.loader.load(lower.constants)?;
                self.attach(lower, ebpf, on_device.map(|program| (program, true)))?;
            }
        }
        Ok(())
    }

    /// Whether every device that is there has its program, and all that depends on devices has been brought in line.
    #[must_use]
    pub(super) fn is_complete(&self) -> bool {
        let has = |lower: &Lower| {
            self.attached.get(&lower.name).is_some_and(|attached| attached.constants == lower.constants)
        };
        !self.unfinished && self.layout.lowers.iter().all(has)
    }

    /// The sweep, in an object of its own.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub(super) fn load_sweep(&self) -> Result<ProgramFd> {
        load::sweep(&mut self.loader.load(Constants::NO_DEVICE)?)
    }

    /// Objects of the attached programs, for their log buffers.
    pub(super) fn objects(&mut self) -> impl Iterator<Item = (&str, &mut Ebpf)> {
        self.attached.iter_mut().map(|(device, attached)| (device.as_str(), &mut attached.ebpf))
    }

    /// How the program on a device runs.
    #[must_use]
    pub(super) fn mode(&self, device: &str) -> Option<Mode> {
        self.attached.get(device).map(|attached| attached.mode)
    }

    /// The instance.
    #[must_use]
    pub(super) const fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The connection for requests.
    #[must_use]
    pub(super) const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// The configuration in force.
    #[must_use]
    pub(super) const fn config(&self) -> &config::Gateway {
        &self.config
    }

    /// The plan in force.
    #[must_use]
    pub(super) const fn plan(&self) -> &PortPlan {
        &self.plan
    }

    /// The interfaces.
    #[must_use]
    pub(super) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Flows that the table was made for.
    #[must_use]
    pub(super) const fn max_flows(&self) -> u32 {
        self.meta.max_flows
    }

    /// What every slow-path decision reads.
    pub(super) const fn control(&mut self) -> &mut ControlCell {
        &mut self.control
    }
}
