//! `sim`: runs seeds, replays failures, checks histories.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
