// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading libtest's output: what passed, failed and was skipped, and which lines are worth showing.

/// What a test prints, with its name and the reason, when it cannot run here.
const SKIP_MARK: &str = "SKIPPED: ";

/// Sums over test binaries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// Where and what, one for each failure.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        let Self { passed, failed, skipped, failures } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
        self.failures.extend(failures);
    }

    pub(crate) fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }
}

/// Whether a line is for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Yes,
    No,
}

/// Reads the merged output of one command line by line.
pub(super) struct Reader {
    label: String,
    /// Binary that cargo announced last, if cargo runs them.
    suite: String,
    tally: Tally,
    /// Inside the output of tests that passed: of interest only for skips.
    in_successes: bool,
    /// Skips seen in the binary that is running; libtest counts these tests as passed.
    skipped_here: usize,
    /// Announced by libtest, result line still to come.
    unfinished: bool,
    /// Any binary has got as far as running.
    started: bool,
    /// Test that libtest named last without an outcome, which it does with one thread.
    running: Option<String>,
}

impl Reader {
    pub(super) fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            suite: String::new(),
            tally: Tally::default(),
            in_successes: false,
            skipped_here: 0,
            unfinished: false,
            started: false,
            running: None,
        }
    }

    pub(super) fn feed(&mut self, line: &str) -> Show {
        let text = line.trim();
        self.running =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... ")).map(str::to_owned);
        if let Some(suite) = text.strip_prefix("Running ").or_else(|| text.strip_prefix("Doc-tests ")) {
            self.suite = suite_name(suite);
        } else if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.unfinished = true;
            self.started = true;
            self.skipped_here = 0;
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if line.contains(SKIP_MARK) {
            self.skipped_here += 1;
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.tally.failures.push(format!("{}{name}", self.place()));
        } else if self.in_successes {
            return Show::No;
        }
        if self.in_successes && !line.contains(SKIP_MARK) { Show::No } else { Show::Yes }
    }

    /// `ok. 3 passed; 1 failed; 0 ignored; …`
    fn result(&mut self, result: &str) {
        let count = |what: &str| {
            let part = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
            part.and_then(|number| number.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        self.in_successes = false;
        self.unfinished = false;
        self.tally.passed += count(" passed").saturating_sub(self.skipped_here);
        self.tally.failed += count(" failed");
        self.tally.skipped += count(" ignored") + self.skipped_here;
        self.skipped_here = 0;
    }

    /// The command has ended: one that died without a result line is a failure too.
    pub(super) fn finish(mut self, success: bool, status: &str) -> Tally {
        if self.unfinished || (!success && self.tally.failed == 0) {
            let during = self.running.take().map(|test| format!(" while running {test}")).unwrap_or_default();
            let what = if self.started {
                format!("{}ended with {status}{during}, before its results", self.place())
            } else {
                format!("{}did not compile or start ({status})", self.place())
            };
            self.tally.failed += 1;
            self.tally.failures.push(what);
        }
        self.tally
    }

    fn place(&self) -> String {
        if self.suite.is_empty() {
            format!("{}: ", self.label)
        } else {
            format!("{}: {}: ", self.label, self.suite)
        }
    }
}

/// `unittests src/main.rs (target/debug/deps/xtask-2eb5492b)` → `xtask`: the path alone is in every crate.
fn suite_name(announced: &str) -> String {
    let binary = announced.rsplit_once('/').and_then(|(_, file)| file.trim_end_matches(')').rsplit_once('-'));
    binary.map_or(announced, |(name, _hash)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, success: bool) -> (Tally, Vec<String>) {
        let mut reader = Reader::new("netns: basic");
        let shown = text.lines().filter(|line| reader.feed(line) == Show::Yes).map(str::to_owned).collect();
        (reader.finish(success, "exit status: 101"), shown)
    }

    const MIXED: &str = "running 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... FAILED\n\nsuccesses:\n\n\
        ---- a stdout ----\nchatter\n---- b stdout ----\nSKIPPED: b: no second processor\n\nsuccesses:\n    a\n    b\n\n\
        failures:\n\n---- c stdout ----\nleft: 1\n\nfailures:\n    c\n\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";

    #[test]
    fn skips_are_counted_apart_from_passes_and_failures_are_named() {
        let (tally, shown) = read(MIXED, false);
        let failures = vec!["netns: basic: c".to_owned()];
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 1, failures });
        assert_eq!(tally.closing_line(), "1 passed, 1 failed, 1 skipped");
        assert!(shown.iter().any(|line| line.starts_with("SKIPPED: b")));
        assert!(shown.iter().any(|line| line == "left: 1"));
        assert!(!shown.iter().any(|line| line == "chatter"));
    }

    #[test]
    fn several_binaries_add_up_and_cargo_names_the_suite() {
        let text = "     Running unittests src/lib.rs (target/debug/deps/x-1)\nrunning 1 test\ntest a ... ok\n\
            test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             Running tests/y.rs (target/debug/deps/y-1)\nrunning 1 test\ntest b ... FAILED\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let (tally, _) = read(text, false);
        let failures = vec!["netns: basic: y: b".to_owned()];
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 2, failures });
    }

    #[test]
    fn a_binary_that_dies_counts_as_a_failure() {
        let (tally, _) = read("running 2 tests\ntest a ... ok\n", false);
        assert_eq!((tally.passed, tally.failed), (0, 1));
        assert_eq!(tally.failures, ["netns: basic: ended with exit status: 101, before its results"]);
        let (named, _) = read("running 2 tests\ntest a ... ok\ntest b ... \n", false);
        assert_eq!(
            named.failures,
            ["netns: basic: ended with exit status: 101 while running b, before its results"]
        );
        let (compile_error, _) = read("error[E0425]: cannot find value\n", false);
        assert_eq!(compile_error.failed, 1);
        assert_eq!(compile_error.failures, ["netns: basic: did not compile or start (exit status: 101)"]);
    }

    #[test]
    fn nothing_run_is_told_from_everything_passed() {
        assert!(read("", true).0.is_empty());
        assert!(!read(MIXED, false).0.is_empty());
    }
}
