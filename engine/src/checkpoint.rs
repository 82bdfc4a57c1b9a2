//! Durable snapshots of shards, so that the log before them can be forgotten.
//!
//! One shard at a time is taken hold of at one applied index and written as `State` records
//! over many batches. Once its last record is durable the shard no longer needs the entries up
//! to that index; once that holds for all shards of a group its log is cut.

use std::collections::{BTreeMap, VecDeque};

use coracle_raft::{
    BatchSeq, Bug, GroupId, LogIndex, LogPosition, Membership, NodeId, Payload, Record, planted,
};

use crate::Effects;
use crate::core::Core;
use crate::snapshot::{Frozen, encode_base};

/// Bytes of items in one record.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// The newest durable snapshot of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShardSnapshot {
    /// The shard holds everything up to here.
    pub(crate) index: LogIndex,
    /// The batch it begins in; 0: in an earlier life of the process.
    pub(crate) first_batch: BatchSeq,
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

/// The shard that is being written.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) place: usize,
    frozen: Frozen,
}

impl Core {
    /// Writes a part of the checkpoint: continues with the shard begun last, or begins the one
    /// whose newest snapshot is oldest. About `bytes_budget` bytes of records come out of the
    /// next [`Core::drain`] with [`crate::Drain::All`]. Returns whether anything was written.
    ///
    /// To be called at the pace at which the log is to be recycled; never needed for safety.
    pub fn checkpoint_step(&mut self, bytes_budget: usize) -> bool {
        if !self.state.is_empty() || self.groups.is_empty() {
            return false;
        }
        // At least one piece, or there would be no progress.
        while self.state.bytes < bytes_budget.max(1) {
            let Some(running) = &mut self.checkpoint else {
                match self.oldest_snapshot() {
                    Some((place, shard)) => self.begin_shard(place, shard),
                    None => break,
                }
                continue;
            };
            let group = &self.groups[running.place];
            let rest = bytes_budget.saturating_sub(self.state.bytes);
            let (payload, done) = running.frozen.next(rest.clamp(4096, PIECE_BYTES));
            self.state.push(group.id, payload);
            if done {
                let (shard, index) = (running.frozen.begin.shard.0, running.frozen.begin.at.index);
                self.state.end_shard(group.id, shard, index);
                self.checkpoint = None;
                self.checkpointed.insert((group.id, shard), index);
            }
        }
        !self.state.is_empty()
    }

    /// The shard that has waited longest: of those whose snapshot begins in the oldest batch,
    /// the first whose new snapshot is not on its way already.
    fn oldest_snapshot(&self) -> Option<(usize, usize)> {
        let of_group = |(place, group): (usize, &crate::group::Group)| {
            if group.is_ahead() || group.incoming.is_some() {
                return None;
            }
            let under_way = |shard: usize| {
                let id = group.store.shards()[shard].id.0;
                self.checkpointed.contains_key(&(group.id, id))
            };
            group
                .snapshots
                .iter()
                .enumerate()
                .filter(|&(shard, _)| !under_way(shard))
                .map(|(shard, snapshot)| (snapshot.first_batch, place, shard))
                .min()
        };
        let oldest = self.groups.iter().enumerate().filter_map(of_group).min()?;
        Some((oldest.1, oldest.2))
    }

    fn begin_shard(&mut self, place: usize, shard: usize) {
        let group = &self.groups[place];
        let shard = &group.store.shards()[shard];
        let ahead = planted(Bug::CheckpointIndexTooHigh);
        let index = if ahead { group.raft.last_index() } else { group.applied() };
        let term = group.raft.term_of(index).unwrap_or(group.raft.base().term);
        let frozen = Frozen::new(shard, LogPosition { term, index }, group.store.clock());
        let base = group.raft.base();
        let membership = group.raft.membership_at(base.index).encode();
        self.state.push(group.id, encode_base(base, &membership));
        self.state.push(group.id, frozen.begin.encode());
        self.state.begin_shard(group.id, shard.id.0);
        self.checkpoint = Some(Running { place, frozen });
    }

    /// Takes note of durable state records.
    pub(crate) fn state_persisted(&mut self, batch: BatchSeq) {
        while let Some(mark) = self.state.durable(batch) {
            match mark {
                Mark::Begin { .. } => {}
                Mark::Shard { group, shard, index, first_batch } => {
                    self.shard_durable(group, shard, ShardSnapshot { index, first_batch });
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
                        .is_some_and(|place| install.base.index > self.groups[place].raft.commit());
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

    fn shard_durable(&mut self, id: GroupId, shard: u16, snapshot: ShardSnapshot) {
        let index = snapshot.index;
        if self.checkpointed.get(&(id, shard)) == Some(&index) {
            self.checkpointed.remove(&(id, shard));
        }
        let Some(place) = self.place(id) else { return };
        let group = &mut self.groups[place];
        let Some(at) = group.store.shards().iter().position(|s| s.id.0 == shard) else { return };
        if index < group.snapshots[at].index {
            return;
        }
        let released_before = group.state_needed_from();
        group.snapshots[at] = snapshot;
        self.counters.checkpoints += 1;
        let released = group.state_needed_from();
        if released > released_before {
            self.released.push((id, released));
        }
        self.compact(place);
    }

    /// Forgets the part of a group's log that neither its shards nor its followers need.
    pub(crate) fn compact(&mut self, place: usize) {
        let group = &mut self.groups[place];
        let index = group.compaction_point();
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
            if self.checkpoint.as_ref().is_some_and(|running| running.place == place) {
                self.checkpoint = None;
            }
        } else {
            group.purged = group.purged.max(base.index);
        }
        self.mark(place);
    }
}
