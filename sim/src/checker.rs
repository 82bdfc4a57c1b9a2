//! Is a history linearizable?
//!
//! In: the operations of a [`history`](crate::history). Out: a [`Summary`], or why not.
//!
//! Every key is a register of its own that starts absent; a history is linearizable if each of
//! its keys is (Herlihy and Wing, "Linearizability", 1990, "locality"). An operation whose outcome
//! is unknown may take effect at any time after its call, or never. One that was refused does not
//! count. Operations that touch each other in time are concurrent.
//!
//! Contract: the same operations give the same verdict, also by the same steps. Time and memory
//! are bounded by [`Limits`]; a history that is not decided within them is [`Undecided`], which is
//! a failure.
//!
//! Not here: the formats (`history`), who made the history.

mod bits;
mod model;
mod plan;
mod report;
mod search;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;

pub use report::{Failure, NotLinearizable, Open, Summary, Tried, Undecided};

use crate::history::{Op, Outcome, Reader};
use plan::Plan;
use search::{Search, Stuck};

/// How much a check may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Configurations looked at for one return of one operation: bounds the memory.
    /// Default: 200,000.
    pub states_per_step: u64,
    /// Configurations looked at for one key: bounds the time. Default: 50,000,000.
    pub states: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { states_per_step: 200_000, states: 50_000_000 }
    }
}

/// Checks with the default limits.
///
/// # Errors
/// [`Failure::NotLinearizable`] for the first key, in order of bytes, that is not; if there is
/// none, [`Failure::Undecided`] for the first key at which a limit was reached.
///
/// # Panics
/// If an operation contradicts itself, which the [`Reader`] does not let pass: its answer is of
/// another operation's type, it returned before its call, or it has no return time just though
/// its outcome is known.
pub fn check(ops: &[Op]) -> Result<Summary, Failure> {
    check_within(ops, Limits::default())
}

/// Checks with other limits; see [`check`].
///
/// # Errors
/// See [`check`].
///
/// # Panics
/// See [`check`].
pub fn check_within(ops: &[Op], limits: Limits) -> Result<Summary, Failure> {
    let mut summary = Summary::default();
    let mut keys: BTreeMap<&[u8], Vec<&Op>> = BTreeMap::new();
    for op in ops {
        assert_consistent(op);
        summary.operations += 1;
        match op.outcome {
            Outcome::Refused => {
                summary.refused += 1;
                continue;
            }
            Outcome::Unknown => summary.unknown += 1,
            Outcome::Reply(_) => {}
        }
        keys.entry(&op.key).or_default().push(op);
    }
    summary.keys = keys.len() as u64;
    let mut undecided = None;
    for ops in keys.into_values() {
        let plan = Plan::new(ops);
        let mut search = Search::new(&plan, limits);
        let result = search.run();
        summary.states += search.states;
        summary.configurations_max = summary.configurations_max.max(search.widest as u64);
        match result {
            Ok(()) => {}
            Err(Stuck::At(_)) => {
                return Err(report::explain(&plan, limits, search.states));
            }
            Err(Stuck::Limit(op)) => {
                undecided.get_or_insert_with(|| report::give_up(&plan, op, search.states));
            }
        }
    }
    undecided.map_or(Ok(summary), Err)
}

/// Checks the history in a file.
///
/// # Errors
/// The outer one if the file cannot be read or is damaged, the inner one is the verdict.
pub fn check_file(path: &Path) -> anyhow::Result<Result<Summary, Failure>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let ops: Result<Vec<Op>, _> = Reader::new(BufReader::new(file)).collect();
    Ok(check(&ops.with_context(|| name.to_string())?))
}

fn assert_consistent(op: &Op) {
    match &op.outcome {
        Outcome::Reply(reply) => {
            assert!(op.kind.allows(reply), "{:?} cannot answer {reply:?}", op.kind);
            let return_ns = op.return_ns.expect("what was answered has returned");
            let call_ns = op.call_ns;
            assert!(call_ns <= return_ns, "returned at {return_ns} ns, called at {call_ns} ns");
        }
        Outcome::Unknown => assert_eq!(op.return_ns, None, "an unknown outcome has no return"),
        Outcome::Refused => {}
    }
}

#[cfg(test)]
mod tests;
