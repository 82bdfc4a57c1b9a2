//! One seed, told in full.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use coracle_sim::plan::SECOND;
use coracle_sim::run::{Options, Outcome, run};

use super::sweep;

/// Where to write what happened.
pub(crate) struct Files<'a> {
    pub(crate) trace: Option<&'a Path>,
    pub(crate) history: Option<&'a Path>,
}

/// Runs a seed and prints what came of it; whether it was clean.
pub(crate) fn replay(seed: u64, options: &Options, files: &Files<'_>, twice: bool) -> Result<bool> {
    let trace = match files.trace {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the trace to {}", path.display()))?;
            Some(Box::new(BufWriter::new(file)) as Box<dyn Write>)
        }
        None => None,
    };
    let outcome = run(seed, options, trace);
    if let Some(path) = files.history {
        write_history(path, &outcome)
            .with_context(|| format!("cannot write the history to {}", path.display()))?;
    }
    println!("seed {seed}, profile {}: {}", options.profile, outcome.plan);
    println!("{}", sweep::table(&outcome.counters));
    for (phase, seen) in ["with faults", "a quorum in peace"].iter().zip(&outcome.phases) {
        println!(
            "{phase}: {} commits, {} writes, {} reads, {} elections, {} starts",
            seen.commits, seen.writes, seen.reads, seen.elections, seen.starts
        );
    }
    if let Some(recovery) = outcome.recovery {
        println!("the quorum served every group after {:.3} s", recovery as f64 / SECOND as f64);
    }
    let simulated = outcome.simulated as f64 / SECOND as f64;
    println!(
        "{simulated:.1} s simulated in {:.3} s: {:.0} times real time; trace {:016x}",
        outcome.took.as_secs_f64(),
        simulated / outcome.took.as_secs_f64().max(1e-9),
        outcome.trace_hash,
    );
    let mut clean = outcome.failure.is_none();
    if let Some(failure) = &outcome.failure {
        println!("\nThe last events of every node:\n{}\n\nFAILED: {failure}", outcome.story);
    }
    if twice {
        let again = run(seed, options, None);
        let equal = again.trace_hash == outcome.trace_hash;
        println!("second run: trace {:016x}, {}", again.trace_hash, verdict(equal));
        clean &= equal;
    }
    if clean {
        println!("ok");
    }
    Ok(clean)
}

const fn verdict(equal: bool) -> &'static str {
    if equal { "equal" } else { "DIFFERENT: something in the run is not decided by the seed" }
}

fn write_history(path: &Path, outcome: &Outcome) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for op in &outcome.history {
        writeln!(file, "{}", op.to_line())?;
    }
    file.flush()?;
    Ok(())
}
