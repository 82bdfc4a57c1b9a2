//! The state of an open log.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use coracle_raft::{BatchSeq, GroupId};
use coracle_ring::AlignedBuf;

use crate::batch::{Batch, InFlight};
use crate::echo::Echoes;
use crate::format::{BLOCK_BYTES, Lsn, RecordKind, SegmentHeader};
use crate::groups::{Before, Group, GroupMap};
use crate::segment::SegmentId;
use crate::{Disk, Options};

/// One core's log, open for writing.
///
/// It does no disk work by itself: batch writes and entry reads are handed to the driver as
/// [`WriteOp`](crate::WriteOp) and [`ReadOp`](crate::ReadOp), slow file work as
/// [`SegmentTask`](crate::SegmentTask). Made by [`recover`](crate::recover).
pub struct Wal<D: Disk> {
    pub(crate) disk: D,
    pub(crate) options: Options,
    pub(crate) groups: GroupMap<Group>,
    /// All segments from the oldest to the last one planned; numbers without gaps. Those before
    /// `log_start` are kept for their values only.
    pub(crate) segments: VecDeque<Segment<D::File>>,
    /// Number and position of the segment after the last one in `segments`.
    pub(crate) next_number: u64,
    pub(crate) next_first_lsn: Lsn,
    /// The segment new batches are placed in, and where.
    pub(crate) active: Option<SegmentId>,
    pub(crate) next_offset: u64,
    /// Where the last placed batch starts.
    pub(crate) prev: Lsn,
    pub(crate) open: Option<Batch>,
    /// What stands in the newest batches.
    pub(crate) echoes: Echoes,
    /// What the open batch will say of those before it.
    pub(crate) echo: (RecordKind, Vec<u8>),
    /// Full batches that wait for their turn, oldest first.
    pub(crate) closed: VecDeque<Batch>,
    pub(crate) inflight: VecDeque<InFlight>,
    pub(crate) pool: Vec<AlignedBuf>,
    pub(crate) next_id: u64,
    /// Everything before this is on disk.
    pub(crate) durable: Lsn,
    /// End of the last batch on disk that holds records.
    pub(crate) data_end: Lsn,
    /// Highest durable position that is itself recorded on disk.
    pub(crate) recorded: Lsn,
    /// Segments before this one are not needed for terms, votes and bases.
    pub(crate) restated: Option<SegmentId>,
    /// Whether the records being put are those written again at a segment's start.
    pub(crate) restating: bool,
    /// The oldest segment that recovery has to read.
    pub(crate) log_start: SegmentId,
    /// No value is needed in segments before this one.
    pub(crate) values_from: SegmentId,
    /// Releases that wait until everything before their position is on disk.
    pub(crate) releases: VecDeque<(Lsn, Release)>,
    /// Files to recycle or remove, oldest first.
    pub(crate) retired: VecDeque<Retired<D::File>>,
    pub(crate) released: Vec<SegmentId>,
    /// Files in all up to which retired ones are kept.
    pub(crate) files_kept: usize,
    /// No file is made while one is ready.
    pub(crate) is_thrifty: bool,
    pub(crate) task_running: bool,
    pub(crate) is_taking_space: bool,
    pub(crate) latched: bool,
    pub(crate) salts: Salts,
    /// The batch that records are being put for.
    pub(crate) batch: BatchSeq,
    /// Number of records before the first one of a new group.
    pub(crate) first_seq: u64,
    pub(crate) payload_bytes_max: usize,
}

/// A segment that is in use or planned.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) header: SegmentHeader,
    /// None until it is prepared.
    pub(crate) file: Option<F>,
    /// Length of the file.
    pub(crate) file_bytes: u64,
    /// Groups that need something in it.
    pub(crate) groups: usize,
    /// Whether its header was found on disk: without one nothing in it can be checked.
    pub(crate) readable: bool,
}

/// Something that is needed no more once the log is durable up to a position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Release {
    State(GroupId, Before),
    ValuesBefore(SegmentId),
}

/// A file nothing needs any more.
///
/// A read may be under way in it. The file is held open until it is reused, and its name is gone
/// before its bytes change, so the read ends on this file. Whatever it brings, decoding it ends
/// with `Recycled`, because the segment is not known any more; should its number ever be known
/// again, the bytes fail the test of the seed, which holds the salt of the new use.
#[derive(Debug)]
pub(crate) struct Retired<F> {
    pub(crate) name: String,
    pub(crate) segment: Option<SegmentId>,
    pub(crate) _file: Option<F>,
    pub(crate) file_bytes: u64,
    /// Whether it may become a new segment.
    pub(crate) reusable: bool,
}

impl<D: Disk> Wal<D> {
    pub(crate) fn new(disk: D, options: Options, next_number: u64, next_first_lsn: Lsn) -> Self {
        let salts = Salts::new(options.salt_seed);
        let payload_bytes_max = options.payload_bytes_max();
        let echoes = Echoes::new(options.echo_parts_max());
        Self {
            disk,
            options,
            groups: GroupMap::default(),
            segments: VecDeque::new(),
            next_number,
            next_first_lsn,
            active: None,
            next_offset: 0,
            prev: Lsn::ZERO,
            open: None,
            echoes,
            echo: (RecordKind::Echo { of: Lsn::ZERO, whole: true }, Vec::new()),
            closed: VecDeque::new(),
            inflight: VecDeque::new(),
            pool: Vec::new(),
            next_id: 0,
            durable: Lsn::ZERO,
            data_end: Lsn::ZERO,
            recorded: Lsn::ZERO,
            restated: None,
            restating: false,
            log_start: SegmentId::new(next_number),
            values_from: SegmentId::default(),
            releases: VecDeque::new(),
            retired: VecDeque::new(),
            released: Vec::new(),
            files_kept: 0,
            is_thrifty: false,
            task_running: false,
            is_taking_space: false,
            latched: false,
            salts,
            batch: BatchSeq::default(),
            first_seq: 0,
            payload_bytes_max,
        }
    }

