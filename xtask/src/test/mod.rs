// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: every rung, the pure one as the invoking user, the others as root.
mod binaries;
mod report;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    bench, build,
    exec::{Reported, Root, note, shown, step},
    paths,
    setup::system,
};

use binaries::TestBinary;
pub(crate) use report::Tally;
use report::{Reader, Show};

/// Crates that only compile for a BPF target.
pub(crate) const BPF_CRATES: [&str; 2] = ["nat-ebpf", "bench-ebpf"];
/// Seconds after which a test binary is stopped: the longest takes a fraction of it.
const BINARY_LIMIT_SECONDS: u32 = 900;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Rung {
    /// No root, no kernel: arithmetic, configuration, planning, command line
    Pure,
    /// Single packets through `BPF_PROG_TEST_RUN` (root)
    Packet,
    /// Real sockets in throw-away namespaces (root)
    Netns,
    /// All three
    All,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which rung
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) rung: Rung,
    /// Only tests whose name contains this
    #[arg(long)]
    pub(crate) filter: Option<String>,
    /// Threads per test binary; without it one for namespaces, libtest's choice elsewhere
    #[arg(long)]
    pub(crate) test_threads: Option<u32>,
    /// Run everything that many times; stops at the first round with a failure
    #[arg(long, default_value_t = 1)]
    pub(crate) repeat: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    conclude(&rungs(args)?)
}

/// Prints what failed and the closing line; an error if anything did or nothing ran.
pub(crate) fn conclude(tally: &Tally) -> Result<()> {
    for failure in &tally.failures {
        eprintln!("FAILED: {failure}");
    }
    if tally.failed > 0 {
        eprintln!("{} failed: run one alone with `cargo xtask test --filter NAME`", tally.failed);
    } else if tally.is_empty() {
        eprintln!("no test matches: drop --filter, or see the names with `cargo test -- --list`");
    }
    // Last, on its own: scripts read it.
    println!("{}", tally.closing_line());
    if tally.failed > 0 || tally.is_empty() { Err(Reported.into()) } else { Ok(()) }
}

/// Builds and runs the rungs asked for.
pub(crate) fn rungs(args: &Args) -> Result<Tally> {
    let tools = build::all()?;
    bench::object(&tools)?;
    step("building the test binaries");
    let binaries = binaries::build()?;
    let wants = |rung| args.rung == Rung::All || args.rung == rung;
    let root = Root::detect();
    if wants(Rung::Packet) || wants(Rung::Netns) {
        prepare(root, args.rung)?;
        if wants(Rung::Netns) && root != Root::Unavailable {
            system::offer_packages();
        }
    }
    let mut tally = Tally::default();
    for round in 1..=args.repeat {
        if args.repeat > 1 {
            step(&format!("round {round} of {}", args.repeat));
        }
        if wants(Rung::Pure) {
            tally.add(workspace(args)?);
        }
        for binary in binaries.iter().filter(|binary| wants(binary.rung)) {
            tally.add(one(binary, root, args)?);
        }
        if tally.failed > 0 {
            break;
        }
    }
    Ok(tally)
}

/// Root for the upper rungs; without it, `--rung all` still runs and reports the rest as skipped.
fn prepare(root: Root, rung: Rung) -> Result<()> {
    if root != Root::Unavailable {
        system::ensure_packages()?;
        return system::ensure_bpffs();
    }
    if rung != Rung::All {
        bail!("the packet and netns rungs need root: run as root, or allow sudo without a password");
    }
    Ok(())
}

/// The crates that need nothing: unit, integration and documentation tests.
fn workspace(args: &Args) -> Result<Tally> {
    let mut command = paths::cargo("test");
    command.args(["--workspace", "--no-fail-fast", "--exclude", "nat-tests"]);
    command.args(BPF_CRATES.iter().flat_map(|name| ["--exclude", name]));
    command.arg("--").arg("--show-output").args(args.libtest(None));
    watch(&mut command, "pure: workspace")
}

/// One test binary of nat-tests, as root where its rung needs it.
fn one(binary: &TestBinary, root: Root, args: &Args) -> Result<Tally> {
    let label = format!("{}: {}", binary.rung.name(), binary.name);
    let natgw = paths::natgw();
    let object = paths::bpf_object();
    let mut envs = vec![
        ("NATGW_BIN".to_owned(), natgw.display().to_string()),
        ("NATGW_BPF_OBJECT".to_owned(), object.display().to_string()),
    ];
    // sudo drops these; whoever set them meant the tests.
    let passed = ["RUST_", "PROPTEST_", "NATGW_TEST_"];
    envs.extend(std::env::vars().filter(|(name, _)| passed.iter().any(|prefix| name.starts_with(prefix))));
    let root = if binary.rung == Rung::Pure { Root::Direct } else { root };
    let envs: Vec<(&str, &str)> = envs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let Some(mut command) = root.command("timeout", &envs) else {
        return without_root(binary, args, &label);
    };
    // In the foreground, so that Ctrl-C reaches the tests; its own status 124 says that time was up.
    command
        .args(["--foreground", "--kill-after=10"])
        .arg(BINARY_LIMIT_SECONDS.to_string())
        .arg(&binary.executable);
    command
        .arg("--show-output")
        .args(args.libtest(Some(binary.rung)))
        .current_dir(paths::root().join("tests"));
    watch(&mut command, &label)
}

/// Counts each test that cannot run, by name, instead of passing over it.
fn without_root(binary: &TestBinary, args: &Args, label: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    for test in binary.tests(args.filter.as_deref())? {
        println!("SKIPPED: {label}: {test}: needs root: run as root, or allow sudo without a password");
        tally.skipped += 1;
    }
    Ok(tally)
}

/// Runs a libtest program, showing and counting what it prints.
fn watch(command: &mut Command, label: &str) -> Result<Tally> {
    step(label);
    let started = Instant::now();
    let (output, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The pipe ends when the last writer does; ours are inside `command`.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = Reader::new(label);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        match reader.feed(&line) {
            Show::Yes => println!("{line}"),
            Show::No => {}
        }
    }
    let status = child.wait()?;
    let tally = reader.finish(status.success(), &status.to_string());
    note(&format!("{} in {:.1} s", tally.closing_line(), started.elapsed().as_secs_f32()));
    Ok(tally)
}

impl Args {
    fn libtest(&self, rung: Option<Rung>) -> Vec<String> {
        let threads = self.test_threads.or((rung == Some(Rung::Netns)).then_some(1));
        let threads = threads.map(|threads| format!("--test-threads={threads}"));
        threads.into_iter().chain(self.filter.clone()).collect()
    }
}

impl Rung {
    fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Packet => "packet",
            Self::Netns => "netns",
            Self::All => "all",
        }
    }
}
