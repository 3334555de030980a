// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every frame that arrives at an interface, seen by a packet socket.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};

use crate::ns::Namespace;

/// Records until it is asked what it has seen.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Vec<u8>>>>>,
}

/// Receive buffer: room for everything a test sends in a burst.
const BUFFER: libc::c_int = 32 << 20;

impl Sniffer {
    /// Starts to record what arrives at `interface`.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = namespace.index(interface)?;
        let socket = namespace.run(|| open(index))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || record(&socket, &told));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops, and returns every frame.
    ///
    /// # Errors
    ///
    /// When the kernel had to drop frames: then nothing can be said about them.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished already")?;
        thread.join().map_err(|_| anyhow::anyhow!("the sniffer panicked"))?
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// IPv4 source address of a frame without tags; `None`: something else.
#[must_use]
pub fn source(frame: &[u8]) -> Option<[u8; 4]> {
    (frame.get(12..14)? == [8, 0]).then(|| frame.get(26..30)?.try_into().ok()).flatten()
}

fn open(index: u32) -> Result<OwnedFd> {
    let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    // SAFETY: no memory is involved.
    let fd =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    ensure!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    // SAFETY: plain data; zero is valid for every field.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the address has the length that is passed.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            libc::socklen_t::try_from(size_of_val(&address))?,
        )
    };
    ensure!(bound == 0, "binding a packet socket: {}", io::Error::last_os_error());
    Ok(socket)
}

fn option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>())?;
    // SAFETY: the value has the length that is passed.
    let set =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    ensure!(set == 0, "socket option {name}: {}", io::Error::last_os_error());
    Ok(())
}

fn record(socket: &OwnedFd, stop: &AtomicBool) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0u8; 65_536];
    loop {
        // SAFETY: plain data; zero is valid for every field.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&from))?;
        // SAFETY: buffer and address have the lengths that are passed.
        let got = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            ensure!(
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
                "{error}"
            );
            // Only when there is nothing left: what was sent before the end was asked for is seen.
            if stop.load(Ordering::Relaxed) {
                break;
            }
        } else if from.sll_pkttype != libc::PACKET_OUTGOING {
            frames.push(buffer[..usize::try_from(got)?].to_vec());
        }
    }
    let mut statistics = [0u32; 2];
    let mut length = libc::socklen_t::try_from(size_of_val(&statistics))?;
    const PACKET_STATISTICS: libc::c_int = 6;
    // SAFETY: the array has the length that is passed.
    let read = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(read == 0 && statistics[1] == 0, "the sniffer lost {} frames", statistics[1]);
    Ok(frames)
}
