//! The log of one simulated core: the same calls that the node's storage makes, on a disk whose
//! operations complete when the run says so.

use std::collections::{BTreeMap, VecDeque};

use coracle_engine::{CheckpointWork, DiskSpace, Input, Load, SpaceGauge};
use coracle_raft::{BatchSeq, GroupId, Place, Record};
use coracle_wal::{AlignedBuf, Disk, ReadAround, ReadOp, SegmentTask, Wal, WalError, WriteOp};

use crate::disk::SimDisk;
use crate::host::Lie;
use crate::plan::DiskPlan;
use crate::queue::Micros;
use crate::rng::Rng;
use crate::values::{CheckpointFiles, Read, Values};

/// Ticks between two attempts to make a segment on a full disk, as in the node.
const FULL_PAUSE_TICKS: u32 = 20;

/// What is under way has this number.
pub(crate) type Job = u64;

/// A log and what is under way on its disk.
pub(crate) struct Storage {
    wal: Wal<SimDisk>,
    writes: BTreeMap<Job, WriteOp>,
    loads: BTreeMap<Job, (Load, Vec<ReadOp>)>,
    task: Option<SegmentTask>,
    next_load: Job,
    /// Where each batch ends, in bytes handed to the log, and how many of those each write takes
    /// along: counted here, so that nobody believes the log what it says is durable.
    ends: VecDeque<(BatchSeq, usize)>,
    taken: usize,
    covers: BTreeMap<Job, usize>,
    /// The newest batch that is on the medium for certain.
    on_medium: BatchSeq,
    /// Batches whose records are not durable yet.
    open: VecDeque<(BatchSeq, Vec<Record>)>,
    owed_bytes: usize,
    values: Values,
    files: CheckpointFiles,
    idle: bool,
    /// Batches are at least this far apart; the next one may be made from this time on.
    gather: Micros,
    seal_at: Micros,
    /// Ticks until a full disk is asked again.
    pause_ticks: u32,
    /// How full the disk is.
    gauge: SpaceGauge,
    lie: Option<Lie>,
    /// A lie that was told and that nobody has asked about yet.
    told: Option<Lie>,
    lied: Lied,
    /// The newest segment, and where the log proper was seen to start when it and the two before
    /// it were new, oldest first.
    newest: u64,
    starts: [u64; 3],
}

/// Whether a deception of the disk can be told from a write that was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lied {
    No,
    /// Nothing on disk says yet that what is damaged was durable.
    Yes,
    /// This write says so.
    Covering(Job),
}

/// What became durable.
pub(crate) struct Durable {
    pub(crate) batch: BatchSeq,
    pub(crate) records: Vec<Record>,
}

impl Storage {
    /// A log as recovery left it.
    pub(crate) fn new(wal: Wal<SimDisk>, gather: Micros, newest: Option<u64>) -> Self {
        let files = CheckpointFiles::new(wal.options().identity, newest);
        let start = wal.log_start().number();
        let gauge = SpaceGauge::new(wal.options().segment_bytes);
        Self {
            wal,
            gauge,
            writes: BTreeMap::new(),
            loads: BTreeMap::new(),
            task: None,
            next_load: 0,
            ends: VecDeque::new(),
            taken: 0,
            covers: BTreeMap::new(),
            on_medium: BatchSeq::default(),
            open: VecDeque::new(),
            owed_bytes: 0,
            values: Values::default(),
            files,
            idle: true,
            gather,
            seal_at: 0,
            pause_ticks: 0,
            lie: None,
            told: None,
            lied: Lied::No,
            newest: 0,
            starts: [start; 3],
        }
    }

    /// No recovery reads segments before this one, even if the newest segment start is lost.
    pub(crate) const fn unread_before(&self) -> u64 {
        self.starts[0]
    }

    /// The file of a segment.
    pub(crate) fn file_of(&self, segment: u64) -> Option<String> {
        let found = self.wal.live_segments().find(|id| id.number() == segment);
        found.map(coracle_wal::SegmentId::file_name)
    }

