// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network namespaces without names: they live as long as somebody holds them, so nothing is left behind even
//! after a kill.
//!
//! Only the network namespace is changed, never the mount namespace: pins on bpffs stay visible.

use std::{
    fs::File,
    io::Write as _,
    os::{
        fd::{AsFd as _, AsRawFd as _, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

/// The calling thread is in another namespace until this is dropped.
#[derive(Debug)]
pub struct Entered {
    previous: File,
}

impl Namespace {
    /// A new, empty namespace with its loopback interface up.
    ///
    /// # Errors
    ///
    /// Without the capability to make one.
    pub fn new() -> Result<Self> {
        let file = thread::spawn(|| -> Result<File> {
            // SAFETY: no memory is involved; the thread is this function's own and ends here.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            ensure!(done == 0, "unshare(CLONE_NEWNET): {}", std::io::Error::last_os_error());
            current()
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))??;
        let namespace = Self { file };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    /// Moves the calling thread into the namespace until the guard is dropped.
    ///
    /// # Errors
    ///
    /// Those of `setns(2)`.
    pub fn enter(&self) -> Result<Entered> {
        let previous = current()?;
        set(self.file.as_raw_fd())?;
        Ok(Entered { previous })
    }

    /// Runs `work` inside the namespace. Sockets it makes stay there.
    ///
    /// # Errors
    ///
    /// Those of `setns(2)`, and those of `work`.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _inside = self.enter()?;
        work()
    }

    /// A process that will start inside the namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe. The descriptor is
        // close-on-exec and open in the child until then.
        unsafe {
            command.pre_exec(move || set(fd).map_err(|_| std::io::Error::last_os_error()));
        }
        command
    }

    /// Runs `ip` with these commands in one batch.
    ///
    /// # Errors
    ///
    /// With what `ip` had to say.
    pub fn ip(&self, commands: &[impl AsRef<str>]) -> Result<()> {
        let text: String = commands.iter().map(|line| format!("{}\n", line.as_ref())).collect();
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting `ip`")?;
        child.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -batch:\n{text}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Writes `value` to `/proc/sys/net/<name>` of the namespace.
    ///
    /// # Errors
    ///
    /// Names the file that could not be written.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| std::fs::write(&path, value).with_context(|| format!("writing {value} to {path}")))
    }

    /// Path by which `ip link set … netns` finds the namespace while this object lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_fd().as_raw_fd())
    }

    /// Index of an interface in the namespace.
    ///
    /// # Errors
    ///
    /// When there is no interface of that name.
    pub fn index(&self, name: &str) -> Result<u32> {
        self.run(|| {
            let text = std::ffi::CString::new(name)?;
            // SAFETY: `text` is a NUL-terminated string that outlives the call.
            let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
            ensure!(index != 0, "no interface `{name}`");
            Ok(index)
        })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = set(self.previous.as_raw_fd());
        if left.is_err() && !thread::panicking() {
            panic!("cannot return to the previous network namespace");
        }
    }
}

fn current() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening /proc/thread-self/ns/net")
}

fn set(fd: RawFd) -> Result<()> {
    // SAFETY: no memory is involved; `fd` is open.
    let done = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
    ensure!(done == 0, "setns(CLONE_NEWNET): {}", std::io::Error::last_os_error());
    Ok(())
}
