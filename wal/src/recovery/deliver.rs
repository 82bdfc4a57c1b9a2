//! Third step: the records, in log order.

use coracle_raft::{BatchSeq, Bug, EntryKind, GroupId, HardState, Place, Record, planted};

use super::evidence::{Evidence, GroupEvidence, each_piece};
use super::restore::Restored;
use super::salvage::Piece;
use super::scan::{Reader, Survey};
use super::visit::{Brief, Visitor};
use crate::format::{Lsn, RECORD_HEADER_BYTES, RecordHeader, RecordKind};
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

/// Calls `visitor` with every record that counts, and builds the state of the groups.
pub(crate) fn deliver<D: Disk>(
    reader: &mut Reader<'_, D>,
    survey: &Survey,
    evidence: &Evidence,
    visitor: &mut dyn Visitor,
) -> Result<Delivered, RecoverError> {
    let mut delivered = Delivered::default();
    let end = survey.spans.last().map_or(Lsn::ZERO, |span| span.lsn.plus(span.end - span.offset));
    for (at, span) in survey.spans.iter().enumerate() {
        if let Some(records) = evidence.restored.of_span(at) {
            for record in records {
                let home = Home { survey, segment: record.segment, batch: record.batch, end };
                delivered.restored(reader, record, &home, evidence, visitor)?;
            }
            continue;
        }
        let home = Home { survey, segment: span.segment, batch: span.offset, end };
        if let Some(headers) = survey.noted(span) {
            for header in headers {
                let Some(spot) = delivered.place(header, &home, evidence, visitor) else {
                    continue;
                };
                if spot.len as usize > RECORD_HEADER_BYTES && home.brief(header, &spot, visitor) {
                    continue;
                }
                let payload = reload(reader, &home, header)?;
                hand_out(header, payload, &spot, visitor);
            }
            continue;
        }
        each_piece(reader, survey, span, &mut |piece| {
            let Piece::Record { header, payload, payload_ok } = piece else { return };
            if !payload_ok {
                return delivered.lost(&header, home.spot(&header), evidence, visitor);
            }
            let Some(spot) = delivered.place(&header, &home, evidence, visitor) else { return };
            if spot.len as usize == RECORD_HEADER_BYTES || !home.brief(&header, &spot, visitor) {
                hand_out(&header, payload, &spot, visitor);
            }
        })?;
    }
    Ok(delivered)
}

/// Reads the content of a record for the second time.
fn reload<'a, D: Disk>(
    reader: &'a mut Reader<'_, D>,
    home: &Home<'_>,
    header: &RecordHeader,
) -> Result<&'a [u8], RecoverError> {
    if header.payload_len == 0 {
        return Ok(&[]);
    }
    let segments = &home.survey.segments;
    let name = &segments[home.segment].name;
    let changed = || {
        let text = "it was whole a moment ago";
        std::io::Error::new(std::io::ErrorKind::InvalidData, text)
    };
    let error = reader.error("read again", name, changed());
    let bytes = reader.load(segments, home.segment)?;
    let start = home.batch as usize + header.offset as usize + RECORD_HEADER_BYTES;
    let payload = bytes.get(start..start + header.payload_len as usize);
    match payload.filter(|payload| crc32c::crc32c(payload) == header.payload_crc) {
        Some(payload) => Ok(payload),
        None => Err(error),
    }
}

fn hand_out(header: &RecordHeader, payload: &[u8], spot: &Spot, visitor: &mut dyn Visitor) {
    if let Some(record) = header.to_record(payload) {
        visitor.record(spot.place(), record);
    }
}

/// Where a batch stands.
struct Home<'a> {
    survey: &'a Survey,
    /// Index of the segment.
    segment: usize,
    /// Where the batch starts in it.
    batch: u64,
    /// The end of the log.
    end: Lsn,
}

