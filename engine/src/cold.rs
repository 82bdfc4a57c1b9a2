//! Values that are being read from the disk, and who waits for them.
//!
//! A value that several wait for is read once. Reads beyond a number that keeps the disk busy
//! wait in line.

use std::collections::VecDeque;
use std::mem;

use ahash::RandomState;
use coracle_raft::{NodeId, Payload, Place};
use hashbrown::HashMap;

use crate::apply::Wanted;
use crate::task::Task;
use crate::{CoreAddr, Effects, ReadValue};

/// Reads under way at once.
const IN_FLIGHT_MAX: usize = 256;

/// Who waits for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A client's read.
    Task(u64),
    /// Commands of a shard that change the value.
    Shard(usize),
    /// A snapshot for this node.
    Snapshot(NodeId),
    /// Another replica, which cannot read its own; with its number for the request.
    Peer(CoreAddr, u64),
    /// The segment of the value is to be emptied.
    Gc,
    /// No other replica has the value now: perhaps it can be read here after all.
    Repair,
}

/// A value that is being read, or will be.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) wanted: Wanted,
    /// Place of the group that it belongs to.
    pub(crate) group: usize,
    pub(crate) waiters: Vec<Waiter>,
}

/// A client's read that lacks values.
#[derive(Debug)]
struct Reader {
    group: usize,
    task: Task,
    missing: usize,
}

/// What is being read for one core.
#[derive(Debug)]
pub(crate) struct ColdReads {
    next: u64,
    open: HashMap<u64, Open, RandomState>,
    by_place: HashMap<Place, u64, RandomState>,
    /// Not asked for yet.
    line: VecDeque<u64>,
    in_flight: usize,
    readers: HashMap<u64, Reader, RandomState>,
}

impl ColdReads {
    pub(crate) fn new(hasher: RandomState) -> Self {
        Self {
            next: 0,
            open: HashMap::with_hasher(hasher.clone()),
            by_place: HashMap::with_hasher(hasher.clone()),
            line: VecDeque::new(),
            in_flight: 0,
            readers: HashMap::with_hasher(hasher),
        }
    }

    /// Client reads that wait.
    pub(crate) fn readers(&self) -> usize {
        self.readers.len()
    }

    /// Whether reads are to be handed out.
    pub(crate) fn has_next(&self) -> bool {
        !self.line.is_empty() && self.in_flight < IN_FLIGHT_MAX
    }

    /// A value is to be read for `waiter`.
    pub(crate) fn want(&mut self, group: usize, wanted: Wanted, waiter: Waiter) {
        let place = wanted.located.place;
        if let Some(open) = self.by_place.get(&place).and_then(|id| self.open.get_mut(id)) {
            // Two values of one command are two reads, or one of them would not be checked.
            if open.wanted == wanted && open.group == group {
                open.waiters.push(waiter);
                return;
            }
        }
        self.next += 1;
        self.by_place.insert(place, self.next);
        self.open.insert(self.next, Open { wanted, group, waiters: vec![waiter] });
        self.line.push_back(self.next);
    }

    /// As [`ColdReads::want`], unless the waiter waits for this value already.
    pub(crate) fn want_once(&mut self, group: usize, wanted: Wanted, waiter: Waiter) {
        let id = self.by_place.get(&wanted.located.place);
        let open = id.and_then(|id| self.open.get(id)).filter(|open| open.group == group);
        if open.is_none_or(|open| !open.waiters.contains(&waiter)) {
            self.want(group, wanted, waiter);
        }
    }

    /// A client's read lacks these values.
    pub(crate) fn want_for(&mut self, group: usize, task: Task, wanted: Vec<Wanted>) {
        self.next += 1;
        let reader = self.next;
        self.readers.insert(reader, Reader { group, task, missing: wanted.len() });
        for wanted in wanted {
            self.want(group, wanted, Waiter::Task(reader));
        }
    }

    /// Whether anybody of this kind waits.
    pub(crate) fn waits_for(&self, waiter: Waiter) -> bool {
        self.open.values().any(|open| open.waiters.contains(&waiter))
    }

    /// Hands out what may be read now.
    pub(crate) fn issue(&mut self, effects: &mut Effects) {
        while self.in_flight < IN_FLIGHT_MAX {
            let Some(id) = self.line.pop_front() else { return };
            let Some(open) = self.open.get(&id) else { continue };
            let Wanted { key, located } = &open.wanted;
            let payload_len = located.payload_len(key);
            effects.reads.push(ReadValue { id, place: located.place, payload_len });
            self.in_flight += 1;
        }
    }

    /// A read has ended.
    pub(crate) fn done(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        self.in_flight -= 1;
        let place = open.wanted.located.place;
        if self.by_place.get(&place) == Some(&id) {
            self.by_place.remove(&place);
        }
        Some(open)
    }

    /// One value of a client's read is there, or need not be read any more. Returns the read with
    /// its group once nothing is missing.
    pub(crate) fn arrived(
        &mut self,
        reader: u64,
        fetched: Option<(Place, Payload)>,
    ) -> Option<(usize, Task)> {
        let waiting = self.readers.get_mut(&reader)?;
        waiting.task.fetched.extend(fetched);
        waiting.missing -= 1;
        if waiting.missing > 0 {
            return None;
        }
        self.readers.remove(&reader).map(|reader| (reader.group, reader.task))
    }

    /// A value of a client's read cannot be had.
    pub(crate) fn give_up(&mut self, reader: u64) -> Option<Task> {
        self.readers.remove(&reader).map(|reader| reader.task)
    }

    /// Takes out client reads whose deadline has come.
    pub(crate) fn overdue(&mut self, now: u64) -> Vec<Task> {
        let over = self.readers.extract_if(|_, reader| reader.task.deadline <= now);
        let over: Vec<Task> = over.map(|(_, reader)| reader.task).collect();
        if !over.is_empty() {
            // What only they waited for need not be read any more.
            let (readers, line) = (&self.readers, mem::take(&mut self.line));
            for id in line {
                let wanted = self.open.get(&id).is_some_and(|open| {
                    let waits = |waiter: &Waiter| match waiter {
                        Waiter::Task(reader) => readers.contains_key(reader),
                        _ => true,
                    };
                    open.waiters.iter().any(waits)
                });
                if wanted {
                    self.line.push_back(id);
                } else if let Some(open) = self.open.remove(&id) {
                    self.by_place.remove(&open.wanted.located.place);
                }
            }
        }
        over
    }
}
