// SPDX-License-Identifier: MIT OR Apache-2.0
//! A Rust toolchain that can compile `core` for a BPF target: one that has the library sources.
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{apt, linker};
use crate::exec::{exec_within, find_program, note, output, step};

/// Names the compiler to use, past every search.
pub(crate) const OVERRIDE: &str = "NATGW_BPF_RUSTC";
/// What rustup is asked for. Pinned: a floating nightly may bring an LLVM that no bpf-linker reads yet.
const NIGHTLY: &str = "nightly-2026-05-20";
/// Oldest usable release: nat-common's own rust-version, newer than what aya-ebpf (1.87) asks for.
const MIN_RUSTC: Version = (1, 95, 0);
/// Where distributions put a compiler that has its sources beside it.
const SYSTEM_RUSTC: [&str; 2] = ["/usr/bin/rustc", "/usr/local/bin/rustc"];
/// Debian's matching sets of compiler, cargo and sources; the web browsers' set is the newer one.
const DEBIAN_SETS: [[&str; 3]; 2] =
    [["rustc-web", "cargo-web", "rust-web-src"], ["rustc", "cargo", "rust-src"]];
/// rustup downloads some 250 MB; beyond this it is not going to arrive.
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);

type Version = (u32, u32, u32);

/// Where a toolchain came from, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Rustup,
    System,
}

/// A compiler that answered, with what decides whether it will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) sysroot: PathBuf,
    pub(crate) rustc: PathBuf,
    release: String,
    version: Version,
    nightly: bool,
    /// Full LLVM version, as in `22.1.8`.
    pub(crate) llvm: String,
    origin: Origin,
    has_sources: bool,
    has_cargo: bool,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (rustc {}, LLVM {})", self.rustc.display(), self.release, self.llvm)
    }
}

impl Toolchain {
    pub(crate) fn llvm_major(&self) -> u32 {
        self.llvm.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    /// Whether this toolchain has clippy of its own.
    pub(crate) fn has_clippy(&self) -> bool {
        self.sysroot.join("bin/cargo-clippy").exists() && self.sysroot.join("bin/clippy-driver").exists()
    }

    /// This toolchain's cargo, free of what the cargo running xtask left in the environment.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let cargo = self.sysroot.join("bin/cargo");
        // cargo prefers a subcommand in its home directory, which may belong to another toolchain.
        let own = self.sysroot.join(format!("bin/cargo-{verb}"));
        let mut command = Command::new(if own.exists() { &own } else { &cargo });
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_foreign) {
                command.env_remove(name);
            }
        }
        command.current_dir(crate::paths::root()).arg(verb).env("CARGO", &cargo).env("RUSTC", &self.rustc);
        command
    }

    /// Why this toolchain will not do, or `None`.
    fn refusal(&self) -> Option<String> {
        let (major, minor, _) = MIN_RUSTC;
        if self.version < MIN_RUSTC {
            Some(format!("is older than {major}.{minor}"))
        } else if self.llvm_major() > linker::MAX_LLVM {
            Some(format!("has an LLVM newer than {}, the newest bpf-linker reads", linker::MAX_LLVM))
        } else if !self.has_sources {
            Some("lacks the sources of `core` (component rust-src)".to_owned())
        } else if !self.has_cargo {
            Some("has no cargo beside it".to_owned())
        } else {
            None
        }
    }
}

/// Variables through which one cargo or rustup steers another; network and home settings stay.
fn is_foreign(name: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_", "CARGO_SOURCE_"];
    let steers = name.starts_with("CARGO") || name.starts_with("RUSTC") || name.starts_with("RUSTFLAGS");
    (steers && !KEPT.iter().any(|kept| name.starts_with(kept)))
        || matches!(name, "RUSTUP_TOOLCHAIN" | "LD_LIBRARY_PATH" | "RUSTDOC")
}

/// Finds a usable toolchain, else installs one, else says in one sentence what is missing.
pub(crate) fn ensure() -> Result<Toolchain> {
    if let Some(rustc) = env::var_os(OVERRIDE) {
        let named = Path::new(&rustc);
        let found = probe(named, Origin::System).with_context(|| {
            format!("{OVERRIDE}=`{}` is no working compiler: unset it or correct it", named.display())
        })?;
        return match found.refusal() {
            None => Ok(found),
            Some(why) => bail!("{OVERRIDE} names {found}, which {why}: unset it or name another compiler"),
        };
    }
    let found = search();
    if let Some(chosen) = choose(&found) {
        return Ok(chosen.clone());
    }
    step("no Rust toolchain here can build `core` for BPF yet");
    for toolchain in &found {
        note(&format!("{toolchain} {}", toolchain.refusal().unwrap_or_default()));
    }
    for install in [install_with_rustup, install_with_apt] {
        match install() {
            Ok(()) => {
                if let Some(chosen) = choose(&search()) {
                    return Ok(chosen.clone());
                }
            }
            Err(error) => note(&format!("{error:#}")),
        }
    }
    bail!(
        "no Rust toolchain with the sources of `core` could be found or installed: run `rustup toolchain install \
         {NIGHTLY} --profile minimal --component rust-src`, or as root `apt-get install {}`",
        DEBIAN_SETS[0].join(" ")
    )
}

