//! Where the log proper starts, and what is in it.
//!
//! Each segment says as its first record where the log proper started when the segment was begun.
//! The newest such record that belongs to the log counts. It is looked for from the newest segment
//! down, so that nothing is read before the start of the log proper but headers.

use super::report::{Damage, DamageKind, RecoveryReport};
use super::scan::{Notes, Reader, SegmentScan, Span, Survey, cut, link, list, traces, walk};
use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, Lsn, RecordHeader, RecordKind, record_seed};
use crate::{Disk, Identity, RecoverError};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What was found in one segment.
#[derive(Clone, Debug)]
struct Walked {
    spans: Vec<Span>,
    notes: Option<Notes>,
    /// The segment that it names as the first one of the log proper.
    log_start: Option<u64>,
}

/// Finds all segments, and the log in them.
pub(crate) fn survey<D: Disk>(
    reader: &mut Reader<'_, D>,
    identity: Option<Identity>,
    report: &mut RecoveryReport,
) -> Result<Survey, RecoverError> {
    let mut survey = list(reader, identity)?;
    let mut walked = vec![None; survey.segments.len()];
    // Only segments before this one are asked.
    let mut asked = survey.segments.len();
    loop {
        let teller = find_start(reader, &mut survey, asked, &mut walked)?;
        let mut parts = Vec::new();
        for at in survey.log_start..survey.segments.len() {
            parts.push(walked_at(reader, &survey.segments, at, &mut walked)?.spans.clone());
        }
        survey.spans = link(&survey.segments, survey.log_start, parts);
        let durable =
            survey.spans.iter().filter_map(|span| span.batch().map(|batch| batch.durable));
        survey.watermark = durable.max().unwrap_or_default();
        report.torn = cut(&mut survey, reader.disk);
        // What stands in a write that never came to its end was not said.
        let said = |at| survey.spans.iter().any(|span| span.segment == at && span.offset == BLOCK);
        match teller {
            Some(at) if !said(at) => asked = at,
            _ => break,
        }
    }
    let noted = walked.into_iter().map(|walked| walked?.notes).enumerate();
    survey.notes = noted.filter_map(|(at, notes)| Some((at, notes?))).collect();
    report.watermark = survey.watermark;
    if report.torn.is_none() {
        report.torn = traces(reader, &survey)?;
    }
    sum_up(reader, &survey, report);
    Ok(survey)
}

/// Sets the start of the log proper to what the newest of the segments before `asked` says that
/// says it. Returns which one that is; if there is none, the log starts at its oldest segment.
fn find_start<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &mut Survey,
    asked: usize,
    walked: &mut [Option<Walked>],
) -> Result<Option<usize>, RecoverError> {
    survey.log_start = 0;
    for at in (0..asked).rev() {
        let segments = &survey.segments;
        let Some(number) = walked_at(reader, segments, at, walked)?.log_start else { continue };
        // It may be gone since.
        let start = number.saturating_sub(segments[0].id.number());
        if start <= at as u64 {
            survey.log_start = start as usize;
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn walked_at<'a, D: Disk>(
    reader: &mut Reader<'_, D>,
    segments: &[SegmentScan],
    at: usize,
    walked: &'a mut [Option<Walked>],
) -> Result<&'a Walked, RecoverError> {
    if walked[at].is_none() {
        let bytes = reader.load(segments, at)?;
        let (spans, notes) = walk(at, &segments[at], bytes);
        let log_start = told_start(&segments[at], bytes);
        walked[at] = Some(Walked { spans, notes: reader.keep(notes), log_start });
    }
    Ok(walked[at].as_ref().expect("it was walked just now"))
}

/// What the first record of the segment says, if it is whole.
fn told_start(segment: &SegmentScan, bytes: &[u8]) -> Option<u64> {
    let seed = record_seed(segment.header?.salt, segment.first_lsn.plus(BLOCK));
    let record = bytes.get(BLOCK_BYTES + BATCH_HEADER_BYTES..)?;
    match RecordHeader::decode(record, seed, BATCH_HEADER_BYTES)?.0.kind {
        RecordKind::LogStart { segment } => Some(segment),
        _ => None,
    }
}

fn sum_up<D: Disk>(reader: &Reader<'_, D>, survey: &Survey, report: &mut RecoveryReport) {
    let last = survey.spans.last();
    let start = survey.segments.first().map(|segment| segment.first_lsn.plus(BLOCK));
    report.end = last
        .map(|span| survey.segments[span.segment].first_lsn.plus(span.end))
        .or(start)
        .unwrap_or(Lsn::ZERO);
    report.segments = last.map_or(0, |span| span.segment + 1);
    report.value_segments = survey.log_start;
    let told = survey.segments[..report.segments].iter().filter(|segment| segment.told_by_batch);
    report.headers_restored = told.count() as u64;
    report.batches = survey.spans.iter().filter(|span| span.batch().is_some()).count() as u64;
    report.bytes = survey.spans.iter().map(|span| span.end - span.offset).sum();
    let values_only = &survey.segments[..survey.log_start];
    let unreadable = values_only.iter().filter(|segment| segment.header.is_none());
    report.values_damaged = unreadable
        .map(|segment| Damage {
            file: reader.disk.display(&segment.name),
            offset: 0,
            kind: DamageKind::Segment,
        })
        .collect();
}