    /// The disk deceives the next write. Until then, and if there is none, nothing is damaged.
    pub(crate) fn lie_next(&mut self, lie: Lie) {
        self.lie = Some(lie);
    }

    /// The disk deceives nobody any more.
    pub(crate) fn end_lies(&mut self) {
        self.lie = None;
    }

    /// The lie that a write since the last call was told.
    pub(crate) fn take_told(&mut self) -> Option<Lie> {
        self.told.take()
    }

    /// The disk has changed something behind our back.
    pub(crate) fn lied(&mut self) {
        self.lied = Lied::Yes;
        self.idle = true;
    }

    /// Whether a crash now would leave damage that looks like an unfinished write.
    pub(crate) fn is_lie_open(&self) -> bool {
        self.lied != Lied::No
    }

    /// Whether a batch made now would go to the disk at once, and records have gathered for long
    /// enough since the one before: as in the node.
    pub(crate) fn may_seal(&self, now: Micros) -> bool {
        self.may_seal_at().is_some_and(|at| at <= now)
    }

    /// When [`Storage::may_seal`] turns true by time alone.
    pub(crate) fn may_seal_at(&self) -> Option<Micros> {
        self.wal.can_seal().then_some(self.seal_at)
    }

    /// Adds records to the open batch; tells where they stand.
    pub(crate) fn append(&mut self, batch: BatchSeq, records: &[Record]) -> Vec<Place> {
        self.idle = false;
        let before = self.wal.pending_bytes();
        let mut places = Vec::new();
        self.wal.append(batch, records, &mut places);
        self.owed_bytes += self.wal.pending_bytes().saturating_sub(before);
        self.ends.push_back((batch, self.taken + self.wal.pending_bytes()));
        self.open.push_back((batch, records.to_vec()));
        places
    }

    pub(crate) fn release(&mut self, released: &[(GroupId, BatchSeq)]) {
        for &(group, batch) in released {
            self.wal.release_state_before_batch(group, batch);
        }
    }

    /// No value is needed before this segment.
    pub(crate) fn release_values(&mut self, from: u64) {
        self.wal.release_values_before(from);
    }

    /// Bytes of checkpoint to write now, 0 if none are due, and the segment before which old ones
    /// are to be emptied, if any are.
    pub(crate) fn take_upkeep(&mut self, plan: &DiskPlan) -> (usize, Option<u64>) {
        let newest = self.wal.live_segments().last().map_or(0, |segment| segment.number());
        if newest > self.newest {
            self.newest = newest;
            self.starts = [self.starts[1], self.starts[2], self.wal.log_start().number()];
        }
        if self.owed_bytes < plan.checkpoint_every || !self.files.is_idle() {
            return (0, None);
        }
        self.owed_bytes = 0;
        let segments = self.wal.live_segments().count();
        let (level, plenty) = (self.gauge.level(), DiskSpace::Ample);
        let writes = segments > plan.checkpoint_segments || level > plenty;
        let moves = segments > plan.gc_segments || level > plenty;
        let before = self.wal.log_start().number();
        let step = if writes { plan.checkpoint_step } else { 0 };
        (step, (moves && level < DiskSpace::Out).then_some(before))
    }

    /// Reads of values and of parts of segments.
    pub(crate) const fn values(&mut self) -> (&mut Values, &Wal<SimDisk>) {
        (&mut self.values, &self.wal)
    }

    /// Takes work on checkpoints.
    pub(crate) fn push_checkpoint(&mut self, work: impl Iterator<Item = CheckpointWork>) {
        self.files.push(work);
    }

    /// Begins the next part of that work, if there is some and none is under way.
    pub(crate) fn start_checkpoint(&mut self) -> bool {
        self.files.start()
    }

    /// Whether what is under way ends a checkpoint.
    pub(crate) fn ends_checkpoint(&self) -> bool {
        self.files.ends()
    }

