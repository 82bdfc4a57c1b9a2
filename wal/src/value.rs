//! Reading single records back by their place: the log as the store of values.

use coracle_raft::{Bug, Place, Record, planted};

use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, aligned,
    record_bytes, record_seed,
};
use crate::segment::SegmentId;
use crate::wal::Segment;
use crate::{Disk, LoadError, Wal};

/// A read for the driver: `len` bytes at `offset` of the segment's file, both multiples of 4 KiB.
/// The result goes to [`Wal::decode_value`], cut short if the file was.
///
/// The segment may be let go meanwhile. Its file stays open until [`Wal::take_released`] names it,
/// which the driver answers by ending its own use of the file after the reads under way. A read
/// that comes too late ends with [`LoadError::Recycled`]: never with bytes of another use of the
/// file, since the check of a record depends on the salt of the use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueRead {
    /// Which file: [`Wal::file`].
    pub segment: SegmentId,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    place: Place,
}

/// What a [`ValueRead`] brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The record.
    Record(Record),
    /// The payload is longer than was guessed: read this instead.
    Longer(ValueRead),
}

impl<D: Disk> Wal<D> {
    /// The read that fetches the record in `place`, if its payload is not longer than
    /// `payload_len`. Do it, then [`Wal::decode_value`].
    ///
    /// # Errors
    /// [`LoadError::NotDurableAt`], [`LoadError::NoRecord`], [`LoadError::Recycled`], or
    /// [`LoadError::Damaged`] if the header of the segment was unreadable at recovery.
    pub fn locate_value(&self, place: Place, payload_len: usize) -> Result<ValueRead, LoadError> {
        let segment = self.segment_of(place)?;
        let at = segment.header.first_lsn.plus(place.offset());
        // What was recovered may end before the segment does.
        let end = segment.file_bytes.min(segment.header.segment_bytes);
        let may_be = FIRST_RECORD_AT..=end.saturating_sub(RECORD_HEADER_BYTES as u64);
        if at >= self.position() || !may_be.contains(&place.offset()) {
            return Err(LoadError::NoRecord { place });
        }
        if at >= self.durable {
            return Err(LoadError::NotDurableAt { place });
        }
        Ok(value_read(place, payload_len, aligned(end)))
    }

    /// Makes a record of what was read. Every check of recovery is made here too: the record
    /// starts exactly there, in this use of the file, and its payload is what was appended.
    ///
    /// # Errors
    /// [`LoadError::Recycled`] or [`LoadError::Damaged`], which is also the answer to a place in
    /// which no record starts.
    pub fn decode_value(&self, read: &ValueRead, buffer: &[u8]) -> Result<Decoded, LoadError> {
        let place = read.place;
        let segment = self.segment_of(place)?;
        let damaged =
            || LoadError::Damaged { file: self.file_name(read.segment), offset: place.offset() };
        let buffer = &buffer[..buffer.len().min(read.len)];
        let start = (place.offset() - read.offset) as usize;
        let record = buffer.get(start..).ok_or_else(damaged)?;
        let header = self_located(&segment.header, place.offset(), record).ok_or_else(damaged)?;
        let payload_len = header.payload_len as usize;
        let Some(payload) = record[RECORD_HEADER_BYTES..].get(..payload_len) else {
            let end = aligned(segment.file_bytes.min(segment.header.segment_bytes));
            let longer = value_read(place, payload_len, end);
            let fits = place.offset() + record_bytes(payload_len) as u64 <= end;
            // Not asked for, and not just cut short.
            return if fits && longer.len > read.len {
                Ok(Decoded::Longer(longer))
            } else {
                Err(damaged())
            };
        };
        if crc32c::crc32c(payload) != header.payload_crc && !planted(Bug::ValueReadUnchecked) {
            return Err(damaged());
        }
        header.to_record(payload).map(Decoded::Record).ok_or_else(damaged)
    }

    /// The segment of a place, if anything in it can be checked.
    fn segment_of(&self, place: Place) -> Result<&Segment<D::File>, LoadError> {
        let id = SegmentId::new(place.segment());
        match self.segment(id) {
            Some(segment) if segment.readable => Ok(segment),
            Some(_) => {
                let offset = place.offset();
                Err(LoadError::Damaged { file: self.file_name(id), offset })
            }
            None if id.number() >= self.next_number => Err(LoadError::NoRecord { place }),
            None => Err(LoadError::Recycled { file: self.file_name(id) }),
        }
    }
}

/// No record starts before this offset in a segment.
const FIRST_RECORD_AT: u64 = (BLOCK_BYTES + BATCH_HEADER_BYTES) as u64;

fn value_read(place: Place, payload_len: usize, end: u64) -> ValueRead {
    let offset = place.offset() & !(BLOCK_BYTES as u64 - 1);
    let record_end = place.offset() + record_bytes(payload_len.min(end as usize)) as u64;
    let len = (aligned(record_end).min(end) - offset) as usize;
    ValueRead { segment: SegmentId::new(place.segment()), offset, len, place }
}

/// The header of the record at `offset` of the segment, whose bytes start there. It names its
/// offset in its batch, and with that the place of the batch; the seed confirms both.
pub(crate) fn self_located(
    segment: &SegmentHeader,
    offset: u64,
    record: &[u8],
) -> Option<RecordHeader> {
    let claimed = RecordHeader::claimed_offset(record)?;
    let batch = offset.checked_sub(claimed as u64)?;
    if !batch.is_multiple_of(BLOCK_BYTES as u64) || batch < BLOCK_BYTES as u64 {
        return None;
    }
    let seed = record_seed(segment.salt, segment.first_lsn.plus(batch));
    let (header, _) = RecordHeader::decode(record, seed, claimed)?;
    (claimed >= BATCH_HEADER_BYTES).then_some(header)
}
