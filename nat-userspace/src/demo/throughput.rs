// SPDX-License-Identifier: MIT OR Apache-2.0
//! A short comparison with what the kernel does by itself: nftables masquerade in the same gateway.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    interrupt,
    namespace::Namespace,
    say::{self, Say},
    serve::{SINK, Server},
    socket,
    world::{WAN, World},
};

/// How long each figure is taken.
const WINDOW: Duration = Duration::from_millis(2000);
/// Before it, so that connections have left their slow start.
const WARM_UP: Duration = Duration::from_millis(200);
/// Parallel TCP connections.
const STREAMS: usize = 4;
/// A VoIP-sized datagram, nearly the smallest frame.
const SMALL: [u8; 18] = [0; 18];

/// What went through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Payload bits a second over [`STREAMS`] TCP connections.
    tcp_bits: f64,
    /// Datagrams a second from one sender that arrived at the server's interface.
    udp_packets: f64,
}

/// Measures with nftables masquerade instead of natgw, and leaves the gateway without it.
pub(super) fn masquerade(world: &World, server: &Server) -> Result<Figures> {
    world.gateway.nft(&format!(
        "table ip demo {{
            chain leaving {{
                type nat hook postrouting priority srcnat; policy accept;
                oifname \"{WAN}\" masquerade
            }}
        }}"
    ))?;
    world.gateway.sysctl("ipv4/ip_forward", "1")?;
    let figures = measure(world, server);
    world.gateway.sysctl("ipv4/ip_forward", "0")?;
    world.gateway.nft("delete table ip demo")?;
    figures
}

/// Measures with whatever the gateway translates with.
pub(super) fn measure(world: &World, server: &Server) -> Result<Figures> {
    let tcp_bits = bulk(world, server).context("bulk TCP")?;
    let udp_packets = small_datagrams(world).context("small datagrams")?;
    Ok(Figures { tcp_bits, udp_packets })
}

/// Prints both, and what they are worth.
pub(super) fn compare(say: &Say, natgw: Figures, masquerade: Figures) -> Result<()> {
    say.verbatim("                                        nftables masquerade        natgw     ratio")?;
    let row = |what: &str, theirs: f64, ours: f64, unit: &str| {
        let ratio = if theirs > 0.0 { ours / theirs } else { 0.0 };
        say::line(&format!("    {what:<38}{theirs:>15.2} {unit} {ours:>7.2} {unit} {ratio:>9.2}"))
    };
    let giga = 1e-9;
    let kilo = 1e-3;
    let streams = format!("bulk TCP, {STREAMS} connections");
    row(&streams, masquerade.tcp_bits * giga, natgw.tcp_bits * giga, "Gbit/s")?;
    row("UDP, 18 bytes each, one sender", masquerade.udp_packets * kilo, natgw.udp_packets * kilo, "kpps  ")?;
    say.text(
        "An impression, not a benchmark: clients, gateway, router and server share this machine, and the stacks of \
         the other hosts cost most of the time in both cases. `cargo xtask bench` measures the gateway alone.",
    )
}

/// Raises a flag when dropped, so that threads end also after an error.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn bulk(world: &World, server: &Server) -> Result<f64> {
    let to = world.servers[0].at(SINK);
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let stream = socket::connect(&world.web.namespace, to)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        streams.push(stream);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = Raise(&stop);
        let mut senders = Vec::new();
        for mut stream in streams.drain(..) {
            let stop = &stop;
            senders.push(scope.spawn(move || -> Result<()> {
                let block = vec![0x5a; 64 * 1024];
                while !stop.load(Ordering::Relaxed) {
                    match stream.write(&block) {
                        Err(error)
                            if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                        {
                            return Err(error.into());
                        }
                        _ => {}
                    }
                }
                // What is still queued would hamper what is measured next.
                socket::reset(stream)
            }));
        }
        interrupt::wait_until(Instant::now() + WARM_UP)?;
        let (bytes, start) = (server.sunk(), Instant::now());
        interrupt::wait_until(start + WINDOW)?;
        let figure = rate(server.sunk() - bytes, start) * 8.0;
        drop(stopping);
        for sender in senders {
            sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))??;
        }
        Ok(figure)
    })
}

fn small_datagrams(world: &World) -> Result<f64> {
    let server = &world.servers[0];
    let socket = socket::datagrams(&world.web.namespace, server.at(SINK))?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopping = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // A full queue is part of what is measured.
                let _queue_full = socket.send(&SMALL);
            }
        });
        interrupt::wait_until(Instant::now() + WARM_UP)?;
        let (packets, start) = (received(&server.namespace)?, Instant::now());
        interrupt::wait_until(start + WINDOW)?;
        Ok(rate(received(&server.namespace)? - packets, start))
    })
}

fn rate(count: u64, since: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate; 53 bits are plenty")]
    let count = count as f64;
    count / since.elapsed().as_secs_f64()
}

/// Packets that `eth0` has received: the second number of its line in `/proc/net/dev`.
fn received(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    let packets = line.and_then(|line| line.split_whitespace().nth(1));
    packets.and_then(|packets| packets.parse().ok()).context("no packet count of eth0 in /proc/net/dev")
}
