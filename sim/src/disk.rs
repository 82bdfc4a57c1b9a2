//! The disk of one core: what survives a crash, and what a crash of the process in the middle of
//! file work leaves behind.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_wal::{Disk, MemDisk, MemFile, MemMap, SECTOR_BYTES, Unsynced};

use crate::host::Lie;
use crate::rng::Rng;

/// A directory in memory, with faults.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk {
    mem: MemDisk,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// File operations until the process dies; none: it lives.
    left: Option<u32>,
    /// Bytes by which files may still grow; none: no limit.
    free: Option<u64>,
    unreadable: bool,
    /// Takes what an error hides: operations after the death change nothing.
    died: bool,
}

impl SimDisk {
    /// An empty disk.
    pub(crate) fn new() -> Self {
        Self { mem: MemDisk::new(), state: Arc::default() }
    }

    /// A copy of what it holds now.
    pub(crate) fn copy(&self) -> Self {
        Self { mem: self.mem.fork(), state: Arc::default() }
    }

    /// The process dies during the file operation after `left` more.
    pub(crate) fn die_after(&self, left: u32) {
        self.lock().left = Some(left);
    }

    /// A new process: file operations work again.
    pub(crate) fn revive(&self) {
        let mut state = self.lock();
        state.left = None;
        state.died = false;
    }

    /// Whether the process died during a file operation.
    pub(crate) fn died(&self) -> bool {
        self.lock().died
    }

    /// How many bytes are left for new files; none: as many as they want.
    pub(crate) fn set_free(&self, free: Option<u64>) {
        self.lock().free = free;
    }

    /// Whether reading fails.
    pub(crate) fn set_unreadable(&self, unreadable: bool) {
        self.lock().unreadable = unreadable;
    }

