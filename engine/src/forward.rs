//! Commands sent to the core that leads their group, and commands that wait because nobody
//! knows which one that is.

use std::collections::{BTreeMap, VecDeque};

use ahash::RandomState;
use coracle_raft::GroupId;
use hashbrown::HashMap;

use crate::CoreAddr;
use crate::task::{Origin, Task};

/// A command that another core works on.
#[derive(Debug)]
struct Sent {
    task: Task,
    to: CoreAddr,
}

/// Commands sent to other cores and not answered yet.
#[derive(Debug)]
pub(crate) struct Forwards {
    next_id: u64,
    open: HashMap<u64, Sent, RandomState>,
    /// (deadline, id) in the order of sending; answered ones are dropped when they come first.
    order: VecDeque<(u64, u64)>,
    bytes: usize,
}

impl Forwards {
    /// `first_id` should differ between starts, so that no late answer finds a wrong command.
    pub(crate) fn new(first_id: u64, hasher: RandomState) -> Self {
        let open = HashMap::with_hasher(hasher);
        Self { next_id: first_id, open, order: VecDeque::new(), bytes: 0 }
    }

    /// Remembers a command that is about to be sent; returns its number.
    pub(crate) fn send(&mut self, task: Task, to: CoreAddr, deadline: u64) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.bytes += task.size_bytes();
        self.order.push_back((deadline, id));
        self.open.insert(id, Sent { task, to });
        id
    }

    /// Takes out the command that `from` answers; `None` if it was never sent there or has been
    /// given up.
    pub(crate) fn answered(&mut self, from: CoreAddr, id: u64) -> Option<Task> {
        if self.open.get(&id).is_none_or(|sent| sent.to != from) {
            return None;
        }
        let task = self.remove(id);
        while self.order.front().is_some_and(|(_, id)| !self.open.contains_key(id)) {
            self.order.pop_front();
        }
        task
    }

    /// Takes out everything sent to `to`, in the order of sending.
    pub(crate) fn lost(&mut self, to: CoreAddr) -> Vec<Task> {
        let mut ids: Vec<u64> =
            self.open.iter().filter(|(_, sent)| sent.to == to).map(|(&id, _)| id).collect();
        ids.sort_unstable_by_key(|&id| id.wrapping_sub(self.next_id));
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes out a command whose deadline has come.
    pub(crate) fn overdue(&mut self, now: u64) -> Option<Task> {
        while let Some(&(deadline, id)) = self.order.front() {
            if deadline > now && self.open.contains_key(&id) {
                return None;
            }
            self.order.pop_front();
            if let Some(task) = self.remove(id) {
                return Some(task);
            }
        }
        None
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    fn remove(&mut self, id: u64) -> Option<Task> {
        let sent = self.open.remove(&id)?;
        self.bytes -= sent.task.size_bytes();
        Some(sent.task)
    }
}

/// Commands whose group has no known leader, in order of arrival per group.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    by_group: BTreeMap<GroupId, VecDeque<Task>>,
    count: usize,
    bytes: usize,
}

impl Parked {
    pub(crate) fn push(&mut self, group: GroupId, task: Task) {
        self.count += 1;
        self.bytes += task.size_bytes();
        self.by_group.entry(group).or_default().push_back(task);
    }

    /// Takes out all commands of one group.
    pub(crate) fn take(&mut self, group: GroupId) -> VecDeque<Task> {
        let tasks = self.by_group.remove(&group).unwrap_or_default();
        self.count -= tasks.len();
        self.bytes -= tasks.iter().map(Task::size_bytes).sum::<usize>();
        tasks
    }

    /// Drops what a client that is gone has waiting.
    pub(crate) fn forget(&mut self, origin: Origin) {
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        self.by_group.retain(|_, tasks| {
            tasks.retain(|task| {
                let keep = task.origin != origin;
                if !keep {
                    *count -= 1;
                    *bytes -= task.size_bytes();
                }
                keep
            });
            !tasks.is_empty()
        });
    }

    /// Whether commands of this group wait: later ones must not overtake them.
    pub(crate) fn holds(&self, group: GroupId) -> bool {
        self.by_group.contains_key(&group)
    }

    /// The groups with parked commands.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        self.by_group.keys().copied().collect()
    }

    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}
