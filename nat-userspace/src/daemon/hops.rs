// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps next hops resolved. XDP bypasses the stack, so the kernel does not notice that a neighbour is in use: nobody
//! would confirm its entry, and nobody would ask for a new one before the first packet has missed it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::netlink::{Neighbour, Route};

/// Next hops resolved ahead of any packet: gateways first, then backends.
const AHEAD: usize = 256;
/// Next hops kept at all, with those that packets have asked for.
const KEPT: usize = 1024;
/// How often an entry is confirmed: before the kernel thinks of it as old (`gc_stale_time`, 60 s).
const CONFIRM: Duration = Duration::from_secs(15);
/// How long a neighbour that a packet asked for is kept resolved.
const REMEMBER: Duration = Duration::from_secs(600);
/// Requests at once: each may mean an ARP broadcast.
const PACE: usize = 16;

/// Interface and address of a neighbour.
pub(super) type Hop = (u32, Ipv4Addr);

/// The next hops that are kept resolved.
#[derive(Debug, Default)]
pub(super) struct Hops {
    kept: BTreeMap<Hop, Kept>,
    known: HashMap<Hop, Neighbour>,
    due: VecDeque<Hop>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    ahead: bool,
    asked: Instant,
    confirmed: Option<Instant>,
}

impl Hops {
    /// Takes over what the routing tables say: gateways of all routes, and those backends that are on a link.
    pub(super) fn set_ahead(&mut self, hops: &[Hop], now: Instant) {
        for kept in self.kept.values_mut() {
            kept.ahead = false;
        }
        for hop in hops {
            let fresh = Kept { ahead: true, asked: now, confirmed: None };
            self.kept.entry(*hop).or_insert(fresh).ahead = true;
        }
        self.forget(now);
    }

    /// A packet found this neighbour missing. It goes before the others.
    pub(super) fn ask(&mut self, hop: Hop, now: Instant) {
        self.forget(now);
        if self.kept.len() >= KEPT && !self.kept.contains_key(&hop) {
            return;
        }
        let kept = self.kept.entry(hop).or_insert(Kept { ahead: false, asked: now, confirmed: None });
        kept.asked = now;
        if !self.due.contains(&hop) {
            self.due.push_front(hop);
        }
    }

    fn forget(&mut self, now: Instant) {
        self.kept.retain(|_, kept| kept.ahead || now.duration_since(kept.asked) < REMEMBER);
    }

    /// The neighbours to have resolved now, at most [`PACE`].
    pub(super) fn next(&mut self, now: Instant) -> Vec<Hop> {
        let stale = |kept: &Kept| kept.confirmed.is_none_or(|then| now.duration_since(then) >= CONFIRM);
        for (hop, _) in self.kept.iter().filter(|(_, kept)| stale(kept)) {
            if !self.due.contains(hop) {
                self.due.push_back(*hop);
            }
        }
        let mut now_due = Vec::new();
        while let Some(hop) = self.due.pop_front() {
            let fixed = matches!(self.known.get(&hop), Some(Neighbour::Fixed(_)));
            if let Some(kept) = self.kept.get_mut(&hop) {
                kept.confirmed = Some(now);
                if !fixed {
                    now_due.push(hop);
                }
            }
            if now_due.len() == PACE {
                break;
            }
        }
        now_due
    }

    /// Notes what the kernel knows about a neighbour. True: packets have to look it up again, because its MAC
    /// address has changed or is gone, or there is one at last.
    pub(super) fn learn(&mut self, hop: Hop, now_known: Option<Neighbour>) -> bool {
        let before = match now_known {
            Some(known) => self.known.insert(hop, known),
            None => self.known.remove(&hop),
        };
        mac_of(before) != mac_of(now_known)
    }

    /// Forgets what is known about neighbours: events may have been missed.
    pub(super) fn forget_known(&mut self) {
        self.known.clear();
    }

    /// Everything that is kept, with what is known of it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Hop, Option<Neighbour>)> {
        self.kept.keys().map(|hop| (*hop, self.known.get(hop).copied()))
    }
}

const fn mac_of(known: Option<Neighbour>) -> Option<[u8; 6]> {
    match known {
        Some(Neighbour::Resolved(mac) | Neighbour::Fixed(mac)) => Some(mac),
        _ => None,
    }
}

