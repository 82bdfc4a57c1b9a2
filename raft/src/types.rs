//! The words of Raft as types: who, when, where in the log, and what is in it.

use std::fmt;
use std::sync::Arc;

/// One server process of the cluster. Zero is not a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// One Raft group. Group 0 is the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u32);

/// A period with at most one leader; 0 means "before the first election" (Raft paper §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(u64);

/// Position in one group's log. First entry is 1; 0 means "before the log" (Raft paper fig. 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(u64);

/// Number of one batch of effects handed to the disk by one core. Strictly increasing within a
/// process; acknowledgements carry it instead of (term, index), so an overwritten entry can
/// never be acknowledged by mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(u64);

macro_rules! counter {
    ($name:ident, $raw:ty, $prefix:literal) => {
        impl $name {
            /// Wraps the raw number.
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The raw number.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

counter!(NodeId, u32, "n");
counter!(GroupId, u32, "g");
counter!(Term, u64, "t");
counter!(LogIndex, u64, "");
counter!(BatchSeq, u64, "b");

macro_rules! successor {
    ($name:ident) => {
        impl $name {
            /// The one after this. Panics on overflow, which 2^64 steps cannot reach.
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

successor!(Term);
successor!(LogIndex);
successor!(BatchSeq);

impl LogIndex {
    /// "Before the log".
    pub const ZERO: Self = Self(0);

    /// The one before this; `ZERO` stays `ZERO`.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// This index moved forward by `count`.
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// How many entries lie in `other..self`; 0 if `other` is ahead.
    pub const fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

/// An entry's place and the term that made it; what the log matching property compares
/// (Raft paper §5.3). Ordered by term, then index: the "more up to date" order of §5.4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Term of the leader that created the entry.
    pub term: Term,
    /// Its place in the log.
    pub index: LogIndex,
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// The entry a leader appends at the start of its term (Raft paper §8). No payload.
    Empty,
    /// A command of the state machine; opaque here.
    Command,
    /// A membership change; encoded by this crate.
    Membership,
}

/// Immutable shared bytes with the checksum their creator computed.
///
/// The checksum (CRC32C of the bytes) is opaque here: it is computed once, where the bytes enter
/// the system, and travels with them to every disk, so damage anywhere on the way is found.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: Arc<[u8]>,
    checksum: u32,
}

impl Payload {
    /// Bytes whose CRC32C is `checksum`. Copies them next to their reference count: whoever
    /// touches the one has the other in its cache, and there is one allocation to miss, not two.
    pub fn new(bytes: impl Into<Arc<[u8]>>, checksum: u32) -> Self {
        Self { bytes: bytes.into(), checksum }
    }

    /// No bytes; their CRC32C is 0.
    pub fn empty() -> Self {
        Self::new([], 0)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The shared allocation itself, for drivers that send or write it without a copy.
    pub fn shared(&self) -> Arc<[u8]> {
        Arc::clone(&self.bytes)
    }

    /// The checksum given by the creator.
    pub const fn checksum(&self) -> u32 {
        self.checksum
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes, crc {:08x})", self.len(), self.checksum)
    }
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Term of the leader that created it.
    pub term: Term,
    /// Its place in the log.
    pub index: LogIndex,
    /// What it is for.
    pub kind: EntryKind,
    /// Its content.
    pub payload: Payload,
}

impl Entry {
    /// Bytes an entry costs in windows and buffers beside its payload.
    pub const OVERHEAD_BYTES: usize = 48;

    /// What this entry counts for in byte windows.
    pub fn size_bytes(&self) -> usize {
        Self::OVERHEAD_BYTES + self.payload.len()
    }

    /// Its position.
    pub const fn position(&self) -> LogPosition {
        LogPosition { term: self.term, index: self.index }
    }
}

/// What a replica must never forget (Raft paper fig. 2, "Persistent state"; the log is the rest).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HardState {
    /// Latest term this replica has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
}

/// How much of what is pending a drain hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Only what needs no new disk batch: replies, acknowledgements, votes already persisted,
    /// heartbeats. New entries stay inside and gather. For turns in which the disk is busy.
    Urgent,
    /// Everything; new records become the next disk batch.
    All,
}
