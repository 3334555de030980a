// SPDX-License-Identifier: MIT OR Apache-2.0
//! The long-running side of natgw. Translation does not depend on it: see ARCHITECTURE.md.

mod addresses;
pub mod client;
mod detach;
mod drain;
mod events;
pub mod facts;
mod gateway;
mod hops;
mod host;
mod http;
mod lock;
pub mod netlink;
mod notify;
mod offload;
mod pace;
mod reload;
mod report;
mod resets;
mod ring;
mod run;
pub mod status;
pub mod sweep;
mod undo;
mod watch;

pub use self::{
    detach::detach,
    run::{Options, run},
};

/// Everything that can happen to the daemon.
enum Event {
    /// SIGHUP: reload.
    Hangup,
    /// A signal to end.
    Stop(Stop),
    /// Something changed in the kernel's network configuration.
    Changed(watch::Changes),
    /// Records from the data path.
    Ring(Vec<nat_common::abi::event::Event>),
    /// Time has passed.
    Tick,
    /// A sweep has ended, and with it a look at addresses that are to go.
    Swept(Box<sweep::Sweeper>, anyhow::Result<Box<sweep::Pass>>, Option<drain::Seen>),
    /// A question over the control socket.
    Http(http::Ask),
}

/// Which signal ends the daemon.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Terminate,
    Interrupt,
}

impl Stop {
    const fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }
}
