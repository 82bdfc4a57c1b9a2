//! Random logs, random crashes, random bytes: nothing acknowledged is lost, nothing is invented,
//! nothing panics.

mod common;

use common::{Models, Rig, entry, options, purge, state, value, vote};
use coracle_raft::{BatchSeq, Place, Record};
use coracle_wal::{Disk, LoadError, MemDisk, Options, Unsynced, WriteOp, inspect, recover};
use proptest::prelude::*;

/// What happens to a log.
#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Write>),
    Submit,
    /// Completes one of the writes in flight.
    Complete(prop::sample::Index),
    Idle,
    Prepare,
    /// Nobody refers to values before one of the segments.
    ReleaseValues(prop::sample::Index),
    /// The state records of a group so far are superseded.
    ReleaseState(u32),
    /// The log grows by a few blocks, all of it becomes durable, and no group needs its entries and
    /// state any more.
    Turn(usize),
    /// Power fails; the number chooses what survives.
    Crash(u64),
}

/// A record, before it gets an index.
#[derive(Clone, Debug)]
enum Write {
    Entry {
        of: u32,
        back: u64,
        len: usize,
    },
    Vote {
        of: u32,
        term: u64,
    },
    Purge {
        of: u32,
        back: u64,
    },
    /// As when a snapshot is installed.
    Replace {
        of: u32,
        ahead: u64,
    },
    State {
        of: u32,
        len: usize,
    },
    Value {
        of: u32,
        len: usize,
    },
}

