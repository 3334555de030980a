// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own gateways: forwarding, and masquerade in three ways.

use std::net::Ipv4Addr;

use anyhow::Context as _;

use super::{ConntrackTable, Rule, Setup};
use crate::bench::{
    chain::{Chain, FRONTEND},
    exec,
    namespace::Namespace,
};

/// iptables in order of preference: legacy is a data path of its own, the other one is nftables' with translated rules.
const IPTABLES: [&str; 3] = ["iptables-legacy", "iptables-nft", "iptables"];

/// Forwarding alone.
pub(super) fn forward(chain: &Chain) -> anyhow::Result<()> {
    chain.gateway.sysctl("ipv4/ip_forward", "1")
}

/// nftables: masquerade, or the addresses of a pool.
pub(super) fn masquerade<'a>(chain: &'a Chain, setup: &Setup) -> anyhow::Result<ConntrackTable<'a>> {
    let verdict = match setup.rule {
        Rule::Dynamic { addresses: 2.. } => format!("snat to {FRONTEND}-{}", last(setup)),
        Rule::Static(_) | Rule::Dynamic { .. } => "masquerade".to_owned(),
    };
    nft(
        chain,
        &format!(
            "table ip natgw_bench {{\n\
         chain outbound {{ type nat hook postrouting priority srcnat; oifname \"wan0\" {verdict}; }}\n}}\n"
        ),
    )
}

fn last(setup: &Setup) -> Ipv4Addr {
    Ipv4Addr::from(FRONTEND.to_bits() + u32::from(setup.addresses()) - 1)
}

/// nftables masquerade, established flows taken from the devices' ingress straight to the other device.
pub(super) fn flowtable(chain: &Chain) -> anyhow::Result<ConntrackTable<'_>> {
    nft(chain, &flowtable_rules("lan0, wan0", "wan0"))
}

fn flowtable_rules(devices: &str, outside: &str) -> String {
    format!(
        "table ip natgw_bench {{\n\
         flowtable fast {{ hook ingress priority filter; devices = {{ {devices} }}; }}\n\
         chain through {{ type filter hook forward priority filter; meta l4proto {{ tcp, udp }} flow add @fast; }}\n\
         chain outbound {{ type nat hook postrouting priority srcnat; oifname \"{outside}\" masquerade; }}\n}}\n"
    )
}

/// Tries the fast path's rules in a namespace of their own.
pub(super) fn flowtable_missing() -> Option<String> {
    let try_it = || -> anyhow::Result<()> {
        let probe = Namespace::create(&Chain::name("probe"))?;
        probe.enter(|| exec::output("nft", &["-f", "-"], &flowtable_rules("lo", "lo")))??;
        Ok(())
    };
    let error = try_it().err()?;
    let text = format!("{error:#}");
    let told = text.lines().next().unwrap_or_default();
    Some(format!("this kernel takes no flowtable (CONFIG_NF_FLOW_TABLE, CONFIG_NFT_FLOW_OFFLOAD): {told}"))
}

/// iptables masquerade.
pub(super) fn iptables<'a>(chain: &'a Chain, setup: &Setup) -> anyhow::Result<ConntrackTable<'a>> {
    let program = iptables_program().context("no iptables")?;
    let range = format!("{FRONTEND}-{}", last(setup));
    let mut arguments = vec!["-t", "nat", "-A", "POSTROUTING", "-o", "wan0", "-j"];
    match setup.rule {
        Rule::Dynamic { addresses: 2.. } => arguments.extend(["SNAT", "--to-source", &range]),
        Rule::Static(_) | Rule::Dynamic { .. } => arguments.push("MASQUERADE"),
    }
    let table = ConntrackTable::new(chain);
    chain.gateway.enter(|| exec::run(program, &arguments))??;
    forward(chain)?;
    Ok(table)
}

/// Why iptables cannot be measured, if it cannot.
pub(super) fn iptables_missing() -> Option<String> {
    let Some(program) = iptables_program() else {
        return Some("no iptables-legacy, iptables-nft or iptables: install the package iptables".to_owned());
    };
    let try_it = || -> anyhow::Result<()> {
        let probe = Namespace::create(&Chain::name("probe"))?;
        probe.enter(|| exec::run(program, &["-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"]))?
    };
    let error = try_it().err()?;
    Some(format!("{program} does not work with this kernel: {error:#}"))
}

/// Which iptables it is, for the machine's facts.
pub(in crate::bench) fn iptables_version() -> Option<String> {
    let program = iptables_program()?;
    exec::output(program, &["--version"], "").ok().map(|text| format!("{program}: {}", text.trim()))
}

fn iptables_program() -> Option<&'static str> {
    IPTABLES.into_iter().find(|program| exec::output(program, &["--version"], "").is_ok())
}

fn nft<'a>(chain: &'a Chain, rules: &str) -> anyhow::Result<ConntrackTable<'a>> {
    let table = ConntrackTable::new(chain);
    chain.gateway.enter(|| exec::output("nft", &["-f", "-"], rules))??;
    forward(chain)?;
    Ok(table)
}
