//! Durable snapshots of shards, so that the log before them can be forgotten.
//!
//! A checkpoint is one file with a section for each shard of the core: its index at one applied
//! entry each. The two newest files are kept, and the log is forgotten only up to the older one,
//! so that a damaged file costs nothing. Shards that came from another replica are durable as
//! records of the log until checkpoints hold them.

pub(crate) mod section;

use std::collections::{BTreeMap, VecDeque};

use coracle_raft::{
    BatchSeq, Bug, GroupId, LogIndex, LogPosition, Membership, NodeId, Payload, Record, planted,
};

use self::section::About;
use crate::core::Core;
use crate::snapshot::encode_base;
use crate::{CheckpointWork, DiskSpace, Effects, ShardId};

/// Bytes of items in one piece of a snapshot.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// A durable snapshot of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShardSnapshot {
    /// The shard holds everything up to here.
    pub(crate) index: LogIndex,
    /// The batch in which it begins, if it stands in the log; 0: in an earlier life of the process.
    pub(crate) received: Option<BatchSeq>,
}

/// The durable snapshots of a shard from which it can be recovered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShardSnapshots {
    pub(crate) older: ShardSnapshot,
    pub(crate) newer: ShardSnapshot,
}

impl ShardSnapshots {
    /// The shard came from another replica: older snapshots mean nothing any more.
    pub(crate) fn received(&mut self, snapshot: ShardSnapshot) {
        (self.older, self.newer) = (snapshot, snapshot);
    }

    /// Another checkpoint holds the shard.
    fn checkpointed(&mut self, index: LogIndex) {
        self.older = self.newer;
        self.newer = ShardSnapshot { index, received: None };
    }

    /// Up to here the shard can be had even if the newer snapshot is damaged.
    pub(crate) fn fallback(&self) -> LogIndex {
        if planted(Bug::CompactedPastCheckpoint) { self.newer.index } else { self.older.index }
    }

    /// The batch from which on the log's own snapshots of it are needed.
    pub(crate) fn received_from(&self) -> Option<BatchSeq> {
        self.older.received.into_iter().chain(self.newer.received).min()
    }
}

/// What is to be done once records are durable.
#[derive(Debug)]
pub(crate) enum Mark {
    /// A shard's snapshot begins here; nothing to do.
    Begin { group: GroupId, shard: u16 },
    /// A shard's snapshot is whole; its first batch is known once it is on its way.
    Shard { group: GroupId, shard: u16, index: LogIndex, first_batch: BatchSeq },
    /// Pieces of a leader's snapshot below `next_piece` are there.
    Pieces { group: GroupId, from: NodeId, base: LogPosition, next_piece: u64, round: u64 },
    /// All pieces are there: the log can be cut at `base`.
    Received(Install),
    /// The log is cut.
    Install(Install),
}

/// A snapshot that has arrived in full.
#[derive(Clone, Debug)]
pub(crate) struct Install {
    pub(crate) group: GroupId,
    pub(crate) from: NodeId,
    pub(crate) base: LogPosition,
    pub(crate) membership: Membership,
    pub(crate) round: u64,
    /// The group's log clock at `base`.
    pub(crate) clock: u64,
}

/// State records on their way to the disk.
#[derive(Debug, Default)]
pub(crate) struct StateQueue {
    records: Vec<Record>,
    bytes: usize,
    /// In the order of the records they belong to.
    marks: Vec<Mark>,
    /// The batch in which the newest snapshot of a shard begins, while it is not whole.
    first_batches: BTreeMap<(GroupId, u16), BatchSeq>,
    writing: VecDeque<(BatchSeq, Mark)>,
}

impl StateQueue {
    pub(crate) fn push(&mut self, group: GroupId, payload: Payload) {
        self.bytes += payload.len();
        self.records.push(Record::State { group, payload });
    }

    pub(crate) fn push_value(&mut self, group: GroupId, payload: Payload) {
        self.bytes += payload.len();
        self.records.push(Record::Value { group, payload });
    }

