//! What the log remembers of each group: what to write again, what is still needed, and where
//! the entries are.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use coracle_raft::{BatchSeq, GroupId, HardState, LogIndex, LogPosition, Place, Term};

use crate::Lsn;
use crate::segment::SegmentId;

/// Groups by number. Iteration order means nothing: sort before it can be seen.
pub(crate) type GroupMap<T> = HashMap<GroupId, T, BuildHasherDefault<IdHasher>>;

/// Spreads small integers; an attacker does not choose group numbers.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        let mixed = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A run of the index is closed when it spans this many bytes, so that a read in its middle
/// fetches little else.
const RUN_BYTES_MAX: u32 = 128 << 10;

/// Where consecutive entries of one group and term lie within one batch; records of other groups
/// may lie between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: LogIndex,
    pub(crate) term: Term,
    pub(crate) segment: SegmentId,
    /// Offset of the batch in the segment.
    pub(crate) batch: u32,
    /// First byte of the first record, relative to the batch.
    pub(crate) start: u32,
    /// End of the last record, relative to the batch; `start` if nothing can be read.
    pub(crate) end: u32,
}

impl Run {
    /// Whether the entries stood in a place that is damaged: they cannot be read.
    pub(crate) const fn is_lost(&self) -> bool {
        self.start == self.end
    }
}

/// Where one record was put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) segment: SegmentId,
    pub(crate) batch: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) lsn: Lsn,
}

impl Spot {
    /// The same as the rest of the system knows it.
    pub(crate) const fn place(&self) -> Place {
        Place::new(self.segment.number(), self.batch as u64 + self.offset as u64)
    }
}

/// What one segment holds of one group that is not written again at each segment start.
#[derive(Clone, Copy, Debug)]
struct Use {
    segment: SegmentId,
    max_index: LogIndex,
    /// Where the newest state record stands, and in which batch it was appended; batches of
    /// earlier processes count as 0.
    max_state: Option<(Lsn, BatchSeq)>,
}

/// What is before this is superseded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Before {
    Position(Lsn),
    Batch(BatchSeq),
}

/// One group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Number of its newest record.
    pub(crate) seq: u64,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) base: Option<LogPosition>,
    /// Its newest entry.
    pub(crate) last: LogIndex,
    /// Segments from here on are evidence of damage and stay until the group is reset.
    pub(crate) pin: Option<SegmentId>,
    durable_base: LogIndex,
    released_position: Lsn,
    released_batch: BatchSeq,
    uses: VecDeque<Use>,
    runs: VecDeque<Run>,
}

impl Group {
    /// A group whose first record has the number after `seq`.
    pub(crate) fn starting_at(seq: u64) -> Self {
        Self { seq, ..Self::default() }
    }

    /// Takes note of an entry. Returns whether the segment is newly used by this group.
    ///
    /// One that was lost has no length: all that is known of it is that it stood in this batch.
    pub(crate) fn entry_put(&mut self, position: LogPosition, spot: Spot) -> bool {
        let LogPosition { term, index } = position;
        let follows = index == self.last.next() && !self.runs.is_empty();
        if index > self.last && !follows {
            // The log begins here, or jumped forward after a snapshot.
            self.runs.clear();
        }
        while self.runs.back().is_some_and(|run| run.first >= index) {
            self.runs.pop_back();
        }
        self.last = index;
        match self.runs.back_mut() {
            Some(run)
                if follows
                    && run.segment == spot.segment
                    && run.batch == spot.batch
                    && run.term == term
                    && run.is_lost() == (spot.len == 0)
                    && run.end - run.start < RUN_BYTES_MAX =>
            {
                run.end = if run.is_lost() { run.start } else { spot.offset + spot.len };
            }
            _ => self.runs.push_back(Run {
                first: index,
                term,
                segment: spot.segment,
                batch: spot.batch,
                start: spot.offset,
                end: spot.offset + spot.len,
            }),
        }
        self.used(spot.segment, |used| used.max_index = used.max_index.max(index))
    }

    /// Takes note of a state record. Returns whether the segment is newly used by this group.
    pub(crate) fn state_put(&mut self, spot: Spot, batch: BatchSeq) -> bool {
        self.used(spot.segment, |used| used.max_state = Some((spot.lsn, batch)))
    }

