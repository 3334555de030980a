// SPDX-License-Identifier: MIT OR Apache-2.0
//! einat (<https://github.com/EHfive/einat-ebpf>), another NAT in eBPF: endpoint-independent, in TC programs on the outside
//! interface, with the kernel's forwarding between. Installed beside; only measured.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Context as _;

use super::{Setup, kernel, process};
use crate::bench::{
    chain::{Chain, FRONTEND},
    exec,
};

/// Names the program; otherwise it is looked for on PATH.
const VARIABLE: &str = "NATGW_BENCH_EINAT";

/// From the line that names the address to programs that are attached: einat says nothing in between. What is too short is found
/// out, as untranslated packets fail the run.
const ATTACHES: Duration = Duration::from_secs(1);

/// A running einat; dropping it ends it.
#[derive(Debug)]
pub(in crate::bench) struct Einat {
    configuration: PathBuf,
    child: Option<Child>,
}

impl Einat {
    /// Starts it in the gateway namespace.
    pub(super) fn start(chain: &Chain, setup: &Setup) -> anyhow::Result<Self> {
        kernel::forward(chain)?;
        let configuration = env::temp_dir().join(format!("natgw-bench-{}-einat.toml", std::process::id()));
        fs::write(&configuration, text(setup))
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let mut einat = Self { configuration, child: None };
        let mut command = Command::new(program());
        command
            .arg("--config")
            .arg(&einat.configuration)
            .env("RUST_LOG", "info")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = chain
            .gateway
            .enter(|| command.spawn())?
            .with_context(|| format!("cannot start {}", program().display()))?;
        let lines = process::follow(&mut child);
        einat.child = Some(child);
        process::wait_for("einat", &lines, |line| line.contains("setting default external address"))?;
        thread::sleep(ATTACHES);
        Ok(einat)
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(child) = self.child.take() else { return Ok(()) };
        let ended = process::terminate("einat", child);
        let removed = fs::remove_file(&self.configuration)
            .with_context(|| format!("cannot remove {}", self.configuration.display()));
        ended.and(removed)
    }
}

impl Drop for Einat {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("natgw-bench: einat did not end in order: {error:#}");
        }
    }
}

fn program() -> PathBuf {
    env::var_os(VARIABLE).unwrap_or_else(|| OsString::from("einat")).into()
}

/// Why it cannot be measured, if it cannot.
pub(super) fn missing() -> Option<String> {
    let program = program();
    exec::output(&program.to_string_lossy(), &["--version"], "")
        .err()
        .map(|_| format!("no `{}`: install einat, or name it in {VARIABLE}", program.display()))
}

/// As many connections as natgw has room for, and every port that einat may use.
fn text(setup: &Setup) -> String {
    format!(
        "[defaults]\ntcp_ranges = [\"1024-65535\"]\nudp_ranges = [\"1024-65535\"]\n\n\
         [[interfaces]]\nif_name = \"wan0\"\nnat44 = true\nct_max_records = {}\ndefault_externals = false\n\n\
         [[interfaces.externals]]\naddress = \"{FRONTEND}\"\n",
        setup.max_flows.max(393_216) + 65_536
    )
}
