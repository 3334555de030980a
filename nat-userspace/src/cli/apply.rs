// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw apply`: has the daemon put a configuration in force.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use super::{plan::Reading, read};
use crate::{
    config::{self, ConfigError},
    daemon::{
        client,
        status::{ApplyRequest, ApplyStatus},
    },
    datapath::{
        pin::Instance,
        tables::{TableError, Tables},
    },
};

const EXAMPLES: &str = "\
Examples:
  natgw plan --config new.toml && natgw apply --config new.toml";

/// Have the daemon put a configuration in force, wholly or not at all
///
/// Sends the file's text to the running daemon and waits. As with a reload, what has not changed keeps its ports, and
/// flows on ports that go away finish. If anything is wrong, the old configuration stays in force.
///
/// Lasts until the next reload or restart of the daemon, which reads the file that it was started with.
///
/// Exit codes: 0 in force, 1 refused or no daemon, 2 the configuration is wrong.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration file
    #[arg(long, short, value_name = "FILE", default_value = "/etc/natgw/natgw.toml")]
    pub config: PathBuf,
    /// Instance that is to take it [default: `[gateway] name` of the file]
    #[arg(long, value_name = "NAME", value_parser = read::instance_name)]
    pub name: Option<String>,
    /// Control socket of the daemon [default: /run/natgw/<NAME>.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Applies.
///
/// # Errors
///
/// No daemon, a refusal that is not the configuration's fault, or tables that cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let file = std::path::absolute(&args.config).unwrap_or_else(|_| args.config.clone());
    let shown = file.display().to_string();
    let checked = std::fs::read_to_string(&file)
        .map_err(|source| ConfigError::Read { file: shown.clone(), source })
        .and_then(|text| Ok((config::parse(&shown, text.clone())?.0, text)));
    let (gateway, text) = match checked {
        Ok(checked) => checked,
        Err(error) => return wrong(&error.to_string()),
    };
    let instance = Instance::new(args.name.as_deref().unwrap_or(&gateway.name))?;
    let name = instance.name();
    let socket = args.socket.clone().unwrap_or_else(|| instance.socket());
    let before = match Tables::open(name) {
        Err(TableError::NoInstance { .. }) => None,
        opened => Some(Reading::of(&opened?)?),
    };
    let Some(status) = client::apply(&socket, &ApplyRequest { file: shown.clone(), text })? else {
        bail!(
            "no daemon of instance `{name}` listens at `{}`: start it with `natgw run --config {shown}`",
            socket.display()
        );
    };
    for warning in &status.reload.warnings {
        writeln!(io::stderr(), "{warning}").context("writing to standard error")?;
    }
    if let Some(error) = &status.reload.error {
        if status.invalid {
            return wrong(error);
        }
        bail!("{error}");
    }
    // It is in force: what cannot be read now is no failure of it.
    let after = Tables::open(name).map_err(anyhow::Error::from).and_then(|tables| Reading::of(&tables));
    let changed = match (before, after) {
        (Some(before), Ok(after)) => before.summary(&after),
        (None, _) => "everything is new".to_owned(),
        (_, Err(error)) => format!("what has changed cannot be read: {error:#}"),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "in force after {} ms: {changed}", status.reload.milliseconds)?;
    if let Some(note) = temporary(&status, &file) {
        writeln!(out, "{note}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn wrong(error: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "{error}").context("writing to standard error")?;
    Ok(ExitCode::from(2))
}

/// What there is to say when the daemon's own file is another.
fn temporary(status: &ApplyStatus, file: &Path) -> Option<String> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let own = Path::new(&status.started_with);
    (real(own) != real(file)).then(|| {
        format!(
            "the daemon was started with `{}`: SIGHUP or a restart goes back to that file",
            status.started_with
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_than_the_daemon_s_is_said_to_be_temporary() {
        let status = |file: &str| ApplyStatus { started_with: file.to_owned(), ..ApplyStatus::default() };
        let file = Path::new("/nonexistent/new.toml");
        assert_eq!(temporary(&status("/nonexistent/new.toml"), file), None);
        let note = temporary(&status("/nonexistent/natgw.toml"), file).expect("a note");
        assert!(note.contains("`/nonexistent/natgw.toml`: SIGHUP or a restart"), "{note}");
        // Two ways to the same file.
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let detour = manifest.join("src/../Cargo.toml").display().to_string();
        assert_eq!(temporary(&status(&detour), &manifest.join("Cargo.toml")), None);
    }
}
