// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Writing an ICMP error: the packet that it quotes, the addresses of its own header, and every checksum that covers one of
//! these. Nothing else is touched: neither a length field, nor an extension with its checksum (RFC 4884), which are
//! outside of the quoted headers.

use aya_ebpf::bindings::xdp_md;
use nat_common::net::{
    checksum::Delta,
    protocol::{self, DCCP, UDP_LITE},
};
use network_types::icmp::Icmpv4Hdr;

use crate::{
    frame,
    icmp_error::{Quoted, Work},
    parse::{ICMP, IPV4, TCP, UDP},
};

/// What to write instead of the quoted address and port.
#[repr(C)]
pub(crate) struct Edit {
    pub(crate) address: [u8; 4],
    pub(crate) port: [u8; 2],
    /// The flow's half that the quotation, reversed, found: an error from inside finds the outbound one.
    pub(crate) outbound: bool,
    /// What to take from the outer TTL.
    pub(crate) decrement: u8,
}

impl Edit {
    /// The quoted address that goes is the translated end's: the lookup key's source (outbound) or destination.
    #[inline(always)]
    fn addresses(&self, quoted: &Quoted) -> Delta {
        Delta::ZERO
            .address(if self.outbound { quoted.key.source } else { quoted.key.destination }, self.address)
    }

    #[inline(always)]
    fn ports(&self, quoted: &Quoted) -> Delta {
        Delta::ZERO
            .word(if self.outbound { quoted.key.source_port } else { quoted.key.destination_port }, self.port)
    }

    #[inline(always)]
    fn delta(&self, quoted: &Quoted) -> Delta {
        self.addresses(quoted).and(self.ports(quoted))
    }
}

/// Rewrites quotation and outer header; `l3` is where the outer IP header is now.
#[inline(always)]
pub(crate) fn rewrite(ctx: *mut xdp_md, l3: usize, work: &Work) -> Option<()> {
    let Work { quoted, edit, second, hairpin, .. } = work;
    let done = inner(ctx, l3, quoted, edit) && outer(ctx, l3, edit);
    // Each edit is of one end: the same key says what stood there for both.
    if done && (!hairpin || (inner(ctx, l3, quoted, second) && outer(ctx, l3, second))) {
        Some(())
    } else {
        None
    }
}

/// Rewrites the quoted address and port, and up to three checksums: quoted transport, quoted IP, and ICMP, which
/// covers all of the quotation.
#[inline(never)]
fn inner(ctx: *mut xdp_md, l3: usize, quoted: &Quoted, edit: &Edit) -> bool {
    let at = l3 + usize::from(quoted.ip);
    let Some(mut header) = frame::load::<[u8; IPV4]>(ctx, at) else { return false };
    let mut changes = addresses(quoted, edit, &mut header);
    let transport = l3 + usize::from(quoted.transport);
    if quoted.shown == 8 {
        let Some(mut first) = frame::load::<[u8; 8]>(ctx, transport) else { return false };
        changes = changes.and(ports(quoted, edit, &mut first));
        frame::store(ctx, transport, &first);
    } else if quoted.shown == 4 {
        let Some([a, b, c, d]) = frame::load::<[u8; 4]>(ctx, transport) else { return false };
        let mut first = [a, b, c, d, 0, 0, 0, 0];
        changes = changes.and(ports(quoted, edit, &mut first));
        frame::store(ctx, transport, &[first[0], first[1], first[2], first[3]]);
    }
    frame::store(ctx, at, &header);
    if quoted.checksum != 0
        && let Some(old) = frame::load::<[u8; 2]>(ctx, l3 + usize::from(quoted.checksum))
    {
        let new = edit.delta(quoted).apply(old);
        frame::store(ctx, l3 + usize::from(quoted.checksum), &new);
        changes = changes.word(old, new);
    }
    let at = at - size_of::<Icmpv4Hdr>() + 2;
    match frame::load::<[u8; 2]>(ctx, at) {
        Some(old) => frame::store(ctx, at, &changes.apply(old)),
        None => false,
    }
}

/// Rewrites the outer address, TTL and checksum. An error from a router behind the gateway would show its private
/// address: it gets the frontend's, too.
#[inline(never)]
fn outer(ctx: *mut xdp_md, l3: usize, edit: &Edit) -> bool {
    let Some(mut ip) = frame::load::<[u8; IPV4]>(ctx, l3) else { return false };
    let old = if edit.outbound { [ip[12], ip[13], ip[14], ip[15]] } else { [ip[16], ip[17], ip[18], ip[19]] };
    let ttl = ip[8] - edit.decrement;
    let changes = Delta::ZERO.address(old, edit.address).word([ip[8], ip[9]], [ttl, ip[9]]);
    [ip[10], ip[11]] = changes.apply([ip[10], ip[11]]);
    ip[8] = ttl;
    if edit.outbound {
        [ip[12], ip[13], ip[14], ip[15]] = edit.address;
    } else {
        [ip[16], ip[17], ip[18], ip[19]] = edit.address;
    }
    frame::store(ctx, l3, &ip)
}

/// Rewrites the quoted IP header, its identification too; returns what that changes in the ICMP checksum.
#[inline(always)]
fn addresses(quoted: &Quoted, edit: &Edit, inner: &mut [u8; IPV4]) -> Delta {
    let addresses = edit.addresses(quoted).word([inner[4], inner[5]], quoted.id);
    [inner[4], inner[5]] = quoted.id;
    let old = [inner[10], inner[11]];
    let new = addresses.apply(old);
    [inner[10], inner[11]] = new;
    if edit.outbound {
        [inner[16], inner[17], inner[18], inner[19]] = edit.address;
    } else {
        [inner[12], inner[13], inner[14], inner[15]] = edit.address;
    }
    addresses.word(old, new)
}

/// Rewrites the beginning of the quoted transport header, likewise. What is not quoted of it is zero in `first`, and is not
/// written by the caller.
#[inline(always)]
fn ports(quoted: &Quoted, edit: &Edit, first: &mut [u8; 8]) -> Delta {
    let ports = edit.ports(quoted);
    let number = quoted.key.protocol;
    let old_port = if edit.outbound { quoted.key.source_port } else { quoted.key.destination_port };
    if number == ICMP {
        // With an instance IP the identifier stays, and may be the other end's; and an error has none.
        if old_port == edit.port {
            return Delta::ZERO;
        }
        [first[4], first[5]] = edit.port;
        let old = [first[2], first[3]];
        let new = ports.apply(old);
        [first[2], first[3]] = new;
        return ports.word(old, new);
    }
    if !matches!(number, TCP | UDP) && !protocol::has_ports(number) {
        return Delta::ZERO;
    }
    if edit.outbound {
        [first[2], first[3]] = edit.port;
    } else {
        [first[0], first[1]] = edit.port;
    }
    if quoted.shown < 8 {
        return ports;
    }
    let old = [first[6], first[7]];
    let new = match number {
        UDP | UDP_LITE => edit.delta(quoted).apply_udp(old),
        DCCP => edit.delta(quoted).apply(old),
        _ => return ports,
    };
    [first[6], first[7]] = new;
    ports.word(old, new)
}
