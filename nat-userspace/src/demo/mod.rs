// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw demo`: a throw-away network, real clients, and a gateway that everybody can watch at work.
//!
//! Everything that is said is checked, and a claim that does not hold ends the demo with an error. Everything that is
//! made carries the name of the demo, by which [`clean`] finds and removes it, whatever happened before.

mod clean;
mod frames;
mod gateway;
pub(crate) mod interrupt;
mod namespace;
mod say;
mod serve;
mod socket;
mod steps;
mod throughput;
mod world;

use std::{
    fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::process::CommandExt as _,
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nat_common::abi::counters::Reason;

use self::{
    clean::Guard,
    gateway::Gateway,
    interrupt::Interrupted,
    say::Say,
    serve::Server,
    steps::{Demo, crash, exhaustion, probes, tables, traffic},
    throughput::Figures,
    world::{PICTURE, World},
};
use crate::{
    cli::render::{Paint, Style},
    datapath::{load, pin::Instance},
    preflight,
};

/// Programs that the demo calls, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("traceroute", "traceroute"),
];
/// Lines of the daemon's log that are shown after a failure.
const LOG: usize = 20;

/// How to run a demo.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Leave everything running at the end.
    pub keep: bool,
    /// Compare throughput with nftables masquerade.
    pub benchmark: bool,
    /// Colours.
    pub style: Style,
}

/// Runs the demo and removes everything that it made, unless it is to be kept.
///
/// # Errors
///
/// When something is missing, or anything that the demo claims did not happen; [`Interrupted`] after a signal.
pub fn run(options: &Options) -> Result<()> {
    load::object()?;
    preflight::for_run()?;
    programs()?;
    interrupt::catch()?;
    let instance = Instance::new(&format!("{}{}", clean::PREFIX, std::process::id()))?;
    ensure!(
        !clean::leftovers()?.contains(instance.name()),
        "an older demo `{0}` is still there: `natgw demo --clean {0}` removes it",
        instance.name()
    );
    let guard = Guard(&instance);
    perform(&instance, options)?;
    if options.keep {
        // Nothing is removed.
        std::mem::forget(guard);
    }
    Ok(())
}

fn programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| namespace::find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    bail!("the demo calls {}, not found here: `apt-get install {}`", names.join(", "), packages.join(" "))
}

fn perform(instance: &Instance, options: &Options) -> Result<()> {
    let mut say = Say::new(options.style);
    say.step(&format!("A network of throw-away namespaces: {}-…", instance.name()))?;
    if let Some(directory) = instance.lock().parent() {
        fs::create_dir_all(directory).with_context(|| format!("making `{}`", directory.display()))?;
    }
    let world = World::build(instance.name()).context("building the network")?;
    say.verbatim(PICTURE)?;
    let [one, two] = &world.servers;
    let servers = [one, two].map(|host| host.namespace.run(|| Server::start(host.address)));
    let [one, two] = servers;
    let servers = [one?, two?];
    let masquerade = if options.benchmark { Some(baseline(&mut say, &world, &servers[0])?) } else { None };
    world.watch_wire().context("counting on the outside wire")?;
    let gateway = Gateway::new(&world.gateway, instance, options)?;
    let mut demo = Demo { say, world: &world, gateway, servers: &servers };
    if let Err(error) = story(&mut demo, masquerade) {
        if !error.is::<Interrupted>() {
            explain(&demo)?;
        }
        return Err(error);
    }
    let seconds = demo.say.started().elapsed().as_secs_f64();
    say::line(&format!(
        "\n{}",
        options.style.paint(Paint::Good, &format!("Everything happened as told, in {seconds:.0} s."))
    ))?;
    if options.keep {
        drop(demo);
        drop(servers);
        for host in &world.servers {
            serve_on(instance, host)?;
        }
        explore(instance.name(), options.style)?;
    } else {
        say::line("All of it is removed now. `natgw demo --keep` leaves it running to look around.")?;
    }
    Ok(())
}

/// What the kernel does by itself, before natgw starts.
fn baseline(say: &mut Say, world: &World, server: &Server) -> Result<Figures> {
    say.step("First without natgw: nftables masquerade in the gateway, for comparison")?;
    say.text(
        "4 s of bulk TCP and small frames from web towards server1; natgw gets the same further below.",
    )?;
    throughput::masquerade(world, server).context("measuring nftables masquerade")
}

