// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raw sockets, for protocols that the kernel of the tests has no sockets of.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::Ipv4HeaderSlice;

use crate::ns::Namespace;

/// A raw socket of one protocol, bound to an address.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
}

impl Raw {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// When it cannot be made or bound.
    pub fn open(namespace: &Namespace, address: &str, protocol: u8) -> Result<Self> {
        let address: Ipv4Addr = address.parse()?;
        namespace.run(|| {
            // SAFETY: no memory is involved.
            let fd =
                unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
            ensure!(fd >= 0, "raw socket: {}", io::Error::last_os_error());
            // SAFETY: the kernel has just given us this descriptor.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let local = end(address);
            let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
            // SAFETY: address and value have the lengths that are passed.
            let done = unsafe {
                libc::bind(socket.as_raw_fd(), (&raw const local).cast(), length(&local)?) == 0
                    && libc::setsockopt(
                        socket.as_raw_fd(),
                        libc::SOL_SOCKET,
                        libc::SO_RCVTIMEO,
                        (&raw const wait).cast(),
                        length(&wait)?,
                    ) == 0
            };
            ensure!(done, "bind {address}: {}", io::Error::last_os_error());
            Ok(Self { socket })
        })
    }

    /// Sends what is behind the IP header.
    ///
    /// # Errors
    ///
    /// When it cannot be sent.
    pub fn send(&self, to: &str, bytes: &[u8]) -> Result<()> {
        let remote = end(to.parse()?);
        // SAFETY: message and address have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const remote).cast(),
                length(&remote)?,
            )
        };
        ensure!(sent >= 0, "sending to {to}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Waits for the next packet: who sent it, and what is behind the IP header.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn receive(&self, patience: Duration) -> Result<(String, Vec<u8>)> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0u8; 65_536];
        while Instant::now() < end {
            // SAFETY: the buffer has the length that is passed.
            let got =
                unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(length) = usize::try_from(got) else { continue };
            let header = Ipv4HeaderSlice::from_slice(&buffer[..length]).context("a raw socket gives IP")?;
            let body = buffer[header.slice().len()..length].to_vec();
            return Ok((header.source_addr().to_string(), body));
        }
        bail!("nothing within {patience:?}")
    }
}

fn length<T>(value: &T) -> Result<libc::socklen_t> {
    Ok(libc::socklen_t::try_from(size_of_val(value))?)
}

fn end(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    }
}
