//! First step: the segments, their batches, how they follow each other, and where the log ends.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use coracle_raft::{Bug, planted};
use coracle_ring::AlignedBuf;

use super::report::Torn;
use super::salvage::{self, Frame};
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, FORMAT_VERSION, Lsn, RecordHeader, SegmentHeader,
    SegmentHeaderError, aligned, record_seed,
};
use crate::segment::SegmentId;
use crate::{Disk, Identity, RecoverError};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes of one read: a disk that is asked for less at a time is slower.
const CHUNK_BYTES: usize = 4 << 20;

/// A segment without a header is told by its first batch, or one that starts before this.
const SEARCHED_BYTES: u64 = 64 << 10;

/// No segment is longer, whatever its file says.
const SEGMENT_BYTES_MAX: u64 = 1 << 31;

/// A segment file.
#[derive(Clone, Debug)]
pub(crate) struct SegmentScan {
    pub(crate) id: SegmentId,
    pub(crate) name: String,
    /// None if both copies are damaged and no batch tells.
    pub(crate) header: Option<SegmentHeader>,
    /// Both copies are damaged; `header` is what a batch says.
    pub(crate) told_by_batch: bool,
    pub(crate) first_lsn: Lsn,
    /// Positions it takes in the log.
    pub(crate) segment_bytes: u64,
    pub(crate) file_bytes: u64,
}

/// A stretch of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Index in [`Survey::segments`].
    pub(crate) segment: usize,
    /// Offset in the segment; `end` is rounded up to a block.
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) lsn: Lsn,
    pub(crate) kind: SpanKind,
}

/// What is known of a [`Span`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum SpanKind {
    /// A batch that passed every check.
    Whole(BatchHeader),
    /// A batch with a valid header and something wrong in it.
    Broken(BatchHeader),
    /// No valid batch header where one must be. A batch starts at its start.
    Hole,
    /// A segment without a valid header.
    Blind,
}

impl Span {
    pub(crate) const fn batch(&self) -> Option<&BatchHeader> {
        match &self.kind {
            SpanKind::Whole(header) | SpanKind::Broken(header) => Some(header),
            SpanKind::Hole | SpanKind::Blind => None,
        }
    }
}

/// The structure of a log.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) segments: Vec<SegmentScan>,
    /// Index of the first segment of the log proper.
    pub(crate) log_start: usize,
    /// In log order, from the start of the log proper to the end of the log.
    pub(crate) spans: Vec<Span>,
    pub(crate) watermark: Lsn,
    /// What was noted of segments, by their index. Not of all, see
    /// [`Options::recovery_headers_max`](crate::Options).
    pub(crate) notes: BTreeMap<usize, Notes>,
    /// Files that are being made or put aside.
    pub(crate) unfinished: Vec<String>,
}

impl Survey {
    /// The record headers of a whole batch, if they were noted.
    pub(crate) fn noted(&self, span: &Span) -> Option<&[RecordHeader]> {
        match span.kind {
            SpanKind::Whole(_) => self.notes.get(&span.segment)?.batch(span.offset),
            SpanKind::Broken(_) | SpanKind::Hole | SpanKind::Blind => None,
        }
    }
}

/// The record headers of the whole batches of one segment: what is said of them later needs no
/// second look at the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    headers: Vec<RecordHeader>,
    /// Where each batch starts in the segment, and its first header.
    batches: Vec<(u64, usize)>,
}

impl Notes {
    /// The headers of the batch at `offset`.
    pub(crate) fn batch(&self, offset: u64) -> Option<&[RecordHeader]> {
        let at = self.batches.binary_search_by_key(&offset, |(start, _)| *start).ok()?;
        let end = self.batches.get(at + 1).map_or(self.headers.len(), |(_, first)| *first);
        Some(&self.headers[self.batches[at].1..end])
    }
}

/// Reads segments, one at a time.
pub(crate) struct Reader<'a, D: Disk> {
    pub(crate) disk: &'a D,
    buffer: AlignedBuf,
    len: usize,
    loaded: Option<usize>,
    unreadable: BTreeSet<(usize, u64)>,
    bytes_read: u64,
    /// How many headers may still be noted.
    notes_left: usize,
}

