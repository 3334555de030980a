// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask tidy`: house rules that no compiler checks. Also a test, so that nobody has to remember it.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::paths;

/// A file longer than this holds more than one thing.
const MAX_LINES: usize = 400;
/// Grow by nature, and are not read from top to bottom.
const UNBOUNDED: [&str; 2] = ["CHANGELOG.md", "Cargo.lock"];
const SPDX: &str = "SPDX-License-Identifier: MIT OR Apache-2.0";
const SPDX_BPF: &str = "SPDX-License-Identifier: GPL-2.0-only OR MIT";
/// Crates that become part of a program the kernel runs, which asks for a GPL-compatible licence.
const BPF_DIRECTORIES: [&str; 2] = ["nat-ebpf", "tests/bench-ebpf"];
/// Marks of work left undone; spelt in two halves so that this file does not break its own rule.
const UNDONE: [&str; 6] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("#[ig", "nore"),
];
/// Directories of one person's machine.
const MACHINE: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tmp", "/w/")];
const ALLOW: [&str; 2] = [concat!("#[al", "low("), concat!("#![al", "low(")];

pub(crate) fn run() -> Result<()> {
    let violations = check(&paths::root())?;
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        return Ok(());
    }
    bail!("{} house rules broken: mend the lines above", violations.len())
}

/// Every broken rule in the tree, as `path:line: what, remedy`.
fn check(root: &Path) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    for path in files(root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        check_file(&path, &text, &mut violations);
        if has_extension(&path, "md") {
            check_links(root, &path, &text, &mut violations);
        }
    }
    Ok(violations)
}

/// Text files of the project, relative to its root; neither build output nor version control.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let full = root.join(&directory);
        for entry in fs::read_dir(&full).with_context(|| format!("cannot list `{}`", full.display()))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && path != Path::new("target") && path != Path::new(".git") {
                waiting.push(path);
            } else if kind.is_file() && is_checked(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_checked(path: &Path) -> bool {
    let kinds = ["rs", "toml", "md", "sh", "yml", "service", "json"];
    kinds.iter().any(|kind| has_extension(path, kind)) || path.starts_with(".ci")
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn check_file(path: &Path, text: &str, violations: &mut Vec<String>) {
    let mut report =
        |line: usize, what: String| violations.push(format!("{}:{line}: {what}", path.display()));
    let lines = text.lines().count();
    let unbounded = UNBOUNDED.iter().any(|name| path.ends_with(name)) || has_extension(path, "json");
    if lines > MAX_LINES && !unbounded {
        report(lines, format!("{lines} lines, at most {MAX_LINES}: split it by what it is about"));
    }
    if has_extension(path, "rs") {
        let licence = if BPF_DIRECTORIES.iter().any(|dir| path.starts_with(dir)) { SPDX_BPF } else { SPDX };
        let wanted = format!("// {licence}");
        if text.lines().next() != Some(wanted.as_str()) {
            report(1, format!("the first line is not `{wanted}`: add it"));
        }
    }
    for (index, line) in text.lines().enumerate() {
        if let Some(mark) = UNDONE.iter().find(|mark| line.contains(**mark)) {
            report(index + 1, format!("`{mark}` marks unfinished work: finish it or open an issue"));
        }
        if let Some(place) = MACHINE.iter().find(|place| line.contains(**place)) {
            report(
                index + 1,
                format!("`{place}` exists on one machine only: use a path relative to the checkout"),
            );
        }
        if has_extension(path, "rs") && ALLOW.iter().any(|allow| line.contains(allow)) {
            report(
                index + 1,
                "lints are not switched off with allow: use #[expect(…, reason = \"…\")]".to_owned(),
            );
        }
    }
}

/// Relative links of a document must lead to a file.
fn check_links(root: &Path, path: &Path, text: &str, violations: &mut Vec<String>) {
    let base = root.join(path.parent().unwrap_or(Path::new("")));
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for target in link_targets(line) {
            if !base.join(target).exists() {
                violations.push(format!(
                    "{}:{}: link to `{target}`, which does not exist: correct it",
                    path.display(),
                    index + 1
                ));
            }
        }
    }
}

/// Files that `](…)` points to; not web addresses and not places in the same document.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ']).next()?.split('#').next()?;
        (!target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")).then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<String> {
        let mut violations = Vec::new();
        check_file(Path::new(path), text, &mut violations);
        violations
    }

    fn source(body: &str) -> String {
        format!("// {SPDX}\n{body}\n")
    }

    #[test]
    fn the_project_keeps_its_rules() {
        let violations = check(&paths::root()).expect("the checkout can be read");
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }

    #[test]
    fn long_files_are_reported_unless_they_grow_by_nature() {
        let long = source(&"\n".repeat(MAX_LINES));
        assert!(rules("a/src/x.rs", &long)[0].contains("lines, at most 400"));
        assert!(rules("CHANGELOG.md", &long).is_empty());
        assert!(rules("a/src/x.rs", &source("")).is_empty());
    }

    #[test]
    fn the_licence_line_depends_on_who_runs_the_code() {
        let gpl = format!("// {SPDX_BPF}\n");
        assert!(rules("nat-ebpf/src/x.rs", &gpl).is_empty());
        assert_eq!(rules("nat-ebpf/src/x.rs", &source("")).len(), 1);
        assert_eq!(rules("xtask/src/x.rs", &gpl).len(), 1);
    }

    #[test]
    fn unfinished_work_machine_paths_and_allow_are_reported_with_their_line() {
        for mark in UNDONE.iter().chain(&MACHINE).chain(&ALLOW) {
            let found = rules("xtask/src/x.rs", &source(mark));
            assert!(
                found.iter().any(|violation| violation.starts_with("xtask/src/x.rs:2: ")),
                "{mark}: {found:?}"
            );
        }
    }

    #[test]
    fn links_are_read_from_markdown() {
        let line = "see [a](docs/a.md#part), [b](https://x.example/b), [c](#here) and [d](../d.md \"title\")";
        assert_eq!(link_targets(line).collect::<Vec<_>>(), ["docs/a.md", "../d.md"]);
    }
}