impl Home<'_> {
    fn spot(&self, header: &RecordHeader) -> Spot {
        let segment = &self.survey.segments[self.segment];
        Spot {
            segment: segment.id,
            batch: self.batch as u32,
            offset: header.offset,
            len: header.record_bytes() as u32,
            lsn: segment.first_lsn.plus(self.batch + u64::from(header.offset)),
        }
    }

    /// Offers a record without its content. Returns whether that was enough.
    fn brief(&self, header: &RecordHeader, spot: &Spot, visitor: &mut dyn Visitor) -> bool {
        let position = match header.kind {
            RecordKind::Entry { kind: EntryKind::Command, position } => Some(position),
            RecordKind::Value => None,
            _ => return false,
        };
        visitor.brief(&Brief {
            place: spot.place(),
            group: header.group,
            position,
            payload_len: header.payload_len as usize,
            bytes_behind: self.end.get().saturating_sub(spot.lsn.get()),
        })
    }
}

impl Delivered {
    /// Takes note of a record. Returns where it stands, if it counts and the visitor is to see it.
    fn place(
        &mut self,
        header: &RecordHeader,
        home: &Home<'_>,
        evidence: &Evidence,
        visitor: &mut dyn Visitor,
    ) -> Option<Spot> {
        let spot = home.spot(header);
        self.put(header, spot, evidence, visitor).then_some(spot)
    }

    /// As [`Delivered::place`], wherever it stands. Returns whether it counts.
    fn put(
        &mut self,
        header: &RecordHeader,
        spot: Spot,
        evidence: &Evidence,
        visitor: &mut dyn Visitor,
    ) -> bool {
        if header.kind.is_of_no_group() {
            return false;
        }
        let Some(proof) = evidence.groups.get(&header.group) else { return false };
        if spot.lsn < proof.void_before {
            return false;
        }
        let group =
            self.groups.entry(header.group).or_insert_with(|| begin(header.group, proof, visitor));
        if !counts(header, spot.lsn, proof, group.hard_state) {
            return false;
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
            | RecordKind::LogStart { .. }
            | RecordKind::Echo { .. } => false,
        };
        if newly_used {
            self.uses.push(spot.segment);
        }
        true
    }

    /// An entry was here whose content is lost.
    fn lost(
        &mut self,
        header: &RecordHeader,
        spot: Spot,
        evidence: &Evidence,
        visitor: &mut dyn Visitor,
    ) {
        let RecordKind::Entry { position, .. } = header.kind else { return };
        let spot = Spot { len: 0, ..spot };
        if self.put(header, spot, evidence, visitor) {
            visitor.lost(spot.place(), header.group, position);
        }
    }

    /// A record of a damaged place.
    fn restored<D: Disk>(
        &mut self,
        reader: &mut Reader<'_, D>,
        record: &Restored,
        home: &Home<'_>,
        evidence: &Evidence,
        visitor: &mut dyn Visitor,
    ) -> Result<(), RecoverError> {
        let Restored { header, lsn, is_found, is_whole, .. } = record;
        let is_vote = matches!(header.kind, RecordKind::HardState(_));
        if is_vote && planted(Bug::EchoedVoteDropped) {
            return Ok(());
        }
        let mut spot = Spot { lsn: *lsn, ..home.spot(header) };
        if !is_whole {
            self.lost(header, spot, evidence, visitor);
            return Ok(());
        }
        if !is_found {
            spot.len = 0;
        }
        if !self.put(header, spot, evidence, visitor) {
            return Ok(());
        }
        let payload = reload(reader, home, header)?;
        hand_out(header, payload, &spot, visitor);
        Ok(())
    }
}

/// A group's log starts after its newest base, whatever stood in it before: entries at or before
/// it may lie in segments that are gone.
fn begin(group: GroupId, proof: &GroupEvidence, visitor: &mut dyn Visitor) -> Group {
    let mut state = Group::default();
    if let Some(base) = proof.base {
        state.purge_put(base);
        state.purge_durable(base.index);
        visitor.record(Place::default(), Record::Purge { group, base });
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
            let purged = proof.base.is_some_and(|base| position.index <= base.index);
            before_loss && !purged && lsn >= proof.entries_from
        }
        RecordKind::State | RecordKind::Value => before_loss,
        // Written again at each segment start, mostly unchanged.
        RecordKind::HardState(newer) => hard_state != Some(newer),
        RecordKind::Purge { .. }
        | RecordKind::Reset
        | RecordKind::LogStart { .. }
        | RecordKind::Echo { .. } => false,
    }
}
