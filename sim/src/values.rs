//! What a core reads of its log beside entries, and its checkpoint files: the same calls that the
//! node makes, one step at a time.

use std::collections::{BTreeMap, VecDeque};

use coracle_engine::testing::Stored;
use coracle_engine::{CheckpointWork, Core, Input, ReadValue, ScanSegment};
use coracle_raft::Record;
use coracle_wal::{
    AlignedBuf, CheckpointError, CheckpointWriter, Decoded, Disk, Finished, Identity, LoadError,
    ScanRead, ValueRead, Wal,
};

use crate::disk::SimDisk;
use crate::rng::Rng;
use crate::storage::Job;

/// Bytes of an old segment that are read at once.
const SCAN_BYTES: usize = 16 << 10;

/// What becomes of a read.
pub(crate) enum Read {
    /// It completes by [`Values::done`].
    Started(Job),
    /// It waits until the value is durable.
    Waits,
    Answer(Input),
    /// The log does not have the value where the index says, and why.
    Lost(u64, String),
}

/// Reads of values and of parts of segments.
#[derive(Default)]
pub(crate) struct Values {
    next: Job,
    reads: BTreeMap<Job, (u64, ValueRead)>,
    waiting: Vec<ReadValue>,
    scan: Option<(ScanSegment, ScanRead)>,
}

impl Values {
    /// Begins to read a value.
    pub(crate) fn start(&mut self, wal: &Wal<SimDisk>, asked: ReadValue) -> Read {
        match wal.locate_value(asked.place, asked.payload_len) {
            Ok(read) => self.issue(asked.id, read),
            Err(LoadError::NotDurableAt { .. }) => {
                self.waiting.push(asked);
                Read::Waits
            }
            Err(error) => failed(asked.id, &error),
        }
    }

    fn issue(&mut self, id: u64, read: ValueRead) -> Read {
        self.next += 1;
        self.reads.insert(self.next, (id, read));
        Read::Started(self.next)
    }

    /// Reads that waited, to be begun again.
    pub(crate) fn take_waiting(&mut self) -> Vec<ReadValue> {
        std::mem::take(&mut self.waiting)
    }

    /// The disk has read.
    pub(crate) fn done(&mut self, wal: &Wal<SimDisk>, job: Job) -> Option<Read> {
        let (id, read) = self.reads.remove(&job)?;
        let buffer = match read_at(wal, read.segment, read.offset, read.len) {
            Ok(buffer) => buffer,
            Err(error) => return Some(Read::Answer(answer(id, Err(error)))),
        };
        Some(match wal.decode_value(&read, &buffer) {
            Ok(Decoded::Record(record)) => Read::Answer(answer(id, Ok(record))),
            Ok(Decoded::Longer(longer)) => self.issue(id, longer),
            Err(error) => failed(id, &error),
        })
    }

    /// Begins to read a part of an old segment; gives the answer if that is impossible.
    pub(crate) fn start_scan(&mut self, wal: &Wal<SimDisk>, scan: ScanSegment) -> Option<Input> {
        match wal.locate_scan(scan.segment, scan.from, SCAN_BYTES) {
            Some(read) => {
                self.scan = Some((scan, read));
                None
            }
            None => Some(Input::Scanned { scan, records: Vec::new(), next: None }),
        }
    }

    /// The disk has read it.
    pub(crate) fn scan_done(&mut self, wal: &Wal<SimDisk>, core: &Core) -> Option<Input> {
        let (scan, read) = self.scan.take()?;
        Some(match read_at(wal, read.segment, read.offset, read.len) {
            Ok(buffer) => {
                let scanned = wal.decode_scan(&read, &buffer, &|seen| {
                    core.refers_to(seen.place, seen.group, seen.is_command, seen.payload)
                });
                Input::Scanned { scan, records: scanned.records, next: scanned.next }
            }
            Err(_) => Input::Scanned { scan, records: Vec::new(), next: None },
        })
    }
}

fn failed(id: u64, error: &LoadError) -> Read {
    match error {
        // It was moved while the read was under way.
        LoadError::Recycled { .. } => Read::Answer(answer(id, Err(error.to_string()))),
        _ => Read::Lost(id, error.to_string()),
    }
}

pub(crate) fn answer(id: u64, record: Result<Record, String>) -> Input {
    Input::ValueRead { id, record }
}