impl<'a, D: Disk> Reader<'a, D> {
    pub(crate) fn new(disk: &'a D, notes_max: usize) -> Self {
        Self {
            disk,
            buffer: AlignedBuf::zeroed(0),
            len: 0,
            loaded: None,
            unreadable: BTreeSet::new(),
            bytes_read: 0,
            notes_left: notes_max,
        }
    }

    pub(crate) fn unreadable_blocks(&self) -> u64 {
        self.unreadable.len() as u64
    }

    /// Bytes of segments read so far, those included that were read again.
    pub(crate) const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Keeps the notes on a segment, unless there are too many of them.
    pub(super) fn keep(&mut self, notes: Notes) -> Option<Notes> {
        self.notes_left = self.notes_left.checked_sub(notes.headers.len())?;
        Some(notes)
    }

    /// The bytes of a segment. What the disk refuses to read is zeros, which are never valid.
    pub(crate) fn load(
        &mut self,
        segments: &[SegmentScan],
        at: usize,
    ) -> Result<&[u8], RecoverError> {
        if self.loaded != Some(at) {
            let segment = &segments[at];
            let file = self.disk.open_for_bulk(&segment.name);
            let file = file.map_err(|source| self.error("open", &segment.name, source))?;
            self.len = segment.file_bytes.min(segment.segment_bytes) as usize;
            self.loaded = None;
            if self.buffer.len() < self.len {
                self.buffer = AlignedBuf::zeroed(self.len);
            }
            self.fill(&file, at);
            self.bytes_read += self.len as u64;
            self.loaded = Some(at);
        }
        Ok(&self.buffer[..self.len])
    }

