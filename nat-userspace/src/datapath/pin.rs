// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where an instance keeps things, and whether what is pinned there may be adopted.
//!
//! aya 0.14 reopens a pinned map by name without comparing it with the object's definition. Adopting a map of
//! another shape would make the data path read garbage, so [`examine`] compares before anything is loaded.

use std::{
    fs,
    hash::Hash,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo},
};
use nat_common::abi::{
    ABI_VERSION,
    config::{META_MAGIC, Meta},
    names,
};

use super::{
    batch::TypedMap,
    shape::{compare, shapes},
};

/// One gateway on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
}

impl Instance {
    /// The instance with this name.
    ///
    /// # Errors
    ///
    /// When the name cannot be a file name below bpffs, which reserves the dot.
    pub fn new(name: &str) -> Result<Self> {
        let fits = (1..=32).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        ensure!(fits, "instance name `{name}` is not 1 to 32 letters, digits, `-` and `_`");
        Ok(Self { name: name.to_owned() })
    }

    /// Name as configured.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of its pins.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(names::PIN_ROOT).join(&self.name)
    }

    /// Pin of a map.
    #[must_use]
    pub fn map(&self, map: &str) -> PathBuf {
        self.pins().join(map)
    }

    /// Pin of the link that holds the XDP program on `device`.
    #[must_use]
    pub fn xdp_link(&self, device: &str) -> PathBuf {
        self.pins().join(format!("{XDP_LINK}{}", escape(device)))
    }

    /// Pin of the link that holds the guard on `interface`.
    #[must_use]
    pub fn guard_link(&self, interface: &str) -> PathBuf {
        self.pins().join(format!("{GUARD_LINK}{}", escape(interface)))
    }

    /// Pin of the link that holds the program on TC ingress of `interface`.
    #[must_use]
    pub fn hold_link(&self, interface: &str) -> PathBuf {
        self.pins().join(format!("{HOLD_LINK}{}", escape(interface)))
    }

    /// Control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        Path::new(RUN_DIRECTORY).join(format!("{}.sock", self.name))
    }

    /// File that a running daemon holds locked; contains its process number.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        Path::new(RUN_DIRECTORY).join(format!("{}.lock", self.name))
    }

    /// What has been changed on the host and has to be put back.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        Path::new(RUN_DIRECTORY).join(format!("{}.state", self.name))
    }

    /// Devices with a pinned XDP link.
    ///
    /// # Errors
    ///
    /// When the pin directory exists and cannot be read.
    pub fn xdp_devices(&self) -> Result<Vec<String>> {
        self.pinned(XDP_LINK)
    }

    /// Interfaces with a pinned guard link.
    ///
    /// # Errors
    ///
    /// As [`Self::xdp_devices`].
    pub fn guard_interfaces(&self) -> Result<Vec<String>> {
        self.pinned(GUARD_LINK)
    }

    /// Interfaces with a pinned link on TC ingress.
    ///
    /// # Errors
    ///
    /// As [`Self::xdp_devices`].
    pub fn hold_interfaces(&self) -> Result<Vec<String>> {
        self.pinned(HOLD_LINK)
    }

    fn pinned(&self, prefix: &str) -> Result<Vec<String>> {
        let mut found: Vec<String> = list(&self.pins())?
            .iter()
            .filter_map(|name| name.strip_prefix(prefix))
            .map(|name| name.replace(ESCAPED_DOT, "."))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Makes the directory of its pins; false: it is there already.
    ///
    /// # Errors
    ///
    /// When bpffs refuses.
    pub fn make_pins(&self) -> Result<bool> {
        let path = self.pins();
        if path.is_dir() {
            return Ok(false);
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("making pin directory `{}`", path.display()))?;
        Ok(true)
    }

    /// Removes every pin and the directory. What only the pins kept alive ends here: links detach, maps are freed.
    /// Links go before maps, so that no program runs on half-removed state. Returns what was removed.
    ///
    /// # Errors
    ///
    /// When bpffs refuses; what was removed until then stays removed.
    pub fn remove_pins(&self) -> Result<Vec<String>> {
        let directory = self.pins();
        let mut removed = list(&directory)?;
        removed.sort_by_key(|name| (rank(name), name.clone()));
        for name in &removed {
            let path = directory.join(name);
            fs::remove_file(&path).with_context(|| format!("removing pin `{}`", path.display()))?;
        }
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing pin directory `{}`", directory.display()))
            }
            _ => Ok(removed),
        }
    }

    /// Opens a pinned array.
    ///
    /// # Errors
    ///
    /// When it is not pinned, not an array, or its values are of another size.
    pub fn array<V: Pod>(&self, map: &str) -> Result<Array<MapData, V>> {
        Array::try_from(self.open(map)?).with_context(|| format!("opening map `{map}`"))
    }

    /// Opens a pinned hash map.
    ///
    /// # Errors
    ///
    /// As [`Self::array`].
    pub fn hash<K: Pod, V: Pod>(&self, map: &str) -> Result<HashMap<MapData, K, V>> {
        HashMap::try_from(self.open(map)?).with_context(|| format!("opening map `{map}`"))
    }

    /// Opens a pinned map for reading and writing in batches.
    ///
    /// # Errors
    ///
    /// When it is not pinned, or its keys or values are of another size.
    pub fn typed<K: bytemuck::Pod + Eq + Hash, V: bytemuck::Pod>(&self, map: &str) -> Result<TypedMap<K, V>> {
        TypedMap::new(self.data(map)?).with_context(|| format!("opening map `{map}`"))
    }

    /// Opens a pinned map of any kind.
    ///
    /// # Errors
    ///
    /// As [`Self::array`].
    pub fn open(&self, map: &str) -> Result<Map> {
        Map::from_map_data(self.data(map)?)
            .with_context(|| format!("pin `{}` is of an unknown kind", self.map(map).display()))
    }

    fn data(&self, map: &str) -> Result<MapData> {
        let path = self.map(map);
        MapData::from_pin(&path).with_context(|| format!("opening pin `{}`", path.display()))
    }
}

