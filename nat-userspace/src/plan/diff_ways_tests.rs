// SPDX-License-Identifier: MIT OR Apache-2.0
//! What changes beside ports: settings, policies, instance IPs, and who shares.

use super::{settings::Value, *};
use crate::{
    config,
    plan::{self, NoFlows},
};

const OBJECTS: &str = "
[[frontend]]
name = 'fe1'
addresses = ['203.0.113.10', '203.0.113.11']
[[pool]]
name = 'web'
backends = ['10.0.0.4', { name = 'db1', address = '10.0.0.5' }]
[[outbound_rule]]
name = 'web-out'
pool = 'web'
frontends = ['fe1']
";

/// `keys` of the gateway; `more`, first keys of the rule, then whatever else.
fn planned(previous: Option<&PortPlan>, keys: &str, more: &str) -> PortPlan {
    let text = format!("[gateway]\ninside = ['lan0']\noutside = ['wan0']\n{keys}{OBJECTS}{more}\n");
    let (gateway, _) = config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}"));
    plan::plan(&gateway, previous, &NoFlows).expect("it fits")
}

/// What changes from the first to the second.
fn changed(before: [&str; 2], after: [&str; 2]) -> PlanDiff {
    let before = planned(None, before[0], before[1]);
    let after = planned(Some(&before), after[0], after[1]);
    assert!(diff(&after, &after, &FlowCounts::default()).is_empty());
    diff(&before, &after, &FlowCounts::default())
}

#[test]
fn every_setting_of_a_rule_is_seen() {
    let full = "on_refusal = 'tcp-reset'\ntcp_reset = 'both'\nrst_check = 'in-window'\nallocation = 'dynamic'\nmin_ports = 64\nmax_ports = 4096\n\
                [outbound_rule.limits]\nmax_flows = 10000\nmax_half_open = 500\nnew_flows_per_second = 70000\n\
                new_flow_burst = 80000\n[[outbound_rule.destination]]\naddress = '192.0.2.10'\nport = 5432\n\
                protocol = 'tcp'\nreserved_flows = 500\nmax_flows = 800\n";
    let found = changed(["", "allocation = 'dynamic'\nmin_ports = 64"], ["", full]);
    let [rule] = &found.rules.changed[..] else { panic!("{found:#?}") };
    let settings: BTreeMap<&str, (&Option<Value>, &Option<Value>)> =
        rule.settings.iter().map(|setting| (setting.setting, (&setting.before, &setting.after))).collect();
    let number = |number| Some(Value::Number(number));
    let wanted = [
        ("on_refusal", Some(Value::Word("silent")), Some(Value::Word("tcp-reset"))),
        ("tcp_reset", Some(Value::Word("off")), Some(Value::Word("both"))),
        ("rst_check", Some(Value::Word("none")), Some(Value::Word("in-window"))),
        ("max_ports", None, number(4096)),
        ("max_flows", None, number(10_000)),
        ("max_half_open", None, number(500)),
        ("new_flows_per_second", None, number(70_000)),
        ("new_flow_burst", None, number(80_000)),
        (
            "destinations",
            None,
            Some(Value::List(vec!["192.0.2.10 tcp 5432: reserved 500, at most 800".to_owned()])),
        ),
    ];
    assert_eq!(settings.len(), wanted.len(), "{settings:?}");
    for (name, before, after) in &wanted {
        assert_eq!(settings.get(name), Some(&(before, after)), "{name}");
    }
    assert!(rule.timeouts.is_empty() && !found.blocks.iter().any(Block::is_change));
    // A change of one of them is a change.
    for (from, to) in [
        ("max_ports = 4096", "max_ports = 4104"),
        ("max_flows = 10000", "max_flows = 10001"),
        ("max_half_open = 500", "max_half_open = 501"),
        ("new_flows_per_second = 70000", "new_flows_per_second = 71000"),
        ("new_flow_burst = 80000", "new_flow_burst = 80001"),
        ("tcp-reset", "silent"),
        ("'both'", "'on-idle'"),
        ("'both'", "'on-packet'"),
        ("in-window", "none"),
        ("5432", "5433"),
        ("reserved_flows = 500", "reserved_flows = 499"),
        ("max_flows = 800", "max_flows = 801"),
    ] {
        let found = changed(["", full], ["", &full.replacen(from, to, 1)]);
        assert!(!found.is_empty() && found.rules.changed.len() == 1, "{from}: {found:#?}");
    }
}

