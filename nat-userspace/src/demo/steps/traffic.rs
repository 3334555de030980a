// SPDX-License-Identifier: MIT OR Apache-2.0
//! What clients do all day: downloads, many connections, datagrams.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddrV4,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{Demo, distinct_ports, forget};
use crate::demo::{
    serve::{self, ECHO, HTTP},
    socket,
    world::Host,
};

/// Bytes of a download; odd, so that the last segment is.
const DOWNLOAD: usize = 500_001;
/// Connections at once.
const PARALLEL: usize = 200;

/// Every backend downloads from every server.
pub(in crate::demo) fn downloads(demo: &mut Demo<'_>) -> Result<()> {
    demo.say.step("HTTP downloads: every backend from every server")?;
    forget(demo)?;
    let started = Instant::now();
    for backend in demo.world.backends() {
        let block = demo.gateway.block(backend, "tcp")?;
        for (host, server) in demo.world.servers.iter().zip(demo.servers) {
            let peer = download(backend, host.at(HTTP))?;
            let seen = server.take("tcp", HTTP);
            let text = format!("{} ({}) saw {peer}, not {}", host.name, host.address, backend.address);
            demo.say.seen(&text)?;
            ensure!(seen == [peer], "{} noted {seen:?}, and told the client that it is {peer}", host.name);
            let claim = format!("{} leaves from its block {block}", backend.name);
            ensure!(block.holds(&peer), "{claim}: {peer} is not in it");
        }
    }
    let claim = format!(
        "6 downloads of {DOWNLOAD} bytes, every byte compared, in {} ms; each source is a frontend address with a \
         port from the block of its backend",
        started.elapsed().as_millis()
    );
    demo.say.done(&claim)
}

/// Downloads and compares; returns what the server says the client is.
pub(super) fn download(backend: &Host, server: SocketAddrV4) -> Result<SocketAddrV4> {
    let mut stream = socket::connect(&backend.namespace, server)?;
    let request = format!("GET /{DOWNLOAD} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("downloading from {server}"))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("an answer without a head")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = &answer[end + 4..];
    ensure!(head.starts_with("HTTP/1.1 200 "), "{server} answered: {head}");
    ensure!(body.len() == DOWNLOAD, "{} bytes came from {server} instead of {DOWNLOAD}", body.len());
    ensure!(body == serve::content(DOWNLOAD), "what came from {server} is not what it sent");
    let peer =
        head.lines().find_map(|line| line.strip_prefix("X-Peer: ")).context("no X-Peer in the answer")?;
    Ok(peer.trim().parse()?)
}

/// One backend holds many connections to one destination at once.
pub(in crate::demo) fn parallel(demo: &mut Demo<'_>) -> Result<()> {
    let (web, host) = (&demo.world.web, &demo.world.servers[0]);
    let title = format!("{PARALLEL} connections at once from {} to {}", web.name, host.at(ECHO));
    demo.say.step(&title)?;
    forget(demo)?;
    let started = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..PARALLEL {
        streams.push(socket::connect(&web.namespace, host.at(ECHO))?);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("message {number:04}").as_bytes())?;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 12];
        stream.read_exact(&mut back).with_context(|| format!("the echo of connection {number}"))?;
        ensure!(back == *format!("message {number:04}").as_bytes(), "connection {number} got another's echo");
    }
    let elapsed = started.elapsed().as_millis();
    let (peers, block) = (demo.servers[0].take("tcp", ECHO), demo.gateway.block(web, "tcp")?);
    let ports = distinct_ports(&peers);
    let claim = format!("all open together, each got its own message back, {elapsed} ms in all");
    demo.say.claim(peers.len() == PARALLEL, &claim, || format!("{} accepted", peers.len()))?;
    let fine = ports.len() == PARALLEL && peers.iter().all(|peer| block.holds(peer));
    let claim = format!("the server saw {PARALLEL} different ports, all from {block}, in random order");
    demo.say.claim(fine, &claim, || format!("{} ports: {peers:?}", ports.len()))?;
    let destination = host.at(ECHO).to_string();
    let filter = ["flows", "--backend", web.name, "--destination", &destination, "--state", "established"];
    let flows = demo.gateway.json(&filter)?.as_array().map_or(0, Vec::len);
    let claim = format!("`natgw flows --state established` lists {PARALLEL} to this destination");
    demo.say.claim(flows == PARALLEL, &claim, || format!("{flows}"))
}

/// A datagram and its answer for every backend.
pub(in crate::demo) fn datagrams(demo: &mut Demo<'_>) -> Result<()> {
    demo.say.step("UDP: request and response")?;
    forget(demo)?;
    let host = &demo.world.servers[0];
    for backend in demo.world.backends() {
        let socket = socket::datagrams(&backend.namespace, host.at(ECHO))?;
        let question = format!("question of {}", backend.name);
        let mut answer = [0; 64];
        socket.send(question.as_bytes())?;
        let length = socket
            .recv(&mut answer)
            .with_context(|| format!("no answer to the datagram of {}", backend.name))?;
        ensure!(answer[..length] == *question.as_bytes(), "{} got another answer", backend.name);
        let (seen, block) = (demo.servers[0].take("udp", ECHO), demo.gateway.block(backend, "udp")?);
        let claim =
            format!("{} asked and got its answer; {} saw {}", backend.name, host.name, super::list(&seen));
        let fine = matches!(seen.as_slice(), [peer] if block.holds(peer));
        demo.say.claim(fine, &claim, || format!("{seen:?}, with a block of {block}"))?;
    }
    Ok(())
}
