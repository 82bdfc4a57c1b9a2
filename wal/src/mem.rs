//! A disk in memory that forgets what was not synced, for tests and for the simulator.

mod content;

use std::collections::BTreeMap;
use std::io;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use coracle_ring::AlignedBuf;

use self::content::Content;
use crate::Disk;
use crate::format::BLOCK_BYTES;

/// What survives or is lost at once when power fails.
pub const SECTOR_BYTES: usize = 512;

/// A directory in memory. Clones share it.
///
/// Written sectors and directory changes are kept apart until they are synced, so that
/// [`MemDisk::crash`] can lose any subset of them. Errors can be injected.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`MemDisk`].
#[derive(Clone, Debug)]
pub struct MemFile {
    id: u64,
}

/// The content of a file of a [`MemDisk`]: a copy, with other bytes where it is unreadable.
#[derive(Debug)]
pub struct MemMap {
    bytes: AlignedBuf,
    len: usize,
}

impl Deref for MemMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// One thing that a crash may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced<'a> {
    /// A sector written and not synced.
    Sector {
        /// Name of the file, as it is after the crash.
        file: &'a str,
        /// Which sector of 512 bytes.
        sector: u64,
    },
    /// A directory change. They are asked for in order; losing one loses all after it.
    DirChange {
        /// How many are before it.
        number: usize,
    },
}

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskOp {
    /// [`Disk::open`], [`Disk::create`] and [`Disk::map`].
    Open,
    /// [`Disk::read_at`].
    Read,
    /// [`Disk::write_at`].
    Write,
    /// [`Disk::sync_data`].
    SyncData,
    /// [`Disk::truncate`].
    Truncate,
    /// [`Disk::rename`] and [`Disk::remove`].
    Rename,
    /// [`Disk::sync_dir`].
    SyncDir,
}

#[derive(Clone, Debug, Default)]
struct State {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, FileData>,
    next_id: u64,
    durable_names: BTreeMap<String, u64>,
    dir_changes: Vec<DirChange>,
    faults: Vec<(DiskOp, u32, io::ErrorKind)>,
    file_bytes_max: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct FileData {
    bytes: Content,
    durable_len: usize,
    /// What the unsynced sectors held before; `None`: they were not there.
    undo: BTreeMap<u64, Option<Box<[u8; SECTOR_BYTES]>>>,
    unreadable: Vec<Range<u64>>,
}

#[derive(Clone, Debug)]
enum DirChange {
    Link(String, u64),
    Unlink(String),
}

impl MemDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk of its own with the same state.
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// Power fails: what is not synced is lost, except what `keep` wants to survive.
    pub fn crash(&self, keep: &mut dyn FnMut(Unsynced<'_>) -> bool) {
        let mut state = self.lock();
        let state = &mut *state;
        let changes = std::mem::take(&mut state.dir_changes);
        for (number, change) in changes.into_iter().enumerate() {
            if !keep(Unsynced::DirChange { number }) {
                break;
            }
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        let names = &state.names;
        state.files.retain(|id, _| names.values().any(|named| named == id));
        for (name, id) in names {
            let Some(file) = state.files.get_mut(id) else { continue };
            file.crash(&mut |sector| keep(Unsynced::Sector { file: name, sector }));
        }
    }

    /// The unsynced sectors, by file name.
    pub fn unsynced(&self) -> Vec<(String, u64)> {
        let state = self.lock();
        let of_file = |(name, id): (&String, &u64)| {
            let sectors = state.files.get(id).map(|file| file.undo.keys().copied());
            sectors.into_iter().flatten().map(|sector| (name.clone(), sector)).collect::<Vec<_>>()
        };
        state.names.iter().flat_map(of_file).collect()
    }

    /// Writes and makes durable, as a write with `RWF_DSYNC` does.
    ///
    /// # Errors
    /// An injected one.
    pub fn write_dsync(&self, file: &MemFile, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.fault(DiskOp::Write)?;
        let written = self.lock().fits(offset, bytes)?;
        let synced = self.fault(DiskOp::SyncData);
        let mut state = self.lock();
        let data = state.file(file)?;
        if synced.is_err() {
            data.remember(offset, written);
        }
        data.write(offset as usize, &bytes[..written]);
        synced?;
        for sector in sectors(offset, written) {
            data.undo.remove(&sector);
        }
        data.durable_len = data.durable_len.max(offset as usize + written);
        Ok(written)
    }

    /// The operation after `after` more of its kind fails with this error, once.
    pub fn fail(&self, op: DiskOp, after: u32, error: io::ErrorKind) {
        self.lock().faults.push((op, after, error));
    }

    /// Files grow no longer than this: a write takes the whole blocks that fit, and one of which
    /// nothing fits finds the disk full, as file systems do it. `None`: as long as they like.
    pub fn bound_files(&self, bytes_max: Option<u64>) {
        self.lock().file_bytes_max = bytes_max;
    }

    /// Takes back every failure that has not happened yet, and unreadable parts.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.files.values_mut().for_each(|file| file.unreadable.clear());
    }

    /// Reads that touch this part of the file fail, until it is written again: then the device
    /// puts another sector in its place.
    pub fn make_unreadable(&self, name: &str, range: Range<u64>) {
        if let Some(file) = self.lock().named(name) {
            file.unreadable.push(range);
        }
    }

    /// The bytes of a file.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().named(name).map(|file| file.bytes.to_vec())
    }