#[test]
fn every_option_and_timer_of_a_rule_is_seen() {
    let options = "mapping = 'endpoint-independent'\nfiltering = 'endpoint-independent'\nport_parity = true\n\
                   mss_clamp = 1360\nip_id = 'all'\nother_protocols = ['gre', 'esp']\n[outbound_rule.timeouts]\n\
                   after_idle = '10s'\nafter_udp = '65s'\nudp_refresh = 'both'\nudp = '2m'\n\
                   udp_ports = [{ ports = [53, '5000-5100'], timeout = '10s' }]\n";
    let found = changed(["", "ports_per_backend = 8"], ["", &format!("ports_per_backend = 8\n{options}")]);
    let [rule] = &found.rules.changed[..] else { panic!("{found:#?}") };
    let said: Vec<String> =
        rule.settings.iter().map(|setting| serde_json::to_string(setting).expect("JSON")).collect();
    let wanted = [
        ("after_idle", r#""0s""#, r#""10s""#),
        ("after_udp", r#""0s""#, r#""65s""#),
        ("udp_refresh", r#""either""#, r#""both""#),
        ("udp_ports", "null", r#"["53: 10s","5000-5100: 10s"]"#),
        ("mapping", r#""address-and-port-dependent""#, r#""endpoint-independent""#),
        ("filtering", "null", r#""endpoint-independent""#),
        ("port_parity", "null", r#""true""#),
        ("mss_clamp", r#""off""#, "1360"),
        ("ip_id", r#""fragments""#, r#""all""#),
        ("other_protocols", "null", r#"["gre","esp"]"#),
    ]
    .map(|(key, before, after)| format!(r#"{{"setting":"{key}","before":{before},"after":{after}}}"#));
    assert_eq!(said, wanted);
    let [udp] = &rule.timeouts[..] else { panic!("{:?}", rule.timeouts) };
    assert_eq!((udp.state, udp.before_seconds, udp.after_seconds), ("udp", 240, 120));
    assert!(!found.blocks.iter().any(Block::is_change), "other protocols have no ports of their own");
}

/// Flows of other protocols are on the ports of UDP, and drain like them.
#[test]
fn flows_of_other_protocols_drain() {
    use nat_common::abi::config::CLASS_OTHER;
    let with = |more: &str| planned(None, "", &format!("ports_per_backend = 8\n{more}"));
    let before = with("other_protocols = ['gre']");
    let own = before.own(0, CLASS_OTHER as usize).expect("ports").segments[0];
    let place = FlowPlace {
        grant: grant_slot(0, CLASS_OTHER),
        rule: 0,
        frontend: own.address.into(),
        port: own.first,
    };
    let flows = FlowCounts(HashMap::from([(place, 3)]));
    let text = "ports_per_backend = 8";
    let after = planned(Some(&before), "", text);
    let found = diff(&before, &after, &flows);
    assert_eq!((found.totals.flows_draining, found.totals.flows_draining_already), (3, 0));
    let found = diff(&before, &before, &flows);
    assert_eq!((found.totals.flows_draining, found.totals.flows_draining_already), (0, 0));
}

#[test]
fn another_selection_moves_ports_or_says_so() {
    let dynamic = |selection: &str| format!("allocation = 'dynamic'\nfrontend_selection = '{selection}'");
    let found = changed(["", &dynamic("spread")], ["", &dynamic("paired")]);
    assert!(found.blocks.iter().all(Block::is_change), "{found:#?}");
    // The same ports, one address after the other.
    let found = changed(["", &dynamic("spread")], ["", &dynamic("drain-first")]);
    let [rule] = &found.rules.changed[..] else { panic!("{found:#?}") };
    let order = ["203.0.113.10", "203.0.113.11"].map(str::to_owned).to_vec();
    let wanted = Setting { setting: "drain-first", before: None, after: Some(Value::List(order)) };
    assert_eq!(rule.settings, [wanted]);
    assert!(!found.blocks.iter().any(Block::is_change) && !found.is_empty());
}

#[test]
fn ports_that_are_shared_now_are_not_the_same() {
    let one = |ports: u32| {
        format!(
            "allocation = 'dynamic'\nmin_ports = {ports}\n[[pool]]\nname = 'p'\nbackends = ['10.0.0.9']\n"
        )
    };
    let config = |ports| one(ports).replace("min_ports", "frontend_selection = 'paired'\nmin_ports");
    let before = planned(None, "", &config(64));
    let after = planned(Some(&before), "", &config(128));
    let found = diff(&before, &after, &FlowCounts::default());
    let block = &found.blocks[0];
    assert_eq!(block.change, Change::Shared, "{block:#?}");
    let own = |runs: &[Run]| -> u32 {
        let own = runs.iter().filter(|run| !run.shared);
        own.map(|run| u32::from(run.range[1] - run.range[0]) + 1).sum()
    };
    assert_eq!((own(&block.before), own(&block.after)), (64, 128));
    assert!(!found.is_empty());
}

#[test]
fn settings_of_the_gateway_are_seen() {
    let keys = "on_refusal = 'icmp-host-unreachable'\nprecedence = ['outbound-rule', 'instance-ip']\n";
    let instance = "[[instance_ip]]\nbackend = 'db1'\naddress = '203.0.113.50'\n";
    let found = changed(["", instance], [keys, instance]);
    let names: Vec<&str> = found.gateway.iter().map(|setting| setting.setting).collect();
    assert_eq!(names, ["on_refusal", "precedence"]);
    assert_eq!(found.gateway[0].before, Some(Value::Word("silent")));
    assert_eq!(found.gateway[0].after, Some(Value::Word("icmp-host-unreachable")));
    assert!(!found.is_empty());
    // The rule inherits it.
    assert_eq!(found.rules.changed[0].settings[0].setting, "on_refusal");
}

const DENY: &str = "[[deny]]\nname = 'no'\ndestinations = ['10.0.0.0/8', '192.0.2.0/24']\nprotocol = 'tcp'\n\
                    ports = [25, '465-587']\n";

#[test]
fn policies_come_go_and_change() {
    let bypass = "[[bypass]]\nname = 'corp'\ndestinations = ['10.0.0.0/8', '10.1.0.0/16']\npool = 'web'\n";
    let found = changed(["block_smtp = true\n", DENY], ["", &format!("{bypass}{DENY}")]);
    let Policies { added, removed, changed: differ } = &found.policies;
    assert!(differ.is_empty(), "{differ:#?}");
    let [removed] = &removed[..] else { panic!("{removed:#?}") };
    let terms = removed.before.as_ref().expect("it was there");
    assert_eq!((removed.policy.as_str(), terms.action, terms.direction), ("block_smtp", "deny", "outbound"));
    assert_eq!((terms.protocols.as_slice(), &terms.ports), (&["tcp"][..], &Some(vec![[25, 25]])));
    assert_eq!((terms.prefixes[0].to_string().as_str(), &terms.backends), ("0.0.0.0/0", &None));
    let [added] = &added[..] else { panic!("{added:#?}") };
    let terms = added.after.as_ref().expect("it is there");
    assert_eq!((terms.action, terms.protocols.as_slice(), &terms.ports), ("bypass", &["all"][..], &None));
    assert_eq!(terms.backends.as_ref().map(Vec::len), Some(2));
    // One prefix is within the other.
    assert_eq!(terms.prefixes.len(), 1);
    assert!(!found.is_empty());

    for (from, to) in [
        ("192.0.2.0/24", "192.0.2.0/25"),
        ("'tcp'", "'udp'"),
        ("[25, ", "[26, "),
        ("'465-587'", "'465-588'"),
        ("ports = [25, '465-587']\n", ""),
        ("protocol", "pool = 'web'\nprotocol"),
    ] {
        let found = changed(["", DENY], ["", &DENY.replace(from, to)]);
        let [policy] = &found.policies.changed[..] else { panic!("{from}: {found:#?}") };
        assert!(policy.before != policy.after, "{from}: {policy:#?}");
        assert!(found.policies.added.is_empty() && found.policies.removed.is_empty());
    }
    let found = changed(["", DENY], ["", &DENY.replace("[[deny]]", "[[bypass]]")]);
    assert_eq!(found.policies.changed.len(), 1, "{found:#?}");
}

#[test]
fn the_same_policy_in_other_words_or_with_another_backend_is_no_change() {
    let words = DENY.replace("'10.0.0.0/8', '192.0.2.0/24'", "'192.0.2.0/24', '10.7.0.0/16', '10.0.0.0/8'");
    assert!(
        changed(["", DENY], ["", &words.replace("[25, '465-587']", "['465-500', '501-587', 25]")]).is_empty()
    );
    let pool = DENY.replace("protocol", "pool = 'web'\nprotocol");
    let before = planned(None, "", &pool);
    let text = format!("[gateway]\ninside = ['lan0']\noutside = ['wan0']\n{OBJECTS}{pool}");
    let text = text.replace("['10.0.0.4', ", "['10.0.0.4', '10.0.0.6', ");
    let (gateway, _) = config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}"));
    let after = plan::plan(&gateway, Some(&before), &NoFlows).expect("it fits");
    let found = diff(&before, &after, &FlowCounts::default());
    assert!(found.policies.is_empty() && found.backends.added.len() == 1, "{found:#?}");
}

#[test]
fn flows_on_frontends_go_on_when_an_instance_ip_comes() {
    let instance = |backend: &str, address: &str| {
        format!("[[instance_ip]]\nbackend = '{backend}'\naddress = '{address}'\n")
    };
    let first = "203.0.113.50";
    let before = planned(None, "", &instance("10.0.0.4", first));
    let slot = |address: &str| before.backend_slot(address.parse().expect("an address")).expect("a slot");
    let place = |backend, frontend: &str| FlowPlace {
        grant: grant_slot(slot(backend), 0),
        rule: 0,
        frontend: frontend.parse().expect("an address"),
        port: 1024,
    };
    let flows = FlowCounts::from_iter([
        place("10.0.0.4", "203.0.113.10"),
        // Came in by the instance IP, under `rule_first`.
        place("10.0.0.4", first),
        place("10.0.0.5", "203.0.113.11"),
    ]);
    let after = planned(Some(&before), "", &instance("db1", "203.0.113.51"));
    let found = diff(&before, &after, &flows);
    let InstanceIps { added, removed, changed } = &found.instance_ips;
    let ([added], [removed], []) = (&added[..], &removed[..], &changed[..]) else { panic!("{found:#?}") };
    assert_eq!((added.name.as_deref(), added.before, added.flows), (Some("db1"), None, 1));
    assert_eq!((removed.backend.to_string().as_str(), removed.after, removed.flows), ("10.0.0.4", None, 1));
    // One that is on an instance IP does not drain from a frontend.
    assert!(found.totals.flows_draining_already <= 2, "{:#?}", found.totals);
    let other = planned(Some(&before), "", &instance("10.0.0.4", "203.0.113.52"));
    let [changed] = &diff(&before, &other, &flows).instance_ips.changed[..] else { panic!("one") };
    assert_eq!(changed.after.map(|address| address.to_string()).as_deref(), Some("203.0.113.52"));
}

#[test]
fn a_backend_that_moves_to_another_pool_is_seen() {
    let before = planned(None, "", "");
    let text =
        format!("[gateway]\ninside = ['lan0']\noutside = ['wan0']\n{OBJECTS}").replace("'web'", "'www'");
    let (gateway, _) = config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}"));
    let after = plan::plan(&gateway, Some(&before), &NoFlows).expect("it fits");
    let found = diff(&before, &after, &FlowCounts::default());
    let moved = &found.backends.renamed;
    assert_eq!((moved.len(), moved[0].pool_after.as_deref()), (2, Some("www")), "{found:#?}");
    assert!(!found.is_empty());
}
