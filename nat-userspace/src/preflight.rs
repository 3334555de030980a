// SPDX-License-Identifier: MIT OR Apache-2.0
//! What has to be there before anything is attached. Each finding is one sentence with its remedy.

use std::{ffi::CString, fs, mem::MaybeUninit};

use anyhow::{Result, bail, ensure};

/// Oldest kernel: before, the verifier takes no argument of a global function as the key of a map ("bpf: Allow ringbuf memory
/// to be used as map key" is what changed it, in 6.2); 6.1 was seen to refuse the program. See docs/kernel-support.md.
const OLDEST_KERNEL: (u32, u32) = (6, 2);

/// Where the pins go.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPFFS_MAGIC: u32 = 0xcafe_4a11;

/// A capability by its number (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks what `run` needs of this host, apart from the interfaces.
///
/// # Errors
///
/// The first thing that is missing.
pub fn for_run() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel(release.trim())?;
    for_detach()?;
    bpffs()
}

/// Checks what commands that change pins or interfaces need.
///
/// # Errors
///
/// The capabilities that are missing.
pub fn for_detach() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Without /proc nothing is known: let the kernel judge.
    effective.map_or(Ok(()), capabilities)
}

fn kernel(release: &str) -> Result<()> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return Ok(()) };
    let (oldest_major, oldest_minor) = OLDEST_KERNEL;
    ensure!(
        (major, minor) >= OLDEST_KERNEL,
        "kernel {release} is too old: natgw needs Linux {oldest_major}.{oldest_minor}, where \
         bpf_xdp_load_bytes appeared, by which its programs read packets; install a newer kernel"
    );
    Ok(())
}

fn capabilities(effective: u64) -> Result<()> {
    let has = |number: u32| effective & (1 << number) != 0;
    let admin = has(CAP_SYS_ADMIN);
    let needed = [
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_BPF", has(CAP_BPF) || admin),
        ("CAP_PERFMON", has(CAP_PERFMON) || admin),
    ];
    let missing: Vec<&str> = needed.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("not permitted: {} missing; run natgw as root or give it these capabilities", missing.join(", "))
}

fn bpffs() -> Result<()> {
    let path = CString::new(BPFFS)?;
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is NUL-terminated, `found` is valid for the write.
    let result = unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) };
    if result == 0 {
        // SAFETY: the call succeeded and filled it.
        let kind = unsafe { found.assume_init() }.f_type;
        if kind as u32 == BPFFS_MAGIC {
            return Ok(());
        }
    }
    bail!("no BPF file system at {BPFFS}, which translation is kept alive in: `mount -t bpf bpf {BPFFS}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_as_numbers() {
        assert!(kernel("6.12.107+deb12-amd64").is_ok());
        assert!(kernel("6.2").is_ok());
        assert!(kernel("10.2.3").is_ok());
        assert!(kernel("unknown").is_ok());
        let error = kernel("6.1.0-13-amd64").expect_err("too old").to_string();
        assert!(error.contains("6.1.0-13-amd64") && error.contains("6.2"), "{error}");
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(capabilities(u64::MAX).is_ok());
        assert!(capabilities(1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN).is_ok());
        assert!(capabilities(1 << CAP_NET_ADMIN | 1 << CAP_BPF | 1 << CAP_PERFMON).is_ok());
        let error = capabilities(1 << CAP_BPF).expect_err("not enough").to_string();
        assert!(error.contains("CAP_NET_ADMIN, CAP_PERFMON missing"), "{error}");
    }
}
