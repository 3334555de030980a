// SPDX-License-Identifier: MIT OR Apache-2.0
//! What settings and policies say, in a few words. Of what stays the same, nothing is said.

use std::fmt::Display;

use crate::{
    config::grouped,
    plan::diff::{
        policies::{Policy, Terms},
        settings::{Setting, Value},
    },
};

/// Entries of a list that are shown.
const ENTRIES: usize = 3;
/// There is none.
pub(super) const NONE: &str = "-";

/// `setting` before and after.
pub(super) fn setting(setting: &Setting) -> [String; 2] {
    let sides = [&setting.before, &setting.after];
    if let [Some(Value::List(before)), Some(Value::List(after))] = sides {
        let words = [only(before, after), only(after, before)];
        if words.iter().any(|list| list != NONE) {
            return words;
        }
    }
    sides.map(|value| match value {
        None => NONE.to_owned(),
        Some(Value::Number(number)) => grouped(*number),
        Some(Value::Word(word)) => (*word).to_owned(),
        Some(Value::Text(text)) => text.clone(),
        Some(Value::List(list)) => some(list),
    })
}

/// A policy before and after.
pub(super) fn policy(policy: &Policy) -> [String; 2] {
    let side = |terms: &Option<Terms>, other: &Option<Terms>| match terms {
        None => NONE.to_owned(),
        Some(terms) => words(terms, other.as_ref()),
    };
    [side(&policy.before, &policy.after), side(&policy.after, &policy.before)]
}

fn words(terms: &Terms, other: Option<&Terms>) -> String {
    let mut parts = Vec::new();
    let differs = |differs: &dyn Fn(&Terms) -> bool| other.is_none_or(differs);
    if differs(&|other| (other.action, other.direction) != (terms.action, terms.direction)) {
        parts.push(match terms.action {
            "deny" => format!("deny {}", terms.direction),
            action => action.to_owned(),
        });
    }
    if differs(&|other| other.prefixes != terms.prefixes) {
        parts.push(only(&terms.prefixes, other.map_or(&[], |other| &other.prefixes)));
    }
    if differs(&|other| (&other.protocols, &other.ports) != (&terms.protocols, &terms.ports)) {
        let ports = terms.ports.as_ref().map(|ports| {
            let run = |[first, last]: &[u16; 2]| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            };
            some(&ports.iter().map(run).collect::<Vec<_>>())
        });
        parts.push(
            [Some(terms.protocols.join(" ")), ports].into_iter().flatten().collect::<Vec<_>>().join(" "),
        );
    }
    if differs(&|other| other.backends != terms.backends) {
        parts.push(match &terms.backends {
            None => "all backends".to_owned(),
            Some(all) => match other.and_then(|other| other.backends.as_ref()) {
                None => format!("of {}", some(all)),
                Some(others) => format!("of {}", only(all, others)),
            },
        });
    }
    parts.join("; ")
}

/// What `list` has and `other` does not.
fn only<T: PartialEq + Display>(list: &[T], other: &[T]) -> String {
    let own: Vec<&T> = list.iter().filter(|entry| !other.contains(entry)).collect();
    some(&own)
}

fn some<T: Display>(list: &[T]) -> String {
    if list.is_empty() {
        return NONE.to_owned();
    }
    let mut text: Vec<String> = list.iter().take(ENTRIES).map(T::to_string).collect();
    if list.len() > ENTRIES {
        text.push(format!("+{}", list.len() - ENTRIES));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(prefixes: &[&str], ports: Option<Vec<[u16; 2]>>) -> Terms {
        Terms {
            action: "deny",
            direction: "outbound",
            prefixes: prefixes.iter().map(|net| net.parse().expect("a prefix")).collect(),
            protocols: vec!["tcp"],
            ports,
            backends: None,
        }
    }

    #[test]
    fn a_policy_that_changes_says_what() {
        let long = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        let before = terms(&long, Some(vec![[25, 25]]));
        let alone = Policy { policy: "p".to_owned(), before: None, after: Some(before.clone()) };
        let said = "deny outbound; 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16; tcp 25; all backends";
        assert_eq!(policy(&alone), ["-", said]);
        let mut after = terms(&[&long[..2], &["198.51.100.0/24"]].concat(), Some(vec![[25, 25], [465, 587]]));
        after.backends = Some(vec!["10.0.0.4".parse().expect("an address")]);
        let both = Policy { before: Some(before), after: Some(after), ..alone };
        let wanted =
            ["192.168.0.0/16; tcp 25; all backends", "198.51.100.0/24; tcp 25, 465-587; of 10.0.0.4"];
        assert_eq!(policy(&both), wanted);
    }

    #[test]
    fn a_setting_says_what_differs() {
        let list = |texts: &[&str]| Some(Value::List(texts.iter().map(|text| (*text).to_owned()).collect()));
        let of = |before, after| setting(&Setting { setting: "s", before, after });
        assert_eq!(of(None, Some(Value::Number(5000))), ["-", "5,000"]);
        assert_eq!(of(Some(Value::Word("silent")), Some(Value::Word("tcp-reset"))), ["silent", "tcp-reset"]);
        assert_eq!(of(list(&["a", "b", "c"]), list(&["a", "d", "c"])), ["b", "d"]);
        assert_eq!(of(list(&["a", "b"]), list(&["b", "a"])), ["a, b", "b, a"]);
        assert_eq!(of(None, list(&["a", "b", "c", "d", "e"])), ["-", "a, b, c, +2"]);
    }
}
