// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every bench once, as small as it gets: that it runs, proves what it measures, writes its figures, and leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use clap::Parser as _;
use nat_tests::{
    bench::{self, LOCK, Options},
    skip,
};
use serde_json::Value;

const SMALL: [&str; 7] = [
    "--repeat=1",
    "--seconds=0.05",
    "--packets=20000",
    "--flows=256",
    "--new-flows=2000",
    "--max-flows=131072",
    "--streams=4",
];

/// What a bench writes, or why it cannot be run here.
fn run(name: &str, more: &[&str]) -> Result<Value, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let object = target.join("bpf/bench.bpf.o");
    let natgw = std::env::var_os("NATGW_BIN").map_or_else(|| target.join("release/natgw"), PathBuf::from);
    if !object.is_file() {
        return Err(format!("no {}: `cargo xtask bench` builds it", object.display()));
    }
    let json = std::env::temp_dir().join(format!("natgw-bench-test-{}-{name}.json", process::id()));
    let charts = json.with_extension("charts");
    let (object, natgw) = (object.display().to_string(), natgw.display().to_string());
    let (written, drawn) = (json.display().to_string(), charts.display().to_string());
    let paths = ["--object", &object, "--natgw", &natgw, "--json", &written, "--plot", &drawn];
    let line = ["natgw-bench", name].into_iter().chain(SMALL).chain(paths).chain(more.iter().copied());
    let outcome = bench::run(&Options::try_parse_from(line).expect("a command line"));
    let text = fs::read_to_string(&json);
    for left in [fs::remove_file(&json), fs::remove_dir_all(&charts)] {
        // Not there when the bench failed, of which more below.
        drop(left);
    }
    assert_eq!(namespaces(), 0, "namespaces are left");
    match outcome {
        Err(error) if error.to_string().contains(LOCK) => Err(error.to_string()),
        Err(error) => panic!("{error:#}"),
        Ok(()) => Ok(serde_json::from_str(&text.expect("figures")).expect("JSON")),
    }
}

/// Namespaces of this process's benches.
fn namespaces() -> usize {
    let mine = format!("natgw-bench-{}-", process::id());
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine)).count()
}

/// The figure at a path of names and places must be there and above zero.
fn above_zero(figures: &Value, pointer: &str) {
    let figure = figures.pointer(pointer).and_then(Value::as_f64);
    assert!(figure.is_some_and(|figure| figure > 0.0), "{pointer} is {figure:?} in {figures:#}");
}

#[test]
fn established_flows_both_ways() {
    let more = ["--direction=inbound,both", "--frame=1500", "--gateways=floor,masquerade,natgw"];
    let figures = match run("established", &more) {
        Ok(figures) => figures,
        Err(reason) => skip!("established_flows_both_ways", "{reason}"),
    };
    let rows = figures["summary"].as_array().map_or(0, Vec::len);
    assert_eq!(rows, 2 * 3, "directions, gateways");
    for row in 0..rows {
        above_zero(&figures, &format!("/summary/{row}/of_masquerade"));
    }
}

#[test]
fn new_flows() {
    match run("new-flows", &["--gateways=forward,natgw"]) {
        Ok(figures) => above_zero(&figures, "/summary/1/ns_by_tenth/9"),
        Err(reason) => skip!("new_flows", "{reason}"),
    }
}

#[test]
fn refusals() {
    let figures = match run("refusals", &["--gateways=floor,natgw"]) {
        Ok(figures) => figures,
        Err(reason) => skip!("refusals", "{reason}"),
    };
    above_zero(&figures, "/refusals/summary/1/refused_mpps");
    for sample in figures["refusals"]["samples"].as_array().into_iter().flatten() {
        if sample["gateway"] == "natgw" {
            assert_eq!(sample["refused_sent"], sample["counted"], "natgw's own count: {sample}");
        }
    }
}

#[test]
fn interference() {
    let figures = match run("interference", &["--gateways=floor,masquerade,natgw"]) {
        Ok(figures) => figures,
        Err(reason) => skip!("interference", "{reason}"),
    };
    if figures["interference"].is_null() {
        skip!("interference", "{}", figures["skipped"]);
    }
    let rows = figures["interference"]["summary"].as_array().map_or(0, Vec::len);
    assert_eq!(rows, 4 + 4 + 4 + 3, "alone and three floods, and natgw beside its sweep, hasty and paced");
}

#[test]
fn control() {
    match run("control", &["--gateways=natgw"]) {
        Ok(figures) => {
            for figure in [
                "start/median",
                "apply/median",
                "sweep/median",
                "sweep_longest_slice/median",
                "bytes_per_flow",
            ] {
                above_zero(&figures, &format!("/control/{figure}"));
            }
            above_zero(&figures, "/control/programs/0/verified_instructions");
        }
        Err(reason) => skip!("control", "{reason}"),
    }
}

#[test]
fn tcp() {
    match run("tcp", &["--gateways=masquerade,natgw"]) {
        Ok(figures) => {
            for row in 0..2 {
                above_zero(&figures, &format!("/tcp/summary/{row}/gigabits/median"));
                above_zero(&figures, &format!("/tcp/summary/{row}/connection_us/2"));
            }
        }
        Err(reason) => skip!("tcp", "{reason}"),
    }
}

#[test]
fn single_runs() {
    for (name, pointer) in [("ports", "/ports/0/refusal"), ("fair", "/fair/0/established_ns")] {
        match run(name, &["--packets=100"]) {
            Ok(figures) => above_zero(&figures, pointer),
            Err(reason) => skip!("single_runs", "{reason}"),
        }
    }
}
