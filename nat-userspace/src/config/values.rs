// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values that are written as text: addresses, prefixes, durations; and Azure's default tiers.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use nat_common::net::timers::MAX_TIMEOUT_SECONDS;

/// Why a text is not the value it should be, and what would be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) help: String,
}

pub(super) fn fault<T>(message: String, help: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { message, help: help.into() })
}

const HOST_HELP: &str = "use an address that a host can have";

/// The addresses that an address or a prefix stands for: every one of a prefix, its first and last included, as on
/// Azure, where a prefix is a list of addresses and not a subnet. At most `limit`.
pub(super) fn addresses(text: &str, limit: u32) -> Result<Vec<Ipv4Addr>, Fault> {
    let net = prefix(text)?;
    let count = 1u64 << (32 - net.prefix_len());
    if count > u64::from(limit) {
        let message = format!(
            "prefix `{text}` has {} addresses, at most {} are possible",
            grouped(count),
            grouped(limit)
        );
        return fault(message, format!("use a /{} or longer", 32 - limit.ilog2()));
    }
    let first = u32::from(net.addr());
    // `count` is at most `limit`, a u32.
    let list: Vec<Ipv4Addr> = (0..count as u32).map(|offset| Ipv4Addr::from(first + offset)).collect();
    match list.iter().find_map(|address| Some((address, unusable(*address)?))) {
        Some((address, reason)) => fault(format!("{address} is {reason}"), HOST_HELP),
        None => Ok(list),
    }
}

/// An address or a prefix. An address is a prefix of 32 bits.
pub(super) fn prefix(text: &str) -> Result<Ipv4Net, Fault> {
    let net =
        if text.contains('/') { text.parse().ok() } else { text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from) };
    let Some(net) = net else {
        if text.split('/').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
            let message =
                format!("`{text}` is an IPv6 address, which this version of natgw does not translate");
            return fault(message, "use an IPv4 address");
        }
        let message = format!("`{text}` is not an IPv4 address or prefix");
        return fault(message, "for example `10.0.0.4` or `10.0.1.0/28`");
    };
    if net.addr() != net.network() {
        let message = format!("`{text}` has bits set beyond its prefix length");
        let help = format!("for the whole prefix write `{}`, for one address `{}`", net.trunc(), net.addr());
        return fault(message, help);
    }
    Ok(net)
}

/// One address that a host can have.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, Fault> {
    let net = prefix(text)?;
    if net.prefix_len() != 32 {
        return fault(format!("`{text}` is a prefix, one address is needed"), "for example `203.0.113.50`");
    }
    let address = net.addr();
    match unusable(address) {
        Some(reason) => fault(format!("{address} is {reason}"), HOST_HELP),
        None => Ok(address),
    }
}

/// Why no host can have `address`.
const fn unusable(address: Ipv4Addr) -> Option<&'static str> {
    if address.octets()[0] == 0 {
        Some("in 0.0.0.0/8, which stands for no host")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_broadcast() {
        Some("the broadcast address")
    } else {
        None
    }
}

/// Seconds in a duration such as `4m`, `240s`, `2h` or `1h30m`: 1 … [`MAX_TIMEOUT_SECONDS`].
pub(super) fn seconds(text: &str) -> Result<u32, Fault> {
    match seconds_or_none(text) {
        Ok(0) => fault(format!("`{text}` is no time at all"), "the shortest timeout is `1s`"),
        found => found,
    }
}

/// As [`seconds`], and 0.
pub(super) fn seconds_or_none(text: &str) -> Result<u32, Fault> {
    let examples = "for example `240s`, `4m`, `2h` or `1h30m`";
    let Some(total) = sum_of_units(text) else {
        return fault(format!("`{text}` is not a duration"), examples);
    };
    match u32::try_from(total) {
        Ok(seconds) if seconds <= MAX_TIMEOUT_SECONDS => Ok(seconds),
        _ => fault(
            format!("`{text}` is too long"),
            format!("the longest timeout is `{}h`", MAX_TIMEOUT_SECONDS / 3600),
        ),
    }
}

/// Hours, minutes and seconds in this order, each at most once, none without unit. Saturates.
fn sum_of_units(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0u64;
    for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
        let Some((number, after)) = rest.split_once(unit) else { continue };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = number.parse::<u64>().unwrap_or(u64::MAX);
        total = total.saturating_add(number.saturating_mul(factor));
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

/// Backends up to which the default tiers reach.
pub(super) const LARGEST_DEFAULT_POOL: usize = 1000;

/// Most ports that the default tiers give a backend.
const LARGEST_DEFAULT: u32 = 1024;

/// Ports that a backend gets by default in a pool of `backends` with `addresses` frontend addresses: Azure's tier
/// table ("Outbound connections", 2023), `min(tier × addresses, 1024)`; `None` beyond its end.
pub(super) fn default_ports(backends: usize, addresses: usize) -> Option<u32> {
    let tier = match backends {
        0..=50 => 1024,
        51..=100 => 512,
        101..=200 => 256,
        201..=400 => 128,
        401..=800 => 64,
        801..=LARGEST_DEFAULT_POOL => 32,
        _ => return None,
    };
    let addresses = u32::try_from(addresses).unwrap_or(LARGEST_DEFAULT);
    Some(LARGEST_DEFAULT.min(tier * addresses.min(LARGEST_DEFAULT)))
}

/// A number with commas between thousands.
#[must_use]
pub fn grouped(number: impl Into<u64>) -> String {
    let digits = number.into().to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiers_are_those_of_azure() {
        let table = [
            (1, 1024),
            (50, 1024),
            (51, 512),
            (100, 512),
            (101, 256),
            (200, 256),
            (201, 128),
            (400, 128),
            (401, 64),
            (800, 64),
            (801, 32),
            (1000, 32),
        ];
        for (backends, ports) in table {
            assert_eq!(default_ports(backends, 1), Some(ports), "{backends} backends");
        }
        assert_eq!(default_ports(1001, 1), None);
    }

    #[test]
    fn several_addresses_multiply_the_tier_up_to_1024() {
        for (backends, addresses, ports) in
            [(100, 1, 512), (100, 2, 1024), (100, 3, 1024), (10, 4, 1024), (1000, 16, 512), (1000, 256, 1024)]
        {
            assert_eq!(default_ports(backends, addresses), Some(ports), "{backends} on {addresses}");
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, wanted) in [
            ("1s", 1),
            ("240s", 240),
            ("4m", 240),
            ("2h", 7200),
            ("1h30m", 5400),
            ("1h1m1s", 3661),
            ("720h", 2_592_000),
        ] {
            assert_eq!(seconds(text), Ok(wanted), "{text}");
        }
        for text in [
            "",
            "240",
            "4 m",
            "m",
            "4m2h",
            "1.5h",
            "-1s",
            "4d",
            "4M",
            "1m1m",
            "0s",
            "721h",
            "99999999999999999999h",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_prefix_stands_for_all_its_addresses() {
        let list = addresses("10.0.0.0/30", 256).expect("a prefix");
        assert_eq!(list.first(), Some(&Ipv4Addr::new(10, 0, 0, 0)));
        assert_eq!(list.last(), Some(&Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(list.len(), 4);
        assert_eq!(addresses("10.0.0.0/24", 256).map(|list| list.len()), Ok(256));
        assert!(addresses("10.0.0.0/23", 256).is_err());
        assert!(addresses("0.0.0.0/0", 4096).is_err());
    }

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0u32, "0"), (999, "999"), (1000, "1,000"), (1_032_192, "1,032,192")] {
            assert_eq!(grouped(number), text);
        }
    }
}
