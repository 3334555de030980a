// SPDX-License-Identifier: MIT OR Apache-2.0
//! Endpoint-independent mapping as others see it: an independent tester (RFC 5780, coturn's `turnutils_natdiscovery`), and
//! backends that talk to each other by their external addresses.

use std::{
    net::{SocketAddr, UdpSocket},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nat_tests::{
    netns::{
        DB, FRONTEND, Network, SERVER, SERVER2, WEB, daemon,
        daemon::Gateway,
        eventually,
        traffic::{Echo, ask, connect, connect_from, datagrams, exchange},
    },
    ns::Namespace,
    skip,
};

/// Port of the STUN server; the next one is its other port.
const STUN: u16 = 3478;

/// A STUN server with two addresses and two ports, as RFC 5780 §3 asks for.
struct Stun(Child);

impl Stun {
    fn start(namespace: &Namespace) -> Result<Self> {
        let mut command = namespace.command("turnserver");
        command.args(["-n", "-S", "-L", SERVER, "-L", SERVER2, "--no-tls", "--no-dtls", "--no-cli"]);
        command.args(["-p", &STUN.to_string(), "--alt-listening-port", &(STUN + 1).to_string()]);
        command.args(["--log-file", "stdout", "--pidfile", "/dev/null", "--userdb", "/dev/null"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().context("starting `turnserver`")?);
        for (address, port) in [(SERVER, STUN), (SERVER2, STUN + 1)] {
            let socket = datagrams(namespace, SERVER, 0)?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            eventually("the STUN server answers", Duration::from_secs(15), || {
                Ok(external(&socket, (address, port)).is_ok())
            })?;
        }
        Ok(server)
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Binding request (RFC 8489 §6): the address and port that the server sees.
fn external(socket: &UdpSocket, server: (&str, u16)) -> Result<SocketAddr> {
    let mut request = [0u8; 20];
    request[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
    request[8..].copy_from_slice(b"natgw's test");
    socket.send_to(&request, server)?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer).context("no answer to a binding request")?;
    let mut rest = answer.get(20..length).context("too short")?;
    while let [kind_high, kind_low, high, low, tail @ ..] = rest {
        let (kind, size) = (u16::from_be_bytes([*kind_high, *kind_low]), u16::from_be_bytes([*high, *low]));
        // XOR-MAPPED-ADDRESS, IPv4.
        if let (0x0020, [_, 1, a, b, c, d, e, f, ..]) = (kind, tail) {
            let address = [c ^ 0x21, d ^ 0x12, e ^ 0xa4, f ^ 0x42];
            return Ok((address, u16::from_be_bytes([a ^ 0x21, b ^ 0x12])).into());
        }
        rest = tail.get(usize::from(size).next_multiple_of(4)..).context("cut")?;
    }
    anyhow::bail!("no mapped address in the answer")
}

fn config(options: &str) -> String {
    format!("{}{options}\n", daemon::usual())
}

fn mapped(filtering: &str) -> String {
    config(&format!("mapping = \"endpoint-independent\"\nfiltering = \"{filtering}\""))
}

/// What the tester says about mapping, filtering and hairpin.
fn discover(network: &Network) -> Result<String> {
    let mut command = network.inside.command("turnutils_natdiscovery");
    command.args(["-m", "-f", "-H", "-L", WEB, "-p", &STUN.to_string(), SERVER]);
    let output = command.stdin(Stdio::null()).output().context("starting `turnutils_natdiscovery`")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn an_independent_tester_finds_what_is_configured() {
    let found = std::process::Command::new("turnutils_natdiscovery").stdin(Stdio::null()).output();
    if found.is_err() {
        skip!(
            "netns_mapping::an_independent_tester_finds_what_is_configured",
            "no turnutils_natdiscovery: install the package coturn"
        );
    }
    if let Err(error) = judge() {
        panic!("{error:#}");
    }
}

fn judge() -> Result<()> {
    let independent = "NAT with Endpoint Independent Mapping!";
    let by_both = "NAT with Address and Port Dependent Filtering!";
    for (config, mapping, filtering, hairpin) in [
        (daemon::usual(), "NAT with Address and Port Dependent Mapping!", by_both, false),
        (mapped("endpoint-independent"), independent, "NAT with Endpoint Independent Filtering!", true),
        // The tester calls itself without having called that address before, which is filtered like any other.
        (mapped("address-dependent"), independent, "NAT with Address Dependent Filtering!", false),
        (mapped("address-and-port-dependent"), independent, by_both, false),
    ] {
        // Each anew: flows of another mapping would still hold ports towards the tester's server.
        let network = Network::new()?;
        let _stun = Stun::start(&network.outside)?;
        // So many ports that two destinations do not get the same one by chance.
        let config = config.replace("ports_per_backend = 64", "ports_per_backend = 32000");
        ensure!(config.contains("32000"), "another usual configuration: {config}");
        let _gateway = Gateway::start(&network.gateway, &config)?;
        let said = discover(&network)?;
        for verdict in [mapping, filtering] {
            ensure!(said.contains(verdict), "not found: {verdict}\n{config}\n{said}");
        }
        ensure!(said.contains("successful hairpinning") == hairpin, "hairpin {hairpin}:\n{config}\n{said}");
    }
    Ok(())
}

#[test]
fn backends_reach_each_other_by_their_external_addresses() -> Result<()> {
    let network = Network::new()?;
    let outside = Echo::start(&network.outside, SERVER, 80)?;
    let _gateway = Gateway::start(&network.gateway, &mapped("endpoint-independent"))?;
    // UDP: the server tells what port a backend has got.
    let (host, caller) = (datagrams(&network.inside, DB, 5000)?, datagrams(&network.inside, WEB, 0)?);
    ask(&host, SERVER, 80, b"register")?;
    let port = outside.peers().last().context("nobody came")?.port();
    caller.send_to(b"hello", (FRONTEND, port))?;
    let mut buffer = [0; 100];
    let (length, seen) = host.recv_from(&mut buffer).context("the host hears nothing")?;
    ensure!(&buffer[..length] == b"hello", "{buffer:?}");
    ensure!(seen.ip().to_string() == FRONTEND, "the host saw {seen}");
    host.send_to(b"who is there?", seen)?;
    let (length, from) = caller.recv_from(&mut buffer).context("the caller hears nothing")?;
    ensure!(&buffer[..length] == b"who is there?", "{buffer:?}");
    ensure!(from.to_string() == format!("{FRONTEND}:{port}"), "the caller saw {from}");
    // To itself.
    host.send_to(b"echo", (FRONTEND, port))?;
    let (length, from) = host.recv_from(&mut buffer).context("it does not hear itself")?;
    ensure!((&buffer[..length], from.port()) == (&b"echo"[..], port), "{from}");
    // Nobody listens: the host's error finds the caller's socket.
    let connected = datagrams(&network.inside, WEB, 0)?;
    connected.connect((FRONTEND, port))?;
    drop(host);
    connected.send(b"anyone?")?;
    let error = connected.recv(&mut buffer).err().context("an answer from a closed port")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
    Ok(())
}

#[test]
fn connections_between_backends_by_their_external_addresses() -> Result<()> {
    let network = Network::new()?;
    let outside = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &mapped("endpoint-independent"))?;
    // A connection to the server makes the mapping of the port on which the backend then listens.
    let mut registered = connect_from(&network.inside, (DB, 5000), SERVER, 80)?;
    exchange(&mut registered, 100)?;
    let port = outside.peers().last().context("nobody came")?.port();
    let host = Echo::start(&network.inside, DB, 5000)?;
    for backend in [WEB, DB] {
        let mut stream = connect(&network.inside, backend, FRONTEND, port)?;
        exchange(&mut stream, 300_001)?;
    }
    ensure!(host.peers().iter().all(|peer| peer.ip().to_string() == FRONTEND), "{:?}", host.peers());
    // From outside, too: filtering is endpoint-independent.
    let mut stream = connect(&network.outside, SERVER2, FRONTEND, port)?;
    exchange(&mut stream, 10_001)?;
    ensure!(gateway.verdicts("hairpinned")? > 200, "{}", gateway.json(&["stats"])?);
    // With stricter filtering a stranger does not come in any more, and nobody loses what he has.
    gateway.apply(&mapped("address-and-port-dependent"))?;
    exchange(&mut stream, 1001)?;
    ensure!(connect(&network.outside, SERVER2, FRONTEND, port).is_err(), "a stranger came in");
    exchange(&mut registered, 1001)?;
    Ok(())
}
