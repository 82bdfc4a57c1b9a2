//! Memory that direct I/O accepts: start and length are multiples of 4 KiB.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What start, length and file offset of direct I/O are multiples of, in bytes.
pub const ALIGNMENT_BYTES: usize = 4096;

/// A heap buffer for direct I/O: its start and its length are multiples of [`ALIGNMENT_BYTES`].
///
/// The bytes do not move when the value is moved, so the kernel can work on them while the ring
/// owns the value. An empty buffer owns no memory.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer is uniquely owned plain memory, freed by the global allocator, which does
// not care about the thread; `&AlignedBuf` only gives `&[u8]`.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above, shared access is read-only.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A buffer of zeros of at least `len_bytes`, rounded up to whole 4 KiB blocks.
    ///
    /// # Panics
    /// If the rounded length exceeds `isize::MAX`. Aborts when memory is exhausted.
    #[must_use]
    pub fn zeroed(len_bytes: usize) -> Self {
        let len = len_bytes
            .checked_next_multiple_of(ALIGNMENT_BYTES)
            .expect("a buffer is smaller than the address space");
        if len == 0 {
            return Self::empty();
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    /// A buffer without bytes and without memory.
    #[must_use]
    pub const fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0 }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT_BYTES)
            .expect("a buffer is smaller than the address space")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with the same layout and is freed once.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) };
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` is owned, initialized (zeroed at first) and lives as long
        // as `self`; with `len == 0` a dangling pointer is allowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_rounded_up_and_memory_is_zero_and_aligned() {
        for (asked, want) in [(0, 0), (1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)] {
            let mut buf = AlignedBuf::zeroed(asked);
            assert_eq!(buf.len(), want, "asked for {asked}");
            assert!(buf.iter().all(|&byte| byte == 0), "asked for {asked}");
            if want > 0 {
                assert_eq!(buf.as_ptr().addr() % ALIGNMENT_BYTES, 0, "asked for {asked}");
            }
            buf.fill(7);
            assert!(buf.iter().all(|&byte| byte == 7), "asked for {asked}");
        }
    }

    #[test]
    fn bytes_survive_a_move_to_another_thread() {
        let mut buf = AlignedBuf::zeroed(4096);
        buf[4095] = 9;
        let address = buf.as_ptr().addr();
        let moved = std::thread::spawn(move || (buf.as_ptr().addr(), buf[4095])).join();
        assert_eq!(moved.expect("the thread does not panic"), (address, 9));
    }

    #[test]
    fn empty_buffers_are_free() {
        assert!(AlignedBuf::default().is_empty());
        assert!(AlignedBuf::empty().iter().next().is_none());
    }
}
