//! The records in a batch, whole or not.

use std::ops::Range;

use coracle_raft::{Bug, planted};

use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, Lsn, RECORD_HEADER_BYTES, RecordHeader, record_seed,
};

/// What stands in a batch, in order.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// A record with a valid header.
    Record { header: RecordHeader, payload: &'a [u8], payload_ok: bool },
    /// Bytes in which no record can be found; offsets in the batch.
    Lost(Range<usize>),
}

/// Where a batch stands and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) salt: u64,
    pub(crate) lsn: Lsn,
    /// End of the records, relative to the batch.
    pub(crate) len: usize,
    /// Whether the payload checksums are known to be right.
    pub(crate) verified: bool,
}

/// Walks over the records of a batch that starts at the start of `bytes`. After bytes that are no
/// record it goes on at the next place where one is valid: a record names its own place, under a
/// checksum that depends on the batch's, so nothing inside a payload passes for one.
pub(crate) fn pieces<'a>(bytes: &'a [u8], frame: &Frame, each: &mut dyn FnMut(Piece<'a>)) {
    let seed = record_seed(frame.salt, frame.lsn);
    let end = frame.len;
    let mut at = BATCH_HEADER_BYTES;
    let mut lost = None;
    while at < end {
        let Some((header, payload)) = record_at(bytes, seed, at, end) else {
            lost.get_or_insert(at);
            at += 8;
            continue;
        };
        if let Some(start) = lost.take() {
            each(Piece::Lost(start..at));
        }
        let payload_ok = frame.verified || crc32c::crc32c(payload) == header.payload_crc;
        at += header.record_bytes();
        each(Piece::Record { header, payload, payload_ok });
    }
    if let Some(start) = lost {
        each(Piece::Lost(start..end));
    }
}

/// The record at `at`, if there is a valid header and the record ends within `end`.
pub(crate) fn record_at(
    bytes: &[u8],
    seed: u32,
    at: usize,
    end: usize,
) -> Option<(RecordHeader, &[u8])> {
    let record = bytes.get(at..end.min(bytes.len()))?;
    let (header, _) = RecordHeader::decode(record, seed, at)?;
    let payload = record[RECORD_HEADER_BYTES..].get(..header.payload_len as usize)?;
    (header.record_bytes() <= end - at).then_some((header, payload))
}

/// Whether the batch is exactly what its header says. Adds its record headers to `headers`, also
/// the first ones of a batch that is not.
pub(crate) fn is_whole(
    bytes: &[u8],
    frame: &Frame,
    batch: &BatchHeader,
    headers: &mut Vec<RecordHeader>,
) -> bool {
    let seed = record_seed(frame.salt, frame.lsn);
    let mut at = BATCH_HEADER_BYTES;
    let mut crc = 0;
    for _ in 0..batch.count {
        let Some((header, payload)) = record_at(bytes, seed, at, frame.len) else { return false };
        let ok = planted(Bug::PayloadChecksumIgnored);
        if !ok && crc32c::crc32c(payload) != header.payload_crc {
            return false;
        }
        let checksum = &bytes[at + RECORD_HEADER_BYTES - 4..at + RECORD_HEADER_BYTES];
        crc = crc32c::crc32c_append(crc, checksum);
        at += header.record_bytes();
        headers.push(header);
    }
    at == frame.len && crc == batch.records_crc
}
