// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real TCP through sockets: bulk streams, short connections, and requests over connections that stay. Clients, gateway
//! and servers share the machine's CPUs, so a gateway that takes less leaves more for the others.

mod hosts;

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use serde::Serialize;

use self::hosts::{ANSWER, BULK, Servers, connect, crowd, equip, exchange, pour};
use super::{
    chain::Chain,
    gateway::{Gateway, Kind},
    live::in_turn,
    measure::Lab,
    options::Options,
    signal,
    stats::{Spread, percentile},
};

/// Percentiles of latency.
const PERCENTILES: [f64; 3] = [0.5, 0.99, 0.999];
/// Most latencies that one client remembers.
const MOST: usize = 1 << 20;

/// One gateway, once.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    gateway: &'static str,
    repetition: u32,
    /// Bulk data that arrived, gigabits a second, TCP and IP headers not counted.
    gigabits: f64,
    /// Connections opened, used for one request, and closed, a second.
    connections_per_second: f64,
    /// Microseconds from the start of a short connection to its answer, by [`PERCENTILES`].
    connection_us: [f64; PERCENTILES.len()],
    /// Requests a second over connections that stay.
    requests_per_second: f64,
    /// Microseconds of a request over a connection that stays.
    request_us: [f64; PERCENTILES.len()],
    /// Short connections that failed.
    failed: u64,
    /// Of the packets that natgw translated, those that it left to the host's stack; others do not say.
    to_stack: Option<f64>,
}

/// Every repetition and their medians.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    streams: u32,
    /// Medians.
    pub(super) summary: Vec<Row>,
    samples: Vec<Sample>,
}

/// Medians of one gateway.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) gateway: &'static str,
    gigabits: Spread,
    gigabits_of_masquerade: Option<f64>,
    connections: Spread,
    connections_of_masquerade: Option<f64>,
    requests: Spread,
    /// Medians of the percentiles.
    pub(super) connection_us: Vec<f64>,
    /// Medians of the percentiles.
    pub(super) request_us: Vec<f64>,
    failed: u64,
    /// Greatest of the shares.
    to_stack: Option<f64>,
}

/// Measures every gateway that routes: the floor does not rewrite MAC addresses, so hosts would not take its frames.
pub(super) fn run(options: &Options, lab: &Lab, gateways: &[Kind]) -> anyhow::Result<Figures> {
    let gateways: Vec<Kind> = gateways.iter().copied().filter(|kind| *kind != Kind::Floor).collect();
    let mut samples = Vec::new();
    for repetition in 0..options.repeat {
        for kind in in_turn(&gateways, repetition) {
            signal::check()?;
            let sample = sample(options, lab, kind, repetition)
                .with_context(|| format!("tcp through {kind}, repetition {}", repetition + 1))?;
            let Sample { gateway, gigabits, connections_per_second, request_us, .. } = &sample;
            eprintln!(
                "  {:>2}. tcp {gateway:<11}{gigabits:>7.2} Gbit/s {connections_per_second:>8.0} conn/s, p50 {:.0} µs",
                repetition + 1,
                request_us[0]
            );
            samples.push(sample);
        }
    }
    let rows: Vec<Row> = gateways.iter().filter_map(|kind| row(&samples, *kind)).collect();
    let base = rows.iter().find(|row| row.gateway == Kind::Masquerade.name());
    let base = base.map(|row| (row.gigabits.median, row.connections.median));
    let summary = rows
        .into_iter()
        .map(|row| Row {
            gigabits_of_masquerade: base.map(|base| row.gigabits.median / base.0),
            connections_of_masquerade: base.map(|base| row.connections.median / base.1),
            ..row
        })
        .collect();
    Ok(Figures { streams: options.streams, summary, samples })
}

fn sample(options: &Options, lab: &Lab, kind: Kind, repetition: u32) -> anyhow::Result<Sample> {
    let chain = Chain::build(lab.queues)?;
    equip(&chain)?;
    let gateway = kind.start(&lab.object, &lab.natgw, &chain, &lab.setup())?;
    let servers = Servers::new();
    let result = thread::scope(|scope| {
        let (servers, chain) = (&servers, &chain);
        let (bulk, answer) = chain
            .sink
            .enter(|| Ok((Servers::listen(BULK)?, Servers::listen(ANSWER)?)))
            .and_then(|listening: anyhow::Result<_>| listening)?;
        scope.spawn(move || {
            crowd(options.streams, |_| {
                servers.serve(&bulk, Servers::swallow);
                Ok(())
            })
        });
        scope.spawn(move || {
            crowd(options.streams, |_| {
                servers.serve(&answer, Servers::answer);
                Ok(())
            })
        });
        let result = chain.generator.enter(|| clients(options, servers)).and_then(|result| result);
        servers.end.store(true, Ordering::Relaxed);
        result
    });
    let to_stack = to_stack(&gateway)?;
    let sample = Sample { gateway: kind.name(), repetition, to_stack, ..result? };
    gateway.stop()?;
    Ok(sample)
}

/// Share of natgw's packets that took the slow way.
fn to_stack(gateway: &Gateway<'_>) -> anyhow::Result<Option<f64>> {
    let Gateway::Natgw(daemon) = gateway else { return Ok(None) };
    let stats = daemon.json("stats")?;
    let count = |name: &str| stats["verdicts"][name].as_u64().unwrap_or_default() as f64;
    let stack = count("translated_to_stack");
    Ok(Some(stack / (count("translated_out") + count("translated_in") + stack)))
}

