//! From the records on disk to the state of every group, as the process left it.

use std::collections::{BTreeMap, VecDeque};

use ahash::RandomState;
use coracle_raft::{
    BatchSeq, Entry, EntryKind, GroupId, HardState, LogIndex, LogPosition, Membership, Place,
    Record, Recovered, Term,
};

use crate::checkpoint::section::{self, About};
use crate::checkpoint::{Checkpoints, ShardSnapshot, ShardSnapshots};
use crate::group::GroupState;
use crate::places::Places;
use crate::snapshot::{Apart, Piece, PieceValue, Thawing};
use crate::store::{Graveyard, Shard, Store, shards_of};
use crate::{ClusterMap, CoreAddr, ShardId};

/// Newest entries kept in memory at the start, over all groups of the core: as much as consensus
/// keeps while it runs.
const TAIL_BYTES_TOTAL: usize = 32 << 20;
/// And at least this much for each.
const TAIL_BYTES_MIN: usize = 256 << 10;

/// Collects checkpoints and then the records of one core's log, in their order, for
/// [`crate::Core::new`].
pub struct Recovery {
    map: ClusterMap,
    addr: CoreAddr,
    groups: BTreeMap<GroupId, GroupRecovery>,
    damaged: BTreeMap<GroupId, String>,
    tail_bytes_max: usize,
    /// Entries that start closer to the end of the log are kept in memory.
    tail_from_bytes: u64,
    hasher: RandomState,
    ignored: u64,
    /// The oldest segment that each checkpoint file refers to, by the number of the file.
    files: BTreeMap<u64, u64>,
    newest_number: u64,
    newest_segment: u64,
}

/// What has been read of one group.
struct GroupRecovery {
    hard_state: HardState,
    base: LogPosition,
    base_membership: Membership,
    /// First entry of each run of equal terms. The first run may start after `base` while
    /// records are read: what was forgotten is forgotten by segments, not at once.
    runs: Vec<LogPosition>,
    last: LogIndex,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    memberships: Vec<Entry>,
    /// Membership read for a base whose purge has not come yet.
    next_base: Option<(LogPosition, Membership)>,
    thawing: BTreeMap<ShardId, Thawing>,
    /// Values of snapshots that were read since the last of their pieces.
    apart: Apart,
    shards: BTreeMap<ShardId, Found>,
    places: Places,
}

/// What was found of one shard.
struct Found {
    shard: Shard,
    snapshots: ShardSnapshots,
}

impl Recovery {
    /// Keeps only such entries in memory as start within the last `bytes` of the log. Default: 32
    /// MiB.
    #[must_use]
    pub const fn with_tail_of(mut self, bytes: u64) -> Self {
        self.tail_from_bytes = bytes;
        self
    }

    /// Nothing on disk yet.
    pub fn new(map: ClusterMap, addr: CoreAddr) -> Self {
        let count = map.groups_on(addr).count().max(1);
        let tail_bytes_max = (TAIL_BYTES_TOTAL / count).max(TAIL_BYTES_MIN);
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        Self {
            map,
            addr,
            groups: BTreeMap::new(),
            damaged: BTreeMap::new(),
            tail_bytes_max,
            tail_from_bytes: TAIL_BYTES_TOTAL as u64,
            hasher,
            ignored: 0,
            files: BTreeMap::new(),
            newest_number: 0,
            newest_segment: 0,
        }
    }

    /// Takes a section of checkpoint file `file`, before all records of the log. Sections of the
    /// newest file come first; of those of older ones only what they are about is looked at, unless
    /// the newer one is missing.
    pub fn section(&mut self, file: u64, bytes: &[u8]) {
        let understood = self.read_section(file, bytes).is_some();
        self.ignored += u64::from(!understood);
    }

