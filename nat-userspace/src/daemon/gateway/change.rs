// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of a translating instance: of its configuration, or of the interfaces under it.

use std::{collections::HashSet, net::Ipv4Addr};

use anyhow::Result;
use aya::Ebpf;
use nat_common::abi::config::{ROLE_INSIDE, ROLE_OUTSIDE, name_of};
use tracing::{info, warn};

use super::{Attached, Gateway};
use crate::{
    clock,
    config::{self, XdpMode},
    daemon::{
        addresses, facts, host, offload,
        undo::{Done, Journal},
    },
    datapath::{
        attach::{self, Mode},
        bank::{self, Filled, LiveFlows},
        guard::{self, Hook},
        layout::{self, Device, Lower},
        policy, ports,
        tables::Tables,
    },
    plan::{self, PortPlan},
};

/// Interfaces that a TC program belongs on.
const fn roles_of(hook: Hook) -> u8 {
    match hook {
        Hook::Guard => ROLE_OUTSIDE,
        Hook::Hold => ROLE_INSIDE | ROLE_OUTSIDE,
    }
}

impl Gateway {
    /// The common part of start and reload. On failure `journal` has what to undo.
    pub(super) async fn change(
        &mut self,
        mut config: config::Gateway,
        devices: &[Device],
        journal: &mut Journal,
    ) -> Result<()> {
        let facts = facts::facts(devices, &self.host)?;
        let kept = config::keep_host_ports(&mut config, &facts);
        kept.iter().for_each(|sentence| info!("{sentence}"));
        config::taken_from_host(&config, &facts).iter().for_each(|sentence| warn!("{sentence}"));
        let tables = Tables::open(self.instance.name())?;
        let reading = tables.instance()?;
        let slots = (0..)
            .zip(&reading.interfaces)
            .map(|(slot, port)| (name_of(&port.name).to_owned(), slot))
            .filter(|(name, _)| !name.is_empty())
            .collect();
        let layout = layout::resolve(&config.inside, &config.outside, devices, &slots)?;
        layout.complete(devices)?;
        let previous = bank::plan_of(&reading);
        let plan = plan::plan(&config, Some(&previous), &LiveFlows::new(&tables, &reading))
            .map_err(|error| facts::explained(error, &kept))?;
        self.config = config;
        self.layout = layout;
        // The guard first: from `ports::write` on, the data path may leave a packet to it.
        self.put_guards(Some(&mut *journal))?;
        ports::write(&self.instance, &self.layout)?;
        self.flip(&previous, plan, &self.to_be_owned(devices))?;
        self.control.update(|control| control.guarded = 1)?;
        self.put_programs(devices, Some(&mut *journal))?;
        // The addresses after the programs: until then the host would answer for flows that it does not know.
        self.assign(devices, journal).await?;
        self.forward(Some(journal))?;
        self.remove_unconfigured();
        self.unfinished = false;
        Ok(())
    }

    /// The host's addresses once [`Self::assign`] has added the missing ones.
    fn to_be_owned(&self, devices: &[Device]) -> HashSet<Ipv4Addr> {
        let mut owned: HashSet<Ipv4Addr> =
            devices.iter().flat_map(|device| device.addresses.iter().copied()).collect();
        if self.config.assign_frontends {
            owned.extend(self.config.public_addresses());
        }
        owned
    }

    /// Adds the missing frontend addresses and instance IPs. Returns all addresses of the host.
    async fn assign(&mut self, devices: &[Device], journal: &mut Journal) -> Result<HashSet<Ipv4Addr>> {
        let mut owned: HashSet<Ipv4Addr> =
            devices.iter().flat_map(|device| device.addresses.iter().copied()).collect();
        if self.config.assign_frontends {
            let missing: Vec<Ipv4Addr> =
                self.config.public_addresses().filter(|address| !owned.contains(address)).collect();
            let first = self.config.outside.first();
            let port = self
                .layout
                .ports
                .values()
                .find(|port| first.is_some_and(|name| name_of(&port.name) == name))
                .copied();
            if let Some(port) = port {
                let added = addresses::assign(
                    &self.instance,
                    &self.netlink,
                    &mut self.host,
                    &port,
                    &missing,
                    journal,
                );
                owned.extend(added.await?);
            }
        }
        Ok(owned)
    }

