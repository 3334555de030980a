// SPDX-License-Identifier: MIT OR Apache-2.0
//! bpf-linker, built into target/tools against an LLVM that reads the compiler's bitcode.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{apt, toolchain::Toolchain};
use crate::{
    exec::{exec_shown, find_program, note, output, step},
    paths,
};

/// Names the bpf-linker to use, past every search.
const OVERRIDE: &str = "NATGW_BPF_LINKER";
/// The release that links against a system LLVM, and the majors it knows.
const VERSION: &str = "0.13.0";
const SYSTEM_MAJORS: [u32; 3] = [21, 22, 23];
/// The last release that can borrow the compiler's own LLVM, and the majors it knows.
const BORROWING_VERSION: &str = "0.10.3";
const BORROWED_MAJORS: [u32; 3] = [20, 21, 22];
/// Newest LLVM that any of the above reads.
pub(crate) const MAX_LLVM: u32 = SYSTEM_MAJORS[SYSTEM_MAJORS.len() - 1];

/// A linker that is in place.
pub(crate) struct Installed {
    pub(crate) linker: PathBuf,
    /// To be put in LD_LIBRARY_PATH when linking.
    pub(crate) library_path: Option<PathBuf>,
}

/// An LLVM with headers, found through its llvm-config.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SystemLlvm {
    major: u32,
    version: String,
    /// Directory of llvm-config, to be first on PATH while bpf-linker is built.
    bin: PathBuf,
}

/// Which bpf-linker to build against which LLVM.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// An LLVM that is installed, with its headers.
    System(SystemLlvm),
    /// The compiler's own shared LLVM: needs no package and no root.
    Borrow(u32),
    /// An LLVM of that major, installed from Debian packages first.
    Packages(u32),
}

/// Puts a fitting bpf-linker in place; quick when it is there and was built for this very compiler.
pub(crate) fn ensure(toolchain: &Toolchain) -> Result<Installed> {
    if let Some(linker) = std::env::var_os(OVERRIDE).map(PathBuf::from) {
        output(Command::new(&linker).arg("--version")).with_context(|| {
            format!("{OVERRIDE}=`{}` is no working bpf-linker: unset it or correct it", linker.display())
        })?;
        return Ok(Installed { linker, library_path: None });
    }
    let borrowed = borrowed_llvm(&toolchain.sysroot);
    let mut plan = choose(toolchain.llvm_major(), &system_llvms(), borrowed, |major| {
        apt::candidate(&format!("llvm-{major}-dev")).is_some()
    })
    .with_context(|| {
        format!(
            "no LLVM {0} or newer for bpf-linker, which has to read the bitcode of {toolchain}: install LLVM's \
             development files (Debian: `apt-get install llvm-{0}-dev`) or use a rustup nightly with LLVM {1} or older",
            toolchain.llvm_major(),
            BORROWED_MAJORS[BORROWED_MAJORS.len() - 1],
        )
    })?;
    if let Plan::Packages(major) = plan {
        plan = install_llvm(major)?;
    }
    let library_path = matches!(plan, Plan::Borrow(_)).then(|| toolchain.sysroot.join("lib"));
    let linker = paths::tools().join("bin/bpf-linker");
    let stamp = paths::tools().join("bpf-linker.stamp");
    let wanted = stamp_text(&plan, toolchain);
    let fresh = fs::read_to_string(&stamp).is_ok_and(|had| had == wanted) && linker.exists();
    if !fresh {
        build(&plan)?;
        fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))?;
        discard_linked_object()?;
    }
    Ok(Installed { linker, library_path })
}

/// An installed LLVM first (nothing to fetch), then the compiler's own (no root), then packages.
fn choose(
    wanted: u32,
    system: &[SystemLlvm],
    borrowed: Option<u32>,
    on_offer: impl Fn(u32) -> bool,
) -> Option<Plan> {
    let fits = |major: u32| major >= wanted && SYSTEM_MAJORS.contains(&major);
    let installed = system.iter().filter(|llvm| fits(llvm.major)).min_by_key(|llvm| llvm.major);
    let borrowed = borrowed.filter(|major| *major >= wanted && BORROWED_MAJORS.contains(major));
    let packaged = || SYSTEM_MAJORS.into_iter().find(|major| fits(*major) && on_offer(*major));
    installed
        .cloned()
        .map(Plan::System)
        .or(borrowed.map(Plan::Borrow))
        .or_else(|| packaged().map(Plan::Packages))
}

/// Everything that makes a built linker unfit for another compiler or LLVM.
fn stamp_text(plan: &Plan, toolchain: &Toolchain) -> String {
    let llvm = match plan {
        Plan::System(llvm) => {
            format!("bpf-linker {VERSION}, LLVM {} of {}", llvm.version, llvm.bin.display())
        }
        Plan::Borrow(major) | Plan::Packages(major) => {
            format!("bpf-linker {BORROWING_VERSION}, LLVM {major} of {}", toolchain.sysroot.display())
        }
    };
    format!("{llvm}\nfor {toolchain}\n")
}

/// Installed LLVMs that bring llvm-config, which is what bpf-linker's build asks.
fn system_llvms() -> Vec<SystemLlvm> {
    let versioned =
        SYSTEM_MAJORS.map(|major| PathBuf::from(format!("/usr/lib/llvm-{major}/bin/llvm-config")));
    versioned
        .into_iter()
        .filter(|config| config.exists())
        .chain(find_program("llvm-config"))
        .filter_map(ask)
        .collect()
}

