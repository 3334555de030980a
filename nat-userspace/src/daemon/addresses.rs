// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frontend addresses and instance IPs of the host: adds the missing ones, so that it answers ARP for them, and tells the neighbours.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Result;
use nat_common::abi::config::{PortConfig, name_of};
use tracing::{info, warn};

use super::{
    host::HostState,
    netlink::Netlink,
    undo::{Done, Journal},
};
use crate::datapath::pin::Instance;

/// Adds `missing` to the interface of `port`, each as a /32, recorded for `detach`. Returns what was added.
///
/// # Errors
///
/// When the kernel refuses one.
pub(super) async fn assign(
    instance: &Instance,
    netlink: &Netlink,
    state: &mut HostState,
    port: &PortConfig,
    missing: &[Ipv4Addr],
    journal: &mut Journal,
) -> Result<Vec<Ipv4Addr>> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let interface = name_of(&port.name);
    state.addresses.extend(missing.iter().map(|address| (*address, interface.to_owned())));
    state.write(instance)?;
    let mut added = Vec::new();
    for address in missing {
        if netlink.add_address(port.ifindex, *address).await? {
            journal.push(Done::Address(port.ifindex, *address));
            added.push(*address);
        }
    }
    info!("{interface}: {} addresses added", added.len());
    let announced = packet_socket().and_then(|socket| {
        added.iter().try_for_each(|address| announce(&socket, port.ifindex, port.mac, *address))
    });
    if let Err(error) = announced {
        warn!("{interface}: announcing addresses by ARP: {error}; neighbours find them when they ask");
    }
    Ok(added)
}

/// A socket to send by; one for all addresses, because the kernel waits for packets under way when one is closed
/// (`packet_release`, net/packet/af_packet.c), some 12 ms each time.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned. Protocol 0: nothing is received.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a socket that was just opened and that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Sends one ARP announcement (RFC 5227 §2.3): whoever remembers another owner of the address corrects it.
fn announce(socket: &OwnedFd, index: u32, mac: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
    };
    let request = announcement(mac, address);
    // SAFETY: buffer and address live through the call, with their own lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An ARP request for one's own address (RFC 826).
fn announcement(mac: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut request = [0; 28];
    request[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    request[8..14].copy_from_slice(&mac);
    request[14..18].copy_from_slice(&address.octets());
    request[24..28].copy_from_slice(&address.octets());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_asks_for_its_own_address() {
        let request = announcement([2, 0, 0, 0, 0, 9], Ipv4Addr::new(203, 0, 113, 10));
        assert_eq!(request[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(request[14..18], request[24..28]);
        assert_eq!(request[18..24], [0; 6]);
    }
}
