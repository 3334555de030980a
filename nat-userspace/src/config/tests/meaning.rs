// SPDX-License-Identifier: MIT OR Apache-2.0
//! What accepted configurations mean, and what bounds their lists.

use std::net::Ipv4Addr;

use super::*;

const HEAD: &str = "inside = ['lan0']\noutside = ['wan0']\n";
const OBJECTS: &str = "[[frontend]]\nname = 'fe'\naddresses = ['203.0.113.10', '203.0.113.11']\n\
                       [[frontend]]\nname = 'last'\naddresses = ['198.51.100.1']\n\
                       [[pool]]\nname = 'web'\nbackends = ['10.0.0.4', { name = 'db1', address = '10.0.0.5' }]\n\
                       [[pool]]\nname = 'rest'\nbackends = ['10.0.0.5', '10.0.9.9']\n";
const RULE: &str = "[[outbound_rule]]\nname = 'out'\npool = 'web'\nfrontends = ['fe']\n";

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const ALL: u32 = 15;

fn gateway(keys: &str, more: &str) -> Gateway {
    let config = format!("[gateway]\n{HEAD}{keys}\n{OBJECTS}{RULE}{more}\n");
    parse(NAME, config).unwrap_or_else(|error| panic!("{error}")).0
}

fn rule(keys: &str) -> OutboundRule {
    gateway("", keys).rules.remove(0)
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

fn net(text: &str) -> ipnet::Ipv4Net {
    text.parse().expect("a prefix")
}

#[test]
fn absent_keys_leave_everything_as_on_azure() {
    let gateway = gateway("", "");
    assert_eq!((gateway.max_backends, gateway.precedence), (None, Precedence::InstanceFirst));
    assert_eq!((gateway.on_refusal, gateway.policies.len()), (Refusal::Silent, 0));
    assert!(gateway.instance_ips.is_empty());
    assert_eq!((&gateway.frontends[0].reserved, gateway.frontends[0].host_ports), (&vec![], HostPorts::Auto));
    let rule = &gateway.rules[0];
    assert_eq!((rule.allocation, rule.max_ports, rule.selection), (Allocation::Static, 0, None));
    assert_eq!((rule.limits, rule.on_refusal), (Limits::default(), Refusal::Silent));
    assert_eq!((rule.tcp_reset, rule.rst_check), (TcpReset::Off, RstCheck::None));
    assert!(rule.pins.is_empty() && rule.excluded.is_empty() && rule.destinations.is_empty());
}

#[test]
fn keys_of_the_gateway() {
    let of = |keys: &str| gateway(keys, "");
    assert_eq!(of("max_backends = 8192").max_backends, Some(8192));
    for (words, precedence) in [
        ("'instance-ip', 'outbound-rule'", Precedence::InstanceFirst),
        ("'instance-ip', 'outbound-rule', 'default-outbound'", Precedence::InstanceFirst),
        ("'outbound-rule', 'instance-ip'", Precedence::RuleFirst),
        ("'outbound-rule', 'instance-ip', 'default-outbound'", Precedence::RuleFirst),
    ] {
        assert_eq!(of(&format!("precedence = [{words}]")).precedence, precedence, "{words}");
    }
    for (word, refusal) in [
        ("silent", Refusal::Silent),
        ("icmp-admin-prohibited", Refusal::AdminProhibited),
        ("icmp-host-unreachable", Refusal::HostUnreachable),
        ("tcp-reset", Refusal::TcpReset),
    ] {
        let key = format!("on_refusal = '{word}'");
        let everywhere = of(&key);
        assert_eq!((everywhere.on_refusal, everywhere.rules[0].on_refusal), (refusal, refusal), "{word}");
        let here = gateway("on_refusal = 'silent'", &key);
        assert_eq!((here.on_refusal, here.rules[0].on_refusal), (Refusal::Silent, refusal), "{word}");
    }
}

#[test]
fn resets_of_a_rule() {
    for (word, idle, packet) in
        [("off", false, false), ("on-idle", true, false), ("on-packet", false, true), ("both", true, true)]
    {
        let rule = &gateway("", &format!("tcp_reset = '{word}'")).rules[0];
        assert_eq!((rule.tcp_reset.on_idle(), rule.tcp_reset.on_packet()), (idle, packet), "{word}");
    }
    for (word, check) in [("none", RstCheck::None), ("in-window", RstCheck::InWindow)] {
        assert_eq!(gateway("", &format!("rst_check = '{word}'")).rules[0].rst_check, check, "{word}");
    }
}

#[test]
fn ports_that_backends_never_get() {
    let text = format!("[gateway]\n{HEAD}{OBJECTS}{RULE}");
    let text = text.replacen(
        "[[frontend]]\n",
        "[[frontend]]\nreserved_ports = [8080, '5000-5100', '5101']\nhost_ports = '5050-5200'\n",
        1,
    );
    let gateway = parse(NAME, text).expect("it is right").0;
    assert_eq!(gateway.frontends[0].reserved, [range(5000, 5200), range(8080, 8080)]);
    assert_eq!(gateway.frontends[0].host_ports, HostPorts::Range(range(5050, 5200)));
    assert!(gateway.frontends[1].reserved.is_empty());
    assert_eq!(rule("excluded_ports = [5060, '6000-6063']").excluded, [range(5060, 5060), range(6000, 6063)]);
}

#[test]
fn ports_of_the_host_are_kept_once() {
    let facts = HostFacts { addresses: vec![Ipv4Addr::new(203, 0, 113, 11)], ephemeral: range(32768, 60999) };
    let mut automatic = gateway("", "");
    let said = keep_host_ports(&mut automatic, &facts);
    let [other, own] = [Ipv4Addr::new(203, 0, 113, 10), Ipv4Addr::new(203, 0, 113, 11)];
    assert_eq!(automatic.frontends[0].addresses, [other, own]);
    assert_eq!(automatic.frontends[0].reserved_of(own), [range(32768, 60999)]);
    assert!(automatic.frontends[0].reserved_of(other).is_empty(), "only the host's own address");
    assert!(automatic.frontends[1].reserved_on.is_empty());
    assert!(
        said.len() == 1 && said[0].starts_with("frontend `fe`: 203.0.113.11 is an address of this host"),
        "{said:?}"
    );
    let once = automatic.clone();
    assert!(keep_host_ports(&mut automatic, &facts).is_empty());
    assert_eq!(automatic, once);

    for (host_ports, reserved) in
        [(HostPorts::None, vec![]), (HostPorts::Range(range(2000, 3000)), vec![range(2000, 3000)])]
    {
        let mut told = gateway("", "");
        told.frontends[0].host_ports = host_ports;
        assert!(keep_host_ports(&mut told, &facts).is_empty());
        assert_eq!(told.frontends[0].reserved, reserved);
        assert!(told.frontends[0].reserved_on.is_empty());
        assert_eq!(told.frontends[0].reserved_of(other), reserved);
    }

    let low = HostFacts { ephemeral: range(1, 1030), ..facts };
    let mut clipped = gateway("", "");
    keep_host_ports(&mut clipped, &low);
    assert_eq!(clipped.frontends[0].reserved_on, [(own, range(1024, 1030))]);
}

#[test]
fn an_instance_ip_takes_the_host_s_address() {
    let mut taken = gateway("", "");
    let [own, other] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];
    let backend = Ipv4Addr::new(10, 0, 0, 4);
    taken.instance_ips = vec![InstanceIp { backend, address: other }];
    let facts = HostFacts { addresses: vec![own], ephemeral: range(32768, 60999) };
    assert!(taken_from_host(&taken, &facts).is_empty());
    taken.instance_ips.push(InstanceIp { backend, address: own });
    let said = taken_from_host(&taken, &facts);
    assert!(
        said.len() == 1
            && said[0].starts_with(
                "instance IP 203.0.113.1 is an address of this host: all that arrives for it goes to backend 10.0.0.4, "
            ),
        "{said:?}"
    );
}

