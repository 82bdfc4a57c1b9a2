//! One group's log as consensus sees it: the terms of all of it, the entries of its recent part,
//! and how far it is handed out, durable, committed, delivered and applied.
//!
//! Not here: bytes. Entries older than the cache are read back by the driver.

use std::collections::VecDeque;

use crate::{BatchSeq, Entry, LogIndex, LogPosition, Recovered, Term};

/// The log of one replica. Always
/// `base <= applied <= delivered <= commit <= last` and `durable <= handed <= last`.
#[derive(Debug)]
pub(crate) struct Log {
    base: LogPosition,
    /// First entry of each run of equal terms after `base`, ascending.
    runs: Vec<LogPosition>,
    last: LogIndex,
    /// The entries up to `last`; older ones are on disk only.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    /// Entries up to here were given to the driver for writing.
    handed: LogIndex,
    /// Entries up to here are on disk.
    durable: LogIndex,
    /// What was handed out and is not durable: the batch, and the last of its entries that is
    /// still part of the log.
    writing: VecDeque<(BatchSeq, LogIndex)>,
    commit: LogIndex,
    delivered: LogIndex,
    applied: LogIndex,
}

impl Log {
    pub(crate) fn new(recovered: &mut Recovered, cache_bytes_max: usize) -> Self {
        let base = recovered.base;
        let cache: VecDeque<_> = std::mem::take(&mut recovered.tail).into();
        let log = Self {
            base,
            runs: std::mem::take(&mut recovered.runs),
            last: recovered.last,
            cache_bytes: cache.iter().map(Entry::size_bytes).sum(),
            cache,
            cache_bytes_max,
            handed: recovered.last,
            durable: recovered.last,
            writing: VecDeque::new(),
            commit: base.index,
            delivered: base.index,
            applied: base.index,
        };
        log.check();
        log
    }

    pub(crate) const fn base(&self) -> LogPosition {
        self.base
    }

    pub(crate) const fn last(&self) -> LogIndex {
        self.last
    }

    pub(crate) const fn durable(&self) -> LogIndex {
        self.durable
    }

    pub(crate) const fn commit(&self) -> LogIndex {
        self.commit
    }

    pub(crate) const fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(crate) const fn delivered(&self) -> LogIndex {
        self.delivered
    }

    /// Where the last entry stands; the base if there are none.
    pub(crate) fn last_position(&self) -> LogPosition {
        let term = self.runs.last().map_or(self.base.term, |run| run.term);
        LogPosition { term, index: self.last }
    }