    /// Bytes that wait for the next batch.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn begin_shard(&mut self, group: GroupId, shard: u16) {
        self.marks.push(Mark::Begin { group, shard });
    }

    pub(crate) fn end_shard(&mut self, group: GroupId, shard: u16, index: LogIndex) {
        let first_batch = BatchSeq::default();
        self.marks.push(Mark::Shard { group, shard, index, first_batch });
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    /// Writes that the log of `group` starts after `base`.
    pub(crate) fn push_base(&mut self, group: GroupId, base: LogPosition, members: &Membership) {
        self.push(group, encode_base(base, &members.encode()));
        self.records.push(Record::Purge { group, base });
    }

    pub(crate) fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.marks.is_empty()
    }

    /// The oldest batch with a part of a snapshot of the group that is not whole and durable.
    fn oldest_open(&self, group: GroupId) -> Option<BatchSeq> {
        let begun = self.first_batches.iter().filter(|((id, _), _)| *id == group);
        let written = self.writing.iter().filter_map(|(_, mark)| match mark {
            Mark::Shard { group: id, first_batch, .. } if *id == group => Some(*first_batch),
            _ => None,
        });
        begun.map(|(_, &batch)| batch).chain(written).min()
    }

    /// Moves everything into a batch.
    pub(crate) fn flush(&mut self, batch: BatchSeq, effects: &mut Effects) {
        self.bytes = 0;
        effects.records.append(&mut self.records);
        for mut mark in self.marks.drain(..) {
            match &mut mark {
                Mark::Begin { group, shard } => {
                    self.first_batches.insert((*group, *shard), batch);
                    continue;
                }
                Mark::Shard { group, shard, first_batch, .. } => {
                    let began = self.first_batches.remove(&(*group, *shard));
                    *first_batch = began.expect("a snapshot ends after it has begun");
                }
                _ => {}
            }
            self.writing.push_back((batch, mark));
        }
    }

    /// The next mark whose batch is durable.
    fn durable(&mut self, batch: BatchSeq) -> Option<Mark> {
        self.writing.pop_front_if(|(written, _)| *written <= batch).map(|(_, mark)| mark)
    }
}

/// A checkpoint file on its way.
#[derive(Debug)]
pub(crate) struct Cycle {
    number: u64,
    /// Place of the group and of its shard that come next.
    next: (usize, usize),
    /// The oldest segment with a live value, or one that may become live, when it began: values
    /// only ever move to newer ones.
    values_from: u64,
    taken: Vec<(usize, usize, LogIndex)>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Sections,
    /// What the sections refer to must be durable first.
    Settling(BatchSeq),
    Finishing,
}

/// The checkpoints of one core.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// Number of the newest file.
    pub(crate) newest: u64,
    /// The oldest segments that the kept files refer to, older file first.
    pub(crate) kept: VecDeque<u64>,
    pub(crate) cycle: Option<Cycle>,
    /// Work for the next drain.
    pub(crate) work: Vec<CheckpointWork>,
    /// What was said last about values that are needed.
    pub(crate) released_before: u64,
}

impl Core {
    /// Goes on with the checkpoint, or begins one: hands out sections of about `bytes_budget`
    /// bytes, at least one, with the next [`Core::drain`]. Returns whether there was anything to
    /// do: not while what was handed out last is still to be finished.
    ///
    /// To be called at the pace at which the log is to be recycled; never needed for safety.
    pub fn checkpoint_step(&mut self, bytes_budget: usize) -> bool {
        if self.groups.is_empty() || !self.checkpoints.work.is_empty() {
            return false;
        }
        let mut cycle = match self.checkpoints.cycle.take() {
            Some(cycle) if cycle.stage == Stage::Sections => cycle,
            Some(cycle) => {
                self.checkpoints.cycle = Some(cycle);
                return false;
            }
            None => self.begin_cycle(),
        };
        let mut bytes = 0;
        while bytes < bytes_budget.max(1) && cycle.stage == Stage::Sections {
            let (place, shard) = cycle.next;
            let Some(group) = self.groups.get(place) else {
                cycle.stage = Stage::Settling(BatchSeq::new(self.next_batch.get() - 1));
                break;
            };
            if shard == group.store.shards().len() {
                cycle.next = (place + 1, 0);
                continue;
            }
            let Some(section) = self.take_section(place, shard, &mut cycle) else { break };
            bytes += section.len();
            cycle.next = (place, shard + 1);
            let (number, group) = (cycle.number, group.id);
            let shard = group_shard(&self.groups[place], shard);
            let bytes = section;
            self.checkpoints.work.push(CheckpointWork::Section { number, group, shard, bytes });
        }
        self.checkpoints.cycle = Some(cycle);
        self.settle_cycle();
        true
    }

