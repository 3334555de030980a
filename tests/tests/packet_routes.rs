// SPDX-License-Identifier: MIT OR Apache-2.0
//! Routes and neighbours that change under living flows.

use nat_common::abi::counters::Reason;
use nat_tests::{
    harness::{
        Lab, World,
        world::{FRONTEND, NEAR, SERVER, WEB, mac_of},
    },
    packet::{ACK, Packet, RST, SYN, UNREACHABLE},
};

const CLIENT: ([u8; 4], u16) = (WEB, 40_000);
const DNS: ([u8; 4], u16) = (SERVER, 53);

/// A lab with one living UDP flow: outbound packet, its answer.
fn lab(world: World) -> (Lab, Packet, Packet) {
    let lab = Lab::new(world).expect("lab");
    let out = Packet::udp(CLIENT, DNS);
    let port = lab.open(&out).expect("runs").expect("sent");
    let back = Packet::udp(DNS, (FRONTEND, port));
    assert_eq!(lab.send(1, &back).expect("one verdict").reason, Reason::TranslatedIn);
    (lab, out, back)
}

/// What the daemon does when it hears of a change: and a tick passes.
fn told(lab: &mut Lab) {
    lab.control(|control| control.epoch += 1).expect("control");
    lab.wait(1).expect("clock");
}

/// MAC address that the packet was sent to.
fn next_hop(lab: &Lab, slot: usize, packet: &Packet) -> [u8; 6] {
    let seen = lab.send(slot, packet).expect("one verdict");
    seen.sent.unwrap_or_else(|| panic!("not sent: {:?}", seen.reason)).destination_mac
}

fn reason(lab: &Lab, slot: usize, packet: &Packet) -> Reason {
    lab.send(slot, packet).expect("one verdict").reason
}

#[test]
fn a_neighbour_that_moves_is_followed_by_living_flows() {
    let (mut lab, out, back) = lab(World::default());
    lab.namespace
        .ip(&[
            "neigh replace 198.51.100.254 lladdr 02:00:00:00:00:77 dev wan0 nud permanent",
            "neigh replace 10.0.0.4 lladdr 02:00:00:00:00:88 dev lan0 nud permanent",
        ])
        .expect("neighbours");
    told(&mut lab);
    assert_eq!(next_hop(&lab, 0, &out), [2, 0, 0, 0, 0, 0x77]);
    assert_eq!(next_hop(&lab, 1, &back), [2, 0, 0, 0, 0, 0x88]);
}

#[test]
fn without_a_daemon_changes_are_noticed_within_a_tick() {
    let (mut lab, out, _) = lab(World::default());
    // The last heartbeat was long ago.
    let now = lab.now;
    lab.set_time(now + 20).expect("clock");
    lab.control(|control| control.heartbeat = now).expect("control");
    assert_eq!(next_hop(&lab, 0, &out), mac_of([198, 51, 100, 254]));
    lab.namespace
        .ip(&["neigh replace 198.51.100.254 lladdr 02:00:00:00:00:77 dev wan0 nud permanent"])
        .expect("neighbours");
    lab.control(|control| control.test_tick += 1).expect("control");
    assert_eq!(next_hop(&lab, 0, &out), [2, 0, 0, 0, 0, 0x77]);
}

#[test]
fn a_route_that_moves_is_followed() {
    let (mut lab, out, _) = lab(World::default());
    lab.namespace.ip(&["route add 192.0.2.80/32 via 198.51.100.7"]).expect("route");
    told(&mut lab);
    assert_eq!(next_hop(&lab, 0, &out), mac_of(NEAR));
    lab.namespace.ip(&["route change 192.0.2.80/32 via 198.51.100.254 mtu lock 600"]).expect("route");
    told(&mut lab);
    assert_eq!(reason(&lab, 0, &out.clone().fill(700).df()), Reason::TooBig);
    assert_eq!(next_hop(&lab, 0, &out), mac_of([198, 51, 100, 254]));
}

/// The route of a living flow now leads back inside, or nowhere: nothing is translated, nothing is sent.
#[test]
fn a_route_that_leads_elsewhere_ends_nothing_and_leaks_nothing() {
    for route in ["route add 192.0.2.80/32 via 10.0.0.5", "route add blackhole 192.0.2.80/32"] {
        let (mut lab, out, _) = lab(World::default());
        lab.namespace.ip(&[route]).expect("route");
        told(&mut lab);
        let seen = lab.send(0, &out).expect("one verdict");
        assert!(seen.sent.is_none(), "{route}: sent with {:?}", seen.reason);
        assert_eq!(seen.reason, Reason::RouteLost, "{route}");
        lab.namespace.ip(&["route del 192.0.2.80/32"]).expect("route");
        told(&mut lab);
        assert_eq!(next_hop(&lab, 0, &out), mac_of([198, 51, 100, 254]), "{route}, and back again");
        lab.audit().expect("audit");
    }
}