    /// Term of an entry, if the log still knows it.
    pub(crate) fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index < self.base.index || index > self.last {
            return None;
        }
        let after = self.runs.partition_point(|run| run.index <= index);
        Some(after.checked_sub(1).map_or(self.base.term, |run| self.runs[run].term))
    }

    /// The largest position at or before `at.index` whose term is at most `at.term`; the base if
    /// there is none. Skips whole terms (Raft paper §5.3, end).
    pub(crate) fn last_at_most(&self, at: LogPosition) -> LogPosition {
        let mut end = at.index.min(self.last);
        for run in self.runs.iter().rev() {
            if run.index > end {
                continue;
            }
            if run.term <= at.term {
                return LogPosition { term: run.term, index: end };
            }
            end = run.index.prev();
        }
        self.base
    }

    /// Adds an entry at the end.
    pub(crate) fn append(&mut self, entry: Entry) {
        let position = entry.position();
        let last = self.last_position();
        assert!(position.index == self.last.next(), "entry {} after {}", position.index, self.last);
        assert!(position.term >= last.term, "term {} after {}", position.term, last.term);
        if position.term > last.term || self.runs.is_empty() {
            self.runs.push(position);
        }
        self.last = position.index;
        self.cache_bytes += entry.size_bytes();
        self.cache.push_back(entry);
    }

    /// Drops `from` and everything after it. What was being written of it does not count.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(from > self.commit, "truncation at {from} of what is committed to {}", self.commit);
        while self.cache.back().is_some_and(|entry| entry.index >= from) {
            let entry = self.cache.pop_back().expect("just seen");
            self.cache_bytes -= entry.size_bytes();
        }
        self.last = self.last.min(from.prev());
        while self.runs.last().is_some_and(|run| run.index >= from) {
            self.runs.pop();
        }
        self.handed = self.handed.min(self.last);
        self.durable = self.durable.min(self.last);
        for (_, last) in &mut self.writing {
            *last = (*last).min(from.prev());
        }
    }

    /// First entry in memory; one past the end if there is none.
    fn cache_first(&self) -> LogIndex {
        self.cache.front().map_or(self.last.next(), |entry| entry.index)
    }

    /// Entries from `first` up to `last`, at least one and then while they fit `bytes_max` and
    /// `count_max`. `None` if `first` is not in memory.
    pub(crate) fn entries(
        &self,
        first: LogIndex,
        last: LogIndex,
        bytes_max: usize,
        count_max: usize,
    ) -> Option<Vec<Entry>> {
        if first < self.cache_first() {
            return None;
        }
        let last = last.min(self.last);
        let start = first.since(self.cache_first()) as usize;
        let count = (last.next().since(first) as usize).min(count_max);
        let mut entries = Vec::with_capacity(count.min(256));
        let mut bytes = 0;
        for entry in self.cache.iter().skip(start).take(count) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    /// Bytes of the entries `first..=last` that are in memory.
    pub(crate) fn bytes_between(&self, first: LogIndex, last: LogIndex) -> usize {
        let start = first.since(self.cache_first()) as usize;
        let count = last.next().since(first.max(self.cache_first())) as usize;
        self.cache.iter().skip(start).take(count).map(Entry::size_bytes).sum()
    }

    /// Last entry that is on disk only, when `first` is one of those.
    pub(crate) fn last_on_disk_only(&self) -> LogIndex {
        self.cache_first().prev()
    }

    /// Whether entries wait to be handed out for writing.
    pub(crate) fn has_unhanded(&self) -> bool {
        self.handed < self.last
    }

    /// Hands out what is to be written as part of `batch`.
    pub(crate) fn hand_out(&mut self, batch: BatchSeq, into: &mut Vec<Entry>) {
        if !self.has_unhanded() {
            return;
        }
        let first = self.handed.next();
        assert!(first >= self.cache_first(), "unwritten entries are never evicted");
        let start = first.since(self.cache_first()) as usize;
        into.extend(self.cache.iter().skip(start).cloned());
        self.handed = self.last;
        self.writing.push_back((batch, self.last));
    }

    /// Everything handed out up to and including `batch` is on disk.
    pub(crate) fn persisted(&mut self, batch: BatchSeq) {
        while let Some(&(written, last)) = self.writing.front() {
            if written > batch {
                break;
            }
            self.writing.pop_front();
            self.durable = self.durable.max(last.min(self.handed));
        }
    }

    /// Moves the commit index forward; never back.
    pub(crate) fn commit_to(&mut self, index: LogIndex) {
        assert!(
            index >= self.commit,
            "commit index must not move back: {} -> {index}",
            self.commit
        );
        assert!(index <= self.last, "commit {index} past the last entry {}", self.last);
        self.commit = index;
    }

    /// Committed entries the state machine has not got yet. `None` if they are on disk only.
    pub(crate) fn deliver(&mut self, bytes_max: usize) -> Option<Vec<Entry>> {
        if self.delivered == self.commit {
            return Some(Vec::new());
        }
        let entries = self.entries(self.delivered.next(), self.commit, bytes_max, usize::MAX)?;
        self.delivered = entries.last().map_or(self.delivered, |entry| entry.index);
        Some(entries)
    }

    /// Takes over entries that were read back and are the next to deliver.
    pub(crate) fn delivered_to(&mut self, index: LogIndex) {
        assert!(index >= self.delivered, "delivery went back: {} -> {index}", self.delivered);
        assert!(index <= self.commit, "delivery of {index} past commit {}", self.commit);
        self.delivered = index;
    }

    /// The state machine has applied everything up to `index`.
    pub(crate) fn applied_to(&mut self, index: LogIndex) {
        assert!(index <= self.delivered, "{index} applied, {} delivered", self.delivered);
        self.applied = self.applied.max(index);
        self.evict();
    }

    /// Frees memory of entries that are applied and on disk.
    pub(crate) fn evict(&mut self) {
        let settled = self.applied.min(self.durable);
        while self.cache_bytes > self.cache_bytes_max {
            match self.cache.front() {
                Some(entry) if entry.index <= settled => {
                    self.cache_bytes -= entry.size_bytes();
                    self.cache.pop_front();
                }
                _ => break,
            }
        }
    }

    /// Forgets everything up to `index`, which must be applied.
    pub(crate) fn compact(&mut self, index: LogIndex) {
        if index <= self.base.index {
            return;
        }
        assert!(index <= self.applied, "compaction to {index}, applied {}", self.applied);
        let term = self.term_of(index).expect("base < index <= applied <= last");
        self.forget(LogPosition { term, index });
    }

    fn forget(&mut self, base: LogPosition) {
        let kept_from = self.runs.partition_point(|run| run.index <= base.index);
        // The run that `base` cuts goes on after it.
        let cut = kept_from.checked_sub(1).map_or(self.base.term, |run| self.runs[run].term);
        let next_run = self.runs.get(kept_from).map_or(self.last.next(), |run| run.index);
        self.runs.drain(..kept_from);
        if next_run > base.index.next() && self.last > base.index {
            self.runs.insert(0, LogPosition { term: cut, index: base.index.next() });
        }
        while self.cache.front().is_some_and(|entry| entry.index <= base.index) {
            let entry = self.cache.pop_front().expect("just seen");
            self.cache_bytes -= entry.size_bytes();
        }
        self.base = base;
        // What is forgotten need not be written any more.
        self.handed = self.handed.max(base.index);
        self.durable = self.durable.max(base.index);
    }

    /// A snapshot covers everything up to `base`. Entries after it stay if the log agrees with
    /// it there; otherwise the log starts anew. Returns whether they stayed.
    pub(crate) fn restore(&mut self, base: LogPosition) -> bool {
        assert!(base.index > self.commit, "snapshot at {} of {}", base.index, self.commit);
        let agrees = self.term_of(base.index) == Some(base.term);
        if agrees {
            self.forget(base);
        } else {
            self.runs.clear();
            self.cache.clear();
            self.cache_bytes = 0;
            self.writing.clear();
            self.base = base;
            self.last = base.index;
            self.handed = base.index;
            self.durable = base.index;
        }
        self.commit = base.index;
        self.delivered = base.index;
        self.applied = base.index;
        agrees
    }

    /// Every relation between the parts; O(n) over the cache and runs.
    pub(crate) fn check(&self) {
        assert!(self.base.index <= self.applied, "{} > {}", self.base.index, self.applied);
        assert!(self.applied <= self.delivered, "{} > {}", self.applied, self.delivered);
        assert!(self.delivered <= self.commit, "{} > {}", self.delivered, self.commit);
        assert!(self.commit <= self.last, "{} > {}", self.commit, self.last);
        assert!(self.durable <= self.handed, "{} > {}", self.durable, self.handed);
        assert!(self.handed <= self.last, "{} > {}", self.handed, self.last);
        assert!(self.handed >= self.last_on_disk_only(), "an unwritten entry left memory");
        let mut before = self.base;
        for run in &self.runs {
            assert!(run.index > before.index, "run at {} after {}", run.index, before.index);
            assert!(run.term >= before.term, "run of {} after {}", run.term, before.term);
            before = *run;
        }
        assert!(before.index <= self.last.max(self.base.index), "a run starts past the end");
        assert!(
            self.last == self.base.index
                || self.runs.first().map(|run| run.index) == Some(self.base.index.next()),
            "the first run starts right after the base"
        );
        for (offset, entry) in self.cache.iter().rev().enumerate() {
            let index = LogIndex::new(self.last.get() - offset as u64);
            assert!(entry.index == index, "entry {} in the place of {index}", entry.index);
            assert!(self.term_of(index) == Some(entry.term), "term of {index} differs");
        }
    }
}
