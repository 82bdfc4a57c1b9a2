//! Snapshots from a leader to a follower whose entries are forgotten: the shards of a group one
//! after the other, a few pieces ahead of the follower's disk.

use std::collections::VecDeque;

use coracle_raft::{Bug, LogPosition, NodeId, Payload, SnapshotAck, SnapshotPiece, planted};

use crate::checkpoint::{Install, Mark, PIECE_BYTES, StateQueue};
use crate::group::Group;
use crate::snapshot::{Begin, Frozen, Piece, Thawing};
use crate::store::Store;
use crate::{ClusterMap, ShardId};

/// Pieces sent ahead of the follower's acknowledgement.
const WINDOW_PIECES: usize = 4;
/// Ticks without an acknowledgement after which pieces are sent again.
const RESEND_TICKS: u64 = 40;
/// Ticks without a piece after which a snapshot is given up by its receiver.
const INCOMING_TICKS_MAX: u64 = 400;

/// A snapshot on its way to one follower.
pub(crate) struct Outgoing {
    /// What the follower's log will start after. Shards may be frozen later than this: the
    /// entries up to where a shard was frozen are then skipped for it.
    pub(crate) base: LogPosition,
    /// Shards not begun yet start here.
    next_shard: usize,
    frozen: Option<Frozen>,
    next_piece: u64,
    /// Sent and not acknowledged.
    window: VecDeque<(u64, bool, Payload)>,
    complete: bool,
    moved_at: u64,
}

/// A snapshot on its way in.
pub(crate) struct Incoming {
    from: NodeId,
    base: LogPosition,
    next_piece: u64,
    /// The group's log clock at `base`.
    clock: u64,
    thawing: Option<Thawing>,
    shards_done: usize,
    moved_at: u64,
}

impl Group {
    /// Starts or starts again to send a snapshot to a follower.
    pub(crate) fn send_snapshot(&mut self, to: NodeId, now: u64) {
        let index = self.applied();
        let Some(term) = self.raft.term_of(index).filter(|_| !self.is_ahead()) else { return };
        let outgoing = Outgoing {
            base: LogPosition { term, index },
            next_shard: 0,
            frozen: None,
            next_piece: 0,
            window: VecDeque::new(),
            complete: false,
            moved_at: now,
        };
        self.outgoing.insert(to, outgoing);
        self.fill_window(to);
    }

    /// A follower has pieces on its disk.
    pub(crate) fn snapshot_acked(&mut self, ack: SnapshotAck, now: u64) {
        let Some(outgoing) = self.outgoing.get_mut(&ack.from) else { return };
        if outgoing.base != ack.base {
            return;
        }
        while outgoing.window.pop_front_if(|(piece, ..)| *piece < ack.next_piece).is_some() {
            outgoing.moved_at = now;
        }
        self.fill_window(ack.from);
    }

    /// Sends again what was not acknowledged; drops what is no longer wanted.
    pub(crate) fn tick_snapshots(&mut self, now: u64) {
        let (leader, ticks) = (self.raft.leader(), INCOMING_TICKS_MAX);
        self.incoming.take_if(|i| leader != Some(i.from) || now - i.moved_at >= ticks);
        if self.outgoing.is_empty() {
            return;
        }
        let (leads, raft) = (self.leads(), &mut self.raft);
        self.outgoing.retain(|&to, outgoing| {
            if !leads || !raft.wants_snapshot(to) {
                return false;
            }
            if now - outgoing.moved_at >= RESEND_TICKS {
                outgoing.moved_at = now;
                for (piece, done, payload) in &outgoing.window {
                    raft.send_snapshot_piece(to, outgoing.base, *piece, *done, payload.clone());
                }
            }
            true
        });
    }

    fn fill_window(&mut self, to: NodeId) {
        let Some(mut outgoing) = self.outgoing.remove(&to) else { return };
        while outgoing.window.len() < WINDOW_PIECES && !outgoing.complete {
            let payload = self.next_payload(&mut outgoing);
            let (piece, done) = (outgoing.next_piece, outgoing.complete);
            outgoing.next_piece += 1;
            outgoing.window.push_back((piece, done, payload.clone()));
            self.raft.send_snapshot_piece(to, outgoing.base, piece, done, payload);
        }
        self.outgoing.insert(to, outgoing);
    }