    /// It is done.
    pub(crate) fn checkpoint_done(&mut self) -> Option<Input> {
        self.files.done(self.wal.disk())
    }

    /// Whether the checkpoint before the one that was finished last could not be read.
    pub(crate) const fn has_lost_checkpoint(&self) -> bool {
        self.files.lost_older
    }

    /// Begins the reads that waited for what is durable now.
    pub(crate) fn retry_reads(&mut self) -> Vec<Read> {
        let waiting = self.values.take_waiting();
        waiting.into_iter().map(|asked| self.values.start(&self.wal, asked)).collect()
    }

    /// The next write that may start; it completes by [`Storage::write_done`].
    pub(crate) fn start_write(&mut self, now: Micros) -> Option<Job> {
        let pending = self.wal.pending_bytes();
        let op = self.wal.next_write()?;
        self.seal_at = now + self.gather;
        self.taken += pending - self.wal.pending_bytes();
        let job = op.id;
        if self.lied == Lied::Yes && self.writes.is_empty() {
            self.lied = Lied::Covering(job);
        }
        self.covers.insert(job, self.taken);
        self.writes.insert(job, op);
        Some(job)
    }

    /// Whether a write to the log is under way.
    pub(crate) fn is_writing(&self) -> bool {
        !self.writes.is_empty()
    }

    /// A write reaches the disk, or fails: then any part of it may be there all the same.
    pub(crate) fn write_done(
        &mut self,
        job: Job,
        fails: bool,
        rng: &mut Rng,
    ) -> Result<Option<Durable>, WalError> {
        let Some(op) = self.writes.remove(&job) else { return Ok(None) };
        let disk = self.wal.disk();
        let result = match (fails, self.wal.file(op.segment)) {
            (_, None) => Err(std::io::Error::other("the segment of a write is gone")),
            (true, Some(file)) => {
                disk.write_torn(file, op.offset, &op.buffer[..op.len], rng);
                match rng.chance(0.5) {
                    true => Ok(op.len / 2),
                    false => Err(std::io::Error::other("the medium cannot be written")),
                }
            }
            (false, Some(file)) => match self.lie.take() {
                None => disk.write_dsync(file, op.offset, &op.buffer[..op.len]),
                Some(lie) => {
                    self.lied = Lied::Yes;
                    self.told = Some(lie);
                    disk.write_lying(file, op.offset, &op.buffer[..op.len], lie)
                }
            },
        };
        if self.lied == Lied::Covering(job) {
            self.lied = Lied::No;
        }
        let oldest = self.writes.keys().next().copied().unwrap_or(Job::MAX);
        while let Some(first) = self.covers.first_entry().filter(|first| *first.key() < oldest) {
            let covered = first.remove();
            while let Some((batch, _)) = self.ends.pop_front_if(|(_, end)| *end <= covered) {
                self.on_medium = batch;
            }
        }
        let Some(batch) = self.wal.written(op.id, result, op.buffer)? else { return Ok(None) };
        assert!(
            batch <= self.on_medium,
            "batch {batch:?} is called durable, only {:?} is on the medium",
            self.on_medium
        );
        let mut records = Vec::new();
        while self.open.front().is_some_and(|(number, _)| *number <= batch) {
            records.extend(self.open.pop_front().map(|(_, records)| records).unwrap_or_default());
        }
        Ok(Some(Durable { batch, records }))
    }

    /// Starts the next file work, if there is some and none is under way.
    pub(crate) fn start_task(&mut self) -> bool {
        if self.task.is_none() && self.pause_ticks == 0 {
            self.task = self.wal.wanted_segments().pop();
            return self.task.is_some();
        }
        false
    }

