//! The log of one core on the real disk: batches go to the ring, segments are prepared in the
//! background, entries are read back.
//!
//! Not here: the format and what is durable (`wal`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use coracle_engine::{Input, Load};
use coracle_raft::{BatchSeq, GroupId, Record};
use coracle_ring::{AlignedBuf, Event, FileId, Ring};
use coracle_wal::{ReadOp, RealDisk, SegmentDone, SegmentId, Wal, WalError};

use super::background::Background;
use super::segments::Segments;
use crate::fatal::{Exit, Fatal};

/// Once a batch is sealed, the next one gathers for this long: at moderate rates the cost is per
/// batch (two exits to the hypervisor or two device commands each), not per byte. A write that
/// comes after a pause does not wait.
const GATHER: Duration = Duration::from_micros(300);
/// How long a stopping node waits for its last writes.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Pieces of one load that a ring key can number.
const PIECE_BITS: u32 = 16;

/// Entries that are being read back; their pieces arrive one by one.
struct OpenLoad {
    load: Load,
    reads: Vec<ReadOp>,
    buffers: Vec<AlignedBuf>,
    missing: usize,
    failed: Option<io::Error>,
}

/// The log of one core and everything it has under way.
pub(super) struct Storage {
    wal: Wal<RealDisk>,
    segments: Segments<RealDisk>,
    files: BTreeMap<SegmentId, FileId>,
    loads: BTreeMap<u64, OpenLoad>,
    next_load: u64,
    sealed_at: Instant,
    idle: bool,
    checkpoint: Checkpoint,
}

/// How fast checkpoints are written, and which part of the log they make superfluous.
struct Checkpoint {
    /// The log is kept near this size, or near eight times the data if that is more.
    log_bytes_target: u64,
    /// The log is large enough for checkpoints to be worth their writes.
    due: bool,
    /// Bytes of checkpoint owed for each byte appended.
    ratio: f64,
    owed_bytes: f64,
}

impl Checkpoint {
    /// A cycle over all data takes as long as this part of the log takes to be appended.
    const CYCLE_DIVISOR: u64 = 2;
    /// Less than this is not worth a step.
    const STEP_BYTES_MIN: f64 = 65_536.0;

    fn update(&mut self, log_bytes: u64, data_bytes: u64) {
        let target = self.log_bytes_target.max(8 * data_bytes);
        self.due = log_bytes > target / 2;
        self.ratio = data_bytes as f64 / (target / Self::CYCLE_DIVISOR) as f64;
        if !self.due {
            self.owed_bytes = 0.0;
        }
    }
}

impl Storage {
    /// Takes over a recovered log; prepares its first segment if none is ready.
    pub(super) fn new(
        mut wal: Wal<RealDisk>,
        background: Background<SegmentDone<File>>,
        log_bytes_target: u64,
    ) -> Result<Self, Fatal> {
        while !wal.can_seal() {
            let Some(task) = wal.wanted_segments().pop() else { break };
            let done = task.run(wal.disk());
            wal.segment_ready(done).map_err(storage_error)?;
        }
        Ok(Self {
            wal,
            segments: Segments::new(background),
            files: BTreeMap::new(),
            loads: BTreeMap::new(),
            next_load: 0,
            sealed_at: Instant::now(),
            idle: true,
            checkpoint: Checkpoint { log_bytes_target, due: false, ratio: 0.0, owed_bytes: 0.0 },
        })
    }

    /// Whether a batch made now would go to the disk at once, and enough time to gather has passed
    /// since the one before.
    pub(super) fn may_seal(&self, now: Instant) -> bool {
        self.wal.can_seal() && now >= self.sealed_at + GATHER
    }

    /// When [`Self::may_seal`] turns true by time alone.
    pub(super) fn may_seal_at(&self) -> Option<Instant> {
        self.wal.can_seal().then(|| self.sealed_at + GATHER)
    }

    /// Adds records to the open batch.
    pub(super) fn append(&mut self, batch: BatchSeq, records: &[Record]) {
        self.idle = false;
        let before = self.wal.pending_bytes();
        self.wal.append(batch, records);
        if self.checkpoint.due {
            let appended = self.wal.pending_bytes().saturating_sub(before);
            self.checkpoint.owed_bytes += appended as f64 * self.checkpoint.ratio;
        }
    }

