//! The bytes of segments, batches and records, as described in `docs/wal-format.md`.
//!
//! Everything is little-endian and written by hand: nothing here depends on a compiler's layout.
//! Decoders take any bytes and never panic.

use std::fmt;

use coracle_raft::{
    Entry, EntryKind, GroupId, HardState, LogIndex, LogPosition, NodeId, Payload, Record, Term,
};

use crate::Identity;

/// What offsets and lengths of batches are multiples of.
pub const BLOCK_BYTES: usize = 4096;
/// The header at the start of a batch.
pub const BATCH_HEADER_BYTES: usize = 64;
/// The header of a record; the payload follows, padded to 8 bytes.
pub const RECORD_HEADER_BYTES: usize = 48;
/// The part of a segment's first block that is used, twice: at its start and in its middle.
pub const SEGMENT_HEADER_BYTES: usize = 128;
/// The version this code writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"CORACLEW";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"CWB1");
const RECORD_MAGIC: u16 = u16::from_le_bytes(*b"CR");

/// Where the second copy of the segment header stands.
const SEGMENT_TWIN_AT: usize = BLOCK_BYTES / 2;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_STATE: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_RESET: u8 = 5;
const KIND_VALUE: u8 = 6;
const KIND_LOG_START: u8 = 7;
const KIND_ECHO: u8 = 8;

const _: () =
    assert!(RECORD_HEADER_BYTES.is_multiple_of(8) && BATCH_HEADER_BYTES.is_multiple_of(8));
const _: () = assert!(SEGMENT_HEADER_BYTES <= 512, "a copy must fit into one sector");

/// A byte position in the endless log: the first position of a segment plus the offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// Before everything: the first segment's header stands there, no batch can.
    pub const ZERO: Self = Self(0);

    /// Wraps the raw number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This position moved forward; stays at the end of the number range.
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Rounds up to whole blocks.
pub(crate) const fn aligned(bytes: u64) -> u64 {
    bytes.saturating_add(BLOCK_BYTES as u64 - 1) & !(BLOCK_BYTES as u64 - 1)
}

/// Bytes a record with a payload of this length takes in a batch.
pub(crate) const fn record_bytes(payload_len: usize) -> usize {
    RECORD_HEADER_BYTES + payload_len.next_multiple_of(8)
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) number: u64,
    pub(crate) salt: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) segment_bytes: u64,
}

/// Why a segment's first block is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeaderError {
    /// Neither copy is whole.
    Damaged,
    /// Written by another version of this code.
    Version(u32),
}

impl SegmentHeader {
    /// Writes both copies into the first block.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        let mut copy = [0; SEGMENT_HEADER_BYTES];
        copy[..8].copy_from_slice(&SEGMENT_MAGIC);
        put_u32(&mut copy, 8, u32::from(FORMAT_VERSION));
        copy[16..32].copy_from_slice(&self.identity.cluster.to_le_bytes());
        put_u32(&mut copy, 32, self.identity.node.get());
        put_u32(&mut copy, 36, self.identity.core);
        put_u64(&mut copy, 40, self.number);
        put_u64(&mut copy, 48, self.salt);
        put_u64(&mut copy, 56, self.first_lsn.get());
        put_u64(&mut copy, 64, self.segment_bytes);
        let crc = crc32c::crc32c(&copy[..SEGMENT_HEADER_BYTES - 4]);
        put_u32(&mut copy, SEGMENT_HEADER_BYTES - 4, crc);
        block[..SEGMENT_HEADER_BYTES].copy_from_slice(&copy);
        block[SEGMENT_TWIN_AT..][..SEGMENT_HEADER_BYTES].copy_from_slice(&copy);
    }

    /// Reads the first copy that is whole.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, SegmentHeaderError> {
        let copies = [0, SEGMENT_TWIN_AT].into_iter().filter_map(|at| {
            let copy = block.get(at..)?.first_chunk::<SEGMENT_HEADER_BYTES>()?;
            let crc = crc32c::crc32c(&copy[..SEGMENT_HEADER_BYTES - 4]);
            (copy[..8] == SEGMENT_MAGIC && crc == u32_at(copy, SEGMENT_HEADER_BYTES - 4))
                .then_some(copy)
        });
        let copy = copies.into_iter().next().ok_or(SegmentHeaderError::Damaged)?;
        // The magic, the version and the checksum stand at these places in every version.
        let version = u32_at(copy, 8);
        if version != u32::from(FORMAT_VERSION) {
            return Err(SegmentHeaderError::Version(version));
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&copy[16..32]);
        Ok(Self {
            identity: Identity {
                cluster: u128::from_le_bytes(cluster),
                node: NodeId::new(u32_at(copy, 32)),
                core: u32_at(copy, 36),
            },
            number: u64_at(copy, 40),
            salt: u64_at(copy, 48),
            first_lsn: Lsn(u64_at(copy, 56)),
            segment_bytes: u64_at(copy, 64),
        })
    }
}