/// The best usable one: rustup's before the system's, a nightly before a stable one, the newer release.
fn choose(found: &[Toolchain]) -> Option<&Toolchain> {
    found
        .iter()
        .filter(|toolchain| toolchain.refusal().is_none())
        .min_by_key(|t| (t.origin, !t.nightly, std::cmp::Reverse(t.version)))
}

/// Every compiler worth asking; one without sources is asked too, for the sake of the message.
fn search() -> Vec<Toolchain> {
    let rustup = rustup_home().and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let rustup = rustup.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/rustc"));
    let rustup: Vec<PathBuf> = rustup.collect();
    // Asking takes 50 ms a compiler: those without sources are only asked if nothing else is there.
    let with_sources = |rustc: &PathBuf| rustc.ancestors().nth(2).is_some_and(has_sources);
    let found = probe_all(rustup.iter().filter(|rustc| with_sources(rustc)), Origin::Rustup);
    if choose(&found).is_some() {
        return found;
    }
    let mut all = probe_all(rustup.iter(), Origin::Rustup);
    let system = SYSTEM_RUSTC.map(PathBuf::from);
    all.extend(probe_all(system.iter().filter(|rustc| rustc.exists()), Origin::System));
    all
}

fn probe_all<'a>(compilers: impl Iterator<Item = &'a PathBuf>, origin: Origin) -> Vec<Toolchain> {
    compilers.filter_map(|rustc| probe(rustc, origin).ok()).collect()
}

fn rustup_home() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup"));
    env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(home)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// Asks a compiler for its version and sysroot.
fn probe(rustc: &Path, origin: Origin) -> Result<Toolchain> {
    let ask = |args: &[&str]| output(Command::new(rustc).args(args).env_remove("LD_LIBRARY_PATH"));
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    let (release, llvm) = parse_version(&ask(&["-vV"])?)
        .with_context(|| format!("`{} -vV` names no release and LLVM version", rustc.display()))?;
    // A proxy on PATH is left out: called directly, a compiler cannot be redirected by the environment.
    let direct = sysroot.join("bin/rustc");
    Ok(Toolchain {
        rustc: if direct.exists() { direct } else { rustc.to_owned() },
        version: parse_release(&release),
        nightly: release.contains("nightly"),
        has_sources: has_sources(&sysroot),
        has_cargo: sysroot.join("bin/cargo").exists(),
        sysroot,
        release,
        llvm,
        origin,
    })
}

/// Release and LLVM version from `rustc -vV`.
fn parse_version(text: &str) -> Option<(String, String)> {
    let field =
        |name| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    Some((field("release:")?, field("LLVM version:")?))
}

