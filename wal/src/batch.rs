//! Batches: records go in, one write comes out, and its completion makes them durable.

use std::io;

use coracle_raft::{BatchSeq, Bug, GroupId, Payload, Place, Record, planted};
use coracle_ring::AlignedBuf;

use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, Lsn, RECORD_HEADER_BYTES, RecordHeader,
    RecordKind, SegmentHeader, aligned, record_bytes, record_seed,
};
use crate::groups::{Group, Spot};
use crate::segment::SegmentId;
use crate::wal::{OnDurable, Promise, Segment};
use crate::{Disk, Wal, WalError};

/// A write for the driver: `buffer[..len]` at `offset` of the segment's file, as one durable
/// write (`RWF_DSYNC`). Its result goes to [`Wal::written`], with the buffer.
#[derive(Debug)]
pub struct WriteOp {
    /// Names this write.
    pub id: u64,
    /// Which file: [`Wal::file`].
    pub segment: SegmentId,
    /// Where in the file; a multiple of 4 KiB.
    pub offset: u64,
    /// The bytes; may be longer than `len`.
    pub buffer: AlignedBuf,
    /// How many bytes to write; a multiple of 4 KiB.
    pub len: usize,
}

/// A batch that is being filled, or is full and waits. Its place is fixed from the start.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) buffer: AlignedBuf,
    pub(crate) segment: SegmentId,
    pub(crate) offset: u64,
    pub(crate) lsn: Lsn,
    /// Bytes used; the header's are counted from the start.
    pub(crate) used: usize,
    /// Bytes it may use, its echo apart.
    limit: usize,
    salt: u64,
    seed: u32,
    count: u32,
    records_crc: u32,
    pub(crate) promise: Promise,
}

/// A batch handed to the driver.
#[derive(Debug)]
pub(crate) struct InFlight {
    id: u64,
    pub(crate) segment: SegmentId,
    offset: u64,
    len: usize,
    end: Lsn,
    has_records: bool,
    /// The durable position in its header.
    recorded: Lsn,
    promise: Promise,
    done: bool,
}

impl<D: Disk> Wal<D> {
    /// Copies the records into the open batch. They are durable once [`Wal::written`] returns
    /// this batch number or a later one. Adds to `places` where each of them stands, in their
    /// order; see [`Wal::locate_value`].
    ///
    /// A latched log takes nothing: what is appended to it is never durable, and its places mean
    /// nothing.
    ///
    /// # Panics
    /// If a payload is longer than [`Options::payload_bytes_max`](crate::Options), or if there
    /// are records of more groups than [`Options::groups_max`](crate::Options).
    pub fn append(&mut self, batch: BatchSeq, records: &[Record], places: &mut Vec<Place>) {
        if self.latched {
            places.extend(records.iter().map(|_| Place::default()));
            return;
        }
        self.batch = batch;
        for record in records {
            let place = match record {
                Record::Entry { group, entry } => {
                    let kind = RecordKind::Entry { kind: entry.kind, position: entry.position() };
                    self.put(*group, kind, Some(&entry.payload))
                }
                Record::HardState { group, hard_state } => {
                    self.put(*group, RecordKind::HardState(*hard_state), None)
                }
                Record::State { group, payload } => {
                    self.put(*group, RecordKind::State, Some(payload))
                }
                Record::Value { group, payload } => {
                    self.put(*group, RecordKind::Value, Some(payload))
                }
                Record::Purge { group, base } => {
                    let restart =
                        self.groups.get(group).is_some_and(|state| state.restarts_at(*base));
                    self.put(*group, RecordKind::Purge { base: *base, restart }, None)
                }
            };
            places.push(place);
        }
        self.promise_batch(batch);
    }

    /// Appends the statement that everything the log says about a group so far is void, damage
    /// included. What the group needs, its term and vote first, must be appended after it, best
    /// with the same batch number. The way back for a group that recovery reported as damaged.
    pub fn reset_group(&mut self, batch: BatchSeq, group: GroupId) {
        if self.latched {
            return;
        }
        self.put(group, RecordKind::Reset, None);
        self.promise_batch(batch);
    }

    fn promise_batch(&mut self, batch: BatchSeq) {
        let open = match self.open.as_mut() {
            Some(open) => open,
            None => {
                self.ensure_room(0);
                self.open.as_mut().expect("room was just made")
            }
        };
        assert!(
            open.promise.batch.is_none_or(|old| old <= batch),
            "batch numbers must not go back: {batch:?} after {:?}",
            open.promise.batch
        );
        open.promise.batch = Some(batch);
    }