fn write() -> impl Strategy<Value = Write> {
    let of = 1..4u32;
    prop_oneof![
        6 => (of.clone(), prop_oneof![9 => Just(0u64), 1 => 1..4u64], 0..4000usize)
            .prop_map(|(of, back, len)| Write::Entry { of, back, len }),
        2 => (of.clone(), 1..100u64).prop_map(|(of, term)| Write::Vote { of, term }),
        2 => (of.clone(), 0..3u64).prop_map(|(of, back)| Write::Purge { of, back }),
        1 => (of.clone(), 0..9u64).prop_map(|(of, ahead)| Write::Replace { of, ahead }),
        1 => (of.clone(), 0..600usize).prop_map(|(of, len)| Write::State { of, len }),
        3 => (of, 0..5000usize).prop_map(|(of, len)| Write::Value { of, len }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => prop::collection::vec(write(), 1..8).prop_map(Step::Append),
        5 => Just(Step::Submit),
        5 => any::<prop::sample::Index>().prop_map(Step::Complete),
        1 => Just(Step::Idle),
        3 => Just(Step::Prepare),
        1 => any::<prop::sample::Index>().prop_map(Step::ReleaseValues),
        1 => (1..4u32).prop_map(Step::ReleaseState),
        2 => (1..5usize).prop_map(Step::Turn),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// The log under test, and everything that was ever appended and not rightly lost.
struct Run {
    rig: Rig,
    records: Vec<Record>,
    /// The places of commands and values among them, as long as they are needed; with the number
    /// of records up to there.
    kept: Vec<(Place, usize)>,
    /// How many records precede the end of each batch that is not acknowledged.
    ends: Vec<(BatchSeq, usize)>,
    acked: usize,
    inflight: Vec<WriteOp>,
    models: Models,
    boots: u64,
    released_states: bool,
}

fn is_kept(record: Option<&Record>) -> bool {
    match record {
        Some(Record::Entry { entry, .. }) => !entry.payload.is_empty(),
        other => matches!(other, Some(Record::Value { .. })),
    }
}

fn small() -> Options {
    Options { segment_bytes: 32 << 10, batch_bytes_max: 8 << 10, groups_max: 8, ..options() }
}

impl Run {
    fn new() -> Self {
        let mut rig = Rig::open(MemDisk::new(), small()).expect("opens");
        rig.values_free = false;
        Self {
            rig,
            records: Vec::new(),
            kept: Vec::new(),
            ends: Vec::new(),
            acked: 0,
            inflight: Vec::new(),
            models: Models::default(),
            boots: 1,
            released_states: false,
        }
    }

    fn resolve(&mut self, write: &Write) -> Record {
        let of = match write {
            Write::Entry { of, .. } | Write::Vote { of, .. } => *of,
            Write::Purge { of, .. } | Write::Replace { of, .. } => *of,
            Write::State { of, .. } | Write::Value { of, .. } => *of,
        };
        let model = self.models.group(of);
        let base = model.base.map_or(0, |base| base.index.get());
        let last = model.entries.keys().next_back().copied().unwrap_or(base);
        let record = match write {
            Write::Entry { back, len, .. } => {
                entry(of, self.boots, (last + 1).saturating_sub(*back).max(base + 1), *len)
            }
            Write::Vote { term, .. } => vote(of, *term, of),
            Write::Purge { back, .. } => {
                let at = last.saturating_sub(*back).max(base);
                let term = model.entries.get(&at).map_or(self.boots, |entry| entry.term.get());
                purge(of, term, at)
            }
            Write::Replace { ahead, .. } => {
                purge(of, 1000 + self.boots, (last + *ahead).saturating_sub(4).max(base))
            }
            Write::State { len, .. } => state(of, &vec![of as u8; *len]),
            Write::Value { len, .. } => value(of, &vec![self.records.len() as u8; *len]),
        };
        self.models.apply(&record);
        record
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(writes) => {
                let records: Vec<Record> = writes.iter().map(|write| self.resolve(write)).collect();
                let batch = self.rig.append(&records);
                let places = std::mem::take(&mut self.rig.places);
                for (record, place) in records.into_iter().zip(places) {
                    self.records.push(record);
                    if is_kept(self.records.last()) {
                        self.kept.push((place, self.records.len()));
                    }
                }
                self.ends.push((batch, self.records.len()));
            }
            Step::Submit => {
                if let Some(op) = self.rig.wal.next_write() {
                    let file = self.rig.wal.file(op.segment).expect("open").clone();
                    let bytes = &op.buffer[..op.len];
                    self.rig.disk.write_at(&file, op.offset, bytes).expect("written");
                    self.inflight.push(op);
                }
            }
            Step::Complete(which) => {
                if self.inflight.is_empty() {
                    return;
                }
                let op = self.inflight.swap_remove(which.index(self.inflight.len()));
                self.rig.write(&op);
                if let Some(batch) = self.rig.done(op) {
                    self.acked = self
                        .ends
                        .iter()
                        .filter(|(seq, _)| *seq <= batch)
                        .map(|(_, end)| *end)
                        .max()
                        .unwrap_or(self.acked);
                }
            }
            Step::Idle => {
                self.rig.wal.idle_watermark();
            }
            Step::Prepare => self.rig.wal.prepare_segments().expect("room"),
            Step::ReleaseValues(which) => {
                let live = self.rig.live();
                if !live.is_empty() {
                    let from = live[which.index(live.len())];
                    self.rig.wal.release_values_before(from);
                    self.kept.retain(|(place, _)| place.segment() >= from);
                }
            }
            Step::ReleaseState(of) => {
                let position = self.rig.wal.position();
                self.rig.wal.release_state_before(common::group(*of), position);
                self.released_states = true;
            }
            Step::Turn(blocks) => {
                for of in 1..4 {
                    let value = Write::Value { of, len: blocks * 4000 };
                    self.step(&Step::Append(vec![value, Write::Purge { of, back: 0 }]));
                    self.step(&Step::ReleaseState(of));
                    self.settle();
                }
            }
            Step::Crash(seed) => self.crash(*seed),
        }
    }

    fn crash(&mut self, seed: u64) {
        self.inflight.clear();
        let mut random = seed | 1;
        self.rig.disk.crash(&mut |_: Unsynced<'_>| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.is_multiple_of(2)
        });
        let disk = self.rig.disk.clone();
        let log_start = self.rig.log_start();
        self.rig = Rig::open(disk, small()).expect("a crash never stops recovery");
        self.rig.values_free = false;
        assert!(self.rig.log_start() <= log_start, "{} {log_start}", self.rig.log_start());
        self.boots += 1;
        let report = &self.rig.report;
        assert!(report.is_clean(), "a crash is no damage: {report:?}");
        let found = self.rig.models();
        let kept = (self.acked..=self.records.len())
            .find(|&kept| self.same(&Models::of(&self.records[..kept]), &found));
        let Some(kept) = kept else {
            panic!(
                "found\n{}which is no prefix of\n{}that holds the {} acknowledged records:\n{}",
                found.summary(),
                Models::of(&self.records).summary(),
                self.acked,
                Models::of(&self.records[..self.acked]).summary()
            );
        };
        self.records.truncate(kept);
        // Values that were never acknowledged are forgotten, there or not.
        let acked = self.acked;
        self.kept.retain(|&(_, end)| end <= acked);
        self.acked = kept;
        self.ends.clear();
        self.models = found;
        self.read_values();
    }

    /// Whether recovery gave back what these records mean. Of state and values it gives only what
    /// stands in the log proper: the newest, if some are released.
    fn same(&self, wanted: &Models, found: &Models) -> bool {
        (1..4).all(|of| {
            let (wanted, found) = (wanted.group(of), found.group(of));
            let states = wanted.states.ends_with(&found.states)
                && (self.released_states || wanted.states == found.states);
            wanted.entries == found.entries
                && wanted.base == found.base
                && wanted.hard_state == found.hard_state
                && states
                && wanted.values.ends_with(&found.values)
        })
    }

    /// Every command and value that is needed and on disk is read by its place, and found by
    /// scanning its segment.
    fn read_values(&self) {
        for &(place, end) in &self.kept {
            let record = &self.records[end - 1];
            match self.rig.read(place, 1000) {
                Ok(found) => assert_eq!(found, *record, "{place}"),
                Err(LoadError::NotDurableAt { .. }) if end > self.acked => {}
                Err(error) => panic!("{place}: {error}"),
            }
        }
        for segment in self.rig.live() {
            let Some((found, damaged)) = self.rig.scan(segment, 10_000) else { continue };
            assert!(!damaged, "segment {segment}");
            let needed = self.kept.iter().filter(|(place, _)| place.segment() == segment);
            for &(place, end) in needed {
                let wanted = (place, self.records[end - 1].clone());
                assert_eq!(found.iter().filter(|item| **item == wanted).count(), 1, "{place}");
            }
        }
    }

    /// Makes everything durable.
    fn settle(&mut self) {
        self.rig.wal.prepare_segments().expect("room");
        for op in std::mem::take(&mut self.inflight) {
            self.rig.write(&op);
            self.rig.done(op);
        }
        self.rig.flush();
        self.acked = self.records.len();
    }

    /// Entries read back are the ones that are meant.
    fn read_back(&mut self) {
        self.settle();
        self.read_values();
        for of in 1..4 {
            let model = self.models.group(of);
            let (Some(first), Some(last)) =
                (model.entries.keys().next(), model.entries.keys().next_back())
            else {
                continue;
            };
            let loaded = self.rig.load(of, *first, *last, usize::MAX);
            assert!(loaded.iter().eq(model.entries.values()), "group {of}");
        }
    }
}

/// A log with several segments and everything in it. After batch `turn` the log proper starts
/// anew.
fn workload(writes: &[Vec<Write>], turn: usize) -> Run {
    let mut run = Run::new();
    for (number, batch) in writes.iter().enumerate() {
        if number == turn {
            run.step(&Step::Turn(3));
            run.step(&Step::Turn(3));
        }
        run.step(&Step::Append(batch.clone()));
        run.rig.flush();
    }
    run.rig.idle();
    run
}

/// Rot, misdirected writes, lost writes.
#[derive(Clone, Debug)]
enum Harm {
    Flip(prop::sample::Index, u8),
    ZeroBlock(prop::sample::Index),
    CopyBlock(prop::sample::Index, prop::sample::Index),
    SwapBlocks(prop::sample::Index, prop::sample::Index),
    Truncate(prop::sample::Index),
    Noise(prop::sample::Index, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), 1..=255u8).prop_map(|(at, mask)| Harm::Flip(at, mask)),
        at().prop_map(Harm::ZeroBlock),
        (at(), at()).prop_map(|(from, to)| Harm::CopyBlock(from, to)),
        (at(), at()).prop_map(|(from, to)| Harm::SwapBlocks(from, to)),
        at().prop_map(Harm::Truncate),
        (at(), prop::collection::vec(any::<u8>(), 1..600)).prop_map(|(at, b)| Harm::Noise(at, b)),
    ]
}