    /// Fills the idle bank with `plan` and puts it in force. `before` is what was.
    fn flip(&mut self, before: &PortPlan, plan: PortPlan, owned: &HashSet<Ipv4Addr>) -> Result<()> {
        let next = bank::other(self.control.value().bank);
        let held = self.filled[next as usize];
        self.filled[next as usize] = held.or(Filled::by(&plan));
        bank::fill(&self.instance, next, &plan, owned, held)?;
        self.filled[next as usize] = Filled::by(&plan);
        policy::reset_counts(&self.instance, before, &plan)?;
        let backends = plan.backends.iter().flatten().count();
        let (guaranteed, burst) =
            plan::table_shares(self.meta.max_flows, u32::try_from(backends).unwrap_or(u32::MAX));
        self.control.update(|control| {
            control.bank = next;
            control.epoch = bank::epoch_after(control.epoch);
            control.heartbeat = clock::now();
            control.guaranteed_flows = guaranteed;
            control.burst_flows = burst;
            control.generation = plan.generation;
            control.features = plan.features;
            control.shortest = plan.shortest();
            control.on_refusal = plan.on_refusal;
            control.backend_slots = plan.backend_slots();
        })?;
        self.plan = plan;
        Ok(())
    }

    fn put_guards(&mut self, mut journal: Option<&mut Journal>) -> Result<()> {
        for hook in Hook::ALL {
            for interface in self.layout.names(roles_of(hook)) {
                let new = guard::put(&self.instance, &mut self.guard, hook, &interface)?;
                if let Some(journal) = journal.as_deref_mut().filter(|_| new) {
                    journal.push(Done::Tc(hook, interface));
                }
            }
        }
        Ok(())
    }

    /// Puts the XDP program on every device that has none with the right constants.
    fn put_programs(&mut self, devices: &[Device], mut journal: Option<&mut Journal>) -> Result<()> {
        let mut missing = self.layout.lowers.clone();
        missing.retain(|lower| {
            self.attached.get(&lower.name).is_none_or(|attached| attached.constants != lower.constants)
        });
        let programs = self.loader.load_verified(&missing)?;
        for (lower, ebpf) in missing.into_iter().zip(programs) {
            if lower.constants.trunk != 0 {
                self.keep_tags(&lower.name, journal.as_deref_mut())?;
            }
            let now = devices.iter().find(|device| device.index == lower.constants.lower);
            let new = self.attach(&lower, ebpf?, now.and_then(|device| device.xdp))?;
            if let Some(journal) = journal.as_deref_mut().filter(|_| new) {
                journal.push(Done::Xdp(lower.name));
            }
        }
        Ok(())
    }

    pub(super) fn attach(
        &mut self,
        lower: &Lower,
        mut ebpf: Ebpf,
        on_device: Option<(u32, bool)>,
    ) -> Result<bool> {
        let wanted = self.config.xdp_mode;
        let (mode, new) = attach::put(&self.instance, &mut ebpf, &lower.name, on_device, wanted)?;
        let as_wanted = match wanted {
            XdpMode::Auto => true,
            XdpMode::Native => mode == Mode::Native,
            XdpMode::Generic => mode == Mode::Generic,
        };
        if !as_wanted {
            warn!("{}: stays in {} mode until `natgw detach`", lower.name, mode.name());
        }
        self.attached.insert(lower.name.clone(), Attached { constants: lower.constants, mode, ebpf });
        Ok(new)
    }

    /// Has a device leave VLAN tags in the frames.
    fn keep_tags(&mut self, device: &str, journal: Option<&mut Journal>) -> Result<()> {
        if !offload::vlan_stripping(device)? {
            return Ok(());
        }
        self.host.vlan_stripping.insert(device.to_owned());
        self.host.write(&self.instance)?;
        offload::set_vlan_stripping(device, false)?;
        info!("{device}: VLAN stripping switched off, so that XDP sees the tags");
        if let Some(journal) = journal {
            journal.push(Done::VlanStripping(device.to_owned()));
        }
        Ok(())
    }

