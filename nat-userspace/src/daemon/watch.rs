// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches links, addresses, neighbours, routes and rules, over a connection of its own.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};
use tokio::{sync::mpsc::Sender, time};
use tracing::warn;

use super::{
    Event,
    netlink::{self, Neighbour},
};

/// How long changes are collected before they are acted on: routing daemons change thousands of routes at once. A
/// fraction of the second within which a change has to take effect.
const COLLECT: Duration = Duration::from_millis(20);

/// Pause before a connection that broke is opened again.
const REOPEN: Duration = Duration::from_millis(200);

/// What has changed, taken together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Links or addresses, or there may be changes that were not seen.
    pub(super) links: bool,
    /// Routes or rules.
    pub(super) routes: bool,
    /// Neighbours, with what is known of them now; `None`: the entry is gone.
    pub(super) neighbours: HashMap<(u32, Ipv4Addr), Option<Neighbour>>,
}

impl Changes {
    /// When events may have been missed.
    fn everything() -> Self {
        Self { links: true, routes: true, neighbours: HashMap::new() }
    }

    fn add(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) {
        use RouteNetlinkMessage as Message;
        match payload {
            NetlinkPayload::InnerMessage(message) => match message {
                Message::NewLink(_)
                | Message::DelLink(_)
                | Message::NewAddress(_)
                | Message::DelAddress(_) => {
                    self.links = true;
                }
                Message::NewRoute(_) | Message::DelRoute(_) | Message::NewRule(_) | Message::DelRule(_) => {
                    self.routes = true;
                }
                Message::NewNeighbour(message) => {
                    self.neighbours
                        .extend(netlink::neighbour(message).map(|(key, known)| (key, Some(known))));
                }
                Message::DelNeighbour(message) => {
                    self.neighbours.extend(netlink::neighbour(message).map(|(key, _)| (key, None)));
                }
                _ => {}
            },
            NetlinkPayload::Overrun(_) => *self = Self::everything(),
            _ => {}
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Sends [`Event::Changed`] as long as the receiver lives.
pub(super) async fn watch(events: Sender<Event>) {
    let mut first = true;
    loop {
        match follow(&events, first).await {
            Ok(()) => return,
            Err(error) => warn!("watching routes and neighbours: {error:#}; trying again"),
        }
        first = false;
        time::sleep(REOPEN).await;
    }
}

async fn follow(events: &Sender<Event>, first: bool) -> Result<()> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ];
    let (connection, _handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).context("opening a netlink socket for events")?;
    let connection = tokio::spawn(connection);
    if !first && events.send(Event::Changed(Changes::everything())).await.is_err() {
        return Ok(());
    }
    while let Some((message, _)) = messages.next().await {
        let mut changes = Changes::default();
        changes.add(&payload(message));
        if changes.is_empty() {
            continue;
        }
        let deadline = time::Instant::now() + COLLECT;
        while let Ok(Some((message, _))) = time::timeout_at(deadline, messages.next()).await {
            changes.add(&payload(message));
        }
        if events.send(Event::Changed(changes)).await.is_err() {
            connection.abort();
            return Ok(());
        }
    }
    anyhow::bail!("the kernel closed the connection")
}

fn payload(message: NetlinkMessage<RouteNetlinkMessage>) -> NetlinkPayload<RouteNetlinkMessage> {
    message.payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::{
        link::LinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::RouteMessage,
    };

    fn neighbour(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = state;
        let address = NeighbourAddress::Inet(Ipv4Addr::new(192, 0, 2, 1));
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    #[test]
    fn changes_of_a_kind_are_one_change_and_the_last_neighbour_counts() {
        let mut changes = Changes::default();
        let key = (3, Ipv4Addr::new(192, 0, 2, 1));
        let add = |changes: &mut Changes, message| changes.add(&NetlinkPayload::InnerMessage(message));
        add(&mut changes, RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        add(&mut changes, RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        assert!(changes.routes && !changes.links);
        add(&mut changes, RouteNetlinkMessage::NewLink(LinkMessage::default()));
        assert!(changes.links);
        let incomplete = neighbour(NeighbourState::Incomplete, None);
        add(&mut changes, RouteNetlinkMessage::NewNeighbour(incomplete));
        assert_eq!(changes.neighbours[&key], Some(Neighbour::Unresolved));
        let stale = neighbour(NeighbourState::Stale, Some([2; 6]));
        add(&mut changes, RouteNetlinkMessage::NewNeighbour(stale));
        assert_eq!(changes.neighbours[&key], Some(Neighbour::Resolved([2; 6])));
        add(&mut changes, RouteNetlinkMessage::DelNeighbour(neighbour(NeighbourState::Failed, None)));
        assert_eq!(changes.neighbours[&key], None);
    }

    #[test]
    fn a_lost_event_may_have_been_any() {
        let mut changes = Changes::default();
        changes.add(&NetlinkPayload::Overrun(Vec::new()));
        assert_eq!(changes, Changes::everything());
    }
}
