//! Putting the files in order, and the writer that goes on from there.

use super::deliver::Delivered;
use super::evidence::Evidence;
use super::report::RecoveryReport;
use super::scan::{SegmentScan, Survey};
use crate::format::{Lsn, aligned};
use crate::segment::{SegmentId, UNFINISHED_SUFFIX};
use crate::wal::{Retired, Segment};
use crate::{Disk, Options, RecoverError, Wal};

/// Added to the record number of a group that lost records: the gap stays visible in the log, so
/// that later records do not make it look whole.
const SEQ_JUMP: u64 = 1 << 32;

/// Removes what is behind the end of the log, then opens the rest for writing.
pub(crate) fn open<D: Disk>(
    disk: D,
    options: Options,
    survey: &Survey,
    delivered: Delivered,
    evidence: &Evidence,
    report: &mut RecoveryReport,
) -> Result<Wal<D>, RecoverError> {
    let kept = survey.spans.last().map_or(0, |span| span.segment + 1);
    let next =
        match (kept.checked_sub(1).map(|last| &survey.segments[last]), survey.segments.first()) {
            // A segment without a valid header may be shorter than what it stands for.
            (Some(last), _) => {
                let end = last.first_lsn.plus(last.segment_bytes).max(report.end);
                (last.id.number() + 1, Lsn::new(aligned(end.get())))
            }
            (None, Some(unused)) => (unused.id.number(), unused.first_lsn),
            (None, None) => (1, Lsn::ZERO),
        };
    let mut wal = Wal::new(disk, options, next.0, next.1);
    clear(&mut wal, survey, kept, report)?;
    for (at, scan) in survey.segments[..kept].iter().enumerate() {
        let last = survey.spans.last().filter(|span| span.segment == at);
        let segment = keep(&wal, scan, last.map(|span| span.end))?;
        wal.segments.push_back(segment);
    }
    if kept > 0 {
        wal.log_start = survey.segments[survey.log_start].id;
    }
    wal.active = wal.segments.back().map(|segment| SegmentId::new(segment.header.number));
    // Nothing is added to an old segment: what may be left there of a write that was cut off
    // can never meet a new one under the same salt.
    wal.next_offset = wal.segments.back().map_or(0, |segment| segment.header.segment_bytes);
    wal.durable = report.end;
    wal.data_end = if survey.spans.is_empty() { Lsn::ZERO } else { report.end };
    wal.recorded = report.watermark;
    let batches = survey.spans.iter().rev().filter(|span| span.batch().is_some());
    wal.prev = batches.map(|span| span.lsn).next().unwrap_or_default();
    adopt(&mut wal, delivered, evidence);
    Ok(wal)
}

fn io<D: Disk>(
    disk: &D,
    name: &str,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> RecoverError {
    let file = disk.display(name);
    move |source| RecoverError::Io { file, action, source }
}

/// Takes unused segments out of the log and removes unfinished files.
fn clear<D: Disk>(
    wal: &mut Wal<D>,
    survey: &Survey,
    kept: usize,
    report: &mut RecoveryReport,
) -> Result<(), RecoverError> {
    let disk = wal.disk.clone();
    for name in &survey.unfinished {
        disk.remove(name).map_err(io(&disk, name, "remove"))?;
        report.cleared_files.push(name.clone());
    }
    // From the last one down, each for good before the next: a crash in between leaves no gap.
    for scan in survey.segments[kept..].iter().rev() {
        let name = format!("old-{}{UNFINISHED_SUFFIX}", scan.id.number());
        disk.rename(&scan.name, &name).map_err(io(&disk, &scan.name, "rename"))?;
        disk.sync_dir().map_err(io(&disk, &name, "sync the directory of"))?;
        report.cleared_files.push(scan.name.clone());
        wal.retired.push_front(Retired {
            name,
            segment: None,
            _file: None,
            file_bytes: scan.file_bytes,
            reusable: scan.file_bytes == wal.options.segment_bytes,
        });
    }
    disk.sync_dir().map_err(io(&disk, "", "sync"))
}

/// Opens a segment that stays. The last one is cut to what counts.
fn keep<D: Disk>(
    wal: &Wal<D>,
    scan: &SegmentScan,
    end: Option<u64>,
) -> Result<Segment<D::File>, RecoverError> {
    let disk = &wal.disk;
    let mut file_bytes = scan.file_bytes;
    if let Some(end) = end.filter(|&end| scan.header.is_some() && end < file_bytes) {
        disk.truncate(&scan.name, end).map_err(io(disk, &scan.name, "truncate"))?;
        failpoint!("wal_truncate_suffix");
        file_bytes = end;
    }
    let file = disk.open(&scan.name).map_err(io(disk, &scan.name, "open"))?;
    // Of a segment without a valid header nothing is ever read; only its place matters.
    let header = scan.header.unwrap_or(crate::format::SegmentHeader {
        identity: wal.options.identity,
        number: scan.id.number(),
        salt: 0,
        first_lsn: scan.first_lsn,
        segment_bytes: scan.segment_bytes,
    });
    let readable = scan.header.is_some();
    Ok(Segment { header, file: Some(file), file_bytes, groups: 0, readable })
}

/// Takes over what the log says about the groups.
fn adopt<D: Disk>(wal: &mut Wal<D>, delivered: Delivered, evidence: &Evidence) {
    wal.groups = delivered.groups;
    for segment in delivered.uses {
        wal.segment_mut(segment).expect("a record lies in a kept segment").groups += 1;
    }
    for (&id, proof) in &evidence.groups {
        let group = wal.groups.entry(id).or_default();
        group.seq = proof.seq;
        group.pin = proof.losses.iter().map(|loss| loss.segment).min();
        if !proof.losses.is_empty() {
            group.seq += SEQ_JUMP;
        }
    }
    if !evidence.events.is_empty() {
        // A group of which nothing is left must not look new in the log.
        wal.first_seq = SEQ_JUMP;
    }
}
