//! What a person sees while the load runs: a line per second, on stderr.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::meter::Second;
use crate::options::Options;

/// Lines between two headings.
const HEADING_EVERY: u32 = 20;

/// Shows progress, or nothing: errors of a terminal that went away are ignored.
#[derive(Debug)]
pub(crate) struct Progress {
    enabled: bool,
    lines: u32,
}

impl Progress {
    pub(crate) fn new(options: &Options) -> Self {
        let enabled = options.progress || (!options.quiet && std::io::stderr().is_terminal());
        Self { enabled, lines: 0 }
    }

    /// A bar for work of known size; hidden off a terminal.
    pub(crate) fn bar(&self, name: &'static str, len: u64) -> ProgressBar {
        let target =
            if self.enabled { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} keys, {eta} left")
            .expect("the template is fixed and valid");
        ProgressBar::with_draw_target(Some(len), target).with_style(style).with_message(name)
    }

    /// One second is over.
    pub(crate) fn second(&mut self, second: &Second) {
        if !self.enabled {
            return;
        }
        let mut err = std::io::stderr().lock();
        if self.lines.is_multiple_of(HEADING_EVERY) {
            let _ = writeln!(err, "{HEADING}");
        }
        self.lines += 1;
        let _ = writeln!(err, "{}", line(second));
    }
}

const HEADING: &str = concat!(
    "     s      ops/s    p50 ms    p99 ms  p99.9 ms    max ms",
    "   errors    moved  in flight   waiting"
);

fn line(second: &Second) -> String {
    let mut line = format!(
        "{:6.1} {:10} {:9.3} {:9.3} {:9.3} {:9.3} {:8} {:8} {:10} {:9}",
        second.t,
        second.ops,
        second.p50_ms,
        second.p99_ms,
        second.p99_9_ms,
        second.max_ms,
        second.errors,
        second.moved,
        second.in_flight,
        second.backlog
    );
    if second.dropped > 0 {
        line.push_str(&format!("  {} dropped: the server cannot keep the rate", second.dropped));
    }
    if second.warmup {
        line.push_str("  warm-up");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers stand under their headings.
    #[test]
    fn lines_are_as_wide_as_the_heading() {
        let second = Second { t: 3.0, ops: 200_000, p50_ms: 0.512, ..Second::default() };
        assert_eq!(line(&second).len(), HEADING.len(), "\n{HEADING}\n{}", line(&second));
        let second = Second { warmup: true, dropped: 5, ..second };
        assert!(line(&second).ends_with("5 dropped: the server cannot keep the rate  warm-up"));
    }
}
