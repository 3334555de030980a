// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors and warnings that point at the text they are about.

use std::{fmt, ops::Range, sync::Arc};

/// A configuration file as read.
#[derive(Debug)]
pub struct Source {
    /// Path as the operator gave it.
    pub file: String,
    /// Content.
    pub text: String,
}

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration can be used, but may not be what was meant.
    Warning,
}

/// One finding, with the place it is about and, where two places disagree, the other one.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong: one line, no full stop.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
    span: Range<usize>,
    others: Vec<(Range<usize>, String)>,
    source: Arc<Source>,
}

/// A finding that does not prevent the use of the configuration.
pub type Warning = Diagnostic;

/// Line and column of a place, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Diagnostic {
    pub(super) fn new(
        source: &Arc<Source>,
        severity: Severity,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            message: message.into(),
            help: None,
            span,
            others: Vec::new(),
            source: Arc::clone(source),
        }
    }

    /// Adds what would be right.
    pub(super) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place that has a part in it. `label` stands beside its underline, followed by the line.
    pub(super) fn also(&mut self, span: Range<usize>, label: impl Into<String>) -> &mut Self {
        self.others.push((span, label.into()));
        self
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.source.line_of(self.span.start).1
    }

    pub(super) const fn start(&self) -> usize {
        self.span.start
    }
}

impl Source {
    /// The line around byte `offset`, and where in it the offset is.
    fn line_of(&self, offset: usize) -> (&str, Place) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let start = self.text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[offset..].find('\n').map_or(self.text.len(), |newline| offset + newline);
        let line = self.text[..start].matches('\n').count() + 1;
        let column = self.text[start..offset].chars().count() + 1;
        (self.text[start..end].trim_end_matches('\r'), Place { line, column })
    }

    /// Writes the line with `mark` under the part of `span` that is on it.
    fn excerpt(
        &self,
        f: &mut fmt::Formatter<'_>,
        span: &Range<usize>,
        gutter: usize,
        mark: char,
        label: &str,
    ) -> fmt::Result {
        let (line, place) = self.line_of(span.start);
        let before: String =
            line.chars().take(place.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let marked = self.text.get(span.clone()).unwrap_or_default();
        let width = marked.split(['\r', '\n']).next().unwrap_or_default().chars().count().max(1);
        let underline: String = std::iter::repeat_n(mark, width).collect();
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{:>gutter$} | {line}", place.line)?;
        write!(f, "{:gutter$} | {before}{underline}", "")?;
        if !label.is_empty() {
            write!(f, " {label}")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place();
        let warning = if self.severity == Severity::Warning { "warning: " } else { "" };
        writeln!(f, "{}:{line}:{column}: {warning}{}", self.source.file, self.message)?;
        let last =
            self.others.iter().map(|(span, _)| self.source.line_of(span.start).1.line).fold(line, usize::max);
        let gutter = last.to_string().len();
        self.source.excerpt(f, &self.span, gutter, '^', "")?;
        for (span, label) in &self.others {
            let other = self.source.line_of(span.start).1.line;
            self.source.excerpt(f, span, gutter, '-', &format!("{label} (line {other})"))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "help: {help}")?;
        }
        Ok(())
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read configuration `{file}`: {source}")]
    Read {
        /// Path.
        file: String,
        /// Reason.
        source: std::io::Error,
    },
    /// The content is not right.
    #[error("{}", Rendered(errors))]
    Invalid {
        /// What has to be changed, in the order of the file; never empty.
        errors: Vec<Diagnostic>,
    },
}

struct Rendered<'a>(&'a [Diagnostic]);

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(errors) = self;
        for diagnostic in *errors {
            writeln!(f, "{diagnostic}")?;
        }
        match errors.len() {
            1 => write!(f, "1 error in the configuration"),
            count => write!(f, "{count} errors in the configuration"),
        }
    }
}
