//! The rkyv structs of format version 1. They never change; a new version gets new structs.
//!
//! Scalars and vectors only, without padding: what rkyv's checks have to understand is as little
//! as possible, and a slice of these structs is written with one copy.

use rkyv::{Archive, Serialize};

/// Header of a `hello` frame.
#[derive(Archive, Serialize, Clone, Debug, Default)]
pub(crate) struct HelloV1 {
    /// Cluster id, lower and upper half.
    pub(crate) cluster_id: [u64; 2],
    pub(crate) disk: u64,
    /// Starts of the sender on that disk.
    pub(crate) starts: u64,
    /// Random numbers of the last of them, the newest last.
    pub(crate) nonces: Vec<u64>,
    pub(crate) from_node: u32,
    pub(crate) from_core: u32,
    pub(crate) to_node: u32,
    pub(crate) to_core: u32,
    /// Newest format version the sender reads.
    pub(crate) version: u32,
    pub(crate) reserved: u32,
}

/// Header of a `refusal` frame; the text is the tail.
#[derive(Archive, Serialize, Clone, Debug, Default)]
#[repr(C)]
pub(crate) struct RefusalV1 {
    /// See [`refusal_kind`].
    pub(crate) kind: u32,
    pub(crate) text: BlobV1,
}

/// Values of [`RefusalV1::kind`].
pub(crate) mod refusal_kind {
    pub(crate) const OTHER: u32 = 0;
    pub(crate) const AMNESIA: u32 = 1;
}

/// Header of a `messages` frame. `runs` gives the order; each other table is used up in order.
#[derive(Archive, Serialize, Clone, Debug, Default)]
pub(crate) struct MessagesV1 {
    pub(crate) runs: Vec<RunV1>,
    pub(crate) raft: Vec<RaftV1>,
    /// The entries of all appends.
    pub(crate) entries: Vec<EntryV1>,
    pub(crate) forwards: Vec<ForwardV1>,
    /// The ids of all answers to forwards.
    pub(crate) replies: Vec<u64>,
    /// The groups of all `Leads`.
    pub(crate) led: Vec<LedV1>,
    /// What the tail is made of, in the order of the messages.
    pub(crate) blobs: Vec<BlobV1>,
}

/// Messages of one kind in a row; for [`run::LEADS`] one message with `count` groups.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct RunV1 {
    pub(crate) kind: u32,
    pub(crate) count: u32,
}

/// Values of [`RunV1::kind`].
pub(crate) mod run {
    pub(crate) const RAFT: u32 = 1;
    pub(crate) const FORWARD: u32 = 2;
    pub(crate) const REPLY: u32 = 3;
    pub(crate) const LEADS: u32 = 4;
    /// Each is a blob.
    pub(crate) const DIGESTS: u32 = 5;
    /// Rows of `forwards`, see [`super::ForwardV1`].
    pub(crate) const VALUE_WANTED: u32 = 6;
    /// Rows of `forwards`, see [`super::ForwardV1`].
    pub(crate) const VALUE_ANSWER: u32 = 7;
    /// `count`: how full a disk is, from 0 for enough space to 3 for none.
    pub(crate) const SPACE: u32 = 8;
    /// Rows of `raft` with `kind` 0. `round`: id. `group`. `position`: first. `number`: the index
    /// of the last.
    pub(crate) const ENTRIES_WANTED: u32 = 9;
    /// Rows of `raft` with `kind` 0. `round`: id. `number`: base. `count` entries with a blob each,
    /// behind the index in `position`; without any it is 0.
    pub(crate) const ENTRIES_ANSWER: u32 = 10;
}

/// A message of consensus, or one about entries, see [`run`]. Which of `position`, `number`,
/// `round` and `flag` mean something, and what, depends on `kind`: see [`raft_kind`]. The others
/// are zero.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct RaftV1 {
    pub(crate) term: u64,
    pub(crate) position_term: u64,
    pub(crate) position_index: u64,
    pub(crate) number: u64,
    pub(crate) round: u64,
    pub(crate) group: u32,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) kind: u32,
    pub(crate) flag: u32,
    /// Entries of an append.
    pub(crate) count: u32,
}