/// Which neighbours to resolve ahead: gateways of the routes over `ports`, and each backend whose most specific
/// route has it on the link of an interface in `ports`.
#[must_use]
pub(super) fn ahead(routes: &[Route], ports: &[u32], backends: &[Ipv4Addr]) -> Vec<Hop> {
    let mut hops: Vec<Hop> = Vec::new();
    let ours = |index: &u32| ports.contains(index);
    let gateways = routes.iter().flat_map(|route| &route.hops);
    hops.extend(
        gateways.filter_map(|(index, gateway)| Some((*index, (*gateway)?))).filter(|(index, _)| ours(index)),
    );
    hops.sort_unstable();
    hops.dedup();
    hops.truncate(AHEAD);
    for backend in backends {
        if hops.len() >= AHEAD {
            break;
        }
        let covering = routes.iter().filter(|route| route.destination.contains(backend));
        let Some(route) = covering.max_by_key(|route| route.destination.prefix_len()) else { continue };
        let on_link = route.hops.iter().find(|(index, gateway)| gateway.is_none() && ours(index));
        if let Some(hop) = on_link.map(|(index, _)| (*index, *backend)).filter(|hop| !hops.contains(hop)) {
            hops.push(hop);
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn route(destination: &str, index: u32, gateway: Option<Ipv4Addr>) -> Route {
        Route { destination: destination.parse().expect("a prefix"), hops: vec![(index, gateway)] }
    }

    #[test]
    fn gateways_and_backends_on_the_link_are_resolved_ahead() {
        let routes = [
            route("0.0.0.0/0", 3, Some(GATEWAY)),
            route("198.51.100.0/24", 3, Some(GATEWAY)),
            route("10.0.0.0/24", 2, None),
            route("10.0.1.0/24", 2, Some(Ipv4Addr::new(10, 0, 0, 9))),
            route("172.16.0.0/12", 7, Some(Ipv4Addr::new(172, 16, 0, 1))),
        ];
        let backends = [Ipv4Addr::new(10, 0, 0, 4), Ipv4Addr::new(10, 0, 1, 4)];
        let hops = ahead(&routes, &[2, 3], &backends);
        assert_eq!(hops, [(2, Ipv4Addr::new(10, 0, 0, 9)), (3, GATEWAY), (2, backends[0])]);
    }

    #[test]
    fn no_more_than_so_many_ahead() {
        let backends: Vec<Ipv4Addr> = (0..4096u32).map(|host| Ipv4Addr::from(0x0a00_0000 + host)).collect();
        assert_eq!(ahead(&[route("10.0.0.0/8", 2, None)], &[2], &backends).len(), AHEAD);
    }

    #[test]
    fn requests_are_paced_and_repeated() {
        let mut hops = Hops::default();
        let start = Instant::now();
        let ahead: Vec<Hop> = (0..20).map(|host| (2, Ipv4Addr::new(10, 0, 0, host))).collect();
        hops.set_ahead(&ahead, start);
        assert_eq!(hops.next(start).len(), PACE);
        assert_eq!(hops.next(start).len(), 20 - PACE);
        assert!(hops.next(start + CONFIRM / 2).is_empty());
        assert_eq!(hops.next(start + CONFIRM).len(), PACE);
    }

    #[test]
    fn what_a_packet_misses_goes_first_and_is_forgotten_in_the_end() {
        let mut hops = Hops::default();
        let start = Instant::now();
        let ahead: Vec<Hop> = (0..20).map(|host| (2, Ipv4Addr::new(10, 0, 0, host))).collect();
        hops.set_ahead(&ahead, start);
        hops.ask((3, GATEWAY), start);
        assert_eq!(hops.next(start)[0], (3, GATEWAY));
        hops.set_ahead(&ahead, start + REMEMBER);
        assert!(hops.iter().all(|(hop, _)| hop != (3, GATEWAY)));
    }

    #[test]
    fn what_was_set_by_hand_is_left_alone() {
        let mut hops = Hops::default();
        let (start, hop) = (Instant::now(), (3, GATEWAY));
        hops.set_ahead(&[hop], start);
        assert!(hops.learn(hop, Some(Neighbour::Fixed([2; 6]))));
        assert!(hops.next(start).is_empty() && hops.next(start + CONFIRM).is_empty());
        assert!(!hops.learn(hop, Some(Neighbour::Resolved([2; 6]))));
        assert_eq!(hops.next(start + 2 * CONFIRM), [hop]);
    }

    #[test]
    fn only_a_different_mac_address_is_a_change() {
        let mut hops = Hops::default();
        let hop = (3, GATEWAY);
        assert!(!hops.learn(hop, Some(Neighbour::Unresolved)));
        assert!(hops.learn(hop, Some(Neighbour::Resolved([2; 6]))));
        assert!(!hops.learn(hop, Some(Neighbour::Resolved([2; 6]))));
        assert!(hops.learn(hop, Some(Neighbour::Resolved([4; 6]))));
        assert!(hops.learn(hop, None));
        assert!(!hops.learn(hop, None));
    }
}
