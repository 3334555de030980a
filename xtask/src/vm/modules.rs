// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel modules with what they depend on, in the order in which they can be loaded. Debian makes modules.dep when a
//! kernel is installed, so that of an unpacked one is read from the modules themselves.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// One module, decompressed.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The wanted modules and their dependencies, those first that others need. What this kernel has built in, or not at
/// all, has no file and is left out; the guest says when it misses something.
pub(crate) fn collect(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let files = files(directory)?;
    let mut needs = BTreeMap::new();
    let mut bytes = BTreeMap::new();
    let mut waiting: Vec<String> = wanted.iter().map(|name| canonical(name)).collect();
    while let Some(name) = waiting.pop() {
        let Some(file) = files.get(&name) else { continue };
        if needs.contains_key(&name) {
            continue;
        }
        let module = read(file)?;
        let dependencies =
            dependencies(&module).with_context(|| format!("cannot read `{}`", file.display()))?;
        waiting.extend(dependencies.iter().cloned());
        needs.insert(name.clone(), dependencies);
        bytes.insert(name, module);
    }
    let order = order(&needs)?;
    Ok(order.into_iter().filter_map(|name| bytes.remove(&name).map(|bytes| Module { name, bytes })).collect())
}

/// Module name → file, compressed or not.
fn files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(&place).with_context(|| format!("cannot list `{}`", place.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
                found.insert(canonical(name), entry.path());
            }
        }
    }
    Ok(found)
}

/// File names have hyphens where module names have underscores, or not.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(file).with_context(|| format!("cannot read `{}`", file.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _other => bail!("`{}` is neither .ko nor .ko.xz nor .ko.zst", file.display()),
    };
    let output = Command::new(program)
        .args(["--decompress", "--stdout"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("cannot start `{program}`: install the package {program}-utils or {program}")
        })?;
    if !output.status.success() {
        bail!("{program} cannot decompress `{}`: {}", file.display(), output.status);
    }
    Ok(output.stdout)
}

/// Names after `depends=` and `softdep=pre:`.
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("it is no ELF file")?;
    let section = file.section_by_name(".modinfo").context("it has no section .modinfo")?;
    Ok(parse(section.data().context("section .modinfo cannot be read")?))
}

fn parse(modinfo: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in modinfo.split(|byte| *byte == 0).map(String::from_utf8_lossy) {
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(canonical));
        } else if let Some(list) = entry.strip_prefix("softdep=").and_then(|list| list.split_once("pre:")) {
            let before_post = list.1.split("post:").next().unwrap_or_default();
            names.extend(before_post.split_whitespace().map(canonical));
        }
    }
    names
}

/// Every module after those that it needs; a circle is an error.
fn order(needs: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    let mut done = BTreeSet::new();
    let mut order = Vec::new();
    while order.len() < needs.len() {
        let before = order.len();
        for (name, dependencies) in needs {
            let ready = |other: &String| done.contains(other) || !needs.contains_key(other);
            if !done.contains(name) && dependencies.iter().all(ready) {
                done.insert(name.clone());
                order.push(name.clone());
            }
        }
        if order.len() == before {
            let left: Vec<&str> =
                needs.keys().filter(|name| !done.contains(*name)).map(String::as_str).collect();
            bail!("modules depend on each other in a circle: {}", left.join(", "));
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let modinfo =
            b"license=GPL\0depends=nf-tables,nf_nat\0\0softdep=pre: crc32c algo-x post: late\0intree=Y\0";
        assert_eq!(parse(modinfo), ["nf_tables", "nf_nat", "crc32c", "algo_x"]);
        assert!(parse(b"depends=\0softdep=post: late\0").is_empty());
    }

    #[test]
    fn every_module_comes_after_what_it_needs() {
        let needs = |pairs: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            pairs.iter().map(|(name, others)| ((*name).to_owned(), owned(others))).collect()
        };
        let sorted =
            order(&needs(&[("a", &["c", "built_in"]), ("b", &["a"]), ("c", &[]), ("d", &["b", "c"])]));
        assert_eq!(sorted.expect("no circle"), ["c", "a", "b", "d"]);
        let error = order(&needs(&[("a", &["b"]), ("b", &["a"]), ("c", &[])])).expect_err("a circle");
        assert_eq!(error.to_string(), "modules depend on each other in a circle: a, b");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(dependencies(b"\x7fELF").is_err());
    }
}
