// SPDX-License-Identifier: MIT OR Apache-2.0
//! `natgw demo`.

use std::{net::Ipv4Addr, process::ExitCode};

use anyhow::Result;

use super::render::Style;
use crate::demo::{self, Options, interrupt::Interrupted};

const EXAMPLES: &str = "\
Examples:
  sudo natgw demo                    watch it, in under a minute; nothing remains
  sudo natgw demo --keep             leave it running, and print commands to look around with
  sudo natgw demo --clean            remove what was kept

Everything is in network namespaces of its own, with addresses from 10.0.0.0/8 and the ranges for documentation; the
host's own network is not touched. Needs root, and the programs ip, nft, ethtool, ping and traceroute.";

/// Show a gateway at work: builds a throw-away network, sends real traffic, and tells what happens.
///
/// Three backends, two servers and an intruder, with this program as the gateway between them. Everything that is told
/// is also checked: the command fails if any of it did not happen. Ctrl-C ends it early and cleans up.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Leave everything running at the end
    #[arg(long)]
    keep: bool,
    /// Never colour
    #[arg(long)]
    no_color: bool,
    /// Leave out the comparison with nftables masquerade
    #[arg(long)]
    skip_benchmark: bool,
    /// Only remove what demos have left: of the one that is named, or of all that are not running
    #[arg(long, value_name = "NAME", num_args = 0..=1, exclusive = true)]
    #[expect(clippy::option_option, reason = "clap: absent, given, given with a value")]
    clean: Option<Option<String>>,
    /// Serve on ADDRESS for the demo NAME
    #[arg(long, value_name = "NAME=ADDRESS", hide = true, exclusive = true, value_parser = served)]
    serve: Option<Ipv4Addr>,
}

fn served(text: &str) -> Result<Ipv4Addr, String> {
    let address = text.split_once('=').and_then(|(_, address)| address.parse().ok());
    address.ok_or_else(|| "expected the name of a demo, `=` and an IPv4 address".to_owned())
}

/// Runs the demo, or cleans up.
///
/// # Errors
///
/// When anything that the demo claims did not happen, or something cannot be removed.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(address) = args.serve {
        demo::serve(address)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &args.clean {
        demo::clean(name.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let style = if args.no_color { Style::PLAIN } else { Style::of_stdout() };
    let options = Options { keep: args.keep, benchmark: !args.skip_benchmark, style };
    match demo::run(&options) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // As shells report a process that Ctrl-C has ended.
        Err(error) if error.chain().any(|cause| cause.is::<Interrupted>()) => Ok(ExitCode::from(130)),
        Err(error) => Err(error),
    }
}
