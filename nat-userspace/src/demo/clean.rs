// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes what a demo made: processes, programs, pins, namespaces, files. By name, so that it also works for a demo
//! that was kept, or killed.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nat_common::abi::names;

use super::{
    gateway,
    namespace::{self, Namespace, output, program},
};
use crate::datapath::pin::Instance;

/// How every demo is called, followed by the number of its process.
pub(super) const PREFIX: &str = "natgw-demo-";
/// How long a killed process may take to go.
const END: Duration = Duration::from_secs(5);

/// Removes the demo `name` when dropped.
#[derive(Debug)]
pub(super) struct Guard<'a>(pub(super) &'a Instance);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove(self.0) {
            let text = format!("natgw: leftovers of `{}` remain: {error:#}", self.0.name());
            // Standard error may be closed.
            let _unsaid = io::Write::write_fmt(&mut io::stderr(), format_args!("{text}\n"));
        }
    }
}

/// Demos of which something is there, by name.
pub(super) fn leftovers() -> Result<BTreeSet<String>> {
    let run = Instance::new("any")?.lock();
    let places = [Path::new(namespace::DIRECTORY), Path::new(names::PIN_ROOT), run.parent().unwrap_or(&run)];
    let entries = places.iter().flat_map(fs::read_dir).flatten().flatten();
    Ok(entries.filter_map(|entry| demo_of(&entry.file_name().to_string_lossy())).collect())
}

/// The demo that something of this name belongs to.
fn demo_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let ends = rest[digits..].is_empty() || rest[digits..].starts_with(['-', '.']);
    (digits > 0 && ends).then(|| format!("{PREFIX}{}", &rest[..digits]))
}

/// Process of the demo `name`, if it is still running.
pub(super) fn owner(name: &str) -> Option<u32> {
    let pid = name.strip_prefix(PREFIX)?.parse().ok()?;
    (pid != std::process::id() && words(pid).get(1).is_some_and(|verb| verb == "demo")).then_some(pid)
}

/// Removes everything of a demo. What is gone already is no error.
pub(super) fn remove(instance: &Instance) -> Result<()> {
    let name = instance.name();
    let mut namespaces = Vec::new();
    for entry in fs::read_dir(namespace::DIRECTORY).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if demo_of(&file).is_some_and(|demo| demo == name) {
            namespaces.push(Namespace::open(&file)?);
        }
    }
    end_processes(name, &namespaces)?;
    let gateway = namespaces.iter().find(|namespace| namespace.name == format!("{name}-gateway"));
    detach(instance, gateway)?;
    for namespace in &namespaces {
        output(program("ip")?.args(["netns", "delete", &namespace.name]))?;
    }
    let files = gateway::files(instance).into_iter().chain([instance.lock(), instance.socket()]);
    for file in files {
        remove_file(&file)?;
    }
    Ok(())
}

fn remove_file(file: &PathBuf) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing `{}`", file.display()))
        }
        _ => Ok(()),
    }
}

/// Ends translation from within the gateway's namespace. Where that is gone, from an empty one: nothing outside the
/// demo may be taken for its interfaces.
fn detach(instance: &Instance, gateway: Option<&Namespace>) -> Result<()> {
    if !instance.pins().exists() && !instance.state().exists() {
        return Ok(());
    }
    let words = ["detach", "--name", instance.name()];
    let mut command = match gateway {
        Some(gateway) => gateway::natgw(gateway, &words),
        None => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("natgw").args(words).stdin(Stdio::null());
            // SAFETY: between fork and exec only unshare(2) is called, which is async-signal-safe.
            unsafe {
                command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                })
            };
            command
        }
    };
    output(&mut command).map(drop)
}

/// Ends natgw's own processes of this demo; nobody else's, even if they are in its namespaces.
fn end_processes(name: &str, namespaces: &[Namespace]) -> Result<()> {
    let inside: BTreeSet<_> = namespaces.iter().filter_map(|one| identity(&one.path())).collect();
    let end = Instant::now() + END;
    loop {
        let pids = processes(name, &inside);
        if pids.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "processes {pids:?} do not end");
        for pid in pids {
            // SAFETY: no memory is involved. Fails only when the process has ended meanwhile.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Processes in these namespaces that were started for this demo.
fn processes(name: &str, inside: &BTreeSet<(u64, u64)>) -> Vec<libc::pid_t> {
    let own = std::process::id();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let ours = numbers.filter(|pid| *pid != own && is_ours(&words(*pid), name)).filter(|pid| {
        identity(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|found| inside.contains(&found))
    });
    ours.filter_map(|pid| libc::pid_t::try_from(pid).ok()).collect()
}

fn words(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Whether a command line is that of a gateway or a server of the demo `name`.
fn is_ours(words: &[String], name: &str) -> bool {
    let [program, verb, rest @ ..] = words else { return false };
    let served = format!("{name}=");
    program == "natgw"
        && match verb.as_str() {
            "run" => rest.iter().any(|word| word == name),
            "demo" => rest.iter().any(|word| word.starts_with(&served)),
            _ => false,
        }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(line: &str, name: &str) -> bool {
        is_ours(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), name)
    }

    #[test]
    fn names_tell_the_demo() {
        for name in ["natgw-demo-17", "natgw-demo-17-gateway", "natgw-demo-17.log"] {
            assert_eq!(demo_of(name).as_deref(), Some("natgw-demo-17"), "{name}");
        }
        for name in ["natgw-demo-", "natgw-demo-x", "natgw-demo-1x", "default", "xnatgw-demo-17"] {
            assert_eq!(demo_of(name), None, "{name}");
        }
    }

    #[test]
    fn only_processes_of_the_demo_are_ended() {
        assert!(is("natgw run --config f --name natgw-demo-17", "natgw-demo-17"));
        assert!(is("natgw demo --serve natgw-demo-17=192.0.2.10", "natgw-demo-17"));
        assert!(!is("natgw run --config f --name natgw-demo-17", "natgw-demo-1"));
        assert!(!is("natgw demo --serve natgw-demo-17=192.0.2.10", "natgw-demo-1"));
        assert!(!is("natgw demo --keep", "natgw-demo-17"));
        assert!(!is("bash natgw run natgw-demo-17", "natgw-demo-17"));
    }
}
