// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest XDP program, `return XDP_PASS`, loaded without an object file. It takes frames in several buffers, so that
//! devices may have large MTUs.
//!
//! A veth device takes redirected frames only when XDP is on at the receiving end, and `BPF_PROG_TEST_RUN` accepts
//! an interface as context only when XDP is on there.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Native mode: `XDP_FLAGS_DRV_MODE`.
const DRIVER_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`.
const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// First fields of the kernel's `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    /// Level and size of the verifier's log, its address, and a kernel version: zero.
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
}

/// `BPF_F_XDP_HAS_FRAGS` (Linux 5.18).
const HAS_FRAGS: u32 = 1 << 5;

/// First fields of the kernel's `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// XDP is on at an interface until this is dropped.
#[derive(Debug)]
pub struct Pass {
    _link: OwnedFd,
}

impl Pass {
    /// Attaches the program, in native mode, to interface `index` of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// Those of `bpf(2)`.
    pub fn attach(index: u32) -> Result<Self> {
        let license = c"GPL";
        let load = Load {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: 2,
            instructions: PROGRAM.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log: [0; 2],
            kernel_version: 0,
            flags: HAS_FRAGS,
        };
        let program = bpf(BPF_PROG_LOAD, &load)?;
        let target = Link {
            program: u32::try_from(program.as_raw_fd())?,
            target: index,
            attach_type: BPF_XDP,
            flags: DRIVER_MODE,
        };
        Ok(Self { _link: bpf(BPF_LINK_CREATE, &target)? })
    }
}

pub(super) fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: `attributes` is a prefix of `union bpf_attr` for `command`; the kernel takes the rest as zero and
    // reads no further than the size given. The pointers in it outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    ensure!(fd >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd)?) })
}
