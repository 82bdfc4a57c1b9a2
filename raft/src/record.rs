//! What a core writes to its log on disk: the vocabulary shared by `engine` and `wal`.

use std::fmt;

use crate::{Entry, GroupId, HardState, LogPosition, Payload};

/// Where a record stands in a core's log: the number of its segment and the offset in the file.
/// Records are never moved, and start at multiples of 8, so one number names any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// A record at byte `offset` of segment `segment`. Panics if the offset is no multiple of 8
    /// below 2^32 or the segment's number does not fit into 32 bits.
    pub const fn new(segment: u64, offset: u64) -> Self {
        assert!(offset.is_multiple_of(8) && offset < 1 << 32 && segment < 1 << 32);
        Self(segment << 32 | offset)
    }

    /// The number of the segment.
    pub const fn segment(self) -> u64 {
        self.0 >> 32
    }

    /// The offset in the segment's file, in bytes.
    pub const fn offset(self) -> u64 {
        self.0 & 0xFFFF_FFFF
    }

    /// As one number, for storing it: segments by their order, then offsets.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place that [`Place::get`] gave as a number; `None` for other numbers.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw.is_multiple_of(8) { Some(Self(raw)) } else { None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} at {}", self.segment(), self.offset())
    }
}

/// One record of a core's write-ahead log. Records of many groups share one log; the order of a
/// group's own records is their meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry. It replaces whatever the group's log held at this index and after it.
    Entry {
        /// Whose log.
        group: GroupId,
        /// The entry.
        entry: Entry,
    },
    /// Term and vote; the newest one counts.
    HardState {
        /// Whose.
        group: GroupId,
        /// Term and vote.
        hard_state: HardState,
    },
    /// A piece of a state machine's durable state, written by `engine`, opaque to `wal`.
    State {
        /// Whose state.
        group: GroupId,
        /// The piece, in `engine`'s encoding.
        payload: Payload,
    },
    /// A value that the index refers to by its place: moved out of an old segment, computed by a
    /// command, or received in a snapshot. Written by `engine`, opaque to `wal`. Unlike
    /// [`Record::State`] it does not keep its segment in the part of the log that recovery reads:
    /// what it means stands elsewhere.
    Value {
        /// Whose value.
        group: GroupId,
        /// The value, in `engine`'s encoding.
        payload: Payload,
    },
    /// The log of this group starts after `base`: what is at or before it is forgotten.
    Purge {
        /// Whose log.
        group: GroupId,
        /// Last forgotten entry.
        base: LogPosition,
    },
}

impl Record {
    /// The group this record belongs to.
    pub const fn group(&self) -> GroupId {
        match self {
            Self::Entry { group, .. }
            | Self::HardState { group, .. }
            | Self::State { group, .. }
            | Self::Value { group, .. }
            | Self::Purge { group, .. } => *group,
        }
    }
}
