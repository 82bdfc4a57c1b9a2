//! Second step: which groups lost something.
//!
//! Mostly the next batch tells what stood in a damaged place; then nothing is lost but the contents
//! of entries, values and states. If it does not: every record carries the number of records its
//! group had before it. A place where records are lost, nobody knows whose, therefore harms only
//! the groups whose numbers have a gap there, and those that never wrote again.

use std::collections::BTreeMap;

use coracle_raft::{Bug, EntryKind, GroupId, LogIndex, LogPosition, planted};

use super::report::{Damage, DamageKind, LostEntry, RecoveryReport};
use super::restore::{Restorations, Restored};
use super::salvage::{Frame, Piece, pieces};
use super::scan::{Reader, Span, SpanKind, Survey};
use crate::format::{Lsn, RecordHeader, RecordKind};
use crate::segment::SegmentId;
use crate::{Disk, RecoverError};

/// What the log proves about its groups.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) groups: BTreeMap<GroupId, GroupEvidence>,
    /// Places where records of unknown groups were lost, in log order.
    pub(crate) events: Vec<Loss>,
    /// What stood in damaged spans, as far as that is known.
    pub(crate) restored: Restorations,
    records: u64,
}

/// What the log proves about one group.
#[derive(Debug, Default)]
pub(crate) struct GroupEvidence {
    /// Number of its newest record.
    pub(crate) seq: u64,
    /// Where that stands.
    last_lsn: Lsn,
    /// Its newest base.
    pub(crate) base: Option<LogPosition>,
    /// Entries before this were overwritten, as far as they are after the base: the entries that
    /// replaced them are at or before it and are not handed out.
    pub(crate) entries_from: Lsn,
    /// Its newest entry, and where consecutive entries start, as far as later ones did not
    /// overwrite them.
    last: LogIndex,
    runs: Vec<Run>,
    /// What stands before this is void.
    pub(crate) void_before: Lsn,
    /// What it lost for good.
    pub(crate) losses: Vec<Loss>,
    /// Entries whose contents are lost.
    lost_entries: Vec<LostEntry>,
    healed: u64,
}

/// Consecutive entries, and where the first one stands.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: LogIndex,
    lsn: Lsn,
}

/// One loss.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) lsn: Lsn,
    pub(crate) segment: SegmentId,
    damage: Damage,
}

impl GroupEvidence {
    /// Where the first loss is, if there is one.
    pub(crate) fn first_loss(&self) -> Option<&Loss> {
        self.losses.iter().min_by_key(|loss| loss.lsn)
    }
}

/// Walks over everything that is kept.
pub(crate) fn gather<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    restored: Restorations,
    report: &mut RecoveryReport,
) -> Result<Evidence, RecoverError> {
    let mut evidence = Evidence::default();
    for (at, span) in survey.spans.iter().enumerate() {
        let segment = &survey.segments[span.segment];
        let file = reader.disk.display(&segment.name);
        let loss_at = |offset: u64, kind| Loss {
            lsn: segment.first_lsn.plus(offset),
            segment: segment.id,
            damage: Damage { file: file.clone(), offset, kind },
        };
        if let Some(records) = restored.of_span(at) {
            report.restored += u64::from(!matches!(span.kind, SpanKind::Whole(_)));
            for Restored { header, segment, batch, lsn, is_found, is_whole } in records {
                let home = &survey.segments[*segment];
                let (kind, offset) = match is_found {
                    true => (DamageKind::Payload, batch + u64::from(header.offset)),
                    false => (DamageKind::Batch, span.offset),
                };
                let loss = || Loss {
                    lsn: *lsn,
                    segment: home.id,
                    damage: Damage { file: reader.disk.display(&home.name), offset, kind },
                };
                evidence.record(header, *is_whole, *lsn, &loss);
            }
            continue;
        }
        match span.kind {
            SpanKind::Blind => {
                evidence.events.push(loss_at(0, DamageKind::Segment));
                continue;
            }
            SpanKind::Hole => evidence.events.push(loss_at(span.offset, DamageKind::Batch)),
            SpanKind::Whole(_) | SpanKind::Broken(_) => {}
        }
        let record = |evidence: &mut Evidence, header: &RecordHeader, payload_ok| {
            let offset = span.offset + u64::from(header.offset);
            let kind = if payload_ok { DamageKind::Missing } else { DamageKind::Payload };
            let lsn = segment.first_lsn.plus(offset);
            evidence.record(header, payload_ok, lsn, &|| loss_at(offset, kind));
        };
        if let Some(headers) = survey.noted(span) {
            headers.iter().for_each(|header| record(&mut evidence, header, true));
            continue;
        }
        each_piece(reader, survey, span, &mut |piece| match piece {
            Piece::Record { header, payload_ok, .. } => record(&mut evidence, &header, payload_ok),
            Piece::Lost(range) => {
                // In a hole the loss is known already.
                if span.batch().is_some() {
                    let offset = span.offset + range.start as u64;
                    evidence.events.push(loss_at(offset, DamageKind::Records));
                }
            }
        })?;
    }
    evidence.finish(report);
    evidence.restored = restored;
    Ok(evidence)
}