    /// Whether a checkpoint is on its way.
    pub const fn is_checkpointing(&self) -> bool {
        self.checkpoints.cycle.is_some()
    }

    fn begin_cycle(&mut self) -> Cycle {
        self.checkpoints.newest += 1;
        let number = self.checkpoints.newest;
        let values_from = self.oldest_needed();
        self.checkpoints.work.push(CheckpointWork::Begin { number });
        Cycle { number, next: (0, 0), values_from, taken: Vec::new(), stage: Stage::Sections }
    }

    /// A shard's section; `None` while commands wait in it for a value, or it lacks one.
    fn take_section(&self, place: usize, shard: usize, cycle: &mut Cycle) -> Option<Vec<u8>> {
        let group = &self.groups[place];
        if group.stalls.holds(shard) || group.has_lost(shard) {
            return None;
        }
        let content = &group.store.shards()[shard];
        let (mut at, mut clock) = (content.base, content.base_clock);
        if at.index < group.applied() {
            let index = group.applied();
            let term = group.raft.term_of(index).unwrap_or(group.raft.base().term);
            (at, clock) = (LogPosition { term, index }, group.store.clock());
        }
        if planted(Bug::CheckpointIndexTooHigh) {
            at.index = group.raft.last_index();
        }
        let values_from = cycle.values_from;
        let about = About { group: group.id, shard: content.id, at, clock, values_from };
        cycle.taken.push((place, shard, at.index));
        let lacks_expiries = planted(Bug::CheckpointLacksExpiries);
        Some(section::encode(&about, content, lacks_expiries))
    }

    /// Lets the file be finished once everything that it refers to is durable.
    pub(crate) fn settle_cycle(&mut self) {
        let Some(cycle) = &mut self.checkpoints.cycle else { return };
        let Stage::Settling(batch) = cycle.stage else { return };
        if self.persisted_batch >= batch || planted(Bug::CheckpointFinishedEarly) {
            cycle.stage = Stage::Finishing;
            let number = cycle.number;
            self.checkpoints.work.push(CheckpointWork::Finish { number });
        }
    }

    /// A checkpoint is safe, or was given up.
    pub(crate) fn checkpointed(&mut self, number: u64, result: Result<(), String>) {
        let Some(cycle) = self.checkpoints.cycle.take_if(|cycle| cycle.number == number) else {
            return;
        };
        if result.is_err() {
            self.counters.checkpoints_failed += 1;
            self.checkpoints.work.clear();
            return;
        }
        self.counters.checkpoints += cycle.taken.len() as u64;
        for (place, shard, index) in cycle.taken {
            let snapshots = &mut self.groups[place].snapshots[shard];
            // The shard may have been replaced by a newer one meanwhile.
            if index >= snapshots.newer.index {
                snapshots.checkpointed(index);
            }
        }
        self.checkpoints.kept.push_back(cycle.values_from);
        while self.checkpoints.kept.len() > 2 {
            self.checkpoints.kept.pop_front();
        }
        for place in 0..self.groups.len() {
            self.release_state(place);
            self.compact(place);
        }
        self.release_values();
    }