    fn read_section(&mut self, file: u64, bytes: &[u8]) -> Option<()> {
        let About { group: id, shard, at, clock, values_from } = section::about(bytes).ok()?;
        if !self.hosts(id) || shard.0 >= self.map.shard_count() || self.map.group_of(shard) != id {
            return None;
        }
        let snapshot = ShardSnapshot { index: at.index, received: None };
        let newer = self.groups.get_mut(&id).and_then(|group| group.shards.get_mut(&shard));
        if let Some(newer) = newer {
            newer.snapshots.older = snapshot;
        } else {
            let mut content = Shard::new(shard, &self.map, self.hasher.clone());
            section::decode(bytes, &mut content).ok()?;
            (content.base, content.base_clock) = (at, clock);
            let snapshots = ShardSnapshots { older: snapshot, newer: snapshot };
            let map = &self.map;
            let group = self.groups.entry(id).or_insert_with(|| GroupRecovery::new(id, map));
            group.shards.insert(shard, Found { shard: content, snapshots });
        }
        let oldest = self.files.entry(file).or_insert(values_from);
        *oldest = values_from.min(*oldest);
        Some(())
    }

    fn hosts(&self, group: GroupId) -> bool {
        group.get() < self.map.group_count()
            && self.map.core_of(group) == self.addr.core
            && self.map.replicas(group).any(|node| node == self.addr.node)
    }

    /// The checkpoints to go on from.
    pub(crate) fn checkpoints(&self) -> Checkpoints {
        let newest = self.files.keys().next_back().copied().unwrap_or(0).max(self.newest_number);
        let kept = self.files.values().copied().collect();
        Checkpoints { newest, kept, ..Checkpoints::default() }
    }

    /// Checkpoint files up to this number are taken, readable or not.
    pub const fn taken_numbers(&mut self, newest: u64) {
        if newest > self.newest_number {
            self.newest_number = newest;
        }
    }

    /// The newest segment with a record.
    pub(crate) const fn newest_segment(&self) -> u64 {
        self.newest_segment
    }

    /// The next record of the log is a command or a value, without its content: the entry that the
    /// command is, and how many bytes of log follow its start. Returns whether that is enough.
    ///
    /// Commands are kept in memory if they are among the newest; values matter inside of snapshots
    /// only.
    pub fn brief(
        &mut self,
        place: Place,
        group: GroupId,
        position: Option<LogPosition>,
        bytes_behind: u64,
    ) -> bool {
        let found = self.groups.get_mut(&group);
        match (position, found) {
            (_, None) => return false,
            (Some(_), _) if bytes_behind <= self.tail_from_bytes => return false,
            (None, Some(group)) if !group.thawing.is_empty() => return false,
            (Some(position), Some(group)) => group.passed_over(place, position),
            (None, Some(_)) => {}
        }
        self.newest_segment = self.newest_segment.max(place.segment());
        true
    }

    /// The next record of the log was a command or an empty entry, and its content is lost: the
    /// entry that it was, and a place in the part of the log where it stood. The group takes part
    /// as if the entry were on disk only; whoever needs it finds that it cannot be loaded, and
    /// fetches it. No value is looked for at the place.
    pub fn lost(&mut self, place: Place, group: GroupId, position: LogPosition) {
        self.newest_segment = self.newest_segment.max(place.segment());
        if !self.hosts(group) {
            self.ignored += 1;
            return;
        }
        let map = &self.map;
        let found = self.groups.entry(group).or_insert_with(|| GroupRecovery::new(group, map));
        found.passed_over(place, position);
    }

    /// Takes the next record of the log.
    pub fn record(&mut self, place: Place, record: Record) {
        self.newest_segment = self.newest_segment.max(place.segment());
        let id = record.group();
        if !self.hosts(id) {
            self.ignored += 1;
            return;
        }
        let map = &self.map;
        let group = self.groups.entry(id).or_insert_with(|| GroupRecovery::new(id, map));
        let understood = match record {
            Record::Entry { entry, .. } => group.entry(place, entry, self.tail_bytes_max),
            Record::HardState { hard_state, .. } => {
                group.hard_state = hard_state;
                true
            }
            Record::State { payload, .. } => {
                group.state(payload.bytes(), &self.map, id, &self.hasher)
            }
            Record::Value { payload, .. } => {
                if !group.thawing.is_empty() {
                    group.apart.push(place, payload);
                }
                true
            }
            Record::Purge { base, .. } => group.purge(base),
        };
        self.ignored += u64::from(!understood);
    }

