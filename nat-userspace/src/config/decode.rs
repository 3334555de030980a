// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads keys and types out of a parsed file, and reports every one that is wrong instead of only the first.
//!
//! `serde` ends at the first error, cannot point at a key and speaks of `u32` and `seq`; this goes over the parser's
//! own tree of spanned values.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    names::did_you_mean,
    report::{Diagnostic, Severity, Source},
};

/// A key that a table may have.
pub(super) struct Key {
    /// The key.
    pub(super) name: &'static str,
    /// A right value, for help.
    pub(super) example: &'static str,
}

/// The keys of a table.
pub(super) struct Keys {
    /// The table as written: `[gateway]`, `[[pool]]`.
    pub(super) table: &'static str,
    /// Keys that are read.
    pub(super) supported: &'static [Key],
    /// Keys that are part of the format but not of this version, and what to do instead.
    pub(super) planned: &'static [(&'static str, &'static str)],
}

/// Collects what is found.
pub(super) struct Report {
    source: Arc<Source>,
    found: Vec<Diagnostic>,
}

impl Report {
    pub(super) const fn new(source: Arc<Source>) -> Self {
        Self { source, found: Vec::new() }
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        self.add(Severity::Error, span, message)
    }

    pub(super) fn warning(&mut self, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        self.add(Severity::Warning, span, message)
    }