    /// Power fails: each unsynced sector and directory change is kept or lost by chance.
    pub(crate) fn lose_power(&self, rng: &mut Rng) {
        let keep = match rng.below(3) {
            0 => 0.0,
            1 => 1.0,
            _ => rng.unit(),
        };
        self.mem.crash(&mut |_: Unsynced<'_>| rng.chance(keep));
    }

    /// Changes bits of a few bytes somewhere in one of the files, durably. Returns where.
    pub(crate) fn rot(&self, rng: &mut Rng) -> Option<String> {
        let (name, at, used) = self.any_place(rng)?;
        let len = *rng.pick(&[1usize, 1, 8, SECTOR_BYTES, 4096]);
        for offset in at..(at + len).min(used) {
            self.mem.flip(&name, offset, (rng.next() as u8).max(1));
        }
        Some(format!("{len} bytes at {at} of {name}"))
    }

    /// The newest checkpoint file.
    pub(crate) fn newest_checkpoint(&self) -> Option<String> {
        let names = self.mem.list().ok()?;
        names.into_iter().filter(|name| name.ends_with(".ckp")).max()
    }

    /// Changes bits of one byte of a file that is not zero. Returns where.
    pub(crate) fn rot_file(&self, name: &str, rng: &mut Rng) -> Option<String> {
        let bytes = self.mem.contents(name)?;
        let used = bytes.iter().rposition(|&byte| byte != 0)? + 1;
        let at = rng.below(used as u64) as usize;
        self.mem.flip(name, at, (rng.next() as u8).max(1));
        Some(format!("a byte at {at} of {name}"))
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.mem.open(name).is_ok()
    }

    /// Makes a few sectors somewhere in one of the files unreadable. Returns where.
    pub(crate) fn spoil(&self, rng: &mut Rng) -> Option<String> {
        let (name, at, _) = self.any_place(rng)?;
        let first = at / SECTOR_BYTES;
        let count = *rng.pick(&[1usize, 1, 8, 64]);
        let bytes = (first * SECTOR_BYTES) as u64..((first + count) * SECTOR_BYTES) as u64;
        self.mem.make_unreadable(&name, bytes);
        Some(format!("{count} sectors from {first} of {name}"))
    }

    /// Changes bits of one byte, durably.
    pub(crate) fn flip(&self, name: &str, at: u64, mask: u8) {
        self.mem.flip(name, at as usize, mask);
    }

    /// Makes a part of a file unreadable.
    pub(crate) fn make_unreadable(&self, name: &str, range: std::ops::Range<u64>) {
        self.mem.make_unreadable(name, range);
    }

    /// A file and a place in it where something is written, or damage would be of a kind that
    /// nobody can ever see; and where its content ends.
    fn any_place(&self, rng: &mut Rng) -> Option<(String, usize, usize)> {
        let name = self.any_file(rng)?;
        let bytes = self.mem.contents(&name)?;
        let used = bytes.iter().rposition(|&byte| byte != 0)? + 1;
        let mut from = rng.below(used as u64) as usize;
        // Where a batch may begin: what damage does to its header is worth as many runs as what
        // it does to all the values.
        if rng.chance(0.5) {
            from &= !4095;
        }
        let at = bytes[from..].iter().position(|&byte| byte != 0).map_or(from, |more| from + more);
        Some((name, at, used))
    }

    /// One of the files with content.
    pub(crate) fn any_file(&self, rng: &mut Rng) -> Option<String> {
        let mut names = self.mem.list().ok()?;
        names.sort();
        (!names.is_empty()).then(|| rng.pick(&names).clone())
    }

    /// A batch write reaches the medium and is durable.
    ///
    /// # Errors
    /// When the disk is dead.
    pub(crate) fn write_dsync(
        &self,
        file: &MemFile,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<usize> {
        self.mem.write_dsync(file, offset, bytes)
    }

    /// A batch write that the disk says it has done, and has not done so.
    ///
    /// # Errors
    /// When the disk is dead.
    pub(crate) fn write_lying(
        &self,
        file: &MemFile,
        offset: u64,
        bytes: &[u8],
        lie: Lie,
    ) -> io::Result<usize> {
        const BLOCK: usize = 4096;
        match lie {
            Lie::Misdirect => {
                let len = self.mem.len(file)?;
                let elsewhere = if offset >= 3 * BLOCK as u64 {
                    offset - 2 * BLOCK as u64
                } else {
                    offset + 8 * BLOCK as u64
                };
                let fits = (len.saturating_sub(elsewhere) as usize).min(bytes.len());
                self.mem.write_dsync(file, elsewhere, &bytes[..fits])?;
            }
            Lie::Stale => {
                let stale = (offset as usize / BLOCK) % bytes.len().div_ceil(BLOCK);
                for (at, block) in bytes.chunks(BLOCK).enumerate() {
                    if at != stale {
                        self.mem.write_dsync(file, offset + (at * BLOCK) as u64, block)?;
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    /// A batch write that was under way when the process or the power went: it arrives whole, in
    /// part, or not at all.
    pub(crate) fn write_torn(&self, file: &MemFile, offset: u64, bytes: &[u8], rng: &mut Rng) {
        let keep = match rng.below(4) {
            0 => 0.0,
            1 => 1.0,
            _ => rng.unit(),
        };
        for (at, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if rng.chance(keep) {
                let offset = offset + (at * SECTOR_BYTES) as u64;
                // A dead disk takes nothing; then nothing arrives.
                let _ = self.mem.write_dsync(file, offset, sector);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation that changes something.
    fn change(&self) -> io::Result<()> {
        let mut state = self.lock();
        match &mut state.left {
            None => Ok(()),
            Some(0) => {
                state.died = true;
                Err(io::Error::other("the process is dead"))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Takes space for a file that grows.
    fn grow(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        if let Some(free) = &mut state.free {
            *free = free.checked_sub(bytes).ok_or_else(|| {
                io::Error::new(io::ErrorKind::StorageFull, "no space left on the device")
            })?;
        }
        Ok(())
    }
}

impl SimDisk {
    /// Gives back the space of a file that shrinks.
    fn shrink(&self, bytes: u64) {
        if let Some(free) = &mut self.lock().free {
            *free += bytes;
        }
    }

    fn len_of(&self, name: &str) -> u64 {
        self.mem.open(name).and_then(|file| self.mem.len(&file)).unwrap_or(0)
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for SimDisk {
    type File = MemFile;
    type Map = MemMap;

    fn list(&self) -> io::Result<Vec<String>> {
        self.mem.list()
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        self.mem.open(name)
    }

    fn create(&self, name: &str) -> io::Result<MemFile> {
        self.change()?;
        self.grow(1)?;
        self.mem.create(name)
    }

    fn len(&self, file: &MemFile) -> io::Result<u64> {
        self.mem.len(file)
    }

    fn read_at(&self, file: &MemFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if self.lock().unreadable {
            return Err(io::Error::other("the medium cannot be read"));
        }
        self.mem.read_at(file, offset, buffer)
    }

    fn write_at(&self, file: &MemFile, offset: u64, buffer: &[u8]) -> io::Result<usize> {
        self.change()?;
        // A disk that runs full takes the blocks that fit first.
        let len = self.mem.len(file)?;
        let free = self.lock().free.unwrap_or(u64::MAX) / 4096 * 4096;
        let room = usize::try_from(len.saturating_add(free).saturating_sub(offset));
        let fits = room.unwrap_or(usize::MAX).min(buffer.len());
        let buffer = if fits == 0 { buffer } else { &buffer[..fits] };
        let end = offset + buffer.len() as u64;
        self.grow(end.saturating_sub(len))?;
        self.mem.write_at(file, offset, buffer)
    }

    fn sync_data(&self, file: &MemFile) -> io::Result<()> {
        self.change()?;
        self.mem.sync_data(file)
    }

    fn map(&self, name: &str) -> io::Result<MemMap> {
        self.mem.map(name)
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        self.change()?;
        let before = self.len_of(name);
        self.mem.truncate(name, len)?;
        self.shrink(before.saturating_sub(len));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change()?;
        self.mem.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change()?;
        let before = self.len_of(name);
        self.mem.remove(name)?;
        self.shrink(before);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.change()?;
        self.mem.sync_dir()
    }

    fn available_bytes(&self) -> io::Result<Option<u64>> {
        Ok(self.lock().free)
    }

    fn display(&self, name: &str) -> String {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_process_changes_nothing_any_more() {
        let disk = SimDisk::new();
        disk.die_after(1);
        let file = disk.create("a").expect("one more");
        assert!(disk.write_at(&file, 0, &[1; 4096]).is_err());
        assert!(disk.died());
        disk.revive();
        assert_eq!(disk.len(&file).expect("there"), 0);
        disk.write_at(&file, 0, &[1; 4096]).expect("a new process");
    }

    #[test]
    fn a_full_disk_takes_what_does_not_grow() {
        let disk = SimDisk::new();
        disk.set_free(Some(4097));
        let file = disk.create("a").expect("a little is left");
        disk.write_at(&file, 0, &[1; 4096]).expect("just enough");
        let error = disk.write_at(&file, 4096, &[1]).expect_err("it would grow");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.write_at(&file, 0, &[2; 4096]).expect("overwriting needs no space");
        assert!(disk.create("b").is_err());
        assert_eq!(disk.available_bytes().expect("known"), Some(0));
        disk.remove("a").expect("removed");
        assert_eq!(disk.available_bytes().expect("known"), Some(4096), "its content");
        disk.set_free(None);
        disk.create("b").expect("there is space again");
    }

    #[test]
    fn a_torn_write_leaves_whole_sectors() {
        let mut mixed = 0;
        for seed in 0..50 {
            let disk = SimDisk::new();
            let mut rng = Rng::new(seed, "test");
            let file = disk.create("a").expect("created");
            disk.write_at(&file, 0, &[1; 4096]).expect("written");
            disk.sync_data(&file).expect("synced");
            disk.write_torn(&file, 0, &[2; 4096], &mut rng);
            let bytes = disk.mem.contents("a").expect("there");
            let sectors: Vec<&[u8]> = bytes.chunks(SECTOR_BYTES).collect();
            assert!(sectors.iter().all(|s| s.iter().all(|byte| *byte == s[0])));
            let new = sectors.iter().filter(|s| s[0] == 2).count();
            mixed += usize::from(new > 0 && new < sectors.len());
        }
        assert!(mixed > 10, "only {mixed} were torn");
    }
}
