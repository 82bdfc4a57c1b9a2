//! Reads of single values and of parts of old segments: what is under way, what waits until it is
//! durable, and the buffers for both.

use std::collections::BTreeMap;
use std::io;

use coracle_engine::{Core, Input, ReadValue, RepairNews, ScanSegment};
use coracle_raft::Record;
use coracle_ring::{AlignedBuf, Ring};
use coracle_wal::{Decoded, LoadError, RealDisk, ScanRead, SegmentId, ValueRead, Wal};

use super::keys::{Read, key};
use super::{Files, open_file};

/// Smallest buffer that is kept for later reads.
const BUFFER_BYTES_MIN: usize = 4096;
/// Sizes of buffers that are kept, each twice the one before: up to 1 MiB.
const BUFFER_SIZES: usize = 9;
/// Bytes of buffers that are kept.
const BUFFERS_BYTES_MAX: usize = 8 << 20;

/// What a core reads of its log besides entries.
#[derive(Default)]
pub(super) struct Values {
    /// By the core's numbers, of which it has at most a few hundred open.
    reads: BTreeMap<u64, ValueRead>,
    /// Asked for before they were on the disk; part of the same few hundred.
    waiting: Vec<ReadValue>,
    scan: Option<(ScanSegment, ScanRead)>,
    /// Trouble with this segment was told.
    told: Option<u64>,
    buffers: Buffers,
}

/// The log and its files, as far as reads need them.
pub(super) struct Log<'a> {
    pub(super) wal: &'a Wal<RealDisk>,
    pub(super) files: &'a mut Files,
    pub(super) ring: &'a mut Ring,
}

impl Log<'_> {
    fn read(
        &mut self,
        segment: SegmentId,
        key: u64,
        (offset, len): (u64, usize),
        buffers: &mut Buffers,
    ) -> io::Result<()> {
        let file = open_file(self.files, self.wal, self.ring, segment)?;
        self.ring.read(file, key, offset, buffers.take(len), len);
        Ok(())
    }
}

impl Values {
    /// Begins to read a value; gives the answer at once if that is impossible.
    pub(super) fn read(&mut self, asked: ReadValue, log: &mut Log<'_>) -> Option<Input> {
        match log.wal.locate_value(asked.place, asked.payload_len) {
            Ok(read) => self.issue(asked.id, read, log),
            Err(LoadError::NotDurableAt { .. }) => {
                self.waiting.push(asked);
                None
            }
            Err(error) => Some(value(asked.id, Err(error.to_string()))),
        }
    }

    fn issue(&mut self, id: u64, read: ValueRead, log: &mut Log<'_>) -> Option<Input> {
        let part = (read.offset, read.len);
        match log.read(read.segment, key(Read::Value, id), part, &mut self.buffers) {
            Ok(()) => {
                self.reads.insert(id, read);
                None
            }
            Err(error) => Some(value(id, Err(error.to_string()))),
        }
    }

    /// More is durable: begins the reads that waited. Hands answers that are there at once to
    /// `answer`.
    pub(super) fn retry(&mut self, log: &mut Log<'_>, answer: &mut dyn FnMut(Input)) {
        if self.waiting.is_empty() {
            return;
        }
        for asked in std::mem::take(&mut self.waiting) {
            if let Some(input) = self.read(asked, log) {
                answer(input);
            }
        }
    }

    /// The disk has answered a read of a value.
    pub(super) fn read_done(
        &mut self,
        id: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
        log: &mut Log<'_>,
    ) -> Option<Input> {
        let read = self.reads.remove(&id)?;
        let decoded = match result {
            Ok(len) => {
                let bytes = &buffer[..len.min(buffer.len())];
                log.wal.decode_value(&read, bytes).map_err(|error| error.to_string())
            }
            Err(error) => Err(format!("reading a value failed: {error}")),
        };
        self.buffers.give(buffer);
        match decoded {
            Ok(Decoded::Record(record)) => Some(value(id, Ok(record))),
            Ok(Decoded::Longer(longer)) => self.issue(id, longer, log),
            Err(error) => Some(value(id, Err(error))),
        }
    }

    /// Begins to read a part of an old segment; gives the answer at once if that is impossible.
    pub(super) fn scan(&mut self, scan: ScanSegment, log: &mut Log<'_>) -> Option<Input> {
        let Some(read) = log.wal.locate_scan(scan.segment, scan.from, scan.bytes) else {
            return Some(Input::Scanned { scan, records: Vec::new(), next: None });
        };
        let part = (read.offset, read.len);
        match log.read(read.segment, key(Read::Scan, 0), part, &mut self.buffers) {
            Ok(()) => {
                self.scan = Some((scan, read));
                None
            }
            Err(error) => Some(self.scan_failed(scan, &error)),
        }
    }

