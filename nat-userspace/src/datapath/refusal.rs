// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks the kernel in its own words why a device takes no XDP program.
//!
//! A link is made by bpf(2), which answers with a number only. Drivers give their reason as a text, but only to
//! netlink (`NETLINK_EXT_ACK`). So after a refusal the same thing is tried over netlink, for the sake of the answer.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd as _},
};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `RTM_SETLINK`, `NLMSG_ERROR`, `NLM_F_REQUEST | NLM_F_ACK` (include/uapi/linux/{rtnetlink,netlink}.h).
const SET_LINK: u16 = 19;
const ERROR: u16 = 2;
const REQUEST_AND_ACK: u16 = 1 | 4;
/// Flags of an answer: the request is not repeated in it; attributes follow.
const CAPPED: u16 = 0x100;
const HAS_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const MESSAGE: u16 = 1;
/// `IFLA_XDP | NLA_F_NESTED`, `IFLA_XDP_FD`, `IFLA_XDP_FLAGS` (include/uapi/linux/if_link.h).
const XDP: u16 = 43 | 0x8000;
const XDP_FD: u16 = 1;
const XDP_FLAGS: u16 = 3;
/// `XDP_FLAGS_UPDATE_IF_NOEXIST | XDP_FLAGS_DRV_MODE`: never in the way of another program.
const NATIVE_IF_FREE: u32 = 1 | 4;
/// `XDP_FLAGS_DRV_MODE`.
const NATIVE: u32 = 4;
/// Length of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER: usize = 16;

/// The driver's reason for refusing `program` in native mode on `device`; `None`: it gives none.
#[must_use]
pub(super) fn reason(program: impl AsFd, device: &str) -> Option<String> {
    let name = CString::new(device).ok()?;
    // Not by sysfs: /sys may show another network namespace.
    // SAFETY: a NUL-terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let answer = ask(&request(index, program.as_fd().as_raw_fd(), NATIVE_IF_FREE))?;
    if error_of(&answer)? == 0 {
        // It went well this time. An attachment that ends with nobody's process is not what was wanted.
        ask(&request(index, -1, NATIVE));
        return None;
    }
    message_of(&answer)
}

fn ask(request: &[u8]) -> Option<Vec<u8>> {
    let socket = Socket::new(NETLINK_ROUTE).ok()?;
    socket.set_ext_ack(true).ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    socket.send(request, 0).ok()?;
    socket.recv_from_full().ok().map(|(answer, _)| answer)
}

fn request(index: u32, program: i32, flags: u32) -> Vec<u8> {
    let nested = [attribute(XDP_FD, &program.to_ne_bytes()), attribute(XDP_FLAGS, &flags.to_ne_bytes())];
    let xdp = attribute(XDP, &nested.concat());
    let length = (2 * HEADER + xdp.len()) as u32;
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(SET_LINK.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; 4]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(xdp);
    request
}

/// All values here are multiples of four bytes long.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The error number of an answer, 0 for success; `None`: not such an answer.
fn error_of(answer: &[u8]) -> Option<u32> {
    if u16_at(answer, 4)? != ERROR { None } else { u32_at(answer, HEADER) }
}

/// The text in an answer.
fn message_of(answer: &[u8]) -> Option<String> {
    let flags = u16_at(answer, 6)?;
    if flags & HAS_ATTRIBUTES == 0 {
        return None;
    }
    let repeated = if flags & CAPPED == 0 { u32_at(answer, HEADER + 4)? as usize } else { HEADER };
    let mut at = HEADER + 4 + repeated.next_multiple_of(4);
    loop {
        let length = usize::from(u16_at(answer, at)?);
        let value = answer.get(at + 4..at + length)?;
        if u16_at(answer, at + 2)? == MESSAGE {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return std::str::from_utf8(text).ok().map(str::to_owned);
        }
        at += length.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel builds it: header, error, the request, attributes.
    fn answer(flags: u16, repeated: &[u8], text: &str) -> Vec<u8> {
        let mut answer = vec![0; 4];
        answer.extend(ERROR.to_ne_bytes());
        answer.extend(flags.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend((-34i32).to_ne_bytes());
        answer.extend(repeated);
        // An attribute that is not the text: NLMSGERR_ATTR_OFFS.
        answer.extend(attribute(2, &[0; 4]));
        answer.extend(attribute(MESSAGE, &[text.as_bytes(), &[0]].concat()));
        answer
    }

    #[test]
    fn the_text_is_found_behind_the_repeated_request() {
        let request = request(7, 3, NATIVE_IF_FREE);
        let whole = answer(HAS_ATTRIBUTES, &request, "Peer MTU is too large to set XDP");
        assert_eq!(message_of(&whole).as_deref(), Some("Peer MTU is too large to set XDP"));
        assert_eq!(error_of(&whole), Some((-34i32) as u32));
        let capped = answer(HAS_ATTRIBUTES | CAPPED, &request[..HEADER], "no");
        assert_eq!(message_of(&capped).as_deref(), Some("no"));
    }

    #[test]
    fn an_answer_without_text_or_cut_short_has_none() {
        let request = request(7, 3, NATIVE_IF_FREE);
        assert_eq!(message_of(&answer(0, &request, "x")), None);
        let whole = answer(HAS_ATTRIBUTES, &request, "text");
        for end in 0..whole.len() - 1 {
            assert_eq!(message_of(&whole[..end]), None, "{end}");
        }
    }
}
