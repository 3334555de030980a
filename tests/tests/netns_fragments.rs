// SPDX-License-Identifier: MIT OR Apache-2.0
//! Large datagrams between real sockets: the kernels at both ends fragment and reassemble, the gateway sees fragments, in
//! order and the last one first, with the daemon alive and dead; and nothing private reaches the outside wire.

use std::{
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::{
    netns::{
        Builder, DB, FRONTEND, Network, SERVER, WEB, daemon,
        daemon::Gateway,
        ping::Icmp,
        sniff::{Sniffer, source},
        traffic::{Echo, ask, datagrams},
    },
    ns::Namespace,
    packet::{End, Packet, diff::hex, pieces::split},
};

const SERVER_END: End = ([192, 0, 2, 80], 80);

/// Sends IP packets exactly as given.
struct Raw(OwnedFd);

impl Raw {
    fn open(namespace: &Namespace) -> Result<Self> {
        namespace.run(|| {
            // SAFETY: no memory is involved.
            let fd = unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW)
            };
            ensure!(fd >= 0, "raw socket: {}", std::io::Error::last_os_error());
            // SAFETY: the kernel has just given us this descriptor.
            Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
        })
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        let to: [u8; 4] = packet[16..20].try_into()?;
        let end = libc::sockaddr_in {
            sin_family: 2,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::from(to)).to_be() },
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
        ensure!(sent >= 0, "sending a fragment: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Sends a packet in fragments for an MTU of 1,500, the last one first.
    fn send_backwards(&self, packet: &Packet) -> Result<()> {
        split(&packet.packet(), 1480).iter().rev().try_for_each(|piece| self.send(piece))
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

fn hears(socket: &UdpSocket, length: usize) -> Result<std::net::SocketAddr> {
    let mut buffer = vec![0; 65_536];
    let (got, from) = socket.recv_from(&mut buffer).context("nothing came")?;
    ensure!(buffer[..got] == pattern(length)[..], "{got} bytes came, and not those that were sent");
    Ok(from)
}

fn hears_reply(icmp: &Icmp, id: u16, length: usize) -> Result<()> {
    let reply = icmp
        .wait(Duration::from_secs(3), |message| message.kind == 0 && message.rest[..2] == id.to_be_bytes())?;
    ensure!(reply.rest[4..] == pattern(length)[..], "an echo of {} bytes", reply.rest.len() - 4);
    Ok(())
}

/// Large datagrams in both directions, in order and backwards. Identifications from `id` on are used: none may come again
/// within 30 seconds (RFC 6864 §4.2 has its sender wait for longer).
fn everything(network: &Network, id: u16) -> Result<()> {
    // In order: the clients' kernels fragment, and so does the server's.
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 80, &pattern(8000)).context("8,000 bytes there and back")?;
    ask(&socket, SERVER, 80, &pattern(60_000)).context("60,000 bytes there and back")?;
    Icmp::open(&network.inside, WEB)?.ping(SERVER, 7, &pattern(20_000)).context("a ping of 20,000 bytes")?;
    // The last one first, outbound.
    let inside = Raw::open(&network.inside)?;
    let client = datagrams(&network.inside, DB, 0)?;
    let port = client.local_addr()?.port();
    let request = Packet::udp(([10, 0, 0, 5], port), SERVER_END);
    inside.send_backwards(&request.clone().fill(8000).id(id))?;
    hears(&client, 8000).context("8,000 bytes, the last fragment first")?;
    inside.send_backwards(&request.fill(40_000).id(id + 1))?;
    hears(&client, 40_000).context("40,000 bytes, the last fragment first")?;
    let icmp = Icmp::open(&network.inside, DB)?;
    let ping = Packet::ping(([10, 0, 0, 5], 9), SERVER_END.0).fill(20_000);
    inside.send_backwards(&ping.id(id + 2))?;
    hears_reply(&icmp, 9, 20_000).context("a ping of 20,000 bytes, the last fragment first")?;
    // And inbound.
    let outside = Raw::open(&network.outside)?;
    let server = datagrams(&network.outside, SERVER, 8080)?;
    client.send_to(b"hello", (SERVER, 8080))?;
    let (_, frontend) = server.recv_from(&mut [0; 16])?;
    ensure!(frontend.ip().to_string() == FRONTEND, "from {frontend}");
    let answer = Packet::udp((SERVER_END.0, 8080), ([203, 0, 113, 10], frontend.port()));
    outside.send_backwards(&answer.clone().fill(8000).id(id + 3))?;
    let from = hears(&client, 8000).context("an answer of 8,000 bytes, the last fragment first")?;
    ensure!(from.to_string() == format!("{SERVER}:8080"), "from {from}");
    Ok(())
}

fn none_private(sniffer: Sniffer) -> Result<()> {
    let frames = sniffer.finish()?;
    ensure!(!frames.is_empty(), "nothing was heard at all");
    for frame in &frames {
        ensure!(source(frame).is_none_or(|address| address[0] != 10), "leaked: {}", hex(frame));
    }
    Ok(())
}

#[test]
fn large_datagrams_in_any_order() -> Result<()> {
    let network = Network::new()?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    everything(&network, 0x2100)?;
    let stats = gateway.json(&["stats"])?;
    let held = &stats["fragments"];
    ensure!(held["released"].as_u64() >= Some(40) && held["released"] == held["total"], "{held}");
    ensure!((held["now"].as_u64(), held["lost"].as_u64()) == (Some(0), Some(0)), "{held}");
    gateway.kill()?;
    everything(&network, 0x2200).context("with the daemon dead")?;
    gateway.run()?;
    everything(&network, 0x2300).context("after an adoption")?;
    none_private(sniffer)
}

#[test]
fn large_datagrams_in_generic_mode() -> Result<()> {
    let network = Builder::default().plain_peers().build()?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "generic", 64);
    let _gateway = Gateway::start(&network.gateway, &config)?;
    everything(&network, 0x2400)?;
    none_private(sniffer)
}

