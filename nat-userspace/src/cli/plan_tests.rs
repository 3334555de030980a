// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table and the sentence, from the example instance.

use super::*;
use crate::{
    cli::{plan_text, render::Style, snapshot},
    view::example,
};

/// The example's backends with `ports` each, from one address.
fn config(ports: u32, more: &str) -> Gateway {
    let text = format!(
        r#"
[gateway]
inside = ["lan0"]
outside = ["wan0", "wan1"]
max_flows = 4096
[[frontend]]
name = "fe1"
addresses = ["203.0.113.10"]
[[pool]]
name = "web"
backends = ["10.0.0.4", {{ name = "db1", address = "10.0.2.7" }}{more}]
[[outbound_rule]]
name = "web-out"
pool = "web"
frontends = ["fe1"]
ports_per_backend = {ports}
"#
    );
    config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}")).0
}

fn document(instance: &Instance, gateway: &Gateway) -> Document {
    let before = bank::plan_of(instance);
    let after = plan::plan(gateway, Some(&before), &NoFlows).expect("it fits");
    let flows = example::joined(instance, &Filter::default()).flows.iter().map(place).collect();
    Document {
        name: instance.name.clone(),
        running: true,
        interfaces: interfaces(&in_force(instance), &configured(gateway)),
        addresses: vec![Ipv4Addr::new(203, 0, 113, 10)],
        restart: restart(instance, gateway),
        diff: diff::diff(&before, &after, &flows),
    }
}

fn text(document: &Document) -> String {
    let mut out = Vec::new();
    plan_text::write(&mut out, Style::PLAIN, document).expect("written");
    String::from_utf8(out).expect("text")
}

#[test]
fn people_see_a_line_for_each_change() {
    let instance = example::instance();
    let document = document(&instance, &config(8, r#", "10.0.0.9""#));
    snapshot::check("plan.txt", text(&document).as_bytes());
}

#[test]
fn programs_see_everything() {
    let instance = example::instance();
    let mut out = Vec::new();
    let document = document(&instance, &config(8, r#", "10.0.0.9""#));
    render::document(&mut out, &document, false).expect("written");
    snapshot::check("plan.json", &out);
}

/// A gateway with `keys`, and with `more` after its only rule.
fn planned(previous: Option<&PortPlan>, keys: &str, more: &str) -> PortPlan {
    let text = format!(
        "[gateway]\ninside = ['lan0']\noutside = ['wan0']\n{keys}[[frontend]]\nname = 'fe1'\n\
         addresses = ['203.0.113.10']\n[[pool]]\nname = 'web'\nbackends = ['10.0.0.4', {{ name = 'db1', \
         address = '10.0.0.5' }}]\n[[outbound_rule]]\nname = 'web-out'\npool = 'web'\nfrontends = ['fe1']\n{more}\n"
    );
    let gateway = config::parse("natgw.toml", text).unwrap_or_else(|error| panic!("{error}")).0;
    plan::plan(&gateway, previous, &NoFlows).expect("it fits")
}

#[test]
fn people_see_what_changes_beside_ports() {
    let before = planned(
        None,
        "block_smtp = true\n",
        "allocation = 'dynamic'\nmin_ports = 64\nmax_ports = 1024\n[[deny]]\nname = 'private'\n\
         destinations = ['10.0.0.0/8', '172.16.0.0/12']\n[[instance_ip]]\nbackend = '10.0.0.4'\naddress = '203.0.113.50'\n",
    );
    let after = planned(
        Some(&before),
        "on_refusal = 'icmp-admin-prohibited'\nprecedence = ['outbound-rule', 'instance-ip']\n",
        "allocation = 'dynamic'\nmin_ports = 128\nmax_ports = 4096\nidle_timeout = '10m'\non_refusal = 'tcp-reset'\n\
         [outbound_rule.limits]\nmax_flows = 5000\n[[outbound_rule.destination]]\naddress = '192.0.2.10'\nport = 5432\n\
         protocol = 'tcp'\nreserved_flows = 100\n[[deny]]\nname = 'private'\n\
         destinations = ['10.0.0.0/8', '192.168.0.0/16']\n[[bypass]]\nname = 'corp'\n\
         destinations = ['198.18.0.0/15']\nprotocol = 'tcp'\nports = [80, '8000-8010']\n\
         [[instance_ip]]\nbackend = 'db1'\naddress = '203.0.113.51'\n",
    );
    let place =
        FlowPlace { grant: 4, rule: 0, frontend: "203.0.113.10".parse().expect("an address"), port: 2000 };
    let diff = diff::diff(&before, &after, &FlowCounts::from_iter([place]));
    let document = Document { name: "default".to_owned(), running: true, diff, ..Document::default() };
    snapshot::check("plan_ways.txt", text(&document).as_bytes());
    let mut out = Vec::new();
    render::document(&mut out, &document, false).expect("written");
    snapshot::check("plan_ways.json", &out);
}

#[test]
fn room_for_backends_waits_for_another_start() {
    let instance = example::instance();
    let mut gateway = config(64, "");
    gateway.max_backends = Some(8192);
    let restart = restart(&instance, &gateway);
    let row = restart.iter().find(|row| row.setting == "max_backends").expect("a row");
    assert_eq!((row.in_force.as_str(), row.configured.as_str()), ("4096", "8192"));
    gateway.max_backends = None;
    assert!(super::restart(&instance, &gateway).iter().all(|row| row.setting != "max_backends"));
}

#[test]
fn another_name_is_refused() {
    let instance = Instance { name: "lab".to_owned(), ..example::instance() };
    let said = text(&document(&instance, &config(8, "")));
    assert!(
        said.contains("name is default: refused unless the daemon was started with `--name lab`"),
        "{said}"
    );
}

#[test]
fn what_is_in_force_changes_nothing() {
    let gateway = config(64, "");
    let plan = plan::plan(&gateway, None, &NoFlows).expect("it fits");
    let diff = diff::diff(&plan, &plan, &FlowCounts::default());
    let same = text(&Document { name: "default".to_owned(), running: true, diff, ..Document::default() });
    assert_eq!(same, "6 port blocks unchanged\nnothing changes\n");
}

#[test]
fn without_an_instance_everything_is_new() {
    let document =
        Document::new("natgw-no-such-instance", &config(64, ""), &[]).map_err(|error| error.to_string());
    match document {
        Ok(document) => {
            assert!(!document.running);
            let said = text(&document);
            assert!(said.starts_with("natgw-no-such-instance: no such instance runs: everything is new\n"));
            assert!(
                said.ends_with("2 backends change,\nno live flow is on a port that goes away\n"),
                "{said}"
            );
        }
        // Not root, on a host with instances.
        Err(error) => assert!(error.contains("run natgw as root"), "{error}"),
    }
}
