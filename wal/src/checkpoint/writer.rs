//! Writing a checkpoint, a section at a time.

use std::collections::BTreeMap;
use std::io;

use coracle_raft::{Bug, GroupId, planted};
use coracle_ring::AlignedBuf;

use super::error::{CheckpointError, io};
use super::format::{BLOCK, ENTRY_BYTES, Header, SECTION_ALIGN, SECTIONS_MAX, Section, Trailer};
use super::reader::read_frame;
use super::{file_name, is_unfinished, number_of, unfinished_name};
use crate::format::{BLOCK_BYTES, aligned};
use crate::{Disk, Identity};

/// Writes are of this size: small, because a log write that is synced meanwhile waits for those
/// that the device holds.
const BUFFER_BYTES: usize = 256 << 10;
/// What the buffer has at first: enough for a checkpoint of few keys.
const FIRST_BUFFER_BYTES: usize = 16 << 10;

/// A checkpoint that is being written to a temporary file.
///
/// Every call blocks, and so does dropping it, which removes the temporary file. After an error
/// the checkpoint is worth nothing: every further call says [`CheckpointError::Failed`].
#[derive(Debug)]
pub struct CheckpointWriter<D: Disk> {
    disk: D,
    file: D::File,
    number: u64,
    /// The temporary file; none once it has its final name.
    unfinished: Option<String>,
    /// Start value of all checksums but the header's.
    seed: u32,
    buffer: AlignedBuf,
    /// Bytes of the buffer that are in use.
    filled: usize,
    /// Where the buffer goes in the file.
    offset: u64,
    sections: BTreeMap<(GroupId, u16), Section>,
    failed: bool,
}

/// A checkpoint that is on disk under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its number.
    pub number: u64,
    /// Length of its file.
    pub bytes: u64,
    /// How many sections it has.
    pub sections: usize,
    /// The one before it that is kept; none if there is none, or none that can be read.
    pub older: Option<u64>,
}

