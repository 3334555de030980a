// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables in the documentation against the code they describe. That links lead somewhere is `cargo xtask tidy`'s part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use nat_common::abi::{
    config::{Control, Frontend, FrontendKey, IcmpBudget, Meta, PortConfig, PortTag, SweepPass, Table},
    counters::{Counters, Fate, Reason},
    event::ResetCounts,
    flow::{FlowEntry, FlowKey},
    grant::{
        BackendInfo, BackendKey, BackendRef, BackendState, Grant, GrantState, PortSet, Quota, Rule, Towards,
        TowardsKey,
    },
    names,
    policy::{Instance, InstanceKey, PolicyInfo, PolicyMasks, PolicyPrefix, PolicyState},
    record::{PortRecord, RecordKey, RootKey, RootRecord},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Cells of the table rows whose first cell is one name in backticks, by that name.
fn rows(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let cells = |line| -> Option<(&str, Vec<&str>)> {
        let cells: Vec<&str> = str::strip_prefix(line, "|")?.split('|').map(str::trim).collect();
        let name = cells[0].strip_prefix('`')?.strip_suffix('`')?;
        Some((name, cells[1..].to_vec()))
    };
    text.lines().filter_map(cells).collect()
}

const FATES: [&str; 4] = ["translated", "answered", "passed", "dropped"];

const fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Translated => FATES[0],
        Fate::Answered => FATES[1],
        Fate::Passed => FATES[2],
        Fate::Dropped => FATES[3],
    }
}

#[test]
fn every_verdict_reason_is_explained() {
    let text = read("docs/troubleshooting.md");
    let rows = rows(&text);
    for reason in Reason::ALL {
        let row = rows.get(reason.name()).unwrap_or_else(|| panic!("`{}` has no row", reason.name()));
        assert_eq!(row[0], word(reason.fate()), "{}", reason.name());
        assert!(row[1].len() > 20 && !row[2].is_empty(), "`{}`: {row:?}", reason.name());
    }
    let known: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    for (name, _) in rows.iter().filter(|(_, row)| FATES.contains(&row[0])) {
        assert!(known.contains(name), "`{name}` is no verdict reason");
    }
}

/// Names and sizes of key and value in bytes.
fn maps() -> Vec<(&'static str, usize, usize)> {
    const INDEX: usize = size_of::<u32>();
    vec![
        (names::FLOWS, size_of::<FlowKey>(), size_of::<FlowEntry>()),
        (names::RECORDS, size_of::<RecordKey>(), size_of::<PortRecord>()),
        (names::ROOTS, size_of::<RootKey>(), size_of::<RootRecord>()),
        (names::PRESSED, INDEX, size_of::<u64>()),
        (names::META, INDEX, size_of::<Meta>()),
        (names::CONTROL, INDEX, size_of::<Control>()),
        (names::PORTS, INDEX, size_of::<PortConfig>()),
        (names::PORT_BY_TAG, size_of::<PortTag>(), INDEX),
        (names::PORT_BY_IFINDEX, INDEX, INDEX),
        (names::BACKENDS, size_of::<BackendKey>(), size_of::<BackendRef>()),
        (names::BACKEND_INFO, INDEX, size_of::<BackendInfo>()),
        (names::GRANTS, INDEX, size_of::<Grant>()),
        (names::SETS, INDEX, size_of::<PortSet>()),
        (names::QUOTA, INDEX, size_of::<Quota>()),
        (names::TOWARDS, size_of::<TowardsKey>(), size_of::<Towards>()),
        // The kernel's key begins with the length of the prefix.
        (names::POLICY_PREFIXES, INDEX + size_of::<PolicyPrefix>(), size_of::<u64>()),
        (names::POLICY_PORTS, INDEX, size_of::<u64>()),
        (names::POLICY_MASKS, INDEX, size_of::<PolicyMasks>()),
        (names::POLICY_INFO, INDEX, size_of::<PolicyInfo>()),
        (names::POLICY_STATE, INDEX, size_of::<PolicyState>()),
        (names::INSTANCES, size_of::<InstanceKey>(), size_of::<Instance>()),
        (names::GRANT_STATE, INDEX, size_of::<GrantState>()),
        (names::BACKEND_STATE, INDEX, size_of::<BackendState>()),
        (names::RULES, INDEX, size_of::<Rule>()),
        (names::FRONTENDS, size_of::<FrontendKey>(), INDEX),
        (names::FRONTEND_INFO, INDEX, size_of::<Frontend>()),
        (names::COUNTERS, INDEX, size_of::<Counters>()),
        (names::TABLE, INDEX, size_of::<Table>()),
        (names::SWEEP, INDEX, size_of::<SweepPass>()),
        (names::RESET_COUNTS, INDEX, size_of::<ResetCounts>()),
        (names::ICMP_BUDGET, INDEX, size_of::<IcmpBudget>()),
    ]
}

