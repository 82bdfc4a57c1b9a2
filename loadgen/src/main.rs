//! Command line of the load generator.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Parser;
use coracle_loadgen::{Options, Unreachable, UsageError, run};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Load generator for Redis endpoints: open loop, HdrHistogram percentiles, honest about itself.
///
/// Ctrl-C ends the load and reports what was measured so far; a second one ends at once.
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
    let stop = Arc::new(AtomicBool::new(false));
    let result = stop_on_signals(&stop).and_then(|()| run(line.options, stop));
    match result {
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

/// The first signal sets `stop`; one that comes when it is set ends the process.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal must find it unset.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(stop))
            .and_then(|_| flag::register(signal, Arc::clone(stop)))
            .context("cannot handle signals")?;
    }
    Ok(())
}
