//! A log on a memory disk, a driver for it, and a model of what it must give back.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod store;

use std::collections::BTreeMap;

use coracle_raft::{
    BatchSeq, Entry, EntryKind, GroupId, HardState, LogIndex, LogPosition, NodeId, Payload, Place,
    Record, Term,
};
use coracle_wal::{
    AlignedBuf, Brief, Decoded, Disk, Identity, LoadError, MemDisk, Options, ReadAround,
    RecoverError, RecoveryReport, Seen, SegmentId, Visitor, Wal, WriteOp, inspect_into,
    recover_into,
};

pub fn options() -> Options {
    Options {
        identity: Identity { cluster: 7, node: NodeId::new(1), core: 0 },
        segment_bytes: 64 << 10,
        batch_bytes_max: 16 << 10,
        groups_max: 64,
        spare_max: 1,
        // About two small segments: the rest is looked at again.
        recovery_headers_max: 40,
        ..Options::default()
    }
}

pub fn group(raw: u32) -> GroupId {
    GroupId::new(raw)
}

pub fn index(raw: u64) -> LogIndex {
    LogIndex::new(raw)
}

pub fn position(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term::new(term), index: LogIndex::new(index) }
}

pub fn payload(bytes: Vec<u8>) -> Payload {
    let crc = crc32c::crc32c(&bytes);
    Payload::new(bytes, crc)
}

/// An entry whose content tells what it is.
pub fn entry(of: u32, term: u64, at: u64, len: usize) -> Record {
    let seed = of.wrapping_mul(31).wrapping_add(at as u32 * 7).wrapping_add(term as u32 * 131);
    let bytes = (0..len).map(|i| (seed.wrapping_add(i as u32 * 17) >> 1) as u8).collect();
    let entry = Entry {
        term: Term::new(term),
        index: LogIndex::new(at),
        kind: if len == 0 { EntryKind::Empty } else { EntryKind::Command },
        payload: payload(bytes),
    };
    Record::Entry { group: group(of), entry }
}

/// The entry of an entry record.
pub fn bare(record: &Record) -> Entry {
    match record {
        Record::Entry { entry, .. } => entry.clone(),
        other => panic!("{other:?} is no entry"),
    }
}

pub fn vote(of: u32, term: u64, vote: u32) -> Record {
    let vote = (vote > 0).then(|| NodeId::new(vote));
    Record::HardState { group: group(of), hard_state: HardState { term: Term::new(term), vote } }
}

/// Records of more groups, from 11 on, than an echo tells of together with other batches.
pub fn wide() -> Vec<Record> {
    (11..=35).map(|of| entry(of, 1, 1, 9)).collect()
}

pub fn purge(of: u32, term: u64, at: u64) -> Record {
    Record::Purge { group: group(of), base: position(term, at) }
}

pub fn state(of: u32, bytes: &[u8]) -> Record {
    Record::State { group: group(of), payload: payload(bytes.to_vec()) }
}

pub fn value(of: u32, bytes: &[u8]) -> Record {
    Record::Value { group: group(of), payload: payload(bytes.to_vec()) }
}

/// What the records of one group mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub hard_state: Option<HardState>,
    pub base: Option<LogPosition>,
    pub entries: BTreeMap<u64, Entry>,
    pub states: Vec<Vec<u8>>,
    pub values: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Models(pub BTreeMap<GroupId, Model>);