    fn forward(&mut self, journal: Option<&mut Journal>) -> Result<()> {
        let interfaces = self.layout.names(ROLE_INSIDE | ROLE_OUTSIDE);
        let changed = host::enable_forwarding(&self.instance, &mut self.host, &interfaces)?;
        if let Some(journal) = journal {
            changed.into_iter().for_each(|interface| journal.push(Done::Forwarding(interface)));
        }
        Ok(())
    }

    /// Takes programs off interfaces that have left the configuration. The new configuration is in force by now:
    /// failures are reported and change nothing about that.
    fn remove_unconfigured(&mut self) {
        // Without XDP and with forwarding on, packets would leave untranslated: then rather keep the programs.
        if let Err(error) = self.stop_forwarding() {
            warn!("programs stay on interfaces that have left the configuration: {error:#}");
            return;
        }
        let layout = &self.layout;
        let devices = self.instance.xdp_devices().unwrap_or_default();
        for device in devices.iter().filter(|name| !layout.lowers.iter().any(|lower| lower.name == **name)) {
            self.attached.remove(device);
            if let Err(error) = attach::remove(&self.instance, device) {
                warn!("{error:#}");
            }
        }
        for hook in Hook::ALL {
            let wanted = layout.names(roles_of(hook));
            let on = hook.interfaces(&self.instance).unwrap_or_default();
            for interface in on.iter().filter(|name| !wanted.contains(name)) {
                if let Err(error) = guard::remove(&self.instance, hook, interface) {
                    warn!("{error:#}");
                }
            }
        }
        if let Err(error) = self.strip_tags_again() {
            warn!("{error:#}");
        }
    }

    /// Switches forwarding off again on interfaces that have left the configuration.
    fn stop_forwarding(&mut self) -> Result<()> {
        let used = self.layout.names(ROLE_INSIDE | ROLE_OUTSIDE);
        let left: Vec<String> =
            self.host.forwarding.iter().filter(|name| !used.contains(name)).cloned().collect();
        for interface in left {
            if host::disable_forwarding(&interface)? {
                info!("{interface}: not configured any more, IPv4 forwarding switched off again");
            }
            self.host.forwarding.remove(&interface);
            self.host.write(&self.instance)?;
        }
        Ok(())
    }

    /// Switches VLAN stripping on again on devices whose tags matter no more.
    fn strip_tags_again(&mut self) -> Result<()> {
        let trunk = |name: &str| {
            self.layout.lowers.iter().any(|lower| lower.name == name && lower.constants.trunk != 0)
        };
        let left: Vec<String> =
            self.host.vlan_stripping.iter().filter(|name| !trunk(name)).cloned().collect();
        for device in left {
            // A device that is gone has taken the setting with it.
            match offload::set_vlan_stripping(&device, true) {
                Ok(()) => info!("{device}: VLAN stripping switched on again"),
                Err(error) => warn!("{error:#}"),
            }
            self.host.vlan_stripping.remove(&device);
            self.host.write(&self.instance)?;
        }
        Ok(())
    }

    /// Follows what has happened to interfaces and addresses. Returns whether the tables changed.
    ///
    /// # Errors
    ///
    /// When something cannot be brought back; the rest is in order, and the next call tries again.
    pub(in crate::daemon) async fn refresh(&mut self) -> Result<bool> {
        let devices = self.netlink.devices().await?;
        let layout =
            layout::resolve(&self.config.inside, &self.config.outside, &devices, &self.layout.slots)?;
        let changed = layout != self.layout;
        if changed {
            for name in layout.absent.iter().filter(|name| !self.layout.absent.contains(name)) {
                warn!("{name}: the interface is gone; it is taken up again when it comes back");
            }
            self.attached.retain(|device, _| layout.lowers.iter().any(|lower| lower.name == *device));
            self.layout = layout;
        }
        let pending = changed || !self.is_complete();
        if pending {
            // Until the end: the next call does not see the change any more, and has to try again what fails here.
            self.unfinished = true;
            // In the order of `change`, for the same reasons.
            self.put_guards(None)?;
            ports::write(&self.instance, &self.layout)?;
            self.control.next_epoch()?;
            self.put_programs(&devices, None)?;
        }
        let owned = self.assign(&devices, &mut Journal::default()).await?;
        bank::refresh_owned(&self.instance, self.control.value().bank, &self.plan, &owned)?;
        if pending {
            self.forward(None)?;
        }
        self.unfinished = false;
        Ok(pending)
    }
}
