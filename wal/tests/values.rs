//! Reading single records by their place, and old segments in order.

mod common;

use std::cell::RefCell;

use common::store::{Store, len, name, small};
use common::{Rig, entry, lose_everything, purge, state, value, vote};
use coracle_raft::{Place, Record};
use coracle_wal::{LoadError, MemDisk};

#[test]
fn every_record_is_read_back_by_its_place() {
    let mut store = Store::new();
    let records = [vote(0, 1, 1), entry(0, 1, 1, 100), value(0, b""), value(3, &[7; 9000])];
    store.rig.append(&records);
    store.note(&records);
    for (place, _) in &store.all {
        let early = store.rig.wal.locate_value(*place, 10);
        assert_eq!(early, Err(LoadError::NotDurableAt { place: *place }));
    }
    store.rig.flush();
    store.commit(&[state(0, &[1; 40]), purge(0, 1, 1), entry(0, 1, 2, 12_000), value(0, &[2; 16])]);
    store.check_from(0);
    let again = store.reopen();
    again.check_from(0);
    let recovered: Vec<_> =
        again.rig.recovered_places.iter().copied().zip(again.rig.recovered.clone()).collect();
    let alive: Vec<_> = store
        .all
        .iter()
        .filter(|(_, record)| {
            let dead = matches!(record, Record::Entry { entry, .. } if entry.index.get() == 1);
            !dead && !matches!(record, Record::Purge { .. })
        })
        .cloned()
        .collect();
    assert_eq!(recovered[0].1, purge(0, 1, 1), "the base comes first");
    assert_eq!(recovered[1..], alive, "recovery tells the same places");
}

#[test]
fn latched_log_gives_a_place_for_each_record() {
    let mut rig = Rig::new();
    rig.append(&[vote(1, 1, 1)]);
    let op = rig.wal.next_write().expect("a write");
    rig.wal.written(op.id, Err(std::io::Error::other("no")), op.buffer).expect_err("latched");
    rig.append(&[value(1, b"a"), value(1, b"b")]);
    assert_eq!(rig.places.len(), 3);
}

#[test]
fn no_wrong_place_passes_for_a_record() {
    // A value that holds a copy of another record and of its batch: no bytes pass elsewhere.
    let mut store = Store::new();
    store.commit(&[vote(1, 1, 1), value(1, &[9; 300])]);
    let copy = store.rig.disk.contents(&name(1)).expect("there")[4096..8192].to_vec();
    store.commit(&[value(1, &copy), value(2, &copy[112..])]);
    store.commit(&[value(1, b"after")]);
    let bytes = store.rig.wal.position().get();
    for offset in (0..32 << 10).step_by(8) {
        let place = Place::new(1, offset);
        let known = store.all.iter().find(|(at, _)| *at == place).map(|(_, record)| record);
        match store.rig.read(place, 100) {
            Ok(record) => assert_eq!(Some(&record), known, "{place}"),
            Err(LoadError::NoRecord { .. }) => {
                assert!(known.is_none() && !(4160..bytes).contains(&offset), "{place}");
            }
            Err(LoadError::Damaged { offset: at, .. }) => {
                assert!(known.is_none() && at == offset, "{place}");
            }
            Err(error) => panic!("{place}: {error}"),
        }
    }
    for place in [Place::new(2, 4160), Place::new(0, 4160), Place::new(77, 4160)] {
        let error = store.rig.wal.locate_value(place, 10).expect_err("nothing is there");
        let wanted = if place.segment() == 0 {
            LoadError::Recycled { file: name(0) }
        } else {
            LoadError::NoRecord { place }
        };
        assert_eq!(error, wanted);
    }
}

#[test]
fn damaged_or_short_reads_of_a_value_are_refused() {
    let mut store = Store::new();
    store.commit(&[vote(1, 1, 1), value(1, &[5; 777])]);
    let (place, record) = store.all[1].clone();
    let read = store.rig.wal.locate_value(place, 777).expect("durable");
    let whole = store.rig.bytes(read.segment, read.offset, read.len);
    let start = (place.offset() - read.offset) as usize;
    for at in start..start + 48 + 777 {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        let result = store.rig.wal.decode_value(&read, &bad);
        assert!(matches!(result, Err(LoadError::Damaged { .. })), "{at}: {result:?}");
        let result = store.rig.wal.decode_value(&read, &whole[..at]);
        assert!(matches!(result, Err(LoadError::Damaged { .. })), "cut at {at}: {result:?}");
    }
    let decoded = store.rig.wal.decode_value(&read, &whole).expect("whole");
    assert_eq!(decoded, coracle_wal::Decoded::Record(record));
}

/// A scan brings exactly the commands and values that were appended, in parts of any size.
#[test]
fn scan_of_a_segment_is_what_was_appended_there() {
    let mut store = Store::new();
    store.commit(&[vote(1, 1, 1), state(1, &[3; 60]), entry(1, 1, 1, 0), entry(1, 1, 2, 33)]);
    store.commit(&[value(2, &[1; 6000]), value(1, b""), entry(1, 1, 3, 8000), purge(1, 1, 1)]);
    store.commit(&[value(2, &[1; 60])]);
    assert_eq!(store.rig.wal.locate_scan(1, 0, 4096), None, "it is the active one");
    for at in 4..=30 {
        store.commit(&[entry(1, 1, at, 1700), value(2, &[at as u8; 100])]);
    }
    // Batches of the old segment still under way.
    let live = store.rig.live();
    let last = *live.last().expect("some");
    for bytes in [0, 1, 4096, 8192, 12_288, 1 << 20, usize::MAX >> 1] {
        for &segment in &live[..live.len() - 1] {
            let found = store.rig.scan(segment, bytes).expect("nothing is added to it");
            assert_eq!(found, (store.in_segment(segment), false), "{segment} by {bytes}");
        }
    }
    for segment in [0, last, last + 1, 1000] {
        assert_eq!(store.rig.wal.locate_scan(segment, 0, 4096), None, "{segment}");
    }
    let again = store.reopen();
    for &segment in &live[..live.len() - 1] {
        let found = again.rig.scan(segment, 4096).expect("old");
        assert_eq!(found, (store.in_segment(segment), false), "{segment}");
    }
}