/// Values of [`RaftV1::kind`].
pub(crate) mod raft_kind {
    /// `position`: last.
    pub(crate) const PRE_VOTE: u32 = 1;
    /// `flag`: granted.
    pub(crate) const PRE_VOTE_RESPONSE: u32 = 2;
    /// `position`: last. `flag`: transfer.
    pub(crate) const VOTE: u32 = 3;
    /// `flag`: granted.
    pub(crate) const VOTE_RESPONSE: u32 = 4;
    /// `position`: prev. `number`: commit. `round`. `count` entries with a blob each.
    pub(crate) const APPEND: u32 = 5;
    /// `number`: matched. `round`.
    pub(crate) const APPEND_ACCEPTED: u32 = 6;
    /// `number`: prev. `position`: hint. `round`.
    pub(crate) const APPEND_REJECTED: u32 = 7;
    /// `number`: commit. `round`.
    pub(crate) const HEARTBEAT: u32 = 8;
    /// `round`.
    pub(crate) const HEARTBEAT_RESPONSE: u32 = 9;
    /// `number`: context.
    pub(crate) const READ_INDEX: u32 = 10;
    /// `number`: context. `flag`: whether there is an index, then `position_index`.
    pub(crate) const READ_INDEX_RESPONSE: u32 = 11;
    pub(crate) const TIMEOUT_NOW: u32 = 12;
    /// `position`: base. `number`: piece. `flag`: done. `round`. Two blobs: membership, piece.
    pub(crate) const SNAPSHOT: u32 = 13;
    /// `position`: base. `number`: next piece. `round`.
    pub(crate) const SNAPSHOT_RESPONSE: u32 = 14;
    /// `number`: first.
    pub(crate) const SNAPSHOT_WANTED: u32 = 15;
}

/// A log entry.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct EntryV1 {
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) kind: u32,
    pub(crate) reserved: u32,
}

/// Values of [`EntryV1::kind`].
pub(crate) mod entry_kind {
    pub(crate) const EMPTY: u32 = 1;
    pub(crate) const COMMAND: u32 = 2;
    pub(crate) const MEMBERSHIP: u32 = 3;
}

/// A request with a number, or an answer to one. What the fields mean depends on the run:
///
/// | run | `at` | `slot` | `flags` | blob |
/// |---|---|---|---|---|
/// | [`run::FORWARD`] | wall time | slot | [`forward_flag`] | the command |
/// | [`run::VALUE_WANTED`] | version | group | 0 | the key |
/// | [`run::VALUE_ANSWER`] | as of which entry | 0 | [`answer_flag`] | the value, if there is one |
#[derive(Archive, Serialize, Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct ForwardV1 {
    pub(crate) id: u64,
    pub(crate) at: u64,
    pub(crate) slot: u32,
    /// See [`forward_flag`].
    pub(crate) flags: u32,
}

/// Bits of [`ForwardV1::flags`].
pub(crate) mod forward_flag {
    pub(crate) const WRITE: u32 = 1;
    pub(crate) const ALL: u32 = WRITE;
}

/// Bits of [`ForwardV1::flags`] in an answer.
pub(crate) mod answer_flag {
    pub(crate) const FOUND: u32 = 1;
}

/// A group and the term its leader leads in.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct LedV1 {
    pub(crate) term: u64,
    pub(crate) group: u32,
    pub(crate) reserved: u32,
}

/// A piece of the tail.
#[derive(Archive, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BlobV1 {
    pub(crate) len_bytes: u32,
    pub(crate) checksum: u32,
}

macro_rules! assert_size {
    ($($archived:ty = $bytes:literal),* $(,)?) => {
        $(const _: () = assert!(
            size_of::<$archived>() == $bytes,
            "the features of rkyv have changed, and the wire format with them"
        );)*
    };
}

assert_size! {
    ArchivedHelloV1 = 64, ArchivedRefusalV1 = 12, ArchivedMessagesV1 = 56, ArchivedRunV1 = 8,
    ArchivedRaftV1 = 64, ArchivedEntryV1 = 24, ArchivedForwardV1 = 24, ArchivedLedV1 = 16,
    ArchivedBlobV1 = 8,
}
