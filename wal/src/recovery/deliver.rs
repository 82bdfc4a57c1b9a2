//! Third pass: the records, in log order.

use coracle_raft::{BatchSeq, GroupId, HardState, Place, Record};

use super::evidence::{Evidence, GroupEvidence, each_piece};
use super::salvage::Piece;
use super::scan::{Reader, Span, Survey};
use crate::format::{Lsn, RecordHeader, RecordKind};
use crate::groups::{Group, GroupMap, Spot};
use crate::segment::SegmentId;
use crate::{Disk, RecoverError};

/// What the writer goes on with.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    pub(crate) groups: GroupMap<Group>,
    /// The segment of each first use by a group.
    pub(crate) uses: Vec<SegmentId>,
}

/// Calls `visit` with every record that counts, and builds the state of the groups.
pub(crate) fn deliver<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    evidence: &Evidence,
    visit: &mut dyn FnMut(Place, Record),
) -> Result<Delivered, RecoverError> {
    let mut delivered = Delivered::default();
    for span in &survey.spans {
        each_piece(reader, survey, span, &mut |piece| {
            let Piece::Record { header, payload, payload_ok: true } = piece else { return };
            if matches!(header.kind, RecordKind::LogStart { .. }) {
                return;
            }
            let Some(proof) = evidence.groups.get(&header.group) else { return };
            delivered.record(&header, payload, (survey, span), proof, visit);
        })?;
    }
    Ok(delivered)
}

impl Delivered {
    fn record(
        &mut self,
        header: &RecordHeader,
        payload: &[u8],
        (survey, span): (&Survey, &Span),
        proof: &GroupEvidence,
        visit: &mut dyn FnMut(Place, Record),
    ) {
        let spot = Spot {
            segment: survey.segments[span.segment].id,
            batch: span.offset as u32,
            offset: header.offset,
            len: header.record_bytes() as u32,
            lsn: span.lsn.plus(u64::from(header.offset)),
        };
        if spot.lsn < proof.void_before {
            return;
        }
        let group =
            self.groups.entry(header.group).or_insert_with(|| begin(header.group, proof, visit));
        if !counts(header, spot.lsn, proof, group.hard_state) {
            return;
        }
        let newly_used = match header.kind {
            RecordKind::Entry { position, .. } => group.entry_put(position, spot),
            RecordKind::State => group.state_put(spot, BatchSeq::default()),
            RecordKind::HardState(hard_state) => {
                group.hard_state = Some(hard_state);
                false
            }
            RecordKind::Value
            | RecordKind::Purge { .. }
            | RecordKind::Reset
            | RecordKind::LogStart { .. } => false,
        };
        if newly_used {
            self.uses.push(spot.segment);
        }
        if let Some(record) = header.to_record(payload) {
            visit(spot.place(), record);
        }
    }
}

/// A group's log starts after its newest base, whatever stood in it before: entries at or before
/// it may lie in segments that are gone.
fn begin(group: GroupId, proof: &GroupEvidence, visit: &mut dyn FnMut(Place, Record)) -> Group {
    let mut state = Group::default();
    if let Some(base) = proof.base {
        state.purge_put(base);
        state.purge_durable(base.index);
        visit(Place::default(), Record::Purge { group, base });
    }
    state
}

fn counts(
    header: &RecordHeader,
    lsn: Lsn,
    proof: &GroupEvidence,
    hard_state: Option<HardState>,
) -> bool {
    let before_loss = proof.first_loss().is_none_or(|loss| lsn < loss.lsn);
    match header.kind {
        RecordKind::Entry { position, .. } => {
            let skipped = proof.skipped.iter().any(|&(from, to)| lsn > from && lsn < to);
            let purged = proof.base.is_some_and(|base| position.index <= base.index);
            before_loss && !skipped && !purged && lsn >= proof.entries_from
        }
        RecordKind::State | RecordKind::Value => before_loss,
        // Written again at each segment start, mostly unchanged.
        RecordKind::HardState(newer) => hard_state != Some(newer),
        RecordKind::Purge { .. } | RecordKind::Reset | RecordKind::LogStart { .. } => false,
    }
}
