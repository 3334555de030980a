// SPDX-License-Identifier: MIT OR Apache-2.0
//! The servers: HTTP, an echo, and a sink, which note who spoke to them.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::socket;

/// Port of the HTTP server.
pub(super) const HTTP: u16 = 80;
/// Port of the echo, TCP and UDP.
pub(super) const ECHO: u16 = 9000;
/// Port of the sink, TCP and UDP.
pub(super) const SINK: u16 = 9001;

/// How often threads look whether to stop.
const SLICE: Duration = Duration::from_millis(100);
/// Enough for a thread that moves bytes.
const STACK: usize = 128 * 1024;
/// Largest download.
const LARGEST: usize = 64 << 20;

/// One peer as a server saw it: each connection, each datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) protocol: &'static str,
    /// The server's port.
    pub(super) port: u16,
    pub(super) peer: SocketAddrV4,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Vec<Seen>>,
    sunk: AtomicU64,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, protocol: &'static str, port: u16, peer: SocketAddr) {
        if let SocketAddr::V4(peer) = peer {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(Seen { protocol, port, peer });
        }
    }
}

/// All services of one host, each on a thread.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a connection is for.
type Service = fn(&Shared, TcpStream, SocketAddr) -> io::Result<()>;

impl Server {
    /// Starts the services on `address` in the namespace of the calling thread.
    pub(super) fn start(address: Ipv4Addr) -> Result<Self> {
        let mut server = Self { shared: Arc::default(), threads: Vec::new() };
        let services: [(u16, Service); 3] = [(HTTP, http), (ECHO, echo), (SINK, sink)];
        for (port, service) in services {
            let listener = TcpListener::bind((address, port))
                .with_context(|| format!("listening on {address}:{port}"))?;
            let wait = libc::timeval { tv_sec: 0, tv_usec: SLICE.as_micros() as libc::suseconds_t };
            socket::set(&listener, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
            let shared = Arc::clone(&server.shared);
            server.threads.push(thread::spawn(move || accept(&shared, &listener, port, service)));
        }
        let datagrams = UdpSocket::bind((address, ECHO))?;
        datagrams.set_read_timeout(Some(SLICE))?;
        let shared = Arc::clone(&server.shared);
        server.threads.push(thread::spawn(move || return_datagrams(&shared, &datagrams)));
        // Its buffer overflows, which costs nobody anything: what arrives is counted at the interface.
        let unread = UdpSocket::bind((address, SINK))?;
        let shared = Arc::clone(&server.shared);
        server.threads.push(thread::spawn(move || {
            while !shared.stopped() {
                thread::sleep(SLICE);
            }
            drop(unread);
        }));
        Ok(server)
    }

    /// Everyone who spoke to a port since the last call, and forgets all.
    pub(super) fn take(&self, protocol: &str, port: u16) -> Vec<SocketAddrV4> {
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *seen).into_iter();
        all.filter(|one| one.protocol == protocol && one.port == port).map(|one| one.peer).collect()
    }

    /// Bytes that have arrived at the TCP sink.
    pub(super) fn sunk(&self) -> u64 {
        self.shared.sunk.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that panicked has failed its clients already.
            let _ended = thread.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, port: u16, service: Service) {
    while !shared.stopped() {
        let Ok((stream, peer)) = listener.accept() else { continue };
        shared.note("tcp", port, peer);
        let shared = Arc::clone(shared);
        let serve = move || {
            let prepared = stream.set_read_timeout(Some(SLICE)).and_then(|()| stream.set_nodelay(true));
            // A client that goes away is not the server's failure.
            let _client_gone = prepared.and_then(|()| service(&shared, stream, peer));
        };
        // Without a thread the connection is closed, which its client notices.
        let _closed = thread::Builder::new().stack_size(STACK).spawn(serve);
    }
}

fn return_datagrams(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    while !shared.stopped() {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            shared.note("udp", ECHO, peer);
            // Nobody waits for an answer that cannot be sent.
            let _unsent = socket.send_to(&buffer[..length], peer);
        }
    }
}

/// Reads until there is something, the end (0), or the server stops (0).
fn read(shared: &Shared, stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    while !shared.stopped() {
        match stream.read(buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            done => return done,
        }
    }
    Ok(0)
}

fn echo(shared: &Shared, mut stream: TcpStream, _peer: SocketAddr) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match read(shared, &mut stream, &mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn sink(shared: &Shared, mut stream: TcpStream, _peer: SocketAddr) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    loop {
        match read(shared, &mut stream, &mut buffer)? {
            0 => return Ok(()),
            length => shared.sunk.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

/// `GET /N` is answered with N bytes of [`content`], anything else with the address of who asks.
fn http(shared: &Shared, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8192 {
        match read(shared, &mut stream, &mut buffer)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let line = String::from_utf8_lossy(&request);
    let path = line.split_whitespace().nth(1).unwrap_or("/");
    let wanted = path.trim_start_matches('/').parse().ok().filter(|length| *length <= LARGEST);
    let body = wanted.map_or_else(|| format!("you are {peer}\n").into_bytes(), content);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Peer: {peer}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

/// `length` bytes in which a lost, doubled or swapped segment shows.
pub(super) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}
