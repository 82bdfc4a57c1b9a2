//! The write-ahead log: batches of n entries of 4 KiB.
//!
//! `wal_cpu` completes every write at once without writing: what the log itself costs.
//! `wal_disk` writes through a ring by direct I/O with a sync per batch, two batches in flight, as
//! a node does; segments are prepared on another thread. It uses the target directory, or the one
//! that `CORACLE_BENCH_DIR` names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use coracle_raft::{
    BatchSeq, Entry, EntryKind, GroupId, LogIndex, LogPosition, NodeId, Payload, Place, Record,
    Term,
};
use coracle_ring::{Event, FileId, Ring, RingConfig};
use coracle_wal::{
    Disk, Identity, MemDisk, Options, RealDisk, SegmentDone, SegmentId, SegmentTask, Wal, recover,
};
use criterion::{BenchmarkId, Criterion, Throughput};

const VALUE_BYTES: usize = 4096;
const BATCHES: [usize; 4] = [1, 8, 32, 128];

/// Entries between two purges: the log's segments are recycled as in a node that checkpoints.
const PURGE_EVERY: u64 = 4096;

fn open<D: Disk>(disk: D) -> Wal<D> {
    let identity = Identity { cluster: 1, node: NodeId::new(1), core: 0 };
    let options = Options { identity, ..Options::default() };
    let (mut wal, _) = recover(disk, options, &mut |_, _| {}).expect("an empty log");
    wal.prepare_segments().expect("segments can be made");
    wal
}

/// Makes the records of one batch after the other, for one group.
struct Source {
    payload: Payload,
    next: LogIndex,
    batch: BatchSeq,
    records: Vec<Record>,
    places: Vec<Place>,
}

impl Source {
    const GROUP: GroupId = GroupId::new(7);
    const TERM: Term = Term::new(1);

    fn new() -> Self {
        let bytes = vec![b'v'; VALUE_BYTES];
        let checksum = crc32c::crc32c(&bytes);
        let payload = Payload::new(bytes, checksum);
        let (next, batch) = (LogIndex::new(1), BatchSeq::new(0));
        Self { payload, next, batch, records: Vec::new(), places: Vec::new() }
    }

    /// Appends the next batch of `count` entries to the log.
    fn append<D: Disk>(&mut self, wal: &mut Wal<D>, count: usize) -> BatchSeq {
        self.records.clear();
        for _ in 0..count {
            let entry = Entry {
                term: Self::TERM,
                index: self.next,
                kind: EntryKind::Command,
                payload: self.payload.clone(),
            };
            self.records.push(Record::Entry { group: Self::GROUP, entry });
            if self.next.get().is_multiple_of(PURGE_EVERY) {
                let base = LogPosition { term: Self::TERM, index: self.next.prev() };
                self.records.push(Record::Purge { group: Self::GROUP, base });
            }
            self.next = self.next.next();
        }
        self.batch = self.batch.next();
        self.places.clear();
        wal.append(self.batch, &self.records, &mut self.places);
        // Nobody refers to these values: segments go as soon as their entries are purged.
        wal.release_values_before(u64::MAX);
        self.batch
    }
}

/// Appends one batch and completes its writes; the time that took, without preparing segments.
fn complete(wal: &mut Wal<MemDisk>, source: &mut Source, count: usize) -> Duration {
    let start = Instant::now();
    let asked = source.append(wal, count);
    let mut durable = None;
    while let Some(op) = wal.next_write() {
        let done = wal.written(op.id, Ok(op.len), op.buffer);
        durable = done.expect("the write was whole").or(durable);
    }
    assert_eq!(durable, Some(asked));
    let spent = start.elapsed();
    wal.prepare_segments().expect("segments can be made");
    spent
}

fn cpu(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal_cpu");
    for count in BATCHES {
        group.throughput(Throughput::Bytes((count * VALUE_BYTES) as u64));
        // Made once: criterion calls the closure for every sample.
        let mut state = None;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let (wal, source) = state.get_or_insert_with(|| (open(MemDisk::new()), Source::new()));
            bencher.iter_custom(|batches| (0..batches).map(|_| complete(wal, source, count)).sum());
        });
    }
    group.finish();
}

