//! What can go wrong with checkpoint files. Damage inside them is no error.

use std::io;

use crate::{Disk, Identity};

/// Why a checkpoint cannot be written, or the checkpoints cannot be opened.
///
/// Of a checkpoint that failed nothing counts, wherever it failed, and its number is not used
/// again. The older ones and the log are as good as before: go on with them, and take another
/// checkpoint later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The checkpoint is of another cluster, node or core: the directory is in the wrong place.
    #[error("{file} belongs to {found}, this is {wanted}")]
    Identity {
        /// The file.
        file: String,
        /// Whose it is.
        found: Identity,
        /// Whose it should be.
        wanted: Identity,
    },
    /// Written by a version of this program whose format this one does not know.
    #[error("{file} has checkpoint format version {found}, this program reads version {known}")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The version this code reads.
        known: u32,
    },
    /// The directory has a checkpoint of this number or of a later one, damaged or not.
    #[error("checkpoint {number} cannot be made: there is a checkpoint {newest}")]
    NumberTaken {
        /// The number asked for.
        number: u64,
        /// The newest one in the directory.
        newest: u64,
    },
    /// The file system is full. Try again when there is room.
    #[error("no space for {file}: {source}")]
    NoSpace {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
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
    /// This checkpoint has failed before: abandon it.
    #[error("checkpoint {number} has failed before")]
    Failed {
        /// Its number.
        number: u64,
    },
}

/// Makes an error of what the disk said.
pub(super) fn io<D: Disk>(
    disk: &D,
    name: &str,
    action: &'static str,
) -> impl FnOnce(io::Error) -> CheckpointError {
    let file = disk.display(name);
    move |source| {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&source.kind()) {
            CheckpointError::NoSpace { file, source }
        } else {
            CheckpointError::Io { file, action, source }
        }
    }
}