    fn used(&mut self, segment: SegmentId, update: impl FnOnce(&mut Use)) -> bool {
        match self.uses.back_mut() {
            Some(used) if used.segment == segment => {
                update(used);
                false
            }
            _ => {
                let mut used = Use { segment, max_index: LogIndex::ZERO, max_state: None };
                update(&mut used);
                self.uses.push_back(used);
                true
            }
        }
    }

    /// Whether the log holds something else at `base`, or ends before it: then a snapshot
    /// replaces all of it.
    pub(crate) fn restarts_at(&self, base: LogPosition) -> bool {
        if self.base.is_some_and(|old| old.index >= base.index) {
            return false;
        }
        let after = self.runs.partition_point(|run| run.first <= base.index);
        let home = after.checked_sub(1).map(|at| self.runs[at]);
        base.index > self.last || home.is_some_and(|run| run.term != base.term)
    }

    /// Takes note of a purge: the index forgets; what is on disk stays until it is durable.
    pub(crate) fn purge_put(&mut self, base: LogPosition) {
        let restart = self.restarts_at(base);
        if self.base.is_some_and(|old| old.index >= base.index) {
            return;
        }
        self.base = Some(base);
        if restart || self.last <= base.index {
            self.runs.clear();
            self.last = base.index;
            return;
        }
        while self.runs.get(1).is_some_and(|run| run.first <= base.index.next()) {
            self.runs.pop_front();
        }
    }

    /// Takes note of a reset put into `segment`: nothing before it counts. Returns whether the
    /// segment is no longer used by this group; older ones are let go by [`Group::reset_durable`].
    pub(crate) fn reset_put(&mut self, segment: SegmentId) -> bool {
        self.hard_state = None;
        self.base = None;
        self.last = LogIndex::ZERO;
        self.runs.clear();
        let used = self.uses.back().is_some_and(|used| used.segment == segment);
        if used {
            self.uses.pop_back();
        }
        used
    }

    /// A purge is on disk. Returns the segments this group no longer needs.
    pub(crate) fn purge_durable(&mut self, base: LogIndex) -> Vec<SegmentId> {
        self.durable_base = self.durable_base.max(base);
        self.unused()
    }

    /// State records before this are superseded on disk. As [`Group::purge_durable`].
    pub(crate) fn state_released(&mut self, before: Before) -> Vec<SegmentId> {
        match before {
            Before::Position(lsn) => self.released_position = self.released_position.max(lsn),
            Before::Batch(batch) => self.released_batch = self.released_batch.max(batch),
        }
        self.unused()
    }

    /// The reset in `segment` is on disk. As [`Group::purge_durable`].
    pub(crate) fn reset_durable(&mut self, segment: SegmentId) -> Vec<SegmentId> {
        self.pin = None;
        self.durable_base = LogIndex::ZERO;
        let mut freed = Vec::new();
        while self.uses.front().is_some_and(|used| used.segment < segment) {
            freed.extend(self.uses.pop_front().map(|used| used.segment));
        }
        freed.extend(self.unused());
        freed
    }

    /// Oldest first only: what comes later in the log may have replaced what is here.
    fn unused(&mut self) -> Vec<SegmentId> {
        let mut freed = Vec::new();
        while let Some(used) = self.uses.front() {
            let entries_dead = used.max_index <= self.durable_base;
            let state_dead = used.max_state.is_none_or(|(lsn, batch)| {
                lsn < self.released_position || batch < self.released_batch
            });
            if !entries_dead || !state_dead {
                break;
            }
            freed.push(used.segment);
            self.uses.pop_front();
        }
        freed
    }

    /// The oldest segment this group needs, if any.
    pub(crate) fn oldest_segment(&self) -> Option<SegmentId> {
        let used = self.uses.front().map(|used| used.segment);
        match (used, self.pin) {
            (Some(used), Some(pin)) => Some(used.min(pin)),
            (used, pin) => used.or(pin),
        }
    }

