//! Files: durable writes and reads at given places, with buffers that travel through the ring.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::opcode;
use io_uring::types::Fd;

use crate::aligned::AlignedBuf;
use crate::event::{Event, FileId, Key};
use crate::ring::{Op, Ring};
use crate::slab::SlotId;

/// The slot lives until the file is removed and its last operation has completed, so that the
/// descriptor's number is not given to something else while an entry with it is still queued.
pub(crate) struct FileSlot {
    fd: OwnedFd,
    in_flight: usize,
    removed: bool,
}

impl Ring {
    /// Takes a file over for [`Ring::write_dsync`] and [`Ring::read`].
    ///
    /// If it was opened with O_DIRECT, offsets and lengths must be multiples of the device's
    /// block size; multiples of [`crate::ALIGNMENT_BYTES`] always are.
    pub fn add_file(&mut self, fd: impl Into<OwnedFd>) -> FileId {
        FileId(self.files.insert(FileSlot { fd: fd.into(), in_flight: 0, removed: false }))
    }

    /// Forgets a file and closes it after the operations in flight, which still report.
    pub fn remove_file(&mut self, file: FileId) {
        if let Some(slot) = self.files.get_mut(file.0) {
            slot.removed = true;
            self.release_file(file.0);
        }
    }

    /// Writes the first `len` bytes of `buf` at `offset`; [`Event::Written`] says that they, and
    /// what is needed to read them back, are on stable storage (RWF_DSYNC).
    ///
    /// # Panics
    /// If `len` exceeds `buf` or 2^31 - 1.
    pub fn write_dsync(
        &mut self,
        file: FileId,
        key: Key,
        offset: u64,
        buf: AlignedBuf,
        len: usize,
    ) {
        let len_u32 = checked_length(&buf, len);
        let Some(slot) = self.usable_file(file) else {
            self.ready.push(Event::Written { key, result: Err(bad_file()), buf });
            return;
        };
        let fd = Fd(slot.fd.as_raw_fd());
        let entry = opcode::Write::new(fd, buf.as_ptr(), len_u32)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build();
        let op = self.ops.insert(Op::Write { file: file.0, key, buf });
        // SAFETY: the operation owns the buffer, at least `len` long, and its file slot keeps the
        // descriptor open until the completion.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }

    /// Reads up to `len` bytes at `offset` into the start of `buf`; reports [`Event::Read`].
    ///
    /// # Panics
    /// If `len` exceeds `buf` or 2^31 - 1.
    pub fn read(&mut self, file: FileId, key: Key, offset: u64, mut buf: AlignedBuf, len: usize) {
        let len_u32 = checked_length(&buf, len);
        let Some(slot) = self.usable_file(file) else {
            self.ready.push(Event::Read { key, result: Err(bad_file()), buf });
            return;
        };
        let fd = Fd(slot.fd.as_raw_fd());
        let entry = opcode::Read::new(fd, buf.as_mut_ptr(), len_u32).offset(offset).build();
        let op = self.ops.insert(Op::Read { file: file.0, key, buf });
        // SAFETY: as for writes; the buffer is exclusively owned, so the kernel may write to it.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }

    pub(crate) fn file_done(&mut self, file: SlotId) {
        let slot = self.files.get_mut(file).expect("an operation keeps its file's slot");
        slot.in_flight -= 1;
        self.release_file(file);
    }

    fn usable_file(&mut self, file: FileId) -> Option<&FileSlot> {
        let slot = self.files.get_mut(file.0).filter(|slot| !slot.removed)?;
        slot.in_flight += 1;
        Some(slot)
    }

    fn release_file(&mut self, file: SlotId) {
        if self.files.get(file).is_some_and(|slot| slot.removed && slot.in_flight == 0) {
            self.files.remove(file);
        }
    }
}

fn checked_length(buf: &AlignedBuf, len: usize) -> u32 {
    assert!(len <= buf.len(), "{len} bytes of a buffer of {}", buf.len());
    let length = i32::try_from(len).expect("a file operation is smaller than 2 GiB");
    length.cast_unsigned()
}

fn bad_file() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
