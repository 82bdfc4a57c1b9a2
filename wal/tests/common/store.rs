//! A log that is used as a store of values.

use coracle_raft::{Place, Record};
use coracle_wal::{MemDisk, Options};

use super::{Rig, entry, options, purge, value, vote};

pub fn small() -> Options {
    Options { segment_bytes: 32 << 10, batch_bytes_max: 8 << 10, groups_max: 8, ..options() }
}

pub fn name(segment: u64) -> String {
    format!("{segment:010}.seg")
}

pub fn len(record: &Record) -> usize {
    match record {
        Record::Entry { entry, .. } => entry.payload.len(),
        Record::State { payload, .. } | Record::Value { payload, .. } => payload.len(),
        Record::HardState { .. } | Record::Purge { .. } => 0,
    }
}

/// A log whose values are kept, and what was appended to it with its places.
pub struct Store {
    pub rig: Rig,
    pub all: Vec<(Place, Record)>,
}

impl Store {
    pub fn new() -> Self {
        let mut rig = Rig::open(MemDisk::new(), small()).expect("an empty disk is a log");
        rig.values_free = false;
        Self { rig, all: Vec::new() }
    }

    pub fn note(&mut self, records: &[Record]) {
        let places = std::mem::take(&mut self.rig.places);
        assert_eq!(places.len(), records.len(), "one place for each record");
        self.all.extend(places.into_iter().zip(records.iter().cloned()));
    }

    pub fn commit(&mut self, records: &[Record]) {
        self.rig.commit(records);
        self.note(records);
    }

    /// Several segments of values and commands, all purged: most segments are kept for their
    /// values only.
    pub fn aged() -> Self {
        let mut store = Self::new();
        store.commit(&[vote(1, 3, 1), vote(2, 4, 2)]);
        for at in 1..=14u64 {
            let bytes = vec![at as u8; 2500];
            store.commit(&[entry(1, 3, at, 3000), entry(2, 4, at, 0), value(2, &bytes)]);
            store.commit(&[purge(1, 3, at.saturating_sub(1)), purge(2, 4, at.saturating_sub(1))]);
        }
        store.rig.idle();
        assert!(store.rig.log_start() >= 3, "the log proper starts late");
        assert_eq!(store.rig.live()[0], 1, "everything is kept");
        store
    }

    pub fn reopen(&self) -> Self {
        let mut rig = Rig::open(self.rig.disk.fork(), small()).expect("the log opens");
        rig.values_free = false;
        Self { rig, all: self.all.clone() }
    }

    pub fn in_segment(&self, segment: u64) -> Vec<(Place, Record)> {
        let wanted = |record: &Record| match record {
            Record::Entry { entry, .. } => !entry.payload.is_empty(),
            other => matches!(other, Record::Value { .. }),
        };
        let here =
            |(place, record): &&(Place, Record)| place.segment() == segment && wanted(record);
        self.all.iter().filter(here).cloned().collect()
    }

    /// Every record from this segment on can be read, with any guess of its length.
    pub fn check_from(&self, segment: u64) {
        for (place, record) in self.all.iter().filter(|(place, _)| place.segment() >= segment) {
            for guess in [0, len(record), len(record) + 5000, usize::MAX] {
                let read = self.rig.read(*place, guess);
                assert_eq!(read.as_ref(), Ok(record), "{place}, guess {guess}");
            }
        }
    }
}