    /// The file work is done. `Ok(false)`: the disk is full, and is asked again after a pause.
    pub(crate) fn task_done(&mut self) -> Result<bool, WalError> {
        let Some(task) = self.task.take() else { return Ok(true) };
        let done = task.run(self.wal.disk());
        let ready = match self.wal.segment_ready(done) {
            Ok(()) => Ok(true),
            Err(WalError::NoSpace { .. }) => {
                self.pause_ticks = FULL_PAUSE_TICKS;
                Ok(false)
            }
            Err(error) => Err(error),
        };
        self.wal.take_released();
        ready
    }

    /// Begins to read entries back; `Err` is the answer if that is impossible.
    pub(crate) fn start_load(&mut self, load: Load) -> Result<Job, Input> {
        let Load { group, first, last, bytes_max } = load;
        match self.wal.locate(group, first, last, bytes_max) {
            Ok(reads) => {
                self.next_load += 1;
                self.loads.insert(self.next_load, (load, reads));
                Ok(self.next_load)
            }
            Err(error) => {
                Err(Input::EntriesLoaded { group, first, entries: Err(error.to_string()) })
            }
        }
    }

    /// The entries have been read.
    pub(crate) fn load_done(&mut self, job: Job) -> Option<Input> {
        let (load, reads) = self.loads.remove(&job)?;
        let mut buffers = Vec::with_capacity(reads.len());
        let mut failed = None;
        for op in &reads {
            let mut around = ReadAround::new(op.offset, op.len);
            // A file that is gone shows when the entries are decoded.
            while let (Some((offset, len)), Some(file)) =
                (around.wanted(), self.wal.file(op.segment))
            {
                let mut buffer = AlignedBuf::zeroed(len);
                let read = self.wal.disk().read_at(file, offset, &mut buffer);
                around.take(read.is_ok().then_some(buffer));
                failed = failed.or(read.err());
            }
            buffers.push(around.into_content());
        }
        let entries = self.wal.decode_entries(&reads, &buffers);
        let why = |error| failed.map_or_else(|| format!("{error}"), |failed| failed.to_string());
        let entries = entries.map_err(why);
        Some(Input::EntriesLoaded { group: load.group, first: load.first, entries })
    }

    /// Looks how full the disk is; the new level if it is another one.
    fn look_at_space(&mut self) -> Option<DiskSpace> {
        let segment_bytes = self.wal.options().segment_bytes;
        let free = self.wal.disk().available_bytes().ok().flatten();
        self.wal.be_thrifty(free.is_some_and(|free| free < segment_bytes));
        let room = free.map_or(u64::MAX, |free| {
            let free = if self.pause_ticks > 0 { 0 } else { free };
            self.wal.reserved_bytes() + free / segment_bytes * segment_bytes
        });
        self.gauge.update(room)
    }

    /// A tick has passed: a log that went quiet says on disk that it is durable. Tells how full the
    /// disk is when that has changed.
    pub(crate) fn tick(&mut self) -> Option<DiskSpace> {
        self.pause_ticks = self.pause_ticks.saturating_sub(1);
        let space = self.look_at_space();
        if self.gauge.level() > DiskSpace::Ample {
            // As much work is due as can be done.
            self.owed_bytes = usize::MAX / 2;
        }
        if self.idle {
            self.wal.idle_watermark();
        }
        self.idle = true;
        space
    }

