// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels of the distribution: found and downloaded by apt with a state of its own below target/, unpacked, never
//! installed. The machine's package lists, its installed packages and its /boot are not touched.
use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    exec::{exec_within, find_program, note, output},
    paths,
};

/// Small kernels made for virtual machines: everything that the bench needs, and few drivers.
const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";
/// From Linux 7 on Debian's linux-image is empty and depends on these.
const PARTS: [&str; 2] = ["linux-binary-", "linux-modules-"];
/// Longest run of apt-get.
const APT_LIMIT: Duration = Duration::from_secs(300);
const DPKG_LIMIT: Duration = Duration::from_secs(120);

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Name of its package.
    pub(crate) package: String,
    pub(crate) image: PathBuf,
    /// The directory `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

/// apt with package lists and archives of its own.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
    /// A sources.list instead of the machine's own sources.
    sources: Option<PathBuf>,
}

impl Apt {
    /// Brings the package lists; the sources are the machine's own unless others are named.
    pub(crate) fn update(sources: Option<&Path>) -> Result<Self> {
        for (program, package) in [("apt-get", "apt"), ("dpkg", "dpkg")] {
            if find_program(program).is_none() {
                bail!(
                    "the kernels of `bench vm` come from Debian's packages, and there is no `{program}`: \
                     install {package}, or run the bench on a Debian machine"
                );
            }
        }
        // Lists of other sources would stand in for those of these.
        let directory = paths::target().join(if sources.is_some() { "vm/apt-sources" } else { "vm/apt" });
        let sources =
            sources.map(fs::canonicalize).transpose().context("cannot find the file of --sources")?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        }
        // An empty list of installed packages: what the machine has is no matter.
        fs::write(directory.join("status"), "").context("cannot write apt's list of installed packages")?;
        let apt = Self { directory, sources };
        let mut update = apt.command("apt-get");
        update.args(["update", "--quiet", "--quiet"]).stdout(Stdio::null());
        if let Err(error) = exec_within(&mut update, APT_LIMIT) {
            note(&format!("{error}; going on with the lists as they are"));
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        let mut set = |key: &str, value: &str| {
            command.args(["-o", &format!("{key}={value}")]);
        };
        set("Dir::State::lists", &self.directory.join("lists").to_string_lossy());
        set("Dir::Cache", &self.directory.join("cache").to_string_lossy());
        set("Dir::State::status", &self.directory.join("status").to_string_lossy());
        set("Dir::Etc::preferences", "/dev/null");
        set("Dir::Etc::preferencesparts", "/dev/null");
        // As root, apt would download as another user, who may not write below target/.
        set("APT::Sandbox::User", "");
        if let Some(sources) = &self.sources {
            set("Dir::Etc::sourcelist", &sources.to_string_lossy());
            set("Dir::Etc::sourceparts", "/dev/null");
        }
        command
    }

    /// The package for a key such as `6.12`, or for the name of a package; the newest one without either.
    pub(crate) fn choose(&self, key: Option<&str>) -> Result<String> {
        let names = output(self.command("apt-cache").args(["pkgnames", PREFIX]))?;
        let kernels = kernels(&names);
        choose(&kernels, key).map(str::to_owned).with_context(|| {
            let mut versions: Vec<&str> = kernels.iter().map(|name| version(name)).collect();
            versions.dedup();
            format!(
                "no package `{PREFIX}*{SUFFIX}` {}; on offer: {}. Configure another suite \
                 (6.12 for Debian 12 is in bookworm-security), or name a sources.list with --sources",
                key.map_or_else(String::new, |key| format!("for `{key}`")),
                if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
            )
        })
    }

