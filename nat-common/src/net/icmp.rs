// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which ICMP messages are what (RFC 792, RFC 5508).

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: host unreachable.
pub const CODE_HOST_UNREACHABLE: u8 = 1;
/// Code of [`UNREACHABLE`]: communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const CODE_ADMIN_PROHIBITED: u8 = 13;
/// Code of [`UNREACHABLE`]: fragmentation needed (RFC 1191).
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// What a message is to a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a flow, with the identifier as port.
    EchoRequest,
    /// Belongs to a flow.
    EchoReply,
    /// Quotes a packet of a flow.
    Error,
    /// Anything else: not translated.
    Other,
}

/// Classifies by message type. Redirect and source quench quote packets too, but concern one link or are
/// obsolete (RFC 6633): they are not translated.
#[inline(always)]
#[must_use]
pub const fn kind(message_type: u8) -> Kind {
    match message_type {
        ECHO_REQUEST => Kind::EchoRequest,
        ECHO_REPLY => Kind::EchoReply,
        UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => Kind::Error,
        _ => Kind::Other,
    }
}