    /// Says which values are needed no more: those that neither the index nor a kept checkpoint
    /// nor a snapshot on its way refers to.
    pub(crate) fn release_values(&mut self) {
        if self.checkpoints.kept.len() < 2 {
            return;
        }
        let kept = self.checkpoints.kept.iter().copied();
        let sent = self.groups.iter().filter_map(crate::group::Group::oldest_sent);
        let now = self.oldest_needed();
        let mut from = kept.chain(sent).fold(now, u64::min);
        if planted(Bug::ValuesReleasedEarly) {
            from = now;
        }
        if from > self.checkpoints.released_before {
            self.checkpoints.released_before = from;
            self.values_from = Some(from);
        }
    }

    /// The oldest segment with a value that the index refers to.
    pub fn oldest_value(&self) -> Option<u64> {
        self.groups.iter().filter_map(|group| group.store.oldest_live()).min()
    }

    /// The oldest segment with a value that the index refers to, or will once it is applied. Never
    /// goes back.
    fn oldest_needed(&self) -> u64 {
        let pending = self.groups.iter().filter_map(crate::group::Group::oldest_pending);
        pending.chain(self.oldest_value()).min().unwrap_or(self.newest_segment)
    }

    /// Says which state records of a group are needed no more.
    fn release_state(&mut self, place: usize) {
        let group = &self.groups[place];
        let received = group.state_needed_from().into_iter();
        let needed = received.chain(self.state.oldest_open(group.id)).min();
        let needed = needed.unwrap_or(self.next_batch);
        if needed > group.state_released {
            let id = group.id;
            self.groups[place].state_released = needed;
            self.released.push((id, needed));
        }
    }

    /// Takes note of durable state records.
    pub(crate) fn state_persisted(&mut self, batch: BatchSeq) {
        while let Some(mark) = self.state.durable(batch) {
            match mark {
                Mark::Begin { .. } => {}
                Mark::Shard { group, shard, index, first_batch } => {
                    self.shard_durable(group, shard, index, first_batch);
                }
                Mark::Pieces { group, from, base, next_piece, round } => {
                    if let Some(place) = self.place(group) {
                        let raft = &mut self.groups[place].raft;
                        raft.snapshot_piece_persisted(from, base, next_piece, round);
                        self.mark(place);
                    }
                }
                Mark::Received(install) => {
                    // Cutting the log must be durable before the leader counts on it.
                    let news = self
                        .place(install.group)
                        .is_some_and(|place| self.groups[place].raft.takes_snapshot(install.base));
                    if news {
                        self.state.push_base(install.group, install.base, &install.membership);
                        self.state.mark(Mark::Install(install));
                    } else {
                        self.install(install);
                    }
                }
                Mark::Install(install) => self.install(install),
            }
        }
    }

    /// A shard that came from another replica is durable.
    fn shard_durable(&mut self, id: GroupId, shard: u16, index: LogIndex, first: BatchSeq) {
        let Some(place) = self.place(id) else { return };
        let group = &mut self.groups[place];
        let Some(at) = group.store.place_of(ShardId(shard)) else { return };
        if index >= group.snapshots[at].newer.index {
            group.snapshots[at].received(ShardSnapshot { index, received: Some(first) });
            self.compact(place);
        }
    }

    /// Forgets the part of a group's log that neither its shards nor its followers need.
    pub(crate) fn compact(&mut self, place: usize) {
        // A follower that does not keep up can have a snapshot; space cannot wait for it.
        let waits = self.space == DiskSpace::Ample;
        let group = &mut self.groups[place];
        let index = group.compaction_point(waits);
        if index > group.raft.base().index {
            group.raft.compact(index);
            let base = group.raft.base();
            self.state.push_base(group.id, base, group.raft.membership_at(base.index));
            self.mark(place);
        }
    }

    fn install(&mut self, install: Install) {
        let Some(place) = self.place(install.group) else { return };
        let group = &mut self.groups[place];
        let Install { from, base, membership, round, clock, .. } = install;
        if group.raft.snapshot_installed(from, base, membership, round) {
            group.installed(base, clock, &mut self.out, &mut self.tally);
            self.counters.snapshots_installed += 1;
        } else {
            group.purged = group.purged.max(base.index);
        }
        self.mark(place);
    }
}

fn group_shard(group: &crate::group::Group, shard: usize) -> u16 {
    group.store.shards()[shard].id.0
}