/// All three loads, one after the other.
fn clients(options: &Options, servers: &Servers) -> anyhow::Result<Sample> {
    let (streams, time) = (options.streams, options.time());
    let mut first = connect(0, ANSWER).context("no connection through the gateway")?;
    exchange(&mut first).context("no answer through the gateway")?;
    drop(first);

    let start = Instant::now();
    crowd(streams, |number| pour(number, start + time)).context("bulk streams")?;
    let gigabits =
        servers.received.load(Ordering::Relaxed) as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9;

    let failed = AtomicU64::new(0);
    let (connections_per_second, connection_us) = load(streams, time, |client, turn, latencies| {
        let start = Instant::now();
        let done = connect(client + turn * streams, ANSWER).and_then(|mut stream| exchange(&mut stream));
        match done {
            Ok(()) => latencies.push(start.elapsed()),
            Err(_) => _ = failed.fetch_add(1, Ordering::Relaxed),
        }
        Ok(())
    })
    .context("short connections")?;

    let open = crowd(streams, |number| connect(number, ANSWER).context("cannot connect"))?;
    let open: Vec<_> = open.into_iter().map(std::sync::Mutex::new).collect();
    let (requests_per_second, request_us) = load(streams, time, |client, _turn, latencies| {
        let mut stream = open[client as usize].lock().map_err(|_| anyhow!("a client panicked"))?;
        let start = Instant::now();
        exchange(&mut stream).context("a request was not answered")?;
        latencies.push(start.elapsed());
        Ok(())
    })
    .context("requests")?;
    Ok(Sample {
        gateway: "",
        repetition: 0,
        gigabits,
        connections_per_second,
        connection_us,
        requests_per_second,
        request_us,
        failed: failed.into_inner(),
        to_stack: None,
    })
}

/// Has every client do the same again and again for a time: how many a second, and percentiles in microseconds.
fn load(
    clients: u32,
    time: Duration,
    job: impl Fn(u32, u32, &mut Vec<Duration>) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<(f64, [f64; PERCENTILES.len()])> {
    let start = Instant::now();
    let all = crowd(clients, |client| {
        let (mut latencies, mut turn) = (Vec::new(), 0);
        while start.elapsed() < time && latencies.len() < MOST {
            signal::check()?;
            job(client, turn, &mut latencies)?;
            turn += 1;
        }
        Ok(latencies)
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut us: Vec<f64> = all.into_iter().flatten().map(|latency| latency.as_secs_f64() * 1e6).collect();
    ensure!(!us.is_empty(), "none succeeded");
    us.sort_by(f64::total_cmp);
    Ok((us.len() as f64 / elapsed, PERCENTILES.map(|share| percentile(&us, share).unwrap_or(f64::NAN))))
}

fn row(samples: &[Sample], kind: Kind) -> Option<Row> {
    let samples: Vec<&Sample> = samples.iter().filter(|sample| sample.gateway == kind.name()).collect();
    let spread = |of: fn(&Sample) -> f64| Spread::of(samples.iter().map(|sample| of(sample)));
    let percentiles = |of: fn(&Sample) -> &[f64; PERCENTILES.len()]| -> Vec<f64> {
        let median = |place: usize| Spread::of(samples.iter().map(|sample| of(sample)[place]));
        (0..PERCENTILES.len()).filter_map(|place| Some(median(place)?.median)).collect()
    };
    Some(Row {
        gateway: kind.name(),
        gigabits: spread(|sample| sample.gigabits)?,
        gigabits_of_masquerade: None,
        connections: spread(|sample| sample.connections_per_second)?,
        connections_of_masquerade: None,
        requests: spread(|sample| sample.requests_per_second)?,
        connection_us: percentiles(|sample| &sample.connection_us),
        request_us: percentiles(|sample| &sample.request_us),
        failed: samples.iter().map(|sample| sample.failed).sum(),
        to_stack: samples.iter().filter_map(|sample| sample.to_stack).reduce(f64::max),
    })
}

impl Figures {
    /// The medians, in at most 110 columns.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "\nTCP through sockets, {} at a time; µs at p50 / p99 / p99.9\n\n\
             {:<11}{:>8}{:>9}{:>9}{:>9}{:>8}{:>24}{:>12}{:>24}\n",
            self.streams,
            "gateway",
            "Gbit/s",
            "of masq.",
            "conn/s",
            "of masq.",
            "failed",
            "connection µs",
            "requests/s",
            "request µs"
        );
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let us = |us: &[f64]| us.iter().map(|us| format!("{us:.0}")).collect::<Vec<_>>().join(" / ");
        for row in &self.summary {
            // Writing to a String cannot fail.
            let _infallible = writeln!(
                text,
                "{:<11}{:>8.2}{:>9}{:>9.0}{:>9}{:>8}{:>24}{:>12.0}{:>24}",
                row.gateway,
                row.gigabits.median,
                ratio(row.gigabits_of_masquerade),
                row.connections.median,
                ratio(row.connections_of_masquerade),
                row.failed,
                us(&row.connection_us),
                row.requests.median,
                us(&row.request_us)
            );
            if let Some(share) = row.to_stack {
                let _infallible = writeln!(
                    text,
                    "  of these packets natgw left {:.1}% to the host's stack, next hop not yet known",
                    share * 100.0
                );
            }
        }
        text
    }
}