#[test]
fn dynamic_rules_have_a_least_and_a_most() {
    let plain = rule("allocation = 'dynamic'");
    assert_eq!((plain.allocation, plain.ports_per_backend, plain.max_ports), (Allocation::Dynamic, 0, 0));
    let bounded = rule("allocation = 'dynamic'\nmin_ports = 64\nmax_ports = 4096");
    assert_eq!((bounded.ports_per_backend, bounded.max_ports), (64, 4096));
}

#[test]
fn selections_and_pins() {
    for (word, selection) in
        [("paired", Selection::Paired), ("spread", Selection::Spread), ("drain-first", Selection::DrainFirst)]
    {
        assert_eq!(rule(&format!("frontend_selection = '{word}'")).selection, Some(selection), "{word}");
    }
    let pinned = rule(
        "frontend_selection = 'pinned'\npins = [{ backend = 'db1', frontend = '203.0.113.11' }, \
         { backend = '10.0.0.4/32', frontend = '203.0.113.10' }]",
    );
    let pins = [(A, Ipv4Addr::new(203, 0, 113, 10)), (B, Ipv4Addr::new(203, 0, 113, 11))];
    assert_eq!((pinned.selection, pinned.pins), (Some(Selection::Pinned), pins.into_iter().collect()));
}

#[test]
fn limits_of_each_backend() {
    let all = "[outbound_rule.limits]\nmax_flows = 10000\nmax_half_open = 500\nnew_flows_per_second = 1000\n";
    let limits =
        Limits { max_flows: 10_000, max_half_open: 500, new_flows_per_second: 1000, new_flow_burst: 1000 };
    assert_eq!(rule(all).limits, limits);
    let burst = rule(&format!("{all}new_flow_burst = 2000")).limits;
    assert_eq!(burst, Limits { new_flow_burst: 2000, ..limits });
}

