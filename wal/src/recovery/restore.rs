//! What stood in a damaged place: from what can still be read there, and from the echo in the batch
//! behind it.

use std::collections::BTreeMap;

use coracle_raft::{EntryKind, GroupId};

use super::evidence::each_piece;
use super::salvage::Piece;
use super::scan::{Reader, Span, SpanKind, Survey};
use crate::echo::{Echo, Part, decode};
use crate::format::{BATCH_HEADER_BYTES, Lsn, RECORD_HEADER_BYTES, RecordHeader, RecordKind};
use crate::{Disk, RecoverError};

/// A record that stood in a damaged place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    /// If it was not found, its offset is one in the damaged place at which no record can be read,
    /// and which is no other record's.
    pub(crate) header: RecordHeader,
    pub(crate) is_found: bool,
    /// All of it is known: its content was read, or it has none.
    pub(crate) whole: bool,
}

/// All records of the damaged spans, by the index of the span; those are missing of which the next
/// batch does not tell what stood there. Cuts holes of several batches into one span for each.
pub(crate) fn restore<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &mut Survey,
) -> Result<BTreeMap<usize, Vec<Restored>>, RecoverError> {
    let mut restored = BTreeMap::new();
    // From the last one on, since what is found in a hole tells what comes before.
    let mut at = survey.spans.len();
    while at > 0 {
        at -= 1;
        if matches!(survey.spans[at].kind, SpanKind::Whole(_) | SpanKind::Blind) {
            continue;
        }
        let Some(behind) = survey.spans.get(at + 1).cloned() else { continue };
        let Some((of, parts)) = told(reader, survey, &behind)? else { continue };
        let span = &mut survey.spans[at];
        if matches!(span.kind, SpanKind::Hole) && of > span.lsn {
            let Some(last) = split(span, of) else { continue };
            survey.spans.insert(at + 1, last);
            restored = restored.into_iter().map(|(span, all)| (span + 1, all)).collect();
            at += 1;
        }
        let span = survey.spans[at].clone();
        if span.lsn == of {
            restored.insert(at, merged(reader, survey, &span, &parts)?);
        }
    }
    Ok(restored)
}

/// Cuts a hole where its last batch starts, and returns that one.
fn split(span: &mut Span, last: Lsn) -> Option<Span> {
    let offset = span.offset + last.get().checked_sub(span.lsn.get())?;
    if offset >= span.end {
        return None;
    }
    let tail = Span { offset, lsn: last, ..span.clone() };
    span.end = offset;
    Some(tail)
}

/// Which batch the echo in this one is of, and what stands there.
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

/// The records of a span in their order, those found among those told.
fn merged<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    span: &Span,
    parts: &[Part],
) -> Result<Vec<Restored>, RecoverError> {
    let mut found: BTreeMap<(GroupId, u64), (RecordHeader, bool)> = BTreeMap::new();
    each_piece(reader, survey, span, &mut |piece| {
        if let Piece::Record { header, payload_ok, .. } = piece {
            found.insert((header.group, header.seq), (header, payload_ok));
        }
    })?;
    // Every multiple of 8 was looked at, and a record takes six of them.
    let mut free = BATCH_HEADER_BYTES as u32;
    let records = parts.iter().flat_map(|part| part.headers());
    let restored = records.map(|told| {
        let found = found.get(&(told.group, told.seq));
        if let Some(&(header, whole)) = found.filter(|(header, _)| header.kind == told.kind) {
            free = header.offset + header.record_bytes() as u32;
            return Restored { header, is_found: true, whole };
        }
        let header = RecordHeader { offset: free, ..told };
        free += 8;
        Restored { header, is_found: false, whole: !has_content(told.kind) }
    });
    Ok(restored.collect())
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
) -> Result<Echo, RecoverError> {
    let mut echo = Echo::new(parts_max);
    match survey.spans.last() {
        Some(span) if matches!(span.kind, SpanKind::Whole(_)) => {
            each_piece(reader, survey, span, &mut |piece| {
                if let Piece::Record { header, .. } = piece {
                    echo.push(&header);
                }
            })?;
        }
        Some(_) => echo.give_up(),
        None => {}
    }
    Ok(echo)
}