impl Models {
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut models = Self::default();
        records.into_iter().for_each(|record| models.apply(record));
        models
    }

    pub fn apply(&mut self, record: &Record) {
        let model = self.0.entry(record.group()).or_default();
        match record {
            Record::Entry { entry, .. } => {
                let _ = model.entries.split_off(&entry.index.get());
                model.entries.insert(entry.index.get(), entry.clone());
            }
            Record::HardState { hard_state, .. } => model.hard_state = Some(*hard_state),
            Record::State { payload, .. } => model.states.push(payload.bytes().to_vec()),
            Record::Value { payload, .. } => model.values.push(payload.bytes().to_vec()),
            Record::Purge { base, .. } => {
                let old = model.base.map_or(0, |base| base.index.get());
                let at = base.index.get();
                if model.base.is_some() && at <= old {
                    return;
                }
                let here = model.entries.get(&at).map(|entry| entry.term);
                if at > old && here != Some(base.term) {
                    // A snapshot has replaced the log.
                    model.entries.clear();
                }
                model.base = Some(*base);
                model.entries = model.entries.split_off(&(at + 1));
            }
        }
    }

    /// A short description, for messages of failed checks.
    pub fn summary(&self) -> String {
        let line = |(of, model): (&GroupId, &Model)| {
            let entries: Vec<_> = model
                .entries
                .values()
                .map(|e| (e.index.get(), e.term.get(), e.payload.len()))
                .collect();
            let states: Vec<_> = model.states.iter().map(Vec::len).collect();
            let vote = model.hard_state.map(|hard_state| hard_state.term);
            format!("{of}: {vote:?} base {:?} entries {entries:?} states {states:?}\n", model.base)
        };
        self.0.iter().map(line).collect()
    }

    pub fn group(&self, of: u32) -> Model {
        self.0.get(&group(of)).cloned().unwrap_or_default()
    }
}

/// An open log on a memory disk.
pub struct Rig {
    pub disk: MemDisk,
    pub wal: Wal<MemDisk>,
    pub report: RecoveryReport,
    pub recovered: Vec<Record>,
    /// Where those stand.
    pub recovered_places: Vec<Place>,
    /// Where what was appended stands.
    pub places: Vec<Place>,
    pub batch: u64,
    /// Whether nobody refers to any value.
    pub values_free: bool,
}

impl Rig {
    pub fn new() -> Self {
        Self::open(MemDisk::new(), options()).expect("an empty disk is a log")
    }

    pub fn open(disk: MemDisk, options: Options) -> Result<Self, RecoverError> {
        let looked_at = Collected::of(&disk.fork(), &options);
        let mut found =
            Collected { wants: |place| place.get() / 8 % 3 > 0, ..Collected::default() };
        let (mut wal, report) = recover_into(disk.clone(), options, &mut found)?;
        found.check(&report, looked_at);
        let Collected { records: recovered, places: recovered_places, .. } = found;
        wal.prepare_segments().expect("the disk has room");
        let (places, batch, values_free) = (Vec::new(), 0, true);
        Ok(Self { disk, wal, report, recovered, recovered_places, places, batch, values_free })
    }

    pub fn reopen(disk: &MemDisk) -> Self {
        Self::open(disk.fork(), options()).expect("the log opens")
    }

    pub fn models(&self) -> Models {
        Models::of(&self.recovered)
    }

    pub fn append(&mut self, records: &[Record]) -> BatchSeq {
        self.batch += 1;
        let batch = BatchSeq::new(self.batch);
        self.wal.append(batch, records, &mut self.places);
        batch
    }

    pub fn write(&mut self, op: &WriteOp) {
        let file = self.wal.file(op.segment).expect("the file of a write is open").clone();
        let written = self.disk.write_dsync(&file, op.offset, &op.buffer[..op.len]);
        assert_eq!(written.expect("the write succeeds"), op.len);
    }

    pub fn done(&mut self, op: WriteOp) -> Option<BatchSeq> {
        let durable = self.wal.written(op.id, Ok(op.len), op.buffer).expect("no error");
        if self.values_free {
            self.wal.release_values_before(u64::MAX);
        }
        durable
    }

    /// Writes everything that is pending, preparing segments as needed.
    pub fn flush(&mut self) -> Option<BatchSeq> {
        let mut durable = None;
        loop {
            self.wal.prepare_segments().expect("the disk has room");
            let Some(op) = self.wal.next_write() else { break };
            self.write(&op);
            durable = self.done(op).or(durable);
        }
        assert_eq!(self.wal.pending_bytes(), 0, "everything is written");
        durable
    }

