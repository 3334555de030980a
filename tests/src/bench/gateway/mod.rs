// SPDX-License-Identifier: MIT OR Apache-2.0
//! The gateways that are compared. Each is started in the middle namespace and stops when its value is dropped.

mod config;
mod conntrack;
mod kernel;
mod natgw;

use std::{fmt, path::Path};

use aya::Ebpf;
use bench_ebpf::{HOMEWARD, OUTWARD};
use clap::ValueEnum;

use self::conntrack::ConntrackTable;
pub(super) use self::{
    config::{LARGE_BACKENDS, LARGE_FRONTENDS, Rule, Setup, large},
    conntrack::{ConntrackLimits, flush as empty_connection_table},
    kernel::iptables_version,
    natgw::Daemon,
};
use super::{
    chain::Chain,
    rig::{aim, attach},
};

/// What stands in the middle of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An XDP program that only redirects: what the chain itself costs.
    Floor,
    /// The kernel's forwarding, no translation.
    Forward,
    /// The kernel's forwarding with nftables masquerade.
    Masquerade,
    /// The same with iptables; its legacy variant where both are installed.
    Iptables,
    /// nftables masquerade with its software fast path for established flows.
    Flowtable,
    /// natgw, run as a daemon.
    Natgw,
}

impl Kind {
    /// In the order of the table.
    pub(super) const ALL: [Self; 6] =
        [Self::Floor, Self::Forward, Self::Masquerade, Self::Iptables, Self::Flowtable, Self::Natgw];

    /// Name as typed and printed.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Forward => "forward",
            Self::Masquerade => "masquerade",
            Self::Iptables => "iptables",
            Self::Flowtable => "flowtable",
            Self::Natgw => "natgw",
        }
    }

    /// Whether packets leave with the frontend's address.
    pub(super) const fn translates(self) -> bool {
        match self {
            Self::Floor | Self::Forward => false,
            Self::Masquerade | Self::Iptables | Self::Flowtable | Self::Natgw => true,
        }
    }

    /// Whether connection tracking remembers its flows.
    pub(super) const fn tracks(self) -> bool {
        matches!(self, Self::Masquerade | Self::Iptables | Self::Flowtable)
    }

    /// Why it cannot be measured on this machine, if it cannot.
    pub(super) fn missing(self) -> Option<String> {
        match self {
            Self::Iptables => kernel::iptables_missing(),
            Self::Flowtable => kernel::flowtable_missing(),
            Self::Floor | Self::Forward | Self::Masquerade | Self::Natgw => None,
        }
    }

    /// Starts the gateway in the chain's middle namespace and returns once it forwards.
    pub(super) fn start<'a>(
        self,
        object: &[u8],
        natgw: &Path,
        chain: &'a Chain,
        setup: &Setup,
    ) -> anyhow::Result<Gateway<'a>> {
        match self {
            Self::Floor => Ok(Gateway::Floor(floor(object, chain)?)),
            Self::Forward => {
                kernel::forward(chain)?;
                Ok(Gateway::Forward)
            }
            Self::Masquerade => Ok(Gateway::Tracking(kernel::masquerade(chain, setup)?)),
            Self::Iptables => Ok(Gateway::Tracking(kernel::iptables(chain, setup)?)),
            Self::Flowtable => Ok(Gateway::Tracking(kernel::flowtable(chain)?)),
            Self::Natgw => Ok(Gateway::Natgw(Daemon::start(natgw, chain, |name| config::text(name, setup))?)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// A running gateway.
#[derive(Debug)]
pub(super) enum Gateway<'a> {
    /// The loaded program; its links go with it.
    Floor(Ebpf),
    /// Lives and dies with the namespace.
    Forward,
    /// The table of connections is emptied before the namespace goes.
    Tracking(ConntrackTable<'a>),
    /// The daemon and what it pinned.
    Natgw(Daemon<'a>),
}

impl Gateway<'_> {
    /// What the gateway itself says of packets that did not arrive: natgw's verdicts other than zero.
    pub(super) fn says(&self) -> String {
        let Self::Natgw(daemon) = self else { return "it keeps no count of why".to_owned() };
        let stats = match daemon.json("stats") {
            Ok(stats) => stats,
            Err(error) => return format!("{error:#}"),
        };
        let verdicts = stats["verdicts"].as_object().into_iter().flatten();
        let counts: Vec<String> = verdicts
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        format!("natgw counted {}", counts.join(", "))
    }

    /// Stops the gateway and undoes what would outlive its namespace.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Floor(program) => {
                drop(program);
                Ok(())
            }
            Self::Forward => Ok(()),
            Self::Tracking(table) => table.flush(),
            Self::Natgw(daemon) => daemon.stop(),
        }
    }
}

fn floor(object: &[u8], chain: &Chain) -> anyhow::Result<Ebpf> {
    let mut ebpf = Ebpf::load(object)?;
    aim(&mut ebpf, &chain.gateway, OUTWARD, "wan0")?;
    aim(&mut ebpf, &chain.gateway, HOMEWARD, "lan0")?;
    attach(&mut ebpf, &chain.gateway, "forward", "lan0")?;
    attach(&mut ebpf, &chain.gateway, "back", "wan0")?;
    Ok(ebpf)
}
