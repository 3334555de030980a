// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is accepted, and what each refusal says, to the column.
//!
//! Cases are in `cases/*.txt`: `=== name`, a configuration, `---`, and what is said about it. After a deliberate
//! change of wording `NATGW_UPDATE_CASES=1 cargo test` rewrites what is said; read the difference before keeping it.

mod meaning;
mod timers;

use std::{fmt::Write as _, fs, net::Ipv4Addr, path::Path};

use super::*;

const NAME: &str = "natgw.toml";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the operator is told about `config`: warnings, or errors.
fn said(config: &str) -> String {
    match parse(NAME, config.to_owned()) {
        Err(error) => format!("{error}\n"),
        Ok((_, warnings)) if warnings.is_empty() => "accepted\n".to_owned(),
        Ok((_, warnings)) => warnings.iter().fold(String::new(), |mut all, warning| {
            let _infallible = writeln!(all, "{warning}");
            all
        }),
    }
}

/// Name, configuration and expectation of each case.
fn cases(text: &str) -> Vec<(&str, &str, &str)> {
    let parts = text.split("=== ").skip(1);
    parts
        .map(|part| {
            let (name, rest) = part.split_once('\n').expect("a name");
            let (config, wanted) = rest.split_once("---\n").unwrap_or((rest, ""));
            (name, config, wanted)
        })
        .collect()
}

#[test]
fn every_refusal_and_warning_points_at_its_cause() {
    let directory = Path::new(ROOT).join("src/config/tests/cases");
    let update = std::env::var_os("NATGW_UPDATE_CASES").is_some();
    let mut wrong = String::new();
    let mut count = 0;
    for entry in fs::read_dir(directory).expect("the directory of cases") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("cases");
        let mut updated = String::new();
        for (name, config, wanted) in cases(&text) {
            count += 1;
            let found = said(config);
            let wanted = wanted.trim_end();
            if found.trim_end() != wanted && !update {
                let _infallible = write!(wrong, "{name}: wanted\n{wanted}\nfound\n{found}\n");
            }
            let _infallible = write!(updated, "=== {name}\n{config}---\n{}\n\n", found.trim_end());
        }
        if update {
            fs::write(&path, updated.trim_end().to_owned() + "\n").expect("the cases are writable");
        }
    }
    assert!(count > 230, "{count} cases found");
    assert!(wrong.is_empty(), "{wrong}");
}

/// A configuration with one rule, and what `ports_per_backend` comes to.
fn ports_of(addresses: &str, backends: &str, more: &str) -> Option<u32> {
    let config = format!(
        "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n[[frontend]]\nname = 'fe'\naddresses = [{addresses}]\n\
         [[pool]]\nname = 'p'\nbackends = [{backends}]\n[[outbound_rule]]\nname = 'r'\npool = 'p'\n\
         frontends = ['fe']\n{more}\n"
    );
    let (gateway, _) = parse(NAME, config).ok()?;
    gateway.rules.first().map(|rule| rule.ports_per_backend)
}

#[test]
fn default_ports_are_those_of_azure() {
    let hundred = "'10.0.0.0/26', '10.0.0.64/27', '10.0.0.96/30'";
    for (addresses, backends, ports) in [
        ("'203.0.113.1'", hundred, 512),
        ("'203.0.113.1', '203.0.113.2'", hundred, 1024),
        ("'203.0.113.1', '203.0.113.2', '203.0.113.3'", hundred, 1024),
        (
            "'203.0.113.0/28'",
            "'10.0.0.0/24', '10.0.1.0/24', '10.0.2.0/24', '10.0.3.0/25', '10.0.3.128/26'",
            512,
        ),
        ("'203.0.113.1'", "'10.0.0.1'", 1024),
    ] {
        for more in ["", "ports_per_backend = 0"] {
            assert_eq!(ports_of(addresses, backends, more), Some(ports), "{addresses} {backends} {more}");
        }
    }
}

#[test]
fn explicit_ports_are_bounded_by_the_addresses() {
    let ten = "'10.0.0.0/29', '10.0.0.8/31'";
    let one = "'203.0.113.1'";
    assert_eq!(ports_of(one, ten, "ports_per_backend = 6400"), Some(6400));
    assert_eq!(ports_of(one, ten, "ports_per_backend = 6408"), None);
    assert_eq!(ports_of("'203.0.113.0/28'", "'10.0.0.1'", "ports_per_backend = 1024000"), Some(1_024_000));
    assert_eq!(ports_of("'203.0.113.0/29'", "'10.0.0.1'", "ports_per_backend = 1024000"), None);
}

#[test]
fn absent_keys_have_their_defaults() {
    let config = "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n".to_owned();
    let (gateway, _) = parse(NAME, config).expect("the least there can be");
    assert_eq!(
        (gateway.name.as_str(), gateway.xdp_mode, gateway.max_flows, gateway.assign_frontends),
        ("default", XdpMode::Auto, 1_048_576, true)
    );
}

