//! What a core writes to its log on disk: the vocabulary shared by `engine` and `wal`.

use crate::{Entry, GroupId, HardState, LogPosition, Payload};

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
            | Self::Purge { group, .. } => *group,
        }
    }
}
