//! The receive buffers that the kernel picks from, and the ring in which they are handed to it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::aligned::ALIGNMENT_BYTES;

/// Received bytes, in a buffer of the ring. Dropping it gives the buffer back to the kernel.
///
/// It may outlive its ring; the memory stays until the last one is gone.
pub struct RecvBuf {
    pool: Rc<Pool>,
    id: u16,
    len: u32,
}

impl Deref for RecvBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `Pool::take` made this the only owner of buffer `id` and checked `len` against
        // the buffer's size; the memory is initialized (zeroed at first) and lives as long as
        // `pool`. The kernel does not write to it before `drop` hands it out again.
        unsafe { std::slice::from_raw_parts(self.pool.buffer(self.id).as_ptr(), self.len as usize) }
    }
}

impl Drop for RecvBuf {
    fn drop(&mut self) {
        self.pool.give(self.id);
    }
}

impl fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuf({} bytes)", self.len)
    }
}

/// All receive buffers of one ring and the table that lists the free ones for the kernel.
///
/// Each buffer is owned by exactly one side: by the kernel from [`Pool::give`] on, by a
/// [`RecvBuf`] from [`Pool::take`] on.
pub(crate) struct Pool {
    /// `count` entries; the kernel reads them, and the tail that lies within the first one.
    table: NonNull<BufRingEntry>,
    /// `count * size` bytes.
    memory: NonNull<u8>,
    count: u16,
    size: u32,
    tail: Cell<u16>,
    in_kernel: Cell<u16>,
}

