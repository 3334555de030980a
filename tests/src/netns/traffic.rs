// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small servers and clients with real sockets.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::ns::Namespace;

/// Patience of every socket.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Echoes TCP and UDP on one address and port, and remembers who spoke to it.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Starts to listen; it is ready when this returns.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn start(namespace: &Namespace, address: &str, port: u16) -> Result<Self> {
        let end: SocketAddr = format!("{address}:{port}").parse()?;
        let (tcp, udp) = namespace.run(|| Ok((TcpListener::bind(end)?, UdpSocket::bind(end)?)))?;
        udp.set_read_timeout(Some(Duration::from_millis(50)))?;
        tcp.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let peers: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let mut threads = Vec::new();
        let (told, seen) = (Arc::clone(&stop), Arc::clone(&peers));
        threads.push(thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                    note(&seen, peer);
                    // Nobody waits for an answer that cannot be sent.
                    let _ = udp.send_to(&buffer[..length], peer);
                }
            }
        }));
        let (told, seen) = (Arc::clone(&stop), Arc::clone(&peers));
        threads.push(thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, peer)) => {
                        note(&seen, peer);
                        let told = Arc::clone(&told);
                        thread::spawn(move || serve(stream, &told));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        }));
        Ok(Self { stop, peers, threads })
    }

    /// Everyone who spoke to it so far: each datagram, each connection.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().map_or_else(|_| Vec::new(), |peers| peers.clone())
    }

    /// The distinct addresses among them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.peers().iter().map(SocketAddr::ip).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn note(peers: &Mutex<Vec<SocketAddr>>, peer: SocketAddr) {
    if let Ok(mut peers) = peers.lock() {
        peers.push(peer);
    }
}

fn serve(mut stream: TcpStream, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Opens a TCP connection from a given address.
///
/// # Errors
///
/// When it is refused or nobody answers within [`PATIENCE`].
pub fn connect(namespace: &Namespace, from: &str, to: &str, port: u16) -> Result<TcpStream> {
    connect_from(namespace, (from, 0), to, port)
}

/// As [`connect`], from a given port, too, on which others may listen later.
///
/// # Errors
///
/// As [`connect`].
pub fn connect_from(
    namespace: &Namespace,
    (from, own): (&str, u16),
    to: &str,
    port: u16,
) -> Result<TcpStream> {
    let (from, to): (Ipv4Addr, Ipv4Addr) = (from.parse()?, to.parse()?);
    namespace.run(|| {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just given us this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let yes: libc::c_int = 1;
        // SAFETY: the value has the length that is passed.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                (&raw const yes).cast(),
                libc::socklen_t::try_from(size_of_val(&yes))?,
            )
        };
        let local = address(SocketAddrV4::new(from, own));
        let length = libc::socklen_t::try_from(size_of_val(&local))?;
        // SAFETY: the address has the length that is passed.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const local).cast(), length) };
        ensure!(bound == 0, "bind {from}: {}", std::io::Error::last_os_error());
        let wait = libc::timeval { tv_sec: libc::time_t::try_from(PATIENCE.as_secs())?, tv_usec: 0 };
        // SAFETY: the value has the length that is passed. Also limits connect(2).
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDTIMEO,
                (&raw const wait).cast(),
                libc::socklen_t::try_from(size_of_val(&wait))?,
            )
        };
        let remote = address(SocketAddrV4::new(to, port));
        // SAFETY: the address has the length that is passed.
        let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const remote).cast(), length) };
        ensure!(connected == 0, "connecting {from} to {to}:{port}: {}", std::io::Error::last_os_error());
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

fn address(end: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(2),
        sin_port: end.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(end.ip().octets()) },
        sin_zero: [0; 8],
    }
}

/// Sends `length` bytes through an echoing connection and checks what comes back.
///
/// # Errors
///
/// When something is lost or changed.
pub fn exchange(stream: &mut TcpStream, length: usize) -> Result<()> {
    let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let mut writer = stream.try_clone()?;
    let back = thread::scope(|scope| -> Result<Vec<u8>> {
        let writing = scope.spawn(|| writer.write_all(&sent));
        let mut back = vec![0; length];
        stream.read_exact(&mut back).context("waiting for the echo")?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(back)
    })?;
    ensure!(back == sent, "what came back is not what was sent");
    Ok(())
}

/// A UDP socket bound to an address in a namespace.
///
/// # Errors
///
/// When it cannot be bound.
pub fn datagrams(namespace: &Namespace, from: &str, port: u16) -> Result<UdpSocket> {
    let socket = namespace.run(|| Ok(UdpSocket::bind(format!("{from}:{port}"))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a datagram and waits for its echo.
///
/// # Errors
///
/// When it does not come within the socket's patience, or is another.
pub fn ask(socket: &UdpSocket, to: &str, port: u16, data: &[u8]) -> Result<()> {
    socket.send_to(data, (to, port))?;
    let mut buffer = [0; 65_536];
    let (length, from) =
        socket.recv_from(&mut buffer).with_context(|| format!("no echo from {to}:{port}"))?;
    ensure!(from.to_string() == format!("{to}:{port}"), "an answer from {from}");
    ensure!(&buffer[..length] == data, "what came back is not what was sent");
    Ok(())
}
