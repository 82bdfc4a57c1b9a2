//! Each batch repeats what stands in the batches before it, without the contents: in the last one
//! always, in those before that as far as they are small.
//!
//! So damage of a few blocks, whatever it takes with it, leaves no doubt about whose records were
//! lost and which: terms, votes and bases come back from the echo, and of entries it is known that
//! they were there, so that only their contents must be fetched from other replicas. After
//! Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018, §3.3: what
//! identifies an entry is stored apart from it.

use std::collections::VecDeque;

use coracle_raft::GroupId;

use crate::format::{Lsn, RecordHeader, RecordKind, put_u32, put_u64, u32_at, u64_at};

/// Bytes of one part.
pub(crate) const PART_BYTES: usize = 40;
/// Bytes of log that an echo covers at most, unless the last batch alone is longer.
const WINDOW_BYTES: u64 = 64 << 10;
/// Parts of an echo at most, unless the last batch alone has more: about as much as small batches
/// leave free in their last block.
const WINDOW_PARTS: usize = 24;

/// Consecutive records of one group that differ by their numbers only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    group: GroupId,
    /// Number of the first one.
    seq: u64,
    /// What the first one is.
    kind: RecordKind,
    /// How many.
    count: u32,
}

impl Part {
    fn of(header: &RecordHeader) -> Self {
        Self { group: header.group, seq: header.seq, kind: header.kind, count: 1 }
    }

    /// What the record `n` places after the first one is.
    fn kind_at(&self, n: u32) -> RecordKind {
        let mut kind = self.kind;
        if let RecordKind::Entry { position, .. } = &mut kind {
            position.index = position.index.plus(u64::from(n));
        }
        kind
    }

    /// Whether these records are the next ones.
    fn goes_on_with(&self, next: &Self) -> bool {
        let runs = match self.kind {
            RecordKind::Entry { .. } | RecordKind::State | RecordKind::Value => true,
            RecordKind::HardState(_)
            | RecordKind::Purge { .. }
            | RecordKind::Reset
            | RecordKind::LogStart { .. }
            | RecordKind::Echo { .. } => false,
        };
        runs && self.group == next.group
            && self.seq + u64::from(self.count) == next.seq
            && self.kind_at(self.count) == next.kind
    }

    /// Its records, without contents.
    pub(crate) fn headers(self) -> impl Iterator<Item = RecordHeader> {
        (0..self.count).map(move |n| RecordHeader {
            group: self.group,
            seq: self.seq + u64::from(n),
            kind: self.kind_at(n),
            payload_len: 0,
            payload_crc: 0,
            offset: 0,
        })
    }
}

/// What stands in one batch.
#[derive(Clone, Debug)]
struct Told {
    lsn: Lsn,
    /// Those of one group in their order.
    parts: Vec<Part>,
    /// Whether all records are in `parts`.
    is_whole: bool,
}

/// What stands in the newest batches.
#[derive(Clone, Debug)]
pub(crate) struct Echoes {
    parts_max: usize,
    /// Those that are full, oldest first.
    batches: VecDeque<Told>,
    /// The one that is being filled.
    open: Vec<Part>,
    is_whole: bool,
    /// Scratch.
    merged: Vec<Part>,
    longer: Vec<Part>,
}

impl Echoes {
    /// Of no batches. No echo will have more than `parts_max` parts.
    pub(crate) const fn new(parts_max: usize) -> Self {
        Self {
            parts_max,
            batches: VecDeque::new(),
            open: Vec::new(),
            is_whole: true,
            merged: Vec::new(),
            longer: Vec::new(),
        }
    }

    /// Takes note of the next record of the batch that is being filled.
    pub(crate) fn push(&mut self, header: &RecordHeader) {
        if header.kind.is_of_no_group() || !self.is_whole {
            return;
        }
        put(&mut self.open, Part::of(header));
        if self.open.len() > self.parts_max {
            self.give_up();
        }
    }

    /// Not all that stands in the batch that is being filled is known.
    pub(crate) fn give_up(&mut self) {
        self.open.clear();
        self.is_whole = false;
    }

