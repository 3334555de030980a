// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists of ports and ranges of ports.

use std::ops::RangeInclusive;

use super::{
    decode::{PortEntry, Report},
    gateway::PortRange,
    schema::Ports,
    values::{Fault, fault},
};

/// Ports that backends can be given.
pub(super) const GIVEN_OUT: RangeInclusive<u16> = 1024..=u16::MAX;
/// Ports that a connection can be to.
pub(super) const DESTINATIONS: RangeInclusive<u16> = 1..=u16::MAX;

/// A list of ports that backends are not to get, ascending and without overlaps.
pub(super) fn given_ports(list: &Ports, report: &mut Report) -> Vec<PortRange> {
    ports(list, &GIVEN_OUT, report)
}

/// The list's ports within `bounds`, ascending and without overlaps.
pub(super) fn ports(list: &Ports, bounds: &RangeInclusive<u16>, report: &mut Report) -> Vec<PortRange> {
    let mut ranges = Vec::new();
    for entry in list.get_ref() {
        let found = match entry.get_ref() {
            PortEntry::Number(number) => {
                port(*number, bounds).map(|port| PortRange { first: port, last: port })
            }
            PortEntry::Text(text) => range(text, bounds),
        };
        match found {
            Ok(range) => ranges.push(range),
            Err(fault) => {
                report.error(entry.span(), fault.message).help(fault.help);
            }
        }
    }
    merged(ranges)
}

/// `number` as a port within `bounds`.
pub(super) fn port(number: i64, bounds: &RangeInclusive<u16>) -> Result<u16, Fault> {
    if let Some(port) = u16::try_from(number).ok().filter(|port| bounds.contains(port)) {
        return Ok(port);
    }
    let message = format!("port {number} is not one of {} to {}", bounds.start(), bounds.end());
    let help = if (0..i64::from(*bounds.start())).contains(&number) && bounds == &GIVEN_OUT {
        "lower ports are never given to backends".to_owned()
    } else {
        format!("ports here are from {} to {}", bounds.start(), bounds.end())
    };
    fault(message, help)
}

/// A range such as `5000-5100`, or one port, within `bounds`.
pub(super) fn range(text: &str, bounds: &RangeInclusive<u16>) -> Result<PortRange, Fault> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(i64::MAX))
    };
    let (Some(first), Some(last)) = (number(first), number(last)) else {
        let example = format!("for example `{0}` or `\"{0}-{1}\"`", 8000, 8010);
        return fault(format!("`{text}` is not a port or a range of ports"), example);
    };
    let range = PortRange { first: port(first, bounds)?, last: port(last, bounds)? };
    if range.first > range.last {
        let help = format!("write `{}-{}`", range.last, range.first);
        return fault(format!("range `{text}` ends before it begins"), help);
    }
    Ok(range)
}

/// The same ports, ascending and without overlaps.
pub(super) fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(u16, u16)]) -> Vec<PortRange> {
        pairs.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect()
    }

    #[test]
    fn ranges_that_touch_are_one() {
        for (given, wanted) in [
            (of(&[(5000, 5100), (1024, 1024)]), of(&[(1024, 1024), (5000, 5100)])),
            (of(&[(10, 20), (21, 30)]), of(&[(10, 30)])),
            (of(&[(10, 20), (22, 30)]), of(&[(10, 20), (22, 30)])),
            (of(&[(10, 40), (20, 30)]), of(&[(10, 40)])),
            (of(&[(1, 65535), (65535, 65535)]), of(&[(1, 65535)])),
        ] {
            assert_eq!(merged(given), wanted);
        }
    }

    #[test]
    fn a_range_is_two_ports_or_one() {
        assert_eq!(range("5000-5100", &GIVEN_OUT), Ok(PortRange { first: 5000, last: 5100 }));
        assert_eq!(range("65535", &GIVEN_OUT), Ok(PortRange { first: 65535, last: 65535 }));
        assert_eq!(range("1-1", &DESTINATIONS), Ok(PortRange { first: 1, last: 1 }));
        for text in ["", "-", "5000-", "-5000", "5000 - 5100", "1-2-3", "+80", "http", "5100-5000", "65536"] {
            assert!(range(text, &GIVEN_OUT).is_err(), "{text}");
        }
        assert!(range("1023", &GIVEN_OUT).is_err());
        assert!(range("0", &DESTINATIONS).is_err());
    }
}
