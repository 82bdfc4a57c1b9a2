//! What came of the steps: counts, times, and everything that was skipped with its reason.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use crate::steps::{Context, Step};

/// How many checks passed, failed, were skipped. A check is a test function, a bench, a client
/// case, or a whole step that knows no smaller unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// One check that passed.
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };

    /// Reads one line of a test program's output; lines that report nothing count nothing.
    ///
    /// Understood are libtest's summary, criterion's `Success` in test mode, and the
    /// `ok | FAIL | skip` lines of the scripts in `tests/clients`.
    pub(crate) fn of_line(line: &str) -> Self {
        if let Some(summary) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let mut parts = summary.split([';', '.']).map(str::trim);
                parts.find_map(|part| part.strip_suffix(what)?.trim().parse().ok()).unwrap_or(0)
            };
            return Self {
                passed: count("passed"),
                failed: count("failed"),
                skipped: count("ignored"),
            };
        }
        match line.split(' ').next() {
            Some("ok" | "Success") => Self::PASSED,
            Some("FAIL") => Self { failed: 1, ..Self::default() },
            Some("skip") => Self { skipped: 1, ..Self::default() },
            _ => Self::default(),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a step hands back, also when it fails.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// What could not be run here, and why.
    pub(crate) skips: Vec<String>,
    /// Why the step failed, if it did.
    pub(crate) failure: Option<String>,
}

impl Outcome {
    /// Says loudly that something cannot be run here and counts it.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        println!("!! SKIPPED {what}: {why}");
        self.tally.skipped += 1;
        self.skips.push(format!("{what}: {why}"));
    }

    /// Takes over what a part of the step came to.
    pub(crate) fn absorb(&mut self, part: Self) {
        self.tally += part.tally;
        self.skips.extend(part.skips);
        self.failure = self.failure.take().or(part.failure);
    }
}

struct Row {
    name: &'static str,
    state: String,
    took: Option<Duration>,
    tally: Tally,
}

/// The rows of the final table.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    skips: Vec<String>,
    failures: Vec<String>,
}

impl Report {
    /// Runs one step and remembers what came of it.
    pub(crate) fn run(&mut self, step: &Step, context: &Context) {
        let start = Instant::now();
        let mut outcome = (step.run)(context).unwrap_or_else(|error| Outcome {
            failure: Some(format!("{error:#}")),
            ..Outcome::default()
        });
        let took = start.elapsed();
        if let Some(failure) = &outcome.failure {
            println!("error: step '{}' failed: {failure}", step.name);
            outcome.tally.failed = outcome.tally.failed.max(1);
            self.failures.push(format!("{}: {failure}", step.name));
        }
        let state = match (&outcome.failure, outcome.tally) {
            (Some(_), _) => "FAILED",
            (None, Tally { passed: 0, skipped: 1.., .. }) => "skipped",
            (None, Tally { skipped: 1.., .. }) => "ok, in part",
            (None, _) => "ok",
        };
        println!("    {}: {state}, {:.1} s", step.name, took.as_secs_f64());
        let row =
            Row { name: step.name, state: state.into(), took: Some(took), tally: outcome.tally };
        self.rows.push(row);
        self.skips.extend(outcome.skips);
    }

    /// Remembers a step that was not run.
    pub(crate) fn leave_out(&mut self, name: &'static str, why: &str) {
        self.rows.push(Row { name, state: why.into(), took: None, tally: Tally::default() });
    }

    /// Whether a step failed.
    pub(crate) fn has_failed(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Prints the table of steps, what was skipped, what failed, and the totals as the last line.
    pub(crate) fn print(&self) {
        let seconds = |took: Option<Duration>| {
            took.map_or_else(|| "-".into(), |took| format!("{:.1}", took.as_secs_f64()))
        };
        println!(
            "\n{:<12} {:<14} {:>8} {:>7} {:>7} {:>7}",
            "step", "state", "seconds", "passed", "failed", "skipped"
        );
        let mut total = Tally::default();
        let mut time = Duration::ZERO;
        for row in &self.rows {
            let Tally { passed, failed, skipped } = row.tally;
            let took = seconds(row.took);
            println!(
                "{:<12} {:<14} {took:>8} {passed:>7} {failed:>7} {skipped:>7}",
                row.name, row.state
            );
            total += row.tally;
            time += row.took.unwrap_or_default();
        }
        println!("{:<12} {:<14} {:>8}", "", "", seconds(Some(time)));
        for skip in &self.skips {
            println!("SKIPPED {skip}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of libtest, criterion and the client scripts, and lines that report nothing.
    #[test]
    fn tally_reads_every_reporter() {
        let tally = |passed, failed, skipped| Tally { passed, failed, skipped };
        let libtest =
            "3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let cases = [
            (format!("test result: FAILED. {libtest}"), tally(3, 1, 2)),
            (format!("test result: ok. {libtest}"), tally(3, 1, 2)),
            ("Success".into(), tally(1, 0, 0)),
            ("ok redis-cli ping".into(), tally(1, 0, 0)),
            ("FAIL redis-cli ping: no answer".into(), tally(0, 1, 0)),
            ("skip ioredis: no node".into(), tally(0, 0, 1)),
            ("test a::b ... ok".into(), tally(0, 0, 0)),
            ("okay".into(), tally(0, 0, 0)),
            (String::new(), tally(0, 0, 0)),
        ];
        for (line, want) in cases {
            assert_eq!(Tally::of_line(&line), want, "{line}");
        }
    }

    /// A failed step is never reported with zero failures, and stops the rest.
    #[test]
    fn a_failed_step_counts_at_least_once() {
        let context = Context::at("/nowhere");
        let step = Step { name: "x", what: "", run: |_| anyhow::bail!("no") };
        let mut report = Report::default();
        report.run(&step, &context);
        assert!(report.has_failed());
        assert_eq!(report.rows[0].tally, Tally { passed: 0, failed: 1, skipped: 0 });
        assert_eq!(report.failures, ["x: no"]);
    }
}
