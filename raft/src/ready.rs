//! What a replica wants done.

use crate::{Entry, HardState, LogIndex, LogPosition, Membership, Message, NodeId, Payload};

/// What a replica wants done; all of it may be done at once and in any order. Filled by
/// [`crate::Raft::drain`], which appends; the driver clears it.
#[derive(Debug, Default)]
pub struct Ready {
    /// Term and vote to make durable with this drain's batch.
    pub hard_state: Option<HardState>,
    /// Entries to make durable with this drain's batch. They replace whatever the log on disk
    /// holds at the first one's index and after it.
    pub entries: Vec<Entry>,
    /// Messages to send.
    pub messages: Vec<Message>,
    /// Answers to [`crate::Raft::read_index`].
    pub reads: Vec<ReadState>,
    /// Entries to read back; answer with [`crate::Raft::entries_loaded`].
    pub loads: Vec<LoadRange>,
    /// Followers that need a snapshot; send pieces by [`crate::Raft::send_snapshot_piece`].
    pub snapshots_wanted: Vec<NodeId>,
    /// Followers' acknowledgements of pieces.
    pub snapshot_acks: Vec<SnapshotAck>,
    /// Pieces that arrived; answer by [`crate::Raft::snapshot_piece_persisted`] once durable.
    pub snapshot_pieces: Vec<SnapshotPiece>,
}

/// The answer to a read index request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// The caller's number.
    pub context: u64,
    /// Serve the reads once this is applied; `None`: refused, ask again.
    pub index: Option<LogIndex>,
}

/// Entries that are on disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadRange {
    /// First one wanted.
    pub first: LogIndex,
    /// Last one wanted (inclusive).
    pub last: LogIndex,
    /// Stop after the entry that reaches this many bytes; at least one is returned.
    pub bytes_max: usize,
}

/// A follower has pieces of a snapshot on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAck {
    /// Which follower.
    pub from: NodeId,
    /// Which snapshot.
    pub base: LogPosition,
    /// The piece it wants next.
    pub next_piece: u64,
}

/// A piece of a snapshot that a leader sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPiece {
    /// The leader.
    pub from: NodeId,
    /// What the snapshot covers.
    pub base: LogPosition,
    /// Membership as of `base`.
    pub membership: Membership,
    /// Number of this piece, from 0.
    pub piece: u64,
    /// Whether it is the last one.
    pub done: bool,
    /// Content, opaque here.
    pub payload: Payload,
    /// Goes back with the acknowledgement.
    pub round: u64,
}