    /// Puts a batch without records in line if the log is idle and does not yet say on disk that
    /// its last records are durable. Returns whether there is something to write.
    ///
    /// Recovery takes damage in what is recorded as durable for damage, and not for the traces of
    /// a write that power loss cut short.
    pub fn idle_watermark(&mut self) -> bool {
        let idle = self.open.is_none() && self.closed.is_empty() && self.inflight.is_empty();
        if self.latched || !idle || self.recorded >= self.data_end {
            return false;
        }
        self.ensure_room(0);
        true
    }

    /// The next write, if one may start now. Closes the open batch: call it when nothing is in
    /// flight, or when enough has gathered.
    pub fn next_write(&mut self) -> Option<WriteOp> {
        if self.latched || self.inflight.len() >= self.options.inflight_max {
            return None;
        }
        let segment = self.closed.front().or(self.open.as_ref())?.segment;
        self.file(segment)?;
        if self.closed.is_empty() {
            self.close();
        }
        let batch = self.closed.pop_front()?;
        Some(self.seal(batch))
    }

    /// Takes the result of a write. Returns the newest batch number that became durable, if one
    /// did: all batches up to it are on disk.
    ///
    /// # Errors
    /// An error or a short write, the first time; from then on [`WalError::Latched`].
    ///
    /// # Panics
    /// If `id` is not in flight.
    pub fn written(
        &mut self,
        id: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
    ) -> Result<Option<BatchSeq>, WalError> {
        self.recycle_buffer(buffer);
        let flight = self.inflight.iter_mut().find(|flight| flight.id == id);
        let flight = flight.expect("the driver returns a write that it was given, once");
        assert!(!flight.done, "write {id} was returned before");
        flight.done = true;
        let (segment, offset, len) = (flight.segment, flight.offset, flight.len);
        if self.latched {
            return Err(WalError::Latched);
        }
        match result {
            Ok(written) if written == len => {}
            Ok(written) => {
                self.latched = true;
                let file = self.file_name(segment);
                return Err(WalError::ShortWrite { file, offset, len, written });
            }
            Err(_) if planted(Bug::FailedWriteAcked) => {}
            Err(source) => {
                self.latched = true;
                let file = self.file_name(segment);
                return Err(WalError::Write { file, offset, len, source });
            }
        }
        Ok(self.advance())
    }

    /// Counts the completed prefix of what was in flight as durable.
    fn advance(&mut self) -> Option<BatchSeq> {
        let mut newest = None;
        let mut moved = false;
        while self.inflight.front().is_some_and(|flight| flight.done) {
            let Some(flight) = self.inflight.pop_front() else { break };
            assert!(flight.end > self.durable, "{} is durable before {}", flight.end, self.durable);
            self.durable = flight.end;
            self.recorded = self.recorded.max(flight.recorded);
            if flight.has_records {
                self.data_end = flight.end;
            }
            newest = flight.promise.batch.or(newest);
            self.restated = flight.promise.restated.or(self.restated);
            for effect in flight.promise.then {
                self.apply_durable(effect);
            }
            moved = true;
        }
        if moved {
            self.apply_releases();
            self.retire_segments();
        }
        if planted(Bug::DurableOutOfOrder) {
            let done = self.inflight.iter().rfind(|flight| flight.done);
            newest = done.and_then(|flight| flight.promise.batch).or(newest);
        }
        newest
    }

    fn seal(&mut self, mut batch: Batch) -> WriteOp {
        let len = aligned(batch.used as u64) as usize;
        batch.buffer[batch.used..len].fill(0);
        let header = BatchHeader {
            salt: batch.salt,
            lsn: batch.lsn,
            durable: if planted(Bug::WatermarkNotWritten) { Lsn::ZERO } else { self.durable },
            prev: self.prev,
            len: batch.used as u32,
            count: batch.count,
            records_crc: batch.records_crc,
        };
        let head = batch.buffer.first_chunk_mut().expect("a batch is at least one block");
        header.encode(head);
        self.prev = batch.lsn;
        self.next_id += 1;
        self.inflight.push_back(InFlight {
            id: self.next_id,
            segment: batch.segment,
            offset: batch.offset,
            len,
            end: batch.lsn.plus(len as u64),
            // Its echo apart.
            has_records: batch.count > 1,
            recorded: self.durable,
            promise: batch.promise,
            done: false,
        });
        WriteOp {
            id: self.next_id,
            segment: batch.segment,
            offset: batch.offset,
            buffer: batch.buffer,
            len,
        }
    }