    /// Replaces the bytes of a file, durably; makes the file if it is missing.
    pub fn set_contents(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.lock();
        let id = match state.names.get(name) {
            Some(&id) => id,
            None => state.new_file(),
        };
        state.names.insert(name.to_owned(), id);
        state.durable_names.insert(name.to_owned(), id);
        let durable_len = bytes.len();
        let bytes = Content::from(&bytes[..]);
        state.files.insert(id, FileData { bytes, durable_len, ..FileData::default() });
    }

    /// Inverts bits of one byte, durably.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        let mut byte = [0];
        if let Some(file) = self.lock().named(name)
            && file.bytes.read(offset, &mut byte) == 1
        {
            file.bytes.write(offset, &[byte[0] ^ mask]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn fault(&self, op: DiskOp) -> io::Result<()> {
        let mut state = self.lock();
        let mut hit = None;
        for (at, (kind, after, error)) in state.faults.iter_mut().enumerate() {
            if *kind != op {
                continue;
            }
            if *after == 0 {
                hit = Some((at, *error));
                break;
            }
            *after -= 1;
        }
        let Some((at, error)) = hit else { return Ok(()) };
        state.faults.remove(at);
        Err(io::Error::new(error, format!("injected failure of {op:?}")))
    }
}

impl Disk for MemDisk {
    type File = MemFile;
    type Map = MemMap;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        self.fault(DiskOp::Open)?;
        self.lock().id(name).map(|id| MemFile { id })
    }

    fn create(&self, name: &str) -> io::Result<MemFile> {
        self.fault(DiskOp::Open)?;
        let mut state = self.lock();
        let id = state.new_file();
        state.change(DirChange::Link(name.to_owned(), id));
        Ok(MemFile { id })
    }

    fn len(&self, file: &MemFile) -> io::Result<u64> {
        Ok(self.lock().file(file)?.bytes.len() as u64)
    }

    fn read_at(&self, file: &MemFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.fault(DiskOp::Read)?;
        let mut state = self.lock();
        let data = state.file(file)?;
        let end = offset + buffer.len() as u64;
        if data.unreadable.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::other("injected unreadable sector"));
        }
        Ok(data.bytes.read(offset as usize, buffer))
    }

    fn write_at(&self, file: &MemFile, offset: u64, buffer: &[u8]) -> io::Result<usize> {
        self.fault(DiskOp::Write)?;
        let mut state = self.lock();
        let fits = state.fits(offset, buffer)?;
        let data = state.file(file)?;
        data.remember(offset, fits);
        data.write(offset as usize, &buffer[..fits]);
        Ok(fits)
    }

    fn sync_data(&self, file: &MemFile) -> io::Result<()> {
        self.fault(DiskOp::SyncData)?;
        let mut state = self.lock();
        let data = state.file(file)?;
        data.undo.clear();
        data.durable_len = data.bytes.len();
        Ok(())
    }

    fn map(&self, name: &str) -> io::Result<MemMap> {
        self.fault(DiskOp::Open)?;
        let mut state = self.lock();
        let id = state.id(name)?;
        let data = state.file(&MemFile { id })?;
        let len = data.bytes.len();
        let mut bytes = AlignedBuf::zeroed(len);
        data.bytes.read(0, &mut bytes[..len]);
        for bad in &data.unreadable {
            let end = (bad.end as usize).min(len);
            // Touching these would end a process: whoever does it shall notice.
            bytes[(bad.start as usize).min(end)..end].iter_mut().for_each(|byte| *byte ^= 0xa5);
        }
        Ok(MemMap { bytes, len })
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        self.fault(DiskOp::Truncate)?;
        let mut state = self.lock();
        let id = state.id(name)?;
        let data = state.file(&MemFile { id })?;
        data.bytes.resize(data.bytes.len().min(len as usize));
        data.undo.clear();
        data.durable_len = data.bytes.len();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.fault(DiskOp::Rename)?;
        let mut state = self.lock();
        let id = state.id(from)?;
        // One change in the journal: a crash never sees both names or none.
        state.change(DirChange::Link(to.to_owned(), id));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fault(DiskOp::Rename)?;
        let mut state = self.lock();
        state.id(name)?;
        state.change(DirChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fault(DiskOp::SyncDir)?;
        let mut state = self.lock();
        state.dir_changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn display(&self, name: &str) -> String {
        name.to_owned()
    }
}

impl State {
    fn new_file(&mut self) -> u64 {
        self.next_id += 1;
        self.files.insert(self.next_id, FileData::default());
        self.next_id
    }

    fn id(&self, name: &str) -> io::Result<u64> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"));
        self.names.get(name).copied().ok_or_else(missing)
    }

    fn named(&mut self, name: &str) -> Option<&mut FileData> {
        let id = self.names.get(name)?;
        self.files.get_mut(id)
    }

    fn file(&mut self, file: &MemFile) -> io::Result<&mut FileData> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the file went with a crash");
        self.files.get_mut(&file.id).ok_or_else(gone)
    }

    /// How much of a write the file may take.
    fn fits(&self, offset: u64, buffer: &[u8]) -> io::Result<usize> {
        let free = self.file_bytes_max.map_or(u64::MAX, |max| max.saturating_sub(offset));
        let free = free / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let fits = buffer.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        if fits == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(fits)
    }

    fn change(&mut self, change: DirChange) {
        change.clone().apply(&mut self.names);
        self.dir_changes.push(change);
    }
}

