// SPDX-License-Identifier: MIT OR Apache-2.0
//! Output compared with files in `snapshots/`. `NATGW_UPDATE_SNAPSHOTS=1 cargo test -p nat-userspace` writes them
//! anew; the difference then shows in version control.

use std::{env, fs, path::Path};

use clap::Parser;

use super::{
    render::{Style, WIDTH},
    watch::Format,
};

/// A table without colour.
pub(super) const TABLE: Format = Format { json: false, one_line: false, style: Style::PLAIN, notices: false };
/// JSON.
pub(super) const JSON: Format = Format { json: true, ..TABLE };

/// The options of a verb, parsed.
pub(super) fn parsed<A: clap::Args>(words: &[&str]) -> Result<A, clap::Error> {
    #[derive(Parser)]
    struct Whole<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    Whole::try_parse_from(["natgw"].iter().chain(words)).map(|whole| whole.args)
}

/// Compares `bytes` with the snapshot `name`. Tables are also checked for their width, JSON for being JSON.
pub(super) fn check(name: &str, bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).expect("output is UTF-8");
    if name.ends_with(".json") {
        serde_json::from_str::<serde_json::Value>(text).expect("one JSON document");
    } else {
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{name}: wider than {WIDTH}: {line}");
            assert!(!line.contains('\x1b'), "{name}: coloured without a terminal");
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/snapshots").join(name);
    if env::var_os("NATGW_UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, bytes).expect("the snapshot can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} differs from its snapshot\n--- expected\n{expected}\n--- found\n{text}"
    );
}
