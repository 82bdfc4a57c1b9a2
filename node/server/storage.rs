//! The log of one core on the real disk: batches go to the ring, segments are prepared and
//! checkpoints written in the background, entries and values are read back.
//!
//! Not here: the format and what is durable (`wal`), what is in a checkpoint (`engine`).

mod checkpoint;
mod keys;
mod loads;
mod room;
mod upkeep;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use coracle_engine::{Core, DiskSpace, Effects, Input};
use coracle_raft::{BatchSeq, Place, Record};
use coracle_ring::{AlignedBuf, Event, FileId, Ring};
use coracle_wal::{RealDisk, SegmentDone, SegmentId, Wal, WalError};

use super::background::Background;
use super::segments::Segments;
use crate::config::{CheckpointConfig, WalConfig};
use crate::fatal::{Exit, Fatal};

pub(super) use checkpoint::{CheckpointDone, Newest};
pub(super) use room::Room;

use checkpoint::CheckpointFiles;
use keys::{Read, split};
use loads::Loads;
use room::Sizes;
use upkeep::{Levels, Upkeep};
use values::{Log, Values};

/// Once a batch is sealed, the next one gathers for this long: at moderate rates the cost is per
/// batch (two exits to the hypervisor or two device commands each), not per byte. A write that
/// comes after a pause does not wait.
const GATHER: Duration = Duration::from_micros(300);
/// How long a stopping node waits for its last writes.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The ring's handles on segments.
type Files = BTreeMap<SegmentId, FileId>;

/// The log of one core and everything it has under way.
pub(super) struct Storage {
    wal: Wal<RealDisk>,
    segments: Segments<RealDisk>,
    files: Files,
    loads: Loads,
    values: Values,
    checkpoints: CheckpointFiles<RealDisk>,
    upkeep: Upkeep,
    room: Room,
    sealed_at: Instant,
    idle: bool,
    #[cfg(feature = "failpoints")]
    named: crate::failpoints::Named,
}

/// Where a log does its slow work.
pub(super) struct Workers {
    /// Segments are prepared here.
    pub(super) segments: Background<SegmentDone<File>>,
    /// Checkpoints are written here: the log must not wait for them.
    pub(super) checkpoints: Background<CheckpointDone<RealDisk>>,
}

/// Bytes on the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskUse {
    /// Segments in use, made ahead and not yet used again.
    pub(super) log_bytes: u64,
    /// The newest checkpoint.
    pub(super) checkpoint_bytes: u64,
    /// What this core may still take of the disk.
    pub(super) free_bytes: u64,
    /// How full the disk is.
    pub(super) space: DiskSpace,
}

