// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ping and traceroute from inside; an attempt to get in from outside.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nat_common::abi::counters::Reason;

use super::Demo;
use crate::demo::{
    namespace::output,
    socket::{self, Attempt},
    world::ROUTER,
};

/// Echo requests.
const PINGS: u32 = 3;

/// Ping from a backend.
pub(in crate::demo) fn ping(demo: &mut Demo<'_>) -> Result<()> {
    let (web, server) = (&demo.world.web, &demo.world.servers[1]);
    demo.say.step(&format!("Ping: {} to {}", web.name, server.name))?;
    let mut command = web.namespace.command("ping")?;
    let arguments = ["-n", "-c", &PINGS.to_string(), "-i", "0.2", "-W", "3", &server.address.to_string()];
    let said = output(command.args(arguments))?;
    demo.say.verbatim(said.trim_end())?;
    let (claim, all) =
        (format!("{PINGS} of {PINGS} echo requests were answered"), format!("{PINGS} received"));
    demo.say.claim(said.contains(&all), &claim, || said.clone())?;
    let flows = demo.gateway.json(&["flows", "--protocol", "icmp", "--backend", web.name])?;
    let block = demo.gateway.block(web, "icmp")?;
    let ends: Vec<SocketAddrV4> = flows
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|flow| flow["frontend"].as_str().and_then(|text| text.parse().ok()))
        .collect();
    let claim = format!(
        "the echo identifier is translated like a port: {} (the block of identifiers is {block})",
        super::list(&ends)
    );
    demo.say.claim(ends.len() == 1 && block.holds(&ends[0]), &claim, || flows.to_string())
}

/// Traceroute from a backend.
pub(in crate::demo) fn traceroute(demo: &mut Demo<'_>) -> Result<()> {
    let (web, server) = (&demo.world.web, &demo.world.servers[0]);
    demo.say.step(&format!("Traceroute: {} to {}", web.name, server.name))?;
    let mut command = web.namespace.command("traceroute")?;
    let said = output(command.args(["-n", "-q", "1", "-w", "3", "-m", "6", &server.address.to_string()]))?;
    demo.say.verbatim(said.trim_end())?;
    let wanted = [Ipv4Addr::new(10, 0, 1, 1), ROUTER, server.address];
    let claim = "the gateway's inside address, the router, the server: ICMP errors find their way back in, and the \
                 packets that they quote are translated back too";
    demo.say.claim(hops(&said) == wanted, claim, || format!("{:?}", hops(&said)))
}

/// The addresses in the lines of hops.
fn hops(said: &str) -> Vec<Ipv4Addr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let _number: u32 = words.next()?.parse().ok()?;
        words.next()?.parse().ok()
    };
    said.lines().filter_map(line).collect()
}

/// Somebody outside tries to get in through a port that is in use. `held`: a connection of the second job to the
/// first server.
pub(in crate::demo) fn intruder(demo: &mut Demo<'_>, held: &mut TcpStream, port: u16) -> Result<()> {
    let (job, outsider) = (&demo.world.jobs[1], &demo.world.outsider);
    let target = SocketAddrV4::new(demo.gateway.block(job, "tcp")?.frontend, port);
    demo.say.step(&format!("Uninvited: {} ({}) tries {target}", outsider.name, outsider.address))?;
    demo.say.text(&format!(
        "{} holds this port for its connection to {}. Whoever else sends to it gets nothing.",
        job.name, demo.world.servers[0].name
    ))?;
    let before = demo.gateway.verdicts(Reason::NoMapping)?;
    let syns = match socket::dial(&outsider.namespace, target, socket::REFUSAL)? {
        Attempt::Connected(_) => bail!("{} got a connection to {target}", outsider.name),
        Attempt::Unanswered { syns } => syns,
    };
    let datagram = socket::datagrams(&outsider.namespace, target)?;
    datagram.set_read_timeout(Some(Duration::from_millis(300)))?;
    datagram.send(b"let me in")?;
    let answer = datagram.recv(&mut [0; 64]);
    let claim = "neither its SYN nor its datagram was answered";
    demo.say.claim(answer.is_err(), claim, || "an answer to the datagram".to_owned())?;
    let counted = demo.gateway.verdicts(Reason::NoMapping)? - before;
    let claim = format!("the counter `no_mapping` went up by {}: each of its packets", syns + 1);
    demo.say.claim(counted == syns + 1, &claim, || counted.to_string())?;
    socket::echo(held, "still mine").context("the connection that holds the port")?;
    demo.say.done(&format!("the connection of {} is not disturbed", job.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_the_addresses_after_the_numbers() {
        let said = "traceroute to 192.0.2.10 (192.0.2.10), 6 hops max, 60 byte packets\n \
                    1  10.0.1.1  0.034 ms\n 2  *\n 3  192.0.2.10  0.02 ms\n";
        assert_eq!(hops(said), [Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(192, 0, 2, 10)]);
    }
}