    /// Records that belong to no group of this core or contradict those before them.
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The groups that have records, for the driver's report.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    /// The log could not be read in full for this group: it must not take part in anything, for
    /// it may have forgotten a vote or an acknowledged entry. [`crate::Core`] leaves it out.
    pub fn mark_damaged(&mut self, group: GroupId, why: impl Into<String>) {
        self.damaged.entry(group).or_insert_with(|| why.into());
    }

    /// Groups that are not fit to take part, and why: those marked, and those whose records do
    /// not add up. Complete once all records are in.
    pub fn damaged(&self) -> BTreeMap<GroupId, String> {
        let mut damaged = self.damaged.clone();
        for (&id, group) in &self.groups {
            if let Some(why) = group.contradiction(id, &self.map) {
                damaged.entry(id).or_insert(why);
            }
        }
        damaged
    }

    /// Everything read of one group, or what a group starts from.
    pub(crate) fn take(&mut self, id: GroupId, hasher: &RandomState) -> (Recovered, GroupState) {
        let group = self.groups.remove(&id).unwrap_or_else(|| GroupRecovery::new(id, &self.map));
        let mut store = Store::new(id, &self.map, hasher);
        if group.shards.len() == store.shards().len() {
            let oldest = group.shards.values().min_by_key(|found| found.shard.base.index);
            store.set_clock(oldest.map_or(0, |found| found.shard.base_clock));
        }
        let (commit, applied) = (group.commit(), group.applied(store.shards().len()));
        let mut snapshots = vec![ShardSnapshots::default(); store.shards().len()];
        for (id, found) in group.shards {
            if let Some(place) = store.place_of(id) {
                snapshots[place] = found.snapshots;
            }
            // There was nothing before.
            store.replace_shard(found.shard, &mut Graveyard::default());
        }
        let recovered = Recovered {
            hard_state: group.hard_state,
            base: group.base,
            membership: group.base_membership,
            runs: group.runs,
            last: group.last,
            commit,
            applied,
            tail: group.tail.into(),
            memberships: group.memberships,
        };
        (recovered, GroupState { store, places: group.places, snapshots })
    }
}

impl GroupRecovery {
    fn new(id: GroupId, map: &ClusterMap) -> Self {
        Self {
            hard_state: HardState::default(),
            base: LogPosition::default(),
            base_membership: Membership::of_voters(map.replicas(id)),
            runs: Vec::new(),
            last: LogIndex::ZERO,
            tail: VecDeque::new(),
            tail_bytes: 0,
            memberships: Vec::new(),
            next_base: None,
            thawing: BTreeMap::new(),
            apart: Apart::default(),
            shards: BTreeMap::new(),
            places: Places::default(),
        }
    }

    /// Takes note of an entry. Returns whether it is one that counts.
    fn put(&mut self, place: Place, at: LogPosition) -> bool {
        if at.index <= self.base.index {
            return false;
        }
        self.places.put(at, place);
        if at.index > self.last.next() {
            // What is missing must lie before a base that a later record names.
            self.clear();
        } else if at.index <= self.last {
            self.truncate(at.index);
        }
        if self.runs.last().is_none_or(|run| run.term != at.term) {
            self.runs.push(at);
        }
        self.last = at.index;
        true
    }

    /// An entry whose content is left on disk, or lost.
    fn passed_over(&mut self, place: Place, at: LogPosition) {
        if self.put(place, at) {
            // The tail has no gaps.
            self.tail.clear();
            self.tail_bytes = 0;
        }
    }