const RUN_DIRECTORY: &str = "/run/natgw";
const XDP_LINK: &str = "link_";
const GUARD_LINK: &str = "guard_";
/// Beginning of the names of pins of links on TC ingress.
pub(super) const HOLD_LINK: &str = "hold_";
/// bpffs refuses dots in names, interface names may contain dots but no colons (`dev_valid_name`).
const ESCAPED_DOT: &str = ":";

fn escape(interface: &str) -> String {
    interface.replace('.', ESCAPED_DOT)
}

/// XDP first, then the TC programs, then maps: while XDP is there the guard has to be.
fn rank(name: &str) -> u8 {
    match name {
        _ if name.starts_with(XDP_LINK) => 0,
        _ if name.starts_with(GUARD_LINK) || name.starts_with(HOLD_LINK) => 1,
        _ => 2,
    }
}

fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("reading pin directory `{}`", directory.display()))?,
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("reading pin directory `{}`", directory.display()))
}

/// What is already there under an instance's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing.
    Nothing,
    /// Pins that a start left when it was interrupted before it attached anything.
    Unfinished,
    /// State that this program can go on with.
    Adoptable(Meta),
}

/// Looks at an instance's pins and compares each map with what the object wants.
///
/// # Errors
///
/// When there is state of another layout: it is never guessed at, nor removed while it translates.
pub fn examine(instance: &Instance, object: &[u8]) -> Result<Existing> {
    if list(&instance.pins())?.is_empty() {
        return Ok(Existing::Nothing);
    }
    let meta = match instance.array::<Meta>(names::META) {
        Ok(map) => map.get(&0, 0).unwrap_or_default(),
        Err(_) => Meta::default(),
    };
    if meta == Meta::default() && instance.xdp_devices()?.is_empty() {
        return Ok(Existing::Unfinished);
    }
    let remedy = remedy(instance);
    ensure!(
        meta.magic == META_MAGIC,
        "pin `{}` is not natgw's: found magic {:#010x}, expected {META_MAGIC:#010x}; {remedy}",
        instance.map(names::META).display(),
        meta.magic,
    );
    ensure!(
        meta.abi_version == ABI_VERSION,
        "state of instance `{}` has layout version {}, this natgw has {ABI_VERSION}; {remedy}",
        instance.name,
        meta.abi_version,
    );
    for (name, wanted) in shapes(object, meta.into())? {
        let path = instance.map(name);
        let info = MapInfo::from_pin(&path)
            .with_context(|| format!("map `{name}` is not pinned at `{}`; {remedy}", path.display()))?;
        compare(name, &wanted, &info).map_err(|mismatch| anyhow!("{mismatch:#}; {remedy}"))?;
    }
    Ok(Existing::Adoptable(meta))
}

fn remedy(instance: &Instance) -> String {
    format!(
        "`natgw detach --name {}` ends translation and removes the old state, then start again",
        instance.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_that_bpffs_takes() {
        let instance = Instance::new("edge-1").expect("valid");
        assert_eq!(instance.xdp_link("lan0"), Path::new("/sys/fs/bpf/natgw/edge-1/link_lan0"));
        assert_eq!(instance.guard_link("wan0.100"), Path::new("/sys/fs/bpf/natgw/edge-1/guard_wan0:100"));
        assert_eq!(instance.socket(), Path::new("/run/natgw/edge-1.sock"));
        for name in ["", ".", "..", "a.b", "a/b", "ä", &"x".repeat(33)] {
            assert!(Instance::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn links_are_removed_before_what_they_use() {
        let mut names = ["FLOWS", "guard_wan0", "link_lan0", "META"];
        names.sort_by_key(|name| rank(name));
        assert_eq!(names[..2], ["link_lan0", "guard_wan0"]);
    }
}
