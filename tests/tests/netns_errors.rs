// SPDX-License-Identifier: MIT OR Apache-2.0
//! What cannot start says why, ends with a failure, and leaves nothing behind.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nat_tests::{
    harness::pass::Pass,
    netns::{
        Network, SERVER, WEB, binary, daemon,
        daemon::Gateway,
        eventually,
        traffic::{Echo, connect, exchange},
    },
    skip,
};

/// Runs to the end, which must be a failure; returns exit code and error output.
fn fails(command: &mut Command) -> Result<(i32, String)> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{command:?} succeeded:\n{said}");
    let code = output.status.code().with_context(|| format!("ended by a signal:\n{said}"))?;
    Ok((code, said))
}

/// No XDP program, no pins, no frontend address, no socket.
fn untouched(network: &Network, gateway: &Gateway<'_>) -> Result<()> {
    let links = network.at_gateway("ip", &["-details", "link"])?;
    ensure!(!links.contains("xdp"), "{links}");
    let addresses = network.at_gateway("ip", &["addr"])?;
    ensure!(!addresses.contains("203.0.113"), "{addresses}");
    let pins = format!("/sys/fs/bpf/natgw/{}", gateway.name);
    ensure!(!Path::new(&pins).exists(), "{pins} is there");
    let socket = format!("/run/natgw/{}.sock", gateway.name);
    ensure!(!Path::new(&socket).exists(), "{socket} is there");
    let forwarding = network.gateway.run(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?))?;
    ensure!(forwarding.trim() == "0", "forwarding is on");
    Ok(())
}

#[test]
fn a_second_daemon_of_the_same_name() -> Result<()> {
    let network = Network::new()?;
    let _echo = Echo::start(&network.outside, SERVER, 80)?;
    let gateway = Gateway::start(&network.gateway, &daemon::usual())?;
    let mut stream = connect(&network.inside, WEB, SERVER, 80)?;
    let (code, said) = fails(&mut gateway.run_command()?)?;
    ensure!(code == 1 && said.contains(&gateway.name) && said.contains("running"), "{code}: {said}");
    exchange(&mut stream, 10_000)
}

#[test]
fn an_interface_that_does_not_exist() -> Result<()> {
    let network = Network::new()?;
    for (lan, wan, missing) in [("lan0", "wan7", "wan7"), ("lan7", "wan0", "lan7")] {
        let inside = format!(r#"inside = ["{lan}"]"#);
        let outside = format!(r#"outside = ["{wan}"]"#);
        let gateway = Gateway::new(&network.gateway, &daemon::config(&inside, &outside, "native", 64))?;
        let (code, said) = fails(&mut gateway.run_command()?)?;
        ensure!(code == 1 && said.contains(missing), "{code}: {said}");
        untouched(&network, &gateway)?;
    }
    Ok(())
}

#[test]
fn somebody_else_s_xdp_program() -> Result<()> {
    let network = Network::new()?;
    for interface in ["wan0", "lan0"] {
        let index = network.gateway.index(interface)?;
        let foreign = network.gateway.run(|| Pass::attach(index))?;
        let gateway = Gateway::new(&network.gateway, &daemon::usual())?;
        let (code, said) = fails(&mut gateway.run_command()?)?;
        ensure!(
            code == 1 && said.contains(interface) && said.to_lowercase().contains("xdp"),
            "{code}: {said}"
        );
        // Theirs is still there, ours nowhere.
        let links = network.at_gateway("ip", &["-details", "link"])?;
        ensure!(links.matches("prog/xdp").count() == 1, "{links}");
        drop(foreign);
        // A process that another test starts at this moment may hold a copy of theirs until it executes.
        eventually("theirs is gone", Duration::from_secs(2), || {
            Ok(!network.at_gateway("ip", &["-details", "link"])?.contains("xdp"))
        })?;
        untouched(&network, &gateway)?;
    }
    Ok(())
}

#[test]
fn a_configuration_with_a_mistake() -> Result<()> {
    let network = Network::new()?;
    let config = daemon::usual().replace("ports_per_backend = 64", "ports_per_backend = 63");
    let gateway = Gateway::new(&network.gateway, &config)?;
    let (code, said) = fails(&mut gateway.run_command()?)?;
    ensure!(code == 2 && said.contains(".toml:") && said.contains('^'), "{code}: {said}");
    untouched(&network, &gateway)
}

#[test]
fn no_bpf_file_system() -> Result<()> {
    let network = Network::new()?;
    let gateway = Gateway::new(&network.gateway, &daemon::usual())?;
    let run = gateway.run_command()?;
    // A mount namespace of its own, without bpffs.
    let mut command = network.gateway.command("unshare");
    command.args(["--mount", "sh", "-c", r#"umount /sys/fs/bpf && exec "$0" "$@""#]);
    command.arg(run.get_program()).args(run.get_args());
    let (code, said) = fails(&mut command)?;
    ensure!(code == 1 && said.contains("/sys/fs/bpf") && said.contains("mount"), "{code}: {said}");
    untouched(&network, &gateway)
}

#[test]
fn without_capabilities() {
    if !Path::new("/usr/bin/setpriv").exists() {
        skip!("without_capabilities", "setpriv (util-linux) is not installed");
    }
    let result = (|| -> Result<()> {
        let network = Network::new()?;
        let gateway = Gateway::new(&network.gateway, &daemon::usual())?;
        for dropped in ["net_admin", "bpf,-sys_admin"] {
            let run = gateway.run_command()?;
            let mut command = network.gateway.command("setpriv");
            command.arg(format!("--bounding-set=-{dropped}")).arg(format!("--inh-caps=-{dropped}"));
            command.arg(run.get_program()).args(run.get_args());
            let (code, said) = fails(&mut command)?;
            ensure!(code == 1 && said.contains("CAP_"), "{dropped}: {code}: {said}");
            untouched(&network, &gateway)?;
        }
        Ok(())
    })();
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

#[test]
fn reading_commands_without_an_instance() -> Result<()> {
    let network = Network::new()?;
    for verb in ["flows", "ports", "stats"] {
        let mut command = network.gateway.command(binary()?.to_str().context("text")?);
        let (code, said) = fails(command.args([verb, "--name", "nobody-here"]))?;
        ensure!(code == 1 && said.contains("nobody-here"), "{verb}: {code}: {said}");
    }
    Ok(())
}
