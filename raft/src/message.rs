//! What replicas of one group say to each other.

use crate::{Entry, LogIndex, LogPosition, NodeId, Payload, Term};

/// A message between two replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// The sender's term. In a `PreVote` it is the term the sender would campaign in; in a
    /// granting `PreVoteResponse` it echoes that term; in a refusal it is the refuser's own.
    pub term: Term,
    /// The content.
    pub body: Body,
}

/// The content of a [`Message`].
///
/// `round` numbers the leader's sends within its term. Every reply to a leader echoes the round
/// of the message it answers: an echo from a quorum proves that the sender still led when that
/// round was sent, which is all that ReadIndex (thesis §6.4) and CheckQuorum (§6.2) need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Would you vote for me? Changes nothing at the receiver (thesis §9.6).
    PreVote {
        /// The candidate's last entry.
        last: LogPosition,
    },
    /// Answer to `PreVote`.
    PreVoteResponse {
        /// Whether a real vote would be given.
        granted: bool,
    },
    /// Vote for me (Raft paper §5.2, §5.4.1).
    Vote {
        /// The candidate's last entry.
        last: LogPosition,
        /// A leadership transfer asked for this election: stickiness does not apply
        /// (thesis §4.2.3).
        transfer: bool,
    },
    /// Answer to `Vote`; sent only once the vote is on disk.
    VoteResponse {
        /// Whether the vote was given.
        granted: bool,
    },
    /// Entries that follow `prev` (Raft paper §5.3). May be empty (a probe).
    Append {
        /// The entry before the first one sent.
        prev: LogPosition,
        /// The entries, contiguous from `prev.index + 1`.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: LogIndex,
        /// See [`Body`].
        round: u64,
    },
    /// Answer to `Append` and to a completed snapshot; sent only once the entries are on disk.
    AppendResponse {
        /// What became of the entries.
        outcome: AppendOutcome,
        /// Echo of the round.
        round: u64,
    },
    /// I lead; carries no entries.
    Heartbeat {
        /// The leader's commit index, capped at what the receiver is known to hold.
        commit: LogIndex,
        /// See [`Body`].
        round: u64,
    },
    /// Answer to `Heartbeat`. Not delayed by the disk: it promises nothing durable.
    HeartbeatResponse {
        /// Echo of the round.
        round: u64,
    },
    /// A follower asks for a read index (thesis §6.4). `context` is unique per asker and process.
    ReadIndex {
        /// The asker's number for this batch of reads.
        context: u64,
    },
    /// Answer to `ReadIndex`.
    ReadIndexResponse {
        /// The asker's number.
        context: u64,
        /// Reads may be served once this is applied; `None`: refused, ask again later.
        index: Option<LogIndex>,
    },
    /// Campaign at once (thesis §3.10).
    TimeoutNow,
    /// One piece of a snapshot, sent when the log no longer reaches back far enough (paper §7).
    Snapshot {
        /// The receiver's log restarts after this entry once the last piece is in.
        base: LogPosition,
        /// Membership as of `base`, in this crate's encoding.
        membership: Payload,
        /// Number of this piece, from 0, within this transfer.
        piece: u64,
        /// Whether this is the last piece.
        done: bool,
        /// The piece, opaque here.
        payload: Payload,
        /// See [`Body`].
        round: u64,
    },
    /// Answer to `Snapshot`: pieces below `next_piece` of the transfer for `base` are on disk.
    SnapshotResponse {
        /// Which transfer.
        base: LogPosition,
        /// The piece wanted next.
        next_piece: u64,
        /// Echo of the round.
        round: u64,
    },
    /// A follower has lost the content of an entry that it has to apply, and no replica can give
    /// it any more: only a snapshot helps, though its log reaches further.
    SnapshotWanted {
        /// The entry.
        first: LogIndex,
    },
}

/// What a follower did with an `Append`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// Its log agrees with the leader's up to and including this index, on disk.
    Accepted {
        /// Last entry known to agree.
        matched: LogIndex,
    },
    /// It has no entry at `prev`, or one of another term (Raft paper §5.3, "optimization").
    Rejected {
        /// `prev.index` of the refused message, so that a stale refusal can be told.
        prev: LogIndex,
        /// The largest position at or before `prev` that may still agree: the leader continues
        /// from the last entry of its own log whose term is at most this term.
        hint: LogPosition,
    },
}
