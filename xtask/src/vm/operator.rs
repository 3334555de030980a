// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench pktgen`: prints the script with which a host of the operator's own sends the flows that `bench vm`
//! sends. It runs nothing.
use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use clap::{Parser, value_parser};

use super::pktgen::{Cycle, Plan};

/// Prints a pktgen script for a generating host; nothing is run here.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask bench pktgen", bin_name = "cargo xtask bench pktgen", max_term_width = 100)]
pub(crate) struct Options {
    /// Network device of the generating host, on a link of its own with the gateway's inside interface
    #[arg(long)]
    device: String,
    /// MAC address of the gateway's inside interface
    #[arg(long)]
    dst_mac: String,
    /// Address of the first of up to 50 backends; the others follow it
    #[arg(long, default_value = "10.0.1.1")]
    source: Ipv4Addr,
    /// First destination address; the others follow it. The gateway has to route them to the sink
    #[arg(long, default_value = "10.128.0.1")]
    destination: Ipv4Addr,
    /// Flows to send in turn, all threads together
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u32).range(1..))]
    flows: u32,
    /// Instead: every packet the first of a flow, up to 2,016,000 of each thread
    #[arg(long)]
    new_flows: bool,
    /// Packets, all threads together
    #[arg(long, default_value_t = 10_000_000, value_parser = value_parser!(u64).range(1..))]
    packets: u64,
    /// Packets a second, all threads together; as fast as can be when absent
    #[arg(long)]
    rate: Option<u64>,
    /// Frame length in bytes without the frame check sequence; 60 is Ethernet's least, 64 on the wire
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u16).range(60..=1514))]
    frame: u16,
    /// Transmit queues, each with the pktgen thread of the CPU of its number
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Copies of a frame that the driver gets at a time: faster, but so many packets of a flow then come in a row
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=256))]
    burst: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    print!("{}", script(options)?);
    Ok(())
}

fn script(options: &Options) -> Result<String> {
    let Options {
        device,
        dst_mac,
        source,
        destination,
        flows,
        new_flows,
        packets,
        rate,
        frame,
        threads,
        burst,
    } = options;
    ensure!(
        is_device(device),
        "--device `{device}` is no name of a device: letters, digits and `-_.`, at most 15"
    );
    ensure!(
        is_mac(dst_mac),
        "--dst-mac `{dst_mac}` is no MAC address: six pairs of hexadecimal digits with colons"
    );
    ensure!(
        flows.is_multiple_of(*threads),
        "--flows {flows} cannot be shared evenly by {threads} threads: take a multiple of {threads}"
    );
    let cycle = if *new_flows { Cycle::NEW_FLOWS } else { Cycle::of(flows / threads)? };
    let room = u64::from(cycle.flows()) * u64::from(*threads);
    ensure!(
        !new_flows || *packets <= room,
        "--packets {packets} with --new-flows: {threads} threads send {room} different flows at most"
    );
    ensure!(
        !new_flows || *burst == 1,
        "--burst {burst} with --new-flows: pktgen sends a burst of one and the same frame; leave --burst out"
    );
    let plan = Plan {
        device: device.clone(),
        gateway_mac: dst_mac.clone(),
        source: *source,
        destination: *destination,
        cycle,
        packets: *packets,
        rate: *rate,
        frame: *frame,
        threads: *threads,
        burst: *burst,
    };
    let last = |first: Ipv4Addr, count: u32| Ipv4Addr::from(first.to_bits() + count - 1);
    Ok(format!(
        "#!/bin/sh\n\
         # Run as root on the generating host; Ctrl-C stops it. Made by `cargo xtask bench pktgen`.\n\
         # {packets} packets, {}: backends {source} to {}, {} source ports from 1024 on,\n\
         # destinations {destination} to {}, UDP port 9000, checksums filled in.\n\
         # Only on links between hosts of your own: these packets have no congestion control.\n{}",
        if *new_flows { "each the first of a flow".to_owned() } else { format!("{room} flows") },
        last(*source, cycle.backends),
        cycle.ports,
        last(*destination, cycle.destinations * threads),
        plan.script()
    ))
}

/// What the kernel accepts as a name and the shell leaves alone.
fn is_device(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 15 && name.chars().all(plain)
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<&str> = text.split(':').collect();
    pairs.len() == 6 && pairs.iter().all(|p| p.len() == 2 && p.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(line: &str) -> Result<String> {
        let words = ["pktgen", "--device", "ens1f0", "--dst-mac", "02:00:00:00:00:02"];
        script(&Options::parse_from(words.into_iter().chain(line.split_whitespace())))
    }

    #[test]
    fn a_script_says_what_it_sends_and_where() {
        let text = printed("--flows 60000 --threads 4 --packets 1000").expect("15,000 flows for each thread");
        assert!(text.starts_with("#!/bin/sh\n# Run as root"), "{text}");
        assert!(text.contains("1000 packets, 60000 flows: backends 10.0.1.1 to 10.0.1.50"), "{text}");
        assert!(text.contains("w kpktgend_3 \"add_device ens1f0@3\"\nw ens1f0@3 \"count 250\""), "{text}");
    }

    #[test]
    fn what_the_shell_or_the_kernel_would_take_amiss_is_refused() {
        for (device, mac) in [
            ("a;reboot", "02:00:00:00:00:02"),
            ("averyverylongname", "02:00:00:00:00:02"),
            ("", "02:00:00:00:00:02"),
            ("ens1f0", "02:00:00:00:00"),
            ("ens1f0", "02:00:00:00:00:0$"),
        ] {
            let options = Options::parse_from(["pktgen", "--device", device, "--dst-mac", mac]);
            assert!(script(&options).is_err(), "{device} {mac}");
        }
        assert!(printed("--flows 7 --threads 2").is_err());
    }

    #[test]
    fn more_new_flows_than_there_are_is_refused() {
        let error = printed("--new-flows --packets 2016001").expect_err("one too many").to_string();
        assert!(error.contains("2016000 different flows"), "{error}");
        assert!(printed("--new-flows --packets 2016000").is_ok());
        assert!(printed("--new-flows --packets 1000 --burst 8").is_err());
    }
}
