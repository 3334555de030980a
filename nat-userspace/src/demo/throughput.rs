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
    frames::{Drain, FLOWS, Source},
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
/// Link of the gateway to the first backend.
const LAN: &str = "lan1";

/// What went through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// Payload bits a second over [`STREAMS`] TCP connections.
    tcp_bits: f64,
    /// Smallest frames a second, in [`FLOWS`] connections, that came out at the other side.
    frames: f64,
    /// How many these were.
    pub(super) arrived: u64,
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
    let (frames, arrived) = small_frames(world).context("small frames")?;
    Ok(Figures { tcp_bits, frames, arrived })
}

/// Prints both, and what they are worth.
pub(super) fn compare(say: &Say, natgw: Figures, masquerade: Figures) -> Result<()> {
    say.verbatim("                                        nftables masquerade        natgw     ratio")?;
    let row = |what: &str, theirs: f64, ours: f64, unit: &str| {
        let ratio = if theirs > 0.0 { ours / theirs } else { 0.0 };
        say::line(&format!("    {what:<38}{theirs:>15.2} {unit} {ours:>7.2} {unit} {ratio:>9.2}"))
    };
    let tcp = format!("bulk TCP, {STREAMS} connections");
    row(&tcp, masquerade.tcp_bits * 1e-9, natgw.tcp_bits * 1e-9, "Gbit/s")?;
    let frames = format!("60-byte frames, {FLOWS} UDP connections");
    row(&frames, masquerade.frames * 1e-6, natgw.frames * 1e-6, "Mpps  ")?;
    say.text(
        "A short impression over veth on one machine, not a benchmark: that is `cargo xtask bench`. TCP goes from \
         socket to socket; the stacks of client, router and server take most of the time in either case, and veth \
         copies what a local stack sends before XDP sees it, which no network card does. The frames are made and \
         dropped by small XDP programs around the gateway, one sender, so that mostly the gateway itself counts.",
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

/// Frames made and dropped without any socket: see [`frames`](super::frames).
fn small_frames(world: &World) -> Result<(f64, u64)> {
    let web = &world.web.namespace;
    // Only then does a veth link take frames that have never been in a stack.
    world.gateway.offload(LAN, &["gro", "on"])?;
    let source = Source::new((web, world.web.at(0)), (&world.gateway, LAN), world.servers[0].at(SINK))?;
    let _drain = Drain::attach(&world.router, "eth0")?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = Raise(&stop);
        let sending = scope.spawn(|| {
            web.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    source.burst()?;
                }
                Ok(())
            })
        });
        interrupt::wait_until(Instant::now() + WARM_UP)?;
        let (packets, start) = (received(&world.router)?, Instant::now());
        interrupt::wait_until(start + WINDOW)?;
        let arrived = received(&world.router)? - packets;
        let figure = rate(arrived, start);
        drop(stopping);
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        Ok((figure, arrived))
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
