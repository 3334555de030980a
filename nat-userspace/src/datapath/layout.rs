// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which interface has which slot, which device carries it, and under which tags. Pure: works on a list of devices
//! as the kernel reported it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use nat_common::abi::config::{
    MAX_PORTS, NO_SLOT, PortConfig, PortTag, ROLE_INSIDE, ROLE_OUTSIDE, VlanTag, name_of, padded,
};

use super::load::Constants;

/// A network device as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC address; `None`: not an Ethernet device.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// For a VLAN device: index of the device it sits on, and its tag.
    pub vlan: Option<(u32, Vlan)>,
    /// Global IPv4 addresses, in the kernel's order.
    pub addresses: Vec<Ipv4Addr>,
    /// Number of the XDP program that is attached, and whether in native mode.
    pub xdp: Option<(u32, bool)>,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// 0x8100 or 0x88a8.
    pub protocol: u16,
    /// VLAN number.
    pub id: u16,
}

/// Why interfaces cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not there.
    #[error("interface `{name}` does not exist; there are: {existing}")]
    Missing {
        /// As configured.
        name: String,
        /// Those that do exist.
        existing: String,
    },
    /// Not Ethernet.
    #[error(
        "interface `{0}` has no Ethernet address: natgw works on Ethernet devices and VLANs on them only"
    )]
    NotEthernet(String),
    /// More than two tags.
    #[error("interface `{0}` is a VLAN in more than two levels: natgw handles at most two tags")]
    TooDeep(String),
    /// Two interfaces that frames cannot tell apart.
    #[error("interfaces `{0}` and `{1}` receive the same frames: same device, same VLAN")]
    Same(String, String),
    /// No slot left.
    #[error("no slot left for interface `{0}`: an instance has {MAX_PORTS}")]
    Full(String),
}

/// A device that needs an XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Name.
    pub name: String,
    /// What its program is loaded with; `lower` is its index.
    pub constants: Constants,
}

/// The interfaces of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By slot: interfaces that are there now.
    pub ports: BTreeMap<u32, PortConfig>,
    /// By name: the slots of all interfaces, also of those that are gone.
    pub slots: BTreeMap<String, u32>,
    /// Devices that need an XDP program, by name.
    pub lowers: Vec<Lower>,
    /// Configured, but not there now.
    pub absent: Vec<String>,
}

impl Layout {
    /// Keys of `PORT_BY_TAG` and their slots.
    pub fn tags(&self) -> impl Iterator<Item = (PortTag, u32)> {
        self.ports.iter().map(|(slot, port)| (tag_key(port), *slot))
    }

    /// Indices of the ports with `role`.
    #[must_use]
    pub fn indices(&self, role: u8) -> Vec<u32> {
        self.ports.values().filter(|port| port.role & role != 0).map(|port| port.ifindex).collect()
    }

    /// Names of the interfaces with `role` that are there, in the order of their slots.
    #[must_use]
    pub fn names(&self, role: u8) -> Vec<String> {
        let with_role = self.ports.values().filter(|port| port.role & role != 0);
        with_role.map(|port| name_of(&port.name).to_owned()).collect()
    }

    /// Name of the interface with this index.
    #[must_use]
    pub fn name_of(&self, index: u32) -> Option<&str> {
        self.ports.values().find(|port| port.ifindex == index).map(|port| name_of(&port.name))
    }

    /// The first interface that is not there, as an error.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Missing`].
    pub fn complete(&self, devices: &[Device]) -> Result<(), LayoutError> {
        let Some(name) = self.absent.first() else { return Ok(()) };
        let existing: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        Err(LayoutError::Missing { name: name.clone(), existing: existing.join(", ") })
    }
}

/// Key of a port in `PORT_BY_TAG`.
#[must_use]
pub fn tag_key(port: &PortConfig) -> PortTag {
    let vlan = port.tags.map(|tag| u16::from_be_bytes(tag.control) & 0x0fff);
    PortTag { lower: port.lower, vlan }
}

/// The layout that table `PORTS` holds, by slot, as far as its interfaces are still there.
#[must_use]
pub fn recorded(interfaces: &[PortConfig], devices: &[Device]) -> Layout {
    let there = |index: u32| devices.iter().any(|device| device.index == index);
    let mut layout = Layout::default();
    for (slot, port) in (0..).zip(interfaces) {
        let name = name_of(&port.name);
        if name.is_empty() {
            continue;
        }
        layout.slots.insert(name.to_owned(), slot);
        if port.role != 0 && there(port.ifindex) && there(port.lower) {
            layout.ports.insert(slot, *port);
        }
    }
    layout.lowers = lowers(&layout.ports, devices);
    layout
}

