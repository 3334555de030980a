// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two frames side by side, for people who read a failed test.

use std::fmt::Write as _;

/// Both frames in rows of 16 bytes; rows that differ are marked, and the differing bytes named with their offset.
#[must_use]
pub fn diff(expected: &[u8], found: &[u8]) -> String {
    let mut out = format!("expected {} bytes, found {}\n", expected.len(), found.len());
    let rows = expected.len().max(found.len()).div_ceil(16);
    for row in 0..rows {
        let part = |bytes: &[u8]| -> Vec<u8> { bytes.iter().skip(row * 16).take(16).copied().collect() };
        let (want, have) = (part(expected), part(found));
        if want == have {
            let _ = writeln!(out, "  {:4}  {}", row * 16, hex(&want));
        } else {
            let _ = writeln!(out, "- {:4}  {}", row * 16, hex(&want));
            let _ = writeln!(out, "+ {:4}  {}", row * 16, hex(&have));
        }
    }
    let places: Vec<String> = (0..expected.len().max(found.len()))
        .filter(|at| expected.get(*at) != found.get(*at))
        .map(|at| at.to_string())
        .collect();
    let _ = writeln!(out, "different at bytes: {}", places.join(" "));
    out
}

/// Bytes in hexadecimal, separated by blanks.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
