//! Reading a log offline: everything is seen, every damage is told, nothing is changed.

mod common;

use common::store::{Store, len, name, small};
use coracle_raft::{Place, Record};
use coracle_wal::{DamageKind, Disk, Examination, Found, LoadError, MemDisk, ValueError};

/// What a look at a log brings.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Number, and whether it is kept for its values only.
    segments: Vec<(u64, bool)>,
    batches: u64,
    records: Vec<(Place, Record)>,
    damages: Vec<(String, u64, DamageKind)>,
}

fn look(disk: &MemDisk) -> Seen {
    let mut seen = Seen::default();
    let identity = Some(small().identity);
    let mut examination = Examination::open(disk, identity).expect("it opens");
    let each = &mut |found| match found {
        Found::Segment { number, values_only, .. } => seen.segments.push((number, values_only)),
        Found::Batch => seen.batches += 1,
        Found::Record { place, record, .. } => seen.records.push((place, record)),
        Found::Damage(damage) => seen.damages.push((damage.file, damage.offset, damage.kind)),
    };
    examination.each(each).expect("files open");
    seen
}

/// Every record that was ever appended and is kept is seen in its place, those in old segments too.
#[test]
fn everything_that_is_kept_is_seen() {
    let store = Store::aged();
    let seen = look(&store.rig.disk);
    let mut kept = store.all.clone();
    // Terms, votes and bases are written again at the start of each segment.
    let mut records = seen.records.clone();
    records.retain(|(place, _)| kept.iter().any(|(at, _)| at == place));
    kept.sort_by_key(|(place, _)| *place);
    assert_eq!(records, kept);
    assert!(seen.records.len() > kept.len());
    assert!(seen.records.is_sorted_by_key(|(place, _)| *place), "in the order of the log");
    assert_eq!(seen.damages, []);
    let numbers: Vec<_> = seen.segments.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, store.rig.live());
    let start = store.rig.log_start();
    assert!(seen.segments.iter().all(|&(number, values_only)| values_only == (number < start)));
}

/// Values are read by their places as the log that runs reads them, whatever length is guessed.
#[test]
fn values_are_found_by_their_places() {
    let store = Store::aged();
    let mut examination = Examination::open(&store.rig.disk, None).expect("it opens");
    assert_eq!(examination.identity(), Some(small().identity));
    for (place, record) in &store.all {
        for guess in [0, len(record), 10 * len(record)] {
            let read = examination.value(*place, guess).expect("it is there");
            assert_eq!(read, *record, "{place} {guess}");
        }
        let beside = Place::new(place.segment(), place.offset() + 8);
        assert!(examination.value(beside, 100).is_err(), "no record starts at {beside}");
    }
    let end = Place::new(u64::from(u32::MAX), 4160);
    let none = examination.value(end, 1).expect_err("there is no such segment");
    assert!(matches!(none, ValueError::Load(LoadError::NoRecord { .. })), "{none}");
}

/// A changed byte anywhere in the records of any segment is told, in that segment and not after
/// that byte; the files stay as they are.
#[test]
fn every_changed_byte_is_told() {
    let store = Store::aged();
    let whole = look(&store.rig.disk);
    // The last records are not known to have been durable.
    let last = store.rig.live().len() as u64 - 1;
    for (place, record) in store.all.iter().filter(|(place, _)| place.segment() < last) {
        let record_bytes = 48 + len(record) as u64;
        for at in (0..record_bytes).step_by(37) {
            let disk = store.rig.disk.fork();
            let (file, offset) = (name(place.segment()), place.offset() + at);
            disk.flip(&file, offset as usize, 0x10);
            let before = bytes(&disk, &file);
            let seen = look(&disk);
            let told = seen.damages.iter().find(|(told, at, _)| *told == file && *at <= offset);
            assert!(told.is_some(), "{file} at {offset}: {:?}", seen.damages);
            assert_eq!(seen.records.len() + 1, whole.records.len(), "{file} at {offset}");
            let read = Examination::open(&disk, None).expect("it opens").value(*place, len(record));
            assert!(read.is_err(), "{place}: {read:?}");
            assert_eq!(bytes(&disk, &file), before, "nothing is changed");
        }
    }
}

fn bytes(disk: &MemDisk, name: &str) -> Vec<u8> {
    let file = disk.open_for_scan(name).expect("open");
    let mut bytes = vec![0; disk.len(&file).expect("measure") as usize];
    disk.read_at(&file, 0, &mut bytes).expect("read");
    bytes
}