fn read_at(
    wal: &Wal<SimDisk>,
    segment: coracle_wal::SegmentId,
    offset: u64,
    len: usize,
) -> Result<AlignedBuf, String> {
    let mut buffer = AlignedBuf::zeroed(len);
    // A file that is gone shows when the bytes are decoded.
    if let Some(file) = wal.file(segment) {
        wal.disk().read_at(file, offset, &mut buffer).map_err(|error| error.to_string())?;
    }
    Ok(buffer)
}

/// Why the log does not have a value where an index says, if so. What cannot be read now says
/// nothing.
pub(crate) fn missing(wal: &Wal<SimDisk>, stored: &Stored) -> Option<String> {
    let len = stored.payload_len as usize;
    let mut read = wal.locate_value(stored.place, len).map_err(|error| error.to_string());
    loop {
        let now = match read {
            Ok(now) => now,
            Err(why) => return Some(why),
        };
        let buffer = read_at(wal, now.segment, now.offset, now.len).ok()?;
        read = match wal.decode_value(&now, &buffer) {
            Ok(Decoded::Record(_)) => return None,
            Ok(Decoded::Longer(longer)) => Ok(longer),
            Err(why) => Err(why.to_string()),
        };
    }
}

/// The checkpoint files of one core.
pub(crate) struct CheckpointFiles {
    identity: Identity,
    queue: VecDeque<CheckpointWork>,
    running: Option<CheckpointWork>,
    writer: Option<CheckpointWriter<SimDisk>>,
    newest: Option<u64>,
    /// Whether the checkpoint before the one that was finished last could not be read.
    pub(crate) lost_older: bool,
}

impl CheckpointFiles {
    pub(crate) const fn new(identity: Identity, newest: Option<u64>) -> Self {
        Self {
            identity,
            queue: VecDeque::new(),
            running: None,
            writer: None,
            newest,
            lost_older: false,
        }
    }

    /// Whether all work that was handed over is done.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty()
    }

    /// Whether what is under way ends a file.
    pub(crate) const fn ends(&self) -> bool {
        matches!(self.running, Some(CheckpointWork::Finish { .. }))
    }

    pub(crate) fn push(&mut self, work: impl Iterator<Item = CheckpointWork>) {
        self.queue.extend(work);
    }

    /// Begins the next part, if none is under way; it completes by [`CheckpointFiles::done`].
    pub(crate) fn start(&mut self) -> bool {
        if self.running.is_some() {
            return false;
        }
        self.running = self.queue.pop_front();
        self.running.is_some()
    }

    /// Does what was begun.
    pub(crate) fn done(&mut self, disk: &SimDisk) -> Option<Input> {
        let work = self.running.take()?;
        self.lost_older = false;
        let (number, outcome) = self.run(disk, work)?;
        let result = outcome.map_err(|error| error.to_string()).and_then(|finished| {
            let expected = self.newest.replace(number);
            self.lost_older = finished.older < expected;
            if self.lost_older { Err("the one before is gone".into()) } else { Ok(()) }
        });
        Some(Input::Checkpointed { number, result })
    }

    fn run(
        &mut self,
        disk: &SimDisk,
        work: CheckpointWork,
    ) -> Option<(u64, Result<Finished, CheckpointError>)> {
        match work {
            CheckpointWork::Begin { number } => {
                drop(self.writer.take());
                match CheckpointWriter::create(disk.clone(), self.identity, number) {
                    Ok(writer) => self.writer = Some(writer),
                    Err(error) => return Some((number, Err(error))),
                }
            }
            CheckpointWork::Section { number, group, shard, bytes } => {
                let writer = self.writer.as_mut().filter(|writer| writer.number() == number)?;
                if let Err(error) = writer.add(group, shard, &bytes) {
                    drop(self.writer.take());
                    return Some((number, Err(error)));
                }
            }
            CheckpointWork::Finish { number } => {
                let writer = self.writer.take_if(|writer| writer.number() == number)?;
                return Some((number, writer.finish()));
            }
        }
        None
    }

    /// The process dies, perhaps in the middle of what it does. It tidies nothing up.
    pub(crate) fn crash(mut self, disk: &SimDisk, rng: &mut Rng) {
        if let Some(work) = self.running.take() {
            disk.die_after(rng.below(12) as u32);
            let _ = self.run(disk, work);
        }
        disk.die_after(0);
        drop(self.writer);
        disk.revive();
    }
}
