//! Snapshots from a leader to a follower whose entries are forgotten: the shards of a group one
//! after the other, a few pieces ahead of the follower's disk, and no faster than what clients want
//! meanwhile leaves room for ([`crate::pace`]).

use std::collections::VecDeque;

use coracle_raft::{Bug, LogPosition, NodeId, Payload, Place, SnapshotAck, SnapshotPiece, planted};

use crate::ShardId;
use crate::apply::Wanted;
use crate::cache::Cache;
use crate::checkpoint::{Install, Mark, PIECE_BYTES};
use crate::cold::Waiter;
use crate::gc::{From, Target};
use crate::group::{Cold, Group, Turn};
use crate::moved::Moved;
use crate::snapshot::{Begin, Frozen, Items, Piece, PieceValue, Thawing, without_long_values};
use crate::store::{SMALL_VALUE_BYTES, Shard, Value};

/// Pieces sent ahead of the follower's acknowledgement.
const WINDOW_PIECES: usize = 4;
/// Ticks without an acknowledgement after which pieces are sent again.
const RESEND_TICKS: u64 = 40;
/// Ticks without a piece after which a snapshot is given up by its receiver.
const INCOMING_TICKS_MAX: u64 = 400;
/// Ticks without an acknowledgement after which a snapshot is begun again from where the group is
/// then: until it ends, the log behind it is kept, and its receiver may be gone for days.
const OUTGOING_TICKS_MAX: u64 = INCOMING_TICKS_MAX;

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
    /// Values of the next piece that are being read.
    reading: usize,
    /// A value could not be read: it must begin again.
    failed: bool,
    acked_at: u64,
    moved_at: u64,
}