#[test]
fn limits_towards_destinations() {
    let rule = rule(
        "[[outbound_rule.destination]]\naddress = '192.0.2.10'\nport = 5432\nprotocol = 'tcp'\nreserved_flows = 5\n\
         [[outbound_rule.destination]]\naddress = '192.0.2.0/24'\nmax_flows = 800\n\
         [[outbound_rule.destination]]\naddress = '0.0.0.0/0'\nport = 53\nmax_flows = 8",
    );
    let limit = |prefix, port, classes, reserved, max_flows| DestinationLimit {
        prefix: net(prefix),
        port,
        classes,
        reserved,
        max_flows,
    };
    assert_eq!(
        rule.destinations,
        [
            limit("192.0.2.10/32", Some(5432), 1, 5, 0),
            limit("192.0.2.0/24", None, ALL, 0, 800),
            limit("0.0.0.0/0", Some(53), 3, 0, 8),
        ]
    );
}

#[test]
fn the_default_has_a_rule_for_each_protocol_left() {
    let more = "protocol = 'tcp'\n[default_outbound]\nfrontends = ['last']\nidle_timeout = '10m'\non_refusal = 'tcp-reset'\n";
    let gateway = gateway("", more);
    let summary: Vec<(&str, Protocol, Vec<u8>)> = gateway.rules[1..]
        .iter()
        .map(|rule| {
            assert_eq!((rule.allocation, &rule.frontends), (Allocation::Dynamic, &vec![1]));
            assert_eq!((rule.timers.established(), rule.on_refusal), (600, Refusal::TcpReset));
            let last = gateway.backends_of(rule).iter().map(|backend| backend.address.octets()[3]);
            (rule.name.as_str(), rule.protocol, last.collect())
        })
        .collect();
    assert_eq!(
        summary,
        [
            ("default-outbound/tcp", Protocol::Tcp, vec![9]),
            ("default-outbound/udp", Protocol::Udp, vec![4, 5, 9]),
            ("default-outbound/icmp", Protocol::Icmp, vec![4, 5, 9]),
        ]
    );
    let named = gateway.backends_of(&gateway.rules[2])[1].name.as_deref();
    assert_eq!(named, Some("db1"), "backends keep their names");
}

/// An instance IP comes before the last resort, whatever its place among the others.
#[test]
fn the_default_is_not_for_backends_with_an_instance_ip() {
    let more = "protocol = 'tcp'\n[default_outbound]\nfrontends = ['last']\n\
                [[instance_ip]]\nbackend = 'db1'\naddress = '203.0.113.50'\n";
    let gateway = gateway("precedence = ['outbound-rule', 'instance-ip', 'default-outbound']\n", more);
    let udp =
        gateway.rules.iter().find(|rule| rule.name == "default-outbound/udp").expect("a rule for the rest");
    let last: Vec<u8> = gateway.backends_of(udp).iter().map(|backend| backend.address.octets()[3]).collect();
    assert_eq!(last, [4, 9]);
}

#[test]
fn policies_in_their_order() {
    let more = "[[bypass]]\nname = 'corp'\ndestinations = ['10.0.0.0/8', '192.0.2.1']\nprotocol = 'udp'\n\
                [[deny]]\nname = 'all'\n\
                [[deny]]\nname = 'in'\ndirection = 'inbound'\npool = 'rest'\nsources = ['198.51.100.0/24']\nports = [80, '8000-8010']\n\
                [[deny]]\nname = 'rest'\nprotocol = 'other'\n\
                [[instance_ip]]\nbackend = 'db1'\naddress = '203.0.113.50'\n";
    let everywhere = vec![net("0.0.0.0/0")];
    let deny = Policy {
        name: "all".to_owned(),
        action: Action::Deny,
        direction: PolicyDirection::Outbound,
        pool: None,
        remotes: everywhere,
        classes: ALL,
        ports: vec![],
    };
    let wanted = [
        deny.clone(),
        Policy {
            name: "in".to_owned(),
            direction: PolicyDirection::Inbound,
            pool: Some(1),
            remotes: vec![net("198.51.100.0/24")],
            classes: 3,
            ports: vec![range(80, 80), range(8000, 8010)],
            ..deny.clone()
        },
        Policy { name: "rest".to_owned(), classes: 8, ..deny.clone() },
        Policy { name: "block_smtp".to_owned(), classes: 1, ports: vec![range(25, 25)], ..deny.clone() },
        Policy {
            name: "corp".to_owned(),
            action: Action::Bypass,
            remotes: vec![net("10.0.0.0/8"), net("192.0.2.1/32")],
            classes: 2,
            ..deny
        },
    ];
    assert_eq!(gateway("block_smtp = true", more).policies, wanted);
}