/// Assigns slots and finds the device under each interface. `previous` are slots by name that flows may refer to.
///
/// # Errors
///
/// When an interface is there but cannot be used. One that is not there is listed in [`Layout::absent`].
pub fn resolve(
    inside: &[String],
    outside: &[String],
    devices: &[Device],
    previous: &BTreeMap<String, u32>,
) -> Result<Layout, LayoutError> {
    let mut layout = Layout { slots: previous.clone(), ..Layout::default() };
    let mut owners: BTreeMap<(u32, [u16; 2]), String> = BTreeMap::new();
    let roles = roles(inside, outside);
    let configured: BTreeSet<&str> = roles.iter().map(|(name, _)| name.as_str()).collect();
    for (name, role) in &roles {
        let (name, role) = (name.clone(), *role);
        let slot = slot_for(&mut layout.slots, &name, &configured)?;
        let Some(device) = devices.iter().find(|device| device.name == name) else {
            layout.absent.push(name);
            continue;
        };
        let port = PortConfig { role, ..port_of(device, devices)? };
        let key = tag_key(&port);
        if let Some(other) = owners.insert((key.lower, key.vlan), name.clone()) {
            return Err(LayoutError::Same(other, name));
        }
        layout.ports.insert(slot, port);
    }
    layout.lowers = lowers(&layout.ports, devices);
    Ok(layout)
}

/// Each interface once, in the order of the configuration.
fn roles(inside: &[String], outside: &[String]) -> Vec<(String, u8)> {
    let mut roles: Vec<(String, u8)> = Vec::new();
    let inside = inside.iter().map(|name| (name, ROLE_INSIDE));
    for (name, role) in inside.chain(outside.iter().map(|name| (name, ROLE_OUTSIDE))) {
        match roles.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known |= role,
            None => roles.push((name.clone(), role)),
        }
    }
    roles
}

fn slot_for(
    slots: &mut BTreeMap<String, u32>,
    name: &str,
    configured: &BTreeSet<&str>,
) -> Result<u32, LayoutError> {
    if let Some(slot) = slots.get(name) {
        return Ok(*slot);
    }
    let taken: BTreeSet<u32> = slots.values().copied().collect();
    let free = (0..MAX_PORTS).find(|slot| !taken.contains(slot));
    // Flows look up their next hop again after every reload, so the slot of an interface that has left the
    // configuration is only kept as long as there are others.
    let slot = free.or_else(|| {
        let left = slots.keys().find(|known| !configured.contains(known.as_str()))?.clone();
        slots.remove(&left)
    });
    let slot = slot.ok_or_else(|| LayoutError::Full(name.to_owned()))?;
    slots.insert(name.to_owned(), slot);
    Ok(slot)
}

fn port_of(device: &Device, devices: &[Device]) -> Result<PortConfig, LayoutError> {
    let mac = device.mac.ok_or_else(|| LayoutError::NotEthernet(device.name.clone()))?;
    let mut lower = device;
    // From the inside out: the device's own tag is the innermost.
    let mut tags: Vec<VlanTag> = Vec::new();
    while let Some((index, vlan)) = lower.vlan {
        if tags.len() == 2 {
            return Err(LayoutError::TooDeep(device.name.clone()));
        }
        let tag = VlanTag { protocol: vlan.protocol.to_be_bytes(), control: vlan.id.to_be_bytes() };
        tags.insert(0, tag);
        lower = devices.iter().find(|below| below.index == index).ok_or_else(|| LayoutError::Missing {
            name: format!("device {index} below {}", device.name),
            existing: "devices of other network namespaces are out of reach".to_owned(),
        })?;
    }
    let mut padded_tags = [VlanTag::default(); 2];
    padded_tags[..tags.len()].copy_from_slice(&tags);
    Ok(PortConfig {
        ifindex: device.index,
        lower: lower.index,
        tags: padded_tags,
        tag_count: tags.len() as u8,
        role: 0,
        mtu: u16::try_from(device.mtu).unwrap_or(u16::MAX),
        mac,
        reserved: [0; 2],
        address: device.addresses.first().map_or([0; 4], Ipv4Addr::octets),
        name: padded(&device.name),
    })
}

