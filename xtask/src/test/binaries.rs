// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test binaries of nat-tests: built as the invoking user, told apart by their names.
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Rung;
use crate::{
    exec::{output, shown},
    paths,
};

/// One executable of libtest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestBinary {
    pub(super) name: String,
    pub(super) rung: Rung,
    pub(super) executable: PathBuf,
}

impl TestBinary {
    /// Names of the tests that the filter leaves, without running any.
    pub(super) fn tests(&self, filter: Option<&str>) -> Result<Vec<String>> {
        let list = output(Command::new(&self.executable).args(["--list", "--format", "terse"]).args(filter))?;
        Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}

/// Compiles nat-tests and returns its binaries, pure ones first.
pub(super) fn build() -> Result<Vec<TestBinary>> {
    let mut command = paths::cargo("test");
    command.args(["--package", "nat-tests", "--no-run", "--message-format", "json-render-diagnostics"]);
    let built = command.stderr(Stdio::inherit()).output()?;
    if !built.status.success() {
        bail!("`{}` ended with {}: fix the compiler errors above", shown(&command), built.status);
    }
    let mut binaries: Vec<TestBinary> =
        String::from_utf8_lossy(&built.stdout).lines().filter_map(parse_artifact).collect();
    binaries.sort_by_key(|binary| (binary.rung as u8, binary.name.clone()));
    if binaries.is_empty() {
        return Err(anyhow::anyhow!("`{}` printed no test executable", shown(&command)))
            .context("nat-tests has no test binaries: check tests/Cargo.toml");
    }
    Ok(binaries)
}

/// A line of cargo's JSON that announces a test executable.
fn parse_artifact(line: &str) -> Option<TestBinary> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let name = message["target"]["name"].as_str()?.to_owned();
    let executable = message["executable"].as_str()?.into();
    Some(TestBinary { rung: rung_of(&name), name, executable })
}

fn rung_of(name: &str) -> Rung {
    match name.split_once('_') {
        Some(("packet", _)) => Rung::Packet,
        Some(("netns", _)) => Rung::Netns,
        _ => Rung::Pure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rung_is_the_prefix_of_the_file_name() {
        assert_eq!(rung_of("packet_snat"), Rung::Packet);
        assert_eq!(rung_of("netns_basic"), Rung::Netns);
        assert_eq!(rung_of("cli_check"), Rung::Pure);
        assert_eq!(rung_of("packets"), Rung::Pure);
    }

    #[test]
    fn only_test_executables_are_taken_from_cargos_messages() {
        let artifact = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"packet_udp"}},"profile":{{"test":{test}}},"executable":"/t/packet_udp-1"}}"#
            )
        };
        let expected = TestBinary {
            name: "packet_udp".to_owned(),
            rung: Rung::Packet,
            executable: "/t/packet_udp-1".into(),
        };
        assert_eq!(parse_artifact(&artifact(true)), Some(expected));
        assert_eq!(parse_artifact(&artifact(false)), None);
        assert_eq!(parse_artifact(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(parse_artifact("warning: text"), None);
    }
}
