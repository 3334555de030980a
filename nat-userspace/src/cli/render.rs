// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables of at most [`WIDTH`] columns, and JSON.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    io::{self, IsTerminal, Write},
    net::Ipv4Addr,
};

use serde::Serialize;

use crate::view::instance::Endpoint;

/// Characters in a line of a table.
pub const WIDTH: usize = 100;

/// A text column is not made narrower than this.
const NARROWEST: usize = 6;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Without colour.
    pub const PLAIN: Self = Self { colour: false };

    /// For standard output: colour on a terminal, unless `NO_COLOR` is set (no-color.org) or it can do none.
    #[must_use]
    pub fn of_stdout() -> Self {
        let (no_color, term) = (env::var_os("NO_COLOR"), env::var_os("TERM"));
        Self::decide(io::stdout().is_terminal(), no_color.as_deref(), term.as_deref())
    }

    /// From what is known about the output.
    #[must_use]
    pub fn decide(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let unwanted = no_color.is_some_and(|value| !value.is_empty());
        Self { colour: terminal && !unwanted && term.is_none_or(|term| term != "dumb") }
    }

    /// `text` in the colour of `paint`.
    #[must_use]
    pub fn paint<'a>(self, paint: Paint, text: &'a str) -> Cow<'a, str> {
        let code = match paint {
            Paint::Plain => return Cow::Borrowed(text),
            Paint::Strong => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Notice => "33",
            Paint::Bad => "31",
        };
        if self.colour { Cow::Owned(format!("\x1b[{code}m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
    }
}

/// What a piece of text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paint {
    /// Text.
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// Of little interest.
    Dim,
    /// As it should be.
    Good,
    /// Worth a look.
    Notice,
    /// Wrong.
    Bad,
}

/// A piece of text with its colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell(pub Paint, pub String);

macro_rules! plain {
    ($($ty:ty),*) => {
        $(impl From<$ty> for Cell {
            fn from(text: $ty) -> Self {
                Self(Paint::Plain, text.to_string())
            }
        })*
    };
}
plain!(&str, String, u16, Ipv4Addr, Endpoint);

impl Cell {
    /// Names come from configuration files: nothing in them may move the cursor.
    fn text(&self) -> Cow<'_, str> {
        if self.1.chars().any(char::is_control) {
            return Cow::Owned(self.1.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect());
        }
        Cow::Borrowed(&self.1)
    }

    /// The first line only, with a sign that there are more: errors of a configuration quote it.
    fn first_line(&self) -> Self {
        let text = self.1.trim();
        let first = text.lines().next().unwrap_or_default();
        let more = if text.contains('\n') { " …" } else { "" };
        Self(self.0, format!("{}{more}", first.trim_end()))
    }
}

/// Makes the cell of a row.
type Contents<'a, T> = Box<dyn Fn(&T) -> Cell + 'a>;

struct Column<'a, T> {
    title: &'static str,
    right: bool,
    wraps: bool,
    spare: u8,
    cell: Contents<'a, T>,
}

/// The columns of a table over rows of `T`.
pub struct Columns<'a, T>(Vec<Column<'a, T>>);

impl<T> Default for Columns<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T> Columns<'a, T> {
    /// Adds text, to the left.
    #[must_use]
    pub fn text(self, title: &'static str, cell: impl Fn(&T) -> Cell + 'a) -> Self {
        self.add(title, false, cell)
    }

    /// Adds numbers, to the right; never shortened.
    #[must_use]
    pub fn number(self, title: &'static str, cell: impl Fn(&T) -> Cell + 'a) -> Self {
        self.add(title, true, cell)
    }

    fn add(mut self, title: &'static str, right: bool, cell: impl Fn(&T) -> Cell + 'a) -> Self {
        self.0.push(Column { title, right, wraps: false, spare: 0, cell: Box::new(cell) });
        self
    }

    /// The column just added is the last one, and continues on further lines where it is too long.
    #[must_use]
    pub fn wraps(mut self) -> Self {
        if let Some(last) = self.0.last_mut() {
            last.wraps = true;
        }
        self
    }

    /// The column just added may be left out when the table is too wide; the highest `order` first.
    #[must_use]
    pub fn spare(mut self, order: u8) -> Self {
        if let Some(last) = self.0.last_mut() {
            last.spare = order;
        }
        self
    }
}

fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// Writes a table; nothing when there are no rows. Cells are made twice, once to measure, so that a million rows need no memory.
///
/// # Errors
///
/// Of the writer.
pub fn table<T>(out: &mut dyn Write, style: Style, columns: &Columns<'_, T>, rows: &[T]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let measured = |column: &Column<'_, T>| {
        let cells = rows.iter().map(|row| width_of(&(column.cell)(row).text()));
        cells.chain([width_of(column.title)]).max().unwrap_or(0)
    };
    let mut shown: Vec<_> = columns.0.iter().map(|column| (column, measured(column))).collect();
    let gap = fit(&mut shown);
    let titles: Vec<_> =
        shown.iter().map(|(column, _)| Cell(Paint::Strong, column.title.to_owned())).collect();
    line(out, style, &shown, &titles, gap)?;
    for row in rows {
        let cells: Vec<_> = shown.iter().map(|(column, _)| (column.cell)(row)).collect();
        line(out, style, &shown, &cells, gap)?;
    }
    Ok(())
}

