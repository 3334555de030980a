// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eight ports: what happens when they are all in use, and how they come back.

use std::{
    net::{SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nat_common::{
    abi::counters::Reason,
    net::timers::{GRACE, TimerClass, azure_lb},
    tick,
};

use super::{Demo, distinct_ports, forget, list};
use crate::demo::{
    interrupt,
    serve::ECHO,
    socket::{self, Attempt},
    world::Host,
};

/// Ports of a job: `ports_per_backend` in the example configuration.
const PORTS: usize = 8;
/// Connections that are ended, so that their ports come back.
const ENDED: usize = 3;

/// What is left open, and when ports will be free again.
pub(in crate::demo) struct Exhausted {
    /// Connections of the first job: to the first server, then to the second.
    first: Vec<TcpStream>,
    second: Vec<TcpStream>,
    /// Connections of the second job to the first server.
    pub(in crate::demo) other: Vec<TcpStream>,
    /// Ports that the first server saw for them.
    pub(in crate::demo) other_ports: Vec<u16>,
    free_again: Instant,
}

/// Uses up the ports of one backend.
pub(in crate::demo) fn exhaust(demo: &mut Demo<'_>) -> Result<Exhausted> {
    let [job, neighbour] = &demo.world.jobs;
    let [one, two] = &demo.world.servers;
    demo.say.step(&format!("Exhaustion: {} has {PORTS} ports and wants more", job.name))?;
    forget(demo)?;
    let block = demo.gateway.block(job, "tcp")?;
    let first = open(job, one.at(ECHO))?;
    let seen = demo.servers[0].take("tcp", ECHO);
    let ports = distinct_ports(&seen);
    let fine = ports.len() == PORTS && seen.iter().all(|peer| block.holds(peer));
    let claim = format!("{PORTS} connections to {} are open, from ports {}", one.at(ECHO), list(&ports));
    demo.say.claim(fine, &claim, || format!("{seen:?}, with a block of {block}"))?;
    refused(demo, job, one.at(ECHO), "the ninth is refused")?;

    let second = open(job, two.at(ECHO))?;
    let again = distinct_ports(&demo.servers[1].take("tcp", ECHO));
    let claim = format!("{PORTS} more to {}, from the very same ports", two.at(ECHO));
    demo.say.claim(again == ports, &claim, || list(&again))?;

    let other = open(neighbour, one.at(ECHO))?;
    let other_ports = distinct_ports(&demo.servers[0].take("tcp", ECHO));
    let own = other_ports.len() == PORTS && other_ports.iter().all(|port| !ports.contains(port));
    let claim =
        format!("{} is not affected: {PORTS} to the first destination from its own ports", neighbour.name);
    demo.say.claim(own, &claim, || list(&other_ports))?;
    demo.gateway.show(&demo.say, &["ports", "--by-destination", "--protocol", "tcp"])?;
    let mut exhausted = Exhausted { first, second, other, other_ports, free_again: Instant::now() };
    end_some(demo, &mut exhausted)?;
    Ok(exhausted)
}

/// Ends some connections by RST; their ports rest first.
fn end_some(demo: &Demo<'_>, exhausted: &mut Exhausted) -> Result<()> {
    let (job, one) = (&demo.world.jobs[0], &demo.world.servers[0]);
    let rest = azure_lb(0)[TimerClass::TcpReset as usize];
    // The ticks in which the RST comes and the time is up are not whole; and seconds are rounded down.
    let free = Duration::from_secs(tick::to_seconds(rest + GRACE + 2) + 1);
    for stream in exhausted.first.drain(..ENDED) {
        socket::reset(stream)?;
    }
    exhausted.free_again = Instant::now() + free;
    demo.say.text(&format!(
        "{} ends {ENDED} of the connections to {} with RST. As on Azure a port then rests for {} s.",
        job.name,
        one.at(ECHO),
        tick::to_seconds(rest)
    ))?;
    refused(demo, job, one.at(ECHO), "while they rest, a new connection is still refused")?;
    demo.say.text("Their return is checked further below; meanwhile:")
}

/// The ports have rested: exactly as many connections as were ended can be opened again.
pub(in crate::demo) fn recover(demo: &mut Demo<'_>, exhausted: &mut Exhausted) -> Result<()> {
    let (job, one) = (&demo.world.jobs[0], &demo.world.servers[0]);
    demo.say.step(&format!("Recovery: the {ENDED} ports of {} come back", job.name))?;
    let left = exhausted.free_again.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        demo.say.text(&format!(
            "Waiting {:.0} s more for the ports to have rested.",
            left.as_secs_f64().ceil()
        ))?;
    }
    interrupt::wait_until(exhausted.free_again)?;
    for number in 0..ENDED {
        let stream = socket::connect(&job.namespace, one.at(ECHO));
        exhausted.first.push(stream.with_context(|| format!("recovered port {}", number + 1))?);
    }
    demo.say.done(&format!("{ENDED} new connections to {} are open", one.at(ECHO)))?;
    refused(demo, job, one.at(ECHO), "one more is refused again")?;
    let all = [&mut exhausted.first, &mut exhausted.second, &mut exhausted.other];
    let mut talking = 0;
    for stream in all.into_iter().flatten() {
        socket::echo(stream, "are you there?")?;
        talking += 1;
    }
    let claim = format!("all {} connections that were left open still talk", 3 * PORTS);
    demo.say.claim(talking == 3 * PORTS, &claim, || talking.to_string())
}

/// As many connections as there are ports, each of which talks.
fn open(backend: &Host, to: SocketAddrV4) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for number in 1..=PORTS {
        let connected = socket::connect(&backend.namespace, to).and_then(|mut stream| {
            socket::echo(&mut stream, &format!("connection {number}"))?;
            Ok(stream)
        });
        streams.push(connected.with_context(|| format!("connection {number} of {PORTS}"))?);
    }
    Ok(streams)
}

/// Tries once more, which must be refused and counted: as a verdict, and for the backend.
fn refused(demo: &Demo<'_>, backend: &Host, to: SocketAddrV4, what: &str) -> Result<()> {
    let counts = || {
        let row = demo.gateway.port_row(backend, "tcp")?;
        let of_backend = row["refused"].as_u64().context("a row of `natgw ports` without `refused`")?;
        anyhow::Ok((demo.gateway.verdicts(Reason::NoFreePort)?, of_backend))
    };
    let before = counts()?;
    let syns = match socket::dial(&backend.namespace, to, socket::REFUSAL)? {
        Attempt::Connected(_) => {
            bail!("this did not happen: {what}; {} got a connection to {to}", backend.name)
        }
        Attempt::Unanswered { syns } => syns,
    };
    let after = counts()?;
    let counted = (after.0 - before.0, after.1 - before.1);
    ensure!(Duration::from_secs(1) > socket::REFUSAL, "a SYN would be sent again");
    let claim = format!(
        "{what}, and counted: `no_free_port` +{}, refused of {} +{}",
        counted.0, backend.name, counted.1
    );
    demo.say.claim(counted == (syns, syns), &claim, || format!("{syns} SYN segments were sent"))
}