    /// Bytes of checkpoint to write now; 0 if none are due.
    pub(super) fn take_checkpoint_budget(&mut self) -> usize {
        if !self.checkpoint.due || self.checkpoint.owed_bytes < Checkpoint::STEP_BYTES_MIN {
            return 0;
        }
        std::mem::take(&mut self.checkpoint.owed_bytes) as usize
    }

    /// State records that later ones have superseded.
    pub(super) fn release(&mut self, released: &[(GroupId, BatchSeq)]) {
        for &(group, batch) in released {
            self.wal.release_state_before_batch(group, batch);
        }
    }

    /// Hands to the disk what may go.
    pub(super) fn submit(&mut self, ring: &mut Ring) {
        while let Some(op) = self.wal.next_write() {
            self.segments.appended(op.len as u64);
            let file = open_file(&mut self.files, &self.wal, ring, op.segment);
            match file {
                Ok(file) => ring.write_dsync(file, op.id, op.offset, op.buffer, op.len),
                // Reported as the write's own failure, which latches the log.
                Err(error) => self.failed_submit(op.id, error, op.buffer),
            }
            self.sealed_at = Instant::now();
        }
        self.segments.submit(&mut self.wal);
    }

    fn failed_submit(&mut self, id: u64, error: io::Error, buffer: AlignedBuf) {
        if let Err(error) = self.wal.written(id, Err(error), buffer) {
            tracing::error!(target: "wal", %error, "log failed");
        }
    }

    /// A write has completed; tells what is durable now.
    pub(super) fn written(
        &mut self,
        id: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
    ) -> Result<Option<BatchSeq>, Fatal> {
        self.wal.written(id, result, buffer).map_err(storage_error)
    }

    /// Takes finished background work.
    pub(super) fn background_done(&mut self, ring: &mut Ring) -> Result<(), Fatal> {
        self.segments.take_finished(&mut self.wal).map_err(storage_error)?;
        for segment in self.wal.take_released() {
            if let Some(file) = self.files.remove(&segment) {
                ring.remove_file(file);
            }
        }
        Ok(())
    }

    /// A tick has passed; the store holds `data_bytes`.
    pub(super) fn tick(&mut self, ring: &mut Ring, data_bytes: u64) {
        self.segments.tick();
        let segments = self.wal.live_segments().count() as u64;
        self.checkpoint.update(segments * self.wal.options().segment_bytes, data_bytes);
        if self.wal.is_latched() {
            return;
        }
        // A log that has gone quiet says on disk that its last records are durable, so that
        // later damage to them is not taken for an unfinished write.
        if self.idle && self.wal.idle_watermark() {
            self.submit(ring);
        }
        self.idle = true;
    }

    /// Whether the log has failed: nothing is acknowledged any more.
    pub(super) const fn is_latched(&self) -> bool {
        self.wal.is_latched()
    }

    /// Starts to read entries back; gives the answer at once if that is impossible.
    pub(super) fn load(&mut self, load: Load, ring: &mut Ring) -> Option<Input> {
        let Load { group, first, last, bytes_max } = load;
        let failed =
            |error: String| Some(Input::EntriesLoaded { group, first, entries: Err(error) });
        let mut reads = match self.wal.locate(group, first, last, bytes_max) {
            Ok(reads) => reads,
            Err(error) => return failed(error.to_string()),
        };
        reads.truncate((1 << PIECE_BITS) - 1);
        let number = self.next_load;
        self.next_load += 1;
        let mut buffers = Vec::with_capacity(reads.len());
        for (piece, read) in reads.iter().enumerate() {
            match open_file(&mut self.files, &self.wal, ring, read.segment) {
                Ok(file) => {
                    let key = (number << PIECE_BITS) | piece as u64;
                    ring.read(file, key, read.offset, AlignedBuf::zeroed(read.len), read.len);
                    buffers.push(AlignedBuf::zeroed(0));
                }
                Err(error) => {
                    reads.truncate(piece);
                    if piece == 0 {
                        return failed(error.to_string());
                    }
                    break;
                }
            }
        }
        let missing = reads.len();
        self.loads.insert(number, OpenLoad { load, reads, buffers, missing, failed: None });
        None
    }

