// SPDX-License-Identifier: MIT OR Apache-2.0
//! Narration: what is being done, and what has been checked.

use std::{
    io::{self, Write as _},
    time::Instant,
};

use anyhow::{Result, bail};

use super::interrupt;
use crate::cli::render::{Paint, Style, WIDTH};

/// Columns that text below a title is indented by.
const INDENT: usize = 4;

/// Tells the story on standard output.
#[derive(Debug)]
pub(super) struct Say {
    style: Style,
    step: u32,
    started: Instant,
}

impl Say {
    pub(super) fn new(style: Style) -> Self {
        Self { style, step: 0, started: Instant::now() }
    }

    pub(super) fn style(&self) -> Style {
        self.style
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Begins the next step. An interrupt ends the demo here at the latest.
    pub(super) fn step(&mut self, title: &str) -> Result<()> {
        interrupt::check()?;
        self.step += 1;
        let number = format!("{:>2}.", self.step);
        let at = format!("{:.0} s", self.started.elapsed().as_secs_f64());
        let gap = WIDTH.saturating_sub(INDENT + title.chars().count() + at.len());
        line(&format!(
            "\n{} {}{:gap$}{}",
            self.style.paint(Paint::Strong, &number),
            self.style.paint(Paint::Strong, title),
            "",
            self.style.paint(Paint::Dim, &at),
        ))
    }

    /// An explanation.
    pub(super) fn text(&self, text: &str) -> Result<()> {
        self.hanging(Paint::Plain, "", text)
    }

    /// Something that was seen, as it is.
    pub(super) fn seen(&self, text: &str) -> Result<()> {
        self.hanging(Paint::Notice, "  ", text)
    }

    /// Something that is shown verbatim, line by line.
    pub(super) fn verbatim(&self, text: &str) -> Result<()> {
        for each in text.lines() {
            let shown = format!("{:INDENT$}{}", "", self.style.paint(Paint::Dim, each));
            line(shown.trim_end())?;
        }
        Ok(())
    }

    /// A claim: said when it holds, and the end of the demo when it does not.
    pub(super) fn claim(&self, holds: bool, claim: &str, found: impl FnOnce() -> String) -> Result<()> {
        if !holds {
            bail!("this did not happen: {claim}; found instead: {}", found());
        }
        self.hanging(Paint::Good, "ok  ", claim)
    }

    /// Something that has been checked on the way.
    pub(super) fn done(&self, what: &str) -> Result<()> {
        self.hanging(Paint::Good, "ok  ", what)
    }

    /// A command line, as a user would type it.
    pub(super) fn command(&self, words: &str) -> Result<()> {
        line(&format!("\n{}", self.style.paint(Paint::Notice, &format!("$ {words}"))))
    }

    fn hanging(&self, paint: Paint, mark: &str, text: &str) -> Result<()> {
        let indent = INDENT + mark.chars().count();
        for (number, piece) in wrapped(text, WIDTH - indent).iter().enumerate() {
            let start = if number == 0 { mark } else { "" };
            let padding = indent - INDENT - start.chars().count();
            line(&format!("{:INDENT$}{}{:padding$}{piece}", "", self.style.paint(paint, start), ""))?;
        }
        Ok(())
    }
}

/// Writes a line. Not `println!`, which panics when the reader has gone away.
pub(super) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Lines of at most `width` characters, broken between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words_within_the_width() {
        let text = "exactly eight connections from one backend to one destination";
        let lines = wrapped(text, 20);
        assert_eq!(lines, ["exactly eight", "connections from one", "backend to one", "destination"]);
        assert_eq!(lines.join(" "), text);
    }

    #[test]
    fn a_claim_that_does_not_hold_is_an_error_with_what_was_found() {
        let say = Say::new(Style::PLAIN);
        let error = say.claim(false, "nine were refused", || "8".to_owned()).expect_err("it does not hold");
        assert_eq!(error.to_string(), "this did not happen: nine were refused; found instead: 8");
    }
}