    /// The runs that hold the entries from `first` on, each with its last index.
    pub(crate) fn runs_from(&self, first: LogIndex) -> impl Iterator<Item = (Run, LogIndex)> {
        let after = self.runs.partition_point(|run| run.first <= first);
        let start = if first > self.last { self.runs.len() } else { after.saturating_sub(1) };
        // Before the first run nothing is known, not even that there are no entries.
        let start = if after == 0 { self.runs.len() } else { start };
        (start..self.runs.len()).map(|at| {
            let last = self.runs.get(at + 1).map_or(self.last, |next| next.first.prev());
            (self.runs[at], last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u64, batch: u32, offset: u32, len: u32) -> Spot {
        let lsn = Lsn::new(segment * 1_000_000 + u64::from(batch + offset));
        Spot { segment: SegmentId::new(segment), batch, offset, len, lsn }
    }

    fn at(raw: u64) -> LogPosition {
        LogPosition { term: Term::new(1), index: index(raw) }
    }

    fn index(raw: u64) -> LogIndex {
        LogIndex::new(raw)
    }

    fn ranges(group: &Group, first: u64) -> Vec<(u64, u64)> {
        group.runs_from(index(first)).map(|(run, last)| (run.first.get(), last.get())).collect()
    }

    #[test]
    fn overwriting_cuts_the_index_and_batches_split_it() {
        let mut group = Group::default();
        for (i, batch) in [(1, 0), (2, 0), (3, 4096), (4, 4096), (5, 8192)] {
            group.entry_put(at(i), place(1, batch, 64 + i as u32 * 56, 56));
        }
        assert_eq!(ranges(&group, 1), [(1, 2), (3, 4), (5, 5)]);
        assert_eq!(ranges(&group, 4), [(3, 4), (5, 5)]);
        assert_eq!(ranges(&group, 6), []);
        group.entry_put(at(4), place(1, 12288, 64, 56));
        assert_eq!(ranges(&group, 1), [(1, 2), (3, 3), (4, 4)]);
        group.entry_put(at(2), place(1, 12288, 120, 56));
        assert_eq!(ranges(&group, 1), [(1, 1), (2, 2)]);
    }

    #[test]
    fn purge_drops_what_is_behind_and_gaps_restart() {
        let mut group = Group::default();
        for i in 1..=6 {
            group.entry_put(at(i), place(1, 4096 * i as u32, 64, 56));
        }
        group.purge_put(LogPosition { term: Term::new(1), index: index(3) });
        assert_eq!(ranges(&group, 4), [(4, 4), (5, 5), (6, 6)]);
        assert_eq!(ranges(&group, 3), []);
        group.entry_put(at(100), place(2, 0, 64, 56));
        assert_eq!(ranges(&group, 100), [(100, 100)]);
        assert_eq!(ranges(&group, 6), []);
        group.purge_put(LogPosition { term: Term::new(1), index: index(200) });
        assert_eq!(ranges(&group, 100), []);
        group.entry_put(at(201), place(2, 4096, 64, 56));
        assert_eq!(ranges(&group, 201), [(201, 201)]);
    }

    #[test]
    fn segments_are_let_go_from_the_oldest() {
        let mut group = Group::default();
        assert!(group.entry_put(at(1), place(1, 0, 64, 56)));
        assert!(!group.entry_put(at(9), place(1, 0, 120, 56)));
        assert!(group.entry_put(at(2), place(2, 0, 64, 56)));
        let state = place(3, 0, 64, 56);
        assert!(group.state_put(state, BatchSeq::new(5)));
        assert_eq!(group.purge_durable(index(5)), [], "segment 1 still holds entry 9");
        let freed = group.purge_durable(index(9));
        assert_eq!(freed, [SegmentId::new(1), SegmentId::new(2)]);
        assert_eq!(group.oldest_segment(), Some(SegmentId::new(3)));
        assert_eq!(group.state_released(Before::Position(state.lsn)), []);
        assert_eq!(group.state_released(Before::Batch(BatchSeq::new(5))), []);
        assert_eq!(group.state_released(Before::Batch(BatchSeq::new(6))), [SegmentId::new(3)]);
        assert_eq!(group.oldest_segment(), None);
    }
}