    /// A read has completed; gives the answer once all pieces are there.
    pub(super) fn read_done(
        &mut self,
        key: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
    ) -> Option<Input> {
        let number = key >> PIECE_BITS;
        let open = self.loads.get_mut(&number)?;
        let piece = (key & ((1 << PIECE_BITS) - 1)) as usize;
        if let Err(error) = result {
            open.failed.get_or_insert(error);
        }
        open.buffers[piece] = buffer;
        open.missing -= 1;
        if open.missing > 0 {
            return None;
        }
        let open = self.loads.remove(&number)?;
        let entries = match open.failed {
            Some(error) => Err(error.to_string()),
            None => self
                .wal
                .decode_entries(&open.reads, &open.buffers)
                .map_err(|error| error.to_string()),
        };
        let Load { group, first, .. } = open.load;
        Some(Input::EntriesLoaded { group, first, entries })
    }

    /// Makes durable what has been appended, as far as the disk answers in time.
    pub(super) fn stop(&mut self, ring: &mut Ring) -> Result<(), Fatal> {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut events = Vec::new();
        loop {
            while let Some(op) = self.wal.next_write() {
                let file = open_file(&mut self.files, &self.wal, ring, op.segment);
                let file = file.map_err(|error| Fatal::disk("cannot write the log", &error))?;
                ring.write_dsync(file, op.id, op.offset, op.buffer, op.len);
            }
            if self.wal.inflight() == 0 && !self.wal.idle_watermark() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let cause = format!("no answer from the disk for {} s", STOP_PATIENCE.as_secs());
                return Err(Fatal::new(Exit::DiskError, "cannot finish the log", cause, ""));
            }
            let tick = Some(Duration::from_millis(50));
            ring.wait(tick, &mut events).map_err(Fatal::ring)?;
            for event in events.drain(..) {
                if let Event::Written { key, result, buf } = event {
                    self.written(key, result, buf)?;
                }
            }
        }
    }
}

/// The ring's handle on a segment, opened at first use.
fn open_file(
    files: &mut BTreeMap<SegmentId, FileId>,
    wal: &Wal<RealDisk>,
    ring: &mut Ring,
    segment: SegmentId,
) -> io::Result<FileId> {
    if let Some(&file) = files.get(&segment) {
        return Ok(file);
    }
    let Some(file) = wal.file(segment) else {
        return Err(io::Error::other(format!("segment {} is gone", segment.number())));
    };
    let id = ring.add_file(file.try_clone()?);
    files.insert(segment, id);
    Ok(id)
}

/// An error of the log as the end of the process.
pub(super) fn storage_error(error: impl Into<StorageError>) -> Fatal {
    error.into().0
}

/// Turns the log's errors into exit codes.
pub(super) struct StorageError(Fatal);

impl From<WalError> for StorageError {
    fn from(error: WalError) -> Self {
        let (what, fix) = match &error {
            WalError::NoSpace { .. } => (
                "the disk is full: there is no room for the log",
                "make room on the file system of the data directory, then start the node again",
            ),
            _ => (
                "the log failed; nothing more is acknowledged",
                "look at the disk and the kernel log, then start the node again",
            ),
        };
        Self(Fatal::new(Exit::DiskError, what, error.to_string(), fix))
    }
}

impl From<coracle_wal::OpenError> for StorageError {
    fn from(error: coracle_wal::OpenError) -> Self {
        Self(Fatal::new(Exit::DiskError, "cannot open the log", error.to_string(), ""))
    }
}

impl From<coracle_wal::RecoverError> for StorageError {
    fn from(error: coracle_wal::RecoverError) -> Self {
        use coracle_wal::RecoverError;
        let exit = match &error {
            RecoverError::Identity { .. } => Exit::WrongIdentity,
            RecoverError::Version { .. } => Exit::UnknownFormat,
            RecoverError::Gap { .. } | RecoverError::Misplaced { .. } => Exit::DataDamaged,
            RecoverError::Options(_) | RecoverError::TooManyGroups { .. } => Exit::Usage,
            _ => Exit::DiskError,
        };
        Self(Fatal::new(exit, "cannot recover the log", error.to_string(), ""))
    }
}
