// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop: everything that happens arrives as one [`Event`], and nothing else changes state.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use nat_common::abi::{
    config::{ROLE_INSIDE, ROLE_OUTSIDE},
    event,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, Receiver, Sender},
    task, time,
};
use tracing::{debug, error, info, warn};

use super::{
    Event, Stop,
    drain::Drain,
    events::{Recent, Report, Reporter, seconds},
    gateway::Gateway,
    hops::{self, Hops},
    http::{self, Ask},
    lock::Lock,
    notify,
    resets::Resets,
    ring,
    status::ReloadStatus,
    sweep::{Sweep, Sweeper},
    watch::{self, Changes},
};
use crate::{
    clock, config,
    datapath::{load::LogLevel, pin::Instance},
};

/// Heartbeat and pace of everything periodic: well within the 3 s after which the data path thinks the daemon dead.
const TICK: Duration = Duration::from_millis(250);
/// Events on their way to the loop.
const QUEUE: usize = 256;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration file.
    pub config: PathBuf,
    /// Instance name that takes precedence over the file's.
    pub name: Option<String>,
    /// Log level of the BPF side.
    pub bpf_log: LogLevel,
}

impl Options {
    /// Reads the configuration, logging what was noticed about it.
    ///
    /// # Errors
    ///
    /// As [`config::load`].
    pub fn load(&self) -> Result<(config::Gateway, Vec<String>), config::ConfigError> {
        Ok(self.take(config::load(&self.config)?))
    }

    /// As [`Self::load`], of a text that `file` names in messages.
    ///
    /// # Errors
    ///
    /// As [`config::parse`].
    pub(super) fn parse(
        &self,
        file: &str,
        text: String,
    ) -> Result<(config::Gateway, Vec<String>), config::ConfigError> {
        Ok(self.take(config::parse(file, text)?))
    }

    fn take(&self, loaded: (config::Gateway, Vec<config::Warning>)) -> (config::Gateway, Vec<String>) {
        let (mut gateway, warnings) = loaded;
        if let Some(name) = &self.name {
            gateway.name.clone_from(name);
        }
        let warnings: Vec<String> =
            warnings.iter().map(|warning| warning.to_string().trim_end().to_owned()).collect();
        for warning in &warnings {
            warn!("{warning}");
        }
        (gateway, warnings)
    }
}