/// The demo proper.
fn story(demo: &mut Demo<'_>, masquerade: Option<Figures>) -> Result<()> {
    demo.say.step("natgw starts in the gateway, from config/demo.toml")?;
    let rules = gateway::CONFIG.lines().skip_while(|line| !line.starts_with("[[frontend]]"));
    demo.say.verbatim(&rules.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"))?;
    let took = demo.gateway.start()?;
    demo.say.done(&format!("ready after {} ms; its log:", took.as_millis()))?;
    // Without the time of day, so that it fits.
    let log = demo
        .gateway
        .log(3)
        .into_iter()
        .map(|line| line.split_once(' ').map_or(line.clone(), |(_, rest)| rest.trim_start().to_owned()));
    demo.say.verbatim(&log.collect::<Vec<_>>().join("\n"))?;
    traffic::downloads(demo)?;
    let mut exhausted = exhaustion::exhaust(demo)?;
    traffic::parallel(demo)?;
    traffic::datagrams(demo)?;
    probes::ping(demo)?;
    probes::traceroute(demo)?;
    let port = *exhausted.other_ports.first().context("no port is in use")?;
    probes::intruder(demo, &mut exhausted.other[0], port)?;
    crash::kill(demo, &mut exhausted.other[0])?;
    if let Some(masquerade) = masquerade {
        demo.say.step("Throughput: natgw beside nftables masquerade")?;
        let before = demo.gateway.verdicts(Reason::TranslatedOut)?;
        let natgw = throughput::measure(demo.world, &demo.servers[0]).context("measuring natgw")?;
        let translated = demo.gateway.verdicts(Reason::TranslatedOut)? - before;
        throughput::compare(&demo.say, natgw, masquerade)?;
        let claim = format!(
            "none went past it: {} frames were counted, {translated} packets translated",
            natgw.arrived
        );
        let all = natgw.arrived > 0 && translated >= natgw.arrived;
        demo.say.claim(all, &claim, || "more frames than translations".to_owned())?;
    }
    exhaustion::recover(demo, &mut exhausted)?;
    tables::show(demo)?;
    tables::audit(demo)
}

/// What may help to understand a failure.
fn explain(demo: &Demo<'_>) -> Result<()> {
    say::line(&format!(
        "\n{}",
        demo.say.style().paint(Paint::Bad, "The demo failed. The end of the gateway's log:")
    ))?;
    demo.say.verbatim(&demo.gateway.log(LOG).join("\n"))?;
    // There are none before it has started.
    if demo.gateway.json(&["stats"]).is_ok() { demo.gateway.show(&demo.say, &["stats"]) } else { Ok(()) }
}

/// Starts a process that serves on `host` when this one has ended.
fn serve_on(instance: &Instance, host: &world::Host) -> Result<()> {
    let served = format!("{}={}", instance.name(), host.address);
    let mut command = gateway::natgw(&host.namespace, &["demo", "--serve", &served]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting the services of {}", host.name))?;
    thread::sleep(Duration::from_millis(100));
    match child.try_wait()? {
        Some(status) => bail!("the services of {} did not start: {status}", host.name),
        None => Ok(()),
    }
}

/// Commands to go on with.
fn explore(name: &str, style: Style) -> Result<()> {
    let inside = |role: &str| format!("nsenter --net=/run/netns/{name}-{role}");
    let commands = [
        ("what the server sees of a backend", format!("{} curl http://192.0.2.10/", inside("web"))),
        ("a shell on a backend", format!("{} bash", inside("job1"))),
        ("is it translating?", format!("{} natgw status --name {name}", inside("gateway"))),
        ("flows, live", format!("natgw flows --name {name} --watch")),
        ("which destinations take the ports", format!("natgw ports --name {name} --by-destination")),
        ("packets by verdict, with rates", format!("natgw stats --name {name} --watch=1")),
        ("the outside wire", format!("{} tcpdump -ni eth0", inside("router"))),
        ("remove all of it", format!("natgw demo --clean {name}")),
    ];
    say::line("\nIt all keeps running. To look around, as root:")?;
    for (what, command) in commands {
        say::line(&format!("  {}\n    {}", style.paint(Paint::Dim, &format!("# {what}")), command))?;
    }
    say::line("(nsenter, not `ip netns exec`: that one hides /sys/fs/bpf, where natgw's tables are pinned.)")
}

/// Serves on `address` until the process is ended: what `--keep` leaves on the servers.
///
/// # Errors
///
/// When a service cannot start.
pub fn serve(address: Ipv4Addr) -> Result<()> {
    let _server = Server::start(address)?;
    interrupt::catch()?;
    while interrupt::check().is_ok() {
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Removes the demo `name`, or without a name every one that no process is running any more.
///
/// # Errors
///
/// When the demo named is running, or something cannot be removed.
pub fn clean(name: Option<&str>) -> Result<()> {
    preflight::for_detach()?;
    let leftovers = clean::leftovers()?;
    let mut removed = 0;
    for found in leftovers.iter().filter(|found| name.is_none_or(|name| name == found.as_str())) {
        if let Some(pid) = clean::owner(found) {
            ensure!(name.is_none(), "demo `{found}` is running, as process {pid}: end it with Ctrl-C");
            writeln!(io::stdout(), "{found} is running, as process {pid}: left alone")?;
            continue;
        }
        clean::remove(&Instance::new(found)?).with_context(|| format!("removing `{found}`"))?;
        writeln!(io::stdout(), "{found} removed")?;
        removed += 1;
    }
    match name {
        Some(name) if removed == 0 => bail!("no demo `{name}`: found {}", listed(leftovers.iter())),
        None if leftovers.is_empty() => Ok(writeln!(io::stdout(), "nothing is left of any demo")?),
        _ => Ok(()),
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
