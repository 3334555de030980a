// SPDX-License-Identifier: MIT OR Apache-2.0
//! Client sockets: real ones, with a few options that the standard library does not have.

use std::{
    io::{self, Read as _, Write as _},
    mem,
    net::{SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{interrupt, namespace::Namespace};

/// How long an answer may take that has to come.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for an answer that must not come: less than the first retransmission of a SYN takes (1 s).
pub(super) const REFUSAL: Duration = Duration::from_millis(400);

/// How an attempt to connect ended.
#[derive(Debug)]
pub(super) enum Attempt {
    /// With a connection.
    Connected(TcpStream),
    /// In silence, after so many SYN segments.
    Unanswered { syns: u64 },
}

/// Tries to connect for as long as `patience`.
pub(super) fn dial(from: &Namespace, to: SocketAddrV4, patience: Duration) -> Result<Attempt> {
    interrupt::check()?;
    let attempt = from.run(|| {
        let socket = start(to).with_context(|| format!("starting a connection to {to}"))?;
        let connected = wait(&socket, patience).with_context(|| format!("connecting to {to}"))?;
        if !connected {
            let info: libc::tcp_info = get(&socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
            return Ok(Attempt::Unanswered { syns: 1 + u64::from(info.tcpi_total_retrans) });
        }
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Attempt::Connected(stream))
    });
    attempt.with_context(|| format!("from `{}`", from.name))
}

/// Connects; silence is an error.
pub(super) fn connect(from: &Namespace, to: SocketAddrV4) -> Result<TcpStream> {
    match dial(from, to, PATIENCE)? {
        Attempt::Connected(stream) => Ok(stream),
        Attempt::Unanswered { syns } => {
            anyhow::bail!("{to} did not answer `{}` within {PATIENCE:?} and {syns} SYN segments", from.name)
        }
    }
}

fn start(to: SocketAddrV4) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    ensure!(fd >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain data, for which zero is valid.
    let mut address: libc::sockaddr_in = unsafe { mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_port = to.port().to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
    // SAFETY: the address has the length that is passed.
    let started = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    let error = io::Error::last_os_error();
    ensure!(started == 0 || error.raw_os_error() == Some(libc::EINPROGRESS), "connect: {error}");
    Ok(socket)
}

/// Waits until the socket is connected; `false`: no answer in time.
fn wait(socket: &OwnedFd, patience: Duration) -> Result<bool> {
    let end = Instant::now() + patience;
    loop {
        interrupt::check()?;
        let left = end.saturating_duration_since(Instant::now());
        let slice = left.min(Duration::from_millis(100)).as_millis() as libc::c_int;
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&raw mut poll, 1, slice) };
        if ready > 0 {
            let error: libc::c_int = get(socket, libc::SOL_SOCKET, libc::SO_ERROR)?;
            ensure!(error == 0, "{}", io::Error::from_raw_os_error(error));
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

fn get<T: Copy>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> Result<T> {
    // SAFETY: used for integers and `tcp_info` only, for which zero is valid.
    let mut value: T = unsafe { mem::zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has room for `length` bytes.
    let got = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    ensure!(got == 0, "reading socket option {name}: {}", io::Error::last_os_error());
    Ok(value)
}

/// Sets a socket option.
pub(super) fn set<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) -> Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has the length that is passed.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    ensure!(done == 0, "setting socket option {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// Ends a connection with a RST instead of a FIN.
pub(super) fn reset(stream: TcpStream) -> Result<()> {
    set(&stream, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}

/// Sends `message` and checks that it comes back.
pub(super) fn echo(stream: &mut TcpStream, message: &str) -> Result<()> {
    stream.write_all(message.as_bytes())?;
    let mut back = vec![0; message.len()];
    stream.read_exact(&mut back).context("waiting for an echo")?;
    ensure!(back == message.as_bytes(), "sent `{message}`, got `{}`", String::from_utf8_lossy(&back));
    Ok(())
}

/// A UDP socket that talks to one other.
pub(super) fn datagrams(from: &Namespace, to: SocketAddrV4) -> Result<UdpSocket> {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}