/// A log on a real disk and what drives it.
struct Driver {
    wal: Wal<RealDisk>,
    ring: Ring,
    files: BTreeMap<SegmentId, FileId>,
    events: Vec<Event>,
    durable: BatchSeq,
    tasks: Sender<SegmentTask>,
    done: Receiver<SegmentDone<std::fs::File>>,
    preparing: bool,
}

impl Driver {
    fn new(disk: RealDisk) -> Self {
        let ring = Ring::new(RingConfig::default()).expect("io_uring is available");
        let (tasks, todo) = channel::<SegmentTask>();
        let (results, done) = channel();
        let (preparer, waker) = (disk.clone(), ring.waker());
        // Ends when the driver is dropped and its channel with it.
        thread::spawn(move || {
            for task in todo {
                if results.send(task.run(&preparer)).is_err() {
                    return;
                }
                waker.wake();
            }
        });
        Self {
            wal: open(disk),
            ring,
            files: BTreeMap::new(),
            events: Vec::new(),
            durable: BatchSeq::new(0),
            tasks,
            done,
            preparing: false,
        }
    }

    /// Starts what may start; then, if `wait`, sleeps until something has happened.
    fn turn(&mut self, wait: bool) {
        while let Some(op) = self.wal.next_write() {
            let file = *self.files.entry(op.segment).or_insert_with(|| {
                let file = self.wal.file(op.segment).expect("it is open while written to");
                self.ring.add_file(file.try_clone().expect("descriptors are left"))
            });
            self.ring.write_dsync(file, op.id, op.offset, op.buffer, op.len);
        }
        for task in self.wal.wanted_segments() {
            self.preparing = true;
            self.tasks.send(task).expect("the preparer lives as long as its channel");
        }
        let timeout = if wait { None } else { Some(Duration::ZERO) };
        self.ring.wait(timeout, &mut self.events).expect("the ring works");
        for event in self.events.drain(..) {
            if let Event::Written { key, result, buf } = event {
                let durable = self.wal.written(key, result, buf).expect("the disk works");
                self.durable = durable.unwrap_or(self.durable);
            }
        }
        while let Ok(done) = self.done.try_recv() {
            self.preparing = false;
            self.wal.segment_ready(done).expect("segments can be made");
        }
        for segment in self.wal.take_released() {
            if let Some(file) = self.files.remove(&segment) {
                self.ring.remove_file(file);
            }
        }
    }

    /// Writes `batches` batches of `count` entries, two in flight; returns how long it took.
    fn write(&mut self, source: &mut Source, batches: u64, count: usize) -> Duration {
        let start = Instant::now();
        let mut last = source.batch;
        for _ in 0..batches {
            while !self.wal.can_seal() {
                self.turn(true);
            }
            last = source.append(&mut self.wal, count);
            self.turn(false);
        }
        while self.durable < last {
            self.turn(true);
        }
        start.elapsed()
    }

    /// Waits for the preparer, so that the directory can be removed.
    fn finish(mut self) {
        while self.preparing {
            self.turn(true);
        }
    }
}

fn disk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal_disk");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let place = std::env::var_os("CORACLE_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    for count in BATCHES {
        group.throughput(Throughput::Bytes((count * VALUE_BYTES) as u64));
        let mut state = None;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let (_, driver, source) = state.get_or_insert_with(|| {
                let dir = tempfile::tempdir_in(&place).expect("a directory can be made");
                let disk = RealDisk::open(dir.path(), true).expect("the disk takes direct I/O");
                (dir, Driver::new(disk), Source::new())
            });
            bencher.iter_custom(|batches| driver.write(source, batches, count));
        });
        if let Some((_dir, driver, _)) = state {
            driver.finish();
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    cpu(&mut criterion);
    disk(&mut criterion);
    criterion.final_summary();
}
