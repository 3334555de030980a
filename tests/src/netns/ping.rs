// SPDX-License-Identifier: MIT OR Apache-2.0
//! ICMP with a raw socket: echo requests with any TTL, and whatever comes back.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Ipv4HeaderSlice};

use crate::ns::Namespace;

/// An ICMP message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Sender.
    pub from: Ipv4Addr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Everything after the first four bytes.
    pub rest: Vec<u8>,
}

/// A raw ICMP socket in a namespace.
#[derive(Debug)]
pub struct Icmp {
    socket: OwnedFd,
}

impl Icmp {
    /// Opens the socket, bound to an address.
    ///
    /// # Errors
    ///
    /// When it cannot be opened or bound.
    pub fn open(namespace: &Namespace, address: &str) -> Result<Self> {
        let address: Ipv4Addr = address.parse()?;
        namespace.run(|| {
            // SAFETY: no memory is involved.
            let fd = unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP)
            };
            ensure!(fd >= 0, "raw socket: {}", io::Error::last_os_error());
            // SAFETY: the kernel has just given us this descriptor.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            let local = end(address);
            let length = libc::socklen_t::try_from(size_of_val(&local))?;
            // SAFETY: the address has the length that is passed.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const local).cast(), length) };
            ensure!(bound == 0, "bind {address}: {}", io::Error::last_os_error());
            let icmp = Self { socket };
            icmp.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 50_000 })?;
            Ok(icmp)
        })
    }

    fn option<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> Result<()> {
        let length = libc::socklen_t::try_from(size_of::<T>())?;
        // SAFETY: the value has the length that is passed.
        let set = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), level, name, (&raw const *value).cast(), length)
        };
        ensure!(set == 0, "socket option {name}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Sends an echo request.
    ///
    /// # Errors
    ///
    /// When it cannot be sent.
    pub fn request(&self, to: &str, id: u16, ttl: u8, data: &[u8]) -> Result<()> {
        self.option(libc::IPPROTO_IP, libc::IP_TTL, &i32::from(ttl))?;
        let header =
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: 1 }), data);
        let mut message = header.to_bytes().to_vec();
        message.extend(data);
        let remote = end(to.parse()?);
        // SAFETY: message and address have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const remote).cast(),
                libc::socklen_t::try_from(size_of_val(&remote))?,
            )
        };
        ensure!(sent >= 0, "sending to {to}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Waits for a message that `wanted` says yes to.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn wait(&self, patience: Duration, wanted: impl Fn(&Message) -> bool) -> Result<Message> {
        let end = Instant::now() + patience;
        let mut buffer = vec![0u8; 65_536];
        while Instant::now() < end {
            // SAFETY: the buffer has the length that is passed.
            let got =
                unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(length) = usize::try_from(got) else { continue };
            let header = Ipv4HeaderSlice::from_slice(&buffer[..length]).context("a raw socket gives IP")?;
            let body = &buffer[header.slice().len()..length];
            ensure!(body.len() >= 8, "a message of {} bytes", body.len());
            let from = header.source_addr();
            let message = Message { from, kind: body[0], code: body[1], rest: body[4..].to_vec() };
            if wanted(&message) {
                return Ok(message);
            }
        }
        bail!("no such message within {patience:?}")
    }

    /// Sends an echo request and waits for its reply.
    ///
    /// # Errors
    ///
    /// When there is none, or it carries something else.
    pub fn ping(&self, to: &str, id: u16, data: &[u8]) -> Result<()> {
        self.request(to, id, 64, data)?;
        let reply = self
            .wait(Duration::from_secs(3), |message| {
                message.kind == 0 && message.rest[..2] == id.to_be_bytes()
            })
            .with_context(|| format!("ping {to}"))?;
        ensure!(reply.from.to_string() == to && &reply.rest[4..] == data, "{reply:?}");
        Ok(())
    }
}

fn end(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    }
}