    /// Downloads and unpacks a kernel, unless it is there already.
    pub(crate) fn fetch(&self, package: &str) -> Result<Kernel> {
        let directory = paths::target().join("vm/kernels").join(package);
        if let Ok(kernel) = find(package, &directory) {
            return Ok(kernel);
        }
        let fresh = paths::target().join("vm/kernels").join(format!("{package}.new"));
        let _not_there = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh).with_context(|| format!("cannot make `{}`", fresh.display()))?;
        self.unpack(package, &fresh)?;
        if find(package, &fresh).is_err() {
            for part in PARTS {
                self.unpack(&package.replacen(PREFIX, part, 1), &fresh)?;
            }
        }
        find(package, &fresh)?;
        let _not_there = fs::remove_dir_all(&directory);
        fs::rename(&fresh, &directory).with_context(|| format!("cannot rename `{}`", fresh.display()))?;
        find(package, &directory)
    }

    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        download.args(["download", "--quiet", "--quiet", package]).current_dir(to).stdout(Stdio::null());
        exec_within(&mut download, APT_LIMIT).with_context(|| {
            format!("cannot download {package}: see above, and check the package sources")
        })?;
        for entry in fs::read_dir(to)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                exec_within(Command::new("dpkg").arg("-x").arg(&path).arg(to), DPKG_LIMIT)?;
                fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Where image and modules are differs from version to version.
fn find(package: &str, directory: &Path) -> Result<Kernel> {
    for modules in ["usr/lib/modules", "lib/modules"].map(|place| directory.join(place)) {
        let Ok(mut entries) = fs::read_dir(&modules) else { continue };
        let Some(Ok(entry)) = entries.next() else { continue };
        let release = entry.file_name();
        let boot = directory.join(format!("boot/vmlinuz-{}", release.display()));
        let images = [boot, entry.path().join("vmlinuz")];
        if let Some(image) = images.into_iter().find(|path| path.is_file()) {
            return Ok(Kernel { package: package.to_owned(), image, modules: entry.path() });
        }
    }
    bail!("`{}` holds no kernel with modules", directory.display())
}

/// Kernels among package names, oldest first; neither what only depends on them nor debugging symbols.
fn kernels(names: &str) -> Vec<&str> {
    let mut kernels: Vec<&str> = names
        .lines()
        .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
        .filter(|name| numbers(version(name)).len() >= 3)
        .collect();
    kernels.sort_by(|a, b| compare(version(a), version(b)));
    kernels
}

fn choose<'a>(kernels: &[&'a str], key: Option<&str>) -> Option<&'a str> {
    let wanted = |name: &&&str| match key {
        None => true,
        Some(key) => {
            **name == key || version(name).strip_prefix(key).is_some_and(|rest| !starts_with_digit(rest))
        }
    };
    kernels.iter().rev().find(wanted).copied()
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn version(name: &str) -> &str {
    name.trim_start_matches(PREFIX).trim_end_matches(SUFFIX)
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn compare(a: &str, b: &str) -> Ordering {
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "linux-image-6.12.107+deb12-cloud-amd64-unsigned\nlinux-image-6.1.0-56-cloud-amd64\n\
        linux-image-cloud-amd64\nlinux-image-6.12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64\n\
        linux-image-6.12.99+deb12-cloud-amd64\nlinux-image-6.1.0-9-cloud-amd64\n\
        linux-image-6.12.118+deb12-cloud-amd64-dbg\nlinux-image-6.12.118+deb12-amd64\n";

    #[test]
    fn kernels_are_sorted_by_number_without_metapackages_and_symbols() {
        let expected = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ];
        assert_eq!(kernels(NAMES), expected);
    }

    #[test]
    fn the_newest_of_a_key_is_chosen() {
        let kernels = kernels(NAMES);
        let chosen = |key| choose(&kernels, key).map(version);
        assert_eq!(chosen(None), Some("6.12.117+deb12"));
        assert_eq!(chosen(Some("6.1")), Some("6.1.0-56"));
        assert_eq!(chosen(Some("6.12")), Some("6.12.117+deb12"));
        assert_eq!(chosen(Some("linux-image-6.1.0-9-cloud-amd64")), Some("6.1.0-9"));
        assert_eq!(chosen(Some("5.10")), None);
    }
}
