// SPDX-License-Identifier: MIT OR Apache-2.0
//! Questions to the kernel's routing tables, and the few changes natgw makes there. Events come over another
//! connection ([`super::watch`]): answers must not queue behind them.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressScope},
        link::{InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::datapath::layout::{Device, Vlan};

/// A connection for requests. Its socket belongs to the network namespace it was opened in.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

/// A unicast IPv4 route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: ipnet::Ipv4Net,
    /// Next hops: interface and gateway; `None`: the destination itself is on the link.
    pub hops: Vec<(u32, Option<Ipv4Addr>)>,
}

/// What the kernel knows about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Its MAC address is known and may be used.
    Resolved([u8; 6]),
    /// It is being asked for.
    Unresolved,
    /// Its MAC address was set by hand (`NUD_PERMANENT`), or the link needs none (`NUD_NOARP`). Not to be resolved: `NTF_USE`
    /// would make an entry of the first kind one that expires (net/core/neighbour.c, `__neigh_update`).
    Fixed([u8; 6]),
    /// It did not answer.
    Failed,
}

impl Netlink {
    /// Opens a connection, driven by a task of the current runtime.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All devices with their global IPv4 addresses.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn devices(&self) -> Result<Vec<Device>> {
        let links = self.handle.link().get().execute();
        let mut devices: Vec<Device> =
            all(links).await.context("listing interfaces")?.iter().map(device).collect();
        let addresses = self.handle.address().get().execute();
        for message in all(addresses).await.context("listing addresses")? {
            let Some(address) = global_address(&message) else { continue };
            if let Some(device) = devices.iter_mut().find(|device| device.index == message.header.index) {
                device.addresses.push(address);
            }
        }
        Ok(devices)
    }

    /// Unicast IPv4 routes of all tables.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let all_of_ipv4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle.route().get(all_of_ipv4).execute();
        Ok(all(routes).await.context("listing routes")?.iter().filter_map(route).collect())
    }

    /// The IPv4 neighbour table.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn neighbours(&self) -> Result<Vec<((u32, Ipv4Addr), Neighbour)>> {
        let neighbours = self.handle.neighbours().get().execute();
        Ok(all(neighbours).await.context("listing neighbours")?.iter().filter_map(neighbour).collect())
    }

    /// Has the kernel resolve a neighbour, or confirm it when its entry is old (`NTF_USE`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as for an interface that is down.
    pub async fn resolve(&self, index: u32, address: Ipv4Addr) -> Result<()> {
        let mut request =
            self.handle.neighbours().add(index, IpAddr::V4(address)).flags(NeighbourFlags::Use).replace();
        request.message_mut().header.state = NeighbourState::None;
        request.execute().await.with_context(|| format!("having neighbour {address} resolved"))
    }

    /// Adds `address` with prefix length 32 to an interface; false: it was there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn add_address(&self, index: u32, address: Ipv4Addr) -> Result<bool> {
        match self.handle.address().add(index, IpAddr::V4(address), 32).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("adding address {address}/32 to interface {index}"))
            }
        }
    }

    /// Removes `address` with prefix length 32 from an interface; false: it was not there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_address(&self, index: u32, address: Ipv4Addr) -> Result<bool> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
        match self.handle.address().del(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("removing address {address}/32 from interface {index}"))
            }
        }
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => Some(-code.get()),
        _ => None,
    }
}

async fn all<T>(stream: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>> {
    let mut stream = std::pin::pin!(stream);
    let mut found = Vec::new();
    while let Some(item) = stream.next().await {
        found.push(item?);
    }
    Ok(found)
}

fn device(message: &LinkMessage) -> Device {
    let mut device = Device { index: message.header.index, ..Device::default() };
    let mut below = None;
    let mut vlan = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::Address(bytes) => {
                let ethernet = u16::from(message.header.link_layer_type) == libc::ARPHRD_ETHER;
                device.mac = bytes.as_slice().try_into().ok().filter(|_| ethernet);
            }
            LinkAttribute::LinkInfo(infos) => vlan = infos.iter().find_map(vlan_of),
            LinkAttribute::Xdp(attributes) => device.xdp = xdp_of(attributes),
            _ => {}
        }
    }
    device.vlan = below.zip(vlan);
    device
}

fn vlan_of(info: &LinkInfo) -> Option<Vlan> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else { return None };
    let id = attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    let protocol = attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Protocol(protocol) => Some(u16::from(*protocol)),
        _ => None,
    });
    Some(Vlan { protocol: protocol.unwrap_or(0x8100), id })
}

fn xdp_of(attributes: &[LinkXdp]) -> Option<(u32, bool)> {
    let program = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(program) => Some(*program),
        _ => None,
    })?;
    let generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    Some((program, !generic))
}

fn global_address(message: &AddressMessage) -> Option<Ipv4Addr> {
    let global =
        message.header.family == AddressFamily::Inet && message.header.scope == AddressScope::Universe;
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    });
    local.filter(|_| global)
}

fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut address, mut interface, mut gateway) = (Ipv4Addr::UNSPECIFIED, None, None);
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(destination)) => address = *destination,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(via)) => gateway = Some(*via),
            RouteAttribute::MultiPath(next) => {
                hops = next.iter().map(|hop| (hop.interface_index, gateway_of(&hop.attributes))).collect();
            }
            _ => {}
        }
    }
    hops.extend(interface.map(|index| (index, gateway)));
    let destination = ipnet::Ipv4Net::new(address, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, hops })
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<Ipv4Addr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}

/// Interface and address of an IPv4 neighbour, and what is known about it.
#[must_use]
pub fn neighbour(message: &NeighbourMessage) -> Option<((u32, Ipv4Addr), Neighbour)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let known = match (message.header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Incomplete | NeighbourState::None, _) | (_, None) => Neighbour::Unresolved,
        (NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => Neighbour::Fixed(mac),
        (_, Some(mac)) => Neighbour::Resolved(mac),
    };
    Some(((message.header.ifindex, address), known))
}