    fn next_payload(&self, outgoing: &mut Outgoing) -> Payload {
        let shards = self.store.shards();
        match &mut outgoing.frozen {
            None => {
                let shard = &shards[outgoing.next_shard];
                outgoing.next_shard += 1;
                // The first shard is taken at the base itself and so carries its log clock.
                let late = planted(Bug::SnapshotIndexTooLow);
                let index = if late { outgoing.base.index } else { self.applied() };
                let term = self.raft.term_of(index).unwrap_or(outgoing.base.term);
                let frozen = Frozen::new(shard, LogPosition { term, index }, self.store.clock());
                let payload = frozen.begin.encode();
                outgoing.frozen = Some(frozen);
                payload
            }
            Some(frozen) => {
                let (payload, done) = frozen.next(PIECE_BYTES);
                if done {
                    outgoing.frozen = None;
                    outgoing.complete = outgoing.next_shard == shards.len();
                }
                payload
            }
        }
    }

    /// A piece has arrived. Pieces out of turn are left to be sent again.
    pub(crate) fn snapshot_piece(
        &mut self,
        piece: SnapshotPiece,
        map: &ClusterMap,
        state: &mut StateQueue,
        now: u64,
    ) {
        let SnapshotPiece { from, base, round, .. } = piece;
        if piece.piece == 0 && !self.is_receiving(from, base) {
            self.incoming = Some(Incoming {
                from,
                base,
                next_piece: 0,
                clock: 0,
                thawing: None,
                shards_done: 0,
                moved_at: now,
            });
        }
        let Some(incoming) = self.incoming.as_mut().filter(|i| i.from == from && i.base == base)
        else {
            return;
        };
        incoming.moved_at = now;
        if piece.piece == incoming.next_piece {
            if self.take_piece(&piece, map, state).is_none() {
                // Not a snapshot of this group: wait for a better one.
                self.incoming = None;
                return;
            }
        } else if piece.piece > incoming.next_piece {
            return;
        }
        let Some(incoming) = &self.incoming else { return };
        let (group, next_piece) = (self.id, incoming.next_piece);
        state.mark(Mark::Pieces { group, from, base, next_piece, round });
        if piece.done && incoming.shards_done == self.store.shards().len() {
            let (clock, membership) = (incoming.clock, piece.membership);
            state.mark(Mark::Received(Install { group, from, base, membership, round, clock }));
        }
    }

    fn is_receiving(&self, from: NodeId, base: LogPosition) -> bool {
        self.incoming.as_ref().is_some_and(|i| i.from == from && i.base == base && i.next_piece > 0)
    }

    /// Stores the piece that is next in turn; `None` if it makes no sense.
    fn take_piece(
        &mut self,
        piece: &SnapshotPiece,
        map: &ClusterMap,
        state: &mut StateQueue,
    ) -> Option<()> {
        let incoming = self.incoming.as_mut()?;
        match Piece::parse(piece.payload.bytes()).ok()? {
            Piece::Begin(begin) => {
                let ours = begin.shard.0 < map.shard_count()
                    && map.group_of(begin.shard) == self.id
                    && begin.at.index >= incoming.base.index;
                if !ours || incoming.thawing.is_some() {
                    return None;
                }
                if incoming.next_piece == 0 {
                    incoming.clock = clock_at_base(&begin, incoming.base)?;
                }
                let blank = Store::blank_shard(begin.shard, map, &self.hasher);
                incoming.thawing = Some(Thawing::new(begin, blank));
                state.begin_shard(self.id, begin.shard.0);
            }
            Piece::Items { shard, index, items } => {
                let thawing = incoming.thawing.as_mut()?;
                if !is_of(thawing, shard, index) {
                    return None;
                }
                thawing.add(items).ok()?;
            }
            Piece::End { shard, index, digest } => {
                let thawing = incoming.thawing.take()?;
                if !is_of(&thawing, shard, index) {
                    return None;
                }
                let thawed = thawing.finish(digest).ok()?;
                incoming.shards_done += 1;
                // The shard may be used at once: entries up to its index are skipped for it.
                let older = |old: &crate::store::Shard| old.base <= index;
                if index > self.applied
                    && self.store.shards().iter().any(|s| s.id == shard && older(s))
                {
                    self.store.replace_shard(thawed);
                }
                state.end_shard(self.id, shard.0, index);
            }
            Piece::Base { .. } => return None,
        }
        let incoming = self.incoming.as_mut()?;
        incoming.next_piece += 1;
        state.push(self.id, piece.payload.clone());
        Some(())
    }
}

fn is_of(thawing: &Thawing, shard: ShardId, index: coracle_raft::LogIndex) -> bool {
    thawing.begin.shard == shard && thawing.begin.at.index == index
}

/// The log clock at the base: that of a shard taken exactly there.
fn clock_at_base(begin: &Begin, base: LogPosition) -> Option<u64> {
    (begin.at.index == base.index).then_some(begin.clock)
}