    /// The disk given at recovery.
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// The options given at recovery.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// The open file of a segment that a write or read names; `None` once it is recycled.
    pub fn file(&self, segment: SegmentId) -> Option<&D::File> {
        self.segment(segment)?.file.as_ref()
    }

    /// Whether an error was reported: nothing is acknowledged any more.
    pub const fn is_latched(&self) -> bool {
        self.latched
    }

    /// Everything before this position is on disk.
    pub const fn durable(&self) -> Lsn {
        self.durable
    }

    /// Where the next record will be put, or a little before: never after it.
    pub fn position(&self) -> Lsn {
        match (&self.open, self.active.and_then(|id| self.segment(id))) {
            (Some(batch), _) => batch.lsn.plus(batch.used as u64),
            (None, Some(active)) => active.header.first_lsn.plus(self.next_offset),
            (None, None) => self.next_first_lsn,
        }
    }

    /// Writes in flight.
    pub fn inflight(&self) -> usize {
        self.inflight.len()
    }

    /// Bytes appended that [`Wal::next_write`] has not handed out yet.
    pub fn pending_bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |batch| batch.used);
        self.closed.iter().map(|batch| batch.used).sum::<usize>() + open
    }

    /// Whether [`Wal::next_write`] would hand out a batch now if there were something to write:
    /// fewer writes are in flight than allowed, nothing waits and a segment is ready.
    pub fn can_seal(&self) -> bool {
        if self.latched || self.inflight.len() >= self.options.inflight_max {
            return false;
        }
        if !self.closed.is_empty() {
            return false;
        }
        let place = self.open.as_ref().map(|batch| batch.segment).or(self.active);
        let ready = |id| self.segment(id).is_some_and(|segment| segment.file.is_some());
        match place {
            // A batch that does not fit goes to the next one.
            Some(id) if self.open.is_some() || self.remaining() >= BLOCK_BYTES as u64 => ready(id),
            Some(id) => ready(SegmentId::new(id.number() + 1)),
            None => self.segments.front().is_some_and(|segment| segment.file.is_some()),
        }
    }

    /// Bytes on disk, files prepared ahead or not yet removed included.
    pub fn disk_bytes(&self) -> u64 {
        let prepared = self.segments.iter().filter(|segment| segment.file.is_some());
        prepared.map(|segment| segment.file_bytes).sum::<u64>()
            + self.retired.iter().map(|retired| retired.file_bytes).sum::<u64>()
    }

    /// Bytes that can still be written into the segments at hand.
    pub fn free_bytes(&self) -> u64 {
        let active = self.active.map_or(0, |_| self.remaining());
        let ahead = self.segments.iter().filter(|segment| {
            segment.file.is_some() && Some(SegmentId::new(segment.header.number)) > self.active
        });
        active + ahead.map(|segment| segment.header.segment_bytes - BLOCK_BYTES as u64).sum::<u64>()
    }

    /// The oldest segment of the log proper, from which on recovery reads everything. Those before
    /// it, if there are any, are kept for their values only.
    pub const fn log_start(&self) -> SegmentId {
        self.log_start
    }

    /// Segments with content, oldest first: those kept for their values only, then the log proper.
    pub fn live_segments(&self) -> impl Iterator<Item = SegmentId> {
        let active = self.active;
        let ids = self.segments.iter().map(|segment| SegmentId::new(segment.header.number));
        ids.filter(move |&id| Some(id) <= active)
    }

    pub(crate) fn segment(&self, id: SegmentId) -> Option<&Segment<D::File>> {
        let first = self.segments.front()?.header.number;
        self.segments.get(usize::try_from(id.number().checked_sub(first)?).ok()?)
    }

    pub(crate) fn segment_mut(&mut self, id: SegmentId) -> Option<&mut Segment<D::File>> {
        let first = self.segments.front()?.header.number;
        self.segments.get_mut(usize::try_from(id.number().checked_sub(first)?).ok()?)
    }

    /// Bytes left in the active segment.
    pub(crate) fn remaining(&self) -> u64 {
        let active = self.active.and_then(|id| self.segment(id));
        active.map_or(0, |segment| segment.header.segment_bytes.saturating_sub(self.next_offset))
    }

    pub(crate) fn file_name(&self, segment: SegmentId) -> String {
        self.disk.display(&segment.file_name())
    }
}

/// Durability that a batch brings beside its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnDurable {
    Purge(GroupId, coracle_raft::LogIndex),
    Reset(GroupId, SegmentId),
}

/// What is durable once a batch is.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    pub(crate) batch: Option<BatchSeq>,
    pub(crate) then: Vec<OnDurable>,
    /// This segment starts with everything that older ones hold of terms, votes and bases.
    pub(crate) restated: Option<SegmentId>,
}

/// Salts of segments: never the same twice for one file.
#[derive(Debug)]
pub(crate) struct Salts(u64);

impl Salts {
    fn new(seed: u64) -> Self {
        if seed != 0 {
            return Self(seed);
        }
        // The standard library's hash keys are random numbers of the operating system.
        Self(RandomState::new().build_hasher().finish())
    }

    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
