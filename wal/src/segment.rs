//! Segment files: their names and the slow work of preparing and removing them.

use std::fmt;
use std::io;

use coracle_ring::AlignedBuf;

use crate::Disk;
use crate::disk::write_all;
use crate::format::{BLOCK_BYTES, SegmentHeader};

/// One segment file. Numbers grow by one along the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(u64);

impl SegmentId {
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number in the file's name.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The file's name.
    pub fn file_name(self) -> String {
        format!("{:010}.seg", self.0)
    }

    /// The segment a file of this name holds.
    pub fn of_file_name(name: &str) -> Option<Self> {
        let number = name.strip_suffix(".seg")?.parse().ok().map(Self)?;
        // One spelling only: "+1" and "1" are numbers too. No log gets beyond 32 bits, which is
        // what the place of a record has room for.
        (number.file_name() == name && number.0 <= u64::from(u32::MAX)).then_some(number)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}", self.0)
    }
}

/// Files that are being made or taken apart end in this; recovery removes them.
pub(crate) const UNFINISHED_SUFFIX: &str = ".tmp";

pub(crate) fn spare_name(number: u64) -> String {
    format!("spare-{number}{UNFINISHED_SUFFIX}")
}

/// Zeros are written in pieces of this size: small, because a log write that is synced meanwhile
/// waits for those that the device holds.
const ZERO_BYTES: usize = 256 << 10;

/// A piece of slow disk work, to be run where blocking hurts nobody.
///
/// The result goes back by [`Wal::segment_ready`](crate::Wal::segment_ready).
#[derive(Debug)]
pub struct SegmentTask {
    pub(crate) job: Job,
}

#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Make a segment file, from an old file if there is one.
    Prepare { header: SegmentHeader, recycle: Option<String> },
    /// Remove a file that is not needed.
    Remove { name: String },
}

/// Result of a [`SegmentTask`].
#[derive(Debug)]
pub struct SegmentDone<F> {
    pub(crate) job: Job,
    pub(crate) result: io::Result<Option<F>>,
}

impl<F> SegmentDone<F> {
    /// Whether a segment was made without an old file: the file system has given space.
    pub const fn took_space(&self) -> bool {
        matches!(self.job, Job::Prepare { recycle: None, .. }) && self.result.is_ok()
    }
}

impl SegmentTask {
    /// Does the work, as fast as the disk can.
    pub fn run<D: Disk>(self, disk: &D) -> SegmentDone<D::File> {
        self.run_paced(disk, &mut |_| {})
    }

    /// Does the work; before a piece of a new file is filled with zeros, `pace` is called with
    /// its bytes and may block.
    pub fn run_paced<D: Disk>(self, disk: &D, pace: &mut dyn FnMut(u64)) -> SegmentDone<D::File> {
        let result = match &self.job {
            Job::Prepare { header, recycle } => {
                let file = prepare(disk, header, recycle.as_deref(), pace);
                if recycle.is_none() && file.as_ref().is_err_and(is_full) {
                    // What is there of it is space that others need. Should it stay, it is taken
                    // over by the next attempt, or removed by the next process.
                    let _ = disk.remove(&spare_name(header.number));
                }
                file.map(Some)
            }
            Job::Remove { name } => remove(disk, name).map(|()| None),
        };
        SegmentDone { job: self.job, result }
    }
}

/// The file appears under its final name only when all of it is on disk; its old name is gone
/// before its content changes.
fn prepare<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    recycle: Option<&str>,
    pace: &mut dyn FnMut(u64),
) -> io::Result<D::File> {
    let spare = spare_name(header.number);
    let file = match recycle {
        Some(old) => {
            failpoint!("loggc_before_recycle");
            if old != spare {
                disk.rename(old, &spare)?;
                disk.sync_dir()?;
            }
            disk.open(&spare)?
        }
        None => {
            let file = disk.create(&spare)?;
            let zeros = AlignedBuf::zeroed(ZERO_BYTES.min(header.segment_bytes as usize));
            let mut offset = 0;
            while offset < header.segment_bytes {
                let len = (header.segment_bytes - offset).min(zeros.len() as u64) as usize;
                pace(len as u64);
                write_all(disk, &file, offset, &zeros[..len])?;
                offset += len as u64;
            }
            file
        }
    };
    let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
    header.encode(&mut block);
    write_all(disk, &file, 0, &block)?;
    disk.sync_data(&file)?;
    failpoint!("wal_segment_created");
    disk.rename(&spare, &SegmentId(header.number).file_name())?;
    failpoint!("wal_segment_renamed");
    disk.sync_dir()?;
    failpoint!("wal_dir_synced");
    Ok(file)
}

/// Whether the disk, or this user's part of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remove<D: Disk>(disk: &D, name: &str) -> io::Result<()> {
    failpoint!("loggc_before_unlink");
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk.sync_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_spelling_of_a_segment_name_counts() {
        let cases = [
            ("0000000007.seg", Some(7)),
            ("7.seg", None),
            ("+000000007.seg", None),
            ("0000000007.tmp", None),
            ("4294967295.seg", Some(u64::from(u32::MAX))),
            ("4294967296.seg", None),
            ("12345678901.seg", None),
        ];
        for (name, want) in cases {
            assert_eq!(SegmentId::of_file_name(name).map(SegmentId::number), want, "{name}");
        }
    }
}
