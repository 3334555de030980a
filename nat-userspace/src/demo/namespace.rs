// SPDX-License-Identifier: MIT OR Apache-2.0
//! Named network namespaces.
//!
//! Only the network namespace is entered, never the mount namespace: `ip netns exec` would mount another `/sys`, in
//! which the pins of natgw are not to be found.

use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

/// Where iproute2 keeps named namespaces.
pub(super) const DIRECTORY: &str = "/run/netns";

/// A named network namespace. Removing it is the business of [`super::clean`].
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) name: String,
    file: File,
}

impl Namespace {
    /// Makes one, with its loopback interface up and without IPv6, which would only add noise.
    pub(super) fn new(name: &str) -> Result<Self> {
        output(program("ip")?.args(["netns", "add", name]))?;
        let namespace = Self::open(name)?;
        namespace.ip(&["link set lo up"])?;
        for which in ["all", "default"] {
            // A kernel without IPv6 has no such switch.
            let _without_ipv6 = namespace.sysctl(&format!("ipv6/conf/{which}/disable_ipv6"), "1");
        }
        Ok(namespace)
    }

    /// One that is there already.
    pub(super) fn open(name: &str) -> Result<Self> {
        let path = Path::new(DIRECTORY).join(name);
        let file = File::open(&path).with_context(|| format!("opening namespace `{}`", path.display()))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// Its place in the file system.
    pub(super) fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` inside, on a thread of its own. Sockets that it makes stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.file.as_raw_fd();
        let inside = move || {
            enter(fd).with_context(|| format!("entering namespace `{}`", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_| anyhow!("a thread in namespace `{}` panicked", self.name))?
    }

    /// Makes `command` start inside.
    pub(super) fn attach<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let fd = self.file.as_raw_fd();
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe. The descriptor is
        // close-on-exec and open in the child until then.
        unsafe { command.pre_exec(move || enter(fd)) }
    }

    /// A command that starts inside.
    pub(super) fn command(&self, name: &str) -> Result<Command> {
        let mut command = program(name)?;
        self.attach(&mut command);
        Ok(command)
    }

    /// Runs `ip` with these commands, in one batch.
    pub(super) fn ip(&self, commands: &[impl AsRef<str>]) -> Result<()> {
        batch(self.command("ip")?.args(["-batch", "-"]), commands)
    }

    /// Runs `nft` with this script.
    pub(super) fn nft(&self, script: &str) -> Result<()> {
        batch(self.command("nft")?.args(["-f", "-"]), &[script])
    }

    /// Changes offloads of an interface.
    pub(super) fn offload(&self, interface: &str, features: &[&str]) -> Result<()> {
        output(self.command("ethtool")?.args(["-K", interface]).args(features)).map(drop)
    }

    /// Writes `value` to `/proc/sys/net/<name>` as it is inside.
    pub(super) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value).with_context(|| format!("writing {value} to `{path}`")))
    }
}

fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is involved; `fd` is open.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A system program, also where the directories of system administration are not searched.
pub(super) fn program(name: &str) -> Result<Command> {
    find(name).map(Command::new).with_context(|| format!("no program `{name}`: install its package"))
}

/// Path of a system program.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let search = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&search).chain(more).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Runs a command to its end and returns what it printed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, said.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn batch(command: &mut Command, lines: &[impl AsRef<str>]) -> Result<()> {
    let text: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    child.stdin.take().context("a child without standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