impl DirChange {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, id) => {
                names.retain(|_, other| *other != id);
                names.insert(name, id);
            }
            Self::Unlink(name) => {
                names.remove(&name);
            }
        }
    }
}

impl FileData {
    /// Takes note of what a write that is not synced replaces.
    fn remember(&mut self, offset: u64, len: usize) {
        for sector in sectors(offset, len) {
            let bytes = &self.bytes;
            self.undo.entry(sector).or_insert_with(|| {
                let mut old = [0; SECTOR_BYTES];
                let there = bytes.read(sector as usize * SECTOR_BYTES, &mut old);
                (there > 0).then(|| Box::new(old))
            });
        }
    }

    fn write(&mut self, offset: usize, buffer: &[u8]) {
        let end = offset + buffer.len();
        self.bytes.write(offset, buffer);
        let written = offset as u64..end as u64;
        let bad = std::mem::take(&mut self.unreadable).into_iter();
        let left = bad.flat_map(|bad| {
            [bad.start..bad.end.min(written.start), bad.start.max(written.end)..bad.end]
        });
        self.unreadable = left.filter(|part| !part.is_empty()).collect();
    }

    fn crash(&mut self, keep: &mut dyn FnMut(u64) -> bool) {
        let mut len = self.durable_len;
        for (sector, old) in std::mem::take(&mut self.undo) {
            let start = sector as usize * SECTOR_BYTES;
            let end = (start + SECTOR_BYTES).min(self.bytes.len());
            if keep(sector) {
                len = len.max(end);
            } else if start < end {
                let old = old.as_deref().unwrap_or(&[0; SECTOR_BYTES]);
                self.bytes.write(start, &old[..end - start]);
            }
        }
        self.bytes.resize(len);
        self.durable_len = len;
    }
}

fn sectors(offset: u64, len: usize) -> Range<u64> {
    let size = SECTOR_BYTES as u64;
    offset / size..(offset + len as u64).div_ceil(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_loses_exactly_the_unsynced_sectors_that_are_not_kept() {
        let disk = MemDisk::new();
        let file = disk.create("a").expect("create");
        disk.write_at(&file, 0, &[1; 2048]).expect("write");
        disk.sync_data(&file).expect("sync");
        disk.sync_dir().expect("sync");
        disk.write_at(&file, 0, &[2; 2048]).expect("write");
        assert_eq!(disk.unsynced().len(), 4);
        disk.crash(&mut |lost| matches!(lost, Unsynced::Sector { sector: 1 | 3, .. }));
        let bytes = disk.contents("a").expect("file");
        let by_sector: Vec<u8> = bytes.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
        assert_eq!(by_sector, [1, 2, 1, 2]);
    }

    #[test]
    fn directory_changes_are_lost_from_the_end() {
        let disk = MemDisk::new();
        disk.create("a").expect("create");
        disk.sync_dir().expect("sync");
        disk.rename("a", "b").expect("rename");
        disk.rename("b", "c").expect("rename");
        disk.crash(&mut |lost| lost == Unsynced::DirChange { number: 0 });
        assert_eq!(disk.list().expect("list"), ["b"]);
    }

    #[test]
    fn unreadable_parts_stay_so_until_they_are_written() {
        let disk = MemDisk::new();
        disk.set_contents("a", vec![1; 4096]);
        disk.make_unreadable("a", 512..2048);
        let file = disk.open("a").expect("open");
        disk.write_at(&file, 1024, &[2; 512]).expect("write");
        disk.crash(&mut |_| true);
        let readable = |sector: u64| disk.read_at(&file, sector * 512, &mut [0; 512]).is_ok();
        let readable: Vec<bool> = (0..8).map(readable).collect();
        assert_eq!(readable, [true, false, true, false, true, true, true, true]);
    }

    #[test]
    fn forks_do_not_share_and_faults_hit_once() {
        let disk = MemDisk::new();
        disk.set_contents("a", vec![0; 512]);
        let fork = disk.fork();
        fork.flip("a", 3, 0x80);
        assert_eq!(disk.contents("a"), Some(vec![0; 512]));
        disk.fail(DiskOp::SyncDir, 1, io::ErrorKind::Other);
        let results: Vec<bool> = (0..3).map(|_| disk.sync_dir().is_ok()).collect();
        assert_eq!(results, [true, false, true]);
    }
}