    /// Puts one record into the open batch: the one copy that the log makes of a payload. Returns
    /// where it stands.
    fn put(&mut self, group: GroupId, kind: RecordKind, payload: Option<&Payload>) -> Place {
        let bytes = payload.map_or(&[][..], |payload| payload.bytes());
        let limit = self.payload_bytes_max;
        assert!(bytes.len() <= limit, "payload of {} bytes, at most {limit} fit", bytes.len());
        let size = record_bytes(bytes.len());
        self.ensure_room(size);
        let batch = self.open.as_mut().expect("room was just made");
        let groups_max = self.options.groups_max;
        let (groups_len, first_seq) = (self.groups.len(), self.first_seq);
        let state = self.groups.entry(group).or_insert_with(|| {
            assert!(groups_len < groups_max, "more than {groups_max} groups in one log");
            Group::starting_at(first_seq)
        });
        state.seq += 1;
        let header = RecordHeader {
            group,
            seq: state.seq,
            kind,
            payload_len: bytes.len() as u32,
            payload_crc: payload.map_or(0, Payload::checksum),
            offset: batch.used as u32,
        };
        let spot = Spot {
            segment: batch.segment,
            batch: batch.offset as u32,
            offset: batch.used as u32,
            len: size as u32,
            lsn: batch.lsn.plus(batch.used as u64),
        };
        batch.put(&header, bytes, size);
        self.echoes.push(&header);
        let segment = batch.segment;
        let mut used_more = 0;
        match kind {
            RecordKind::Entry { position, .. } => {
                used_more += usize::from(state.entry_put(position, spot));
            }
            RecordKind::HardState(hard_state) => state.hard_state = Some(hard_state),
            RecordKind::State => used_more += usize::from(state.state_put(spot, self.batch)),
            RecordKind::Purge { base, .. } => {
                state.purge_put(base);
                batch.promise.then.push(OnDurable::Purge(group, base.index));
            }
            RecordKind::Reset => {
                batch.promise.then.push(OnDurable::Reset(group, segment));
                if state.reset_put(segment) {
                    self.release_use(segment);
                }
            }
            RecordKind::Value => {}
            RecordKind::LogStart { .. } | RecordKind::Echo { .. } => {
                unreachable!("they are of no group, see put_log_start and close")
            }
        }
        if used_more > 0 {
            self.segment_mut(segment).expect("a batch lies in a known segment").groups += 1;
        }
        spot.place()
    }

    /// Says where the log proper starts, as the first record of a segment.
    fn put_log_start(&mut self) {
        let late = u64::from(planted(Bug::LogStartTooLate));
        let segment = self.log_start.number() + late;
        let batch = self.open.as_mut().expect("a batch is open in the new segment");
        assert_eq!(batch.used, BATCH_HEADER_BYTES, "recovery looks for it in one place only");
        let header = RecordHeader {
            group: GroupId::new(0),
            seq: 0,
            kind: RecordKind::LogStart { segment },
            payload_len: 0,
            payload_crc: 0,
            offset: batch.used as u32,
        };
        batch.put(&header, &[], RECORD_HEADER_BYTES);
    }

    /// Makes the open batch one that has room for `size` bytes.
    fn ensure_room(&mut self, size: usize) {
        if self.open.as_ref().is_some_and(|batch| batch.used + size <= batch.limit) {
            return;
        }
        self.close();
        let (kind, payload) = &mut self.echo;
        *kind = self.echoes.encode(payload);
        let echo = record_bytes(payload.len());
        // A segment starts with a record of its own.
        let log_start = if self.restating { RECORD_HEADER_BYTES } else { 0 };
        let needed = aligned((BATCH_HEADER_BYTES + log_start + size + echo) as u64);
        if self.active.is_none() || self.remaining() < needed {
            self.roll();
            // What was written again may have left a batch open, with room or not.
            return self.ensure_room(size);
        }
        let wanted = needed.max(self.options.batch_bytes_max as u64 & !(BLOCK_BYTES as u64 - 1));
        let bytes = wanted.min(self.remaining()) as usize;
        self.open_batch(bytes, bytes - echo);
    }