/// The head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) salt: u64,
    pub(crate) lsn: Lsn,
    /// Everything before this position was on disk when the batch was sealed.
    pub(crate) durable: Lsn,
    /// Where the batch before this one starts; [`Lsn::ZERO`] for the first of all.
    pub(crate) prev: Lsn,
    /// Bytes used, this header included, the padding to whole blocks not.
    pub(crate) len: u32,
    pub(crate) count: u32,
    /// CRC32C over the checksums of all record headers, in order.
    pub(crate) records_crc: u32,
}

impl BatchHeader {
    pub(crate) fn encode(&self, out: &mut [u8; BATCH_HEADER_BYTES]) {
        *out = [0; BATCH_HEADER_BYTES];
        put_u32(out, 0, BATCH_MAGIC);
        put_u16(out, 4, FORMAT_VERSION);
        put_u64(out, 8, self.salt);
        put_u64(out, 16, self.lsn.get());
        put_u64(out, 24, self.durable.get());
        put_u64(out, 32, self.prev.get());
        put_u32(out, 40, self.len);
        put_u32(out, 44, self.count);
        put_u32(out, 48, self.records_crc);
        let crc = crc32c::crc32c(&out[..BATCH_HEADER_BYTES - 4]);
        put_u32(out, BATCH_HEADER_BYTES - 4, crc);
    }

    /// Reads the head of a batch of which only the place in the file is known.
    pub(crate) fn decode_anywhere(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<BATCH_HEADER_BYTES>()?;
        Self::decode(bytes, u64_at(head, 8), Lsn(u64_at(head, 16)))
    }

    /// Reads the head of a batch that must stand at `lsn` in a segment with this salt.
    pub(crate) fn decode(bytes: &[u8], salt: u64, lsn: Lsn) -> Option<Self> {
        let bytes = bytes.first_chunk::<BATCH_HEADER_BYTES>()?;
        // The cheap tests first: a scan over stale bytes fails on them.
        if u32_at(bytes, 0) != BATCH_MAGIC
            || u64_at(bytes, 8) != salt
            || u64_at(bytes, 16) != lsn.get()
            || u16_at(bytes, 4) != FORMAT_VERSION
            || u32_at(bytes, BATCH_HEADER_BYTES - 4)
                != crc32c::crc32c(&bytes[..BATCH_HEADER_BYTES - 4])
        {
            return None;
        }
        let header = Self {
            salt,
            lsn,
            durable: Lsn(u64_at(bytes, 24)),
            prev: Lsn(u64_at(bytes, 32)),
            len: u32_at(bytes, 40),
            count: u32_at(bytes, 44),
            records_crc: u32_at(bytes, 48),
        };
        (header.len as usize >= BATCH_HEADER_BYTES && header.durable <= lsn && header.prev < lsn)
            .then_some(header)
    }
}

