// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

fn plain(columns: &Columns<'_, Vec<String>>, rows: &[Vec<String>]) -> String {
    let mut out = Vec::new();
    table(&mut out, Style::PLAIN, columns, rows).expect("memory");
    String::from_utf8(out).expect("text")
}

fn columns(kinds: &[(bool, u8)]) -> Columns<'static, Vec<String>> {
    kinds.iter().enumerate().fold(Columns::default(), |columns, (at, (right, spare))| {
        let cell = move |row: &Vec<String>| Cell::from(row[at].as_str());
        let columns = if *right { columns.number("N", cell) } else { columns.text("TEXT", cell) };
        columns.spare(*spare)
    })
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

#[test]
fn text_is_left_numbers_are_right_and_no_line_ends_in_blanks() {
    let text = plain(
        &columns(&[(false, 0), (true, 0), (false, 0)]),
        &[row(&["a", "1", "x"]), row(&["longer", "1000", ""]), row(&["", "", ""])],
    );
    assert_eq!(text, "TEXT       N  TEXT\na          1  x\nlonger  1000\n\n");
}

#[test]
fn what_is_spare_goes_before_gaps_and_text() {
    let wide = "x".repeat(40);
    let cells = row(&[&wide, "first out", &wide, "second out", "stays here"]);
    let kinds = [(false, 0), (false, 2), (false, 0), (false, 1), (false, 0)];
    let text = plain(&columns(&kinds), &[cells]);
    assert!(!text.contains("out"), "{text}");
    assert!(text.contains("stays here"), "{text}");
    let text = plain(&columns(&[(false, 0), (false, 0)]), &[row(&[&"x".repeat(90), &"y".repeat(20)])]);
    let line = text.lines().nth(1).expect("a row");
    assert_eq!(line.chars().count(), WIDTH);
    assert!(line.contains("…") && line.ends_with(&"y".repeat(20)), "{line}");
}

#[test]
fn a_last_column_that_wraps_loses_nothing() {
    let words = "word ".repeat(40);
    let columns =
        Columns::<u8>::default().text("A", |_| "name".into()).text("B", |_| words.trim().into()).wraps();
    let mut out = Vec::new();
    table(&mut out, Style::PLAIN, &columns, &[0]).expect("memory");
    let text = String::from_utf8(out).expect("text");
    assert_eq!(text.matches("word").count(), 40, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    assert!(text.lines().skip(2).all(|line| line.starts_with("      word")), "{text}");
}

#[test]
fn nothing_in_a_name_moves_the_cursor() {
    let text = plain(&columns(&[(false, 0)]), &[row(&["a\x1b[2Jb\nc"])]);
    assert_eq!(text, "TEXT\na\u{fffd}[2Jb\u{fffd}c\n");
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let on = |terminal, no_color: Option<&str>, term: Option<&str>| {
        Style::decide(terminal, no_color.map(OsStr::new), term.map(OsStr::new)).colour
    };
    assert!(on(true, None, Some("xterm")));
    assert!(on(true, Some(""), None), "an empty NO_COLOR is none");
    assert!(!on(true, Some("1"), Some("xterm")));
    assert!(!on(true, None, Some("dumb")));
    assert!(!on(false, None, Some("xterm")));
    assert_eq!(Style::PLAIN.paint(Paint::Bad, "x"), "x");
    assert_eq!(Style { colour: true }.paint(Paint::Bad, "x"), "\x1b[31mx\x1b[0m");
    assert_eq!(Style { colour: true }.paint(Paint::Plain, "x"), "x");
}

#[test]
fn colour_changes_no_column() {
    let columns =
        || Columns::default().text("A", |_: &u8| Cell(Paint::Bad, "red".into())).text("B", |_| "x".into());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    table(&mut with, Style { colour: true }, &columns(), &[0]).expect("memory");
    table(&mut without, Style::PLAIN, &columns(), &[0]).expect("memory");
    let mut text = String::from_utf8(with).expect("text");
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m"] {
        assert!(text.contains(code));
        text = text.replace(code, "");
    }
    assert_eq!(text.into_bytes(), without);
}

#[test]
fn json_arrays_are_json_whatever_their_length() {
    for length in 0..4 {
        for one_line in [true, false] {
            let mut out = Vec::new();
            array(&mut out, 0..length, one_line).expect("memory");
            let text = String::from_utf8(out).expect("text");
            let read: Vec<i32> = serde_json::from_str(&text).expect("JSON");
            assert_eq!(read, (0..length).collect::<Vec<_>>());
            assert_eq!(text.lines().count(), if one_line || length == 0 { 1 } else { length as usize + 2 });
        }
    }
}

proptest! {
    #[test]
    fn no_table_is_wider_than_promised(
        kinds in prop::collection::vec((any::<bool>(), 0u8..4), 1..9),
        cells in prop::collection::vec(prop::collection::vec("[a-z…äß \\x00]{0,60}", 9), 0..5),
    ) {
        // Numbers are at most as wide as 2^64 with commas.
        let rows: Vec<Vec<String>> = cells
            .into_iter()
            .map(|row| {
                let fits = |(at, cell): (usize, String)| {
                    let number = kinds.get(at).is_some_and(|(right, _)| *right);
                    cell.chars().take(if number { 11 } else { 60 }).collect()
                };
                row.into_iter().enumerate().map(fits).collect()
            })
            .collect();
        let text = plain(&columns(&kinds), &rows);
        prop_assert_eq!(text.lines().count(), if rows.is_empty() { 0 } else { rows.len() + 1 });
        for line in text.lines() {
            prop_assert!(line.chars().count() <= WIDTH, "{}", line);
            prop_assert!(!line.ends_with(' ') || rows.iter().flatten().any(|cell| cell.ends_with(' ')));
        }
    }

    #[test]
    fn facts_wrap_without_losing_a_word(words in prop::collection::vec("[a-z]{1,130}", 1..40)) {
        let mut out = Vec::new();
        fact(&mut out, Style::PLAIN, "label", &words.join(" ").into()).expect("memory");
        let text = String::from_utf8(out).expect("text");
        for line in text.lines() {
            prop_assert!(line.chars().count() <= WIDTH, "{}", line);
        }
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        prop_assert_eq!(letters(&text), format!("label{}", words.concat()));
    }
}

#[test]
fn of_an_error_of_several_lines_the_first_is_shown() {
    let shown = |text: &str| {
        let mut out = Vec::new();
        fact(&mut out, Style::PLAIN, "error", &text.into()).expect("memory");
        String::from_utf8(out).expect("text")
    };
    assert_eq!(shown("one\r\n   |\n17 | x\n"), "error         one …\n");
    assert_eq!(shown("one\n"), "error         one\n");
    assert_eq!(shown("a\x1b[2Jb\nc"), "error         a\u{fffd}[2Jb …\n");
}
