//! Each batch repeats what stands in the batch before it, without the contents.
//!
//! So damage of one batch, whatever it takes with it, leaves no doubt about whose records were lost
//! and which: terms, votes and bases come back from the echo, and of entries it is known that they
//! were there, so that only their contents must be fetched from other replicas. Damage of two
//! batches in a row leaves the first one in doubt. After Alagappan et al., "Protocol-Aware Recovery
//! for Consensus-Based Storage", FAST 2018, §3.3: what identifies an entry is stored apart from it.

use coracle_raft::GroupId;

use crate::format::{RecordHeader, RecordKind, put_u32, put_u64, u32_at, u64_at};

/// Bytes of one part.
pub(crate) const PART_BYTES: usize = 40;

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

    /// Whether the record is the next one.
    fn goes_on_with(&self, header: &RecordHeader) -> bool {
        let runs = match self.kind {
            RecordKind::Entry { .. } | RecordKind::State | RecordKind::Value => true,
            RecordKind::HardState(_)
            | RecordKind::Purge { .. }
            | RecordKind::Reset
            | RecordKind::LogStart { .. }
            | RecordKind::Echo { .. } => false,
        };
        runs && self.group == header.group
            && self.seq + u64::from(self.count) == header.seq
            && self.kind_at(self.count) == header.kind
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
pub(crate) struct Echo {
    parts: Vec<Part>,
    parts_max: usize,
    /// Whether all records are in `parts`.
    whole: bool,
}

impl Echo {
    /// Of a batch without records; it will tell of at most `parts_max` parts.
    pub(crate) const fn new(parts_max: usize) -> Self {
        Self { parts: Vec::new(), parts_max, whole: true }
    }

    /// Takes note of the next record.
    pub(crate) fn push(&mut self, header: &RecordHeader) {
        let has_room = self.parts.len() < self.parts_max;
        match self.parts.last_mut() {
            _ if header.kind.is_of_no_group() || !self.whole => {}
            Some(last) if last.goes_on_with(header) => last.count += 1,
            _ if has_room => self.parts.push(Part::of(header)),
            _ => self.give_up(),
        }
    }

    /// Not all that stands in the batch is known.
    pub(crate) fn give_up(&mut self) {
        self.parts.clear();
        self.whole = false;
    }

    /// Begins with the next batch.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.whole = true;
    }

    pub(crate) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of [`Echo::encode`].
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.parts.len() * PART_BYTES
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        for part in &self.parts {
            let (kind, detail, term, index) = part.kind.to_raw();
            let mut bytes = [0; PART_BYTES];
            (bytes[0], bytes[1]) = (kind, detail);
            put_u32(&mut bytes, 4, part.group.get());
            put_u64(&mut bytes, 8, part.seq);
            put_u64(&mut bytes, 16, term);
            put_u64(&mut bytes, 24, index);
            put_u32(&mut bytes, 32, part.count);
            out.extend_from_slice(&bytes);
        }
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

    fn headers_of(echo: &Echo) -> Vec<RecordHeader> {
        let mut bytes = Vec::new();
        echo.encode(&mut bytes);
        assert_eq!(bytes.len(), echo.encoded_bytes());
        let parts = decode(&bytes, 1000).unwrap();
        parts.into_iter().flat_map(Part::headers).collect()
    }

    /// Runs become one part each; whatever was pushed comes back in its order.
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
        let mut echo = Echo::new(100);
        records.iter().for_each(|record| echo.push(record));
        assert_eq!(echo.parts.len(), 10);
        assert_eq!(headers_of(&echo), records);
    }

    #[test]
    fn too_many_parts_are_not_told() {
        let mut echo = Echo::new(2);
        (0..5).for_each(|n| echo.push(&header(1, n, entry(1, n))));
        assert!(echo.is_whole() && headers_of(&echo).len() == 5);
        echo.push(&header(2, 1, entry(1, 1)));
        echo.push(&header(3, 1, entry(1, 1)));
        assert_eq!((echo.is_whole(), echo.encoded_bytes()), (false, 0));
        echo.push(&header(3, 2, entry(1, 2)));
        assert_eq!(echo.encoded_bytes(), 0);
        echo.clear();
        assert!(echo.is_whole());
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