#[test]
fn large_datagrams_with_one_arm() -> Result<()> {
    let network = Builder::default().one_armed().build()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["lan0"]"#, "native", 64);
    let _gateway = Gateway::start(&network.gateway, &config)?;
    everything(&network, 0x2500)
}

/// Those for a port of the host's own, on a frontend address that it has, are given to its stack once their ports are
/// known.
#[test]
fn the_host_s_own_fragments_reach_it() -> Result<()> {
    for mode in ["native", "generic"] {
        let network = Builder::default().build()?;
        let config = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, mode, 64);
        let gateway = Gateway::start(&network.gateway, &config)?;
        let host = datagrams(&network.gateway, FRONTEND, 53)?;
        let outside = Raw::open(&network.outside)?;
        let packet = Packet::udp((SERVER_END.0, 5353), ([203, 0, 113, 10], 53)).fill(8000);
        for id in [0x4001, 0x4002] {
            outside.send_backwards(&packet.clone().id(id))?;
            hears(&host, 8000).with_context(|| format!("{mode}: the last fragment first"))?;
        }
        for piece in split(&packet.id(0x4003).packet(), 1480) {
            outside.send(&piece)?;
        }
        hears(&host, 8000).with_context(|| format!("{mode}: in order"))?;
        let held = gateway.json(&["stats"])?["fragments"].clone();
        ensure!((held["released"].as_u64(), held["lost"].as_u64()) == (Some(10), Some(0)), "{held}");
    }
    Ok(())
}

/// RFC 4787 REQ-13: the outside link is narrower than the inside one, and the packets may be fragmented.
#[test]
fn what_is_too_large_for_the_next_link_is_fragmented() -> Result<()> {
    let network = Builder::default().mtu_outside(1280).build()?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let _gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let inside = Raw::open(&network.inside)?;
    let client = datagrams(&network.inside, WEB, 0)?;
    let port = client.local_addr()?.port();
    let request = Packet::udp(([10, 0, 0, 4], port), SERVER_END);
    // A whole packet; and fragments of which some fit the outside link and some do not, in both orders.
    inside.send(&request.clone().fill(1400).id(0x3001).packet())?;
    hears(&client, 1400).context("a packet of 1,428 bytes over a link of 1,280")?;
    let large = request.fill(4000);
    for piece in split(&large.clone().id(0x3002).packet(), 1480) {
        inside.send(&piece)?;
    }
    hears(&client, 4000).context("fragments of 1,500 bytes over a link of 1,280")?;
    inside.send_backwards(&large.id(0x3003))?;
    hears(&client, 4000).context("the same, the last one first")?;
    none_private(sniffer)
}

/// Two backends number their packets alike, and their fragments mingle on the way.
#[test]
fn fragments_of_two_backends_do_not_mingle() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let _gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let inside = Raw::open(&network.inside)?;
    let ends = [([10, 0, 0, 4], WEB), ([10, 0, 0, 5], DB)];
    let sockets = [datagrams(&network.inside, WEB, 0)?, datagrams(&network.inside, DB, 0)?];
    // Zero would be filled in by the sending kernel, for each fragment another.
    for round in 1..=20u16 {
        let mut pieces = Vec::new();
        for ((address, _), socket) in ends.iter().zip(&sockets) {
            let packet = Packet::udp((*address, socket.local_addr()?.port()), SERVER_END);
            pieces.push(split(&packet.fill(3000).id(round).packet(), 1480));
        }
        for (one, other) in pieces[0].iter().zip(&pieces[1]) {
            inside.send(one)?;
            inside.send(other)?;
        }
        for socket in &sockets {
            hears(socket, 3000).with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}
