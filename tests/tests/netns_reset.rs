// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP resets that real sockets believe: both ends of an idle connection, and whoever speaks on one that is over.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nat_tests::{
    netns::{
        FRONTEND, Network, SERVER, WEB, daemon, daemon::Gateway, eventually, sniff::Sniffer, traffic::connect,
    },
    ns::Namespace,
    packet::{ACK, FIN, Packet, SYN, verify::verify},
};
use serde_json::Value;

/// Longest wait for something that comes within seconds.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(more: &str) -> String {
    daemon::usual() + "idle_timeout = \"1s\"\n" + more + "\n"
}

/// A server whose ends of connections the test holds.
struct Server(TcpListener);

impl Server {
    fn start(network: &Network) -> Result<Self> {
        for namespace in [&network.inside, &network.outside] {
            namespace.sysctl("ipv4/tcp_timestamps", "1")?;
            namespace.sysctl("ipv4/tcp_window_scaling", "1")?;
        }
        Ok(Self(network.outside.run(|| Ok(TcpListener::bind((SERVER, 80))?))?))
    }

    /// A connection: the backend's end and the server's.
    fn connection(&self, network: &Network) -> Result<[TcpStream; 2]> {
        let client = connect(&network.inside, WEB, SERVER, 80)?;
        let (server, _) = self.0.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok([client, server])
    }
}

/// Sends `length` bytes from one end to the other.
fn pass(from: &mut TcpStream, to: &mut TcpStream, length: usize) -> Result<()> {
    let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let mut found = vec![0; length];
    thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| from.write_all(&sent));
        to.read_exact(&mut found)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(())
    })?;
    ensure!(found == sent, "what came is not what was sent");
    Ok(())
}

/// Waits for the end of a connection, which has to be a reset.
fn is_reset(end: &mut TcpStream, who: &str) -> Result<()> {
    match end.read(&mut [0; 16]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{who}: {other:?} instead of a reset"),
    }
}

/// Challenge ACKs that a namespace's hosts have sent (RFC 5961 §3.2).
fn challenges(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("no TcpExt")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.find(|(name, _)| *name == "TCPChallengeACK").context("no TCPChallengeACK")?;
    Ok(found.1.parse()?)
}

fn resets(gateway: &Gateway<'_>) -> Result<Value> {
    Ok(gateway.json(&["stats"])?["resets"].clone())
}

/// As [`resets`], once so many segments are counted as sent: they are counted after they were.
fn settled(gateway: &Gateway<'_>, segments: u64) -> Result<Value> {
    let mut found = Value::Null;
    eventually("the segments are counted", PATIENCE, || {
        found = resets(gateway)?;
        let count = |name: &str| found[name].as_u64().unwrap_or_default();
        ensure!(count("failed") == 0 && count("framed") + count("routed") <= segments, "{found}");
        Ok(count("framed") + count("routed") == segments)
    })?;
    Ok(found)
}

/// No segment, data one way, data both ways, much of it, and half-closed: RFC 5961 §3.2 accepts the exact number only.
#[test]
fn an_idle_connection_is_reset_at_both_ends_at_once() -> Result<()> {
    let network = Network::new()?;
    let server = Server::start(&network)?;
    let gateway = Gateway::start(&network.gateway, &config("tcp_reset = \"on-idle\""))?;
    let mut ends = Vec::new();
    for (name, out, back) in
        [("silent", 0, 0), ("outbound", 1000, 0), ("inbound", 0, 1000), ("both", 70_000, 2_000_000)]
    {
        let [mut client, mut server] = server.connection(&network)?;
        pass(&mut client, &mut server, out).context(name)?;
        pass(&mut server, &mut client, back).context(name)?;
        ends.push((name, client, server));
    }
    let [mut closing, mut waiting] = server.connection(&network)?;
    closing.shutdown(std::net::Shutdown::Write)?;
    ensure!(waiting.read(&mut [0; 1])? == 0, "the FIN has not arrived");
    waiting.write_all(b"last words")?;
    closing.read_exact(&mut [0; 10])?;
    let before = (challenges(&network.inside)?, challenges(&network.outside)?);
    for (name, client, server) in &mut ends {
        is_reset(client, &format!("the client of {name}"))?;
        is_reset(server, &format!("the server of {name}"))?;
    }
    let after = (challenges(&network.inside)?, challenges(&network.outside)?);
    ensure!(before == after, "challenge ACKs: {before:?}, {after:?}");
    let counted = settled(&gateway, 8)?;
    ensure!(counted["on_idle"] == 4 && counted["framed"].as_u64() > Some(0), "{counted}\n{}", gateway.log());
    // The ports are given back, and the next connection is like the first.
    eventually("the flows are gone", PATIENCE, || {
        Ok(gateway.flows()?.iter().all(|flow| flow["state"] == "half-closed"))
    })?;
    let [mut client, mut accepted] = server.connection(&network)?;
    pass(&mut client, &mut accepted, 1000)?;
    drop((closing, waiting));
    Ok(())
}

