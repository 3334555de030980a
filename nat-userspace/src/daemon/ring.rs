// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the data path's ring buffer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use nat_common::abi::{event, names};
use tokio::{io::unix::AsyncFd, sync::mpsc::Sender};
use tracing::error;

use super::Event;
use crate::datapath::pin::Instance;

/// Records handed to the loop at once.
const BATCH: usize = 256;

/// Opens the ring buffer of `instance`.
///
/// # Errors
///
/// When it is not pinned, or cannot be mapped.
pub(super) fn open(instance: &Instance) -> Result<AsyncFd<RingBuf<MapData>>> {
    let ring = RingBuf::try_from(instance.open(names::EVENTS)?).context("opening map `EVENTS`")?;
    pollable(ring).context("waiting for map `EVENTS`")
}

/// Has the event loop watch a ring buffer.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn pollable<T: AsFd + AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's ring buffers own their descriptor: it is the same one, and open, for as long as they live.
    unsafe { AsyncFd::register(ring) }.map_err(Into::into)
}

/// Sends [`Event::Ring`] as long as the receiver lives.
pub(super) async fn read(mut ring: AsyncFd<RingBuf<MapData>>, events: Sender<Event>) {
    loop {
        let mut guard = match ring.readable_mut().await {
            Ok(guard) => guard,
            Err(error) => {
                error!("the data path's events are not read any more: {error}");
                return;
            }
        };
        let mut records: Vec<event::Event> = Vec::new();
        let buffer = guard.get_inner_mut();
        while records.len() < BATCH
            && let Some(record) = buffer.next()
        {
            // Of another length: of a data path with another layout, which the adoption check excludes.
            records.extend(bytemuck::try_pod_read_unaligned::<event::Event>(&record).ok());
        }
        if records.len() < BATCH {
            guard.clear_ready();
        }
        if !records.is_empty() && events.send(Event::Ring(records)).await.is_err() {
            return;
        }
    }
}
