// SPDX-License-Identifier: MIT OR Apache-2.0
//! What names may look like, and which known one an unknown one may have been meant to be.

/// `did you mean …?` for the known name nearest to `name`, if one is near.
pub(super) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let reach = (name.chars().count() / 3).max(1);
    known
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= reach)
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// Why `name` cannot be the name of an object whose table field has `limit` bytes.
///
/// The characters are those that need no quoting in a shell, a metric label or a filter.
pub(super) fn object_name_fault(name: &str, limit: usize) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    fault(name, limit, allowed, "names consist of letters, digits, `.`, `_` and `-`")
}

/// Why `name` cannot be the name of an instance: it becomes a file name.
pub(super) fn instance_name_fault(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    fault(name, 32, allowed, "names consist of lower-case letters, digits, `_` and `-`")
}

/// Why `name` cannot be the name of a network interface (`dev_valid_name` in Linux' net/core/dev.c).
pub(super) fn interface_name_fault(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some(format!("`{name}` cannot be the name of an interface"));
    }
    let allowed = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':') && !c.is_control();
    fault(name, 15, allowed, "interface names have no spaces, `/` or `:`")
}

fn fault(name: &str, limit: usize, allowed: impl Fn(char) -> bool, rule: &str) -> Option<String> {
    if name.is_empty() {
        return Some("a name must not be empty".to_owned());
    }
    if name.len() > limit {
        return Some(format!("name `{name}` is {} bytes long, at most {limit} are possible", name.len()));
    }
    let wrong = name.chars().find(|c| !allowed(*c))?;
    Some(format!("name `{name}` contains {wrong:?}; {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("web", "web", 0), ("wbe", "web", 1), ("we", "web", 1), ("webb", "web", 1), ("", "ab", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["web", "database"];
        assert_eq!(did_you_mean("wbe", known.into_iter()).as_deref(), Some("did you mean `web`?"));
        assert_eq!(did_you_mean("databaze", known.into_iter()).as_deref(), Some("did you mean `database`?"));
        assert_eq!(did_you_mean("cache", known.into_iter()), None);
    }
}