    fn entry(&mut self, place: Place, entry: Entry, tail_bytes_max: usize) -> bool {
        if !self.put(place, entry.position()) {
            return true;
        }
        if entry.kind == EntryKind::Membership {
            self.memberships.push(entry.clone());
        }
        self.tail_bytes += entry.size_bytes();
        self.tail.push_back(entry);
        while self.tail_bytes > tail_bytes_max && self.tail.len() > 1 {
            self.pop_front();
        }
        true
    }

    /// Why the records do not add up to a group's state, if they do not.
    fn contradiction(&self, id: GroupId, map: &ClusterMap) -> Option<String> {
        let base = self.base.index;
        if let Some(first) = self.runs.first().filter(|first| first.index > base.next()) {
            return Some(format!("entries between {base} and {} are missing", first.index));
        }
        if base == LogIndex::ZERO {
            return None;
        }
        let missing = shards_of(id, map)
            .find(|shard| self.shards.get(shard).is_none_or(|f| f.shard.base.index < base))?;
        Some(format!("shard {} has no snapshot at or after {base}", missing.0))
    }

    /// Up to where the log is certainly committed: shards are only snapshotted there, and what
    /// comes before an equal entry is equal. Without this a leader whose shards are ahead of its
    /// base could not bring up a follower that it needs to commit anything (nobody may send a
    /// snapshot of what it has not applied yet).
    fn commit(&self) -> LogIndex {
        let taken = self.shards.values().map(|found| found.shard.base);
        let ours = taken.filter(|at| self.term_of(at.index) == Some(at.term));
        ours.map(|at| at.index).max().unwrap_or_default()
    }

    /// Up to where all `shards` shards hold the effects of this very log: what comes before need
    /// not be read again to be applied.
    fn applied(&self, shards: usize) -> LogIndex {
        let oldest = self.shards.values().map(|found| found.shard.base).min_by_key(|at| at.index);
        let ours = oldest.filter(|at| self.term_of(at.index) == Some(at.term));
        ours.filter(|_| self.shards.len() == shards).map_or(LogIndex::ZERO, |at| at.index)
    }

    fn clear(&mut self) {
        self.runs.clear();
        self.memberships.clear();
        self.tail.clear();
        self.tail_bytes = 0;
    }

