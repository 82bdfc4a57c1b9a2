//! Shards that wait for a value: a command that changes a value needs its old bytes, and they are
//! on the disk. What comes after it in the same shard waits in line; all other shards go on.

use std::collections::{BTreeMap, VecDeque};

use coracle_raft::{Entry, LogIndex, Place};

use crate::apply::Wanted;
use crate::task::Task;

/// Bytes of commands that may stand in line; more than that, and the group applies nothing until
/// the line is shorter.
pub(crate) const STALLED_BYTES_MAX: usize = 4 << 20;

/// What waits in the line of a shard.
#[derive(Debug)]
pub(crate) enum Stalled {
    /// A command of the log.
    Write { entry: Entry, place: Option<Place>, clock: u64, task: Option<Task> },
    /// A clock entry.
    Sweep { index: LogIndex, clock: u64, max: usize },
    /// A check at this entry.
    Check { index: LogIndex },
    /// A read that must see what is before it.
    Read(Task),
}

impl Stalled {
    fn bytes(&self) -> usize {
        match self {
            Self::Write { entry, .. } => size_of::<Self>() + entry.size_bytes(),
            Self::Sweep { .. } | Self::Check { .. } | Self::Read(_) => size_of::<Self>(),
        }
    }
}

/// The line of one shard; its first command waits for a value.
#[derive(Debug)]
struct Line {
    wanted: Wanted,
    queue: VecDeque<Stalled>,
}

/// The waiting shards of one group, by their place in its store.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    lines: BTreeMap<usize, Line>,
    bytes: usize,
}

impl Stalls {
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(crate) fn holds(&self, shard: usize) -> bool {
        self.lines.contains_key(&shard)
    }

    /// One of the waiting shards.
    pub(crate) fn any(&self) -> Option<usize> {
        self.lines.keys().next().copied()
    }

    /// Whether a client waits for anything in any line.
    pub(crate) fn have_tasks(&self) -> bool {
        let waits = |stalled: &Stalled| match stalled {
            Stalled::Write { task, .. } => task.is_some(),
            Stalled::Read(_) => true,
            Stalled::Sweep { .. } | Stalled::Check { .. } => false,
        };
        self.lines.values().any(|line| line.queue.iter().any(waits))
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.bytes >= STALLED_BYTES_MAX
    }

    /// What each waiting shard waits for.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (usize, &Wanted)> {
        self.lines.iter().map(|(&shard, line)| (shard, &line.wanted))
    }

    /// What a shard waits for, and the index of the command that needs it.
    pub(crate) fn wanted_by(&self, shard: usize) -> Option<(&Wanted, LogIndex)> {
        let line = self.lines.get(&shard)?;
        match line.queue.front()? {
            Stalled::Write { entry, .. } => Some((&line.wanted, entry.index)),
            Stalled::Sweep { .. } | Stalled::Check { .. } | Stalled::Read(_) => None,
        }
    }

    /// The oldest place of a command that waits.
    pub(crate) fn oldest(&self) -> Option<Place> {
        let first = |line: &Line| {
            line.queue.iter().find_map(|stalled| match stalled {
                Stalled::Write { place, .. } => *place,
                Stalled::Sweep { .. } | Stalled::Check { .. } | Stalled::Read(_) => None,
            })
        };
        self.lines.values().filter_map(first).min()
    }

    /// Puts something into the line of a shard that waits already.
    pub(crate) fn push(&mut self, shard: usize, stalled: Stalled) {
        self.bytes += stalled.bytes();
        let line = self.lines.get_mut(&shard).expect("only of shards that wait");
        line.queue.push_back(stalled);
    }

    /// A shard begins to wait: `first` needs `wanted`, `rest` comes behind it.
    pub(crate) fn begin(
        &mut self,
        shard: usize,
        wanted: Wanted,
        first: Stalled,
        mut rest: VecDeque<Stalled>,
    ) {
        rest.push_front(first);
        self.bytes += rest.iter().map(Stalled::bytes).sum::<usize>();
        let old = self.lines.insert(shard, Line { wanted, queue: rest });
        assert!(old.is_none(), "a shard waits for one value at a time");
    }

    /// Takes out the clients' commands whose deadline has come, reads first: what a write does
    /// comes to pass all the same, only its answer does not.
    pub(crate) fn overdue(&mut self, now: u64) -> (Vec<Task>, Vec<Task>) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for line in self.lines.values_mut() {
            line.queue.retain_mut(|stalled| match stalled {
                Stalled::Read(task) if task.deadline <= now => {
                    self.bytes -= size_of::<Stalled>();
                    reads.push(task.clone());
                    false
                }
                Stalled::Write { task, .. } => {
                    writes.extend(task.take_if(|task| task.deadline <= now));
                    true
                }
                _ => true,
            });
        }
        (reads, writes)
    }

    /// Takes out the line of a shard.
    pub(crate) fn end(&mut self, shard: usize) -> VecDeque<Stalled> {
        let queue = self.lines.remove(&shard).map(|line| line.queue).unwrap_or_default();
        self.bytes -= queue.iter().map(Stalled::bytes).sum::<usize>();
        queue
    }
}
