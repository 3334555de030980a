// SPDX-License-Identifier: MIT OR Apache-2.0
//! A gateway's surroundings and configuration, as data.

use nat_common::{
    Tick,
    abi::{
        config::{ROLE_INSIDE, ROLE_OUTSIDE},
        grant::{Limits, MAX_PORT_TIMERS, PortTimer, RULE_MAPPED},
    },
    net::timers::{self, TIMER_CLASSES},
};

/// Backend 0.
pub const WEB: [u8; 4] = [10, 0, 0, 4];
/// Backend 1.
pub const DB: [u8; 4] = [10, 0, 0, 5];
/// A host inside that no rule covers.
pub const STRANGER: [u8; 4] = [10, 0, 0, 200];
/// The frontend address.
pub const FRONTEND: [u8; 4] = [203, 0, 113, 10];
/// The gateway's address inside.
pub const GATEWAY_INSIDE: [u8; 4] = [10, 0, 0, 1];
/// The gateway's address outside.
pub const GATEWAY_OUTSIDE: [u8; 4] = [198, 51, 100, 1];
/// Next hop of the default route.
pub const ROUTER: [u8; 4] = [198, 51, 100, 254];
/// A server behind the router.
pub const SERVER: [u8; 4] = [192, 0, 2, 80];
/// Another server behind the router.
pub const SERVER2: [u8; 4] = [192, 0, 2, 81];
/// A server on the outside link itself.
pub const NEAR: [u8; 4] = [198, 51, 100, 7];
/// On the outside link, without a neighbour entry.
pub const SILENT: [u8; 4] = [198, 51, 100, 99];
/// Behind the router, by a route with an MTU of 1,000 bytes. Locked: else forwarding ignores it.
pub const NARROW: [u8; 4] = [192, 0, 2, 200];
/// Routed to `unreachable`.
pub const UNREACHED: [u8; 4] = [192, 0, 2, 66];
/// Instance IP of backend 0, in worlds that give it one.
pub const PUBLIC: [u8; 4] = [203, 0, 113, 50];
/// First port of the first backend's block.
pub const FIRST_PORT: u16 = 1024;

/// MAC address of the neighbour with this address.
#[must_use]
pub fn mac_of(address: [u8; 4]) -> [u8; 6] {
    [2, 0, address[0], address[1], address[2], address[3]]
}

/// A logical interface of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Device at the bottom.
    pub lower: &'static str,
    /// Tags on its frames, outermost first: protocol and VLAN number.
    pub tags: Vec<(u16, u16)>,
    /// `ROLE_*`.
    pub role: u8,
    /// Address and prefix length.
    pub address: ([u8; 4], u8),
    /// MTU in bytes.
    pub mtu: u16,
}

impl Port {
    /// Interface name: the device, then a number for each tag.
    #[must_use]
    pub fn name(&self) -> String {
        self.tags.iter().fold(self.lower.to_owned(), |name, (_, vlan)| format!("{name}.{vlan}"))
    }

    /// MAC address, which VLAN interfaces share with their device.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let bytes = self.lower.as_bytes();
        [2, 0xff, bytes[0], bytes[1], bytes[2], bytes[3]]
    }
}

/// One backend: its address, and for each class (tcp, udp, icmp) its ports in runs of (address, first, count).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Private address.
    pub address: [u8; 4],
    /// Ports by class; empty: no rule for that class.
    pub ports: [Vec<([u8; 4], u16, u16)>; 3],
}

impl Backend {
    /// The same run of ports for every class.
    #[must_use]
    pub fn paired(address: [u8; 4], first: u16, count: u16) -> Self {
        let run = vec![(FRONTEND, first, count)];
        Self { address, ports: [run.clone(), run.clone(), run] }
    }
}

/// Ports that several backends draw on, the same for every class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Runs of (address, first, count).
    pub runs: Vec<([u8; 4], u16, u16)>,
    /// Whether one run is used only when those before it are full.
    pub ordered: bool,
    /// Private addresses of its backends.
    pub backends: Vec<[u8; 4]>,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Refuses what backends open.
    DenyOutbound,
    /// Refuses what comes for instance IPs.
    DenyInbound,
    /// Leaves it untranslated.
    Bypass,
}

/// A policy; its index is its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What it does.
    pub act: Act,
    /// Backends that it is about; empty: everyone.
    pub backends: Vec<[u8; 4]>,
    /// The far ends: addresses and prefix lengths.
    pub remotes: Vec<([u8; 4], u8)>,
    /// Protocol classes: bit `n` is class `n`.
    pub classes: u32,
    /// Destination ports; empty: all.
    pub ports: Vec<u16>,
}

