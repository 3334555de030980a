// SPDX-License-Identifier: MIT OR Apache-2.0
//! The maximum segment size option of TCP (RFC 9293 §3.7.1).

/// Length of an IPv4 and a TCP header without options: what a segment of the announced size adds (RFC 9293 §3.7.1: the
/// option does not count options).
pub const HEADERS: u16 = 40;
/// Bytes of options that a TCP header has at most.
pub const MOST_OPTIONS: u32 = 40;

/// End of the option list, one byte.
const END: u8 = 0;
/// No operation, one byte.
const NO_OPERATION: u8 = 1;
/// Maximum segment size, four bytes.
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// A walk through the options, which whoever can read them drives: while [`Walk::goes_on`], four bytes from [`Walk::at`] go
/// to [`Walk::step`].
///
/// Each step is one option, and each has a byte at least, so [`MOST_OPTIONS`] steps are enough.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Where the next option begins, or [`Walk::FOUND`] or [`Walk::NONE`].
    pub at: u32,
    /// Where the options end.
    pub end: u32,
    /// Where the value of the option is, once it is found.
    pub value_at: u32,
    /// The value, host byte order.
    pub value: u32,
}

impl Walk {
    /// [`Walk::at`]: the option is found.
    pub const FOUND: u32 = u32::MAX - 8;
    /// [`Walk::at`]: there is none, or what is before it makes no sense.
    pub const NONE: u32 = u32::MAX - 9;

    /// Options from `start` to before `end`.
    #[inline(always)]
    #[must_use]
    pub const fn new(start: u32, end: u32) -> Self {
        Self { at: start, end, value_at: 0, value: 0 }
    }

    /// Whether there can be more. Four bytes have to be left for the option that is looked for, whatever comes before.
    #[inline(always)]
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        self.at < Self::NONE && self.at + 4 <= self.end
    }

    /// Whether the option was found.
    #[inline(always)]
    #[must_use]
    pub const fn found(&self) -> bool {
        self.at == Self::FOUND
    }

    /// Looks at the option that begins with `four`.
    #[inline(always)]
    pub fn step(&mut self, four: [u8; 4]) {
        let [kind, length, high, low] = four;
        if kind == MAXIMUM_SEGMENT_SIZE && length == 4 {
            self.value_at = self.at + 2;
            self.value = u32::from(u16::from_be_bytes([high, low]));
            self.at = Self::FOUND;
        } else if kind == NO_OPERATION {
            self.at += 1;
        } else if kind == END || length < 2 {
            self.at = Self::NONE;
        } else {
            self.at += u32::from(length);
        }
    }
}

/// The largest segment for a largest packet of `mtu` bytes; no smaller than what every host takes (RFC 791: 68 bytes).
#[inline(always)]
#[must_use]
pub const fn for_mtu(mtu: u16) -> u16 {
    if mtu < HEADERS + 28 { 28 } else { mtu - HEADERS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(options: &[u8]) -> Option<(usize, u16)> {
        let mut walk = Walk::new(0, u32::try_from(options.len()).expect("short"));
        let mut steps = 0;
        while walk.goes_on() {
            let at = walk.at as usize;
            walk.step(options[at..at + 4].try_into().expect("four bytes"));
            steps += 1;
        }
        assert!(steps <= MOST_OPTIONS, "{steps} steps");
        walk.found().then(|| (walk.value_at as usize, u16::try_from(walk.value).expect("two bytes")))
    }

    #[test]
    fn it_is_found_wherever_it_is() {
        assert_eq!(walk(&[2, 4, 5, 180]), Some((2, 1460)));
        assert_eq!(walk(&[1, 2, 4, 5, 180, 0, 0, 0]), Some((3, 1460)));
        assert_eq!(walk(&[1, 3, 3, 7, 4, 2, 2, 4, 0xff, 0xff]), Some((8, 65_535)));
        assert_eq!(walk(&[&[1; 36][..], &[2, 4, 2, 24]].concat()), Some((38, 536)));
        assert_eq!(walk(&[&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0][..], &[2, 4, 2, 24]].concat()), Some((12, 536)));
    }

    #[test]
    fn what_is_none_is_not_found() {
        assert_eq!(walk(&[]), None);
        assert_eq!(walk(&[1; 40]), None);
        assert_eq!(walk(&[0, 2, 4, 5, 180, 0, 0, 0]), None, "behind the end of the list");
        assert_eq!(walk(&[2, 3, 5, 180]), None, "of another length");
        assert_eq!(walk(&[3, 0, 2, 4, 5, 180, 0, 0]), None, "behind a length that leads nowhere");
        assert_eq!(walk(&[3, 1, 2, 4, 5, 180, 0, 0]), None, "likewise");
        assert_eq!(walk(&[8, 10, 2, 4, 5, 180, 0, 0]), None, "inside of another");
        assert_eq!(walk(&[8, 255, 2, 4, 5, 180, 0, 0]), None, "behind a length beyond the header");
        assert_eq!(walk(&[1, 2, 4, 5]), None, "cut off");
    }

    proptest! {
        /// Against a parser that knows no more than RFC 9293 §3.1.
        #[test]
        fn agrees_with_a_plain_parser(options in proptest::collection::vec(0u8..12, 0..40)) {
            let mut rest: &[u8] = &options;
            let mut expected = None;
            while let [kind, tail @ ..] = rest {
                match (kind, tail) {
                    (0, _) => break,
                    (1, _) => rest = tail,
                    (2, [4, high, low, ..]) => {
                        expected = Some((options.len() - rest.len() + 2, u16::from_be_bytes([*high, *low])));
                        break;
                    }
                    (_, [length, ..]) if *length >= 2 && usize::from(*length) <= rest.len() => {
                        rest = &rest[usize::from(*length)..];
                    }
                    _ => break,
                }
            }
            prop_assert_eq!(walk(&options), expected);
        }
    }

    #[test]
    fn the_size_leaves_room_for_both_headers() {
        assert_eq!(for_mtu(1500), 1460);
        assert_eq!(for_mtu(9000), 8960);
        assert_eq!(for_mtu(576), 536);
        assert_eq!(for_mtu(0), 28);
        assert_eq!(for_mtu(u16::MAX), 65_495);
    }
}
