// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the reading commands have in common: options, and getting at the tables.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use super::{
    UsageError,
    render::{Cell, Paint},
    units,
    watch::Format,
};
use crate::{
    datapath::{
        pin,
        tables::{TableError, Tables},
    },
    view::{
        flows::{Filter, Flows, Join},
        instance::Instance,
    },
};

/// Options of every reading command.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadArgs {
    /// Instance to read, as `[gateway] name`
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = instance_name)]
    pub name: String,
    /// Print JSON, as docs/json.md describes it
    #[arg(long)]
    pub json: bool,
    /// Repeat every SECONDS (2 if not given), redrawing the screen on a terminal
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = interval
    )]
    pub watch: Option<Duration>,
    /// Control socket of the daemon [default: /run/natgw/<NAME>.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Checks the name of an instance.
pub(super) fn instance_name(text: &str) -> Result<String, String> {
    pin::Instance::new(text).map(|instance| instance.name().to_owned()).map_err(|error| error.to_string())
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.1 to 86400".to_owned())
}

impl ReadArgs {
    /// Path of the control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        // The name has been checked when it was parsed.
        let standard =
            || pin::Instance::new(&self.name).map(|instance| instance.socket()).unwrap_or_default();
        self.socket.clone().unwrap_or_else(standard)
    }

    /// Opens and reads the instance. Says on standard error when its daemon is down.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn read(&self, format: Format) -> Result<(Tables, Instance, Presence), TableError> {
        let tables = Tables::open(&self.name)?;
        let instance = tables.instance()?;
        let answers = UnixStream::connect(self.socket()).is_ok();
        let presence = Presence::of(&instance, answers);
        if format.notices {
            presence.report(&instance.name);
        }
        Ok((tables, instance, presence))
    }
}

/// Whether the daemon is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It gives signs of life.
    Up,
    /// It has given none for so many seconds.
    Down(u64),
}

impl Presence {
    /// From the heartbeat in the tables and whether its socket `answers`.
    #[must_use]
    pub fn of(instance: &Instance, answers: bool) -> Self {
        if answers && !instance.daemon_silent() { Self::Up } else { Self::Down(instance.heartbeat_age()) }
    }

    fn report(self, name: &str) {
        if let Self::Down(seconds) = self {
            // A notice that cannot be shown is no reason to fail.
            let _closed_pipe = writeln!(
                io::stderr(),
                "natgw: the daemon of instance `{name}` is not running (last sign of life {seconds} s ago): \
                 reading its pinned tables"
            );
        }
    }

    /// First line of a table.
    #[must_use]
    pub fn headline(self, name: &str, what: &str) -> Cell {
        match self {
            Self::Up => Cell(Paint::Plain, format!("{name}: {what}")),
            Self::Down(seconds) => {
                let silent = units::duration(seconds);
                Cell(Paint::Notice, format!("{name}: {what} (daemon down, silent for {silent})"))
            }
        }
    }
}

/// Reads the flow table.
///
/// # Errors
///
/// [`TableError`].
pub fn flows(tables: &Tables, instance: &Instance, filter: &Filter) -> Result<Flows, TableError> {
    let mut join = Join::new(instance, filter);
    tables.for_each_half(&mut |key, entry| join.add(key, entry))?;
    Ok(join.finish())
}

/// Address of the backend that was asked for by address or name.
///
/// # Errors
///
/// [`UsageError`] naming the backends that have names, when the name is none of them.
pub fn backend_address(instance: &Instance, wanted: &str) -> Result<[u8; 4], UsageError> {
    use nat_common::abi::config::name_of;
    if let Ok(address) = wanted.parse::<std::net::Ipv4Addr>() {
        return Ok(address.octets());
    }
    let named = || instance.backends.iter().filter(|backend| backend.status != 0 && backend.name[0] != 0);
    if let Some(backend) = named().find(|backend| name_of(&backend.name) == wanted) {
        return Ok(backend.address);
    }
    let names: Vec<_> = named().take(20).map(|backend| format!("`{}`", name_of(&backend.name))).collect();
    let known = if names.is_empty() { "no backend has a name".to_owned() } else { names.join(", ") };
    Err(UsageError(format!(
        "no backend `{wanted}` in instance `{}`: expected an IPv4 address or a name ({known})",
        instance.name
    )))
}