/// Start value of the record header checksums of one batch: a record is valid at its place only.
pub(crate) fn record_seed(salt: u64, lsn: Lsn) -> u32 {
    let mut place = [0; 16];
    put_u64(&mut place, 0, salt);
    put_u64(&mut place, 8, lsn.get());
    crc32c::crc32c(&place)
}

/// What a record is, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Entry {
        kind: EntryKind,
        position: LogPosition,
    },
    HardState(HardState),
    State,
    /// The log starts after `base`. With `restart`, it held something else there or ended before
    /// it: nothing of what it held counts any more.
    Purge {
        base: LogPosition,
        restart: bool,
    },
    /// Everything the log said about the group before is void.
    Reset,
    Value,
    /// The log proper starts with this segment: older ones are kept for their values only. The
    /// first record of each segment; of no group, and without a number.
    LogStart {
        segment: u64,
    },
    /// What stands in the batches from the one at `of` up to this one, without the contents: see
    /// [`crate::echo`]. The last record of each batch; of no group, and without a number. Without
    /// `whole` the batch before this one had too many records to be told.
    Echo {
        of: Lsn,
        whole: bool,
    },
}

impl RecordKind {
    /// As the bytes for kind and detail, and two numbers.
    pub(crate) const fn to_raw(self) -> (u8, u8, u64, u64) {
        match self {
            Self::Entry { kind, position } => {
                (KIND_ENTRY, entry_kind_byte(kind), position.term.get(), position.index.get())
            }
            Self::HardState(HardState { term, vote }) => match vote {
                Some(vote) => (KIND_HARD_STATE, 1, term.get(), vote.get() as u64),
                None => (KIND_HARD_STATE, 0, term.get(), 0),
            },
            Self::State => (KIND_STATE, 0, 0, 0),
            Self::Purge { base, restart } => {
                (KIND_PURGE, restart as u8, base.term.get(), base.index.get())
            }
            Self::Reset => (KIND_RESET, 0, 0, 0),
            Self::Value => (KIND_VALUE, 0, 0, 0),
            Self::LogStart { segment } => (KIND_LOG_START, 0, 0, segment),
            Self::Echo { of, whole } => (KIND_ECHO, whole as u8, 0, of.get()),
        }
    }

    /// The other way; `None` for what no record says.
    pub(crate) fn from_raw((kind, detail, term, index): (u8, u8, u64, u64)) -> Option<Self> {
        let position = LogPosition { term: Term::new(term), index: LogIndex::new(index) };
        Some(match (kind, detail) {
            (KIND_ENTRY, detail) => Self::Entry { kind: entry_kind_of_byte(detail)?, position },
            (KIND_HARD_STATE, 0) => Self::HardState(HardState { term: position.term, vote: None }),
            (KIND_HARD_STATE, 1) => {
                let vote = NodeId::new(u32::try_from(index).ok()?);
                Self::HardState(HardState { term: position.term, vote: Some(vote) })
            }
            (KIND_STATE, 0) => Self::State,
            (KIND_PURGE, detail @ 0..=1) => Self::Purge { base: position, restart: detail == 1 },
            (KIND_RESET, 0) => Self::Reset,
            (KIND_VALUE, 0) => Self::Value,
            (KIND_LOG_START, 0) => Self::LogStart { segment: index },
            (KIND_ECHO, detail @ 0..=1) => Self::Echo { of: Lsn(index), whole: detail == 1 },
            _ => return None,
        })
    }

    /// Whether the record is about the log itself, not about a group.
    pub(crate) const fn is_of_no_group(&self) -> bool {
        matches!(self, Self::LogStart { .. } | Self::Echo { .. })
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) group: GroupId,
    /// Counts the records of this group, from 1: a missing number is a missing record.
    pub(crate) seq: u64,
    pub(crate) kind: RecordKind,
    pub(crate) payload_len: u32,
    pub(crate) payload_crc: u32,
    /// Where the record starts in its batch.
    pub(crate) offset: u32,
}

