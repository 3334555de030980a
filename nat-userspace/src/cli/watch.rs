// SPDX-License-Identifier: MIT OR Apache-2.0
//! Once, or again and again.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    mem,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use super::{ReadArgs, render::Style};

/// Output is collected to this many bytes before it is written.
const BUFFER: usize = 256 * 1024;

/// How to print one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// JSON instead of tables.
    pub json: bool,
    /// JSON on one line: documents that follow each other are told apart by lines.
    pub one_line: bool,
    /// Colours of tables.
    pub style: Style,
    /// Notices go to standard error: the first time, and not into a screen that is redrawn.
    pub notices: bool,
}

/// Calls `print` once, or every interval until it fails or is interrupted. It gets the seconds since it was last
/// called. On a terminal every table replaces the one before.
///
/// # Errors
///
/// Those of `print` and of standard output.
pub fn repeat(
    args: &ReadArgs,
    mut print: impl FnMut(&mut dyn Write, Format, Option<f64>) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let redraw = args.watch.is_some() && !args.json && io::stdout().is_terminal();
    let mut format = Format {
        json: args.json,
        one_line: args.watch.is_some(),
        style: Style::of_stdout(),
        notices: !redraw,
    };
    let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    let mut last: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let elapsed = last.map(|last| now.duration_since(last).as_secs_f64());
        let code = if redraw {
            let mut frame = Vec::new();
            let code = print(&mut frame, format, elapsed)?;
            out.write_all(&screen(&frame, rows_of_terminal(), last.is_none()))?;
            code
        } else {
            print(&mut out, format, elapsed)?
        };
        out.flush()?;
        let Some(interval) = args.watch else { return Ok(code) };
        if !format.json && !redraw {
            writeln!(out)?;
        }
        format.notices = false;
        last = Some(now);
        thread::sleep(interval.saturating_sub(now.elapsed()).max(Duration::from_millis(50)));
    }
}

/// What to send to a terminal so that it shows `frame` and nothing else, without flicker: every line is overwritten
/// and only what is left of the one before is erased.
fn screen(frame: &[u8], rows: Option<usize>, first: bool) -> Vec<u8> {
    let mut bytes = if first { b"\x1b[2J\x1b[H".to_vec() } else { b"\x1b[H".to_vec() };
    let lines: Vec<_> = frame.strip_suffix(b"\n").unwrap_or(frame).split(|byte| *byte == b'\n').collect();
    // The last row stays empty for the cursor: a newline in it would scroll.
    let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(1).max(1));
    let shown = if lines.len() > room { room.saturating_sub(1) } else { lines.len() };
    for line in &lines[..shown] {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(b"\x1b[K\r\n");
    }
    if shown < lines.len() {
        bytes.extend_from_slice(format!("… {} more lines\x1b[K\r\n", lines.len() - shown).as_bytes());
    }
    bytes.extend_from_slice(b"\x1b[J");
    bytes
}

fn rows_of_terminal() -> Option<usize> {
    // SAFETY: plain data, for which zero is valid.
    let mut size: libc::winsize = unsafe { mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a `winsize`, which `size` is.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0).then_some(usize::from(size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(frame: &str, rows: Option<usize>, first: bool) -> String {
        String::from_utf8(screen(frame.as_bytes(), rows, first)).expect("text")
    }

    #[test]
    fn a_screen_is_overwritten_line_by_line() {
        assert_eq!(shown("a\nb\n", Some(24), true), "\x1b[2J\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
        assert_eq!(shown("a\nb\n", None, false), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }

    #[test]
    fn a_screen_never_scrolls() {
        let frame = "line\n".repeat(100);
        for rows in 2..30 {
            let text = shown(&frame, Some(rows), false);
            assert!(text.matches("\r\n").count() < rows, "{rows}");
            assert!(text.contains("more lines"), "{rows}");
        }
    }
}
