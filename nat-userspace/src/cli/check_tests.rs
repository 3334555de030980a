// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

const CONFIG: &str = r#"
[gateway]
inside = ["lan0"]
outside = ["wan0"]
[[frontend]]
name = "fe1"
addresses = ["203.0.113.10", "203.0.113.11"]
[[pool]]
name = "web"
backends = ["10.0.0.4", { name = "db1", address = "10.0.2.7" }]
[[pool]]
name = "mail"
backends = ["10.0.3.1"]
[[outbound_rule]]
name = "web-out"
pool = "web"
frontends = ["fe1"]
[[outbound_rule]]
name = "mail-out"
pool = "mail"
frontends = ["fe1"]
protocol = "tcp"
ports_per_backend = 64
"#;

fn planned(config: &str) -> (Gateway, PortPlan) {
    let (gateway, warnings) = config::parse("natgw.toml", config.to_owned()).expect("a valid configuration");
    assert!(warnings.is_empty());
    let plan = plan::plan(&gateway, None, &NoFlows).expect("a plan");
    (gateway, plan)
}

#[test]
fn people_see_one_line_for_what_is_alike() {
    let (gateway, plan) = planned(CONFIG);
    let wanted = "\
gateway `default`: outbound rules: 2, backends: 3, frontend addresses: 2

RULE      BACKEND         FRONTEND      PROTOCOL  RANGE      PORTS
web-out   10.0.0.4        203.0.113.10  all       1024-2047  1,024
web-out   10.0.2.7 (db1)  203.0.113.11  all       1024-2047  1,024
mail-out  10.0.3.1        203.0.113.10  tcp       2048-2111     64

FRONTEND  ADDRESS                   TCP              UDP             ICMP
fe1       203.0.113.10  1,088 of 64,000  1,024 of 64,000  1,024 of 64,000
fe1       203.0.113.11  1,024 of 64,000  1,024 of 64,000  1,024 of 64,000
";
    assert_eq!(text(&gateway, &plan), wanted);
}

#[test]
fn shared_ports_are_shown_once() {
    let (mut gateway, _) = planned(CONFIG);
    gateway.rules.truncate(1);
    gateway.rules[0].allocation = Allocation::Dynamic;
    gateway.rules[0].ports_per_backend = 64;
    let plan = plan::plan(&gateway, None, &NoFlows).expect("a plan");
    let wanted = "\
gateway `default`: outbound rules: 1, backends: 3, frontend addresses: 2

RULE     BACKEND           FRONTEND      PROTOCOL  RANGE        PORTS
web-out  10.0.0.4          203.0.113.10  all       1024-1087       64
web-out  10.0.2.7 (db1)    203.0.113.11  all       1024-1087       64
web-out  2 backends share  203.0.113.10  all       1088-65535  64,448
web-out  2 backends share  203.0.113.11  all       1088-65535  64,448

FRONTEND  ADDRESS                    TCP               UDP              ICMP
fe1       203.0.113.10  64,512 of 64,512  64,512 of 64,512  64,512 of 64,512
fe1       203.0.113.11  64,512 of 64,512  64,512 of 64,512  64,512 of 64,512
";
    assert_eq!(text(&gateway, &plan), wanted);
    let shared: Vec<Row<'_>> = rows(&gateway, &plan).into_iter().filter(|row| row.shared).collect();
    assert_eq!((shared.len(), shared[0].backend, shared[0].backends), (6, None, 2));
}

#[test]
fn programs_see_every_protocol() {
    let (gateway, plan) = planned(CONFIG);
    let json = serde_json::to_value(rows(&gateway, &plan)).expect("plain values");
    assert_eq!(json.as_array().map(Vec::len), Some(7));
    assert_eq!(
        json[4],
        serde_json::json!({
            "rule": "web-out", "backend": "10.0.2.7", "name": "db1", "frontend": "203.0.113.11",
            "frontend_name": "fe1", "protocol": "udp", "range": [1024, 2047], "ports": 1024,
            "shared": false, "backends": 1
        })
    );
    assert_eq!(json[0]["name"], serde_json::Value::Null);
    assert_eq!(json[6]["protocol"], "tcp");
}

#[test]
fn the_longest_names_fit_100_columns() {
    let long = |length| "n".repeat(length);
    let config = CONFIG
        .replace("web-out", &long(48))
        .replace("db1", &long(32))
        .replace("fe1", &long(31))
        .replace("203.0.113.1", "203.100.113.10")
        .replace("10.0.2.7", "100.100.200.107");
    let (gateway, plan) = planned(&config);
    for line in text(&gateway, &plan).lines().skip(1) {
        assert!(line.chars().count() <= 100, "{line}");
    }
}
