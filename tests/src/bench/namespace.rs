// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network namespace that exists as long as its value.

use std::{fs, fs::File, io, os::fd::AsRawFd as _, path::PathBuf, thread};

use anyhow::{Context as _, anyhow};

use super::exec;

/// A named network namespace; dropping it deletes it with every device inside.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace and brings its loopback device up.
    pub(super) fn create(name: &str) -> anyhow::Result<Self> {
        exec::run("ip", &["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Name under `/run/netns`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    pub(super) fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(arguments);
        exec::run("ip", &all)
    }

    /// Runs a batch of `ip` commands inside, one a line.
    pub(super) fn ip_batch(&self, lines: &str) -> anyhow::Result<()> {
        exec::output("ip", &["-n", &self.name, "-batch", "-"], lines).map(drop)
    }

    /// Writes `/proc/sys/net/<key>` inside.
    pub(super) fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.enter(|| {
            let path = format!("/proc/sys/net/{key}");
            fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
        })?
    }

    /// Index of a device inside.
    pub(super) fn ifindex(&self, device: &str) -> anyhow::Result<u32> {
        let name = std::ffi::CString::new(device)?;
        // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
        let index = self.enter(|| unsafe { libc::if_nametoindex(name.as_ptr()) })?;
        if index == 0 {
            return Err(anyhow!("no device {device} in namespace {}", self.name));
        }
        Ok(index)
    }

    /// Runs a closure on a thread of its own inside the network namespace. The mount namespace stays, so pins on
    /// the BPF file system are the same inside and outside.
    pub(super) fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // SAFETY: the descriptor is open; only this thread changes its namespace, and it ends afterwards.
                if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                    return Err(io::Error::last_os_error())
                        .with_context(|| format!("cannot enter namespace {}", self.name));
                }
                Ok(job())
            });
            worker.join().map_err(|_panic| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = exec::run("ip", &["netns", "del", &self.name]) {
            eprintln!("natgw-bench: namespace {} is left behind: {error:#}", self.name);
        }
    }
}
