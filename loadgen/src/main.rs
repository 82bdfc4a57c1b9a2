//! Command line of the load generator.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use coracle_loadgen::{Options, Unreachable, UsageError, run};

/// Load generator for Redis endpoints: open loop, HdrHistogram percentiles, honest about itself.
///
/// Exit codes: 0 well, 1 failed requests (with --fail-on-error), lost writes or an operating
/// system error, 2 wrong usage, 3 nobody answers.
#[derive(Parser)]
#[command(name = "loadgen", version)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let line = Line::parse();
    match run(line.options, Arc::new(AtomicBool::new(false))) {
        Ok(report) => match write!(std::io::stdout(), "{report}") {
            Ok(()) => ExitCode::from(report.exit_code()),
            Err(_) => ExitCode::from(1),
        },
        Err(error) => {
            let code = if error.is::<UsageError>() {
                2
            } else if error.is::<Unreachable>() {
                3
            } else {
                1
            };
            // Nothing is left to tell a closed stderr to.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(code)
        }
    }
}
