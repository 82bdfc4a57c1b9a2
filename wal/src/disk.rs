//! What the log and its checkpoints need of a disk.

use std::io;
use std::ops::Deref;

use crate::format::BLOCK_BYTES;

/// A directory of segments and checkpoints. All operations block; a handle is cheap to clone and
/// may be used from any thread.
///
/// Names have no directory part. The log's own batch writes and entry reads are not here: the
/// driver does them on the file itself, see [`WriteOp`](crate::WriteOp) and
/// [`ReadOp`](crate::ReadOp).
pub trait Disk: Clone + Send + 'static {
    /// An open file.
    type File: Send + 'static;
    /// The content of a file as bytes, which start at a multiple of 4 KiB in memory.
    type Map: Deref<Target = [u8]> + Send + Sync + 'static;

    /// Names of all files, in any order.
    ///
    /// # Errors
    /// Whatever the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file for the writes and reads of the log.
    ///
    /// # Errors
    /// Whatever the system says.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Opens an existing file for reading it from start to end; alignment does not matter.
    ///
    /// # Errors
    /// Whatever the system says.
    fn open_for_scan(&self, name: &str) -> io::Result<Self::File> {
        self.open(name)
    }

    /// Opens an existing file for reading much of it, once: length, offset and memory of each read
    /// are multiples of 4 KiB.
    ///
    /// # Errors
    /// Whatever the system says.
    fn open_for_bulk(&self, name: &str) -> io::Result<Self::File> {
        self.open_for_scan(name)
    }

    /// Makes an empty file, in place of one that had the name, open for the writes of the log.
    ///
    /// # Errors
    /// Whatever the system says.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn len(&self, file: &Self::File) -> io::Result<u64>;

    /// Reads at `offset` until the buffer is full or the file ends.
    ///
    /// # Errors
    /// Whatever the system says.
    fn read_at(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes at `offset`; may be short. Start, length and offset are multiples of 4 KiB. Durable
    /// only after [`Disk::sync_data`].
    ///
    /// # Errors
    /// Whatever the system says.
    fn write_at(&self, file: &Self::File, offset: u64, buffer: &[u8]) -> io::Result<usize>;

    /// Makes everything written to the file durable, and its length.
    ///
    /// # Errors
    /// Whatever the system says. It must not be repeated: a second call may lie.
    fn sync_data(&self, file: &Self::File) -> io::Result<()>;

    /// The content of a file that nobody writes any more.
    ///
    /// Only what was read by [`Disk::read_at`] before may be touched: a read error under a map
    /// ends the process.
    ///
    /// # Errors
    /// Whatever the system says.
    fn map(&self, name: &str) -> io::Result<Self::Map>;

    /// Cuts the file to `len` bytes.
    ///
    /// # Errors
    /// Whatever the system says.
    fn truncate(&self, name: &str, len: u64) -> io::Result<()>;

    /// Renames a file, in place of one that had the new name.
    ///
    /// # Errors
    /// Whatever the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Whatever the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// Whatever the system says.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that new files can have, or `None` if that is not known. What it says may be wrong the
    /// next moment: others write to the same disk.
    ///
    /// # Errors
    /// Whatever the system says.
    fn available_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// How errors name a file of this disk.
    fn display(&self, name: &str) -> String;
}

/// Writes all of the buffer or says why not. A disk that runs full takes whole blocks first, and
/// says why with the next write.
pub(crate) fn write_all<D: Disk>(
    disk: &D,
    file: &D::File,
    offset: u64,
    buffer: &[u8],
) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &buffer[done..];
        let written = disk.write_at(file, offset + done as u64, rest)?;
        if written == 0 || !written.is_multiple_of(BLOCK_BYTES) {
            let text = format!("short write: {written} of {} bytes", rest.len());
            return Err(io::Error::new(io::ErrorKind::WriteZero, text));
        }
        done += written;
    }
    Ok(())
}
