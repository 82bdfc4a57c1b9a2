//! Snapshots as messages (Raft paper §7): pieces go out and come in, the log starts anew.
//!
//! Not here: what is in a piece, and where it is stored.

use crate::raft::{NUMBER_MAX, Needs, Raft, Role};
use crate::{
    AppendOutcome, Body, LogIndex, LogPosition, Membership, NodeId, Payload, SendState,
    SnapshotAck, SnapshotPiece,
};

impl Raft {
    /// Sends a piece of the snapshot that covers everything up to `base` to a follower that was
    /// in [`crate::Ready::snapshots_wanted`]. `base` must not be below the log's base. Does
    /// nothing if the follower no longer needs one.
    pub fn send_snapshot_piece(
        &mut self,
        to: NodeId,
        base: LogPosition,
        piece: u64,
        done: bool,
        payload: Payload,
    ) {
        let Some(progress) = self.progress.get_mut(&to) else { return };
        if !matches!(progress.state, SendState::Snapshot { .. }) {
            return;
        }
        progress.state = SendState::Snapshot { base };
        let membership = self.membership_at(base.index).encode();
        let round = self.round;
        self.send(to, Body::Snapshot { base, membership, piece, done, payload, round });
    }

    /// Whether a follower still needs a snapshot from this leader.
    pub fn wants_snapshot(&self, to: NodeId) -> bool {
        let progress = self.progress.get(&to);
        progress.is_some_and(|progress| matches!(progress.state, SendState::Snapshot { .. }))
    }

    /// Whether a snapshot of this base brings what this replica needs: entries that it does not
    /// know to be committed, or that it cannot read any more.
    pub fn takes_snapshot(&self, base: LogPosition) -> bool {
        let lacks = self.lacking
            && base.index > self.log.delivered()
            && self.log.term_of(base.index) == Some(base.term);
        base.index > self.log.commit() || lacks
    }

    /// Only a snapshot helps this follower.
    pub(crate) fn begin_snapshot(&mut self, to: NodeId) {
        let base = self.log.base();
        let progress = self.progress.get_mut(&to).expect("only called for members");
        progress.state = SendState::Snapshot { base };
        progress.loading = None;
        progress.moved_at = self.now;
        self.out.snapshots_wanted.push(to);
    }

    /// A follower cannot apply an entry. Its log is whole but for the content: what it has
    /// acknowledged counts as before.
    pub(crate) fn handle_snapshot_wanted(&mut self, from: NodeId, first: LogIndex) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        let has_begun = matches!(progress.state, SendState::Snapshot { .. });
        if has_begun || first > self.log.applied() {
            return;
        }
        progress.asked_in = Some(self.round);
        // The pieces are of a later round.
        self.heartbeat_due = true;
        self.begin_snapshot(from);
    }

    /// The pieces below `next_piece` of the snapshot at `base` are durable; tells the leader.
    pub fn snapshot_piece_persisted(
        &mut self,
        from: NodeId,
        base: LogPosition,
        next_piece: u64,
        round: u64,
    ) {
        if self.leader == Some(from) && self.role == Role::Follower {
            let round = self.heard_of(round);
            let body = Body::SnapshotResponse { base, next_piece, round };
            self.send_after(Needs::HardState, from, body);
        }
    }

    /// The state machine holds the snapshot at `base` durably: the log starts after it. Returns
    /// whether it was news; an outdated snapshot changes nothing.
    pub fn snapshot_installed(
        &mut self,
        from: NodeId,
        base: LogPosition,
        membership: Membership,
        round: u64,
    ) -> bool {
        let news = self.takes_snapshot(base);
        if news {
            self.lacking = false;
            let kept = self.log.restore(base);
            if kept {
                self.memberships.retain(|(at, _)| *at > base.index);
            } else {
                self.memberships.clear();
            }
            self.memberships.push_front((base.index, membership));
        }
        if self.leader == Some(from) && self.role == Role::Follower {
            let round = self.heard_of(round);
            let outcome = AppendOutcome::Accepted { matched: self.log.commit().max(base.index) };
            self.send_after(Needs::Log, from, Body::AppendResponse { outcome, round });
        }
        news
    }

    /// The round of a piece, if it was heard in this term. Meanwhile the leader may have led an
    /// earlier term, and started to count anew; the smaller number is certainly true.
    fn heard_of(&self, round: u64) -> u64 {
        round.min(self.heard_round)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn handle_snapshot(
        &mut self,
        from: NodeId,
        base: LogPosition,
        membership: &Payload,
        piece: u64,
        done: bool,
        payload: Payload,
        round: u64,
    ) {
        let Ok(membership) = Membership::decode(membership.bytes()) else { return };
        let possible = 1..=NUMBER_MAX;
        if base.term > self.term || !possible.contains(&base.index.get()) {
            return;
        }
        if !self.takes_snapshot(base) {
            // Already have it: the leader can go on from here.
            let outcome = AppendOutcome::Accepted { matched: self.log.commit() };
            self.send_after(Needs::Log, from, Body::AppendResponse { outcome, round });
            return;
        }
        self.out.snapshot_pieces.push(SnapshotPiece {
            from,
            base,
            membership,
            piece,
            done,
            payload,
            round,
        });
    }

    pub(crate) fn handle_snapshot_response(
        &mut self,
        from: NodeId,
        base: LogPosition,
        next_piece: u64,
        round: u64,
    ) {
        if self.role != Role::Leader {
            return;
        }
        self.echo(from, round);
        let now = self.now;
        let Some(progress) = self.progress.get_mut(&from) else { return };
        if progress.state == (SendState::Snapshot { base }) {
            progress.moved_at = now;
            self.out.snapshot_acks.push(SnapshotAck { from, base, next_piece });
        }
    }
}
