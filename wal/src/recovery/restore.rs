//! What stood in damaged places: from what can still be read there, and from the echo in the batch
//! behind them.

use std::collections::{BTreeMap, BTreeSet};

use coracle_raft::{EntryKind, GroupId};

use super::evidence::each_piece;
use super::salvage::Piece;
use super::scan::{Reader, Span, SpanKind, Survey, walk};
use crate::echo::{Echoes, Part, decode};
use crate::format::{BATCH_HEADER_BYTES, Lsn, RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::value::self_located;
use crate::{Disk, RecoverError};

/// A record that stood in a damaged place, or between two of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    /// If it was not found, its offset is 0.
    pub(crate) header: RecordHeader,
    /// Index of the segment.
    pub(crate) segment: usize,
    /// Where its batch starts in the segment. If it was not found, where the damage begins.
    pub(crate) batch: u64,
    /// Where it stood, or close behind the one of its group before it.
    pub(crate) lsn: Lsn,
    pub(crate) is_found: bool,
    /// All of it is known: its content was read, or it has none.
    pub(crate) is_whole: bool,
}

/// The spans of which all records are known, damaged or in line with damaged ones; and the records
/// of each such line, by the index of its first span.
#[derive(Debug, Default)]
pub(crate) struct Restorations {
    pub(crate) records: BTreeMap<usize, Vec<Restored>>,
    spans: BTreeSet<usize>,
}

impl Restorations {
    /// The records that stand for a span, if its own do not count.
    pub(crate) fn of_span(&self, span: usize) -> Option<&[Restored]> {
        let records = self.records.get(&span).map(Vec::as_slice);
        self.spans.contains(&span).then(|| records.unwrap_or_default())
    }
}

const fn is_damaged(span: &Span) -> bool {
    matches!(span.kind, SpanKind::Broken(_) | SpanKind::Hole)
}

/// Finds out what stood in damaged spans, as far as a later batch tells. Cuts holes where what is
/// told begins.
pub(crate) fn restore<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &mut Survey,
) -> Result<Restorations, RecoverError> {
    let mut restored = Restorations::default();
    let mut end = 0;
    while let Some(more) = survey.spans[end..].iter().position(is_damaged) {
        let first = end + more;
        end = first + survey.spans[first..].iter().take_while(|span| is_damaged(span)).count();
        // From the last one on, since what is found there tells what comes before.
        let mut known = end;
        while known > first {
            let Some(behind) = survey.spans.get(known).cloned() else { break };
            let Some((of, parts)) = told(reader, survey, &behind)? else { break };
            let line = &mut survey.spans[first..known];
            let from = first + line.iter().take_while(|span| span.lsn < of).count();
            if from > first
                && let Some(tail) = split(&mut survey.spans[from - 1], of)
            {
                survey.spans.insert(from, tail);
                (known, end) = (known + 1, end + 1);
            }
            if from == known {
                break;
            }
            let records = merged(reader, survey, &restored, from..known, of, &parts)?;
            restored.spans.extend(from..known);
            restored.records.insert(from, records);
            known = from;
        }
    }
    Ok(restored)
}

/// Cuts a hole where the batch at `lsn` starts, and returns that part.
fn split(span: &mut Span, lsn: Lsn) -> Option<Span> {
    let offset = span.offset + lsn.get().checked_sub(span.lsn.get())?;
    if !matches!(span.kind, SpanKind::Hole) || offset >= span.end {
        return None;
    }
    let tail = Span { offset, lsn, ..span.clone() };
    span.end = offset;
    Some(tail)
}

/// From where on the echo in this batch tells what stands in the log, and what that is.
fn told<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    span: &Span,
) -> Result<Option<(Lsn, Vec<Part>)>, RecoverError> {
    let records_max = survey.segments[span.segment].segment_bytes as usize / RECORD_HEADER_BYTES;
    let mut found = None;
    each_piece(reader, survey, span, &mut |piece| {
        let Piece::Record { header, payload, payload_ok: true } = piece else { return };
        if let RecordKind::Echo { of, whole: true } = header.kind {
            found = decode(payload, records_max).map(|parts| (of, parts));
        }
    })?;
    Ok(found)
}

