//! What recovery found.

use std::collections::BTreeMap;
use std::fmt;

use coracle_raft::{GroupId, LogPosition};

use crate::Lsn;

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segment files with content.
    pub segments: usize,
    /// How many of them are kept for their values only: the oldest ones. Of these only the headers
    /// are read; batches, records and bytes are counted in the others.
    pub value_segments: usize,
    /// Batches, damaged ones included.
    pub batches: u64,
    /// Whole records.
    pub records: u64,
    /// Bytes of all batches.
    pub bytes: u64,
    /// Everything before this position is known to have been acknowledged or acknowledgeable:
    /// damage before it is damage.
    pub watermark: Lsn,
    /// Where the log ends.
    pub end: Lsn,
    /// A write that was in flight when the process or the power went: cut off. Nothing in it was
    /// ever acknowledged.
    pub torn: Option<Torn>,
    /// Groups that lost records, or may have, of which it is not known what they said: they must
    /// not vote or lead. See [`Wal::reset_group`](crate::Wal::reset_group).
    pub damaged: BTreeMap<GroupId, Vec<Damage>>,
    /// Groups that lost nothing but the contents of these entries, which must come from other
    /// replicas.
    pub lost_entries: BTreeMap<GroupId, Vec<LostEntry>>,
    /// Damaged batches of which the next one tells what stood there.
    pub restored: u64,
    /// Segments without a header whose first batch tells what it said.
    pub headers_restored: u64,
    /// Damage of which it cannot be told whose records it hit. Groups with records after it are
    /// proven whole or listed in `damaged`; a group without any record in the log may have lost
    /// all of them here.
    pub unattributed: Vec<Damage>,
    /// Segments kept for their values whose headers cannot be read: no value in them can be. No
    /// group is damaged by that.
    pub values_damaged: Vec<Damage>,
    /// Damage that hit only what was overwritten or purged later.
    pub healed: u64,
    /// Bytes of segments that were read: all of the log proper and what was made ahead, and again
    /// what had to be looked at again.
    pub bytes_read: u64,
    /// Blocks of 4 KiB that the disk refused to read.
    pub unreadable_blocks: u64,
    /// Unfinished and unused files that were removed or put aside for reuse.
    pub cleared_files: Vec<String>,
    /// Groups with records, ascending.
    pub groups: Vec<GroupId>,
}

impl RecoveryReport {
    /// Whether this group, which should have been in the log, is damaged: it lost records, or
    /// none of its records is left and some were lost of which nobody knows whose.
    ///
    /// A group that was never in this log is none of its business: on a log with unattributed
    /// damage the answer for such a group is a cautious yes.
    pub fn is_damaged(&self, group: GroupId) -> bool {
        self.damaged.contains_key(&group)
            || (!self.unattributed.is_empty() && self.groups.binary_search(&group).is_err())
    }

    /// Whether no group is damaged or lost an entry.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.unattributed.is_empty() && self.lost_entries.is_empty()
    }
}

/// An entry whose content is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostEntry {
    /// What is known of it.
    pub position: LogPosition,
    /// Where it stood.
    pub damage: Damage,
}

/// A write that was cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub file: String,
    /// Where the log was cut.
    pub offset: u64,
    /// Whole batches behind the cut that went with it.
    pub batches_dropped: u64,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unfinished write at {} of {} cut off, with {} whole batches behind it",
            self.offset, self.file, self.batches_dropped
        )
    }
}

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What is damaged.
    pub kind: DamageKind,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of {}", self.kind, self.offset, self.file)
    }
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageKind {
    /// The content of a record; its header is whole.
    Payload,
    /// Headers of records.
    Records,
    /// The header of a batch, or a whole batch.
    Batch,
    /// The header of a segment, and so all of it.
    Segment,
    /// Records are missing though no damage is to be seen before them.
    Missing,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Payload => "damaged record content",
            Self::Records => "damaged record headers",
            Self::Batch => "damaged batch",
            Self::Segment => "damaged segment header",
            Self::Missing => "missing records",
        })
    }
}