    /// The batch at `lsn` is full, and ends before `end`.
    pub(crate) fn close(&mut self, lsn: Lsn, end: Lsn) {
        let near = |told: &Told| end.get().saturating_sub(told.lsn.get()) <= WINDOW_BYTES;
        let mut spare = Vec::new();
        while self.batches.front().is_some_and(|told| !near(told)) {
            spare = self.batches.pop_front().map_or(spare, |told| told.parts);
        }
        spare.clear();
        let parts = std::mem::replace(&mut self.open, spare);
        let is_whole = std::mem::replace(&mut self.is_whole, true);
        self.batches.push_back(Told { lsn, parts, is_whole });
    }

    /// What the next batch will say: a record and its payload, which is put into `payload`.
    pub(crate) fn encode(&mut self, payload: &mut Vec<u8>) -> RecordKind {
        payload.clear();
        let Some(last) = self.batches.back() else {
            return RecordKind::Echo { of: Lsn::ZERO, whole: true };
        };
        let (mut of, whole) = (last.lsn, last.is_whole);
        self.merged.clear();
        self.merged.extend(last.parts.iter().rev());
        for told in self.batches.iter().rev().skip(1).take_while(|told| whole && told.is_whole) {
            self.longer.clone_from(&self.merged);
            told.parts.iter().rev().for_each(|&part| put_before(&mut self.longer, part));
            if self.longer.len() > WINDOW_PARTS.min(self.parts_max) {
                break;
            }
            std::mem::swap(&mut self.merged, &mut self.longer);
            of = told.lsn;
        }
        for part in self.merged.iter().rev() {
            let (kind, detail, term, index) = part.kind.to_raw();
            let mut bytes = [0; PART_BYTES];
            (bytes[0], bytes[1]) = (kind, detail);
            put_u32(&mut bytes, 4, part.group.get());
            put_u64(&mut bytes, 8, part.seq);
            put_u64(&mut bytes, 16, term);
            put_u64(&mut bytes, 24, index);
            put_u32(&mut bytes, 32, part.count);
            payload.extend_from_slice(&bytes);
        }
        RecordKind::Echo { of, whole }
    }
}

/// Adds a part: to the last one of its group, if it goes on there.
fn put(parts: &mut Vec<Part>, part: Part) {
    match parts.iter_mut().rev().find(|last| last.group == part.group) {
        Some(last) if last.goes_on_with(&part) => last.count += part.count,
        _ => parts.push(part),
    }
}

/// Adds a part before all others, of which the last one comes first.
fn put_before(parts: &mut Vec<Part>, part: Part) {
    match parts.iter_mut().rev().find(|first| first.group == part.group) {
        Some(first) if part.goes_on_with(first) => {
            *first = Part { count: part.count + first.count, ..part };
        }
        _ => parts.push(part),
    }
}

/// The parts in the payload of an echo; `None` if they make no sense, or tell of more than
/// `records_max` records.
pub(crate) fn decode(payload: &[u8], records_max: usize) -> Option<Vec<Part>> {
    let (chunks, rest) = payload.as_chunks::<PART_BYTES>();
    let mut left = records_max;
    let mut parts = Vec::with_capacity(chunks.len());
    for bytes in chunks {
        let raw = (bytes[0], bytes[1], u64_at(bytes, 16), u64_at(bytes, 24));
        let kind = RecordKind::from_raw(raw).filter(|kind| !kind.is_of_no_group())?;
        let (group, seq) = (GroupId::new(u32_at(bytes, 4)), u64_at(bytes, 8));
        let count = u32_at(bytes, 32);
        left = left.checked_sub(count as usize)?;
        seq.checked_add(u64::from(count))?;
        if let RecordKind::Entry { position, .. } = kind {
            position.index.get().checked_add(u64::from(count))?;
        }
        parts.push(Part { group, seq, kind, count });
    }
    rest.is_empty().then_some(parts)
}

#[cfg(test)]
mod tests {
    use coracle_raft::{EntryKind, HardState, LogIndex, LogPosition, NodeId, Term};
    use proptest::prelude::*;

    use super::*;

    fn header(group: u32, seq: u64, kind: RecordKind) -> RecordHeader {
        let group = GroupId::new(group);
        RecordHeader { group, seq, kind, payload_len: 0, payload_crc: 0, offset: 0 }
    }

    fn entry(term: u64, index: u64) -> RecordKind {
        let position = LogPosition { term: Term::new(term), index: LogIndex::new(index) };
        RecordKind::Entry { kind: EntryKind::Command, position }
    }

    fn decoded(echoes: &mut Echoes) -> (RecordKind, Vec<RecordHeader>) {
        let mut bytes = Vec::new();
        let kind = echoes.encode(&mut bytes);
        let parts = decode(&bytes, 1000).unwrap();
        (kind, parts.into_iter().flat_map(Part::headers).collect())
    }