    /// Drops the entries from `first` on.
    fn truncate(&mut self, first: LogIndex) {
        self.runs.retain(|run| run.index < first);
        self.memberships.retain(|entry| entry.index < first);
        while self.tail.back().is_some_and(|entry| entry.index >= first) {
            let entry = self.tail.pop_back().expect("just seen");
            self.tail_bytes -= entry.size_bytes();
        }
        self.last = first.prev();
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_bytes -= entry.size_bytes();
        }
    }

    fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index > self.last {
            return None;
        }
        // None also before the first run.
        self.runs.iter().rev().find(|run| run.index <= index).map(|run| run.term)
    }

    /// The log now starts after `base`.
    fn purge(&mut self, base: LogPosition) -> bool {
        if base.index <= self.base.index {
            return true;
        }
        let membership = self.memberships.iter().rev().find(|entry| entry.index <= base.index);
        if let Some((_, membership)) = self.next_base.take_if(|(at, _)| *at == base) {
            self.base_membership = membership;
        } else if let Some(Ok(membership)) =
            membership.map(|entry| Membership::decode(entry.payload.bytes()))
        {
            self.base_membership = membership;
        }
        // What follows the base there is of its term or a later one.
        let contradicts = |first: &LogPosition| base.index >= first.index || base.term > first.term;
        if self.term_of(base.index) == Some(base.term) {
            let term_after = self.term_of(base.index.next());
            self.runs.retain(|run| run.index > base.index.next());
            if let Some(term) = term_after {
                self.runs.insert(0, LogPosition { term, index: base.index.next() });
            }
            self.memberships.retain(|entry| entry.index > base.index);
            while self.tail.front().is_some_and(|entry| entry.index <= base.index) {
                self.pop_front();
            }
        } else if self.runs.first().is_none_or(contradicts) {
            // The log held something else there, or nothing: a snapshot has replaced it.
            self.clear();
            self.last = base.index;
        }
        self.base = base;
        true
    }

    /// A snapshot of a shard stands in the log in full.
    fn received(&mut self, shard: Shard) {
        let old = self.shards.get(&shard.id).map(|found| found.shard.base);
        if old.is_none_or(|old| old <= shard.base) {
            let index = shard.base.index;
            let snapshot = ShardSnapshot { index, received: Some(BatchSeq::default()) };
            let mut snapshots = ShardSnapshots::default();
            snapshots.received(snapshot);
            self.shards.insert(shard.id, Found { shard, snapshots });
        }
    }

    fn state(&mut self, bytes: &[u8], map: &ClusterMap, id: GroupId, hasher: &RandomState) -> bool {
        match Piece::parse(bytes) {
            Ok(Piece::Begin(begin)) => {
                let ours = begin.shard.0 < map.shard_count() && map.group_of(begin.shard) == id;
                if ours {
                    let blank = Shard::new(begin.shard, map, hasher.clone());
                    self.thawing.insert(begin.shard, Thawing::new(begin, blank));
                }
                ours
            }
            Ok(Piece::Items { shard, index, items }) => match self.thawing.get_mut(&shard) {
                Some(thawing) if thawing.begin.at.index == index => {
                    let whole = thaw(thawing, shard, items, &self.apart).is_some();
                    self.apart.clear();
                    if !whole {
                        self.thawing.remove(&shard);
                    }
                    whole
                }
                // Its beginning was forgotten, which means that a newer snapshot is whole.
                _ => true,
            },
            Ok(Piece::End { shard, index, digest }) => match self.thawing.remove(&shard) {
                Some(thawing) if thawing.begin.at.index == index => {
                    let Ok(shard) = thawing.finish(digest) else { return false };
                    self.received(shard);
                    true
                }
                _ => true,
            },
            Ok(Piece::Base { base, membership }) => match Membership::decode(membership) {
                Ok(membership) => {
                    if base == self.base {
                        self.base_membership = membership;
                    } else {
                        self.next_base = Some((base, membership));
                    }
                    true
                }
                Err(_) => false,
            },
            Err(_) => false,
        }
    }
}