#[test]
fn a_name_given_in_one_pool_is_known_in_all() {
    let config = "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n[[pool]]\nname = 'a'\nbackends = ['10.0.0.1']\n\
                  [[pool]]\nname = 'b'\nbackends = [{ name = 'db', address = '10.0.0.1' }]\n";
    let (gateway, _) = parse(NAME, config.to_owned()).expect("no rules, but right");
    let backend = Backend { name: Some("db".to_owned()), address: Ipv4Addr::new(10, 0, 0, 1) };
    assert!(gateway.pools.iter().all(|pool| pool.backends == [backend.clone()]));
}

#[test]
fn what_tables_can_hold_bounds_the_lists() {
    let numbered = |count: usize, form: &dyn Fn(usize) -> String| (0..count).map(form).collect::<String>();
    let rules = |count| {
        let pools = numbered(count, &|n| {
            format!("[[pool]]\nname = 'p{n}'\nbackends = ['10.0.{}.{}']\n", n / 256, n % 256)
        });
        let rules = numbered(count, &|n| {
            format!(
                "[[outbound_rule]]\nname = 'r{n}'\npool = 'p{n}'\nfrontends = ['fe']\nports_per_backend = 8\n"
            )
        });
        let head = "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n[[frontend]]\nname = 'fe'\naddresses = ['203.0.113.1']\n";
        said(&format!("{head}{pools}{rules}"))
    };
    assert_eq!(rules(256), "accepted\n");
    assert!(rules(257).contains("257 outbound rules"), "{}", rules(257));
    let interfaces = |count| {
        let inside = numbered(count, &|n| format!("'lan{n}', "));
        said(&format!("[gateway]\ninside = [{inside}]\noutside = ['lan0']\n"))
    };
    assert!(interfaces(64).contains("no outbound rule"));
    assert!(interfaces(65).contains("65 interfaces, at most 64 are possible"));
}

#[test]
fn the_example_is_right() {
    let (gateway, warnings) =
        load(&Path::new(ROOT).join("../config/natgw.example.toml")).expect("it is right");
    assert!(warnings.is_empty());
    assert_eq!(gateway.rules.iter().map(|rule| rule.ports_per_backend).collect::<Vec<_>>(), [1024, 1024]);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/natgw.toml")).expect_err("there is none").to_string();
    assert!(
        error.starts_with("cannot read configuration `/nonexistent/natgw.toml`: No such file"),
        "{error}"
    );
}

#[test]
fn the_examples_are_right() {
    let directory = Path::new(ROOT).join("../config");
    let mut count = 0;
    for entry in fs::read_dir(directory).expect("the directory of examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        let (_, warnings) = load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert!(warnings.is_empty(), "{}: {}", path.display(), warnings[0]);
    }
    assert!(count >= 3, "{count} examples found");
}

#[test]
fn the_egress_only_example_is_that_of_azure() {
    let (gateway, _) = load(&Path::new(ROOT).join("../config/egress-only.toml")).expect("it is right");
    assert_eq!((gateway.pools[0].backends.len(), gateway.rules.len()), (3, 1));
    let rule = &gateway.rules[0];
    assert_eq!(
        (rule.protocol, rule.timers.established(), rule.ports_per_backend),
        (Protocol::All, 900, 10_000)
    );
    assert_eq!(rule.on_refusal, Refusal::AdminProhibited);
}

/// Every `toml` block of the documentation is a whole configuration; a `text` block right after it is what is said
/// about it.
#[test]
fn the_documentation_is_right() {
    for (document, least) in [("configuration.md", 3), ("outbound.md", 2), ("timers.md", 1)] {
        let path = Path::new(ROOT).join("../docs").join(document);
        let text = fs::read_to_string(path).expect("documentation");
        let mut blocks = text.split("```").skip(1).step_by(2).peekable();
        let mut count = 0;
        while let Some(block) = blocks.next() {
            let Some(config) = block.strip_prefix("toml\n") else { continue };
            count += 1;
            let refusal = blocks.peek().and_then(|next| next.strip_prefix("text\nnatgw.toml:"));
            match refusal {
                Some(refusal) => {
                    assert_eq!(said(config).trim_end(), format!("natgw.toml:{refusal}").trim_end());
                }
                None => assert_eq!(said(config), "accepted\n", "{config}"),
            }
        }
        assert!(count >= least, "{count} configurations found in {document}");
    }
}

/// Every key is documented, with its example among the right ones.
#[test]
fn every_key_is_documented() {
    let text = fs::read_to_string(Path::new(ROOT).join("../docs/configuration.md")).expect("documentation");
    for key in schema::all_keys() {
        assert!(text.contains(&format!("| `{key}` |")), "`{key}` has no row in docs/configuration.md");
    }
}