    /// Ends the open batch, if there is one, with the echo of those before it.
    fn close(&mut self) {
        let Some(mut batch) = self.open.take() else { return };
        let (kind, payload) = &self.echo;
        let header = RecordHeader {
            group: GroupId::new(0),
            seq: 0,
            kind: *kind,
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            offset: batch.used as u32,
        };
        batch.put(&header, payload, record_bytes(payload.len()));
        self.echoes.close(batch.lsn, batch.lsn.plus(aligned(batch.used as u64)));
        self.next_offset = batch.offset + aligned(batch.used as u64);
        self.closed.push_back(batch);
    }

    fn open_batch(&mut self, bytes: usize, limit: usize) {
        let id = self.active.expect("a segment is active before a batch is opened");
        let header = self.segment(id).expect("the active segment is known").header;
        let buffer = self.buffer(bytes);
        let lsn = header.first_lsn.plus(self.next_offset);
        self.open = Some(Batch {
            buffer,
            segment: id,
            offset: self.next_offset,
            lsn,
            used: BATCH_HEADER_BYTES,
            limit,
            salt: header.salt,
            seed: record_seed(header.salt, lsn),
            count: 0,
            records_crc: 0,
            promise: Promise::default(),
        });
    }

    /// Goes on to the next segment and writes there again what older ones must not be kept for.
    fn roll(&mut self) {
        assert!(
            !self.restating,
            "segments of {} bytes are too small for {} groups",
            self.options.segment_bytes,
            self.groups.len()
        );
        self.restating = true;
        let next = self.active.map_or_else(
            || self.segments.front().map_or(self.next_number, |segment| segment.header.number),
            |active| active.number() + 1,
        );
        if next == self.next_number {
            self.plan_segment();
        }
        let id = SegmentId::new(next);
        self.active = Some(id);
        self.next_offset = BLOCK_BYTES as u64;
        self.ensure_room(0);
        self.put_log_start();
        let mut groups: Vec<_> =
            self.groups.iter().map(|(id, g)| (*id, g.hard_state, g.base)).collect();
        groups.sort_unstable_by_key(|&(group, ..)| group);
        for (group, hard_state, base) in groups {
            if let Some(hard_state) = hard_state.filter(|_| !planted(Bug::HardStateNotRestated)) {
                self.put(group, RecordKind::HardState(hard_state), None);
            }
            if let Some(base) = base.filter(|_| !planted(Bug::BaseNotRestated)) {
                self.put(group, RecordKind::Purge { base, restart: false }, None);
            }
        }
        let open = self.open.as_mut().expect("a batch is open in the new segment");
        open.promise.restated = Some(id);
        self.restating = false;
    }

    /// Adds a segment at the end. Its salt is fixed here, its file comes later.
    pub(crate) fn plan_segment(&mut self) -> SegmentHeader {
        let header = SegmentHeader {
            identity: self.options.identity,
            number: self.next_number,
            salt: self.salts.next(),
            first_lsn: self.next_first_lsn,
            segment_bytes: self.options.segment_bytes,
        };
        self.next_number += 1;
        self.next_first_lsn = self.next_first_lsn.plus(header.segment_bytes);
        let file_bytes = header.segment_bytes;
        self.segments.push_back(Segment {
            header,
            file: None,
            file_bytes,
            groups: 0,
            readable: true,
        });
        header
    }

    fn buffer(&mut self, bytes: usize) -> AlignedBuf {
        let usual = aligned(self.options.batch_bytes_max as u64) as usize;
        if bytes > usual {
            return AlignedBuf::zeroed(bytes);
        }
        self.pool.pop().unwrap_or_else(|| AlignedBuf::zeroed(usual))
    }

    /// Keeps as many buffers as can be in use at once; larger ones are single events.
    fn recycle_buffer(&mut self, buffer: AlignedBuf) {
        let usual = aligned(self.options.batch_bytes_max as u64) as usize;
        if buffer.len() == usual && self.pool.len() <= self.options.inflight_max {
            self.pool.push(buffer);
        }
    }
}

impl Batch {
    fn put(&mut self, header: &RecordHeader, payload: &[u8], size: usize) {
        let record = &mut self.buffer[self.used..self.used + size];
        let (head, body) = record.split_at_mut(RECORD_HEADER_BYTES);
        let head = head.first_chunk_mut().expect("the record has a header");
        let crc = header.encode(self.seed, head);
        let (bytes, padding) = body.split_at_mut(payload.len());
        bytes.copy_from_slice(payload);
        padding.fill(0);
        self.records_crc = crc32c::crc32c_append(self.records_crc, &crc.to_le_bytes());
        self.count += 1;
        self.used += size;
    }
}