impl RecordHeader {
    /// Writes the header and returns its checksum.
    pub(crate) fn encode(&self, seed: u32, out: &mut [u8; RECORD_HEADER_BYTES]) -> u32 {
        let (kind, detail, term, index) = self.kind.to_raw();
        put_u16(out, 0, RECORD_MAGIC);
        out[2] = kind;
        out[3] = detail;
        put_u32(out, 4, self.group.get());
        put_u64(out, 8, self.seq);
        put_u64(out, 16, term);
        put_u64(out, 24, index);
        put_u32(out, 32, self.payload_len);
        put_u32(out, 36, self.payload_crc);
        put_u32(out, 40, self.offset);
        let crc = crc32c::crc32c_append(seed, &out[..RECORD_HEADER_BYTES - 4]);
        put_u32(out, RECORD_HEADER_BYTES - 4, crc);
        crc
    }

    /// Reads the header of a record that must stand at `offset` of a batch with this seed.
    /// Returns it with its checksum.
    pub(crate) fn decode(bytes: &[u8], seed: u32, offset: usize) -> Option<(Self, u32)> {
        let bytes = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        let crc = u32_at(bytes, RECORD_HEADER_BYTES - 4);
        if u16_at(bytes, 0) != RECORD_MAGIC
            || u32_at(bytes, 40) as usize != offset
            || crc != crc32c::crc32c_append(seed, &bytes[..RECORD_HEADER_BYTES - 4])
        {
            return None;
        }
        let raw = (bytes[2], bytes[3], u64_at(bytes, 16), u64_at(bytes, 24));
        let kind = RecordKind::from_raw(raw)?;
        let header = Self {
            group: GroupId::new(u32_at(bytes, 4)),
            seq: u64_at(bytes, 8),
            kind,
            payload_len: u32_at(bytes, 32),
            payload_crc: u32_at(bytes, 36),
            offset: u32_at(bytes, 40),
        };
        Some((header, crc))
    }

    /// Where the record that starts here says it stands in its batch; to be confirmed by
    /// [`RecordHeader::decode`] with the seed of that batch.
    pub(crate) fn claimed_offset(bytes: &[u8]) -> Option<usize> {
        let bytes = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        (u16_at(bytes, 0) == RECORD_MAGIC).then(|| u32_at(bytes, 40) as usize)
    }

    /// Where the next record starts, relative to this one.
    pub(crate) const fn record_bytes(&self) -> usize {
        record_bytes(self.payload_len as usize)
    }

    /// The record as the rest of the system knows it; `None` for what only the log needs.
    pub(crate) fn to_record(self, payload: &[u8]) -> Option<Record> {
        let group = self.group;
        let owned = |payload: &[u8]| Payload::new(payload, self.payload_crc);
        Some(match self.kind {
            RecordKind::Entry { kind, position } => Record::Entry {
                group,
                entry: Entry {
                    term: position.term,
                    index: position.index,
                    kind,
                    payload: owned(payload),
                },
            },
            RecordKind::HardState(hard_state) => Record::HardState { group, hard_state },
            RecordKind::State => Record::State { group, payload: owned(payload) },
            RecordKind::Purge { base, .. } => Record::Purge { group, base },
            RecordKind::Value => Record::Value { group, payload: owned(payload) },
            RecordKind::Reset | RecordKind::LogStart { .. } | RecordKind::Echo { .. } => {
                return None;
            }
        })
    }
}

const fn entry_kind_byte(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Empty => 1,
        EntryKind::Command => 2,
        EntryKind::Membership => 3,
    }
}

const fn entry_kind_of_byte(byte: u8) -> Option<EntryKind> {
    match byte {
        1 => Some(EntryKind::Empty),
        2 => Some(EntryKind::Command),
        3 => Some(EntryKind::Membership),
        _ => None,
    }
}

pub(crate) fn put_u16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn u16_at<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}
