// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other protocols than TCP, UDP and ICMP, between real sockets: of UDP-Lite where the kernel has them, raw ones else.

use std::{io, net::UdpSocket, os::fd::FromRawFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nat_common::abi::grant::protocol;
use nat_tests::{
    netns::{
        DB, FRONTEND, Network, SERVER, SERVER2, WEB, daemon,
        daemon::Gateway,
        ping::Icmp,
        raw::Raw,
        traffic::{PATIENCE, ask},
    },
    ns::Namespace,
    packet::build::crc32c,
    skip,
};

const ALL: u32 = protocol::SCTP | protocol::UDP_LITE | protocol::DCCP | protocol::GRE | protocol::ESP;

/// A gateway whose rule names every protocol, and whose next hop is known.
fn gateway(network: &Network) -> Result<Gateway<'_>> {
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    gateway.change_rule(|rule| rule.protocols = ALL)?;
    for backend in [WEB, DB] {
        Icmp::open(&network.inside, backend)?.ping(SERVER, 1, b"who is there")?;
    }
    Ok(gateway)
}

/// A UDP-Lite socket (RFC 3828); `None`: this kernel has none.
fn udp_lite(namespace: &Namespace, address: &str, port: u16) -> Result<Option<UdpSocket>> {
    const UDP_LITE: libc::c_int = 136;
    namespace.run(|| {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, UDP_LITE) };
        if fd < 0 {
            return Ok(None);
        }
        // SAFETY: the kernel has just given us this descriptor; it behaves like a UDP socket's.
        let socket = unsafe { UdpSocket::from_raw_fd(fd) };
        let end = libc::sockaddr_in {
            sin_family: libc::sa_family_t::try_from(libc::AF_INET)?,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(address.parse::<std::net::Ipv4Addr>()?.octets()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: the address has the length that is passed.
        let bound =
            unsafe { libc::bind(fd, (&raw const end).cast(), libc::socklen_t::try_from(size_of_val(&end))?) };
        ensure!(bound == 0, "bind {address}:{port}: {}", io::Error::last_os_error());
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Some(socket))
    })
}

#[test]
fn udp_lite_there_and_back() {
    let result = (|| -> Result<bool> {
        let network = Network::new()?;
        let Some(server) = udp_lite(&network.outside, SERVER, 9)? else { return Ok(false) };
        let gateway = gateway(&network)?;
        let echo = std::thread::spawn(move || -> Result<String> {
            let mut buffer = [0; 2048];
            let mut peer = None;
            for _ in 0..3 {
                let (length, from) = server.recv_from(&mut buffer).context("nothing arrives")?;
                server.send_to(&buffer[..length], from)?;
                peer = Some(from.ip().to_string());
            }
            peer.context("nobody")
        });
        let client = udp_lite(&network.inside, WEB, 0)?.context("a socket here, too")?;
        for length in [1, 77, 1400] {
            ask(&client, SERVER, 9, &vec![3; length])?;
        }
        let peer = echo.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        ensure!(peer == FRONTEND, "seen as {peer}");
        ensure!(gateway.verdicts("protocol_unsupported")? == 0);
        Ok(true)
    })();
    match result {
        Ok(true) => {}
        Ok(false) => skip!("udp_lite_there_and_back", "this kernel has no UDP-Lite sockets"),
        Err(error) => panic!("{error:#}"),
    }
}

/// Ports, verification tag, CRC32c, and a chunk.
fn sctp(source: u16, destination: u16, chunk: &[u8]) -> Vec<u8> {
    let mut packet =
        [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[1, 2, 3, 4], &[0; 4], chunk].concat();
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

#[test]
fn sctp_packets_keep_port_and_checksum() -> Result<()> {
    let network = Network::new()?;
    let gateway = gateway(&network)?;
    let server = Raw::open(&network.outside, SERVER, 132)?;
    let client = Raw::open(&network.inside, WEB, 132)?;
    let request = sctp(5000, 36_412, b"init of sixteen.");
    client.send(SERVER, &request)?;
    ensure!(server.receive(PATIENCE)? == (FRONTEND.to_owned(), request.clone()), "not as it was sent");
    let answer = sctp(36_412, 5000, b"init ack.");
    server.send(FRONTEND, &answer)?;
    ensure!(client.receive(PATIENCE)? == (SERVER.to_owned(), answer), "not as it was answered");
    // The other backend cannot have that port towards that server.
    Raw::open(&network.inside, DB, 132)?.send(SERVER, &request)?;
    ensure!(server.receive(Duration::from_millis(300)).is_err(), "two associations with one tuple");
    ensure!(gateway.verdicts("no_free_port")? == 1);
    Ok(())
}

#[test]
fn gre_and_esp_have_one_flow_for_each_destination() -> Result<()> {
    let network = Network::new()?;
    let gateway = gateway(&network)?;
    for (number, refused) in [(47, 1), (50, 2)] {
        let (first, second) =
            (Raw::open(&network.outside, SERVER, number)?, Raw::open(&network.outside, SERVER2, number)?);
        let (web, db) = (Raw::open(&network.inside, WEB, number)?, Raw::open(&network.inside, DB, number)?);
        web.send(SERVER, b"0000 from web")?;
        ensure!(first.receive(PATIENCE)? == (FRONTEND.to_owned(), b"0000 from web".to_vec()), "{number}");
        first.send(FRONTEND, b"0000 to web")?;
        ensure!(web.receive(PATIENCE)? == (SERVER.to_owned(), b"0000 to web".to_vec()), "{number}");
        // The second backend has another destination, but not the same.
        db.send(SERVER, b"0000 from db")?;
        ensure!(first.receive(Duration::from_millis(300)).is_err(), "{number}: two flows with one tuple");
        ensure!(gateway.verdicts("no_free_port")? == refused, "{number}");
        db.send(SERVER2, b"0000 from db")?;
        ensure!(second.receive(PATIENCE)?.1 == b"0000 from db", "{number}");
        second.send(FRONTEND, b"0000 to db")?;
        ensure!(db.receive(PATIENCE)? == (SERVER2.to_owned(), b"0000 to db".to_vec()), "{number}");
    }
    Ok(())
}

#[test]
fn what_no_rule_names_does_not_leave() -> Result<()> {
    let network = Network::new()?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    for (number, refused) in [(47, 1), (50, 2), (51, 3), (132, 4)] {
        let server = Raw::open(&network.outside, SERVER, number)?;
        Raw::open(&network.inside, WEB, number)?.send(SERVER, &[0; 40])?;
        ensure!(server.receive(Duration::from_millis(200)).is_err(), "{number} left");
        ensure!(gateway.verdicts("protocol_unsupported")? == refused, "{number}");
    }
    Ok(())
}