/// An interface that is neither inside nor outside has no guard: nothing of a backend may be left to the stack that
/// would leave by it. It may be an outside interface that was made anew.
#[test]
fn a_backend_does_not_leave_by_an_interface_that_nothing_guards() {
    let (mut lab, out, _) = lab(World::default());
    lab.namespace
        .ip(&[
            "link add dmz0 type veth peer name dmz1",
            "link set dmz0 up",
            "link set dmz1 up",
            "addr add 10.99.0.1/24 dev dmz0",
            "neigh replace 10.99.0.2 lladdr 02:00:00:00:00:99 dev dmz0 nud permanent",
        ])
        .expect("a third interface");
    assert_eq!(reason(&lab, 0, &Packet::udp(CLIENT, ([10, 99, 0, 2], 53))), Reason::ForeignInterface);
    assert_eq!(reason(&lab, 0, &Packet::udp(CLIENT, ([10, 99, 0, 3], 53))), Reason::ForeignInterface);
    // Not a backend: the host's routing is its own business.
    assert_eq!(reason(&lab, 0, &Packet::udp(([10, 0, 9, 9], 1), ([10, 99, 0, 2], 53))), Reason::NotOutbound);
    lab.namespace.ip(&["route add 192.0.2.80/32 via 10.99.0.2"]).expect("route");
    told(&mut lab);
    assert_eq!(reason(&lab, 0, &out), Reason::RouteLost);
    lab.audit().expect("audit");
}

#[test]
fn a_neighbour_that_is_lost_costs_neither_flow_nor_secrecy() {
    for guarded in [true, false] {
        let (mut lab, out, back) = lab(World { guarded, ..World::default() });
        lab.namespace
            .ip(&["neigh del 198.51.100.254 dev wan0", "neigh del 10.0.0.4 dev lan0"])
            .expect("gone");
        told(&mut lab);
        let seen = lab.run(0, &frame(&lab, 0, &out)).expect("runs");
        // With the guard the stack may have it: it finds the neighbour, and the guard translates. Without, nobody may.
        let passed = seen.action == nat_tests::harness::Action::Pass;
        assert_eq!(passed, guarded, "{:?} with guard: {guarded}", seen.action);
        let error = Packet::error(WEB, UNREACHABLE, 3, &Packet::udp(DNS, CLIENT));
        let seen = lab.run(0, &frame(&lab, 0, &error)).expect("runs");
        let passed = seen.action == nat_tests::harness::Action::Pass;
        assert!(guarded || !passed, "an error about it: {:?}", seen.action);
        assert_eq!(reason(&lab, 1, &back), Reason::TranslatedToStack);
        // And when it is found again, all is as before.
        lab.namespace
            .ip(&[
                "neigh add 198.51.100.254 lladdr 02:00:00:00:00:77 dev wan0 nud permanent",
                "neigh add 10.0.0.4 lladdr 02:00:00:00:00:88 dev lan0 nud permanent",
            ])
            .expect("back");
        told(&mut lab);
        assert_eq!(next_hop(&lab, 0, &out), [2, 0, 0, 0, 0, 0x77]);
        assert_eq!(next_hop(&lab, 1, &back), [2, 0, 0, 0, 0, 0x88]);
        assert_eq!(lab.audit().expect("audit"), 1);
    }
}

/// A connection that is opened again long after uses no address of that time.
#[test]
fn a_reopened_connection_asks_for_the_way_again() {
    let lab = Lab::new(World::default()).expect("lab");
    let syn = Packet::tcp(CLIENT, (SERVER, 80), SYN);
    lab.open(&syn).expect("runs").expect("sent");
    assert_eq!(reason(&lab, 0, &syn.clone().flags(RST | ACK)), Reason::TranslatedOut);
    lab.namespace
        .ip(&["neigh replace 198.51.100.254 lladdr 02:00:00:00:00:77 dev wan0 nud permanent"])
        .expect("neighbours");
    assert_eq!(next_hop(&lab, 0, &syn), [2, 0, 0, 0, 0, 0x77]);
}

fn frame(lab: &Lab, slot: usize, packet: &Packet) -> Vec<u8> {
    packet.clone().link(nat_tests::case::arriving(&lab.world, slot, packet)).frame()
}