/// Leaves out spare columns until a line fits with the gaps narrowed, then shortens the widest text. Returns the gap.
fn fit<T>(shown: &mut Vec<(&Column<'_, T>, usize)>) -> usize {
    let total = |shown: &[(&Column<'_, T>, usize)], gap: usize| {
        shown.iter().map(|(_, width)| width).sum::<usize>() + gap * shown.len().saturating_sub(1)
    };
    while total(shown, 1) > WIDTH {
        let spare = (0..shown.len()).filter(|at| shown[*at].0.spare > 0).max_by_key(|at| shown[*at].0.spare);
        let Some(spare) = spare else { break };
        shown.remove(spare);
    }
    let wraps = shown.iter().any(|(column, _)| column.wraps);
    let gap = if total(shown, 2) > WIDTH && !wraps { 1 } else { 2 };
    while total(shown, gap) > WIDTH {
        let text = shown.iter_mut().filter(|(column, width)| !column.right && *width > NARROWEST);
        let Some((_, width)) = text.max_by_key(|(_, width)| *width) else { break };
        *width -= 1;
    }
    gap
}

fn line<T>(
    out: &mut dyn Write,
    style: Style,
    columns: &[(&Column<'_, T>, usize)],
    cells: &[Cell],
    gap: usize,
) -> io::Result<()> {
    let mut pending = 0;
    let mut rest = (0, Vec::new());
    for ((column, width), cell) in columns.iter().zip(cells) {
        let mut text = cell.text();
        if column.wraps {
            let mut pieces = wrapped(&text, *width).into_iter();
            text = Cow::Owned(pieces.next().unwrap_or_default());
            let before = columns.iter().map(|(_, width)| width + gap).sum::<usize>() - width - gap;
            rest = (before, pieces.map(|piece| (cell.0, piece)).collect());
        }
        let text = shortened(text, *width);
        let padding = width.saturating_sub(width_of(&text));
        let before = pending + if column.right { padding } else { 0 };
        if text.is_empty() {
            pending = before;
        } else {
            write!(out, "{:before$}{}", "", style.paint(cell.0, &text))?;
            pending = 0;
        }
        // Held back until something follows: no line ends in blanks.
        pending += gap + if column.right { 0 } else { padding };
    }
    writeln!(out)?;
    let (before, pieces) = rest;
    for (paint, piece) in pieces {
        writeln!(out, "{:before$}{}", "", style.paint(paint, &piece))?;
    }
    Ok(())
}

fn shortened(text: Cow<'_, str>, width: usize) -> Cow<'_, str> {
    if width_of(&text) <= width {
        return text;
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    Cow::Owned(kept + "…")
}

/// Writes `label` and the first line of `value`, which continues on further lines below itself where it is too long.
///
/// # Errors
///
/// Of the writer.
pub fn fact(out: &mut dyn Write, style: Style, label: &str, value: &Cell) -> io::Result<()> {
    const INDENT: usize = 14;
    let mut start = style.paint(Paint::Strong, label).into_owned();
    let mut used = width_of(label);
    for piece in wrapped(&value.first_line().text(), WIDTH - INDENT) {
        let padding = INDENT.saturating_sub(used).max(1);
        writeln!(out, "{start}{:padding$}{}", "", style.paint(value.0, &piece))?;
        (start, used) = (String::new(), 0);
    }
    Ok(())
}

/// Pieces of at most `width` characters, broken between words where possible; at least one.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        let current = lines.last().map_or(0, |line| width_of(line));
        if current > 0 && current + 1 + word.len() > width {
            lines.push(String::new());
        } else if current > 0
            && let Some(line) = lines.last_mut()
        {
            line.push(' ');
        }
        while word.len() > width {
            let rest = word.split_off(width);
            lines.push(word.into_iter().collect());
            word = rest;
        }
        match lines.last_mut() {
            Some(line) if width_of(line) + word.len() <= width => line.extend(word),
            _ => lines.push(word.into_iter().collect()),
        }
    }
    if lines.len() > 1 {
        lines.retain(|line| !line.is_empty());
    }
    lines
}

/// Writes a JSON document: indented, or on one line.
///
/// # Errors
///
/// Of the writer.
pub fn document<T: Serialize>(out: &mut dyn Write, document: &T, one_line: bool) -> anyhow::Result<()> {
    if one_line {
        serde_json::to_writer(&mut *out, document)?;
    } else {
        serde_json::to_writer_pretty(&mut *out, document)?;
    }
    Ok(writeln!(out)?)
}

/// Writes a JSON array, an element a line, or all on one line; never held in memory.
///
/// # Errors
///
/// Of the writer.
pub fn array<T: Serialize>(
    out: &mut dyn Write,
    rows: impl Iterator<Item = T>,
    one_line: bool,
) -> anyhow::Result<()> {
    let newline = if one_line { "" } else { "\n" };
    let mut separator = "[";
    for row in rows {
        write!(out, "{separator}{newline}")?;
        serde_json::to_writer(&mut *out, &row)?;
        separator = ",";
    }
    if separator == "[" {
        write!(out, "[")?;
    } else {
        write!(out, "{newline}")?;
    }
    Ok(writeln!(out, "]")?)
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