impl<D: Disk> CheckpointWriter<D> {
    /// Starts a checkpoint with this number, which must be above all of the directory, see
    /// [`CheckpointReport::newest_number`](super::CheckpointReport::newest_number), and above
    /// those that failed.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn create(disk: D, identity: Identity, number: u64) -> Result<Self, CheckpointError> {
        let names = disk.list().map_err(io(&disk, "", "list"))?;
        let newest = names.iter().filter_map(|name| number_of(name)).max();
        if let Some(newest) = newest.filter(|&newest| newest >= number) {
            return Err(CheckpointError::NumberTaken { number, newest });
        }
        let name = unfinished_name(number);
        let file = disk.create(&name).map_err(io(&disk, &name, "create"))?;
        let mut buffer = AlignedBuf::zeroed(FIRST_BUFFER_BYTES);
        let seed = Header { identity, number }.encode(&mut buffer[..BLOCK_BYTES]);
        Ok(Self {
            disk,
            file,
            number,
            unfinished: Some(name),
            seed,
            buffer,
            filled: BLOCK_BYTES,
            offset: 0,
            sections: BTreeMap::new(),
            failed: false,
        })
    }

    /// The number it was created with.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of the file so far, those included that are not written yet.
    pub const fn bytes(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// Adds a section. Writes what fills the buffer: at most the section and 256 KiB.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    ///
    /// # Panics
    /// If there is a section of this group and shard already, or if there are [`SECTIONS_MAX`].
    pub fn add(&mut self, group: GroupId, shard: u16, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.check()?;
        let count = self.sections.len();
        assert!(count < SECTIONS_MAX, "{count} sections, at most {SECTIONS_MAX} are allowed");
        self.pad(SECTION_ALIGN)?;
        let (offset, len) = (self.bytes(), bytes.len() as u64);
        let seed = Section::seed(self.seed, self.number, group, shard, len);
        let crc = crc32c::crc32c_append(seed, bytes);
        let section = Section { group, shard, offset, len, crc };
        let before = self.sections.insert(section.key(), section);
        assert!(before.is_none(), "{group} shard {shard} has a section already");
        self.put(bytes)
    }

    /// Makes the checkpoint durable under its name, then removes all but the newest complete one
    /// before it, and what was left unfinished.
    ///
    /// When this returns an error nothing counts: the file may or may not be there after a crash,
    /// and may be a complete checkpoint then; the older ones are there or the new one is.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn finish(mut self) -> Result<Finished, CheckpointError> {
        self.check()?;
        let bytes = self.complete()?;
        failpoint!("snap_tmp_written");
        let disk = self.disk.clone();
        let name = file_name(self.number);
        if !planted(Bug::CheckpointRenamedBeforeSync) {
            disk.sync_data(&self.file).map_err(io(&disk, &name, "sync"))?;
        }
        failpoint!("snap_synced");
        let unfinished = unfinished_name(self.number);
        disk.rename(&unfinished, &name).map_err(io(&disk, &unfinished, "rename"))?;
        failpoint!("snap_renamed");
        // From here on a failure takes the new name away again: whether it lasts is not known,
        // so the next checkpoint must not count on it when it removes older ones.
        self.unfinished = Some(name.clone());
        disk.sync_dir().map_err(io(&disk, &name, "sync the directory of"))?;
        // What cannot be read back replaces nothing: as long as the disk gives nothing at all, an
        // older checkpoint that cannot be read now may be as good as ever.
        if let Err(damage) = read_frame(&disk, self.number)? {
            return Err(io(&disk, &name, "read back")(io::Error::other(damage)));
        }
        self.unfinished = None;
        // The directory says which files count: there is no other manifest.
        failpoint!("snap_manifest_switched");
        let older = self.remove_older()?;
        Ok(Finished { number: self.number, bytes, sections: self.sections.len(), older })
    }

    /// Gives up and removes the temporary file. Dropping the writer does the same.
    pub fn abandon(self) {
        drop(self);
    }

    fn check(&self) -> Result<(), CheckpointError> {
        if self.failed {
            return Err(CheckpointError::Failed { number: self.number });
        }
        Ok(())
    }

    /// Writes directory and trailer. Returns the length of the file.
    fn complete(&mut self) -> Result<u64, CheckpointError> {
        let entries: Vec<[u8; ENTRY_BYTES]> = self.sections.values().map(Section::encode).collect();
        let directory = entries.as_flattened();
        self.pad(BLOCK)?;
        let crc = crc32c::crc32c_append(self.seed, directory);
        let trailer = Trailer::new(self.bytes(), entries.len() as u32, crc);
        for copy in 0..2 {
            assert_eq!(self.bytes(), trailer.copy_at(copy), "a reader looks for it there");
            self.put(directory)?;
            self.pad(BLOCK)?;
        }
        let mut block = [0; BLOCK_BYTES];
        trailer.encode(self.seed, &mut block);
        self.put(&block)?;
        self.flush()?;
        assert_eq!(self.bytes(), trailer.file_bytes, "the trailer says how long the file is");
        Ok(trailer.file_bytes)
    }

    /// Fills with zeros up to a multiple of `align`, which divides the buffer.
    fn pad(&mut self, align: u64) -> Result<(), CheckpointError> {
        let zeros = [0; BLOCK_BYTES];
        let missing = self.bytes().next_multiple_of(align) - self.bytes();
        self.put(&zeros[..missing as usize])
    }

    /// Appends to the file, by way of the buffer.
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), CheckpointError> {
        while !bytes.is_empty() {
            if self.filled == self.buffer.len() {
                self.make_room()?;
            }
            let len = bytes.len().min(self.buffer.len() - self.filled);
            let (now, rest) = bytes.split_at(len);
            self.buffer[self.filled..][..len].copy_from_slice(now);
            self.filled += len;
            bytes = rest;
        }
        Ok(())
    }

    /// Lets a full buffer grow, or writes it when it has grown enough.
    fn make_room(&mut self) -> Result<(), CheckpointError> {
        if self.buffer.len() == BUFFER_BYTES {
            return self.flush();
        }
        let mut larger = AlignedBuf::zeroed(BUFFER_BYTES.min(self.buffer.len() * 4));
        larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
        self.buffer = larger;
        Ok(())
    }

    /// Writes the buffer, which ends at a whole block.
    fn flush(&mut self) -> Result<(), CheckpointError> {
        let mut done = 0;
        while done < self.filled {
            let at = self.offset + done as u64;
            let result = self.disk.write_at(&self.file, at, &self.buffer[done..self.filled]);
            // A full disk takes a part first and says why with the next write.
            let result = result.and_then(|written| match written {
                1.. if written.is_multiple_of(BLOCK_BYTES) => Ok(written),
                _ => {
                    let text = format!("short write: {written} of {} bytes", self.filled - done);
                    Err(io::Error::new(io::ErrorKind::WriteZero, text))
                }
            });
            match result {
                Ok(written) => done += written,
                Err(error) => {
                    self.failed = true;
                    let name = unfinished_name(self.number);
                    return Err(io(&self.disk, &name, "write")(error));
                }
            }
        }
        self.offset += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Removes all checkpoints but this one and the newest complete one before it, which is
    /// returned.
    fn remove_older(&self) -> Result<Option<u64>, CheckpointError> {
        let disk = &self.disk;
        let names = disk.list().map_err(io(disk, "", "list"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.retain(|&number| number < self.number);
        numbers.sort_unstable();
        let mut older = None;
        for &number in numbers.iter().rev() {
            // One that nothing can be read from would be a poor fallback.
            if !planted(Bug::CheckpointRemovesBoth) && read_frame(disk, number)?.is_ok() {
                older = Some(number);
                break;
            }
        }
        let unneeded = numbers.into_iter().filter(|number| Some(*number) != older).map(file_name);
        let unfinished = names.into_iter().filter(|name| is_unfinished(name));
        for name in unfinished.chain(unneeded) {
            disk.remove(&name).map_err(io(disk, &name, "remove"))?;
        }
        disk.sync_dir().map_err(io(disk, "", "sync"))?;
        Ok(older)
    }
}

impl<D: Disk> Drop for CheckpointWriter<D> {
    fn drop(&mut self) {
        if let Some(name) = &self.unfinished {
            // If it stays, recovery or the next checkpoint removes it.
            let _ = self.disk.remove(name);
        }
    }
}

const _: () = assert!(FIRST_BUFFER_BYTES.is_multiple_of(BLOCK_BYTES) && aligned(1) == BLOCK);
const _: () = assert!(BUFFER_BYTES.is_multiple_of(BLOCK_BYTES));