/// Runs the instance that `config` describes until a signal ends the process. Translation goes on afterwards.
///
/// # Errors
///
/// When it cannot start; the host is then as it was before.
pub async fn run(options: Options, config: config::Gateway) -> Result<()> {
    let instance = Instance::new(&config.name)?;
    let _lock = Lock::take(&instance)?;
    let (events, mut queue) = mpsc::channel(QUEUE);
    // Before the state is read, so that no change falls in between; and signals before anything takes time.
    let signals = signals()?;
    task::spawn(watch::watch(events.clone()));
    let needs = |gateway: &Gateway| {
        let sweeper = Sweeper::new(gateway.instance(), &gateway.load_sweep()?, gateway.max_flows())?;
        let rings = (ring::open(&instance)?, Resets::open(&instance)?);
        Ok((sweeper, rings, http::serve(&instance.socket(), events.clone())?))
    };
    let started = Gateway::start(instance.clone(), config, options.bpf_log, needs).await?;
    let (gateway, (sweeper, (ring, resets), _socket)) = started;
    let mut daemon = Daemon::new(gateway, sweeper, options, events.clone());
    task::spawn(forward_signals(signals, events.clone()));
    task::spawn(ring::read(ring, events.clone()));
    task::spawn(resets.run());
    task::spawn(tick(events));
    daemon.learn_routes().await;
    daemon.resolve().await;
    daemon.ready = Some(seconds(SystemTime::now()));
    let layout = daemon.gateway.layout();
    info!(
        instance = instance.name(),
        inside = layout.names(ROLE_INSIDE).join(","),
        outside = layout.names(ROLE_OUTSIDE).join(","),
        backends = daemon.gateway.plan().backends.iter().flatten().count(),
        "ready"
    );
    notify::ready();
    daemon.turn(&mut queue).await;
    notify::stopping();
    info!(
        "the daemon ends, translation goes on; `natgw run` takes over again, `natgw detach --name {}` ends it",
        instance.name()
    );
    Ok(())
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

fn signals() -> Result<Signals> {
    let open = |kind| signal(kind).context("catching signals");
    Ok(Signals {
        hangup: open(SignalKind::hangup())?,
        terminate: open(SignalKind::terminate())?,
        interrupt: open(SignalKind::interrupt())?,
    })
}

async fn forward_signals(mut signals: Signals, events: Sender<Event>) {
    loop {
        let event = tokio::select! {
            Some(()) = signals.hangup.recv() => Event::Hangup,
            Some(()) = signals.terminate.recv() => Event::Stop(Stop::Terminate),
            Some(()) = signals.interrupt.recv() => Event::Stop(Stop::Interrupt),
            else => return,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

async fn tick(events: Sender<Event>) {
    let mut interval = time::interval(TICK);
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    while events.send(Event::Tick).await.is_ok() {
        interval.tick().await;
    }
}

pub(super) struct Daemon {
    pub(super) gateway: Gateway,
    pub(super) options: Options,
    pub(super) events: Sender<Event>,
    pub(super) hops: Hops,
    reporter: Reporter,
    pub(super) said: Recent,
    pub(super) errors: Recent,
    pub(super) sweep: Sweep,
    pub(super) drain: Drain,
    watchdog: Option<Duration>,
    last_alive: Instant,
    pub(super) started: u64,
    pub(super) ready: Option<u64>,
    pub(super) last_reload: Option<ReloadStatus>,
    /// File that the configuration in force is from.
    pub(super) in_force: PathBuf,
}

impl Daemon {
    fn new(gateway: Gateway, sweeper: Sweeper, options: Options, events: Sender<Event>) -> Self {
        let mut daemon = Self {
            gateway,
            in_force: options.config.clone(),
            options,
            events,
            hops: Hops::default(),
            reporter: Reporter::default(),
            said: Recent::new(32),
            errors: Recent::new(16),
            sweep: Sweep::new(sweeper),
            drain: Drain::default(),
            watchdog: notify::watchdog(),
            last_alive: Instant::now(),
            started: seconds(SystemTime::now()),
            ready: None,
            last_reload: None,
        };
        daemon.follow_logs();
        daemon
    }

    async fn turn(&mut self, queue: &mut Receiver<Event>) {
        while let Some(event) = queue.recv().await {
            match event {
                Event::Stop(signal) => {
                    info!("{} received", signal.name());
                    return;
                }
                Event::Hangup => {
                    self.reload().await;
                }
                Event::Changed(changes) => self.changed(changes).await,
                Event::Ring(records) => self.report(&records).await,
                Event::Tick => self.tick().await,
                Event::Swept(sweeper, pass, seen) => {
                    self.swept(sweeper, pass);
                    self.drained(seen).await;
                }
                // Whoever asked may have gone away meanwhile.
                Event::Http(Ask::Status(answer)) => drop(answer.send(Box::new(self.status()))),
                Event::Http(Ask::Reload(answer)) => drop(answer.send(self.reload().await)),
                Event::Http(Ask::Apply(request, answer)) => drop(answer.send(self.apply(*request).await)),
            }
        }
    }

    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        error!("{error:#}");
        self.errors.push(format!("{error:#}"));
    }

    /// As [`Self::failed`], of what is tried again and again: said once.
    pub(super) fn failed_again(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        if self.errors.last() != Some(text.as_str()) {
            self.failed(error);
        }
    }

    async fn tick(&mut self) {
        if let Err(error) = self.gateway.control().update(|control| control.heartbeat = clock::now()) {
            self.failed(&error);
        }
        if self.watchdog.is_some_and(|period| self.last_alive.elapsed() + TICK >= period) {
            self.last_alive = Instant::now();
            notify::alive();
        }
        self.sweep_when_due();
        if !self.gateway.is_complete() {
            self.refresh().await;
        }
        self.resolve().await;
    }

    async fn changed(&mut self, changes: Changes) {
        let mut stale = changes.routes || changes.links;
        if changes.links && changes.routes {
            self.hops.forget_known();
        }
        for (hop, known) in changes.neighbours {
            stale |= self.hops.learn(hop, known);
        }
        // First of all: flows look up their next hop again.
        if stale && let Err(error) = self.gateway.control().next_epoch() {
            self.failed(&error);
        }
        if changes.links {
            self.refresh().await;
        }
        if changes.links || changes.routes {
            self.learn_routes().await;
        }
        self.resolve().await;
    }

    async fn refresh(&mut self) {
        match self.gateway.refresh().await {
            Ok(changed) => {
                if changed {
                    self.follow_logs();
                }
            }
            Err(error) => self.failed_again(&error),
        }
    }

    pub(super) async fn learn_routes(&mut self) {
        let netlink = self.gateway.netlink().clone();
        match netlink.neighbours().await {
            Ok(neighbours) => {
                let mut stale = false;
                for (hop, known) in neighbours {
                    stale |= self.hops.learn(hop, Some(known));
                }
                // Of a change whose event was missed, flows do not know yet.
                if stale && let Err(error) = self.gateway.control().next_epoch() {
                    self.failed(&error);
                }
            }
            Err(error) => self.failed(&error),
        }
        match netlink.routes().await {
            Ok(routes) => {
                let ports = self.gateway.layout().indices(ROLE_INSIDE | ROLE_OUTSIDE);
                let backends: Vec<_> =
                    self.gateway.plan().backends.iter().flatten().map(|backend| backend.address).collect();
                self.hops.set_ahead(&hops::ahead(&routes, &ports, &backends), Instant::now());
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn resolve(&mut self) {
        for (index, address) in self.hops.next(Instant::now()) {
            if let Err(error) = self.gateway.netlink().resolve(index, address).await {
                debug!("{error:#}");
            }
        }
    }

    async fn report(&mut self, records: &[event::Event]) {
        for record in records {
            self.sweep.note(record);
            match self.reporter.report(record, self.gateway.plan(), Instant::now()) {
                Report::Line(line) => {
                    warn!("{line}");
                    self.said.push(line);
                }
                Report::Neighbour(hop) => self.hops.ask(hop, Instant::now()),
                Report::Nothing => {}
            }
        }
        self.sweep_when_due();
        self.resolve().await;
    }

    /// Reads the log buffers of programs that were loaded since the last call.
    pub(super) fn follow_logs(&mut self) {
        if self.options.bpf_log == LogLevel::default() {
            return;
        }
        for (device, ebpf) in self.gateway.objects() {
            // The buffer can be taken once: an error means that it is read already, or that there is none.
            let Ok(logger) = EbpfLogger::init(ebpf) else { continue };
            let Ok(mut logger) = ring::pollable(logger) else { continue };
            debug!("{device}: reading the log of its program");
            task::spawn(async move {
                while let Ok(mut guard) = logger.readable_mut().await {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
            });
        }
    }
}
