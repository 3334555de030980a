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
/// Source quench (RFC 6633: not to be used).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Timestamp.
pub const TIMESTAMP_REQUEST: u8 = 13;
/// Timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;
/// Address mask request (RFC 950, appendix I).
pub const MASK_REQUEST: u8 = 17;
/// Address mask reply.
pub const MASK_REPLY: u8 = 18;

/// What a message is to a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a flow, with the identifier as port.
    Request,
    /// Belongs to a flow.
    Reply,
    /// Quotes a packet of a flow.
    Error,
    /// Anything else: not translated.
    Other,
}

/// Types of queries, which have an identifier in bytes 4 and 5 (RFC 5508 §3.1), as bits. Not information request: a NAT
/// should not support it (RFC 5508 REQ-10 (c)).
const REQUESTS: u32 = 1 << ECHO_REQUEST | 1 << TIMESTAMP_REQUEST | 1 << MASK_REQUEST;
/// Types of their replies, likewise.
const REPLIES: u32 = 1 << ECHO_REPLY | 1 << TIMESTAMP_REPLY | 1 << MASK_REPLY;
/// Types of errors, likewise. Redirect and source quench quote packets too, but a redirect is a router's word to a host
/// on its own link (RFC 792), and source quench is to be ignored (RFC 6633 §3): they are not translated.
const ERRORS: u32 = 1 << UNREACHABLE | 1 << TIME_EXCEEDED | 1 << PARAMETER_PROBLEM;

/// Whether a message type is one of a set.
#[inline(always)]
const fn is_in(set: u32, message_type: u8) -> bool {
    message_type < 32 && set >> message_type & 1 != 0
}

/// Whether a message is a query's request.
#[inline(always)]
#[must_use]
pub const fn is_request(message_type: u8) -> bool {
    is_in(REQUESTS, message_type)
}

/// Classifies by message type.
#[inline(always)]
#[must_use]
pub const fn kind(message_type: u8) -> Kind {
    if is_in(REQUESTS, message_type) {
        Kind::Request
    } else if is_in(REPLIES, message_type) {
        Kind::Reply
    } else if is_in(ERRORS, message_type) {
        Kind::Error
    } else {
        Kind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the registry of ICMP types (IANA), written out once more.
    #[test]
    fn every_type_is_what_its_rfc_says() {
        for number in 0..=u8::MAX {
            let expected = match number {
                8 | 13 | 17 => Kind::Request,
                0 | 14 | 18 => Kind::Reply,
                3 | 11 | 12 => Kind::Error,
                _ => Kind::Other,
            };
            assert_eq!(kind(number), expected, "{number}");
            assert_eq!(is_request(number), expected == Kind::Request);
        }
    }
}
