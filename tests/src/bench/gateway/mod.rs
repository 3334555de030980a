// SPDX-License-Identifier: MIT OR Apache-2.0
//! The gateways that are compared. Each is started in the middle namespace and stops when its value is dropped.

mod conntrack;
mod natgw;

use std::{fmt, path::Path};

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::DevMap,
    programs::{Xdp, XdpMode},
};
use clap::ValueEnum;

pub(super) use self::conntrack::ConntrackLimits;
use self::{conntrack::ConntrackTable, natgw::Daemon};
use super::{chain::Chain, exec};

/// What stands in the middle of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An XDP program that only redirects: what the chain itself costs.
    Floor,
    /// The kernel's forwarding, no translation.
    Forward,
    /// The kernel's forwarding with nftables masquerade.
    Masquerade,
    /// natgw, run as a daemon.
    Natgw,
}

impl Kind {
    /// In the order of the table.
    pub(super) const ALL: [Self; 4] = [Self::Floor, Self::Forward, Self::Masquerade, Self::Natgw];

    /// Name as typed and printed.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Forward => "forward",
            Self::Masquerade => "masquerade",
            Self::Natgw => "natgw",
        }
    }

    /// Whether packets leave with the frontend's address.
    pub(super) const fn translates(self) -> bool {
        match self {
            Self::Floor | Self::Forward => false,
            Self::Masquerade | Self::Natgw => true,
        }
    }

    /// Starts the gateway in the chain's middle namespace and returns once it forwards.
    pub(super) fn start<'a>(
        self,
        object: &[u8],
        natgw: &Path,
        chain: &'a Chain,
    ) -> anyhow::Result<Gateway<'a>> {
        match self {
            Self::Floor => Ok(Gateway::Floor(floor(object, chain)?)),
            Self::Forward => {
                chain.gateway.sysctl("ipv4/ip_forward", "1")?;
                Ok(Gateway::Forward)
            }
            Self::Masquerade => Ok(Gateway::Masquerade(masquerade(chain)?)),
            Self::Natgw => Ok(Gateway::Natgw(Daemon::start(natgw, chain)?)),
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
    Masquerade(ConntrackTable<'a>),
    /// The daemon and what it pinned.
    Natgw(Daemon<'a>),
}

impl Gateway<'_> {
    /// Stops the gateway and undoes what would outlive its namespace.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Floor(program) => {
                drop(program);
                Ok(())
            }
            Self::Forward => Ok(()),
            Self::Masquerade(table) => table.flush(),
            Self::Natgw(daemon) => daemon.stop(),
        }
    }
}

fn floor(object: &[u8], chain: &Chain) -> anyhow::Result<Ebpf> {
    let (from, to) = (chain.gateway.ifindex("lan0")?, chain.gateway.ifindex("wan0")?);
    chain.gateway.enter(|| {
        let mut ebpf = Ebpf::load(object).context("cannot load the benchmark object")?;
        let mut target: DevMap<_> = ebpf.map_mut("TARGET").context("no map `TARGET`")?.try_into()?;
        target.set(0, to, None, 0).context("cannot aim the floor at wan0")?;
        let program: &mut Xdp = ebpf.program_mut("forward").context("no program `forward`")?.try_into()?;
        program.load().context("the kernel refuses program `forward`")?;
        program
            .attach_to_if_index(from, XdpMode::Driver)
            .context("cannot attach `forward` to lan0 in native mode")?;
        Ok(ebpf)
    })?
}

fn masquerade(chain: &Chain) -> anyhow::Result<ConntrackTable<'_>> {
    const RULES: &str = "table ip natgw_bench {\n\
        chain outbound { type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }\n}\n";
    let table = ConntrackTable::new(chain);
    chain.gateway.enter(|| exec::output("nft", &["-f", "-"], RULES))??;
    chain.gateway.sysctl("ipv4/ip_forward", "1")?;
    Ok(table)
}
