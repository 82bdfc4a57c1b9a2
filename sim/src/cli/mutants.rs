//! The mutation check: would a bug be found?

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use coracle_raft::Bug;
use coracle_sim::plan::Profile;
use coracle_sim::run::{Options, catch_panics, run};
use indicatif::{ProgressBar, ProgressStyle};

/// What became of one bug.
struct Hunt {
    bug: Bug,
    /// The first seed that finds it, and by which rule.
    found: Option<(u64, &'static str)>,
    took: Duration,
}

impl Hunt {
    fn line(&self) -> String {
        match self.found {
            Some((seed, rule)) => format!("{}: seed {seed}, {rule}", self.bug.name()),
            None => format!("{}: NOT found", self.bug.name()),
        }
    }
}

/// The bug of a name.
pub(crate) fn named(name: &str) -> Result<Bug> {
    let bug = Bug::ALL.iter().find(|bug| bug.name() == name);
    bug.copied().with_context(|| format!("no bug is called {name:?}; `sim mutants` lists them"))
}

/// Plants bugs one after the other and prints which seed finds each; whether all were found.
pub(crate) fn run_all(seeds: u64, only: &[String], seconds: u64, threads: usize) -> Result<bool> {
    let bugs: VecDeque<Bug> = if only.is_empty() {
        Bug::ALL.iter().copied().collect()
    } else {
        only.iter().map(|name| named(name)).collect::<Result<_>>()?
    };
    let count = bugs.len();
    let bar = ProgressBar::new(count as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} bugs, {elapsed}, {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let queue = Mutex::new(bugs);
    let (sender, results) = mpsc::channel();
    let mut hunts = Vec::new();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                catch_panics();
                loop {
                    let bug = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(bug) = bug else { return };
                    if sender.send(hunt(bug, seeds, seconds)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for hunt in results {
            if bar.is_hidden() {
                eprintln!("{}", hunt.line());
            }
            bar.set_message(hunt.bug.name());
            bar.inc(1);
            hunts.push(hunt);
        }
    });
    bar.finish_and_clear();
    hunts.sort_by_key(|hunt| Bug::ALL.iter().position(|bug| *bug == hunt.bug));
    println!("{}", table(&hunts));
    let missed: Vec<&str> =
        hunts.iter().filter(|h| h.found.is_none()).map(|hunt| hunt.bug.name()).collect();
    println!("{} of {count} planted bugs found within {seeds} seeds", count - missed.len());
    if !missed.is_empty() {
        println!("NOT found: {}", missed.join(", "));
    }
    Ok(missed.is_empty())
}

fn hunt(bug: Bug, seeds: u64, seconds: u64) -> Hunt {
    let started = Instant::now();
    let options = Options { profile: Profile::Mix, seconds, bug: Some(bug) };
    let found = (0..seeds).find_map(|seed| {
        let failure = run(seed, &options, None).failure?;
        // A checker that gives up has found nothing.
        (failure.kind != "undecided").then_some((seed, failure.kind))
    });
    Hunt { bug, found, took: started.elapsed() }
}

fn table(hunts: &[Hunt]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["bug", "first seed", "found by", "seconds"]);
    for Hunt { bug, found, took } in hunts {
        let seed = found.map_or("-".to_owned(), |(seed, _)| seed.to_string());
        let rule = found.map_or("NOT FOUND", |(_, rule)| rule);
        let took = format!("{:.1}", took.as_secs_f64());
        table.add_row([bug.name().to_owned(), seed, rule.to_owned(), took]);
    }
    table.trim_fmt()
}