impl Storage {
    /// Takes over a recovered log, and its newest checkpoint; prepares its first segment if none is
    /// ready.
    pub(super) fn new(
        mut wal: Wal<RealDisk>,
        newest: Option<Newest>,
        workers: Workers,
        (log, checkpoint): (WalConfig, CheckpointConfig),
        room: Room,
    ) -> Result<Self, Fatal> {
        while !wal.can_seal() {
            let Some(task) = wal.wanted_segments().pop() else { break };
            let done = task.run(wal.disk());
            match wal.segment_ready(done) {
                // It serves what can be read, and goes on when there is space.
                Err(error @ WalError::NoSpace { .. }) => {
                    tracing::error!(target: "wal", %error, "the disk is full");
                    break;
                }
                ready => ready.map_err(storage_error)?,
            }
        }
        let (disk, identity, now) = (wal.disk().clone(), wal.options().identity, Instant::now());
        Ok(Self {
            wal,
            segments: Segments::new(workers.segments),
            files: BTreeMap::new(),
            loads: Loads::default(),
            values: Values::default(),
            checkpoints: CheckpointFiles::new(disk, identity, workers.checkpoints, newest),
            upkeep: Upkeep::new(checkpoint, log.bytes_max, now),
            room,
            sealed_at: now,
            idle: true,
            #[cfg(feature = "failpoints")]
            named: crate::failpoints::Named::default(),
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

    /// Does what the core wants of its log, but for loads and reads: appends its records and tells
    /// it their places, releases what it needs no more, writes its checkpoint.
    pub(super) fn execute(&mut self, effects: &mut Effects, core: &mut Core) {
        if !effects.records.is_empty() {
            let places = self.append(effects.batch, &effects.records);
            effects.records.clear();
            core.handle(Input::Placed { batch: effects.batch, places });
        }
        for (group, batch) in effects.released.drain(..) {
            self.wal.release_state_before_batch(group, batch);
        }
        if let Some(segment) = effects.values_from.take() {
            self.wal.release_values_before(segment);
        }
        if !effects.checkpoint.is_empty() {
            self.checkpoints.push(effects.checkpoint.drain(..));
        }
    }

    /// Adds records to the open batch; their places.
    fn append(&mut self, batch: BatchSeq, records: &[Record]) -> Vec<Place> {
        self.idle = false;
        #[cfg(feature = "failpoints")]
        self.named.appending(batch, records);
        let before = self.wal.pending_bytes();
        let mut places = Vec::with_capacity(records.len());
        self.wal.append(batch, records, &mut places);
        let appended = self.wal.pending_bytes().saturating_sub(before);
        let moved = records.iter().map(|record| match record {
            Record::Value { payload, .. } => payload.len(),
            _ => 0,
        });
        self.upkeep.appended(appended as u64, moved.sum::<usize>() as u64);
        places
    }

    /// Lets the core go on with its checkpoint and with emptying old segments, as much as is due.
    pub(super) fn upkeep(&mut self, core: &mut Core) {
        // A step that comes after the end of a checkpoint would begin the next one.
        if core.is_checkpointing() && self.checkpoints.has_room() {
            let bytes = self.upkeep.take_sections();
            if bytes > 0 {
                core.checkpoint_step(bytes);
            }
        }
        if let Some(bytes) = self.upkeep.scan_bytes().filter(|_| self.room.may_move())
            && core.gc_step(self.wal.log_start().number(), bytes)
        {
            self.upkeep.scanned(bytes);
        }
    }

    /// Hands to the disk what may go.
    pub(super) fn submit(&mut self, ring: &mut Ring) {
        while let Some(op) = self.wal.next_write() {
            self.segments.appended(op.len as u64);
            let file = open_file(&mut self.files, &self.wal, ring, op.segment);
            failpoint!("wal_before_submit");
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
        // It is synced as well: the write is one with its sync.
        failpoint!("wal_after_write");
        let durable = self.wal.written(id, result, buffer).map_err(storage_error);
        failpoint!("wal_after_sync");
        #[cfg(feature = "failpoints")]
        if let Ok(Some(batch)) = &durable {
            self.named.durable(*batch);
        }
        durable
    }

    /// Takes finished background work.
    pub(super) fn background_done(
        &mut self,
        ring: &mut Ring,
        core: &mut Core,
    ) -> Result<(), Fatal> {
        self.segments.take_finished(&mut self.wal).map_err(storage_error)?;
        for segment in self.wal.take_released() {
            if let Some(file) = self.files.remove(&segment) {
                ring.remove_file(file);
            }
            let left = self.wal.live_segments().count();
            tracing::debug!(target: "wal", segment = segment.number(), left, "segment recycled");
        }
        let upkeep = &mut self.upkeep;
        self.checkpoints.take_finished(&mut |input| {
            if matches!(input, Input::Checkpointed { result: Err(_), .. }) {
                upkeep.checkpoint_failed(Instant::now());
            }
            core.handle(input);
        });
        Ok(())
    }

    /// A tick has passed.
    pub(super) fn tick(&mut self, ring: &mut Ring, core: &mut Core) {
        self.segments.tick();
        self.checkpoints.tick();
        if self.wal.is_latched() {
            return;
        }
        self.look_at_space(core);
        if self.upkeep.tick(&self.levels(core), Instant::now()) {
            core.checkpoint_step(1);
        }
        let thrifty = self.room.is_thrifty();
        let files = if thrifty { 0 } else { self.upkeep.files_bytes() };
        let files = files / self.wal.options().segment_bytes;
        self.wal.be_thrifty(thrifty);
        self.wal.keep_files(usize::try_from(files).unwrap_or(usize::MAX));
        // A log that has gone quiet says on disk that its last records are durable, so that
        // later damage to them is not taken for an unfinished write.
        if self.idle && self.wal.idle_watermark() {
            self.submit(ring);
        }
        self.idle = true;
    }

    /// Tells the core how full the disk is, when that changes.
    fn look_at_space(&mut self, core: &mut Core) {
        if self.room.is_measuring_due() {
            self.checkpoints.measure();
        }
        let newest = self.checkpoints.newest_bytes();
        let sizes = Sizes {
            log_bytes: self.wal.disk_bytes(),
            reserved_bytes: self.wal.reserved_bytes(),
            checkpoint_bytes: if newest > 0 { newest } else { core.index_bytes() },
            is_taking_space: self.wal.is_taking_space(),
        };
        if let Some(available) = self.checkpoints.take_available() {
            self.room.measured(available, &sizes);
        }
        match self.segments.take_granted() {
            Some(true) => self.room.granted(),
            Some(false) => self.room.refused(&sizes),
            None => {}
        }
        let before = self.room.level();
        let Some(level) = self.room.look(&sizes) else { return };
        let (free_bytes, reserved_bytes) = (self.room.free_bytes(), sizes.reserved_bytes);
        let (space, was) = (level.name(), before.name());
        let text = match level {
            DiskSpace::Ample => "the disk has space again",
            DiskSpace::Low => "the disk is nearly full: writes that add data are refused",
            DiskSpace::Scarce => "the disk is full: all writes are refused",
            DiskSpace::Out => "the disk is full: what is left is for elections",
        };
        if level > before {
            tracing::error!(target: "wal", space, was, free_bytes, reserved_bytes, "{text}");
        } else {
            tracing::info!(target: "wal", space, was, free_bytes, reserved_bytes, "{text}");
        }
        core.handle(Input::Space(level));
    }

    fn levels(&self, core: &Core) -> Levels {
        let start = self.wal.log_start().number();
        let oldest = core.oldest_value().unwrap_or(start);
        let last = self.wal.live_segments().last().map_or(start, SegmentId::number);
        let segment_bytes = self.wal.options().segment_bytes;
        Levels {
            is_checkpointing: core.is_checkpointing(),
            newest_bytes: self.checkpoints.newest_bytes(),
            index_bytes: core.index_bytes(),
            live_bytes: core.live_bytes(),
            log_bytes: (last + 1).saturating_sub(oldest.min(start)) * segment_bytes,
            has_old_values: oldest < start,
            // And the one that is being prepared.
            files_bytes: (self.wal.live_segments().count() + self.wal.spare_count() + 1) as u64
                * segment_bytes,
            segment_bytes,
            is_pressed: self.room.is_pressed(),
        }
    }

    /// What it takes of the disk.
    pub(super) fn disk_use(&self) -> DiskUse {
        let checkpoint_bytes = self.checkpoints.newest_bytes();
        let (free_bytes, space) = (self.room.free_bytes(), self.room.level());
        DiskUse { log_bytes: self.wal.disk_bytes(), checkpoint_bytes, free_bytes, space }
    }

    /// Whether the log has failed: nothing is acknowledged any more.
    pub(super) const fn is_latched(&self) -> bool {
        self.wal.is_latched()
    }

    /// Starts to read what the core asks for; answers that are there at once go to it.
    pub(super) fn read(&mut self, effects: &mut Effects, ring: &mut Ring, core: &mut Core) {
        let log = &mut Log { wal: &self.wal, files: &mut self.files, ring };
        for load in effects.loads.drain(..) {
            if let Some(input) = self.loads.start(load, log) {
                core.handle(input);
            }
        }
        effects.repairs.drain(..).for_each(|news| values::tell(&news));
        for read in effects.reads.drain(..) {
            if let Some(input) = self.values.read(read, log) {
                core.handle(input);
            }
        }
        if let Some(scan) = effects.scan.take()
            && let Some(input) = self.values.scan(scan, log)
        {
            core.handle(input);
        }
    }

    /// More is durable: starts the reads that waited for it.
    pub(super) fn retry_reads(&mut self, ring: &mut Ring, core: &mut Core) {
        let log = &mut Log { wal: &self.wal, files: &mut self.files, ring };
        self.values.retry(log, &mut |input| core.handle(input));
    }

    /// A read has completed; gives the answer if that was all of it.
    pub(super) fn read_done(
        &mut self,
        key: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
        ring: &mut Ring,
        core: &Core,
    ) -> Option<Input> {
        let log = &mut Log { wal: &self.wal, files: &mut self.files, ring };
        match split(key) {
            (Read::Entries, number) => self.loads.read_done(number, result, buffer, log),
            (Read::Value, number) => self.values.read_done(number, result, buffer, log),
            (Read::Scan, _) => self.values.scan_done(result, buffer, log, core),
        }
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
    files: &mut Files,
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
pub(crate) fn storage_error(error: impl Into<StorageError>) -> Fatal {
    error.into().0
}

/// Turns the log's errors into exit codes.
pub(crate) struct StorageError(Fatal);

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

impl From<coracle_wal::CheckpointError> for StorageError {
    fn from(error: coracle_wal::CheckpointError) -> Self {
        use coracle_wal::CheckpointError;
        let exit = match &error {
            CheckpointError::Identity { .. } => Exit::WrongIdentity,
            CheckpointError::Version { .. } => Exit::UnknownFormat,
            _ => Exit::DiskError,
        };
        Self(Fatal::new(exit, "cannot open the checkpoints", error.to_string(), ""))
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
