//! Reading old segments in order, for moving what is still needed out of them.

use coracle_raft::{EntryKind, GroupId, Place, Record};

use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, RECORD_HEADER_BYTES, RecordHeader, RecordKind,
    aligned,
};
use crate::recovery::salvage::{Frame, Piece, pieces};
use crate::segment::SegmentId;
use crate::value::self_located;
use crate::wal::Segment;
use crate::{Disk, Wal};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A read for the driver: `len` bytes at `offset` of the segment's file, both multiples of 4 KiB.
/// The result goes to [`Wal::decode_scan`], cut short if the file was. As for retirement meanwhile
/// see [`ValueRead`](crate::ValueRead): such a scan finds nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRead {
    /// Which file: [`Wal::file`].
    pub segment: SegmentId,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    from: From,
}

/// A command or a value in an old segment. The checksum of its payload was not looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Where it stands.
    pub place: Place,
    /// The group it belongs to.
    pub group: GroupId,
    /// A command; else a value.
    pub is_command: bool,
    /// What the disk gave.
    pub payload: &'a [u8],
}

/// A part of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The commands and values in it that are wanted, in log order.
    pub records: Vec<(Place, Record)>,
    /// Where to go on, for [`Wal::locate_scan`]; `None` at the end of the segment. More than an
    /// offset, so it does not always grow.
    pub next: Option<u64>,
    /// Whether something in it cannot be read that may be wanted. The loss of the very last
    /// batches of a segment is not told.
    pub damaged: bool,
}

/// Where a scan goes on, as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct From {
    /// Offset in the file: of a batch, or of anything in a hole.
    at: u64,
    /// Blocks that must be read at least.
    blocks: u64,
    /// Whether no batch was found just before it, though one may have been there.
    in_hole: bool,
}

impl From {
    const HOLE: u64 = 1 << 63;

    fn decode(raw: u64) -> Self {
        let at = (raw & 0xFFFF_FFFF) & !7;
        Self {
            at: at.max(BLOCK),
            blocks: (raw & !Self::HOLE) >> 32,
            in_hole: raw & Self::HOLE != 0,
        }
    }

    const fn encode(self) -> u64 {
        let hole = if self.in_hole { Self::HOLE } else { 0 };
        hole | self.blocks << 32 | self.at
    }
}

impl<D: Disk> Wal<D> {
    /// The read that fetches about `bytes` of a segment to which nothing is added any more, from
    /// its start (0) or from where the part before ended ([`Scanned::next`]). Do it, then
    /// [`Wal::decode_scan`]. At least one batch is read, however long it is.
    ///
    /// `None` if there is no such segment, if it is the active one, if its last writes are still
    /// under way, or if `from` is behind its end.
    pub fn locate_scan(&self, segment: u64, from: u64, bytes: usize) -> Option<ScanRead> {
        let id = SegmentId::new(segment);
        let home = self.segment(id).filter(|_| Some(id) < self.active)?;
        let waiting = self.closed.iter().chain(&self.open).any(|batch| batch.segment == id);
        if waiting || self.inflight.iter().any(|flight| flight.segment == id) {
            return None;
        }
        let from = From::decode(from);
        let end = scan_end(home);
        let offset = from.at & !(BLOCK - 1);
        if from.at >= end {
            return None;
        }
        let wanted = aligned(bytes as u64).max(from.blocks * BLOCK).max(BLOCK);
        let len = wanted.min(end - offset) as usize;
        Some(ScanRead { segment: id, offset, len, from })
    }

    /// Makes records of what was read: the commands and values that `wants` says yes to. What is
    /// damaged is left out, after the same search that recovery makes; every record returned has
    /// passed every check.
    pub fn decode_scan(
        &self,
        read: &ScanRead,
        buffer: &[u8],
        wants: &dyn Fn(&Seen<'_>) -> bool,
    ) -> Scanned {
        let Some(segment) = self.segment(read.segment) else { return Scanned::default() };
        if !segment.readable {
            return Scanned { damaged: true, ..Scanned::default() };
        }
        let bytes = &buffer[..buffer.len().min(read.len)];
        let end = read.offset + read.len as u64;
        let sweep = Sweep {
            segment,
            bytes,
            offset: read.offset,
            end,
            at: read.from.at,
            in_hole: read.from.in_hole,
            wants,
            scanned: Scanned::default(),
        };
        sweep.run()
    }
}

/// Where a scan ends: with the file, but not before the place of the first batch.
fn scan_end<F>(segment: &Segment<F>) -> u64 {
    aligned(segment.file_bytes.min(segment.header.segment_bytes)).max(2 * BLOCK)
}

/// A walk over a part of a segment.
struct Sweep<'a, F> {
    segment: &'a Segment<F>,
    bytes: &'a [u8],
    /// Where `bytes` starts in the file, and where it was to end.
    offset: u64,
    end: u64,
    at: u64,
    in_hole: bool,
    wants: &'a dyn Fn(&Seen<'_>) -> bool,
    scanned: Scanned,
}