impl Policy {
    /// A policy about everyone, every protocol and every port.
    #[must_use]
    pub fn new(act: Act, remotes: &[([u8; 4], u8)]) -> Self {
        Self { act, backends: vec![], remotes: remotes.to_vec(), classes: 0b1111, ports: vec![] }
    }

    /// Makes it one about these classes (bit `n` is class `n`) and destination ports.
    #[must_use]
    pub fn only(mut self, classes: u32, ports: &[u16]) -> Self {
        (self.classes, self.ports) = (classes, ports.to_vec());
        self
    }

    /// Makes it one about this backend.
    #[must_use]
    pub fn of(mut self, backend: [u8; 4]) -> Self {
        self.backends.push(backend);
        self
    }
}

/// A gateway's surroundings and configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Logical interfaces; the index is the port slot.
    pub ports: Vec<Port>,
    /// Backends; the index is the backend slot.
    pub backends: Vec<Backend>,
    /// Ports that backends share, beside those of their own.
    pub pools: Vec<Pool>,
    /// Limits of the only rule.
    pub limits: Option<Limits>,
    /// `RULE_*` of the only rule, besides what follows from the rest; `FLOW_*` in the top byte.
    pub rule_flags: u32,
    /// `REFUSAL_*` of the rule, and where there is none.
    pub on_refusal: u32,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Instance IPs: backend and public address.
    pub instances: Vec<([u8; 4], [u8; 4])>,
    /// Whether the outbound rule wins over an instance IP.
    pub rule_first: bool,
    /// Where CPUs wait for each other (`nat_common::abi::names::delay`); 0: nowhere.
    pub delay: u32,
    /// Frontend addresses, and whether the host owns them.
    pub frontends: Vec<([u8; 4], bool)>,
    /// Flows the table has room for.
    pub max_flows: u32,
    /// Flows that each backend may always have.
    pub guaranteed: u32,
    /// Flows above the guarantees, all together.
    pub burst: u32,
    /// Whether the guard counts as attached.
    pub guarded: bool,
    /// Other protocols that the only rule names (`nat_common::abi::grant::protocol`), on the ports of UDP.
    pub protocols: u32,
    /// Whether SYN segments are clamped, and to what; 0: to what fits both links.
    pub segment_size: Option<u32>,
    /// Idle timeouts of the only rule, in ticks.
    pub timeouts: [Tick; TIMER_CLASSES],
    /// Ticks that a port rests after a flow of the only rule, by the class in which it ended.
    pub rests: [Tick; TIMER_CLASSES],
    /// Idle timeouts of UDP flows by destination port.
    pub udp_ports: [PortTimer; MAX_PORT_TIMERS],
    /// Further `ip` commands, after everything else.
    pub extra: Vec<&'static str>,
    /// Whether the kernel forwards.
    pub forwarding: bool,
}

impl Default for World {
    /// Two backends with 8 ports each behind `lan0`, everything else behind `wan0`.
    fn default() -> Self {
        Self {
            ports: vec![
                Port {
                    lower: "lan0",
                    tags: vec![],
                    role: ROLE_INSIDE,
                    address: (GATEWAY_INSIDE, 16),
                    mtu: 1500,
                },
                Port {
                    lower: "wan0",
                    tags: vec![],
                    role: ROLE_OUTSIDE,
                    address: (GATEWAY_OUTSIDE, 24),
                    mtu: 1500,
                },
            ],
            backends: vec![Backend::paired(WEB, FIRST_PORT, 8), Backend::paired(DB, FIRST_PORT + 8, 8)],
            pools: vec![],
            limits: None,
            rule_flags: 0,
            on_refusal: 0,
            policies: vec![],
            instances: vec![],
            rule_first: false,
            delay: 0,
            frontends: vec![(FRONTEND, true)],
            max_flows: 256,
            guaranteed: 128,
            burst: 0,
            guarded: true,
            protocols: 0,
            segment_size: None,
            timeouts: timers::azure_lb(240),
            rests: [0; TIMER_CLASSES],
            udp_ports: [PortTimer::default(); MAX_PORT_TIMERS],
            extra: vec![],
            forwarding: true,
        }
    }
}

impl World {
    /// Gives the backends blocks of `count` ports, one after the other.
    #[must_use]
    pub fn blocks(mut self, count: u16) -> Self {
        for (slot, backend) in (0u16..).zip(self.backends.iter_mut()) {
            *backend = Backend::paired(backend.address, FIRST_PORT + slot * count, count);
        }
        self
    }