/// Whoever scans is shown each command and value, says which are wanted, and gets these; what is
/// damaged counts if it is wanted.
#[test]
fn scan_brings_what_is_wanted() {
    let store = Store::aged();
    let all = store.in_segment(1);
    assert!(all.len() >= 4, "{}", all.len());
    for (hit, (place, record)) in all.iter().enumerate() {
        let disk = store.rig.disk.fork();
        disk.flip(&name(1), place.offset() as usize + 48 + len(record) / 2, 0x20);
        let again = Rig::open(disk, small()).expect("opens");
        let seen = RefCell::new(Vec::new());
        let others = again.scan_for(1, 8192, &|found| {
            let payload = crc32c::crc32c(found.payload);
            seen.borrow_mut().push((found.place, found.group, found.is_command, payload));
            found.place != *place
        });
        let rest = all.iter().filter(|(at, _)| at != place).cloned().collect();
        assert_eq!(others, Some((rest, false)), "without {place}");
        let it = again.scan_for(1, 8192, &|found| found.place == *place);
        assert_eq!(it, Some((Vec::new(), true)), "{place} alone");
        let shown = seen.into_inner();
        for (at, (place, record)) in all.iter().enumerate() {
            let (is_command, payload) = match record {
                Record::Entry { entry, .. } => (true, &entry.payload),
                Record::Value { payload, .. } => (false, payload),
                other => unreachable!("{other:?}"),
            };
            let (at_place, group, command, sum) = shown[at];
            assert_eq!((at_place, group, command), (*place, record.group(), is_command));
            assert_eq!(sum == payload.checksum(), at != hit, "{place}");
        }
    }
}

#[test]
fn segment_is_not_scanned_while_writes_to_it_are_under_way() {
    let mut store = Store::new();
    let records: Vec<Record> = (1..=12).map(|at| entry(1, 1, at, 4000)).collect();
    store.rig.append(&records);
    store.note(&records);
    assert!(store.rig.live().len() >= 2, "nothing more goes to the first segment");
    while let Some(op) = store.rig.wal.next_write() {
        if op.segment.number() == 1 {
            assert_eq!(store.rig.scan(1, 4096), None);
        }
        store.rig.write(&op);
        store.rig.done(op);
        store.rig.wal.prepare_segments().expect("room");
    }
    assert_eq!(store.rig.scan(1, 4096), Some((store.in_segment(1), false)));
}

/// Lost batch headers: the records are found all the same, in parts of any size.
#[test]
fn scan_finds_records_of_batches_without_headers() {
    let store = Store::aged();
    let wanted = store.in_segment(1);
    let mut found_headers = 0;
    for batch in (4096..32 << 10).step_by(4096) {
        let first = Place::new(1, batch + 64);
        if batch > 4096 && !store.all.iter().any(|(place, _)| *place == first) {
            continue;
        }
        found_headers += 1;
        let disk = store.rig.disk.fork();
        disk.flip(&name(1), batch as usize + 16, 0x20);
        let again = Rig::open(disk, small()).expect("opens");
        for bytes in [0, 8192, 12_288, 1 << 20] {
            let found = again.scan(1, bytes).expect("old");
            assert_eq!(found, (wanted.clone(), true), "{batch} by {bytes}");
        }
    }
    assert!(found_headers >= 4, "{found_headers}");
}

/// A read that comes when the segment is gone brings nothing, whatever its bytes are.
#[test]
fn reads_of_recycled_segments_end_with_an_error() {
    let mut store = Store::aged();
    let place = store.in_segment(1)[0].0;
    let read = store.rig.wal.locate_value(place, 3000).expect("durable");
    let scan = store.rig.wal.locate_scan(1, 0, 8192).expect("old");
    let bytes = store.rig.bytes(read.segment, read.offset, read.len);
    store.rig.wal.release_values_before(2);
    let gone = store.rig.wal.decode_value(&read, &bytes);
    assert_eq!(gone, Err(LoadError::Recycled { file: name(1) }));
    assert_eq!(
        store.rig.wal.decode_scan(&scan, &bytes, &|_| true),
        coracle_wal::Scanned::default()
    );
}

/// The bytes of a segment's earlier use under the same number fail the test of the seed.
#[test]
fn bytes_of_an_earlier_use_are_refused() {
    let mut rig = Rig::open(MemDisk::new(), small()).expect("opens");
    rig.append(&[vote(1, 1, 1), value(1, &[4; 500])]);
    let place = rig.places[1];
    let op = rig.wal.next_write().expect("a write");
    let stale = op.buffer[..op.len].to_vec();
    drop(op);
    lose_everything(&rig.disk);
    let mut again = Rig::open(rig.disk.fork(), small()).expect("opens");
    again.commit(&[vote(1, 1, 1), value(1, &[4; 500])]);
    assert_eq!(again.places[1], place, "the same place once more");
    let read = again.wal.locate_value(place, 500).expect("durable");
    let result = again.wal.decode_value(&read, &stale);
    assert!(matches!(result, Err(LoadError::Damaged { .. })), "{result:?}");
    assert_eq!(again.read(place, 500), Ok(value(1, &[4; 500])));
}