    /// A few bytes of a segment that was loaded before; `offset` is a multiple of a block.
    fn peek(
        &mut self,
        segment: &SegmentScan,
        at: usize,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, RecoverError> {
        if self.loaded == Some(at) {
            let from = (offset as usize).min(self.len);
            return Ok(self.buffer[from..self.len.min(from + len)].to_vec());
        }
        let file = self.disk.open_for_bulk(&segment.name);
        let file = file.map_err(|source| self.error("open", &segment.name, source))?;
        let mut block = AlignedBuf::zeroed(BLOCK_BYTES);
        let mut bytes = Vec::with_capacity(len);
        for part in (0..len).step_by(BLOCK_BYTES) {
            // What cannot be read was counted when it was loaded.
            let read = self.disk.read_at(&file, offset + part as u64, &mut block).unwrap_or(0);
            block[read..].fill(0);
            bytes.extend_from_slice(&block[..(len - part).min(BLOCK_BYTES)]);
        }
        self.bytes_read += len as u64;
        Ok(bytes)
    }

    fn fill(&mut self, file: &D::File, segment: usize) {
        let bytes = &mut self.buffer[..self.len.next_multiple_of(BLOCK_BYTES)];
        for (number, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
            let start = number * CHUNK_BYTES;
            if let Ok(read) = self.disk.read_at(file, start as u64, chunk) {
                chunk[read..].fill(0);
                continue;
            }
            for (block_number, block) in chunk.chunks_mut(BLOCK_BYTES).enumerate() {
                let offset = (start + block_number * BLOCK_BYTES) as u64;
                match self.disk.read_at(file, offset, block) {
                    Ok(read) => block[read..].fill(0),
                    Err(_) => {
                        block.fill(0);
                        self.unreadable.insert((segment, offset));
                    }
                }
            }
        }
    }

    pub(crate) fn error(
        &self,
        action: &'static str,
        name: &str,
        source: std::io::Error,
    ) -> RecoverError {
        RecoverError::Io { file: self.disk.display(name), action, source }
    }
}

/// Finds the segments and reads their headers.
pub(super) fn list<D: Disk>(
    reader: &Reader<'_, D>,
    identity: Option<Identity>,
) -> Result<Survey, RecoverError> {
    let mut survey = Survey::default();
    let names = reader.disk.list().map_err(|source| reader.error("list", "", source))?;
    let mut ids: Vec<SegmentId> = Vec::new();
    for name in names {
        match SegmentId::of_file_name(&name) {
            Some(id) => ids.push(id),
            None if name.ends_with(crate::segment::UNFINISHED_SUFFIX) => {
                survey.unfinished.push(name);
            }
            None => {}
        }
    }
    ids.sort_unstable();
    survey.unfinished.sort_unstable();
    for pair in ids.windows(2) {
        if pair[0].number() + 1 != pair[1].number() {
            return Err(RecoverError::Gap {
                file: reader.disk.display(&pair[1].file_name()),
                first_missing: pair[0].number() + 1,
                last_missing: pair[1].number() - 1,
            });
        }
    }
    for id in ids {
        let segment = open_segment(reader, id, identity)?;
        survey.segments.push(segment);
    }
    place(reader, &mut survey.segments)?;
    Ok(survey)
}

fn open_segment<D: Disk>(
    reader: &Reader<'_, D>,
    id: SegmentId,
    identity: Option<Identity>,
) -> Result<SegmentScan, RecoverError> {
    let name = id.file_name();
    let disk = reader.disk;
    let file = disk.open_for_scan(&name).map_err(|source| reader.error("open", &name, source))?;
    let file_bytes = disk.len(&file).map_err(|source| reader.error("measure", &name, source))?;
    let mut block = [0; BLOCK_BYTES];
    // What cannot be read is as good as damaged.
    let mut read = |offset| {
        let read = disk.read_at(&file, offset, &mut block).unwrap_or(0);
        block[..read.min(BLOCK_BYTES)].to_vec()
    };
    let mut told_by_batch = false;
    let header = match SegmentHeader::decode(&read(0)) {
        Ok(header) => Some(header),
        Err(SegmentHeaderError::Damaged) => {
            let mut places = (BLOCK..file_bytes.min(SEARCHED_BYTES)).step_by(BLOCK_BYTES);
            let header = places.find_map(|at| {
                let batch = BatchHeader::decode_anywhere(&read(at))?;
                header_told_by(&batch, at, id, file_bytes)
            });
            told_by_batch = header.is_some();
            header
        }
        Err(SegmentHeaderError::Version(found)) => {
            let known = u32::from(FORMAT_VERSION);
            return Err(RecoverError::Version { file: disk.display(&name), found, known });
        }
    };
    if let Some(header) = header.as_ref().filter(|_| !told_by_batch) {
        let file = disk.display(&name);
        if let Some(wanted) = identity.filter(|wanted| *wanted != header.identity) {
            return Err(RecoverError::Identity { file, found: header.identity, wanted });
        }
        if header.number != id.number() {
            let (found, wanted) = (header.number, id.number());
            return Err(RecoverError::Misplaced { file, what: "segment number", found, wanted });
        }
    }
    let segment_bytes = header.map_or(file_bytes, |header| header.segment_bytes);
    Ok(SegmentScan {
        id,
        name,
        first_lsn: header.map_or(Lsn::ZERO, |header| header.first_lsn),
        segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
        header,
        told_by_batch,
        file_bytes,
    })
}

/// The header of a segment in which only a batch, at `offset`, tells salt and position. Whether it
/// is not a remnant of earlier times is seen when the segments are joined.
fn header_told_by(
    batch: &BatchHeader,
    offset: u64,
    id: SegmentId,
    file_bytes: u64,
) -> Option<SegmentHeader> {
    let first_lsn = Lsn::new(batch.lsn.get().checked_sub(offset)?);
    Some(SegmentHeader {
        identity: Identity::default(),
        number: id.number(),
        salt: batch.salt,
        first_lsn,
        segment_bytes: file_bytes.min(SEGMENT_BYTES_MAX),
    })
}

/// Gives every segment its first position and checks that they follow each other.
fn place<D: Disk>(
    reader: &Reader<'_, D>,
    segments: &mut [SegmentScan],
) -> Result<(), RecoverError> {
    // Segments with a damaged header take their place from the next one, then from the one before.
    for at in (1..segments.len()).rev() {
        let next = segments[at].first_lsn;
        let segment = &mut segments[at - 1];
        if let Some(header) = segment.header.as_mut().filter(|_| segment.told_by_batch) {
            // The file may have been cut; the log went on after its full length.
            let bytes = next.get().checked_sub(header.first_lsn.get());
            match bytes.filter(|bytes| (segment.file_bytes..=SEGMENT_BYTES_MAX).contains(bytes)) {
                Some(bytes) => (header.segment_bytes, segment.segment_bytes) = (bytes, bytes),
                None if next > Lsn::ZERO => forget_header(segment),
                None => {}
            }
        }
        if segment.header.is_none() && next > Lsn::ZERO {
            segment.first_lsn = Lsn::new(next.get().saturating_sub(segment.segment_bytes));
        }
    }
    for at in 1..segments.len() {
        let expected = segments[at - 1].first_lsn.plus(segments[at - 1].segment_bytes);
        let both = segments[at - 1].header.is_some() && segments[at].header.is_some();
        let segment = &mut segments[at];
        if segment.told_by_batch && both && segment.first_lsn != expected {
            forget_header(segment);
        }
        if segment.header.is_none() {
            segment.first_lsn = segment.first_lsn.max(expected);
        } else if both && segment.first_lsn != expected {
            return Err(RecoverError::Misplaced {
                file: reader.disk.display(&segment.name),
                what: "first position",
                found: segment.first_lsn.get(),
                wanted: expected.get(),
            });
        }
    }
    Ok(())
}

/// What the batch said cannot be.
fn forget_header(segment: &mut SegmentScan) {
    (segment.header, segment.told_by_batch, segment.first_lsn) = (None, false, Lsn::ZERO);
}

/// The batches of one segment. What stands after the last valid batch header is no span.
pub(super) fn walk(at: usize, segment: &SegmentScan, bytes: &[u8]) -> (Vec<Span>, Notes) {
    let mut notes = Notes::default();
    let span = |range: Range<u64>, kind| Span {
        segment: at,
        offset: range.start,
        end: range.end,
        lsn: segment.first_lsn.plus(range.start),
        kind,
    };
    let Some(header) = segment.header else {
        return (vec![blind(at, segment)], notes);
    };
    let mut spans: Vec<Span> = Vec::new();
    let mut hole = None;
    let mut offset = BLOCK;
    while (offset as usize) < bytes.len() {
        let lsn = segment.first_lsn.plus(offset);
        let here = &bytes[offset as usize..];
        let follows = |batch: &BatchHeader| match spans.last() {
            Some(last) if hole.is_none() => batch.prev == last.lsn,
            _ => true,
        };
        let batch = BatchHeader::decode(here, header.salt, lsn)
            .filter(|batch| offset + aligned(u64::from(batch.len)) <= segment.segment_bytes)
            .filter(follows);
        let Some(batch) = batch else {
            hole.get_or_insert(offset);
            offset += BLOCK;
            continue;
        };
        if let Some(start) = hole.take() {
            spans.push(span(start..offset, SpanKind::Hole));
        }
        let frame = Frame { salt: header.salt, lsn, len: batch.len as usize, verified: false };
        let first = notes.headers.len();
        let kind = if salvage::is_whole(here, &frame, &batch, &mut notes.headers) {
            notes.batches.push((offset, first));
            SpanKind::Whole(batch)
        } else {
            notes.headers.truncate(first);
            SpanKind::Broken(batch)
        };
        let end = offset + aligned(u64::from(batch.len));
        spans.push(span(offset..end, kind));
        offset = end;
    }
    (spans, notes)
}

/// Joins the segments: a batch names the one before it, so a segment that ends too early, or that
/// goes on with the remains of a write that was cut off, is found. `parts` are those of the
/// segments from the one at `start` on; what is before it counts as gone.
pub(super) fn link(segments: &[SegmentScan], start: usize, parts: Vec<Vec<Span>>) -> Vec<Span> {
    let used = parts.iter().rposition(|part| !part.is_empty()).map_or(0, |last| last + 1);
    let mut spans: Vec<Span> = Vec::new();
    let named = |part: &Vec<Span>| part.first()?.batch().map(|batch| batch.prev);
    let named: Vec<Option<Lsn>> = parts.iter().skip(1).map(named).chain([None]).collect();
    for ((at, mut part), next_names) in (start..).zip(parts).zip(named).take(used) {
        if part.is_empty() {
            // Later segments are in use: this one was too.
            part.push(hole_behind(segments, at, BLOCK));
        }
        let follows = |first: &BatchHeader| spans.last().is_none_or(|last| first.prev == last.lsn);
        let is_tied = part.first().and_then(Span::batch).is_some_and(follows)
            || part.last().is_some_and(|last| next_names == Some(last.lsn));
        if segments[at].told_by_batch && !is_tied {
            // What told its salt may be a remnant of a write that was cut off.
            part = vec![blind(at, &segments[at])];
        }
        if let Some(first) = part.first().and_then(Span::batch) {
            drop_remains(&mut spans, first.prev);
            let last = spans.last().filter(|last| last.batch().is_some());
            if let Some(last) = last.filter(|last| last.lsn < first.prev) {
                spans.push(hole_behind(segments, last.segment, last.end));
            }
        }
        spans.append(&mut part);
    }
    spans
}

/// A segment in which nothing can be told from anything.
fn blind(at: usize, segment: &SegmentScan) -> Span {
    let end = segment.segment_bytes.max(2 * BLOCK);
    let (offset, lsn) = (BLOCK, segment.first_lsn.plus(BLOCK));
    Span { segment: at, offset, end, lsn, kind: SpanKind::Blind }
}

/// The rest of a segment, in which something must have been.
fn hole_behind(segments: &[SegmentScan], at: usize, offset: u64) -> Span {
    let segment = &segments[at];
    Span {
        segment: at,
        offset,
        end: segment.segment_bytes.max(offset),
        lsn: segment.first_lsn.plus(offset),
        kind: SpanKind::Hole,
    }
}

/// Drops the batches after `prev`: the log went on without them.
fn drop_remains(spans: &mut Vec<Span>, prev: Lsn) {
    while spans.last().is_some_and(|span| span.batch().is_some() && span.lsn > prev) {
        spans.pop();
        // A hole is a span only because of the batch behind it.
        while spans.last().is_some_and(|span| matches!(span.kind, SpanKind::Hole)) {
            spans.pop();
        }
    }
}

/// Cuts the log at the first bad place that was in flight. What is bad before it is damage.
pub(super) fn cut<D: Disk>(survey: &mut Survey, disk: &D) -> Option<Torn> {
    let watermark = survey.watermark;
    let spans = &survey.spans;
    let in_flight = |at: usize| match spans[at].kind {
        SpanKind::Whole(_) | SpanKind::Blind => false,
        SpanKind::Broken(_) if planted(Bug::TornTailTakenForDamage) => false,
        SpanKind::Broken(_) => spans[at].lsn >= watermark || planted(Bug::DamageTakenForTornTail),
        // The last batch in a hole is named by the next batch behind it.
        SpanKind::Hole => {
            let behind = spans[at..].iter().find_map(Span::batch);
            behind.is_some_and(|batch| batch.prev >= watermark)
        }
    };
    let at = (0..spans.len()).find(|&at| in_flight(at))?;
    let home = &survey.segments[spans[at].segment];
    let dropped = spans[at..].iter().filter(|span| matches!(span.kind, SpanKind::Whole(_))).count();
    let name = disk.display(&home.name);
    let first_lsn = home.first_lsn;
    let mut offset = survey.spans[at].offset;
    survey.spans.truncate(at + 1);
    match survey.spans.last_mut() {
        // The watermark lies within the hole: its first part was acknowledged.
        Some(span) if span.lsn < watermark => {
            offset = (watermark.get() - first_lsn.get()).min(span.end);
            span.end = offset;
        }
        _ => {
            survey.spans.pop();
        }
    }
    Some(Torn { file: name, offset, batches_dropped: dropped as u64 })
}

/// Looks behind the end for remains of a write whose batch header never reached the disk.
pub(super) fn traces<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
) -> Result<Option<Torn>, RecoverError> {
    const SEARCHED_BYTES: usize = 4 * BLOCK_BYTES;
    let (last, end) = survey.spans.last().map_or((0, BLOCK), |span| (span.segment, span.end));
    for (at, offset) in [(last, end), (last + 1, BLOCK)] {
        let Some(segment) = survey.segments.get(at) else { continue };
        let Some(header) = segment.header else { continue };
        let left = segment.file_bytes.min(segment.segment_bytes).saturating_sub(offset) as usize;
        // A header may begin in the last of these places.
        let bytes = reader.peek(segment, at, offset, left.min(SEARCHED_BYTES + BLOCK_BYTES))?;
        let seed = record_seed(header.salt, segment.first_lsn.plus(offset));
        let mut places = (BATCH_HEADER_BYTES..left.min(SEARCHED_BYTES)).step_by(8);
        let is_record = |place: usize| {
            let header = RecordHeader::decode(bytes.get(place..)?, seed, place)?.0;
            (header.record_bytes() <= left - place).then_some(())
        };
        if places.any(|place| is_record(place).is_some()) {
            let file = reader.disk.display(&segment.name);
            return Ok(Some(Torn { file, offset, batches_dropped: 0 }));
        }
    }
    Ok(None)
}
