//! Repository chores. `cargo xtask test` is the one test command; `docs/testing.md` explains it.
//!
//! In: the command line. Out: the steps' own output, a table of steps, one line of totals.
//! Everything it makes goes below the target directory.
//!
//! Not here: what is tested (each crate's own tests, `bench/benches`, `tests/clients`).

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod clients;
mod cluster;
mod environment;
mod process;
mod report;
mod steps;

use std::process::ExitCode;

use crate::report::Report;
use crate::steps::{Context, STEPS};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["help" | "-h" | "--help", ..] => {
            print_help();
            ExitCode::SUCCESS
        }
        ["test", only @ ..] => test(only),
        [unknown, ..] => {
            println!("error: unknown chore '{unknown}'\n");
            print_help();
            ExitCode::from(2)
        }
    }
}

fn print_help() {
    println!("cargo xtask test          every check of this repository; what CI runs");
    println!("cargo xtask test STEP …   only these steps, in their usual order\n");
    println!("Steps:");
    for step in STEPS {
        println!("  {:<12} {}", step.name, step.what);
    }
}

/// Runs the steps named in `only`, or all of them, up to the first that fails.
fn test(only: &[&str]) -> ExitCode {
    if let Some(unknown) = only.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        println!("error: unknown step '{unknown}'\n");
        print_help();
        return ExitCode::from(2);
    }
    let context = match Context::new() {
        Ok(context) => context,
        Err(error) => {
            println!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::default();
    for (number, step) in STEPS.iter().enumerate() {
        if !only.is_empty() && !only.contains(&step.name) {
            report.leave_out(step.name, "not asked for");
        } else if report.has_failed() {
            report.leave_out(step.name, "not reached");
        } else {
            println!("\n==> [{}/{}] {}: {}", number + 1, STEPS.len(), step.name, step.what);
            report.run(step, &context);
        }
    }
    report.print();
    if report.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
