// SPDX-License-Identifier: MIT OR Apache-2.0
//! Masks of protocol classes: bit `n` is class `n`.

use nat_common::abi::config::{CLASS_ICMP, CLASS_NAMES, CLASS_TCP, CLASS_UDP, CLASSES};
use toml::Spanned;

use super::{decode::Report, validate::word};

/// Every protocol.
pub(super) const EVERY: u32 = (1 << CLASSES) - 1;
/// The protocols that have ports.
pub(super) const TCP_UDP: u32 = 1 << CLASS_TCP | 1 << CLASS_UDP;
/// TCP.
pub(super) const TCP: u32 = 1 << CLASS_TCP;
/// Every protocol that is not TCP, UDP or ICMP.
const OTHER: u32 = EVERY & !(TCP_UDP | 1 << CLASS_ICMP);

/// The words for a mask of protocol classes; `all` for every one.
#[must_use]
pub fn class_names(mask: u32) -> Vec<&'static str> {
    if mask == EVERY {
        return vec!["all"];
    }
    let names = (0..).zip(CLASS_NAMES.into_iter().chain(["other"]));
    names.filter(|(class, _)| mask >> class & 1 == 1).map(|(_, name): (u32, _)| name).collect()
}

/// The mask of `protocol`, with `other` among the words if it can be; `None` if it is not one.
pub(super) fn classes(protocol: Option<&Spanned<String>>, other: bool, report: &mut Report) -> Option<u32> {
    let words =
        [("all", EVERY), ("tcp", TCP), ("udp", 1 << CLASS_UDP), ("icmp", 1 << CLASS_ICMP), ("other", OTHER)];
    let words = if other { &words[..] } else { &words[..words.len() - 1] };
    match protocol {
        None => Some(EVERY),
        Some(value) => word("protocol", value, words, &[], report),
    }
}
