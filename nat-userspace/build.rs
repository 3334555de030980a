// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts the BPF object where `include_bytes!` finds it; an empty file stands for "built without".
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Set by `cargo xtask build`; otherwise the object of the last such build in this checkout is taken.
const VARIABLE: &str = "NATGW_BPF_OBJECT";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let named = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    let object = named.clone().unwrap_or_else(last_built);
    if named.is_none() && !object.exists() {
        // Cargo reruns this script on every build while a watched file is missing, so an empty one is
        // left to watch. Failing (a read-only source tree) costs only those reruns.
        let _best_effort =
            object.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&object, b""));
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Err(error) if named.is_some() => {
            let text = format!("{VARIABLE} names `{}`, which cannot be read: {error}", object.display());
            return Err(io::Error::new(error.kind(), text));
        }
        read => read.unwrap_or_default(),
    };
    fs::write(directory("OUT_DIR")?.join("natgw.bpf.o"), bytes)
}

fn last_built() -> PathBuf {
    let manifest = directory("CARGO_MANIFEST_DIR").unwrap_or_default();
    manifest.parent().unwrap_or(Path::new(".")).join("target/bpf/natgw.bpf.o")
}

fn directory(name: &str) -> io::Result<PathBuf> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("cargo did not set {name}")))
}