impl<F> Sweep<'_, F> {
    fn run(mut self) -> Scanned {
        let file_end = scan_end(self.segment);
        // A segment to which nothing is added any more has a batch at its start.
        let short = (self.offset + self.bytes.len() as u64) < self.end.min(self.written_end());
        self.scanned.damaged = short || (self.at == BLOCK && self.batch().is_none());
        while self.at < self.end {
            // What does not fit into the buffer is read again, and longer, unless the file ends.
            let missing = match self.batch() {
                Some(batch) => {
                    let end = self.at + aligned(u64::from(batch.len));
                    if end <= self.end || self.end == file_end {
                        self.read_batch(&batch);
                        None
                    } else {
                        Some(end)
                    }
                }
                None => self.search(file_end),
            };
            if let Some(end) = missing {
                let blocks = (end - (self.at & !(BLOCK - 1))).div_ceil(BLOCK);
                let from = From { at: self.at, blocks, in_hole: self.in_hole };
                self.scanned.next = Some(from.encode());
                return self.scanned;
            }
        }
        if self.end < file_end {
            let from = From { at: self.at, blocks: 0, in_hole: self.in_hole };
            self.scanned.next = (self.at < file_end).then(|| from.encode());
        }
        self.scanned
    }

    fn written_end(&self) -> u64 {
        self.segment.file_bytes.min(self.segment.header.segment_bytes)
    }

    fn here(&self) -> &[u8] {
        self.bytes.get((self.at - self.offset) as usize..).unwrap_or_default()
    }

    /// The header of the batch that starts here, if one does.
    fn batch(&self) -> Option<BatchHeader> {
        if !self.at.is_multiple_of(BLOCK) {
            return None;
        }
        let header = &self.segment.header;
        let batch = BatchHeader::decode(self.here(), header.salt, header.first_lsn.plus(self.at))?;
        (self.at + aligned(u64::from(batch.len)) <= header.segment_bytes).then_some(batch)
    }

    fn read_batch(&mut self, batch: &BatchHeader) {
        // What was before it should have been a batch too.
        self.scanned.damaged |= self.in_hole;
        self.in_hole = false;
        let len = batch.len as usize;
        // Most of an old segment is not wanted: checksums of payloads come last.
        let frame = Frame { salt: batch.salt, lsn: batch.lsn, len, verified: true };
        let (number, start) = (self.segment.header.number, self.at);
        let bytes = self.bytes.get((start - self.offset) as usize..).unwrap_or_default();
        let (scanned, wants) = (&mut self.scanned, self.wants);
        pieces(bytes, &frame, &mut |piece| match piece {
            Piece::Record { header, payload, .. } => {
                let place = Place::new(number, start + u64::from(header.offset));
                scanned.take(place, &header, payload, wants);
            }
            Piece::Lost(_) => scanned.damaged = true,
        });
        self.at += aligned(u64::from(batch.len));
    }

    /// Where no batch starts: a record whose batch header is lost, or nothing. Returns where the
    /// record ends if not all of it was read.
    fn search(&mut self, file_end: u64) -> Option<u64> {
        self.in_hole = true;
        let found = self_located(&self.segment.header, self.at, self.here());
        let Some(header) = found.filter(|header| {
            self.at + header.record_bytes() as u64 <= self.segment.header.segment_bytes
        }) else {
            self.at += 8;
            // A header that was read in part is read again.
            let left = self.end.saturating_sub(self.at);
            let cut = left < RECORD_HEADER_BYTES as u64 && left > 0 && self.end < file_end;
            return cut.then_some(self.end + BLOCK);
        };
        self.scanned.damaged = true;
        let end = self.at + header.record_bytes() as u64;
        if end > self.end && self.end < file_end {
            return Some(end);
        }
        let payload = self.here()[RECORD_HEADER_BYTES..].get(..header.payload_len as usize);
        if let Some(payload) = payload {
            let payload = payload.to_vec();
            let place = Place::new(self.segment.header.number, self.at);
            self.scanned.take(place, &header, &payload, self.wants);
        }
        self.at = end;
        None
    }
}

impl Scanned {
    fn take(
        &mut self,
        place: Place,
        header: &RecordHeader,
        payload: &[u8],
        wants: &dyn Fn(&Seen<'_>) -> bool,
    ) {
        let is_command = match header.kind {
            RecordKind::Entry { kind: EntryKind::Command, .. } => true,
            RecordKind::Value => false,
            _ => return,
        };
        if !wants(&Seen { place, group: header.group, is_command, payload }) {
            return;
        }
        if crc32c::crc32c(payload) == header.payload_crc {
            self.records.extend(header.to_record(payload).map(|record| (place, record)));
        } else {
            self.damaged = true;
        }
    }
}

const _: () = assert!(BATCH_HEADER_BYTES.is_multiple_of(8), "records start at multiples of 8");
