// SPDX-License-Identifier: MIT OR Apache-2.0
//! Read access to the pinned maps of an instance, without its daemon and without the BPF object.
//!
//! Pins are opened anew for every reading. Nothing is believed about them: [`Meta`] has to carry the magic number
//! and layout version that this binary was built with, and every map the key and value sizes of its types.

use std::{
    fs,
    hash::Hash,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use bytemuck::Pod;
use nat_common::abi::{
    ABI_VERSION,
    config::{BANKS, CLASSES, Control, Frontend, META_MAGIC, Meta, PortConfig, SWEEP_SLOTS},
    counters::Counters,
    flow::{FlowEntry, FlowKey},
    fragment::HeldFragment,
    grant::{BackendInfo, BackendState, Grant, GrantState, PortSet, Quota, Rule},
    names,
    policy::{Instance as InstanceIp, InstanceKey, PolicyInfo, PolicyState},
};

use super::{
    batch::{LayoutError, TypedMap},
    bpf::{self, Access},
    pin::HOLD_LINK,
};
use crate::{
    clock,
    view::instance::{Instance, waiting},
};

/// Times that the tables are read again because a reload came in between.
const ATTEMPTS: u32 = 8;

/// Why the tables of an instance cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No pin directory of that name.
    #[error("no instance `{name}` on this host: {}; start one with `natgw run`", existing(.instances))]
    NoInstance {
        /// Wanted.
        name: String,
        /// Those that exist.
        instances: Vec<String>,
    },
    /// Not root.
    #[error("reading `{path}` is not permitted: run natgw as root")]
    NotPermitted {
        /// What was to be read.
        path: PathBuf,
    },
    /// A map is not pinned.
    #[error(
        "instance `{name}` is incomplete: no map `{map}` in its pin directory; `natgw detach` removes the rest"
    )]
    Missing {
        /// Instance.
        name: String,
        /// Name of the map.
        map: &'static str,
    },
    /// The maps were not made by natgw.
    #[error(
        "map `META` of instance `{name}` was not made by natgw: magic number {found:#x}, expected {META_MAGIC:#x}"
    )]
    Foreign {
        /// Instance.
        name: String,
        /// Number found.
        found: u32,
    },
    /// Made by another version.
    #[error(
        "instance `{name}` has map layout {found}, this natgw reads layout {ABI_VERSION}: use the natgw that runs it"
    )]
    Version {
        /// Instance.
        name: String,
        /// Layout found.
        found: u32,
    },
    /// Same version by its number, but other sizes.
    #[error("map `{map}` of instance `{name}` does not have layout {ABI_VERSION}")]
    Layout {
        /// Instance.
        name: String,
        /// Name of the map.
        map: &'static str,
        /// Which size.
        source: LayoutError,
    },
    /// A read failed.
    #[error("reading map `{map}`")]
    Read {
        /// Name of the map.
        map: &'static str,
        /// From the kernel.
        source: io::Error,
    },
    /// Per-CPU read or pin failed.
    #[error("opening map `{map}`")]
    Open {
        /// Name of the map.
        map: &'static str,
        /// From the kernel.
        source: MapError,
    },
    /// Every attempt met a reload.
    #[error("the configuration of instance `{name}` changed {ATTEMPTS} times while it was read: try again")]
    Restless {
        /// Instance.
        name: String,
    },
}

fn existing(instances: &[String]) -> String {
    if instances.is_empty() {
        "there is none".to_owned()
    } else {
        format!("there is `{}`", instances.join("`, `"))
    }
}

/// What a pinned link attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentKind {
    /// The XDP program.
    Program,
    /// The guard, a TCX program.
    Guard,
    /// The program on TC ingress.
    Hold,
    /// None of these.
    Other,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the pin.
    pub pin: String,
    /// What it attaches.
    pub kind: AttachmentKind,
    /// Interface it is attached to; 0: the interface is gone.
    pub ifindex: u32,
}

/// Open maps of one instance.
#[derive(Debug)]
pub struct Tables {
    name: String,
    directory: PathBuf,
    meta: Meta,
}