#[test]
fn instance_ips_by_address_and_name() {
    let more = "[[instance_ip]]\nbackend = 'db1'\naddress = '203.0.113.50'\n\
                [[instance_ip]]\nbackend = '10.0.0.4'\naddress = '203.0.113.51'\n";
    let own = |backend, last| InstanceIp { backend, address: Ipv4Addr::new(203, 0, 113, last) };
    assert_eq!(gateway("", more).instance_ips, [own(B, 50), own(A, 51)]);
}

#[test]
fn what_tables_can_hold_bounds_policies_and_instance_ips() {
    let policies = |denies: usize, keys: &str| {
        let all: String = (0..denies).map(|n| format!("[[deny]]\nname = 'no-{n}'\n")).collect();
        let bypass = "[[bypass]]\nname = 'corp'\ndestinations = ['10.0.0.0/8']\n";
        said(
            &format!("[gateway]\n{HEAD}{keys}\n{OBJECTS}{RULE}{all}{bypass}")
                .replace("{ name = 'db1', address = '10.0.0.5' }", "'10.0.0.5'"),
        )
    };
    let unused = "pool `rest` is not used";
    assert!(policies(62, "block_smtp = true").contains(unused), "{}", policies(62, "block_smtp = true"));
    assert!(policies(63, "").contains(unused));
    assert!(policies(63, "block_smtp = true").contains("65 policies up to here, `block_smtp` included"));
    assert!(policies(64, "").contains("65 policies up to here\n"));

    let instances = |count: usize| {
        let each = |n: usize| {
            let (high, low) = (n / 256, n % 256);
            format!("[[instance_ip]]\nbackend = '10.1.{high}.{low}'\naddress = '198.18.{high}.{low}'\n")
        };
        let all: String = (0..count).map(each).collect();
        let backends = if count > 4096 { "'10.1.0.0/20', '10.1.16.0'" } else { "'10.1.0.0/20'" };
        said(&format!("[gateway]\n{HEAD}[[pool]]\nname = 'p'\nbackends = [{backends}]\n{all}"))
    };
    assert_eq!(instances(4096), "accepted\n");
    let beyond = instances(4097);
    assert!(beyond.contains("4,097 instance IPs") && beyond.contains("1 error in"), "{beyond}");
}

#[test]
fn prefixes_of_policies_have_a_bound() {
    let with = |count: usize, keys: &str, more: &str| {
        let list: Vec<String> = (0..count).map(|n| format!("'198.18.{}.{}'", n / 256, n % 256)).collect();
        said(&format!(
            "[gateway]\n{HEAD}{keys}\n[[deny]]\nname = 'long'\ndestinations = [{}]\n{more}",
            list.join(", ")
        ))
    };
    let again = "[[bypass]]\nname = 'again'\ndestinations = ['198.18.0.1']\n";
    let fits = with(8192, "", again);
    assert!(!fits.contains("different prefixes"), "{fits}");
    let beyond = with(8193, "", again);
    assert!(beyond.contains("more than 8,192 different prefixes in policies"), "{beyond}");
    assert!(beyond.contains("^^^^") && beyond.contains("1 error in"), "{beyond}");
    // The preset is about everywhere, which is a prefix, too.
    assert!(with(8192, "block_smtp = true", "").contains("more than 8,192 different prefixes"));
    assert!(!with(8191, "block_smtp = true", "").contains("different prefixes"));
}

#[test]
fn the_default_counts_among_the_rules() {
    let objects: String = (0..254)
        .map(|n| {
            format!(
                "[[pool]]\nname = 'p{n}'\nbackends = ['10.2.0.{n}']\n[[outbound_rule]]\nname = 'r{n}'\npool = 'p{n}'\n\
                 frontends = ['fe']\nports_per_backend = 8\n"
            )
        })
        .collect();
    let config = |spare: &str| {
        said(&format!(
            "[gateway]\n{HEAD}[[frontend]]\nname = 'fe'\naddresses = ['203.0.113.1']\n\
             [[frontend]]\nname = 'last'\naddresses = ['203.0.113.2']\n{objects}{spare}[default_outbound]\nfrontends = ['last']\n"
        ))
    };
    assert!(config("").contains("no backend is left for `[default_outbound]`"));
    let spare = "[[pool]]\nname = 'spare'\nbackends = ['10.3.0.1']\n";
    assert!(
        config(spare).contains("257 outbound rules with those of `[default_outbound]`"),
        "{}",
        config(spare)
    );
}
