// SPDX-License-Identifier: MIT OR Apache-2.0
//! One virtual machine: a QEMU process without root, its console in a file, a shell behind a socket, and the CPU time of
//! its only virtual CPU.
use std::{
    fmt, fs,
    io::{ErrorKind, Read, Write},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::stop::Stop;
use crate::exec::shown;

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Longest boot to the shell: three machines at a time on a busy host, under emulation, take up to 16 s.
const BOOT: Duration = Duration::from_secs(120);
/// Until QEMU has made its sockets.
const START: Duration = Duration::from_secs(20);
/// Lines of the console that a failure quotes.
const CONSOLE_LINES: usize = 40;

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// One end of a link: two machines that name the same socket are joined, the listening one being started first.
#[derive(Clone, Debug)]
pub(crate) struct Nic {
    pub(crate) mac: String,
    pub(crate) socket: PathBuf,
    pub(crate) listens: bool,
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec<'a> {
    pub(crate) name: &'static str,
    pub(crate) accel: Accel,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: Option<&'a Path>,
    /// MiB.
    pub(crate) memory: u32,
    pub(crate) nics: Vec<Nic>,
    /// For sockets: their paths have room for 107 bytes.
    pub(crate) sockets: &'a Path,
    /// For console logs.
    pub(crate) logs: &'a Path,
}

impl Spec<'_> {
    pub(crate) fn console(&self) -> PathBuf {
        self.logs.join(format!("{}.console.log", self.name))
    }

    fn control(&self) -> PathBuf {
        self.sockets.join(format!("{}.ctl", self.name))
    }

    /// setpriv has the kernel end QEMU with this process even if that is killed.
    pub(crate) fn command(&self) -> Command {
        let Self { name, accel, kernel, initramfs, memory, nics, .. } = self;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]);
        command.args(["-name", &format!("{name},debug-threads=on"), "-M", "q35", "-accel", accel.name()]);
        command.args(["-cpu", "max", "-smp", "1", "-m", &memory.to_string(), "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(kernel);
        // panic=-1 with -no-reboot: a panic ends QEMU, and its reason is in the console log.
        let mut append = "console=ttyS0 panic=-1 mitigations=off net.ifnames=0".to_owned();
        if let Some(initramfs) = initramfs {
            command.arg("-initrd").arg(initramfs);
            append += " quiet";
        }
        command.args(["-append", &append]);
        command.args(["-chardev", &format!("file,id=console,path={}", self.console().display())]);
        command.args(["-serial", "chardev:console"]);
        if initramfs.is_some() {
            let control = self.control();
            command.args(["-chardev"]);
            command.arg(format!("socket,id=control,path={},server=on,wait=off", control.display()));
            command.args(["-serial", "chardev:control"]);
        }
        for (index, Nic { mac, socket, listens }) in nics.iter().enumerate() {
            let server = if *listens { "on" } else { "off" };
            let socket = socket.display();
            command.args(["-netdev"]);
            command.arg(format!("stream,id=n{index},server={server},addr.type=unix,addr.path={socket}"));
            command.args(["-device", &format!("virtio-net-pci,netdev=n{index},romfile=,mac={mac}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Ctrl-C in the terminal is for this process, which then ends QEMU.
        command.process_group(0);
        command
    }
}

/// A QEMU process; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) child: Child,
    console: PathBuf,
}

impl Process {
    pub(crate) fn spawn(spec: &Spec<'_>) -> Result<Self> {
        let _not_there = fs::remove_file(spec.console());
        let mut command = spec.command();
        let child = command.spawn().with_context(|| format!("cannot start `{}`", shown(&command)))?;
        Ok(Self { child, console: spec.console() })
    }

    /// Fails once QEMU has ended, with what it and the guest's console said last.
    pub(crate) fn alive(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().context("cannot wait for QEMU")? else { return Ok(()) };
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            // What is no UTF-8 is left out.
            let _partly_read = stderr.read_to_string(&mut said);
        }
        bail!("QEMU ended with {status}\n{}{}", said, tail(&self.console));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// A booted machine with its shell.
#[derive(Debug)]
pub(crate) struct Machine {
    name: &'static str,
    process: Process,
    control: UnixStream,
    /// What the shell wrote and nobody has read.
    pending: String,
    commands: u32,
    stop: Stop,
}

impl Machine {
    /// Starts QEMU and returns as soon as its sockets are there; the guest goes on booting.
    pub(crate) fn start(spec: &Spec<'_>, stop: &Stop) -> Result<Self> {
        let mut process = Process::spawn(spec)?;
        // What a guest writes to a serial port that nobody is connected to is lost, so connect at once.
        let control = stop
            .wait("QEMU makes its control socket", START, || {
                process.alive()?;
                Ok(UnixStream::connect(spec.control()).ok())
            })
            .with_context(|| format!("the {} cannot be started", spec.name))?;
        control.set_nonblocking(true).context("cannot set up the control socket")?;
        let (pending, commands) = (String::new(), 0);
        Ok(Self { name: spec.name, process, control, pending, commands, stop: stop.clone() })
    }

    /// Waits for the shell.
    pub(crate) fn booted(&mut self) -> Result<()> {
        self.until("the guest boots to its shell", BOOT, |text| text.contains("##READY##").then_some(()))
    }

    /// Runs a shell command to its end and returns what it wrote to stdout and stderr.
    ///
    /// # Errors
    ///
    /// When it fails, is not done within `limit`, or the guest ends.
    pub(crate) fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        self.pending.clear();
        self.send(&format!("{number} {}\n", one_line(command)), limit)?;
        let (text, status) =
            self.until(&format!("`{}`", first_line(command)), limit, |text| answer(text, number))?;
        if status != 0 {
            bail!("on the {}, `{}` ended with {status}: {}", self.name, first_line(command), text.trim());
        }
        Ok(text)
    }

    fn send(&mut self, line: &str, limit: Duration) -> Result<()> {
        let mut left = line.as_bytes();
        let Self { control, process, stop, .. } = self;
        stop.wait("the guest's serial port takes a command", limit, || {
            process.alive()?;
            match control.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the control socket is broken"),
            }
            Ok(left.is_empty().then_some(()))
        })
    }

    fn until<T>(&mut self, what: &str, limit: Duration, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let Self { name, process, control, pending, stop, .. } = self;
        let answer = stop.wait(what, limit, || {
            let mut buffer = [0; 4096];
            loop {
                match control.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => pending.push_str(&String::from_utf8_lossy(&buffer[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("the control socket is broken"),
                }
            }
            match found(pending) {
                Some(answer) => Ok(Some(answer)),
                None => process.alive().map(|()| None),
            }
        });
        // Who interrupts does not want to know where.
        stop.check()?;
        answer.with_context(|| {
            let console = tail(&process.console);
            format!("the {name} does not answer; it wrote last: {}{console}", last(pending, 300))
        })
    }

    /// CPU time of the thread that executes the guest's instructions since its start, in nanoseconds.
    pub(crate) fn vcpu_time(&self) -> Result<u64> {
        let tasks = format!("/proc/{}/task", self.process.child.id());
        for entry in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let thread = entry?.path();
            // QEMU with debug-threads=on names it `CPU 0/TCG` or `CPU 0/KVM`.
            let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
            if name.starts_with("CPU 0/") {
                let path = thread.join("schedstat");
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                return running_time(&text);
            }
        }
        bail!("QEMU's process {} has no thread `CPU 0/…`", self.process.child.id())
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// First number of schedstat: nanoseconds on a CPU (Linux: Documentation/scheduler/sched-stats.rst).
fn running_time(schedstat: &str) -> Result<u64> {
    let first = schedstat.split_whitespace().next();
    first.and_then(|number| number.parse().ok()).with_context(|| {
        format!("schedstat is `{}`, expected three numbers: is CONFIG_SCHED_INFO on?", schedstat.trim())
    })
}

/// Enough to know a script by.
fn first_line(command: &str) -> &str {
    command.lines().next().unwrap_or_default()
}

/// A script of several lines as one command line.
fn one_line(command: &str) -> String {
    if !command.contains('\n') {
        return command.to_owned();
    }
    let escaped = command.replace('\\', "\\\\").replace('\'', "\\0047").replace('\n', "\\n");
    format!("printf '%b' '{escaped}' > /tmp/script && sh /tmp/script")
}

/// Output and exit status of command `number`, once its end is there.
fn answer(text: &str, number: u32) -> Option<(String, i32)> {
    let (output, rest) = text.split_once(&format!("##END {number} "))?;
    let (status, _) = rest.split_once("##")?;
    Some((output.to_owned(), status.parse().ok()?))
}

fn tail(console: &Path) -> String {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    format!("\nlast lines of the guest's console:\n  {}", last.join("\n  "))
}

fn last(text: &str, characters: usize) -> String {
    let skip = text.chars().count().saturating_sub(characters);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_on_a_cpu_is_the_first_number() {
        assert_eq!(running_time("123456789 55 7\n").expect("three numbers"), 123_456_789);
        assert!(running_time("").is_err());
    }

    #[test]
    fn an_answer_is_complete_with_its_own_status_only() {
        assert_eq!(answer("hello\n##END 6 0##\nworld\n##EN", 7), None);
        assert_eq!(answer("hello\n##END 7 1", 7), None);
        assert_eq!(answer("hello\n##END 7 13##\n", 7), Some(("hello\n".to_owned(), 13)));
    }

    #[test]
    fn a_script_survives_the_serial_port() {
        let script = "set -eu\nw() { echo \"$2\" > '\\x'; }\nprintf 'a\\tb\\n'\nexit 3\n";
        let written = Command::new("sh")
            .args(["-c", &one_line(script).replace("> /tmp/script && sh /tmp/script", "")])
            .output()
            .expect("there is a shell");
        assert_eq!(String::from_utf8_lossy(&written.stdout), script);
        assert_eq!(one_line("ls"), "ls");
    }

    #[test]
    fn a_machine_ends_with_its_starter_and_takes_no_default_devices() {
        let nic = Nic { mac: "02:00:00:00:00:01".to_owned(), socket: "/run/x/l0".into(), listens: true };
        let spec = Spec {
            name: "gateway",
            accel: Accel::Tcg,
            kernel: Path::new("vmlinuz"),
            initramfs: Some(Path::new("i.cpio")),
            memory: 512,
            nics: vec![nic],
            sockets: Path::new("/run/x"),
            logs: Path::new("logs"),
        };
        let line = shown(&spec.command());
        assert!(
            line.starts_with("setpriv --pdeathsig KILL qemu-system-x86_64 -name gateway,debug-threads=on")
        );
        assert!(line.contains("-accel tcg") && line.contains("-nodefaults"), "{line}");
        assert!(line.contains("stream,id=n0,server=on,addr.type=unix,addr.path=/run/x/l0"), "{line}");
    }
}