impl Tables {
    /// Opens the instance `name`.
    ///
    /// # Errors
    ///
    /// [`TableError`]: no such instance, not permitted, or maps of another layout.
    pub fn open(name: &str) -> Result<Self, TableError> {
        let directory = Path::new(names::PIN_ROOT).join(name);
        match fs::metadata(&directory) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TableError::NotPermitted { path: directory });
            }
            Err(_) => {
                return Err(TableError::NoInstance { name: name.to_owned(), instances: instances() });
            }
        }
        let mut tables = Self { name: name.to_owned(), directory, meta: bytemuck::Zeroable::zeroed() };
        let meta: Meta = tables.single(names::META)?;
        if meta.magic != META_MAGIC {
            return Err(TableError::Foreign { name: name.to_owned(), found: meta.magic });
        }
        if meta.abi_version != ABI_VERSION {
            return Err(TableError::Version { name: name.to_owned(), found: meta.abi_version });
        }
        tables.meta = meta;
        Ok(tables)
    }

    /// Everything but flows and counters, of the bank in force.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn instance(&self) -> Result<Instance, TableError> {
        for _ in 0..ATTEMPTS {
            let control: Control = self.single(names::CONTROL)?;
            let instance = self.read(control)?;
            let after: Control = self.single(names::CONTROL)?;
            // The bank that was read is filled again only after the next flip.
            if (after.bank, after.generation) == (control.bank, control.generation) {
                return Ok(instance);
            }
        }
        Err(TableError::Restless { name: self.name.clone() })
    }

    fn read(&self, control: Control) -> Result<Instance, TableError> {
        // What is beyond the slots in use means nothing.
        let backends = control.backend_slots;
        let grants = self.bank::<Grant>(names::GRANTS, control, backends.saturating_mul(CLASSES))?;
        let sets = grants.iter().map(|grant| grant.own.max(grant.shared)).max().unwrap_or(0);
        Ok(Instance {
            name: self.name.clone(),
            now: clock::now(),
            meta: self.meta,
            control,
            table: self.single(names::TABLE)?,
            resets: self.single(names::RESET_COUNTS)?,
            sweep: self.array(names::SWEEP, SWEEP_SLOTS)?.pop().unwrap_or_default(),
            interfaces: self.array::<PortConfig>(names::PORTS, u32::MAX)?,
            backends: self.bank::<BackendInfo>(names::BACKEND_INFO, control, backends)?,
            backend_states: self.array::<BackendState>(names::BACKEND_STATE, backends)?,
            rules: self.bank::<Rule>(names::RULES, control, u32::MAX)?,
            frontends: self.bank::<Frontend>(names::FRONTEND_INFO, control, u32::MAX)?,
            grants,
            grant_states: self.array::<GrantState>(names::GRANT_STATE, backends.saturating_mul(CLASSES))?,
            sets: self.bank::<PortSet>(names::SETS, control, sets)?,
            quotas: self.array::<Quota>(names::QUOTA, backends.saturating_mul(2))?,
            policies: self.bank::<PolicyInfo>(names::POLICY_INFO, control, u32::MAX)?,
            policy_states: self.array::<PolicyState>(names::POLICY_STATE, u32::MAX)?,
            instances: self.instance_ips(control)?,
            held: waiting(&self.array::<HeldFragment>(names::HELD, u32::MAX)?, clock::now()),
        })
    }

    /// Instance IPs of the bank in force, with their backends, ascending.
    fn instance_ips(&self, control: Control) -> Result<Vec<([u8; 4], InstanceIp)>, TableError> {
        let mut found = Vec::new();
        let mut visit = |key: &InstanceKey, value: &InstanceIp| {
            if key.bank == control.bank {
                found.push((key.address, *value));
            }
        };
        let map = self.map::<InstanceKey, InstanceIp>(names::INSTANCES)?;
        map.for_each(&mut visit).map_err(|source| TableError::Read { map: names::INSTANCES, source })?;
        found.sort_unstable_by_key(|(address, _)| *address);
        Ok(found)
    }

    /// Visits the halves of all flows.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn for_each_half(&self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<(), TableError> {
        let map = self.map::<FlowKey, FlowEntry>(names::FLOWS)?;
        map.for_each(visit).map_err(|source| TableError::Read { map: names::FLOWS, source })
    }

    /// Which of `keys` are in the flow table, with their entries.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn halves(&self, keys: &[FlowKey]) -> Result<Vec<Option<FlowEntry>>, TableError> {
        let map = self.map::<FlowKey, FlowEntry>(names::FLOWS)?;
        let found: io::Result<_> = keys.iter().map(|key| map.get(key)).collect();
        found.map_err(|source| TableError::Read { map: names::FLOWS, source })
    }

    /// Counters of every CPU.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn counters(&self) -> Result<Vec<Counters>, TableError> {
        let open = |source| TableError::Open { map: names::COUNTERS, source };
        let map = Map::from_map_data(self.pin(names::COUNTERS)?).map_err(open)?;
        let array = PerCpuArray::<_, Counters>::try_from(map).map_err(open)?;
        let values = array.get(&0, 0).map_err(open)?;
        Ok(values.iter().copied().collect())
    }

    /// Pinned links: what keeps the programs attached.
    ///
    /// # Errors
    ///
    /// [`TableError::NotPermitted`] when the directory cannot be listed. A pin that is no link, or cannot be opened,
    /// counts as not attached.
    pub fn attachments(&self) -> Result<Vec<Attachment>, TableError> {
        let entries = fs::read_dir(&self.directory)
            .map_err(|_| TableError::NotPermitted { path: self.directory.clone() })?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Ok(pin) = entry.file_name().into_string() else { continue };
            if names::PINNED_MAPS.contains(&pin.as_str()) {
                continue;
            }
            let link = bpf::open_pin(&entry.path(), Access::Full);
            let info = link.and_then(|link| bpf::link_info(link.as_fd())).ok();
            let kind = match info.map(|info| info.kind) {
                Some(bpf::LINK_XDP) => AttachmentKind::Program,
                Some(bpf::LINK_TCX) if pin.starts_with(HOLD_LINK) => AttachmentKind::Hold,
                Some(bpf::LINK_TCX) => AttachmentKind::Guard,
                _ => AttachmentKind::Other,
            };
            found.push(Attachment { pin, kind, ifindex: info.map_or(0, |info| info.ifindex) });
        }
        found.sort_by(|a, b| a.pin.cmp(&b.pin));
        Ok(found)
    }

    fn pin(&self, map: &'static str) -> Result<MapData, TableError> {
        let path = self.directory.join(map);
        let fd = bpf::open_pin(&path, Access::ReadOnly).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT) => TableError::Missing { name: self.name.clone(), map },
            Some(libc::EPERM | libc::EACCES) => TableError::NotPermitted { path },
            _ => TableError::Read { map, source },
        })?;
        MapData::from_fd(fd).map_err(|source| TableError::Open { map, source })
    }

    fn map<K: Pod + Eq + Hash, V: Pod>(&self, map: &'static str) -> Result<TypedMap<K, V>, TableError> {
        TypedMap::new(self.pin(map)?).map_err(|source| {
            let name = self.name.clone();
            TableError::Layout { name, map, source }
        })
    }

    /// The first `limit` values of an array.
    fn array<V: Pod>(&self, map: &'static str, limit: u32) -> Result<Vec<V>, TableError> {
        let typed = self.map::<u32, V>(map)?;
        let limit = limit.min(typed.max_entries());
        let mut values = vec![V::zeroed(); limit as usize];
        let mut visit = |index: &u32, value: &V| {
            if let Some(place) = values.get_mut(*index as usize) {
                *place = *value;
            }
        };
        typed.for_first(limit, &mut visit).map_err(|source| TableError::Read { map, source })?;
        Ok(values)
    }

    /// The first `limit` values of a doubled array, as they are in force.
    fn bank<V: Pod>(&self, map: &'static str, control: Control, limit: u32) -> Result<Vec<V>, TableError> {
        let values = self.array(map, limit.saturating_mul(BANKS))?;
        let bank = (control.bank % BANKS) as usize;
        Ok(values.into_iter().skip(bank).step_by(BANKS as usize).collect())
    }

    /// The only value of an array of one.
    fn single<V: Pod>(&self, map: &'static str) -> Result<V, TableError> {
        let found = self.map::<u32, V>(map)?.get(&0).map_err(|source| TableError::Read { map, source })?;
        found.ok_or_else(|| TableError::Missing { name: self.name.clone(), map })
    }
}

/// Names of the instances on this host, sorted.
#[must_use]
pub fn instances() -> Vec<String> {
    let Ok(entries) = fs::read_dir(names::PIN_ROOT) else { return Vec::new() };
    let mut found: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_exists_and_what_to_do() {
        let error = |instances: &[&str]| {
            let instances = instances.iter().map(ToString::to_string).collect();
            TableError::NoInstance { name: "web".to_owned(), instances }.to_string()
        };
        assert_eq!(error(&[]), "no instance `web` on this host: there is none; start one with `natgw run`");
        assert_eq!(
            error(&["default", "lab"]),
            "no instance `web` on this host: there is `default`, `lab`; start one with `natgw run`"
        );
        let version = TableError::Version { name: "default".to_owned(), found: 7 };
        assert_eq!(
            version.to_string(),
            "instance `default` has map layout 7, this natgw reads layout 4: use the natgw that runs it"
        );
    }

    #[test]
    fn an_instance_that_does_not_exist_is_not_opened() {
        let error = Tables::open("natgw-no-such-instance").expect_err("nobody makes it");
        assert!(
            matches!(error, TableError::NoInstance { .. } | TableError::NotPermitted { .. }),
            "{error:?}"
        );
    }
}