    fn echo(of: u64) -> RecordKind {
        RecordKind::Echo { of: Lsn::new(of), whole: true }
    }

    /// Runs become one part each; whatever was pushed comes back, each group in its order.
    #[test]
    fn runs_are_told_as_one() {
        let vote = HardState { term: Term::new(4), vote: Some(NodeId::new(2)) };
        let base = LogPosition { term: Term::new(3), index: LogIndex::new(9) };
        let records = [
            header(1, 7, RecordKind::HardState(vote)),
            header(1, 8, entry(4, 10)),
            header(1, 9, entry(4, 11)),
            header(2, 1, entry(4, 12)),
            header(1, 10, entry(4, 12)),
            header(1, 11, entry(5, 13)),
            header(1, 12, entry(5, 13)),
            header(1, 13, RecordKind::Value),
            header(1, 14, RecordKind::Value),
            header(1, 15, RecordKind::State),
            header(3, 4, RecordKind::Purge { base, restart: true }),
            header(3, 5, RecordKind::Reset),
        ];
        let mut echoes = Echoes::new(100);
        assert_eq!(decoded(&mut echoes), (echo(0), vec![]));
        records.iter().for_each(|record| echoes.push(record));
        assert_eq!(echoes.open.len(), 9);
        echoes.close(Lsn::new(4096), Lsn::new(8192));
        let (kind, mut told) = decoded(&mut echoes);
        assert_eq!(kind, echo(4096));
        told.sort_by_key(|header| (header.group, header.seq));
        let mut wanted = records;
        wanted.sort_by_key(|header| (header.group, header.seq));
        assert_eq!(told, wanted);
    }

    /// Small batches are repeated for 64 KiB, as long as there are few parts.
    #[test]
    fn echoes_reach_back_over_small_batches() {
        let mut echoes = Echoes::new(100);
        let mut seq = 0;
        let mut next = |echoes: &mut Echoes, at: u64, blocks: u64, groups: u32| {
            seq += 1;
            (0..groups).for_each(|group| echoes.push(&header(group, seq, entry(1, seq))));
            echoes.close(Lsn::new(at * 4096), Lsn::new((at + blocks) * 4096));
            let (kind, told) = decoded(echoes);
            (kind, told.len())
        };
        for at in 1..=16 {
            assert_eq!(next(&mut echoes, at, 1, 2), (echo(4096), 2 * at as usize));
        }
        assert_eq!(next(&mut echoes, 17, 1, 2), (echo(8192), 32), "64 KiB are full");
        assert_eq!(next(&mut echoes, 18, 1, 30), (echo(18 * 4096), 30), "too many parts");
        assert_eq!(next(&mut echoes, 19, 1, 1), (echo(19 * 4096), 1), "with those before it");
        assert_eq!(next(&mut echoes, 20, 100, 3), (echo(20 * 4096), 3), "it is large");
        assert_eq!(next(&mut echoes, 120, 1, 3), (echo(120 * 4096), 3));
        assert_eq!(next(&mut echoes, 121, 1, 3), (echo(120 * 4096), 6));
    }

    #[test]
    fn too_many_parts_are_not_told() {
        let mut echoes = Echoes::new(2);
        (0..5).for_each(|n| echoes.push(&header(1, n, entry(1, n))));
        (1..4).for_each(|group| echoes.push(&header(group, 9, RecordKind::Reset)));
        echoes.close(Lsn::new(4096), Lsn::new(8192));
        let nothing = RecordKind::Echo { of: Lsn::new(4096), whole: false };
        assert_eq!(decoded(&mut echoes), (nothing, vec![]));
        echoes.push(&header(1, 10, entry(1, 5)));
        echoes.close(Lsn::new(8192), Lsn::new(12288));
        assert_eq!(decoded(&mut echoes).0, echo(8192), "not what is before it");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>, fixed: bool) {
            let mut bytes = bytes;
            if fixed {
                bytes.iter_mut().step_by(PART_BYTES).for_each(|kind| *kind %= 9);
                bytes.truncate(bytes.len() / PART_BYTES * PART_BYTES);
            }
            if let Some(parts) = decode(&bytes, 100) {
                prop_assert!(parts.into_iter().flat_map(Part::headers).count() <= 100);
            }
        }
    }
}