    /// Sets the size of the flow table and the share of it that each backend may always have.
    #[must_use]
    pub fn table(mut self, max_flows: u32, guaranteed: u32, burst: u32) -> Self {
        (self.max_flows, self.guaranteed, self.burst) = (max_flows, guaranteed, burst);
        self
    }

    /// Puts VLAN tags on an interface.
    #[must_use]
    pub fn tagged(mut self, slot: usize, tags: &[(u16, u16)]) -> Self {
        self.ports[slot].tags = tags.to_vec();
        self
    }

    /// Sets the MTU of an interface.
    #[must_use]
    pub fn mtu(mut self, slot: usize, mtu: u16) -> Self {
        self.ports[slot].mtu = mtu;
        self
    }

    /// Adds `ip` commands.
    #[must_use]
    pub fn extra(mut self, commands: &[&'static str]) -> Self {
        self.extra.extend(commands);
        self
    }

    /// Sets the policies.
    #[must_use]
    pub fn policies(mut self, policies: &[Policy]) -> Self {
        self.policies = policies.to_vec();
        self
    }

    /// Endpoint-independent mapping, with these `RULE_*` beside it.
    #[must_use]
    pub fn mapped(mut self, flags: u32) -> Self {
        self.rule_flags |= RULE_MAPPED | flags;
        self
    }

    /// Gives backend 0 the instance IP [`PUBLIC`].
    #[must_use]
    pub fn instance(mut self) -> Self {
        self.instances = vec![(WEB, PUBLIC)];
        self
    }

    /// Both networks behind one interface.
    #[must_use]
    pub fn one_armed() -> Self {
        let mut world = Self::default();
        world.ports.truncate(1);
        world.ports[0].role = ROLE_INSIDE | ROLE_OUTSIDE;
        world.extra.push("addr add 198.51.100.1/24 dev lan0");
        world
    }

    /// The `ip` commands that build the surroundings.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut seen: Vec<String> = Vec::new();
        for port in &self.ports {
            if !seen.contains(&port.lower.to_owned()) {
                seen.push(port.lower.to_owned());
                let (lower, mac) = (port.lower, colons(port.mac()));
                lines.push(format!("link add {lower} address {mac} type veth peer name {lower}p"));
                lines.push(format!("link set {lower} mtu {}", port.mtu));
                lines.push(format!("link set {lower}p mtu {} up", port.mtu));
                lines.push(format!("link set {lower} up"));
            }
            // The programs know a VLAN interface by its number and its device's alone, so that a device of any kind
            // can stand in for one: these tests need no VLAN support in the kernel.
            let name = port.name();
            if !port.tags.is_empty() {
                let mac = colons(port.mac());
                lines.push(format!("link add {name} address {mac} type veth peer name {name}p"));
                lines.push(format!("link set {name} mtu {} up", port.mtu));
                lines.push(format!("link set {name}p up"));
            }
            lines.push(format!("addr add {}/{} dev {name}", dots(port.address.0), port.address.1));
        }
        let outside = self.ports.iter().find(|port| port.role & ROLE_OUTSIDE != 0).map(Port::name);
        let inside = self.ports.iter().find(|port| port.role & ROLE_INSIDE != 0).map(Port::name);
        let neighbour = |device: &str, address: [u8; 4]| {
            format!(
                "neigh add {} lladdr {} dev {device} nud permanent",
                dots(address),
                colons(mac_of(address))
            )
        };
        if let Some(device) = &inside {
            lines.extend(self.backends.iter().map(|backend| neighbour(device, backend.address)));
            lines.push(neighbour(device, STRANGER));
        }
        for (address, _) in self.frontends.iter().filter(|(_, local)| *local) {
            lines.push(format!("addr add {}/32 dev lo", dots(*address)));
        }
        // Only now: a one-armed interface gets its outside address from `extra`.
        lines.extend(self.extra.iter().map(|line| (*line).to_owned()));
        if let Some(device) = &outside {
            lines.extend([neighbour(device, ROUTER), neighbour(device, NEAR)]);
            let router = dots(ROUTER);
            lines.push(format!("route add default via {router} dev {device}"));
            lines.push(format!("route add {}/32 via {router} dev {device} mtu lock 1000", dots(NARROW)));
        }
        lines.push(format!("route add unreachable {}/32", dots(UNREACHED)));
        lines
    }
}

/// An address as text.
#[must_use]
pub fn dots(address: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
