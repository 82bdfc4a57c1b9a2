//! The command line.

mod mutants;
mod replay;
mod sweep;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use coracle_sim::checker;
use coracle_sim::plan::Profile;
use coracle_sim::run::{Options, catch_panics};

/// Runs whole clusters in one thread, each under a seed, and looks for what must never happen.
///
/// Exit status: 0 nothing was found, 1 something was, 2 wrong usage.
#[derive(Parser)]
#[command(name = "sim", args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(clap::Args)]
struct RunArgs {
    /// Run this seed and tell what happened
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run all seeds from A to before B
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Which faults may happen
    #[arg(long, value_enum, default_value_t = Profile::Mix)]
    profile: Profile,
    /// Simulated seconds with faults, before a quorum is left in peace
    #[arg(long, default_value_t = 20, value_parser = seconds())]
    seconds: u64,
    /// Threads
    #[arg(long, default_value_t = 2, value_parser = threads())]
    jobs: u16,
    /// Write every protocol event to this file, as NDJSON
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Write what the clients saw to this file, as NDJSON
    #[arg(long, value_name = "FILE", requires = "seed")]
    history: Option<PathBuf>,
    /// Plant this bug; `sim mutants` lists them
    #[arg(long, value_name = "BUG")]
    plant: Option<String>,
    /// Run each seed twice and compare the hashes of everything that happened
    #[arg(long)]
    doublecheck: bool,
}

#[derive(Subcommand)]
enum Sub {
    /// Check a history, of a run or of `loadgen --history`, for linearizability
    Check {
        /// NDJSON, one operation per line
        file: PathBuf,
    },
    /// Plant every known bug in turn and tell which seed finds it first
    Mutants {
        /// Seeds to try for each
        #[arg(long, default_value_t = 2000)]
        seeds: u64,
        /// Only this one; may be given more than once
        #[arg(long, value_name = "BUG")]
        bug: Vec<String>,
        /// Simulated seconds with faults
        #[arg(long, default_value_t = 20, value_parser = seconds())]
        seconds: u64,
        /// Threads
        #[arg(long, default_value_t = 2, value_parser = threads())]
        jobs: u16,
    },
    /// Run every seed of a file of regressions
    Regressions {
        /// One seed per line: `profile seconds seed  # cause and fix`
        #[arg(default_value = "sim/seeds/regressions.txt")]
        file: PathBuf,
        /// Threads
        #[arg(long, default_value_t = 2, value_parser = threads())]
        jobs: u16,
    },
}

fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::builder::RangedU64ValueParser::new().range(1..=100_000)
}

fn threads() -> clap::builder::RangedU64ValueParser<u16> {
    clap::builder::RangedU64ValueParser::new().range(1..=1024)
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not a range of seeds like 0..1000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(format!("{text:?} holds no seed")) } else { Ok(range) }
}

/// Runs the command line of the process.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    catch_panics();
    let clean = match args.command {
        Some(Sub::Check { file }) => check(&file),
        Some(Sub::Mutants { seeds, bug, seconds, jobs }) => {
            mutants::run_all(seeds, &bug, seconds, usize::from(jobs))
        }
        Some(Sub::Regressions { file, jobs }) => sweep::regressions(&file, usize::from(jobs)),
        None => run(&args.run),
    };
    match clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &RunArgs) -> Result<bool> {
    let bug = args.plant.as_deref().map(mutants::named).transpose()?;
    let options = Options { profile: args.profile, seconds: args.seconds, bug };
    if let Some(seed) = args.seed {
        let files =
            replay::Files { trace: args.trace.as_deref(), history: args.history.as_deref() };
        return replay::replay(seed, &options, &files, args.doublecheck);
    }
    let seeds = args.seeds.clone().context("give --seed N or --seeds A..B")?;
    sweep::sweep(seeds, &options, usize::from(args.jobs), args.doublecheck)
}

fn check(file: &std::path::Path) -> Result<bool> {
    match checker::check_file(file)? {
        Ok(summary) => println!("{summary}"),
        Err(why) => {
            println!("{why}");
            return Ok(false);
        }
    }
    Ok(true)
}
