// SPDX-License-Identifier: MIT OR Apache-2.0
//! Help, exit codes, and what counts as success.

use anyhow::Context as _;

use super::{render::WIDTH, *};

fn help(words: &[&str]) -> String {
    let answer = Cli::try_parse_from(["natgw"].iter().chain(words)).expect_err("help is not a command");
    assert_eq!(answer.exit_code(), 0);
    answer.to_string()
}

#[test]
fn every_command_explains_itself_within_the_width() {
    let command = Cli::command();
    command.clone().debug_assert();
    let names: Vec<_> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names.iter().map(String::as_str) {
        for text in [help(&[name, "--help"]), help(&[name, "-h"])] {
            assert!(text.contains(&format!("Usage: natgw {name}")), "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "natgw {name} --help: {line}");
            }
        }
    }
    for option in command.get_subcommands().flat_map(clap::Command::get_arguments) {
        assert!(option.get_help().is_some(), "{} is not explained", option.get_id());
    }
}

#[test]
fn the_first_commands_that_are_named_exist() {
    let command = Cli::command();
    let verbs: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    let mut named = 0;
    for (_, rest) in START.match_indices("natgw ").map(|(at, found)| START.split_at(at + found.len())) {
        let word = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        // `natgw <command>`
        if !word.is_empty() {
            assert!(verbs.contains(&word), "help names `natgw {word}`, which does not exist");
            named += 1;
        }
    }
    assert!(named >= 6, "{named}");
    assert!(START.lines().all(|line| line.chars().count() <= WIDTH));
}

#[test]
fn no_command_is_help_and_not_an_error() {
    let cli = Cli::try_parse_from(["natgw"]).expect("allowed");
    assert!(cli.command.is_none());
    let text = Cli::command().render_long_help().to_string();
    for part in ["SNAT gateway", "Commands:", "Start with:", "Exit codes:"] {
        assert!(text.contains(part), "{part} missing in:\n{text}");
    }
}

#[test]
fn the_version_says_whether_the_data_path_is_inside() {
    let text = help(&["--version"]);
    assert!(text.starts_with(concat!("natgw ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("BPF object: "), "{text}");
}

#[test]
fn usage_errors_are_2_and_others_1() {
    let usage =
        Err::<(), _>(UsageError("no such thing".to_owned())).context("reading").expect_err("an error");
    assert_eq!(exit_code(&usage), ExitCode::from(2));
    assert_eq!(exit_code(&anyhow::anyhow!("no")), ExitCode::from(1));
    for wrong in
        [&["natgw", "flow"][..], &["natgw", "flows", "--limt", "3"], &["natgw", "ports", "--limit", "3"]]
    {
        let error = Cli::try_parse_from(wrong).expect_err("wrong");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.use_stderr());
    }
}

#[test]
fn a_closed_pipe_is_success_however_deep() {
    let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
    assert!(is_broken_pipe(&closed().into()));
    assert!(is_broken_pipe(&anyhow::Error::from(closed()).context("printing flows")));
    assert!(is_broken_pipe(&serde_json::Error::io(closed()).into()));
    assert!(!is_broken_pipe(&io::Error::from(io::ErrorKind::NotFound).into()));
    assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
}

/// Keys of every object in `value`, except those that are data: reasons, states and protocols.
fn keys(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
    const BY_NAME: [&str; 6] = ["verdicts", "bytes", "by_state", "timeouts_seconds", "ports", "attention"];
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                if !BY_NAME.contains(&key.as_str()) {
                    keys(value, found);
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_of_every_document_is_documented() {
    let documents = [
        include_str!("snapshots/flows.json"),
        include_str!("snapshots/plan.json"),
        include_str!("snapshots/ports.json"),
        include_str!("snapshots/ports_by_destination.json"),
        include_str!("snapshots/stats.json"),
        include_str!("snapshots/status.json"),
    ];
    let mut found = std::collections::BTreeSet::new();
    for document in documents {
        keys(&serde_json::from_str(document).expect("JSON"), &mut found);
    }
    let text = include_str!("../../../docs/json.md");
    assert!(found.len() > 60, "{found:?}");
    for key in found {
        assert!(text.contains(&format!("`{key}`")), "docs/json.md does not explain `{key}`");
    }
}
