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
        let applied = base.index.max(recovered.applied);
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
            commit: applied.max(recovered.commit),
            delivered: applied,
            applied,
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

    /// An entry, if it is in memory.
    pub(crate) fn entry(&self, index: LogIndex) -> Option<&Entry> {
        let place = index.get().checked_sub(self.cache_first().get())?;
        self.cache.get(usize::try_from(place).ok()?)
    }

    /// First entry of each run of equal terms after the base, ascending.
    pub(crate) fn runs(&self) -> &[LogPosition] {
        &self.runs
    }

    /// Bytes of the entries in memory.
    pub(crate) const fn cache_bytes(&self) -> usize {
        self.cache_bytes
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
        let (index, delivered, commit) = (base.index, self.delivered, self.commit);
        let agrees = self.term_of(index) == Some(base.term);
        assert!(index > delivered, "snapshot at {index}, delivered {delivered}");
        assert!(agrees || index > commit, "snapshot at {index} differs, committed {commit}");
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
        self.commit = commit.max(index);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::{EntryKind, Payload};

    fn at(term: u64, index: u64) -> LogPosition {
        LogPosition { term: Term::new(term), index: LogIndex::new(index) }
    }

    fn entry(term: u64, index: u64) -> Entry {
        let LogPosition { term, index } = at(term, index);
        let payload = Payload::new(vec![0; 52], 0);
        Entry { term, index, kind: EntryKind::Command, payload }
    }

    fn log_of(terms: &[u64], cache_bytes_max: usize) -> Log {
        let mut log = Log::new(&mut Recovered::default(), cache_bytes_max);
        for (&term, index) in terms.iter().zip(1..) {
            log.append(entry(term, index));
        }
        log
    }

    fn hand_out(log: &mut Log, batch: u64) -> Vec<u64> {
        let mut entries = Vec::new();
        log.hand_out(BatchSeq::new(batch), &mut entries);
        entries.iter().map(|entry| entry.index.get()).collect()
    }

    /// What the state machine holds at the start is not delivered again.
    #[test]
    fn delivery_goes_on_after_what_is_applied() {
        for (applied, base, want) in [(0, 0, 1), (3, 0, 4), (2, 3, 4), (5, 0, 6)] {
            let mut recovered = Recovered {
                base: if base == 0 { LogPosition::default() } else { at(1, base) },
                runs: vec![at(1, base + 1)],
                last: LogIndex::new(5),
                applied: LogIndex::new(applied),
                tail: (base + 1..=5).map(|index| entry(1, index)).collect(),
                ..Recovered::default()
            };
            let mut log = Log::new(&mut recovered, 1 << 20);
            assert_eq!(log.commit(), LogIndex::new(want - 1), "all of it is committed");
            log.commit_to(LogIndex::new(5));
            let first = log.deliver(1 << 20).and_then(|entries| Some(entries.first()?.index.get()));
            assert_eq!(first, (want < 6).then_some(want), "{applied} applied, base {base}");
        }
    }

    /// Backing off skips whole terms (Raft paper §5.3, end).
    #[test]
    fn back_off_finds_the_last_entry_of_at_most_a_term() {
        let mut log = log_of(&[1, 1, 4, 4, 5, 5, 6, 6, 6], 1 << 20);
        let cases = [
            ((6, 9), (6, 9)),
            ((6, 99), (6, 9)),
            ((5, 9), (5, 6)),
            ((4, 9), (4, 4)),
            ((3, 9), (1, 2)),
            ((4, 1), (1, 1)),
            ((0, 9), (0, 0)),
        ];
        for (asked, want) in cases {
            assert_eq!(log.last_at_most(at(asked.0, asked.1)), at(want.0, want.1), "{asked:?}");
        }
        log.commit_to(LogIndex::new(4));
        log.deliver(usize::MAX).expect("in memory");
        log.applied_to(LogIndex::new(4));
        log.compact(LogIndex::new(3));
        assert_eq!(log.last_at_most(at(4, 9)), at(4, 4));
        assert_eq!(log.last_at_most(at(1, 9)), at(4, 3), "the base, when older is forgotten");
    }

    /// Only what is applied and on disk may leave memory.
    #[test]
    fn eviction_spares_what_is_unwritten_or_unapplied() {
        let mut log = log_of(&[1, 1, 1, 1], 0);
        assert_eq!(hand_out(&mut log, 1), [1, 2, 3, 4]);
        log.commit_to(LogIndex::new(3));
        assert_eq!(log.deliver(250).expect("in memory").len(), 2, "as many as fit");
        log.applied_to(LogIndex::new(2));
        assert_eq!(log.cache_first(), LogIndex::new(1), "nothing is on disk");
        log.persisted(BatchSeq::new(1));
        log.evict();
        assert_eq!(log.cache_first(), LogIndex::new(3), "3 is not applied");
        assert_eq!(log.entries(LogIndex::new(2), LogIndex::new(4), 999, 9), None);
        let rest = log.entries(LogIndex::new(3), LogIndex::new(4), 1, 9).expect("in memory");
        assert_eq!(rest.len(), 1, "at least one, however large");
        log.check();
    }

    /// What a snapshot of the state machine covers is not written any more, and needs not be.
    #[test]
    fn compaction_may_overtake_the_disk() {
        let mut log = log_of(&[1, 1, 1], 1 << 20);
        log.commit_to(LogIndex::new(2));
        log.deliver(usize::MAX).expect("in memory");
        log.applied_to(LogIndex::new(2));
        log.compact(LogIndex::new(2));
        log.check();
        assert_eq!(log.durable(), LogIndex::new(2));
        assert_eq!(hand_out(&mut log, 1), [3]);
    }

    /// A batch counts only for what is still part of the log when it completes.
    #[test]
    fn truncation_takes_its_part_out_of_writes_under_way() {
        let mut log = log_of(&[1, 1, 1], 1 << 20);
        hand_out(&mut log, 1);
        log.truncate(LogIndex::new(2));
        log.append(entry(2, 2));
        assert_eq!(hand_out(&mut log, 2), [2]);
        log.persisted(BatchSeq::new(1));
        assert_eq!(log.durable(), LogIndex::new(1));
        log.persisted(BatchSeq::new(2));
        assert_eq!(log.durable(), LogIndex::new(2));
        log.check();
    }

    /// The runs tell every term, through appends, truncations, compactions and snapshots.
    #[test]
    fn terms_equal_those_of_a_plain_list() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut log = log_of(&[], 200);
            // Term by index; 0 at what is forgotten. `plain[0]` is before the log.
            let (mut plain, mut batch) = (vec![0_u64], 0);
            for _ in 0..200 {
                let last = plain.len() as u64 - 1;
                let commit = log.commit().get();
                match rng.below(8) {
                    0..3 => {
                        let term = plain[last as usize].max(1) + u64::from(rng.below(4) / 3);
                        log.append(entry(term, last + 1));
                        plain.push(term);
                    }
                    3 if last > commit => {
                        let from = commit + 1 + u64::from(rng.below((last - commit) as u32));
                        log.truncate(LogIndex::new(from));
                        plain.truncate(from as usize);
                    }
                    4 => {
                        let to = commit + u64::from(rng.below((last - commit) as u32 + 1));
                        log.commit_to(LogIndex::new(to));
                        if log.deliver(usize::MAX).is_some() {
                            log.applied_to(log.delivered());
                        }
                    }
                    5 => {
                        batch += 1;
                        hand_out(&mut log, batch);
                        log.persisted(BatchSeq::new(batch - u64::from(rng.below(2))));
                    }
                    6 => log.compact(LogIndex::new(
                        log.applied().get().saturating_sub(u64::from(rng.below(3))),
                    )),
                    7 if rng.below(5) == 0 => {
                        let index = commit + 1 + u64::from(rng.below(4));
                        let term = plain[last.min(index) as usize] + u64::from(rng.below(2));
                        let base = at(term.max(1), index);
                        let kept = log.restore(base);
                        assert_eq!(kept, plain.get(index as usize) == Some(&base.term.get()));
                        if !kept {
                            plain.resize(index as usize + 1, 0);
                            plain.truncate(index as usize + 1);
                            plain[index as usize] = base.term.get();
                        }
                    }
                    _ => {}
                }
                log.check();
                for index in log.base().index.get()..plain.len() as u64 {
                    let want = Some(Term::new(plain[index as usize]));
                    assert_eq!(log.term_of(LogIndex::new(index)), want, "seed {seed}: {index}");
                }
                assert_eq!(log.last().get() + 1, plain.len() as u64, "seed {seed}");
            }
        }
    }
}