/// A route that has changed since the last packet: the segments go by the host's stack.
#[test]
fn an_idle_connection_whose_next_hop_may_have_moved_is_reset_too() -> Result<()> {
    let network = Network::new()?;
    let server = Server::start(&network)?;
    let gateway = Gateway::start(&network.gateway, &config("tcp_reset = \"both\""))?;
    let [mut client, mut accepted] = server.connection(&network)?;
    pass(&mut client, &mut accepted, 1000)?;
    pass(&mut accepted, &mut client, 1000)?;
    network.gateway.ip(&["route add 192.0.2.200/32 via 198.51.100.254"])?;
    is_reset(&mut client, "the client")?;
    is_reset(&mut accepted, "the server")?;
    let counted = settled(&gateway, 2)?;
    ensure!(counted["routed"] == 2, "{counted}\n{}", gateway.log());
    ensure!(challenges(&network.inside)? + challenges(&network.outside)? == 0, "challenge ACKs");
    Ok(())
}

/// A connection that ends idle while there is no daemon is told by the next one, once.
#[test]
fn a_restart_loses_and_repeats_nothing() -> Result<()> {
    let network = Network::new()?;
    let server = Server::start(&network)?;
    let mut gateway = Gateway::start(&network.gateway, &config("tcp_reset = \"on-idle\""))?;
    let [mut client, mut accepted] = server.connection(&network)?;
    pass(&mut client, &mut accepted, 1000)?;
    gateway.kill()?;
    accepted.set_read_timeout(Some(Duration::from_secs(4)))?;
    let waited = accepted.read(&mut [0; 1]);
    ensure!(
        waited.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
        "without a daemon: {waited:?}"
    );
    accepted.set_read_timeout(Some(PATIENCE))?;
    gateway.run()?;
    is_reset(&mut client, "the client")?;
    is_reset(&mut accepted, "the server")?;
    let sent = settled(&gateway, 2)?;
    ensure!(sent["on_idle"] == 1 && sent["on_idle_missed"] == 0, "{sent}");
    gateway.kill()?;
    gateway.run()?;
    let again = resets(&gateway)?;
    ensure!(again == sent, "{sent} before the second restart, {again} after it");
    Ok(())
}

/// With the daemon killed: the talker hears at once, from either side; nobody else does.
#[test]
fn who_speaks_on_a_dead_connection_hears_so_without_a_daemon() -> Result<()> {
    let network = Network::new()?;
    let server = Server::start(&network)?;
    let mut gateway = Gateway::start(&network.gateway, &config("tcp_reset = \"on-packet\""))?;
    let [mut client, mut silent] = server.connection(&network)?;
    let [mut quiet, mut speaking] = server.connection(&network)?;
    for (from, to) in [(&mut client, &mut silent), (&mut quiet, &mut speaking)] {
        pass(from, to, 1000)?;
        pass(to, from, 1000)?;
    }
    let outer = speaking.peer_addr()?.port();
    gateway.kill()?;
    // Longer than the timer of 1 s and the half second by which it may be late.
    thread::sleep(Duration::from_secs(3));
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    client.write_all(b"is anybody there?")?;
    is_reset(&mut client, "the client")?;
    speaking.write_all(b"is anybody there?")?;
    is_reset(&mut speaking, "the server")?;
    // To the port of a flow that is still in the table, and to one that never was: from another port, another address.
    let stranger = [198, 51, 100, 7];
    let raw = raw(&network.outside)?;
    let dropped = gateway.verdicts("no_mapping")?;
    let mut sent = 0;
    for from in [(stranger, 80), ([192, 0, 2, 80], 81), ([192, 0, 2, 81], 80)] {
        for flags in [ACK, FIN | ACK, SYN | ACK, SYN, 0] {
            for port in [outer, outer ^ 1] {
                raw.send(&Packet::tcp(from, ([203, 0, 113, 10], port), flags).packet())?;
                sent += 1;
            }
        }
    }
    eventually("every segment has arrived", PATIENCE, || {
        Ok(gateway.verdicts("no_mapping")? == dropped + sent)
    })?;
    let frames = sniffer.finish()?;
    let from_us: Vec<_> = frames
        .iter()
        .filter_map(|frame| verify(frame).ok())
        .filter(|packet| FRONTEND.parse() == Ok(std::net::Ipv4Addr::from(packet.source.0)))
        .collect();
    // The one RST that the server was told by, and not a packet to anybody else.
    ensure!(from_us.len() == 1 && from_us[0].destination == ([192, 0, 2, 80], 80), "{from_us:#?}");
    let counted = resets(&gateway)?;
    ensure!(counted["on_packet"] == 2 && counted["on_idle"] == 0, "{counted}");
    Ok(())
}

/// Sends IP packets as they are.
struct Raw(std::os::fd::OwnedFd);

fn raw(namespace: &Namespace) -> Result<Raw> {
    use std::os::fd::FromRawFd as _;
    namespace.run(|| {
        // SAFETY: no memory is involved.
        let fd =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
        ensure!(fd >= 0, "raw socket: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just given us this descriptor.
        Ok(Raw(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }))
    })
}

impl Raw {
    fn send(&self, packet: &[u8]) -> Result<()> {
        use std::os::fd::AsRawFd as _;
        let to: [u8; 4] = packet[16..20].try_into()?;
        let end = libc::sockaddr_in {
            sin_family: 2,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to) },
            sin_zero: [0; 8],
        };
        // SAFETY: packet and address have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const end).cast(),
                16,
            )
        };
        ensure!(sent >= 0, "sending: {}", std::io::Error::last_os_error());
        Ok(())
    }
}
