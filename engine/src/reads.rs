//! Reads of one group on their way through ReadIndex (thesis §6.4): gathered per turn into one
//! context, confirmed by a quorum, then held until the state machine has got there.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use coracle_raft::{Bug, LogIndex, planted};

use crate::task::Task;

/// A read and the entry it must see whatever the read index is.
#[derive(Debug)]
struct Read {
    task: Task,
    floor: LogIndex,
}

/// The reads of one group that have not been answered.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Arrived since the last context was made.
    open: Vec<Read>,
    /// Asked for under a context, oldest first.
    waiting: VecDeque<(u64, Vec<Read>)>,
    /// Confirmed; to be served once this index is applied.
    blocked: BTreeMap<LogIndex, Vec<Task>>,
    count: usize,
}

impl Reads {
    pub(crate) fn push(&mut self, task: Task, floor: LogIndex) {
        self.count += 1;
        self.open.push(Read { task, floor });
    }

    /// Holds a read, confirmed already, until `index` is applied.
    pub(crate) fn block(&mut self, task: Task, index: LogIndex) {
        self.count += 1;
        self.blocked.entry(index).or_default().push(task);
    }

    /// Whether reads wait for a context.
    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Puts everything open under `context`.
    pub(crate) fn submit(&mut self, context: u64) {
        self.waiting.push_back((context, mem::take(&mut self.open)));
    }

    /// A quorum confirmed `context` at `index`. Reads that need no more than `applied` are
    /// appended to `serve`, the others wait.
    pub(crate) fn confirmed(
        &mut self,
        context: u64,
        index: LogIndex,
        applied: LogIndex,
        serve: &mut Vec<Task>,
    ) {
        for Read { task, floor } in self.take(context) {
            let needed = index.max(floor);
            if needed <= applied || planted(Bug::ReadBeforeApplied) {
                self.count -= 1;
                serve.push(task);
            } else {
                self.blocked.entry(needed).or_default().push(task);
            }
        }
    }

    /// `context` cannot be confirmed any more: its reads must start again.
    pub(crate) fn refused(&mut self, context: u64) -> Vec<Task> {
        let reads = self.take(context);
        self.count -= reads.len();
        reads.into_iter().map(|read| read.task).collect()
    }

    /// Appends to `serve` the reads that waited for entries up to `applied`.
    pub(crate) fn applied(&mut self, applied: LogIndex, serve: &mut Vec<Task>) {
        while let Some(first) = self.blocked.first_entry() {
            if *first.key() > applied {
                return;
            }
            let mut tasks = first.remove();
            self.count -= tasks.len();
            serve.append(&mut tasks);
        }
    }

    /// Takes out the reads whose deadline has come. A leader whose quorum answers, but cannot
    /// write, confirms none for as long as that lasts.
    pub(crate) fn overdue(&mut self, now: u64) -> Vec<Task> {
        self.extract(|task| task.deadline <= now)
    }

    /// Takes out the reads that follow other commands of their connection.
    pub(crate) fn following(&mut self) -> Vec<Task> {
        self.extract(|task| task.follows)
    }

    fn extract(&mut self, wanted: impl Fn(&Task) -> bool) -> Vec<Task> {
        let mut found = Vec::new();
        let contexts = self.waiting.iter_mut().map(|(_, reads)| reads);
        for reads in std::iter::once(&mut self.open).chain(contexts) {
            found.extend(reads.extract_if(.., |read| wanted(&read.task)).map(|read| read.task));
        }
        self.blocked.retain(|_, tasks| {
            found.extend(tasks.extract_if(.., |task| wanted(task)));
            !tasks.is_empty()
        });
        self.count -= found.len();
        found
    }

    /// Reads that have not been answered.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    fn take(&mut self, context: u64) -> Vec<Read> {
        // Answers come in the order of contexts, or nearly so.
        match self.waiting.iter().position(|(waiting, _)| *waiting == context) {
            Some(place) => self.waiting.remove(place).map_or_else(Vec::new, |(_, reads)| reads),
            None => Vec::new(),
        }
    }
}