    pub fn commit(&mut self, records: &[Record]) {
        let batch = self.append(records);
        assert_eq!(self.flush(), Some(batch));
    }

    /// Records on disk that everything is durable.
    pub fn idle(&mut self) {
        while self.wal.idle_watermark() {
            self.flush();
        }
    }

    pub fn load(&self, of: u32, first: u64, last: u64, bytes_max: usize) -> Vec<Entry> {
        self.try_load_some(of, first, last, bytes_max).expect("loaded")
    }

    pub fn try_load(&self, of: u32, first: u64, last: u64) -> Result<Vec<Entry>, LoadError> {
        self.try_load_some(of, first, last, usize::MAX)
    }

    fn try_load_some(
        &self,
        of: u32,
        first: u64,
        last: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, LoadError> {
        let ops = self.wal.locate(group(of), index(first), index(last), bytes_max)?;
        let buffers: Vec<AlignedBuf> = ops
            .iter()
            .map(|op| {
                assert!(op.offset.is_multiple_of(4096) && op.len.is_multiple_of(4096));
                let file = self.wal.file(op.segment).expect("the file of a read is open");
                let mut around = ReadAround::new(op.offset, op.len);
                while let Some((offset, len)) = around.wanted() {
                    let mut buffer = AlignedBuf::zeroed(len);
                    let read = self.disk.read_at(file, offset, &mut buffer);
                    around.take(read.is_ok().then_some(buffer));
                }
                around.into_content()
            })
            .collect();
        self.wal.decode_entries(&ops, &buffers)
    }
}

impl Rig {
    /// The record in `place`, if its payload is guessed to have this length.
    pub fn read(&self, place: Place, payload_len: usize) -> Result<Record, LoadError> {
        let mut read = self.wal.locate_value(place, payload_len)?;
        loop {
            let buffer = self.bytes(read.segment, read.offset, read.len);
            match self.wal.decode_value(&read, &buffer)? {
                Decoded::Record(record) => return Ok(record),
                Decoded::Longer(longer) => {
                    assert!(longer.len > read.len, "{longer:?} after {read:?}");
                    read = longer;
                }
            }
        }
    }

    /// Commands and values of a segment, read in parts of about this size, and whether it is
    /// damaged. `None` if it cannot be scanned.
    pub fn scan(&self, segment: u64, bytes: usize) -> Option<(Vec<(Place, Record)>, bool)> {
        self.scan_for(segment, bytes, &|_| true)
    }

    /// Those that are wanted, and whether one of them is damaged, or what it is cannot be known.
    pub fn scan_for(
        &self,
        segment: u64,
        bytes: usize,
        wants: &dyn Fn(&Seen<'_>) -> bool,
    ) -> Option<(Vec<(Place, Record)>, bool)> {
        let (mut records, mut damaged) = (Vec::new(), false);
        let mut from = 0;
        for _ in 0..10_000 {
            let read = self.wal.locate_scan(segment, from, bytes)?;
            let buffer = self.bytes(read.segment, read.offset, read.len);
            let scanned = self.wal.decode_scan(&read, &buffer, wants);
            records.extend(scanned.records);
            damaged |= scanned.damaged;
            match scanned.next {
                Some(next) => from = next,
                None => return Some((records, damaged)),
            }
        }
        panic!("the scan of segment {segment} does not end");
    }

    /// Reads as a driver does.
    pub fn bytes(&self, segment: SegmentId, offset: u64, len: usize) -> Vec<u8> {
        assert!(offset.is_multiple_of(4096) && len.is_multiple_of(4096), "{offset} {len}");
        let mut buffer = vec![0; len];
        let file = self.wal.file(segment).expect("the file of a read is open");
        let read = self.disk.read_at(file, offset, &mut buffer).expect("read");
        buffer.truncate(read);
        buffer
    }

    pub fn live(&self) -> Vec<u64> {
        self.wal.live_segments().map(SegmentId::number).collect()
    }

    pub fn log_start(&self) -> u64 {
        self.wal.log_start().number()
    }
}

/// What recovery has found.
pub struct Collected {
    records: Vec<Record>,
    places: Vec<Place>,
    /// Those that were taken without their content, and where they belong.
    briefs: Vec<(usize, Brief)>,
    wants: fn(Place) -> bool,
}

impl Default for Collected {
    fn default() -> Self {
        Self { records: Vec::new(), places: Vec::new(), briefs: Vec::new(), wants: |_| true }
    }
}

impl Visitor for Collected {
    fn record(&mut self, place: Place, record: Record) {
        self.places.push(place);
        self.records.push(record);
    }

