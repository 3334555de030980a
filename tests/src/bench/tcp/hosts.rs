// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real hosts at both ends of the chain: a server behind every destination, clients on every backend's address.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use socket2::{Domain, Socket, Type};

use crate::bench::{
    chain::{
        BACKENDS, Chain, DESTINATIONS, FIRST_BACKEND, FIRST_DESTINATION, FRONTEND, LAN0_MAC, WAN0_MAC, mac,
    },
    signal,
};

/// Where bulk data goes.
pub(super) const BULK: u16 = 9001;
/// Where requests are answered.
pub(super) const ANSWER: u16 = 9002;
/// Bytes of a request and of its answer.
pub(super) const MESSAGE: usize = 64;
/// A peer that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// How often those who wait look whether they should end.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of one write of a bulk stream, and of one read.
const PIECE: usize = 1 << 16;
const STACK: usize = 1 << 18;

/// Gives backends and destinations their routes, and destinations their addresses.
pub(super) fn equip(chain: &Chain) -> anyhow::Result<()> {
    let lines = format!(
        "neigh replace 10.0.0.1 lladdr {} dev gen0 nud permanent\nroute add default via 10.0.0.1 dev gen0\n",
        mac(LAN0_MAC)
    );
    chain.generator.ip_batch(&lines)?;
    let mut lines = format!("neigh replace {FRONTEND} lladdr {} dev sink0 nud permanent\n", mac(WAN0_MAC));
    for index in 0..DESTINATIONS {
        writeln!(lines, "addr add {}/32 dev sink0", Ipv4Addr::from(FIRST_DESTINATION.to_bits() + index))?;
    }
    // Without translation answers go to the backends themselves.
    writeln!(lines, "route add 10.0.0.0/16 via {FRONTEND} dev sink0")?;
    chain.sink.ip_batch(&lines)?;
    // The host's own choice may be one that estimates the path: on one without any delay some go down to a few kilobits.
    for host in [&chain.generator, &chain.sink] {
        host.sysctl("ipv4/tcp_congestion_control", "cubic")
            .or_else(|_| host.sysctl("ipv4/tcp_congestion_control", "reno"))?;
    }
    Ok(())
}

/// The servers of all destinations.
#[derive(Debug)]
pub(super) struct Servers {
    /// Bytes of bulk data that have arrived.
    pub(super) received: AtomicU64,
    /// Set to end them.
    pub(super) end: AtomicBool,
}

impl Servers {
    /// Not yet at work.
    pub(super) const fn new() -> Self {
        Self { received: AtomicU64::new(0), end: AtomicBool::new(false) }
    }

    /// Listens on `port` of the calling thread's namespace.
    pub(super) fn listen(port: u16) -> anyhow::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a socket")?;
        socket.set_read_timeout(Some(LOOK))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        socket.listen(1024).with_context(|| format!("cannot listen on port {port}"))?;
        Ok(socket.into())
    }

    /// Serves one connection after the other, until the end.
    pub(super) fn serve(&self, listener: &TcpListener, job: fn(&Self, TcpStream) -> io::Result<()>) {
        while !self.end.load(Ordering::Relaxed) {
            match listener.accept() {
                // A client that goes away in the middle is counted at its own side.
                Ok((stream, _)) => {
                    drop(stream.set_read_timeout(Some(SILENCE)).and_then(|()| job(self, stream)))
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    /// Counts what arrives, until the end.
    pub(super) fn swallow(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        while !self.end.load(Ordering::Relaxed) {
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                length => _ = self.received.fetch_add(length as u64, Ordering::Relaxed),
            }
        }
        Ok(())
    }

    /// Sends every message back.
    pub(super) fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE];
        loop {
            match stream.read_exact(&mut message) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
            stream.write_all(&message)?;
        }
    }
}

/// Runs `count` threads of a job, inside the calling thread's namespace, and collects what they return.
pub(super) fn crowd<T: Send>(
    count: u32,
    job: impl Fn(u32) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    let job = &job;
    thread::scope(|scope| {
        let mut members = Vec::new();
        for number in 0..count {
            let member = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || job(number));
            members.push(member.context("cannot start a thread")?);
        }
        members
            .into_iter()
            .map(|member| member.join().unwrap_or_else(|_panic| Err(anyhow!("a thread panicked"))))
            .collect()
    })
}

/// Connection number `number`, from one backend after the other to one destination after the other.
pub(super) fn connect(number: u32, port: u16) -> io::Result<TcpStream> {
    let backend = Ipv4Addr::from(FIRST_BACKEND.to_bits() + number % BACKENDS);
    let destination = Ipv4Addr::from(FIRST_DESTINATION.to_bits() + number / BACKENDS % DESTINATIONS);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(backend, 0).into())?;
    socket.connect_timeout(&SocketAddrV4::new(destination, port).into(), SILENCE)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Sends bulk data over one connection until `deadline`.
pub(super) fn pour(number: u32, deadline: Instant) -> anyhow::Result<()> {
    let mut stream = connect(number, BULK).context("cannot connect")?;
    let piece = vec![0x5a; PIECE];
    while Instant::now() < deadline {
        signal::check()?;
        stream.write_all(&piece).context("a stream does not go on")?;
    }
    Ok(())
}

/// One message and its answer.
pub(super) fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    let mut message = [0x5a; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}