#[test]
fn every_map_is_described_with_its_size() {
    let text = read("docs/maps.md");
    let rows = rows(&text);
    for name in names::PINNED_MAPS {
        assert!(rows.contains_key(name), "map `{name}` has no row");
    }
    for (name, key, value) in maps() {
        let row = &rows[name];
        assert_eq!((row[1], row[2]), (&*key.to_string(), &*value.to_string()), "key and value of `{name}`");
    }
}

/// Documents that name tests as proof.
const WITH_PROOFS: [&str; 12] = [
    "docs/tcp.md",
    "docs/rfc-compliance.md",
    "README.md",
    "docs/azure-parity.md",
    "ARCHITECTURE.md",
    "docs/packet-walk.md",
    "docs/maps.md",
    "docs/ports.md",
    "docs/protocols.md",
    "docs/timers.md",
    "docs/kernel-support.md",
    "docs/troubleshooting.md",
];

/// Where a name such as `packet_races::everyone_opens_the_same_flows`, `cases/policy::fragments` or
/// `nat-common/src/ports.rs::every_bit_is_found` claims its test to be; `None`: it is no such name.
fn place(name: &str) -> Option<(String, &str)> {
    let (file, test) = name.split_once("::").filter(|(_, test)| !test.contains("::"))?;
    if file.starts_with("packet_") || file.starts_with("netns_") {
        Some((format!("tests/tests/{file}.rs"), test))
    } else if let Some(case) = file.strip_prefix("cases/") {
        Some((format!("tests/src/cases/{case}.rs"), test))
    } else {
        file.ends_with(".rs").then(|| (file.to_owned(), test))
    }
}

#[test]
fn tests_that_documents_name_exist() {
    let mut found = 0;
    for document in WITH_PROOFS {
        for name in read(document).split('`').skip(1).step_by(2) {
            let Some((file, test)) = place(name) else { continue };
            let source = read(&file);
            let there = source.contains(&format!("fn {test}(")) || source.contains(&format!("\"{test}\""));
            assert!(there, "{document} names `{name}`, which is not in {file}");
            found += 1;
        }
    }
    assert!(found > 40, "only {found} tests are named: has the way they are written changed?");
}

/// Rows of docs/rfc-compliance.md: requirement, level, both mappings, how or why not, tests.
#[test]
fn every_requirement_that_is_met_names_its_proof() {
    let text = read("docs/rfc-compliance.md");
    let requirement = |line: &&str| line.starts_with("| REQ-") || line.starts_with("| §");
    let mut judged = 0;
    for line in text.lines().filter(requirement) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, level, apdm, eim, how, tests] = cells[..] else { panic!("six cells expected: {line}") };
        assert!(matches!(level, "M" | "S" | "R" | "O"), "{name}: level {level}");
        let met = [apdm, eim].contains(&"✅");
        for mark in [apdm, eim] {
            assert!(matches!(mark, "✅" | "⚠️" | "❌" | "–"), "{name}: mark {mark}");
        }
        let proofs = tests.split('`').skip(1).step_by(2).filter(|name| place(name).is_some()).count();
        assert!(!met || proofs > 0, "{name} is said to be met, and names no test");
        let unmet = [apdm, eim].iter().any(|mark| matches!(*mark, "⚠️" | "❌"));
        assert!(!unmet || !how.is_empty(), "{name} is not met everywhere, and does not say why");
        judged += 1;
    }
    // RFC 4787: 14, 5382: 10, 5508: 11, 6888: 15 requirements, some in parts; RFC 7857: 11 sections.
    assert!(judged >= 61, "only {judged} requirements");
}