    fn brief(&mut self, brief: &Brief) -> bool {
        if (self.wants)(brief.place) {
            return false;
        }
        self.briefs.push((self.records.len() + self.briefs.len(), *brief));
        true
    }

    fn lost(&mut self, place: Place, group: GroupId, position: LogPosition) {
        let (term, index, kind) = (position.term, position.index, EntryKind::Command);
        let entry = Entry { term, index, kind, payload: payload(LOST.to_vec()) };
        self.record(place, Record::Entry { group, entry });
    }
}

/// What stands here for the content of an entry that is lost.
pub const LOST: &[u8] = b"lost";

/// The same records but for contents that are lost. Returns of how many.
pub fn same_but_lost(found: &Model, want: &Model) -> Result<usize, String> {
    let mut whole = found.clone();
    let mut lost = 0;
    for (index, entry) in &mut whole.entries {
        if entry.payload.bytes() == LOST {
            let meant = want.entries.get(index).filter(|meant| meant.term == entry.term);
            *entry = meant.ok_or(format!("nobody wrote {index} in {}", entry.term))?.clone();
            lost += 1;
        }
    }
    if whole == *want { Ok(lost) } else { Err(format!("{found:?}, not {want:?}")) }
}

impl Collected {
    /// All of it, with every content; nothing if the log cannot be opened.
    fn of(disk: &MemDisk, options: &Options) -> Option<(Self, RecoveryReport)> {
        let mut all = Self::default();
        let report = inspect_into(disk, Some(options.identity), &mut all).ok()?;
        Some((all, report))
    }

    /// Puts what was taken without content in its place, out of what a look at the whole log has
    /// found, which must be the same.
    fn check(&mut self, report: &RecoveryReport, looked_at: Option<(Self, RecoveryReport)>) {
        let (all, all_report) = looked_at.expect("a log that can be opened can be looked at");
        for (at, brief) in std::mem::take(&mut self.briefs) {
            let (place, record) = (all.places[at], all.records[at].clone());
            let (position, payload) = match &record {
                Record::Entry { entry, .. } => (Some(entry.position()), &entry.payload),
                Record::Value { payload, .. } => (None, payload),
                other => panic!("{other:?} has no short form"),
            };
            let bytes_behind = brief.bytes_behind;
            let (group, payload_len) = (record.group(), payload.len());
            assert_eq!(brief, Brief { place, group, position, payload_len, bytes_behind });
            assert!(bytes_behind as usize > payload_len, "{brief:?}");
            self.places.insert(at, place);
            self.records.insert(at, record);
        }
        assert_eq!((&self.places, &self.records), (&all.places, &all.records));
        let without_work = |report: &RecoveryReport| RecoveryReport {
            bytes_read: 0,
            cleared_files: Vec::new(),
            ..report.clone()
        };
        assert_eq!(without_work(report), without_work(&all_report));
    }
}

/// Power fails and every unsynced thing is lost.
pub fn lose_everything(disk: &MemDisk) {
    disk.crash(&mut |_| false);
}
