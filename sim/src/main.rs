//! `sim`: runs seeds, replays failures, checks histories.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod cli;

use std::process::ExitCode;

/// The node's own; with the C library's a run takes a tenth longer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