fn inflict(bytes: &mut Vec<u8>, harm: &Harm) {
    const BLOCK: usize = 512;
    let blocks = bytes.len() / BLOCK;
    if blocks == 0 {
        return;
    }
    let block = |at: &prop::sample::Index| at.index(blocks) * BLOCK;
    match harm {
        Harm::Flip(at, mask) => {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        Harm::ZeroBlock(at) => bytes[block(at)..][..BLOCK].fill(0),
        Harm::CopyBlock(from, to) => bytes.copy_within(block(from)..block(from) + BLOCK, block(to)),
        Harm::SwapBlocks(one, other) => {
            for offset in 0..BLOCK {
                bytes.swap(block(one) + offset, block(other) + offset);
            }
        }
        Harm::Truncate(at) => bytes.truncate(at.index(bytes.len())),
        Harm::Noise(at, noise) => {
            let at = at.index(bytes.len());
            let len = noise.len().min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&noise[..len]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn crashes_lose_nothing_acknowledged(steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new();
        for step in &steps {
            run.step(step);
        }
        run.crash(u64::MAX / 3);
        run.read_back();
    }

    #[test]
    fn harmed_logs_are_told_and_nothing_is_invented(
        writes in prop::collection::vec(prop::collection::vec(write(), 1..8), 1..30),
        turn in 0..30usize,
        harms in prop::collection::vec((any::<prop::sample::Index>(), harm()), 1..4),
    ) {
        let run = workload(&writes, turn);
        let disk = run.rig.disk.fork();
        let names: Vec<String> = disk.list().expect("list");
        for (file, harm) in &harms {
            let name = &names[file.index(names.len())];
            let mut bytes = disk.contents(name).expect("there");
            inflict(&mut bytes, harm);
            disk.set_contents(name, bytes);
        }
        let Ok(mut again) = Rig::open(disk, small()) else {
            // Two harms can make a header of another place valid here.
            return Ok(());
        };
        for record in &again.recovered {
            let restated = matches!(record, Record::Purge { .. });
            let is_lost = |of: &Record| match (record, of) {
                (Record::Entry { group, entry }, Record::Entry { group: whose, entry: meant }) => {
                    let same = (group, entry.position()) == (whose, meant.position());
                    same && entry.payload.bytes() == common::LOST
                }
                _ => false,
            };
            let written = run.records.contains(record) || run.records.iter().any(is_lost);
            prop_assert!(restated || written, "invented: {record:?}");
        }
        // The log goes on, and what was damaged stays so.
        let votes: Vec<Record> = (1..5).map(|of| vote(of, 777, 1)).collect();
        again.commit(&votes);
        again.idle();
        let third = Rig::open(again.disk.fork(), small());
        let third = third.expect("what was opened once is opened again");
        for of in 1..5 {
            let hard_state = third.models().group(of).hard_state;
            prop_assert_eq!(hard_state, Models::of(&votes).group(of).hard_state);
        }
        for of in again.report.damaged.keys() {
            prop_assert!(third.report.is_damaged(*of), "{:?}\n{:?}", again.report, third.report);
        }
        for (of, lost) in &again.report.lost_entries {
            prop_assert_eq!(third.report.lost_entries.get(of), Some(lost));
        }
        let sound = Rig::open(run.rig.disk.fork(), small()).expect("opens");
        // With one harm the watermark speaks for everything before the last batch.
        if let [(_, Harm::Flip(..) | Harm::ZeroBlock(_))] = harms[..] {
            for of in 1..4 {
                let (found, wanted) = (again.models().group(of), sound.models().group(of));
                // If the newest log start is hit, an older one counts and more is read.
                let whole = found.states.ends_with(&wanted.states);
                let bare = |model: &common::Model| common::Model {
                    states: Vec::new(),
                    values: Vec::new(),
                    ..model.clone()
                };
                let lost = common::same_but_lost(&bare(&found), &bare(&wanted));
                let told = again.report.lost_entries.get(&common::group(of));
                let whole = whole && lost == Ok(told.map_or(0, Vec::len));
                prop_assert!(
                    whole || again.report.is_damaged(common::group(of)),
                    "group {of} lost something and nobody says so: {:?}",
                    again.report
                );
            }
        }
    }

    #[test]
    fn any_bytes_are_survived(
        first in prop::collection::vec(any::<u8>(), 0..20_000),
        with_header in any::<bool>(),
    ) {
        let disk = MemDisk::new();
        let mut bytes = first;
        if with_header {
            let rig = Rig::open(MemDisk::new(), small()).expect("opens");
            let name = rig.disk.list().expect("list").remove(0);
            let mut whole = rig.disk.contents(&name).expect("there");
            let len = bytes.len().min(whole.len() - 4096);
            whole[4096..4096 + len].copy_from_slice(&bytes[..len]);
            bytes = whole;
        }
        disk.set_contents("0000000001.seg", bytes);
        let mut seen = 0;
        inspect(&disk, None, &mut |_, _| seen += 1).expect("noise is damage, not an error");
        recover(disk, small(), &mut |_, _| seen += 1).expect("noise is damage, not an error");
        prop_assert_eq!(seen, 0);
    }

    #[test]
    fn scans_from_anywhere_and_of_any_bytes_invent_nothing(
        blocks in 1..5usize,
        from in prop_oneof![any::<u64>(), 0..40_000u64, (0..5000u64).prop_map(|at| at * 8)],
        bytes in prop_oneof![0..40_000usize, any::<usize>()],
        noise in prop::collection::vec(any::<u8>(), 0..9000),
        noise_at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut run = Run::new();
        run.step(&Step::Turn(blocks));
        run.step(&Step::Turn(4));
        let bytes = bytes.min(1 << 40);
        let Some(read) = run.rig.wal.locate_scan(1, from, bytes) else { return Ok(()) };
        let mut buffer = run.rig.bytes(read.segment, read.offset, read.len);
        for pass in 0..3 {
            let scanned = run.rig.wal.decode_scan(&read, &buffer, &|_| true);
            for (place, record) in &scanned.records {
                let known = run.kept.iter().any(|(at, end)| {
                    at == place && run.records[end - 1] == *record
                });
                prop_assert!(known, "invented: {place} {record:?}");
            }
            match pass {
                0 => inflict(&mut buffer, &Harm::Noise(noise_at, noise.clone())),
                _ => inflict(&mut buffer, &Harm::Truncate(cut)),
            }
        }
    }
}
