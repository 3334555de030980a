// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps whose sizes have been checked, read and written in batches (Linux 5.6), or element by element where the kernel
//! knows no batches.

use std::{collections::HashSet, hash::Hash, io, marker::PhantomData, os::fd::AsFd};

use aya::maps::{MapData, MapError};
use bytemuck::Pod;

use super::bpf::{
    BPF_MAP_DELETE_BATCH, BPF_MAP_DELETE_ELEM, BPF_MAP_GET_NEXT_KEY, BPF_MAP_LOOKUP_BATCH,
    BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_BATCH, BPF_MAP_UPDATE_ELEM, BatchAttr, ElemAttr, address, bpf,
    raw_fd,
};

/// The kernel's own "not supported", which libc has no name for (include/linux/errno.h).
const ENOTSUPP: i32 = 524;

/// Entries asked for at once. A hash map needs room for its longest bucket; more only saves calls.
const BATCH: usize = 16_384;

/// Largest key: the kernel writes its position, which is a key for arrays and a bucket number for hash maps.
const POSITION_WORDS: usize = 8;

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
        self.for_first(self.max_entries, visit)
    }

    /// As [`Self::for_each`], up to entry `limit`. An array has its entries in order.
    ///
    /// # Errors
    ///
    /// As [`Self::for_each`].
    pub fn for_first(&self, limit: u32, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
        match self.for_each_batch(limit, visit) {
            // Only the first call can say so: a kernel before 5.6, or a map type without batches.
            Err(error) if not_supported(&error) => self.for_each_key(limit, visit),
            result => result,
        }
    }

    fn for_each_batch(&self, limit: u32, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
        let whole = limit >= self.max_entries;
        let mut left = limit as usize;
        let mut size = BATCH.min(limit.max(1) as usize);
        let (mut keys, mut values) = (vec![K::zeroed(); size], vec![V::zeroed(); size]);
        let mut position = [[0u64; POSITION_WORDS]; 2];
        let mut started = false;
        while left > 0 {
            // Only an array is not read whole, and it has no buckets that need room.
            let count = if whole { size } else { size.min(left) };
            let [before, after] = &mut position;
            let mut attr = BatchAttr {
                in_batch: if started { address(before) } else { 0 },
                out_batch: address(after),
                keys: address(&mut keys),
                values: address(&mut values),
                count: u32::try_from(count).unwrap_or(u32::MAX),
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
                break;
            }
            if !whole {
                left = left.saturating_sub(attr.count as usize);
            }
            position.swap(0, 1);
            started = true;
        }
        Ok(())
    }

    /// Key by key. When the key just visited is deleted meanwhile, the kernel starts again from the first one:
    /// what has been visited is remembered, and the walk is bounded.
    fn for_each_key(&self, limit: u32, visit: &mut dyn FnMut(&K, &V)) -> io::Result<()> {
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
                if visited.len() >= limit as usize {
                    return Ok(());
                }
            }
            previous = Some(next);
        }
        Ok(())
    }

    /// Writes entries.
    ///
    /// # Errors
    ///
    /// What bpf(2) reports; a part may have been written.
    pub fn write(&self, entries: &[(K, V)]) -> io::Result<()> {
        for entries in entries.chunks(BATCH) {
            let mut keys: Vec<K> = entries.iter().map(|(key, _)| *key).collect();
            let mut values: Vec<V> = entries.iter().map(|(_, value)| *value).collect();
            match self.batch(BPF_MAP_UPDATE_BATCH, &mut keys, &mut values) {
                Err(error) if not_supported(&error) => entries
                    .iter()
                    .try_for_each(|(key, value)| self.single(BPF_MAP_UPDATE_ELEM, [*key], [*value]))?,
                result => result?,
            }
        }
        Ok(())
    }

    /// Removes entries, which have to be there.
    ///
    /// # Errors
    ///
    /// What bpf(2) reports; a part may have been removed.
    pub fn remove(&self, keys: &[K]) -> io::Result<()> {
        for keys in keys.chunks(BATCH) {
            match self.batch(BPF_MAP_DELETE_BATCH, &mut keys.to_vec(), &mut []) {
                Err(error) if not_supported(&error) => {
                    keys.iter()
                        .try_for_each(|key| self.single(BPF_MAP_DELETE_ELEM, [*key], [V::zeroed()]))?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// `values` is empty or as long as `keys`.
    fn batch(&self, command: libc::c_int, keys: &mut [K], values: &mut [V]) -> io::Result<()> {
        let mut attr = BatchAttr {
            keys: address(keys),
            values: if values.is_empty() { 0 } else { address(values) },
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: self.fd(),
            ..BatchAttr::default()
        };
        // SAFETY: `keys` and `values` have `count` entries of the map's sizes, checked in `new`; removal reads no values.
        unsafe { bpf(command, &mut attr) }.map(|_| ())
    }

    fn single(&self, command: libc::c_int, mut key: [K; 1], mut value: [V; 1]) -> io::Result<()> {
        let mut attr = ElemAttr {
            map_fd: self.fd(),
            key: address(&mut key),
            value: if command == BPF_MAP_DELETE_ELEM { 0 } else { address(&mut value) },
            ..ElemAttr::default()
        };
        // SAFETY: key and value have the map's sizes, checked in `new`; removal reads no value.
        unsafe { bpf(command, &mut attr) }.map(|_| ())
    }
}

/// Whether the kernel does not know batches, or not for this kind of map.
fn not_supported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}