/// `1.97.0-nightly` → (1, 97, 0); what does not parse counts as 0 and is thereby too old.
fn parse_release(release: &str) -> Version {
    let mut numbers = release.split(['.', '-', '+', '~']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

fn install_with_rustup() -> Result<()> {
    let Some(rustup) = find_program("rustup") else { bail!("rustup is not here") };
    step(&format!(
        "installing {NIGHTLY} with its sources through rustup (about 250 MB, default toolchain unchanged)"
    ));
    let mut command = Command::new(rustup);
    command
        .args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src,clippy"])
        .args(["--no-self-update"])
        .env_remove("RUSTUP_TOOLCHAIN")
        // rustup's own stack trace says nothing to whoever is offline.
        .env("RUST_BACKTRACE", "0");
    exec_within(&mut command, RUSTUP_LIMIT).context("rustup could not install it")
}

/// Adds clippy to the BPF toolchain where that is easy; whoever needs it checks whether it worked.
pub(crate) fn try_bpf_clippy(toolchain: &Toolchain) {
    if toolchain.has_clippy() {
        return;
    }
    let result = match toolchain.origin {
        Origin::System => install_debian_clippy(),
        Origin::Rustup => install_rustup_clippy(&toolchain.sysroot),
    };
    if let Err(error) = result {
        note(&format!("{error:#}"));
    }
}

/// The package that is named after the installed compiler's.
fn install_debian_clippy() -> Result<()> {
    for (compiler, clippy) in [("rustc-web", "rust-web-clippy"), ("rustc", "rust-clippy")] {
        if apt::installed(compiler) {
            return apt::install(&[clippy], "lints for the BPF crates");
        }
    }
    bail!("no Debian package provides this compiler")
}

fn install_rustup_clippy(sysroot: &Path) -> Result<()> {
    let rustup = find_program("rustup").context("rustup is not on PATH")?;
    let name = sysroot.file_name().context("a rustup toolchain has a name")?;
    let mut command = Command::new(rustup);
    exec_within(command.args(["component", "add", "clippy", "--toolchain"]).arg(name), RUSTUP_LIMIT)
}

fn install_with_apt() -> Result<()> {
    if !apt::available() {
        bail!("apt-get is not here");
    }
    let recent =
        |compiler: &str| apt::candidate(compiler).is_some_and(|version| parse_release(&version) >= MIN_RUSTC);
    let Some(set) = DEBIAN_SETS.iter().find(|[compiler, ..]| recent(compiler)) else {
        bail!("this distribution has no rustc {}.{} or newer", MIN_RUSTC.0, MIN_RUSTC.1);
    };
    step("installing the distribution's Rust compiler with its sources");
    apt::install(set, "a compiler that has the sources of `core`, to build for BPF")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VV: &str =
        "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";

    fn toolchain(origin: Origin, release: &str, llvm: &str) -> Toolchain {
        Toolchain {
            sysroot: "/t".into(),
            rustc: "/t/bin/rustc".into(),
            release: release.to_owned(),
            version: parse_release(release),
            nightly: release.contains("nightly"),
            llvm: llvm.to_owned(),
            origin,
            has_sources: true,
            has_cargo: true,
        }
    }

    #[test]
    fn version_output_is_parsed() {
        assert_eq!(parse_version(VV), Some(("1.96.0".to_owned(), "22.1.8".to_owned())));
        assert_eq!(parse_version("rustc 1.0\n"), None);
        assert_eq!(parse_release("1.97.0-nightly"), (1, 97, 0));
        assert_eq!(parse_release("1.96.0+dfsg1-1~deb12u2"), (1, 96, 0));
        assert!(parse_release("1.85.0+dfsg3-1~deb12u3") < MIN_RUSTC);
        assert!(parse_release("unknown") < MIN_RUSTC);
    }

    #[test]
    fn rustup_nightly_is_preferred_then_rustup_stable_then_the_system() {
        let system = toolchain(Origin::System, "1.99.0", "22.1.0");
        let stable = toolchain(Origin::Rustup, "1.96.0", "22.1.0");
        let nightly = toolchain(Origin::Rustup, "1.97.0-nightly", "22.1.0");
        let newer = toolchain(Origin::Rustup, "1.98.0-nightly", "22.1.0");
        assert_eq!(choose(&[system.clone(), stable.clone(), nightly, newer.clone()]), Some(&newer));
        assert_eq!(choose(&[system.clone(), stable.clone()]), Some(&stable));
        assert_eq!(choose(std::slice::from_ref(&system)), Some(&system));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn what_cannot_build_is_refused_with_its_reason() {
        let old = toolchain(Origin::System, "1.85.0", "19.1.7");
        let future = toolchain(Origin::Rustup, "1.120.0-nightly", "99.0.0");
        let mut bare = toolchain(Origin::Rustup, "1.97.0-nightly", "22.1.4");
        bare.has_sources = false;
        let mut no_cargo = toolchain(Origin::System, "1.96.0", "22.1.8");
        no_cargo.has_cargo = false;
        for (toolchain, reason) in
            [(&old, "older than 1.95"), (&future, "LLVM newer"), (&bare, "rust-src"), (&no_cargo, "no cargo")]
        {
            let refusal = toolchain.refusal().unwrap_or_default();
            assert!(refusal.contains(reason), "{toolchain}: {refusal}");
        }
        assert_eq!(choose(&[old, future, bare, no_cargo]), None);
    }

    #[test]
    fn the_outer_cargo_does_not_steer_the_inner_one() {
        for steering in [
            "CARGO",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTUP_TOOLCHAIN",
            "LD_LIBRARY_PATH",
        ] {
            assert!(is_foreign(steering), "{steering}");
        }
        for kept in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "PATH", "RUSTUP_HOME"] {
            assert!(!is_foreign(kept), "{kept}");
        }
    }
}
