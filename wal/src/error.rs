//! What can go wrong, and what to do about it.

use std::io;

use coracle_raft::{GroupId, LogIndex, Place};

use crate::{Identity, OptionsError};

/// The log cannot make anything durable any more, with one exception that says so.
///
/// After every variant but [`WalError::NoSpace`] the log is latched: nothing appended from then
/// on, or still in flight, is ever acknowledged. End the process; recovery tells what is on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// A batch could not be written.
    #[error("writing {len} bytes at {offset} of {file} failed: {source}")]
    Write {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// How much.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A batch was written in part.
    #[error("only {written} of {len} bytes were written at {offset} of {file}")]
    ShortWrite {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// How much.
        len: usize,
        /// How much of it was written.
        written: usize,
    },
    /// A segment could not be prepared or removed.
    #[error("preparing {file} failed: {source}")]
    Segment {
        /// The segment.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file system is full: no new segment can be made. Not latched: what fits into the
    /// segments at hand is still made durable. Ask for segment work again when there is room.
    #[error("no space for {file}: {source}")]
    NoSpace {
        /// The segment.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// An error was reported before.
    #[error("the log has failed before and acknowledges nothing any more")]
    Latched,
}

/// Why a log cannot be opened. Damage inside it is no such reason, see
/// [`RecoveryReport`](crate::RecoveryReport).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// An option is out of its range.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The log is of another cluster, node or core: the directory is in the wrong place.
    #[error("{file} belongs to {found}, this is {wanted}")]
    Identity {
        /// The segment.
        file: String,
        /// Whose it is.
        found: Identity,
        /// Whose it should be.
        wanted: Identity,
    },
    /// Written by a version of this program whose format this one does not know.
    #[error("{file} has format version {found}, this program reads version {known}")]
    Version {
        /// The segment.
        file: String,
        /// Its version.
        found: u32,
        /// The version this code reads.
        known: u32,
    },
    /// Segments are missing from the directory: acknowledged writes went with them.
    #[error("segments {first_missing}..={last_missing} are missing before {file}")]
    Gap {
        /// The first segment after the gap.
        file: String,
        /// First number missing.
        first_missing: u64,
        /// Last number missing.
        last_missing: u64,
    },
    /// The file says that it is another segment: files were renamed or mixed.
    #[error("{file} is in the wrong place: {what} is {found}, must be {wanted}")]
    Misplaced {
        /// The segment.
        file: String,
        /// Which of its numbers.
        what: &'static str,
        /// What the file says.
        found: u64,
        /// What it should say.
        wanted: u64,
    },
    /// More groups have records than the options allow.
    #[error("records of {found} groups, at most {limit} are allowed")]
    TooManyGroups {
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The disk refuses an operation on a file or on the directory.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why entries or values cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The log on disk does not hold the first entry asked for: it is purged or was never there.
    #[error("entry {first} of group {} is not in the log", group.get())]
    Missing {
        /// Whose log.
        group: GroupId,
        /// The entry.
        first: LogIndex,
    },
    /// The first entry asked for is not on disk yet; whoever appended it still has it.
    #[error("entry {first} of group {} is not on disk yet", group.get())]
    NotDurable {
        /// Whose log.
        group: GroupId,
        /// The entry.
        first: LogIndex,
    },
    /// The record is not on disk yet; whoever appended it still has it. Ask again when more is
    /// durable.
    #[error("the record in {place} is not on disk yet")]
    NotDurableAt {
        /// Where it will stand.
        place: Place,
    },
    /// The log has never put a record there: whoever gives this place is wrong.
    #[error("the log has no record in {place}")]
    NoRecord {
        /// The place.
        place: Place,
    },
    /// The segment is gone, perhaps since a moment ago: its entries have been purged, its values
    /// released.
    #[error("{file} was recycled")]
    Recycled {
        /// The segment.
        file: String,
    },
    /// The bytes on disk are not what was written.
    #[error("{file} is damaged at {offset}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where the record starts that fails its check.
        offset: u64,
    },
}