/// The records in a span that can be trusted, and the bytes in which there are none.
pub(crate) fn each_piece<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    span: &Span,
    each: &mut dyn FnMut(Piece<'_>),
) -> Result<(), RecoverError> {
    let segment = &survey.segments[span.segment];
    let Some(header) = segment.header else { return Ok(()) };
    let (len, verified) = match span.kind {
        SpanKind::Whole(batch) => (batch.len as usize, true),
        SpanKind::Broken(batch) => (batch.len as usize, false),
        SpanKind::Hole | SpanKind::Blind => ((span.end - span.offset) as usize, false),
    };
    let bytes = reader.load(&survey.segments, span.segment)?;
    let Some(bytes) = bytes.get(span.offset as usize..) else {
        // The file ends before the place where a batch must be.
        each(Piece::Lost(0..len));
        return Ok(());
    };
    let frame = Frame { salt: header.salt, lsn: span.lsn, len, verified };
    pieces(bytes, &frame, each);
    Ok(())
}

impl Evidence {
    fn record(
        &mut self,
        header: &RecordHeader,
        payload_ok: bool,
        lsn: Lsn,
        loss: &dyn Fn() -> Loss,
    ) {
        if header.kind.is_of_no_group() {
            return;
        }
        self.records += u64::from(payload_ok);
        let group = self.groups.entry(header.group).or_default();
        let first = group.seq == 0;
        let event = first_event_after(&self.events, group.last_lsn);
        let follows = header.seq == group.seq + 1;
        if !follows && (!first || event.is_some()) {
            group.losses.push(event.cloned().unwrap_or_else(|| {
                let mut missing = loss();
                missing.damage.kind = DamageKind::Missing;
                missing
            }));
        }
        group.seq = header.seq;
        group.last_lsn = lsn;
        if let RecordKind::Entry { position, .. } = header.kind {
            group.entry(position.index, lsn);
        }
        if !payload_ok {
            return group.content_lost(header.kind, loss());
        }
        match header.kind {
            RecordKind::Purge { base, restart } => group.purged(base, restart, lsn),
            RecordKind::Reset => {
                group.healed += (group.losses.len() + group.lost_entries.len()) as u64;
                group.losses.clear();
                group.lost_entries.clear();
                group.runs.clear();
                group.last = LogIndex::ZERO;
                group.base = None;
                group.void_before = lsn;
            }
            RecordKind::Entry { .. }
            | RecordKind::HardState(_)
            | RecordKind::State
            | RecordKind::Value
            | RecordKind::LogStart { .. }
            | RecordKind::Echo { .. } => {}
        }
    }

    /// Groups that wrote nothing after a loss of unknown owners may be its owners.
    fn finish(&mut self, report: &mut RecoveryReport) {
        report.records = self.records;
        for (&id, group) in &mut self.groups {
            if let Some(event) = first_event_after(&self.events, group.last_lsn) {
                group.losses.push(event.clone());
            }
            report.groups.push(id);
            report.healed += group.healed;
            if !group.losses.is_empty() && !planted(Bug::DamageNotReported) {
                let mut losses = group.losses.clone();
                losses.sort_by_key(|loss| loss.lsn);
                let damages = losses.into_iter().map(|loss| loss.damage).collect();
                report.damaged.insert(id, damages);
            } else if !group.lost_entries.is_empty() {
                report.lost_entries.insert(id, group.lost_entries.clone());
            }
        }
        report.unattributed = self.events.iter().map(|loss| loss.damage.clone()).collect();
    }
}

fn first_event_after(events: &[Loss], lsn: Lsn) -> Option<&Loss> {
    // Nearly always there is none; then this is one comparison. No record stands where an event
    // is, but a group without records is at 0, and the very first segment may be lost from there.
    events.last().filter(|event| event.lsn >= lsn)?;
    events.iter().find(|event| event.lsn >= lsn)
}

impl GroupEvidence {
    /// An entry replaces what the log held at its index and after it.
    fn entry(&mut self, index: LogIndex, lsn: Lsn) {
        while self.runs.last().is_some_and(|run| run.first >= index) {
            self.runs.pop();
        }
        if index != self.last.next() || self.runs.is_empty() {
            self.runs.push(Run { first: index, lsn });
        }
        self.last = index;
        self.heal(|lost| lost < index);
    }

    /// A record is known to have stood here, but not its content.
    fn content_lost(&mut self, kind: RecordKind, loss: Loss) {
        match kind {
            // The others have it, or will know that it never counted.
            RecordKind::Entry { kind: EntryKind::Command | EntryKind::Empty, position } => {
                self.lost_entries.push(LostEntry { position, damage: loss.damage });
            }
            // Found and repaired by who needs it.
            RecordKind::Value => {}
            _ => self.losses.push(loss),
        }
    }

    /// Only these of the lost entries matter.
    fn heal(&mut self, matters: impl Fn(LogIndex) -> bool) {
        let before = self.lost_entries.len();
        self.lost_entries.retain(|lost| matters(lost.position.index));
        self.healed += (before - self.lost_entries.len()) as u64;
    }

    fn purged(&mut self, base: LogPosition, restart: bool, lsn: Lsn) {
        if self.base.is_some_and(|old| old.index >= base.index) {
            // Written again at the start of a segment.
            return;
        }
        self.base = Some(base);
        if restart {
            self.entries_from = lsn;
            self.runs.clear();
            self.last = base.index;
            self.heal(|_| false);
        }
        let after = self.runs.partition_point(|run| run.first <= base.index);
        if let Some(home) = after.checked_sub(1) {
            // Between the start of the run that holds the base and the base itself, only
            // entries of that run were written.
            self.entries_from = self.entries_from.max(self.runs[home].lsn);
            self.runs.drain(..home);
        }
        self.heal(|lost| lost > base.index);
    }
}
