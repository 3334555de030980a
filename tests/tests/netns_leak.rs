// SPDX-License-Identifier: MIT OR Apache-2.0
//! No packet with a private source address on the outside wire, whatever happens to the gateway meanwhile.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::{
    netns::{
        Network, SERVER, SILENT, WEB, daemon,
        daemon::Gateway,
        sniff::{Sniffer, source},
        traffic::{Echo, ask, connect, datagrams, exchange},
    },
    ns::Namespace,
    packet::{ACK, FIN, Packet, RST, SYN, TIME_EXCEEDED, UNREACHABLE, diff::hex},
};

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

    /// What the kernel refuses to send is not sent: no harm done.
    fn send(&self, packet: &[u8]) {
        let Some(Ok(to)) = packet.get(16..20).map(<[u8; 4]>::try_from) else { return };
        let end = libc::sockaddr_in {
            sin_family: 2,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::from(to)).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: packet and address have the lengths that are passed.
        unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_DONTWAIT,
                (&raw const end).cast(),
                16,
            )
        };
    }
}

/// Everything that a backend, or something that pretends to be one, might send.
fn garbage() -> Vec<Vec<u8>> {
    const BACKEND: [u8; 4] = [10, 0, 0, 4];
    const OTHER: [u8; 4] = [10, 0, 0, 5];
    const STRANGER: [u8; 4] = [10, 0, 0, 200];
    const TO: [u8; 4] = [192, 0, 2, 80];
    const NOBODY: [u8; 4] = [198, 51, 100, 99];
    let mut packets = Vec::new();
    for from in [BACKEND, OTHER, STRANGER] {
        for to in [TO, NOBODY, [198, 51, 100, 7], [203, 0, 113, 10], [203, 0, 113, 99]] {
            let (client, server) = ((from, 40_000), (to, 80));
            for flags in [SYN, ACK, SYN | ACK, FIN | ACK, RST, 0, 0x3f] {
                packets.push(Packet::tcp(client, server, flags));
            }
            packets.push(Packet::udp(client, server));
            packets.push(Packet::udp(client, server).ttl(1));
            packets.push(Packet::udp(client, server).no_checksum().options(&[1; 40]));
            packets.push(Packet::udp(client, server).fill(1400).df());
            packets.push(Packet::udp(client, server).fill(64).fragment(true, 0));
            packets.push(Packet::other(from, to, 17).fragment(false, 9));
            packets.push(Packet::ping((from, 5), to));
            packets.push(Packet::pong(from, (to, 1024)));
            packets.push(Packet::icmp(from, to, 13, 0));
            packets.push(Packet::other(from, to, 47));
            packets.push(Packet::other(from, to, 253));
            let got = Packet::udp((to, 80), client);
            packets.push(Packet::error(from, UNREACHABLE, 3, &got));
            packets.push(Packet::error(from, TIME_EXCEEDED, 0, &got).keep(28));
        }
    }
    packets.iter().map(Packet::packet).collect()
}

/// Sends garbage without a pause until it is told to stop.
fn flood(raw: &Raw, stop: &AtomicBool) {
    let packets = garbage();
    while !stop.load(Ordering::Relaxed) {
        for packet in &packets {
            raw.send(packet);
            // And with the length wrong, and cut short.
            let mut lying = packet.clone();
            lying[0] = 0x4f;
            raw.send(&lying);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn none_private(frames: &[Vec<u8>]) -> Result<()> {
    let private = |frame: &&Vec<u8>| source(frame).is_some_and(|address| address[0] == 10);
    let leaked: Vec<_> = frames.iter().filter(private).collect();
    ensure!(
        leaked.is_empty(),
        "{} of {} frames leaked, the first: {}",
        leaked.len(),
        frames.len(),
        hex(leaked[0])
    );
    Ok(())
}

#[test]
fn nothing_private_gets_out() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 8080)?;
    let sniffer = Sniffer::start(&network.outside, "eth0")?;
    let raw = Raw::open(&network.inside)?;
    let stop = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&raw, &stop));
        let result = life(&network);
        stop.store(true, Ordering::Relaxed);
        flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?;
        result
    });
    let frames = sniffer.finish()?;
    none_private(&frames)?;
    result?;
    // The sniffer did see what it is there for.
    let translated = frames.iter().filter(|frame| source(frame) == Some([203, 0, 113, 10])).count();
    ensure!(translated > 1000, "only {translated} translated frames among {}", frames.len());
    Ok(())
}

/// Start, use, unresolved neighbours, reload, kill, restart, end, detach: all under the flood.
fn life(network: &Network) -> Result<()> {
    thread::sleep(Duration::from_millis(100));
    let mut gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let socket = datagrams(&network.inside, WEB, 0)?;
    ask(&socket, SERVER, 8080, b"up")?;
    let mut stream = connect(&network.inside, WEB, SERVER, 8080)?;
    exchange(&mut stream, 100_000)?;
    for _ in 0..20 {
        network.gateway.ip(&["neigh flush dev wan0", "neigh flush dev lan0"])?;
        socket.send_to(b"anyone", (SILENT, 9))?;
        thread::sleep(Duration::from_millis(20));
    }
    let smaller = daemon::config(r#"inside = ["lan0"]"#, r#"outside = ["wan0"]"#, "native", 32);
    for config in [&smaller, &daemon::usual()] {
        gateway.apply(config)?;
    }
    exchange(&mut stream, 100_000).context("after the reloads")?;
    gateway.kill()?;
    for _ in 0..10 {
        network.gateway.ip(&["neigh flush dev wan0", "neigh flush dev lan0"])?;
        thread::sleep(Duration::from_millis(20));
    }
    exchange(&mut stream, 100_000).context("after the kill")?;
    gateway.run()?;
    // A route appears that leads a destination back inside, and goes again.
    network.gateway.ip(&["route add 192.0.2.81/32 via 10.0.0.5 dev lan0"])?;
    thread::sleep(Duration::from_millis(50));
    network.gateway.ip(&["route del 192.0.2.81/32"])?;
    // The outside link goes down and comes back.
    network.gateway.ip(&["link set wan0 down"])?;
    network.gateway.ip(&["link set wan0 up", "route replace default via 198.51.100.254"])?;
    thread::sleep(Duration::from_millis(50));
    gateway.end(libc::SIGTERM)?;
    gateway.command(&["detach"])?;
    thread::sleep(Duration::from_millis(100));
    Ok(())
}