    fn add(&mut self, severity: Severity, span: Range<usize>, message: impl Into<String>) -> &mut Diagnostic {
        let index = self.found.len();
        self.found.push(Diagnostic::new(&self.source, severity, span, message));
        &mut self.found[index]
    }

    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Errors and warnings, each in the order of the file.
    pub(super) fn into_parts(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        self.found.sort_by_key(Diagnostic::start);
        self.found.into_iter().partition(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// A table whose keys have been checked.
pub(super) struct Section<'a, 'i> {
    keys: &'static Keys,
    table: &'a DeTable<'i>,
    /// Where its header is.
    pub(super) span: Range<usize>,
}

type Value<'i> = Spanned<DeValue<'i>>;

/// A port or a range as written.
pub(super) enum PortEntry {
    /// A number.
    Number(i64),
    /// `"8080"` or `"5000-5100"`.
    Text(String),
}

/// A value that is a word or a whole number.
pub(super) enum WordOrNumber {
    /// A string.
    Word(String),
    /// A number.
    Number(i64),
}

fn whole_number(value: &DeValue<'_>) -> Option<i64> {
    value.as_integer().and_then(|integer| i64::from_str_radix(integer.as_str(), integer.radix()).ok())
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn new(
        table: &'a DeTable<'i>,
        span: Range<usize>,
        keys: &'static Keys,
        report: &mut Report,
    ) -> Self {
        for (key, _) in table {
            let name: &str = key.get_ref();
            if keys.supported.iter().any(|known| known.name == name) {
                continue;
            }
            if let Some((_, instead)) = keys.planned.iter().find(|(planned, _)| *planned == name) {
                report
                    .error(key.span(), format!("`{name}` is not supported by this version of natgw"))
                    .help(*instead);
                continue;
            }
            let known = keys.supported.iter().map(|key| key.name);
            let help = did_you_mean(name, known.clone()).unwrap_or_else(|| {
                let all: Vec<String> = known.map(|name| format!("`{name}`")).collect();
                format!("known here: {}", all.join(", "))
            });
            report.error(key.span(), format!("unknown key `{name}` in {}", keys.table)).help(help);
        }
        Self { keys, table, span }
    }

    fn value(&self, key: &'static str) -> Option<&'a Value<'i>> {
        self.table.get(key)
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Where the value of `key` is.
    pub(super) fn place(&self, key: &'static str) -> Option<Range<usize>> {
        self.value(key).map(Spanned::span)
    }

    /// Entries of the list `key`.
    pub(super) fn length(&self, key: &'static str) -> Option<usize> {
        Some(self.value(key)?.get_ref().as_array()?.len())
    }

    fn help(&self, key: &'static str) -> String {
        let example = self.keys.supported.iter().find(|known| known.name == key).map(|key| key.example);
        format!("for example `{key} = {}`", example.unwrap_or_default())
    }

    fn table_help(&self, key: &'static str, keys: &Keys) -> String {
        if keys.table.starts_with("[[") {
            format!("write `{}` above each", keys.table)
        } else {
            self.help(key)
        }
    }

    /// Reports `key` if it is absent.
    pub(super) fn require(&self, key: &'static str, report: &mut Report) {
        if self.value(key).is_none() {
            report
                .error(self.span.clone(), format!("`{key}` is missing in {}", self.keys.table))
                .help(self.help(key));
        }
    }

    fn wrong_type(&self, key: &'static str, wanted: &str, found: &Value<'i>, report: &mut Report) {
        let found_type = type_name(found.get_ref());
        report
            .error(found.span(), format!("`{key}` must be {wanted}, found {found_type}"))
            .help(self.help(key));
    }

    pub(super) fn string(&self, key: &'static str, report: &mut Report) -> Option<Spanned<String>> {
        let value = self.value(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, "a string", value, report);
            return None;
        };
        Some(Spanned::new(value.span(), text.to_owned()))
    }

    pub(super) fn boolean(&self, key: &'static str, report: &mut Report) -> Option<Spanned<bool>> {
        let value = self.value(key)?;
        let Some(truth) = value.get_ref().as_bool() else {
            self.wrong_type(key, "`true` or `false`", value, report);
            return None;
        };
        Some(Spanned::new(value.span(), truth))
    }

    pub(super) fn integer(&self, key: &'static str, report: &mut Report) -> Option<Spanned<i64>> {
        let value = self.value(key)?;
        let Some(number) = whole_number(value.get_ref()) else {
            self.wrong_type(key, "a whole number", value, report);
            return None;
        };
        Some(Spanned::new(value.span(), number))
    }

    /// A string or a whole number; `wanted` says so in words.
    pub(super) fn word_or_number(
        &self,
        key: &'static str,
        wanted: &str,
        report: &mut Report,
    ) -> Option<Spanned<WordOrNumber>> {
        let value = self.value(key)?;
        let word = value.get_ref().as_str().map(|text| WordOrNumber::Word(text.to_owned()));
        let found = word.or_else(|| whole_number(value.get_ref()).map(WordOrNumber::Number));
        if found.is_none() {
            self.wrong_type(key, wanted, value, report);
        }
        found.map(|found| Spanned::new(value.span(), found))
    }

    pub(super) fn array(
        &self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Spanned<Vec<&'a Value<'i>>>> {
        let value = self.value(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, "a list", value, report);
            return None;
        };
        Some(Spanned::new(value.span(), array.iter().collect()))
    }

    pub(super) fn strings(
        &self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Spanned<Vec<Spanned<String>>>> {
        let array = self.array(key, report)?;
        let span = array.span();
        let mut strings = Vec::new();
        let mut complete = true;
        for value in array.into_inner() {
            match value.get_ref().as_str() {
                Some(text) => strings.push(Spanned::new(value.span(), text.to_owned())),
                None => {
                    complete = false;
                    self.wrong_type(key, "a list of strings", value, report);
                }
            }
        }
        complete.then(|| Spanned::new(span, strings))
    }

    /// Ports: numbers, and texts that stand for a port or a range.
    pub(super) fn ports(
        &self,
        key: &'static str,
        report: &mut Report,
    ) -> Option<Spanned<Vec<Spanned<PortEntry>>>> {
        let array = self.array(key, report)?;
        let span = array.span();
        let mut entries = Vec::new();
        for value in array.into_inner() {
            let text = value.get_ref().as_str().map(|text| PortEntry::Text(text.to_owned()));
            match text.or_else(|| whole_number(value.get_ref()).map(PortEntry::Number)) {
                Some(entry) => entries.push(Spanned::new(value.span(), entry)),
                None => self.wrong_type(key, "a list of ports and ranges", value, report),
            }
        }
        Some(Spanned::new(span, entries))
    }

    /// The tables of `[[key]]`.
    pub(super) fn tables(
        &self,
        key: &'static str,
        keys: &'static Keys,
        report: &mut Report,
    ) -> Vec<Section<'a, 'i>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let values = value.get_ref().as_array().map(|array| array.iter().collect::<Vec<_>>());
        let Some(values) = values else {
            let found = type_name(value.get_ref());
            report
                .error(value.span(), format!("`{key}` must be a list of tables, found {found}"))
                .help(self.table_help(key, keys));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for value in values {
            match value.get_ref().as_table() {
                Some(table) => sections.push(Section::new(table, value.span(), keys, report)),
                None => {
                    let found = type_name(value.get_ref());
                    report
                        .error(value.span(), format!("`{key}` must be a list of tables, found {found} in it"))
                        .help(self.table_help(key, keys));
                }
            }
        }
        sections
    }

    /// The table of `[key]`.
    pub(super) fn table(
        &self,
        key: &'static str,
        keys: &'static Keys,
        report: &mut Report,
    ) -> Option<Section<'a, 'i>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let found = type_name(value.get_ref());
            report
                .error(value.span(), format!("`{key}` must be a table, found {found}"))
                .help(format!("write `{}`", keys.table));
            return None;
        };
        Some(Section::new(table, value.span(), keys, report))
    }
}

/// A value's type, with its article.
pub(super) const fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