    /// The process or its power goes while all this is under way.
    pub(crate) fn crash(mut self, power: bool, rng: &mut Rng) {
        let disk = self.wal.disk().clone();
        for op in self.writes.values() {
            if let Some(file) = self.wal.file(op.segment) {
                disk.write_torn(file, op.offset, &op.buffer[..op.len], rng);
            }
        }
        if let Some(task) = self.task.take() {
            disk.die_after(rng.below(12) as u32);
            // Its result reaches nobody.
            let _ = task.run(&disk);
        }
        disk.revive();
        self.files.crash(&disk, rng);
        if power {
            disk.lose_power(rng);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_raft::{HardState, Term};
    use coracle_wal::Options;

    use super::*;

    const GROUP: GroupId = GroupId::new(0);

    fn options() -> Options {
        let (segment_bytes, batch_bytes_max) = (64 << 10, 16 << 10);
        Options { segment_bytes, batch_bytes_max, groups_max: 16, ..Options::default() }
    }

    fn vote(term: u64) -> Record {
        let hard_state = HardState { term: Term::new(term), vote: None };
        Record::HardState { group: GROUP, hard_state }
    }

    /// A log whose first segment is ready.
    fn open(disk: &SimDisk) -> Storage {
        let recovered = coracle_wal::recover(disk.clone(), options(), &mut |_, _| {});
        let (wal, _) = recovered.expect("sound");
        let mut storage = Storage::new(wal, 0, None);
        while !storage.may_seal(0) {
            assert!(storage.start_task() && storage.task_done().expect("prepared"));
        }
        storage
    }

    /// What a new process reads: terms, and whether it has seen damage.
    fn reopen(disk: &SimDisk) -> (Vec<u64>, bool) {
        let mut terms = Vec::new();
        let (_, report) = coracle_wal::recover(disk.clone(), options(), &mut |_, record| {
            if let Record::HardState { hard_state, .. } = record {
                terms.push(hard_state.term.get());
            }
        })
        .expect("no log refuses to be read");
        let is_restored = report.restored + report.headers_restored > 0;
        (terms, is_restored || report.is_damaged(GROUP))
    }

    fn begin_write(storage: &mut Storage, number: u64) -> Job {
        storage.append(BatchSeq::new(number), &[vote(number)]);
        storage.start_write(0).expect("a segment is ready")
    }

    #[test]
    fn a_write_is_durable_when_it_is_done_and_not_before() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..40 {
            let (disk, mut rng) = (SimDisk::new(), Rng::new(seed, "test"));
            let mut storage = open(&disk);
            let job = begin_write(&mut storage, 1);
            let done = storage.write_done(job, false, &mut rng).expect("written");
            assert_eq!(done.expect("durable").records, [vote(1)]);
            begin_write(&mut storage, 2);
            storage.crash(seed % 2 == 0, &mut rng);
            match reopen(&disk) {
                (terms, false) if terms == [1, 2] => kept += 1,
                (terms, false) if terms == [1] => lost += 1,
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        assert!(kept > 5 && lost > 5, "{kept} kept, {lost} lost");
    }

    #[test]
    fn writes_that_end_in_the_wrong_order_are_durable_in_order() {
        let (disk, mut rng) = (SimDisk::new(), Rng::new(1, "test"));
        let mut storage = open(&disk);
        let first = begin_write(&mut storage, 1);
        let second = begin_write(&mut storage, 2);
        assert!(storage.write_done(second, false, &mut rng).expect("written").is_none());
        let done = storage.write_done(first, false, &mut rng).expect("written").expect("durable");
        assert_eq!(done.records, [vote(1), vote(2)]);
        assert_eq!(done.batch, BatchSeq::new(2));
    }

    #[test]
    fn a_failed_write_ends_the_log_whatever_is_on_the_disk() {
        let (mut there, mut gone) = (0, 0);
        for seed in 0..40 {
            let (disk, mut rng) = (SimDisk::new(), Rng::new(seed, "test"));
            let mut storage = open(&disk);
            let job = begin_write(&mut storage, 1);
            assert!(storage.write_done(job, true, &mut rng).is_err(), "seed {seed}");
            match reopen(&disk).0.is_empty() {
                true => gone += 1,
                false => there += 1,
            }
        }
        assert!(there > 5 && gone > 5, "{there} there, {gone} gone");
    }

    #[test]
    fn a_lie_is_damage_once_a_later_write_has_covered_it() {
        for lie in [Lie::Misdirect, Lie::Stale] {
            let (disk, mut rng) = (SimDisk::new(), Rng::new(1, "test"));
            let mut storage = open(&disk);
            storage.lie_next(lie);
            for number in 1..=2 {
                let job = begin_write(&mut storage, number);
                assert_eq!(storage.is_lie_open(), number == 2);
                storage.write_done(job, false, &mut rng).expect("so the disk says");
                assert_eq!(storage.take_told(), (number == 1).then_some(lie));
            }
            assert!(!storage.is_lie_open());
            storage.crash(true, &mut rng);
            // What it took is told by the batch behind it.
            assert_eq!(reopen(&disk), (vec![1, 2], true), "{lie:?}");
        }
    }

    /// Sectors that cannot be read cost what is in them, and never the start.
    #[test]
    fn a_bad_sector_is_damage_for_every_process_that_reads_it() {
        let mut damaged = 0;
        for seed in 0..40 {
            let (disk, mut rng) = (SimDisk::new(), Rng::new(seed, "test"));
            let mut storage = open(&disk);
            for number in 1..=3 {
                let job = begin_write(&mut storage, number);
                storage.write_done(job, false, &mut rng).expect("written");
            }
            disk.spoil(&mut rng).expect("something is written");
            storage.crash(true, &mut rng);
            let first = reopen(&disk);
            assert_eq!(reopen(&disk).1, first.1, "seed {seed}: it does not heal by itself");
            damaged += u64::from(first.1);
        }
        // The last batch is not covered by a later one: its loss looks like a torn write.
        assert!(damaged > 10, "only {damaged} of 40 are seen");
    }

    #[test]
    fn a_lie_that_no_write_was_told_damages_nothing() {
        let (disk, mut rng) = (SimDisk::new(), Rng::new(1, "test"));
        let mut storage = open(&disk);
        storage.lie_next(Lie::Stale);
        storage.end_lies();
        for number in 1..=2 {
            let job = begin_write(&mut storage, number);
            storage.write_done(job, false, &mut rng).expect("written");
            assert_eq!(storage.take_told(), None);
        }
        storage.crash(true, &mut rng);
        assert_eq!(reopen(&disk), (vec![1, 2], false));
    }

    #[test]
    fn batches_keep_their_distance_and_the_first_waits_for_nothing() {
        let (disk, mut rng) = (SimDisk::new(), Rng::new(1, "test"));
        let mut storage = open(&disk);
        storage.gather = 300;
        assert!(storage.may_seal(1000));
        storage.append(BatchSeq::new(1), &[vote(1)]);
        let job = storage.start_write(1000).expect("a segment is ready");
        assert_eq!((storage.may_seal(1299), storage.may_seal(1300)), (false, true));
        storage.write_done(job, false, &mut rng).expect("written");
        assert!(!storage.may_seal(1299), "the end of a write changes nothing");
    }

    #[test]
    fn a_full_disk_is_asked_again_after_a_pause() {
        let disk = SimDisk::new();
        let mut storage = open(&disk);
        disk.set_free(Some(0));
        assert!(storage.start_task());
        assert!(!storage.task_done().expect("not final"));
        for _ in 0..FULL_PAUSE_TICKS {
            assert!(!storage.start_task(), "it pauses");
            storage.tick();
        }
        disk.set_free(None);
        storage.tick();
        assert!(storage.start_task() && storage.task_done().expect("prepared"));
    }

    /// The level follows the space that is left, and the log's own reserve counts.
    #[test]
    fn a_disk_that_fills_up_is_told_in_levels() {
        let disk = SimDisk::new();
        let mut storage = open(&disk);
        while storage.start_task() {
            storage.task_done().expect("prepared");
        }
        assert_eq!(storage.tick(), None, "no limit");
        let mut levels = Vec::new();
        for segments in (0..6).rev() {
            disk.set_free(Some(segments * (64 << 10) + 1));
            levels.extend(storage.tick());
        }
        assert_eq!(levels, [DiskSpace::Low, DiskSpace::Scarce], "the reserve is never empty");
        disk.set_free(None);
        assert_eq!(storage.tick(), Some(DiskSpace::Ample));
    }
}
