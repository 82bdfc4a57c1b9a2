//! A directory of the file system, written past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_ring::{AlignedBuf, FileMap};

use crate::Disk;
use crate::format::BLOCK_BYTES;

/// A directory of the file system.
///
/// Files are opened with `O_DIRECT` unless told otherwise: the bytes then go to the device in the
/// size and order in which they are written, and the page cache keeps no second copy.
#[derive(Clone, Debug)]
pub struct RealDisk {
    dir: Arc<PathBuf>,
    direct: bool,
    /// Nothing may be changed.
    read_only: bool,
}

/// Why a directory cannot hold a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file system refuses `O_DIRECT`: use another one, or open without `direct`.
    #[error(
        "{} is on a {filesystem} file system, which refuses O_DIRECT ({source}); \
         put the data directory on ext4 or XFS, or switch direct I/O off",
        dir.display()
    )]
    DirectRefused {
        /// The directory.
        dir: PathBuf,
        /// Type of the file system, as in `/proc/self/mountinfo`.
        filesystem: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory cannot be made, read or written.
    #[error("cannot use {} for a log: {source}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

const PROBE_NAME: &str = "probe.tmp";

impl RealDisk {
    /// Opens the directory, makes it if it is missing, and tries a write and a read there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(dir: &Path, direct: bool) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        // Without direct I/O first: what fails here has nothing to do with it.
        let buffered = Self { dir: Arc::new(dir.to_owned()), direct: false, read_only: false };
        buffered.probe().map_err(io)?;
        if !direct {
            return Ok(buffered);
        }
        let disk = Self { direct: true, ..buffered };
        disk.probe().map_err(|source| OpenError::DirectRefused {
            dir: dir.to_owned(),
            filesystem: filesystem_of(dir),
            source,
        })?;
        Ok(disk)
    }

    /// A directory of which nothing is changed, not even for a moment: whatever would change
    /// something fails. It need not exist; then nothing in it can be read.
    pub fn read_only(dir: &Path) -> Self {
        Self { dir: Arc::new(dir.to_owned()), direct: false, read_only: true }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn probe(&self) -> io::Result<()> {
        let result = self.probe_file();
        let _ = self.remove(PROBE_NAME);
        result
    }

    fn probe_file(&self) -> io::Result<()> {
        let file = self.create(PROBE_NAME)?;
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        block.fill(0xa5);
        crate::disk::write_all(self, &file, 0, &block)?;
        self.sync_data(&file)?;
        block.fill(0);
        let read = self.read_at(&file, 0, &mut block)?;
        if read != BLOCK_BYTES || block.iter().any(|&byte| byte != 0xa5) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "read back other bytes"));
        }
        Ok(())
    }

    fn changes(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "opened for reading"));
        }
        Ok(())
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(!self.read_only).mode(0o600);
        if self.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options
    }
}

impl Disk for RealDisk {
    type File = File;
    type Map = FileMap;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in std::fs::read_dir(&*self.dir)? {
            // A name that is no text is none of ours.
            if let Ok(name) = item?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        self.options().open(self.dir.join(name))
    }

    fn open_for_scan(&self, name: &str) -> io::Result<File> {
        File::open(self.dir.join(name))
    }

    fn open_for_bulk(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true);
        if self.direct {
            // Pages of the cache would have to be found and cleared for what is looked at once.
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(self.dir.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        self.changes()?;
        self.options().create(true).truncate(true).open(self.dir.join(name))
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: &File, offset: u64, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match file.write_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn map(&self, name: &str) -> io::Result<FileMap> {
        FileMap::of(&File::open(self.dir.join(name))?)
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        self.changes()?;
        let file = OpenOptions::new().write(true).open(self.dir.join(name))?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.changes()?;
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.changes()?;
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&*self.dir)?.sync_all()
    }

    fn available_bytes(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(&*self.dir)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn display(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// Type of the file system a directory is on, or "unknown".
fn filesystem_of(dir: &Path) -> String {
    let find = || {
        let dir = dir.canonicalize().ok()?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        mount_type(&mounts, &dir)
    };
    find().unwrap_or_else(|| "unknown".to_owned())
}

/// The longest mount point that holds `dir` wins, the last one among equals.
fn mount_type(mounts: &str, dir: &Path) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) =
            (left.split_whitespace().nth(4), right.split_whitespace().next())
        else {
            continue;
        };
        if dir.starts_with(point) && best.is_none_or(|(len, _)| point.len() >= len) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_mount_point_names_the_file_system() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                      2 1 0:5 / /data rw shared:1 - xfs /dev/b rw\n\
                      3 1 0:6 / /database rw - tmpfs none rw\n";
        for (dir, want) in [("/var", "ext4"), ("/data/wal", "xfs"), ("/database", "tmpfs")] {
            assert_eq!(mount_type(mounts, Path::new(dir)).as_deref(), Some(want), "{dir}");
        }
    }
}
