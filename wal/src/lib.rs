//! The write-ahead log of one core, shared by all Raft groups of the core.
//!
//! In: [`Record`](coracle_raft::Record)s by [`Wal::append`]. Out: one [`WriteOp`] per batch, for
//! the driver to write; its completion by [`Wal::written`] says which batch numbers are durable.
//! [`recover`] opens a log, gives back what is in it and tells damage from a write that was cut
//! short. The layout is described in `docs/wal-format.md`.
//!
//! The log is where values are: [`Wal::append`] tells the place of each record,
//! [`Wal::locate_value`] reads one back, [`Wal::locate_scan`] reads a whole segment in order, for
//! moving what is still needed out of it. Segments before [`Wal::log_start`] are kept for their
//! values only, until [`Wal::release_values_before`].
//!
//! Driver contract: each [`WriteOp`] becomes one durable write (`RWF_DSYNC`); completions may come
//! in any order; after an error nothing is retried. [`SegmentTask`]s are run where blocking hurts
//! nobody. When [`Wal::take_released`] names a segment, its file goes after the reads under way.
//!
//! Beside the log stand checkpoint files, containers of opaque sections: [`CheckpointWriter`],
//! [`open_checkpoints`], `docs/checkpoint-format.md`.
//!
//! Not here: rings and sockets (`ring`), what records mean (`raft`, `engine`). This crate blocks
//! only in [`recover`], [`inspect`], [`Examination`], [`SegmentTask::run`] and
//! [`Wal::prepare_segments`], and where checkpoints are written and opened.

/// A named place where tests can end or stop the process (docs/testing.md): nothing without the
/// feature `failpoints`.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name);
    };
}

mod around;
mod batch;
mod checkpoint;
mod disk;
mod echo;
mod error;
mod format;
mod groups;
mod mem;
mod options;
mod read;
mod real;
mod recovery;
mod segment;
mod space;
mod sweep;
mod value;
mod wal;

pub use around::ReadAround;
pub use batch::WriteOp;
pub use checkpoint::{
    Checkpoint, CheckpointError, CheckpointRead, CheckpointReport, CheckpointWriter, DamagedFile,
    DamagedSection, FileDamage, Finished, SECTIONS_MAX, SectionDamage, SectionRead,
    open_checkpoints, read_checkpoints,
};
pub use coracle_ring::AlignedBuf;
pub use disk::Disk;
pub use error::{LoadError, RecoverError, WalError};
pub use format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, FORMAT_VERSION, Lsn, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES,
};
pub use mem::{DiskOp, MemDisk, MemFile, MemMap, SECTOR_BYTES, Unsynced};
pub use options::{Identity, Options, OptionsError};
pub use read::ReadOp;
pub use real::{OpenError, RealDisk};
pub use recovery::{
    Brief, Damage, DamageKind, Examination, Found, LostEntry, RecoveryReport, Torn, ValueError,
    Visitor, inspect, inspect_into, recover, recover_into,
};
pub use segment::{SegmentDone, SegmentId, SegmentTask};
pub use sweep::{ScanRead, Scanned, Seen};
pub use value::{Decoded, ValueRead};
pub use wal::Wal;
