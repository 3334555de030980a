// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls of bpf(2) that aya has no interface for: reading a map in batches, and asking a link where it is.
//!
//! This is the only file that calls bpf(2) itself. Layouts are those of `union bpf_attr` and `struct bpf_link_info`
//! in include/uapi/linux/bpf.h (Linux 6.18); the kernel accepts shorter ones and takes the rest as zero.

use std::{
    collections::HashSet,
    ffi::CString,
    hash::Hash,
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::maps::{MapData, MapError};
use bytemuck::{Pod, Zeroable};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// [`LinkInfo::kind`] of an XDP link.
pub const LINK_XDP: u32 = 6;
/// [`LinkInfo::kind`] of a TCX link (Linux 6.6).
pub const LINK_TCX: u32 = 11;

/// Flag of `BPF_OBJ_GET`: the descriptor cannot be used to change the map.
const BPF_F_RDONLY: u32 = 1 << 3;

/// The kernel's own "not supported", which libc has no name for (include/linux/errno.h).
const ENOTSUPP: i32 = 524;

/// Entries asked for at once. A hash map needs room for its longest bucket; more only saves calls.
const BATCH: usize = 16_384;

/// Largest key: the kernel writes its position, which is a key for arrays and a bucket number for hash maps.
const POSITION_WORDS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
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
unsafe fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is plain data of the size that is passed; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn address<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
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
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just returned this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// Why a map cannot be read as the type it should have.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The sizes differ.
    #[error("{what} size is {found} bytes, this natgw expects {expected}")]
    Size {
        /// `key` or `value`.
        what: &'static str,
        /// Bytes.
        found: u32,
        /// Bytes.
        expected: usize,
    },
    /// The kernel did not say.
    #[error("cannot ask the kernel about the map")]
    Info(#[from] MapError),
}

/// A map whose key and value sizes have been compared with `K` and `V`.
#[derive(Debug)]
pub struct TypedMap<K, V> {
    data: MapData,
    max_entries: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod + Eq + Hash, V: Pod> TypedMap<K, V> {
    /// Takes a map whose values are not per CPU.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] when key or value have another size than `K` and `V`.
    pub fn new(data: MapData) -> Result<Self, LayoutError> {
        const { assert!(size_of::<K>() <= size_of::<[u64; POSITION_WORDS]>()) };
        let info = data.info()?;
        let sizes = [("key", info.key_size(), size_of::<K>()), ("value", info.value_size(), size_of::<V>())];
        for (what, found, expected) in sizes {
            if found as usize != expected {
                return Err(LayoutError::Size { what, found, expected });
            }
        }
        Ok(Self { data, max_entries: info.max_entries(), types: PhantomData })
    }

    /// Entries the map has room for.
    #[must_use]
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn fd(&self) -> u32 {
        raw_fd(self.data.fd().as_fd())
    }

    /// The value under `key`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// What bpf(2) reports, except `ENOENT`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let (mut key, mut value) = ([*key], [V::zeroed()]);
        let mut attr = ElemAttr {
            map_fd: self.fd(),
            key: address(&mut key),
            value: address(&mut value),
            ..ElemAttr::default()
        };
        // SAFETY: key and value have the map's sizes, checked in `new`.
        match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value[0])),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Visits every entry once. Entries that come or go meanwhile may or may not be visited.
    ///
    /// # Errors
    ///
    /// What bpf(2) reports.
    pub fn for_each(&self, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
        match self.for_each_batch(visit) {
            // Only the first call can say so: a kernel before 5.6, or a map type without batches.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                self.for_each_key(visit)
            }
            result => result,
        }
    }

    fn for_each_batch(&self, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
        let mut size = BATCH.min(self.max_entries.max(1) as usize);
        let (mut keys, mut values) = (vec![K::zeroed(); size], vec![V::zeroed(); size]);
        let mut position = [[0u64; POSITION_WORDS]; 2];
        let mut started = false;
        loop {
            let [before, after] = &mut position;
            let mut attr = BatchAttr {
                in_batch: if started { address(before) } else { 0 },
                out_batch: address(after),
                keys: address(&mut keys),
                values: address(&mut values),
                count: u32::try_from(size).unwrap_or(u32::MAX),
                map_fd: self.fd(),
                ..BatchAttr::default()
            };
            // SAFETY: `keys` and `values` have room for `count` entries of the map's sizes, checked in `new`;
            // positions have room for the largest key.
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let end = match result.as_ref().map_err(io::Error::raw_os_error) {
                Ok(_) => false,
                Err(Some(libc::ENOENT)) => true,
                Err(Some(libc::ENOSPC)) => {
                    // The next bucket is longer than the batch.
                    size *= 2;
                    keys.resize(size, K::zeroed());
                    values.resize(size, V::zeroed());
                    continue;
                }
                Err(_) => return result.map(|_| ()),
            };
            for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
                visit(key, value);
            }
            if end {
                return Ok(());
            }
            position.swap(0, 1);
            started = true;
        }
    }

    /// Key by key. When the key just visited is deleted meanwhile, the kernel starts again from the first one:
    /// what has been visited is remembered, and the walk is bounded.
    fn for_each_key(&self, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
        let mut visited = HashSet::new();
        let mut previous: Option<[K; 1]> = None;
        for _ in 0..u64::from(self.max_entries) * 4 + 1 {
            let mut next = [K::zeroed()];
            let mut attr = ElemAttr {
                map_fd: self.fd(),
                key: previous.as_mut().map_or(0, |key| address(key)),
                value: address(&mut next),
                ..ElemAttr::default()
            };
            // SAFETY: both keys have the map's key size, checked in `new`; no key asks for the first one.
            match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next[0])?
                && visited.insert(next[0])
            {
                visit(&next[0], &value);
            }
            previous = Some(next);
        }
        Ok(())
    }
}