impl Outgoing {
    /// The oldest segment that it still refers to.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.frozen.as_ref().and_then(Frozen::oldest_segment)
    }
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
    pub(crate) fn send_snapshot(&mut self, to: NodeId, turn: &mut Turn<'_>) {
        let index = self.applied();
        let Some(term) =
            self.raft.term_of(index).filter(|_| !self.is_ahead() && !self.checks.is_diverged())
        else {
            return;
        };
        let outgoing = Outgoing {
            base: LogPosition { term, index },
            next_shard: 0,
            frozen: None,
            next_piece: 0,
            window: VecDeque::new(),
            complete: false,
            reading: 0,
            failed: false,
            acked_at: turn.tick,
            moved_at: turn.tick,
        };
        self.outgoing.insert(to, outgoing);
        self.fill_window(to, turn);
    }

    /// A follower has pieces on its disk.
    pub(crate) fn snapshot_acked(&mut self, ack: SnapshotAck, turn: &mut Turn<'_>) {
        let Some(outgoing) = self.outgoing.get_mut(&ack.from) else { return };
        if outgoing.base != ack.base {
            return;
        }
        while outgoing.window.pop_front_if(|(piece, ..)| *piece < ack.next_piece).is_some() {
            (outgoing.moved_at, outgoing.acked_at) = (turn.tick, turn.tick);
        }
        self.fill_window(ack.from, turn);
    }

    /// A value for a snapshot has been read.
    pub(crate) fn snapshot_value(&mut self, to: NodeId, place: Place, payload: Payload) {
        let Some(outgoing) = self.outgoing.get_mut(&to) else { return };
        if let Some(frozen) = &mut outgoing.frozen {
            frozen.fetched(place, payload);
        }
        self.snapshot_value_done(to);
    }

    /// A value for a snapshot came from another replica; `old` is where it could not be read.
    pub(crate) fn snapshot_value_repaired(&mut self, to: NodeId, old: &Wanted, value: &[u8]) {
        let Some(outgoing) = self.outgoing.get_mut(&to) else { return };
        if let Some(frozen) = &mut outgoing.frozen {
            frozen.repaired(&old.key, old.located, value);
        }
        self.snapshot_value_done(to);
    }

    /// A value for a snapshot cannot be had: it begins again, with what is there then.
    pub(crate) fn snapshot_value_failed(&mut self, to: NodeId) {
        if let Some(outgoing) = self.outgoing.get_mut(&to) {
            outgoing.failed = true;
            self.snapshot_value_done(to);
        }
    }

    fn snapshot_value_done(&mut self, to: NodeId) {
        let Some(outgoing) = self.outgoing.get_mut(&to) else { return };
        outgoing.reading = outgoing.reading.saturating_sub(1);
        if outgoing.reading == 0 {
            self.resumed.push(to);
        }
    }

    /// Goes on with the snapshots whose values have come.
    pub(crate) fn resume_snapshots(&mut self, turn: &mut Turn<'_>) {
        for to in std::mem::take(&mut self.resumed) {
            match self.outgoing.get(&to) {
                Some(outgoing) if outgoing.failed => self.send_snapshot(to, turn),
                Some(_) => self.fill_window(to, turn),
                None => {}
            }
        }
    }

    /// Sends again what was not acknowledged; drops what is no longer wanted.
    pub(crate) fn tick_snapshots(&mut self, now: u64) {
        let (leader, ticks) = (self.raft.leader(), INCOMING_TICKS_MAX);
        self.incoming.take_if(|i| leader != Some(i.from) || now - i.moved_at >= ticks);
        if self.outgoing.is_empty() {
            return;
        }
        let (leads, raft, resumed) = (self.leads(), &mut self.raft, &mut self.resumed);
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
            outgoing.failed |= now - outgoing.acked_at >= OUTGOING_TICKS_MAX;
            let rests = outgoing.reading == 0 && !outgoing.complete;
            if outgoing.failed || (rests && outgoing.window.len() < WINDOW_PIECES) {
                resumed.push(to);
            }
            true
        });
    }

    fn fill_window(&mut self, to: NodeId, turn: &mut Turn<'_>) {
        let Some(mut outgoing) = self.outgoing.remove(&to) else { return };
        while outgoing.window.len() < WINDOW_PIECES
            && !outgoing.complete
            && outgoing.reading == 0
            && turn.pace.may_send()
        {
            let wanted = outgoing.frozen.as_ref().map(|f| f.wanted(PIECE_BYTES, turn.cache));
            if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
                outgoing.reading = wanted.len();
                let cold = wanted.into_iter().map(|w| Cold::Other(Waiter::Snapshot(to), w));
                turn.cold.extend(cold);
                break;
            }
            let Some(payload) = self.next_payload(&mut outgoing, turn.cache) else { break };
            let (piece, done) = (outgoing.next_piece, outgoing.complete);
            outgoing.next_piece += 1;
            turn.pace.sent(payload.len());
            outgoing.window.push_back((piece, done, payload.clone()));
            self.raft.send_snapshot_piece(to, outgoing.base, piece, done, payload);
        }
        self.outgoing.insert(to, outgoing);
    }

    fn next_payload(&self, outgoing: &mut Outgoing, cache: &Cache) -> Option<Payload> {
        let shards = self.store.shards();
        match &mut outgoing.frozen {
            None => {
                let shard = &shards[outgoing.next_shard];
                // While commands wait in it, a shard is older than what is applied.
                if self.stalls.holds(outgoing.next_shard) || self.has_lost(outgoing.next_shard) {
                    return None;
                }
                outgoing.next_shard += 1;
                // The first shard is taken at the base itself and so carries its log clock.
                let late = planted(Bug::SnapshotIndexTooLow);
                let index = if late { outgoing.base.index } else { self.applied() };
                let term = self.raft.term_of(index).unwrap_or(outgoing.base.term);
                let frozen = Frozen::new(shard, LogPosition { term, index }, self.store.clock());
                let payload = frozen.begin.encode();
                outgoing.frozen = Some(frozen);
                Some(payload)
            }
            Some(frozen) => {
                let (payload, done) = frozen.next(PIECE_BYTES, cache)?;
                if done {
                    outgoing.frozen = None;
                    outgoing.complete = outgoing.next_shard == shards.len();
                }
                Some(payload)
            }
        }
    }

    /// A piece has arrived. Pieces out of turn are left to be sent again.
    pub(crate) fn snapshot_piece(&mut self, piece: SnapshotPiece, turn: &mut Turn<'_>) {
        let now = turn.tick;
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
            if self.take_piece(&piece, turn).is_none() {
                // Not a snapshot of this group: wait for a better one.
                self.incoming = None;
                return;
            }
        } else if piece.piece > incoming.next_piece {
            return;
        }
        let Some(incoming) = &self.incoming else { return };
        let (group, next_piece) = (self.id, incoming.next_piece);
        turn.state.mark(Mark::Pieces { group, from, base, next_piece, round });
        if piece.done && incoming.shards_done == self.store.shards().len() {
            let (clock, membership) = (incoming.clock, piece.membership);
            turn.state.mark(Mark::Received(Install {
                group,
                from,
                base,
                membership,
                round,
                clock,
            }));
        }
    }

    fn is_receiving(&self, from: NodeId, base: LogPosition) -> bool {
        self.incoming.as_ref().is_some_and(|i| i.from == from && i.base == base && i.next_piece > 0)
    }

    /// The shard that is arriving, if it has this number.
    pub(crate) fn incoming_shard(&mut self, shard: ShardId) -> Option<&mut Shard> {
        let thawing = self.incoming.as_mut()?.thawing.as_mut()?;
        (thawing.begin.shard == shard).then(|| thawing.shard_mut())
    }

    /// The oldest segment with a value of the shard that is arriving: no index refers to it yet.
    pub(crate) fn oldest_arriving(&self) -> Option<u64> {
        let thawing = self.incoming.as_ref()?.thawing.as_ref()?;
        thawing.shard().live().oldest()
    }

    /// Stores the piece that is next in turn; `None` if it makes no sense.
    fn take_piece(&mut self, piece: &SnapshotPiece, turn: &mut Turn<'_>) -> Option<()> {
        let incoming = self.incoming.as_mut()?;
        let mut record = piece.payload.clone();
        match Piece::parse(piece.payload.bytes()).ok()? {
            Piece::Begin(begin) => {
                let ours = begin.shard.0 < turn.map.shard_count()
                    && turn.map.group_of(begin.shard) == self.id
                    && begin.at.index >= incoming.base.index;
                if !ours || incoming.thawing.is_some() {
                    return None;
                }
                if incoming.next_piece == 0 {
                    incoming.clock = clock_at_base(&begin, incoming.base)?;
                }
                let blank = Shard::new(begin.shard, turn.map, self.hasher.clone());
                incoming.thawing = Some(Thawing::new(begin, blank));
                turn.state.begin_shard(self.id, begin.shard.0);
            }
            Piece::Items { shard, index, items } => {
                let thawing = incoming.thawing.as_mut()?;
                if !is_of(thawing, shard, index) {
                    return None;
                }
                self.take_items(shard, items, turn)?;
                record = without_long_values(shard, index, items).ok()?;
            }
            Piece::End { shard, index, digest } => {
                let thawing = incoming.thawing.take()?;
                if !is_of(&thawing, shard, index) {
                    return None;
                }
                let thawed = thawing.finish(digest).ok()?;
                incoming.shards_done += 1;
                turn.state.end_shard(self.id, shard.0, index);
                self.take_shard(thawed, turn);
            }
            Piece::Base { .. } => return None,
        }
        let incoming = self.incoming.as_mut()?;
        incoming.next_piece += 1;
        turn.state.push(self.id, record);
        Some(())
    }

    /// Puts items into the arriving shard. Long values stay in memory until they have a place.
    fn take_items(
        &mut self,
        shard: ShardId,
        mut items: Items<'_>,
        turn: &mut Turn<'_>,
    ) -> Option<()> {
        let thawing = self.incoming.as_mut()?.thawing.as_mut()?;
        while let Some(item) = items.next().ok()? {
            let PieceValue::Here(value) = item.value else { return None };
            thawing.add(item.with(Value::Memory(value.to_vec()))).ok()?;
            if value.len() > SMALL_VALUE_BYTES {
                let (key, version, sum) = (item.key, item.version, item.sum);
                let payload = Moved { shard, sum, version, key, value }.encode();
                turn.state.push_value(self.id, payload);
                let (from, key) = (From::Memory(version), key.into());
                turn.targets.push_back(Target { group: turn.place, shard, key, from });
            }
        }
        Some(())
    }

    /// A shard is complete. It may be used at once: entries up to its index are skipped for it.
    fn take_shard(&mut self, thawed: Shard, turn: &mut Turn<'_>) {
        let Some(place) = self.store.place_of(thawed.id) else { return };
        let index = thawed.base.index;
        if index > self.applied && self.store.shards()[place].base.index <= index {
            self.store.replace_shard(thawed, turn.graveyard);
            self.drop_line(place, turn.out, turn.tally);
            self.dirty_keys.retain(|(shard, _)| *shard != place);
            self.lost.retain(|lost| lost.shard != place);
        }
    }
}

fn is_of(thawing: &Thawing, shard: ShardId, index: coracle_raft::LogIndex) -> bool {
    thawing.begin.shard == shard && thawing.begin.at.index == index
}

/// The log clock at the base: that of a shard taken exactly there.
fn clock_at_base(begin: &Begin, base: LogPosition) -> Option<u64> {
    (begin.at.index == base.index).then_some(begin.clock)
}
