//! Many seeds on many threads.

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use comfy_table::{Cell, CellAlignment, Table, presets};
use coracle_sim::Micros;
use coracle_sim::plan::{Profile, SECOND};
use coracle_sim::report::Counters;
use coracle_sim::run::{Options, Outcome, catch_panics, run};
use indicatif::{ProgressBar, ProgressStyle};

/// A history may be too dear to check: finding out whether it is linearizable is NP-complete
/// (Gibbons and Korach, SIAM J. Comput. 1997), and bursts of unknown outcomes on one key bring that
/// home. At most one run in so many may end like that, or the sweep shows too little.
const UNDECIDED_ONE_IN: u64 = 500;

/// One run that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) seed: u64,
    pub(crate) options: Options,
}

/// Runs every seed of a range; whether all were clean.
pub(crate) fn sweep(
    seeds: Range<u64>,
    options: &Options,
    threads: usize,
    twice: bool,
) -> Result<bool> {
    let jobs = seeds.map(|seed| Job { seed, options: options.clone() }).collect();
    Ok(run_all(jobs, threads, twice))
}

/// Runs every seed of a file of regressions; whether all were clean.
pub(crate) fn regressions(file: &Path, threads: usize) -> Result<bool> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read the seeds of {}", file.display()))?;
    let mut jobs = VecDeque::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let job = match words.as_slice() {
            [] => continue,
            [profile, seconds, seed] => parse_job(profile, seconds, seed),
            _ => None,
        };
        let wrong = || format!("{}:{}: not `profile seconds seed`", file.display(), number + 1);
        jobs.push_back(job.with_context(wrong)?);
    }
    if jobs.is_empty() {
        bail!("{} holds no seed", file.display());
    }
    Ok(run_all(jobs, threads, false))
}

fn parse_job(profile: &str, seconds: &str, seed: &str) -> Option<Job> {
    let profile = Profile::from_str(profile, false).ok()?;
    let options = Options { profile, seconds: seconds.parse().ok()?, bug: None };
    Some(Job { seed: seed.parse().ok()?, options })
}

/// Runs jobs and prints a report; whether all were clean.
fn run_all(jobs: VecDeque<Job>, threads: usize, twice: bool) -> bool {
    let started = Instant::now();
    let count = jobs.len() as u64;
    let bar = ProgressBar::new(count).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left, {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let queue = Mutex::new(jobs);
    let (sender, results) = mpsc::channel();
    let mut totals = Counters::default();
    let (mut failed, mut simulated, mut busy) = (Vec::new(), 0, 0.0);
    let mut recoveries: Vec<(Micros, u64)> = Vec::new();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || work(queue, &sender, twice));
        }
        drop(sender);
        for (job, outcome) in results {
            totals.merge(&outcome.counters);
            simulated += outcome.simulated;
            busy += outcome.took.as_secs_f64();
            recoveries.extend(outcome.recovery.map(|recovery| (recovery, job.seed)));
            if let Some(failure) = &outcome.failure {
                bar.println(format!("FAILED seed {}: {failure}", job.seed));
                failed.push((job, failure.clone()));
                bar.set_message(format!("{} failed", failed.len()));
            }
            bar.inc(1);
        }
    });
    bar.finish_and_clear();
    let simulated = simulated as f64 / SECOND as f64;
    println!("{}", table(&totals));
    println!(
        "{count} seeds, {simulated:.0} s simulated in {:.1} s: {:.0} simulated seconds per second \
         and core",
        started.elapsed().as_secs_f64(),
        simulated / f64::max(busy, 1e-9),
    );
    if let Some(&(longest, seed)) = recoveries.iter().max() {
        let sum: Micros = recoveries.iter().map(|(recovery, _)| recovery).sum();
        let mean = sum as f64 / recoveries.len() as f64 / SECOND as f64;
        let longest = longest as f64 / SECOND as f64;
        println!(
            "a quorum in peace served every group after {mean:.2} s in the mean, {longest:.2} s \
             at most (seed {seed})"
        );
    }
    failed.sort_by_key(|(job, _)| job.seed);
    let (undecided, failed): (Vec<_>, Vec<_>) =
        failed.into_iter().partition(|(_, failure)| failure.kind == "undecided");
    for (title, runs) in [("UNDECIDED", &undecided), ("FAILED", &failed)] {
        for (job, failure) in runs {
            let first = failure.text.lines().next().unwrap_or_default();
            println!("\n{title} {}: {first}\n  replay: {}", failure.kind, command(job));
        }
    }
    let too_many = undecided.len() as u64 * UNDECIDED_ONE_IN > count;
    match (failed.len(), undecided.len()) {
        (0, 0) => println!("ok: nothing found"),
        (0, some) if !too_many => {
            println!("\nok: nothing found; the histories of {some} of {count} runs are undecided");
        }
        (some, open) => println!("\n{some} of {count} seeds failed, {open} are undecided"),
    }
    failed.is_empty() && !too_many
}

fn work(queue: &Mutex<VecDeque<Job>>, sender: &mpsc::Sender<(Job, Outcome)>, twice: bool) {
    catch_panics();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(job) = job else { return };
        let mut outcome = run(job.seed, &job.options, None);
        if twice && outcome.failure.is_none() {
            let again = run(job.seed, &job.options, None);
            if again.trace_hash != outcome.trace_hash {
                let text = format!("{:016x} and {:016x}", outcome.trace_hash, again.trace_hash);
                outcome.failure = Some(coracle_sim::report::Failure {
                    kind: "doublecheck",
                    text: format!("two runs have different traces: {text}"),
                    at: 0,
                });
            }
        }
        if sender.send((job, outcome)).is_err() {
            return;
        }
    }
}

/// The command that replays a run.
pub(crate) fn command(job: &Job) -> String {
    let Options { profile, seconds, bug } = job.options;
    let plant = bug.map(|bug| format!(" --plant {}", bug.name())).unwrap_or_default();
    format!(
        "cargo run --release -p sim -- --seed {} --profile {profile} --seconds {seconds}{plant}",
        job.seed
    )
}

/// What happened, in two columns of names and numbers.
pub(crate) fn table(counters: &Counters) -> String {
    let mut rows: Vec<(String, u64)> =
        counters.rows().into_iter().map(|(name, count)| (name.replace('_', " "), count)).collect();
    let faults = counters.faults.iter();
    rows.extend(faults.map(|(fault, count)| (format!("fault {}", fault.name()), *count)));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let lines = rows.len().div_ceil(3);
    for line in 0..lines {
        let cells = (0..3).filter_map(|column| rows.get(column * lines + line));
        table.add_row(cells.flat_map(|(name, count)| {
            [Cell::new(name), Cell::new(count).set_alignment(CellAlignment::Right)]
        }));
    }
    table.trim_fmt()
}
