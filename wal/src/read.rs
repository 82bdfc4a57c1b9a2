//! Reading entries back.

use std::ops::Deref;

use coracle_raft::{Entry, GroupId, LogIndex, Payload};

use crate::format::{
    BLOCK_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordKind, aligned, record_seed,
};
use crate::groups::Run;
use crate::segment::SegmentId;
use crate::{Disk, LoadError, Wal};

/// A read for the driver: `len` bytes at `offset` of the segment's file, both multiples of 4 KiB.
/// A read that ends early gives an error when it is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOp {
    /// Which file: [`Wal::file`].
    pub segment: SegmentId,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    group: GroupId,
    run: Run,
    /// Last entry of the run that was not overwritten later.
    run_last: LogIndex,
    first: LogIndex,
    last: LogIndex,
    bytes_max: usize,
}

impl<D: Disk> Wal<D> {
    /// Reads that fetch entries `first..=last` of a group, or the first of them until they reach
    /// `bytes_max` (at least one). Do them, then [`Wal::decode_entries`].
    ///
    /// # Errors
    /// [`LoadError::Missing`], [`LoadError::NotDurable`] or, for an entry that recovery found
    /// lost, [`LoadError::Damaged`], if there is not even the first entry.
    pub fn locate(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<ReadOp>, LoadError> {
        let state = self.groups.get(&group).ok_or(LoadError::Missing { group, first })?;
        let mut ops = Vec::new();
        let mut bytes = 0;
        for (run, run_last) in state.runs_from(first) {
            if run.first > last || (bytes >= bytes_max && !ops.is_empty()) {
                break;
            }
            let segment = self.segment(run.segment);
            let durable = segment.is_some_and(|segment| {
                segment.header.first_lsn.plus(u64::from(run.batch)) < self.durable
            });
            if !durable {
                if ops.is_empty() {
                    return Err(LoadError::NotDurable { group, first });
                }
                break;
            }
            if run.is_lost() {
                if ops.is_empty() {
                    let file = self.file_name(run.segment);
                    return Err(LoadError::Damaged { file, offset: u64::from(run.batch) });
                }
                break;
            }
            let start = u64::from(run.batch) + u64::from(run.start);
            let end = aligned(u64::from(run.batch) + u64::from(run.end));
            let offset = start & !(BLOCK_BYTES as u64 - 1);
            let len = (end - offset) as usize;
            let segment = run.segment;
            ops.push(ReadOp { segment, offset, len, group, run, run_last, first, last, bytes_max });
            bytes += (run.end - run.start) as usize;
        }
        if ops.is_empty() { Err(LoadError::Missing { group, first }) } else { Ok(ops) }
    }

    /// Makes entries of what was read: `buffers` holds the bytes of `ops`, in the same order.
    /// Every check of recovery is made here too. Returns the entries from the first asked for on,
    /// up to the first that cannot be had.
    ///
    /// # Errors
    /// If there is not even one: [`LoadError::Recycled`] or [`LoadError::Damaged`].
    pub fn decode_entries<B: Deref<Target = [u8]>>(
        &self,
        ops: &[ReadOp],
        buffers: &[B],
    ) -> Result<Vec<Entry>, LoadError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (op, buffer) in ops.iter().zip(buffers) {
            match self.decode_run(op, buffer, &mut entries, &mut bytes) {
                Ok(false) => {}
                Ok(true) => break,
                // Whoever waits for the entries before it need not wait for this one: another
                // replica may have lost just those.
                Err(_) if !entries.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        match ops.first() {
            Some(op) if entries.is_empty() => Err(self.damaged(op, op.run.start)),
            _ => Ok(entries),
        }
    }

    /// Returns whether enough was read.
    fn decode_run(
        &self,
        op: &ReadOp,
        buffer: &[u8],
        entries: &mut Vec<Entry>,
        bytes: &mut usize,
    ) -> Result<bool, LoadError> {
        let Some(segment) = self.segment(op.segment) else {
            return Err(LoadError::Recycled { file: self.file_name(op.segment) });
        };
        let lsn = segment.header.first_lsn.plus(u64::from(op.run.batch));
        let seed = record_seed(segment.header.salt, lsn);
        // The buffer starts somewhere in the batch, at a block.
        let start_of_batch = u64::from(op.run.batch);
        let mut at = op.run.start;
        let mut index = op.run.first.max(op.first);
        let last = op.run_last.min(op.last);
        // Where bytes begin that are no record.
        let mut broken = None;
        while at < op.run.end && index <= last {
            let in_buffer = (start_of_batch + u64::from(at) - op.offset) as usize;
            let damaged = || self.damaged(op, broken.unwrap_or(at));
            let record = buffer.get(in_buffer..).ok_or_else(damaged)?;
            let Some((header, _)) = RecordHeader::decode(record, seed, at as usize) else {
                // A record names its own place, so the next ones are found without this one.
                broken.get_or_insert(at);
                at += 8;
                continue;
            };
            let here = match header.kind {
                RecordKind::Entry { kind, position } if header.group == op.group => {
                    Some((kind, position)).filter(|_| position.index >= index)
                }
                _ => None,
            };
            if let Some((kind, position)) = here {
                let payload = &record[RECORD_HEADER_BYTES..];
                let payload = payload.get(..header.payload_len as usize).ok_or_else(damaged)?;
                if position.index != index || crc32c::crc32c(payload) != header.payload_crc {
                    return Err(damaged());
                }
                let payload = Payload::new(payload, header.payload_crc);
                let entry = Entry { term: position.term, index, kind, payload };
                *bytes += entry.size_bytes();
                entries.push(entry);
                if *bytes >= op.bytes_max {
                    return Ok(true);
                }
                index = index.next();
            }
            at += header.record_bytes() as u32;
            broken = None;
        }
        if index <= last {
            return Err(self.damaged(op, broken.unwrap_or(at).min(op.run.end)));
        }
        Ok(index > op.last)
    }

    fn damaged(&self, op: &ReadOp, at: u32) -> LoadError {
        let offset = u64::from(op.run.batch) + u64::from(at);
        LoadError::Damaged { file: self.file_name(op.segment), offset }
    }
}
