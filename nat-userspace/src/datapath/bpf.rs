// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls of bpf(2) that aya has no interface for: reading and writing a map in batches, asking a link where it is,
//! and iterating over the elements of one map (aya 0.14 attaches iterators only where no map has to be named).
//!
//! This file and `batch.rs` are the only ones that call bpf(2) themselves. Layouts are those of `union bpf_attr` and `struct bpf_link_info`
//! in include/uapi/linux/bpf.h (Linux 6.18); the kernel accepts shorter ones and takes the rest as zero.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bytemuck::{Pod, Zeroable};

pub(super) const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
pub(super) const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
pub(super) const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
pub(super) const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
pub(super) const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
pub(super) const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
pub(super) const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// [`LinkInfo::kind`] of an XDP link.
pub const LINK_XDP: u32 = 6;
/// [`LinkInfo::kind`] of a TCX link (Linux 6.6).
pub const LINK_TCX: u32 = 11;

/// `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;

/// Flag of `BPF_OBJ_GET`: the descriptor cannot be used to change the map.
const BPF_F_RDONLY: u32 = 1 << 3;

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct ElemAttr {
    pub(super) map_fd: u32,
    pub(super) pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct BatchAttr {
    pub(super) in_batch: u64,
    pub(super) out_batch: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map_fd: u32,
    pub(super) elem_flags: u64,
    pub(super) flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct IterLinkAttr {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    /// Address of a `union bpf_iter_link_info`; for maps its only member is a descriptor.
    info: u64,
    info_len: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct IterAttr {
    link_fd: u32,
    flags: u32,
}

/// What the kernel says about a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Link number.
    pub id: u32,
    /// Program number.
    pub program: u32,
    pad: u32,
    /// Interface index for XDP and TCX links; 0 when the interface is gone. Other kinds keep something else here.
    pub ifindex: u32,
    pad_end: u32,
}

/// Calls bpf(2).
///
/// # Safety
///
/// Every address in `attr` must be valid for what `command` reads or writes there.
pub(super) unsafe fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is plain data of the size that is passed; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn address<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

pub(super) fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
    // An open descriptor is never negative.
    fd.as_raw_fd().unsigned_abs()
}

/// What an opened pin is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading a map. Links have no such thing.
    ReadOnly,
    /// Anything.
    Full,
}

/// Opens a pinned map or link.
///
/// # Errors
///
/// What bpf(2) reports: `ENOENT`, `EPERM`, …
pub fn open_pin(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = if access == Access::ReadOnly { BPF_F_RDONLY } else { 0 };
    let mut attr = PinAttr { path: path.as_ptr() as u64, fd: 0, flags };
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    owned(fd)
}

/// A descriptor that the kernel has just returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: by the caller's word; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ties an iterator's program (`iter/bpf_map_elem`, Linux 5.9) to a map. The link keeps both.
///
/// # Errors
///
/// What bpf(2) reports: `EACCES` when the program reads beyond the map's keys or values, …
pub fn link_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut info = [raw_fd(map)];
    let mut attr = IterLinkAttr {
        program_fd: raw_fd(program),
        attach_type: BPF_TRACE_ITER,
        info: address(&mut info),
        info_len: u32::try_from(size_of_val(&info)).unwrap_or(u32::MAX),
        ..IterLinkAttr::default()
    };
    // SAFETY: the kernel reads `info_len` bytes of `info`, which has that size.
    owned(unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?)
}

/// Begins an iteration. Reading from the file calls the program.
///
/// # Errors
///
/// What bpf(2) reports: `ENOMEM`, …
pub fn iterate(link: BorrowedFd<'_>) -> io::Result<File> {
    let mut attr = IterAttr { link_fd: raw_fd(link), flags: 0 };
    // SAFETY: the attributes have no addresses.
    Ok(owned(unsafe { bpf(BPF_ITER_CREATE, &mut attr) }?)?.into())
}

/// Where a link is attached.
///
/// # Errors
///
/// What bpf(2) reports: not a BPF object, or a kernel that has no links.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = [LinkInfo::zeroed()];
    let info_len = u32::try_from(size_of::<LinkInfo>()).unwrap_or(u32::MAX);
    let mut attr = InfoAttr { fd: raw_fd(link), info_len, info: address(&mut info) };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which has that size.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info[0])
}