fn lowers(ports: &BTreeMap<u32, PortConfig>, devices: &[Device]) -> Vec<Lower> {
    let indices: BTreeSet<u32> = ports.values().map(|port| port.lower).collect();
    let mut lowers: Vec<Lower> = indices
        .into_iter()
        .filter_map(|index| {
            let name = devices.iter().find(|device| device.index == index)?.name.clone();
            let on = || ports.iter().filter(move |(_, port)| port.lower == index);
            let untagged = on().find(|(_, port)| port.tag_count == 0);
            let constants = Constants {
                slot: untagged.map_or(NO_SLOT, |(slot, _)| *slot),
                role: untagged.map_or(0, |(_, port)| u32::from(port.role)),
                lower: index,
                trunk: u32::from(on().any(|(_, port)| port.tag_count > 0)),
            };
            Some(Lower { name, constants })
        })
        .collect();
    lowers.sort_by(|a, b| a.name.cmp(&b.name));
    lowers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str) -> Device {
        Device {
            index,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            addresses: vec![Ipv4Addr::new(10, 0, 0, index as u8)],
            ..Device::default()
        }
    }

    fn vlan(index: u32, name: &str, on: u32, protocol: u16, id: u16) -> Device {
        Device { vlan: Some((on, Vlan { protocol, id })), ..device(index, name) }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn resolved(inside: &[&str], outside: &[&str], devices: &[Device]) -> Result<Layout, LayoutError> {
        resolve(&names(inside), &names(outside), devices, &BTreeMap::new())
    }

    #[test]
    fn two_arms_are_two_devices() {
        let layout = resolved(&["lan0"], &["wan0"], &[device(2, "lan0"), device(3, "wan0")]).expect("fits");
        assert_eq!(layout.ports[&0].role, ROLE_INSIDE);
        assert_eq!(layout.ports[&1].address, [10, 0, 0, 3]);
        let wan = Constants { slot: 1, role: u32::from(ROLE_OUTSIDE), lower: 3, trunk: 0 };
        assert_eq!(layout.lowers[1], Lower { name: "wan0".to_owned(), constants: wan });
        assert!(layout.complete(&[]).is_ok());
    }

    #[test]
    fn one_arm_has_both_roles() {
        let layout = resolved(&["eth0"], &["eth0"], &[device(2, "eth0")]).expect("fits");
        assert_eq!(layout.ports[&0].role, ROLE_INSIDE | ROLE_OUTSIDE);
        assert_eq!(layout.lowers.len(), 1);
    }

    #[test]
    fn vlans_share_the_device_below() {
        let devices = [
            device(2, "eth0"),
            vlan(3, "eth0.100", 2, 0x88a8, 100),
            vlan(4, "inner", 3, 0x8100, 7),
            vlan(5, "eth0.8", 2, 0x8100, 8),
        ];
        let layout = resolved(&["inner"], &["eth0.8"], &devices).expect("fits");
        let inner = layout.ports[&0];
        assert_eq!((inner.lower, inner.tag_count), (2, 2));
        assert_eq!(inner.tags[0], VlanTag { protocol: [0x88, 0xa8], control: [0, 100] });
        assert_eq!(tag_key(&inner), PortTag { lower: 2, vlan: [100, 7] });
        assert_eq!(layout.lowers.len(), 1);
        assert_eq!(layout.lowers[0].constants, Constants { slot: NO_SLOT, role: 0, lower: 2, trunk: 1 });
    }

    #[test]
    fn what_was_written_is_recognized() {
        let devices = [device(2, "lan0"), device(3, "wan0")];
        let layout = resolved(&["lan0"], &["wan0"], &devices).expect("fits");
        let free = PortConfig { role: 0, name: [0; 16], ..layout.ports[&0] };
        let ports = [layout.ports[&0], layout.ports[&1], free];
        assert_eq!(recorded(&ports, &devices), layout);
        let left = recorded(&ports, &devices[..1]);
        assert_eq!((left.ports.len(), left.lowers.len(), left.slots.len()), (1, 1, 2));
    }

    #[test]
    fn slots_stay_with_names() {
        let devices = [device(2, "a"), device(3, "b"), device(4, "c")];
        let previous = BTreeMap::from([("b".to_owned(), 0), ("gone".to_owned(), 1)]);
        let layout = resolve(&names(&["a"]), &names(&["b", "c"]), &devices, &previous).expect("fits");
        assert_eq!((layout.slots["b"], layout.slots["a"], layout.slots["c"]), (0, 2, 3));
    }

    #[test]
    fn a_slot_is_taken_over_only_when_none_is_free() {
        let previous = (0..MAX_PORTS).map(|slot| (format!("old{slot}"), slot)).collect();
        let devices = [device(2, "old0"), device(3, "new")];
        let layout = resolve(&names(&["new"]), &names(&["old0"]), &devices, &previous).expect("fits");
        assert_eq!(layout.slots["old0"], 0);
        assert_ne!(layout.slots["new"], 0);
        assert_eq!(layout.slots.len(), MAX_PORTS as usize);
    }

    #[test]
    fn what_cannot_work_is_said() {
        let devices = [
            device(2, "eth0"),
            Device { mac: None, ..device(3, "tun0") },
            vlan(4, "a", 2, 0x8100, 5),
            vlan(5, "b", 2, 0x88a8, 5),
            vlan(6, "c", 4, 0x8100, 6),
            vlan(7, "d", 6, 0x8100, 7),
        ];
        let layout = resolved(&["eth1"], &["eth0"], &devices[..1]).expect("absence is not an error yet");
        let missing = layout.complete(&devices[..1]).expect_err("eth1 is missing").to_string();
        assert_eq!(missing, "interface `eth1` does not exist; there are: eth0");
        assert_eq!(
            resolved(&["tun0"], &["eth0"], &devices),
            Err(LayoutError::NotEthernet("tun0".to_owned()))
        );
        assert_eq!(
            resolved(&["a"], &["b"], &devices),
            Err(LayoutError::Same("a".to_owned(), "b".to_owned()))
        );
        assert_eq!(resolved(&["d"], &["eth0"], &devices), Err(LayoutError::TooDeep("d".to_owned())));
    }
}
