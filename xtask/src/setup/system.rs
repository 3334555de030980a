// SPDX-License-Identifier: MIT OR Apache-2.0
//! What running natgw in namespaces needs of the system: a few programs, and bpffs.
use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::apt;
use crate::exec::{Root, exec_shown, find_program, note, step};

/// A Debian package, the program whose presence shows that it is not needed, and what it is for.
struct Package {
    name: &'static str,
    program: &'static str,
    reason: &'static str,
}

/// Everything that the demo and the namespace tests call.
const PACKAGES: [Package; 5] = [
    Package { name: "iproute2", program: "ip", reason: "makes namespaces, veth pairs, addresses and routes" },
    Package { name: "nftables", program: "nft", reason: "the masquerade that natgw is compared with" },
    Package {
        name: "ethtool",
        program: "ethtool",
        reason: "checksum offload off: veth leaves checksums unfinished",
    },
    Package { name: "iputils-ping", program: "ping", reason: "echo requests of a real client" },
    Package {
        name: "traceroute",
        program: "traceroute",
        reason: "time-exceeded answers, as a user sees them",
    },
];

/// What `bench vm` calls beside [`PACKAGES`].
const VM_PACKAGES: [Package; 3] = [
    Package {
        name: "qemu-system-x86",
        program: "qemu-system-x86_64",
        reason: "runs generator, gateway and sink as virtual machines",
    },
    Package { name: "busybox-static", program: "busybox", reason: "is the guests' shell" },
    Package { name: "xz-utils", program: "xz", reason: "decompresses kernel modules" },
];

/// What single tests call, which say SKIPPED where it is not there.
const JUDGE: Package = Package {
    name: "coturn",
    program: "turnutils_natdiscovery",
    reason: "judges mapping, filtering and hairpin by RFC 5780",
};

const BPFFS: &str = "/sys/fs/bpf";

/// Installs what is missing; says and does nothing where all is there.
pub(crate) fn ensure_packages() -> Result<()> {
    ensure(&PACKAGES)
}

/// The same for virtual machines.
pub(crate) fn ensure_vm_packages() -> Result<()> {
    ensure(&VM_PACKAGES)
}

fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> =
        packages.iter().filter(|package| find_program(package.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step("installing system packages");
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let reasons: Vec<String> = missing.iter().map(|p| format!("{} {}", p.program, p.reason)).collect();
    apt::install(&names, &reasons.join("; "))
}

/// Installs iptables, one of the bench's peers, where it is missing; without it the bench goes on and says so.
pub(crate) fn offer_iptables() {
    if ["iptables-legacy", "iptables-nft", "iptables"].into_iter().any(|name| find_program(name).is_some()) {
        return;
    }
    step("installing iptables");
    if let Err(error) =
        apt::install(&["iptables"], "iptables is one of the gateways that natgw is compared with")
    {
        note(&format!("{error:#}"));
    }
}

/// Installs what single tests can do without; failing is not fatal.
pub(crate) fn offer_packages() {
    let Package { name, program, reason } = JUDGE;
    if find_program(program).is_some() || apt::candidate(name).is_none() {
        return;
    }
    step("installing a package for tests");
    // Only its programs are wanted, not its server.
    let masked = Root::detect()
        .command("systemctl", &[])
        .is_some_and(|mut mask| exec_shown(mask.args(["mask", "coturn.service"])).is_ok());
    if !masked && Path::new("/run/systemd/system").exists() {
        note(&format!("left out {name}: its server would be started"));
        return;
    }
    if let Err(error) = apt::install(&[name], reason) {
        note(&format!("{error:#}; the tests that need it will be skipped"));
    }
}

/// Mounts bpffs where maps, programs and links are pinned, unless it is there.
pub(crate) fn ensure_bpffs() -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts: mount /proc")?;
    if has_bpffs(&mounts) {
        return Ok(());
    }
    let remedy = || format!("no bpffs on {BPFFS}: run `sudo mount -t bpf bpf {BPFFS}` and try again");
    step("mounting bpffs: pinned maps keep translating when no process holds them");
    let mut mount = Root::detect().command("mount", &[]).with_context(remedy)?;
    exec_shown(mount.args(["-t", "bpf", "bpf"]).arg(Path::new(BPFFS))).with_context(remedy)
}

fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_is_recognised_by_place_and_type() {
        assert!(has_bpffs("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"));
        assert!(!has_bpffs("tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /mnt bpf rw 0 0\n"));
    }
}