    /// The disk has answered a read of a part of a segment.
    pub(super) fn scan_done(
        &mut self,
        result: io::Result<usize>,
        buffer: AlignedBuf,
        log: &Log<'_>,
        core: &Core,
    ) -> Option<Input> {
        let (scan, read) = self.scan.take()?;
        let len = match result {
            Ok(len) => len,
            Err(error) => return Some(self.scan_failed(scan, &error)),
        };
        let scanned = log.wal.decode_scan(&read, &buffer[..len.min(buffer.len())], &|seen| {
            core.refers_to(seen.place, seen.group, seen.is_command, seen.payload)
        });
        self.buffers.give(buffer);
        if scanned.damaged && self.told.replace(scan.segment) != Some(scan.segment) {
            let segment = scan.segment;
            let then = "some of its values are read one by one";
            tracing::warn!(target: "wal", segment, "damaged: {then}");
        }
        Some(Input::Scanned { scan, records: scanned.records, next: scanned.next })
    }

    /// What is in use in it is read value by value, and repaired where that fails.
    fn scan_failed(&mut self, scan: ScanSegment, error: &io::Error) -> Input {
        if self.told.replace(scan.segment) != Some(scan.segment) {
            let segment = scan.segment;
            tracing::warn!(target: "wal", segment, %error, "cannot read it for moving its values");
        }
        Input::Scanned { scan, records: Vec::new(), next: None }
    }
}

/// Tells of values and entries that were found damaged, and of their repair.
pub(super) fn tell(news: &RepairNews) {
    match news {
        RepairNews::Damaged { group, place, why } => {
            let (group, segment, offset) = (group.get(), place.segment(), place.offset());
            tracing::warn!(target: "wal", group, segment, offset, why, "a value is damaged");
        }
        RepairNews::Repaired { group, place } => {
            let (group, segment, offset) = (group.get(), place.segment(), place.offset());
            tracing::info!(target: "wal", group, segment, offset, "a damaged value is repaired");
        }
        RepairNews::EntriesLost { group, first, why } => {
            let (group, first) = (group.get(), first.get());
            tracing::warn!(target: "wal", group, first, why, "entries cannot be read");
        }
        RepairNews::EntriesFetched { group, first, last } => {
            let (group, first, last) = (group.get(), first.get(), last.get());
            tracing::info!(target: "wal", group, first, last, "entries came from another replica");
        }
    }
}

fn value(id: u64, record: Result<Record, String>) -> Input {
    Input::ValueRead { id, record }
}

/// Buffers that are used again: making one means clearing it.
#[derive(Default)]
struct Buffers {
    free: [Vec<AlignedBuf>; BUFFER_SIZES],
    free_bytes: usize,
}

impl Buffers {
    /// A buffer of at least `len` bytes with any content.
    fn take(&mut self, len: usize) -> AlignedBuf {
        let Some(size) = Self::size_of(len) else { return AlignedBuf::zeroed(len) };
        match self.free[size].pop() {
            Some(buffer) => {
                self.free_bytes -= buffer.len();
                buffer
            }
            None => AlignedBuf::zeroed(BUFFER_BYTES_MIN << size),
        }
    }

    fn give(&mut self, buffer: AlignedBuf) {
        let Some(size) = Self::size_of(buffer.len()) else { return };
        let exact = buffer.len() == BUFFER_BYTES_MIN << size;
        if exact && self.free_bytes + buffer.len() <= BUFFERS_BYTES_MAX {
            self.free_bytes += buffer.len();
            self.free[size].push(buffer);
        }
    }

    fn size_of(len: usize) -> Option<usize> {
        let size = len.div_ceil(BUFFER_BYTES_MIN).next_power_of_two().trailing_zeros() as usize;
        (size < BUFFER_SIZES).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_up_to_a_bound() {
        let mut buffers = Buffers::default();
        for (len, want) in [(1, 4096), (4097, 8192), (12_288, 16_384), (1 << 20, 1 << 20)] {
            let buffer = buffers.take(len);
            assert_eq!(buffer.len(), want, "for {len}");
            let start = buffer.as_ptr();
            buffers.give(buffer);
            let again = buffers.take(len);
            assert_eq!(again.as_ptr(), start, "for {len}");
            assert_eq!(buffers.free_bytes, 0);
        }
        let large = buffers.take((1 << 20) + 1);
        assert_eq!(large.len(), (1 << 20) + 4096, "as long as it must be");
        buffers.give(large);
        assert_eq!(buffers.free_bytes, 0, "and not kept");
        for _ in 0..20 {
            buffers.give(AlignedBuf::zeroed(1 << 20));
        }
        assert_eq!(buffers.free_bytes, BUFFERS_BYTES_MAX);
    }
}