fn ask(config: PathBuf) -> Option<SystemLlvm> {
    let version = output(Command::new(&config).arg("--version")).ok()?.trim().to_owned();
    let headers = output(Command::new(&config).arg("--includedir")).ok()?;
    let complete = Path::new(headers.trim()).join("llvm-c/Core.h").exists();
    let major = version.split('.').next()?.parse().ok()?;
    complete.then(|| SystemLlvm {
        major,
        version,
        bin: config.parent().map(Path::to_owned).unwrap_or_default(),
    })
}

/// Major of the shared LLVM that rustup's compilers bring along; distributions' compilers have none.
fn borrowed_llvm(sysroot: &Path) -> Option<u32> {
    fs::read_dir(sysroot.join("lib"))
        .ok()?
        .flatten()
        .find_map(|entry| parse_soname(entry.file_name().to_str()?))
}

/// `libLLVM.so.22.1-rust-1.97.0-nightly` → 22.
fn parse_soname(name: &str) -> Option<u32> {
    name.strip_prefix("libLLVM.so.")?.split(['.', '-']).next()?.parse().ok()
}

fn install_llvm(major: u32) -> Result<Plan> {
    step(&format!("installing LLVM {major}'s development files"));
    let llvm = format!("llvm-{major}-dev");
    let polly = format!("libpolly-{major}-dev");
    let mut packages = vec![llvm.as_str(), "zlib1g-dev", "libzstd-dev", "g++"];
    // Some distributions build LLVM without Polly.
    if apt::candidate(&polly).is_some() {
        packages.push(&polly);
    }
    apt::install(&packages, "bpf-linker is built against LLVM")?;
    let found = system_llvms().into_iter().find(|llvm| llvm.major == major);
    found.map(Plan::System).with_context(|| {
        format!(
            "{llvm} is installed but /usr/lib/llvm-{major}/bin/llvm-config does not answer: reinstall {llvm}"
        )
    })
}

fn build(plan: &Plan) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(paths::is_own_package) {
            command.env_remove(name);
        }
    }
    command.args(["install", "--quiet", "--force", "--locked", "bpf-linker", "--no-default-features"]);
    let tools = paths::tools();
    command.arg("--root").arg(&tools).env("CARGO_TARGET_DIR", tools.join("build"));
    match plan {
        Plan::System(llvm) => {
            step(&format!(
                "building bpf-linker {VERSION} against LLVM {} into target/tools (1-2 minutes)",
                llvm.version
            ));
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(llvm.bin.clone()).chain(std::env::split_paths(&path));
            command.args(["--version", VERSION, "--features", &format!("llvm-{}", llvm.major)]);
            command.env("PATH", std::env::join_paths(path)?);
        }
        Plan::Borrow(major) => {
            step(&format!(
                "building bpf-linker {BORROWING_VERSION} on the compiler's own LLVM {major} into target/tools (1-2 minutes)"
            ));
            command.args(["--version", BORROWING_VERSION, "--features", &format!("rust-llvm-{major}")]);
        }
        Plan::Packages(major) => {
            bail!("LLVM {major} was to be installed first: run `cargo xtask setup` again")
        }
    }
    exec_shown(&mut command).context(
        "bpf-linker did not build: see the compiler's message above, or name one you have in NATGW_BPF_LINKER",
    )?;
    note("done; it is rebuilt only when the compiler or LLVM changes");
    // 200 MB of intermediate files that nothing reads again.
    fs::remove_dir_all(tools.join("build")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Ok(())
}

/// Makes cargo link the object again: it does not see that the linker has changed.
fn discard_linked_object() -> Result<()> {
    let object = paths::bpf_target().join("bpfel-unknown-none/release/natgw-bpf");
    match fs::remove_file(&object) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", object.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llvm(major: u32) -> SystemLlvm {
        SystemLlvm {
            major,
            version: format!("{major}.1.0"),
            bin: format!("/usr/lib/llvm-{major}/bin").into(),
        }
    }

    #[test]
    fn an_installed_llvm_comes_first_then_the_compilers_own_then_packages() {
        let all = |_| true;
        assert_eq!(choose(22, &[llvm(23), llvm(22)], Some(22), all), Some(Plan::System(llvm(22))));
        assert_eq!(choose(22, &[], Some(22), all), Some(Plan::Borrow(22)));
        assert_eq!(choose(22, &[], None, all), Some(Plan::Packages(22)));
    }

    #[test]
    fn an_llvm_older_than_the_compilers_never_serves() {
        assert_eq!(choose(22, &[llvm(21), llvm(14)], None, |major| major == 21), None);
        assert_eq!(choose(22, &[llvm(21)], None, |major| major == 23), Some(Plan::Packages(23)));
        assert_eq!(choose(23, &[], Some(23), |_| false), None);
        assert_eq!(choose(24, &[llvm(24)], Some(24), |_| true), None);
    }

    #[test]
    fn the_compilers_llvm_is_read_from_its_file_name() {
        assert_eq!(parse_soname("libLLVM.so.22.1-rust-1.97.0-nightly"), Some(22));
        assert_eq!(parse_soname("libLLVM-22-rust-1.97.0-nightly.so"), None);
        assert_eq!(parse_soname("librustc_driver-1.so"), None);
    }
}