/// Puts a piece's items into a shard, with the places of its long values.
fn thaw(
    thawing: &mut Thawing,
    shard: ShardId,
    mut items: crate::snapshot::Items<'_>,
    apart: &Apart,
) -> Option<()> {
    while let Some(item) = items.next().ok()? {
        let value = match item.value {
            PieceValue::Here(bytes) => crate::store::Value::Memory(bytes.to_vec()),
            PieceValue::Apart(len) => apart.find(shard, &item, len)?,
        };
        thawing.add(item.with(value)).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use coracle_raft::{NodeId, Payload};

    use super::*;
    use crate::testing::{addr, map_of};

    fn entry(index: u64, term: u64) -> Record {
        let entry = Entry {
            term: Term::new(term),
            index: LogIndex::new(index),
            kind: EntryKind::Empty,
            payload: Payload::empty(),
        };
        Record::Entry { group: GroupId::new(0), entry }
    }

    fn purge(index: u64, term: u64) -> Record {
        Record::Purge { group: GroupId::new(0), base: position(index, term) }
    }

    fn position(index: u64, term: u64) -> LogPosition {
        LogPosition { term: Term::new(term), index: LogIndex::new(index) }
    }

    fn recover(records: impl IntoIterator<Item = Record>) -> Recovered {
        let mut recovery = Recovery::new(map_of(1, 1, 1, 1), addr(1, 0));
        let place = |n: usize| Place::new(1, n as u64 * 8);
        records.into_iter().enumerate().for_each(|(n, record)| recovery.record(place(n), record));
        recovery.take(GroupId::new(0), &RandomState::with_seeds(1, 2, 3, 4)).0
    }

    fn runs(recovered: &Recovered) -> Vec<(u64, u64)> {
        recovered.runs.iter().map(|run| (run.index.get(), run.term.get())).collect()
    }

    /// An entry replaces whatever stood at its place and after it.
    #[test]
    fn later_entries_replace_earlier_ones() {
        let recovered =
            recover([entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2), entry(2, 3), entry(3, 3)]);
        assert_eq!(runs(&recovered), [(1, 1), (2, 3)]);
        assert_eq!(recovered.last, LogIndex::new(3));
        let terms: Vec<_> = recovered.tail.iter().map(|entry| entry.term.get()).collect();
        assert_eq!(terms, [1, 3, 3]);
    }

    /// A purge cuts inside a run, at its end, and past the log; a mismatch replaces the log.
    #[test]
    fn purges_move_the_base() {
        let log = || [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2), entry(5, 2)];
        type Case = (Record, &'static [(u64, u64)], u64);
        let cases: &[Case] = &[
            (purge(2, 1), &[(3, 1), (4, 2)], 5),
            (purge(3, 1), &[(4, 2)], 5),
            (purge(4, 2), &[(5, 2)], 5),
            (purge(5, 2), &[], 5),
            (purge(9, 4), &[], 9),
            (purge(4, 3), &[], 4),
        ];
        for (record, want, last) in cases {
            let recovered = recover(log().into_iter().chain([record.clone()]));
            assert_eq!(runs(&recovered), *want, "{record:?}");
            assert_eq!(recovered.last, LogIndex::new(*last), "{record:?}");
            let first = recovered.tail.first().map(|entry| entry.index);
            assert_eq!(first, want.first().map(|&(index, _)| LogIndex::new(index)), "{record:?}");
        }
    }

    /// A snapshot has replaced entries, of which those before its base are gone with their segment
    /// and those after it are not: they are no part of the log either.
    #[test]
    fn a_snapshot_replaces_what_follows_it_too() {
        let replaced = recover([entry(7, 2), entry(8, 2), purge(6, 3)]);
        assert_eq!((runs(&replaced), replaced.last), (vec![], LogIndex::new(6)));
        let kept = recover([entry(7, 3), entry(8, 4), purge(6, 3)]);
        assert_eq!((runs(&kept), kept.last), (vec![(7, 3), (8, 4)], LogIndex::new(8)));
    }

    /// Old segments go one by one: entries missing before a later base are no damage; entries
    /// missing after it are.
    #[test]
    fn gaps_before_the_base_are_healed_by_it() {
        let gap = [purge(2, 1), entry(3, 1), entry(7, 1), entry(8, 2)];
        let damaged = |records: Vec<Record>| {
            let mut recovery = Recovery::new(map_of(1, 1, 1, 1), addr(1, 0));
            let place = |n: usize| Place::new(1, n as u64 * 8);
            records
                .into_iter()
                .enumerate()
                .for_each(|(n, record)| recovery.record(place(n), record));
            recovery.damaged().remove(&GroupId::new(0)).unwrap_or_default()
        };
        let why = damaged(gap.to_vec());
        assert_eq!(why, "entries between 2 and 7 are missing");
        let healed: Vec<Record> = gap.into_iter().chain([purge(7, 1)]).collect();
        let why = damaged(healed.clone());
        assert_eq!(why, "shard 0 has no snapshot at or after 7");
        assert_eq!(runs(&recover(healed)), [(8, 2)]);
    }

    /// A shard that was snapshotted after the base shows that the log is committed up to there,
    /// if the log holds the same entry.
    #[test]
    fn snapshots_show_what_is_committed() {
        let map = map_of(1, 1, 1, 1);
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let group = GroupId::new(0);
        for (at, want) in [(position(3, 1), 3), (position(3, 2), 0), (position(9, 2), 0)] {
            let shard = Shard::new(ShardId(0), &map, hasher.clone());
            let cache = crate::cache::Cache::new(0, hasher.clone());
            let mut frozen = crate::snapshot::Frozen::new(&shard, at, 0);
            let (end, whole) = frozen.next(1, &cache).unwrap();
            assert!(whole, "it is empty");
            let state = [frozen.begin.encode(), end];
            let state = state.map(|payload| Record::State { group, payload });
            let log = [entry(1, 1), entry(2, 1), entry(3, 1), entry(4, 2)];
            let recovered = recover(log.into_iter().chain(state));
            assert_eq!(recovered.commit, LogIndex::new(want), "{at:?}");
            assert_eq!(recovered.applied, LogIndex::new(want), "{at:?}: the only shard holds it");
        }
    }

    /// What is lost leaves its position, and the entries behind it are kept in memory; but what
    /// an earlier log had there is gone as ever.
    #[test]
    fn lost_entries_keep_their_positions() {
        let group = GroupId::new(0);
        // Index, term, whether it is lost; then runs, the last entry, and what is in memory.
        type Log = &'static [(u64, u64, bool)];
        type Case = (Log, &'static [(u64, u64)], u64, &'static [u64]);
        let cases: &[Case] = &[
            (&[(1, 1, false), (2, 1, true), (3, 1, false)], &[(1, 1)], 3, &[3]),
            (&[(1, 1, false), (2, 1, false), (3, 2, true)], &[(1, 1), (3, 2)], 3, &[]),
            (&[(1, 1, true), (2, 1, true), (3, 1, true)], &[(1, 1)], 3, &[]),
            (&[(1, 1, false), (2, 1, true), (2, 3, false)], &[(1, 1), (2, 3)], 2, &[2]),
            (
                &[(1, 1, false), (2, 1, false), (3, 1, false), (2, 2, true)],
                &[(1, 1), (2, 2)],
                2,
                &[],
            ),
        ];
        for (log, want, last, tail) in cases {
            let mut recovery = Recovery::new(map_of(1, 1, 1, 1), addr(1, 0));
            for (n, &(index, term, is_lost)) in log.iter().enumerate() {
                let place = Place::new(1, n as u64 * 8);
                match is_lost {
                    true => recovery.lost(place, group, position(index, term)),
                    false => recovery.record(place, entry(index, term)),
                }
            }
            assert_eq!((recovery.damaged().len(), recovery.ignored()), (0, 0), "{log:?}");
            let hasher = RandomState::with_seeds(1, 2, 3, 4);
            let (recovered, state) = recovery.take(group, &hasher);
            assert_eq!(runs(&recovered), *want, "{log:?}");
            assert_eq!(recovered.last, LogIndex::new(*last), "{log:?}");
            let kept: Vec<_> = recovered.tail.iter().map(|entry| entry.index.get()).collect();
            assert_eq!(kept, *tail, "{log:?}");
            let newest = recovered.runs.last().map_or(0, |run| run.term.get());
            assert!(state.places.get(position(*last, newest)).is_some(), "{log:?}");
            coracle_raft::Raft::new(coracle_raft::Config::new(NodeId::new(1), 1), recovered);
        }
    }

    /// Memory at the start is bounded; what is left out is loaded on demand.
    #[test]
    fn only_the_tail_is_kept() {
        let payload = Payload::new(vec![0; 1 << 20], 0);
        let big = (1..=80).map(|index| Record::Entry {
            group: GroupId::new(0),
            entry: Entry {
                term: Term::new(1),
                index: LogIndex::new(index),
                kind: EntryKind::Command,
                payload: payload.clone(),
            },
        });
        let recovered = recover(big);
        assert_eq!(recovered.last, LogIndex::new(80));
        let bytes: usize = recovered.tail.iter().map(Entry::size_bytes).sum();
        assert!(bytes <= TAIL_BYTES_TOTAL, "{bytes}");
        assert_eq!(recovered.tail.last().map(|entry| entry.index), Some(LogIndex::new(80)));
        assert_eq!(runs(&recovered), [(1, 1)]);
    }
}