/// The records of a line of spans, those found among those told from `of` on; each group's in
/// their order.
fn merged<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    restored: &Restorations,
    line: std::ops::Range<usize>,
    of: Lsn,
    parts: &[Part],
) -> Result<Vec<Restored>, RecoverError> {
    let mut found: BTreeMap<(GroupId, u64), Restored> = BTreeMap::new();
    for at in line.clone() {
        let mut take = |record: Restored| {
            found.insert((record.header.group, record.header.seq), record);
        };
        salvage(reader, survey, &survey.spans[at], &mut take)?;
    }
    let before = told_before(reader, survey, restored, line.start, of)?;
    let start = &survey.spans[line.start];
    let mut newest: BTreeMap<GroupId, (Lsn, u64)> = BTreeMap::new();
    let mut records = Vec::new();
    for told in parts.iter().flat_map(|part| part.headers()) {
        let name = (told.group, told.seq);
        if before.get(&told.group).is_some_and(|&newest| told.seq <= newest) {
            continue;
        }
        let (lsn, behind) = newest.entry(told.group).or_insert((start.lsn, 0));
        if let Some(record) = found.get(&name).filter(|record| record.header.kind == told.kind) {
            (*lsn, *behind) = (record.lsn, 0);
            records.push(*record);
            continue;
        }
        // Records start at multiples of 8, and none has less than 48 bytes.
        *behind = (*behind + 1).min(RECORD_HEADER_BYTES as u64 - 1);
        let (segment, batch, lsn) = (start.segment, start.offset, lsn.plus(*behind));
        let (is_found, is_whole) = (false, !has_content(told.kind));
        records.push(Restored { header: told, segment, batch, lsn, is_found, is_whole });
    }
    Ok(records)
}

/// What is told from `of` on begins before the line that starts with span `line`: the newest record
/// of each group there.
fn told_before<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    restored: &Restorations,
    line: usize,
    of: Lsn,
) -> Result<BTreeMap<GroupId, u64>, RecoverError> {
    let mut before: BTreeMap<GroupId, u64> = BTreeMap::new();
    let mut seen = |header: &RecordHeader| {
        let newest = before.entry(header.group).or_default();
        *newest = header.seq.max(*newest);
    };
    // The records of a line stand at its first span, where what is told may not begin.
    let in_line = |at: usize| restored.spans.contains(&at) && restored.spans.contains(&(at + 1));
    let earlier = survey.spans[..line].iter().enumerate().rev();
    for (at, span) in earlier.take_while(|&(at, span)| span.lsn >= of || in_line(at)) {
        match restored.of_span(at) {
            Some(records) => records.iter().for_each(|record| seen(&record.header)),
            None => each_header(reader, survey, span, &mut seen)?,
        }
    }
    // It may begin before the log proper.
    for at in (0..survey.log_start).rev() {
        let segment = &survey.segments[at];
        if segment.first_lsn.plus(segment.segment_bytes) <= of {
            break;
        }
        let (spans, _) = walk(at, segment, reader.load(&survey.segments, at)?);
        for span in spans.iter().filter(|span| span.lsn >= of) {
            each_header(reader, survey, span, &mut seen)?;
        }
    }
    Ok(before)
}

fn each_header<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    span: &Span,
    each: &mut dyn FnMut(&RecordHeader),
) -> Result<(), RecoverError> {
    each_piece(reader, survey, span, &mut |piece| {
        if let Piece::Record { header, .. } = piece {
            each(&header);
        }
    })
}

/// Finds the records of a span by what each says of its own place.
fn salvage<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    span: &Span,
    take: &mut dyn FnMut(Restored),
) -> Result<(), RecoverError> {
    let (segment, home) = (span.segment, &survey.segments[span.segment]);
    let Some(segment_header) = home.header else { return Ok(()) };
    let bytes = reader.load(&survey.segments, segment)?;
    let mut at = span.offset + BATCH_HEADER_BYTES as u64;
    while at < span.end {
        let record = bytes.get(at as usize..).unwrap_or_default();
        let Some(header) = self_located(&segment_header, at, record) else {
            at += 8;
            continue;
        };
        let payload = &record[RECORD_HEADER_BYTES..];
        let payload = payload.get(..header.payload_len as usize);
        let is_whole = payload.is_some_and(|bytes| crc32c::crc32c(bytes) == header.payload_crc);
        let (batch, lsn) = (at - u64::from(header.offset), home.first_lsn.plus(at));
        take(Restored { header, segment, batch, lsn, is_found: true, is_whole });
        at += header.record_bytes() as u64;
    }
    Ok(())
}

const fn has_content(kind: RecordKind) -> bool {
    match kind {
        RecordKind::Entry { kind: EntryKind::Command | EntryKind::Membership, .. }
        | RecordKind::State
        | RecordKind::Value => true,
        RecordKind::Entry { kind: EntryKind::Empty, .. }
        | RecordKind::HardState(_)
        | RecordKind::Purge { .. }
        | RecordKind::Reset
        | RecordKind::LogStart { .. }
        | RecordKind::Echo { .. } => false,
    }
}

/// What stands in the last batch of the log, for the one that will be written behind it.
pub(super) fn last_batch<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    parts_max: usize,
) -> Result<Echoes, RecoverError> {
    let mut echoes = Echoes::new(parts_max);
    let Some(span) = survey.spans.last() else { return Ok(echoes) };
    if matches!(span.kind, SpanKind::Whole(_)) {
        each_header(reader, survey, span, &mut |header| echoes.push(header))?;
    } else {
        echoes.give_up();
    }
    echoes.close(span.lsn, span.lsn.plus(span.end - span.offset));
    Ok(echoes)
}