impl Pool {
    /// All buffers start on the kernel's side.
    ///
    /// `count` is a power of two up to 2^15, `size` is above zero.
    pub(crate) fn new(count: u16, size: u32) -> Rc<Self> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel masks by {count}");
        assert!(size > 0, "a buffer holds something");
        let pool = Rc::new(Self {
            table: allocate(Self::table_layout(count)).cast(),
            memory: allocate(Self::memory_layout(count, size)),
            count,
            size,
            tail: Cell::new(0),
            in_kernel: Cell::new(0),
        });
        for id in 0..count {
            pool.give(id);
        }
        pool
    }

    /// Where the kernel finds the table.
    pub(crate) fn table_address(&self) -> u64 {
        self.table.as_ptr().expose_provenance() as u64
    }

    pub(crate) const fn count(&self) -> u16 {
        self.count
    }

    /// How many buffers the kernel may still fill.
    pub(crate) fn in_kernel(&self) -> usize {
        usize::from(self.in_kernel.get())
    }

    /// Takes over a buffer that the kernel has filled with `len` bytes.
    ///
    /// # Safety
    /// The kernel named buffer `id` in a completion that was not used for another `take`.
    pub(crate) unsafe fn take(self: &Rc<Self>, id: u16, len: u32) -> RecvBuf {
        assert!(id < self.count, "the kernel knows {} buffers, not number {id}", self.count);
        assert!(len <= self.size, "{len} bytes do not fit into a buffer of {}", self.size);
        self.in_kernel.set(self.in_kernel.get() - 1);
        RecvBuf { pool: Rc::clone(self), id, len }
    }

    /// Hands buffer `id` to the kernel.
    fn give(&self, id: u16) {
        let tail = self.tail.get();
        let slot = usize::from(tail & (self.count - 1));
        // SAFETY: `slot` is below `count`, so the entry lies in the table. The kernel does not
        // read it: it reads entries from its head up to the published tail, at most `count - 1`
        // are there because buffer `id` is not, so this one is outside of that range.
        // No reference to the whole entry is made, because the kernel's tail lies in the first.
        unsafe {
            let entry = self.table.add(slot).as_mut();
            entry.set_addr(self.buffer(id).as_ptr().expose_provenance() as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
        }
        let tail = tail.wrapping_add(1);
        self.tail.set(tail);
        self.in_kernel.set(self.in_kernel.get() + 1);
        // SAFETY: the table's first entry is valid and initialized (zeroed at first); the tail
        // field in it is aligned, is written here only, and read concurrently by the kernel only.
        let published =
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.table.as_ptr()).cast_mut()) };
        published.store(tail, Ordering::Release);
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        // SAFETY: ids are below `count` everywhere, so the offset is inside the allocation.
        unsafe { self.memory.add(usize::from(id) * self.size as usize) }
    }

    fn table_layout(count: u16) -> Layout {
        let size = usize::from(count) * size_of::<BufRingEntry>();
        Layout::from_size_align(size, ALIGNMENT_BYTES).expect("at most 2^15 entries of 16 bytes")
    }

    fn memory_layout(count: u16, size: u32) -> Layout {
        let size = usize::from(count) * size as usize;
        Layout::from_size_align(size, ALIGNMENT_BYTES).expect("at most 2^15 times 2^32 bytes")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: both come from `allocate` with the same layouts. No `RecvBuf` is left, because
        // each holds the pool. The kernel is done with both: the ring holds the pool, and before
        // it lets go it has waited for all receives and taken the table back, or leaks the pool.
        unsafe {
            dealloc(self.table.as_ptr().cast(), Self::table_layout(self.count));
            dealloc(self.memory.as_ptr(), Self::memory_layout(self.count, self.size));
        }
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0, "an allocation of nothing");
    // SAFETY: the size is above zero.
    let raw = unsafe { alloc_zeroed(layout) };
    NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the table as the kernel does.
    fn table(pool: &Pool) -> (u16, Vec<(u64, u32, u16)>) {
        let mut entries = Vec::new();
        for slot in 0..usize::from(pool.count) {
            // SAFETY: `slot` is below `count`.
            let entry = unsafe { pool.table.add(slot).as_ref() };
            entries.push((entry.addr(), entry.len(), entry.bid()));
        }
        // SAFETY: the first entry is valid.
        (unsafe { *BufRingEntry::tail(pool.table.as_ptr()) }, entries)
    }

    #[test]
    fn buffers_start_in_the_kernel_and_come_back_in_any_order() {
        let pool = Pool::new(4, 100);
        let base = pool.memory.as_ptr().addr() as u64;
        let (tail, entries) = table(&pool);
        assert_eq!(tail, 4);
        assert_eq!(
            entries,
            [(base, 100, 0), (base + 100, 100, 1), (base + 200, 100, 2), (base + 300, 100, 3)]
        );
        // SAFETY: there is no kernel here; each id is taken once.
        let (first, second) = unsafe { (pool.take(0, 10), pool.take(1, 100)) };
        assert_eq!((first.len(), second.len(), pool.in_kernel()), (10, 100, 2));
        drop(second);
        drop(first);
        let (tail, entries) = table(&pool);
        assert_eq!((tail, pool.in_kernel()), (6, 4));
        assert_eq!(entries[..2], [(base + 100, 100, 1), (base, 100, 0)]);
    }

    #[test]
    fn the_tail_wraps() {
        let pool = Pool::new(2, 8);
        for round in 0..70_000u32 {
            // SAFETY: there is no kernel here; the buffer is given back at once.
            drop(unsafe { pool.take((round % 2) as u16, 8) });
        }
        assert_eq!(table(&pool).0, (70_002u32 & 0xffff) as u16);
        assert_eq!(pool.in_kernel(), 2);
    }

    #[test]
    fn received_bytes_outlive_the_pool_handle() {
        let pool = Pool::new(1, 16);
        // SAFETY: there is no kernel here; id 0 is taken once.
        let held = unsafe { pool.take(0, 16) };
        drop(pool);
        assert_eq!(&held[..], &[0; 16]);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_length_beyond_the_buffer_is_caught() {
        let pool = Pool::new(1, 16);
        // SAFETY: there is no kernel here; id 0 is taken once.
        let _ = unsafe { pool.take(0, 17) };
    }
}
