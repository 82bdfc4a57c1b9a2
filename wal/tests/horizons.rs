//! The start of the log proper, and segments that are kept for their values.

mod common;

use common::store::{Store, len, name, small};
use common::{Models, Rig, entry, purge, state, value, vote};
use coracle_raft::Place;
use coracle_wal::{Disk, DiskOp, LoadError, MemDisk, Unsynced};

/// Both horizons must have passed, and only the front goes.
#[test]
fn segments_go_from_the_front_when_both_horizons_have_passed() {
    let mut store = Store::aged();
    let log_start = store.rig.log_start();
    let last = *store.rig.live().last().expect("some");
    for horizon in [1, 2, 3] {
        store.rig.wal.release_values_before(horizon);
        assert_eq!(store.rig.live()[0], horizon, "nothing after it, nothing from the middle");
        store.check_from(horizon);
    }
    let gone = Place::new(1, 4160);
    assert_eq!(store.rig.read(gone, 1), Err(LoadError::Recycled { file: name(1) }));
    // No value is needed, but the log proper is.
    store.rig.wal.release_values_before(last);
    assert_eq!(store.rig.live()[0], log_start);
    // The horizon never moves back, and what is not written yet cannot be released.
    store.rig.wal.release_values_before(1);
    store.rig.wal.release_values_before(u64::MAX);
    store.commit(&[entry(1, 3, 15, 10), value(1, &[1; 20])]);
    for at in 16..=40 {
        store.commit(&[entry(1, 3, at, 3000), purge(1, 3, at), purge(2, 4, 14)]);
    }
    assert!(store.rig.log_start() > last);
    assert_eq!(store.rig.live()[0], last, "a value was appended after the release");
    store.check_from(last);
}

/// A value that was moved is safe only when its copy is on disk.
#[test]
fn values_are_released_when_what_was_appended_before_is_durable() {
    let mut store = Store::aged();
    let moved = [value(2, &[1; 2500])];
    store.rig.append(&moved);
    store.note(&moved);
    store.rig.wal.release_values_before(2);
    assert_eq!(store.rig.live()[0], 1, "the copy is not on disk yet");
    let crashed = Store { rig: Rig::open(store.rig.disk.fork(), small()).expect("opens"), ..store };
    assert_eq!(crashed.rig.live()[0], 1);
    let mut store = Store::aged();
    store.rig.append(&moved);
    store.note(&moved);
    store.rig.wal.release_values_before(2);
    store.rig.flush();
    assert_eq!(store.rig.live()[0], 2);
}

/// Files that are released in a clump are kept as long as there are not too many in all.
#[test]
fn files_released_in_a_clump_are_kept_for_later() {
    for (kept, want) in [(0, 6), (10, 10), (100, 18)] {
        let mut store = Store::new();
        store.rig.wal.keep_files(kept);
        let mut at = 0;
        while store.rig.live().len() < 16 {
            at += 1;
            store.commit(&[entry(1, 1, at, 3000), value(2, &[7; 900]), purge(1, 1, at - 1)]);
        }
        let before = store.rig.wal.disk_bytes();
        let newest = *store.rig.live().last().expect("some");
        store.rig.wal.release_values_before(newest);
        store.rig.wal.prepare_segments().expect("prepared");
        let files = store.rig.disk.list().expect("list").len();
        assert_eq!(files as u64, store.rig.wal.disk_bytes() / (32 << 10), "{kept}");
        assert!(files <= want && files as u64 * (32 << 10) <= before, "{kept}: {files}");
        let few = files <= 6;
        assert_eq!(few, kept == 0, "{kept}: {files}");
    }
}

/// Segments kept for their values become new ones like all others.
#[test]
fn value_segments_are_recycled() {
    let mut store = Store::new();
    let mut released = Vec::new();
    for at in 1..=200u64 {
        store.commit(&[entry(1, 1, at, 3000), value(2, &[at as u8; 900]), purge(1, 1, at - 1)]);
        let newest = *store.rig.live().last().expect("some");
        store.rig.wal.release_values_before(newest.saturating_sub(3));
        released.extend(store.rig.wal.take_released().iter().map(|id| id.number()));
        assert!(store.rig.wal.disk_bytes() <= 8 * (32 << 10), "{}", store.rig.wal.disk_bytes());
        assert!(store.rig.wal.spare_count() <= 1);
        assert!(store.rig.wal.free_bytes() <= 2 * (32 << 10));
    }
    assert!(released.len() > 10, "{released:?}");
    assert!(released.iter().zip(1..).all(|(&number, wanted)| number == wanted), "{released:?}");
    let names = store.rig.disk.list().expect("list");
    assert!(names.iter().all(|name| name.ends_with(".seg")), "{names:?}");
    let oldest = store.rig.live()[0];
    store.check_from(oldest);
    let again = store.reopen();
    // A segment that was let go and not used again yet is found once more.
    assert!(again.rig.live()[0] <= oldest, "{:?}", again.rig.live());
    again.check_from(oldest);
}

/// State pins the log proper, a value does not.
#[test]
fn values_do_not_hold_the_log_proper() {
    let mut starts = Vec::new();
    for first in [value(1, &[1; 50]), state(1, &[1; 50])] {
        let mut store = Store::new();
        store.commit(&[first]);
        for at in 1..=30 {
            store.commit(&[entry(2, 1, at, 3000), purge(2, 1, at)]);
        }
        starts.push(store.rig.log_start());
        store.rig.idle();
        assert_eq!(store.reopen().rig.report.value_segments == 0, starts.len() == 2);
    }
    assert!(starts[0] > 1 && starts[1] == 1, "{starts:?}");
}

#[test]
fn recovery_reads_the_log_proper_only() {
    let store = Store::aged();
    let log_start = store.rig.log_start();
    let mut again = store.reopen();
    let report = &again.rig.report;
    assert!(report.is_clean() && report.values_damaged.is_empty(), "{report:?}");
    // The segment in use was begun before the newest purges.
    let told = again.rig.log_start();
    assert!(told > 1 && told <= log_start, "{told} {log_start}");
    assert_eq!(report.value_segments as u64, told - 1);
    assert!(
        again.rig.recovered_places.iter().all(|place| place.segment() >= told || place.get() == 0)
    );
    let models = again.rig.models();
    assert_eq!(models.group(1).entries.keys().copied().collect::<Vec<_>>(), [14]);
    assert_eq!(models.group(1).hard_state, Models::of(&[vote(1, 3, 1)]).group(1).hard_state);
    assert_eq!(again.rig.live()[0], 1);
    again.check_from(1);
    for segment in 1..told {
        assert_eq!(again.rig.scan(segment, 1 << 20), Some((store.in_segment(segment), false)));
    }
    // It goes on, and lets go from the front.
    again.commit(&[entry(1, 4, 15, 50), value(1, b"more")]);
    again.check_from(1);
    again.rig.wal.release_values_before(2);
    assert_eq!(again.rig.live()[0], 2);
}

/// What rots in a segment that is kept for its values harms these values, never a group.
#[test]
fn every_flipped_byte_of_a_value_segment_harms_only_values() {
    let store = Store::aged();
    let again = store.reopen();
    assert!(again.rig.log_start() > 1);
    let file = name(1);
    let disk = &again.rig.disk;
    let inspect = || {
        let mut records = Vec::new();
        let mut visit = |place, record| records.push((place, record));
        let report = coracle_wal::inspect(disk, None, &mut visit).expect("it is read");
        (report, records)
    };
    let sound = inspect();
    let here: Vec<_> = store.all.iter().filter(|(place, _)| place.segment() == 1).collect();
    let wanted = store.in_segment(1);
    let (mut lost, mut told) = (0, 0);
    for at in 0..32 << 10 {
        disk.flip(&file, at, 1 << (at % 8));
        assert_eq!(inspect(), sound, "flip {at}");
        for (place, record) in &here {
            let hit =
                (place.offset()..place.offset() + 48 + len(record) as u64).contains(&(at as u64));
            match again.rig.read(*place, len(record)) {
                Ok(found) => assert!(found == *record && !hit, "flip {at}: {place}"),
                Err(LoadError::Damaged { .. }) if hit => lost += 1,
                Err(error) => panic!("flip {at}: {place}: {error}"),
            }
        }
        if at % 3 == 0 {
            let (found, damaged) = again.rig.scan(1, 8192).expect("it is old");
            let whole = found == wanted;
            assert!(found.iter().all(|record| wanted.contains(record)), "flip {at}: invented");
            assert!(whole || damaged, "flip {at}: lost and not told");
            told += usize::from(damaged);
        }
        disk.flip(&file, at, 1 << (at % 8));
    }
    assert!(lost > 10_000 && told > 3000, "{lost} {told}");
}

/// Neither copy of the header left, the block unreadable, all of it gone: the values are lost, the
/// groups are not.
#[test]
fn value_segment_without_a_header_is_told_and_harms_no_group() {
    type Harm = fn(&MemDisk, &str);
    let harms: [(&str, Harm, bool); 6] = [
        (
            "both copies and the heads of all batches",
            |disk, file| {
                let batches = (1..8).map(|block| 4096 * block + 20);
                [20, 2068].into_iter().chain(batches).for_each(|at| disk.flip(file, at, 1));
            },
            true,
        ),
        ("unreadable", |disk, file| disk.make_unreadable(file, 0..32 << 10), true),
        ("header only", |disk, file| disk.make_unreadable(file, 0..4096), false),
        ("zeros", |disk, file| disk.set_contents(file, vec![0; 32 << 10]), true),
        ("empty", |disk, file| disk.set_contents(file, Vec::new()), true),
        ("content", |disk, file| disk.make_unreadable(file, 4096..32 << 10), false),
    ];
    let store = Store::aged();
    let sound = store.reopen();
    for (what, harm, header_lost) in harms {
        for segment in [1, 2] {
            let disk = store.rig.disk.fork();
            harm(&disk, &name(segment));
            let mut again = Rig::open(disk.clone(), small()).expect("it opens");
            again.values_free = false;
            assert!(again.report.is_clean(), "{what}: {:?}", again.report);
            assert_eq!(again.recovered, sound.rig.recovered, "{what}");
            let told: Vec<_> =
                again.report.values_damaged.iter().map(|damage| damage.file.clone()).collect();
            let wanted = if header_lost { vec![name(segment)] } else { Vec::new() };
            assert_eq!(told, wanted, "{what}");
            assert_eq!(again.live()[0], 1, "{what}: it stays until it is released");
            for (place, record) in &store.all {
                if place.segment() != segment {
                    assert_eq!(again.read(*place, 0).as_ref(), Ok(record), "{what}");
                } else if header_lost {
                    let error = again.wal.locate_value(*place, 0).expect_err("lost");
                    assert!(matches!(error, LoadError::Damaged { .. }), "{what}: {error}");
                }
            }
            if header_lost {
                disk.heal();
                let found = again.scan(segment, 1 << 20).expect("it is old");
                assert_eq!(found, (Vec::new(), true), "{what}");
            }
            again.commit(&[vote(1, 9, 1)]);
            again.wal.release_values_before(segment + 1);
            assert_eq!(again.live()[0], segment + 1, "{what}");
        }
    }
}

/// A value segment that is missing, or another one, is an error as everywhere.
#[test]
fn value_segments_must_follow_each_other() {
    use coracle_wal::RecoverError;
    let store = Store::aged();
    let disk = store.rig.disk.fork();
    disk.remove(&name(2)).expect("there");
    let error = Rig::open(disk, small()).err().expect("a gap");
    assert!(matches!(error, RecoverError::Gap { first_missing: 2, .. }), "{error}");
    let disk = store.rig.disk.fork();
    disk.set_contents(&name(1), disk.contents(&name(2)).expect("there"));
    let error = Rig::open(disk, small()).err().expect("two of them");
    assert!(matches!(error, RecoverError::Misplaced { found: 2, wanted: 1, .. }), "{error}");
}

/// Power fails at every write and every step of preparing segments; any sector of the last write
/// may be lost.
#[test]
fn log_start_and_values_survive_a_crash_at_each_step() {
    let mut store = Store::new();
    let mut acked = 0;
    let mut seen = std::collections::BTreeSet::new();
    let check = |store: &Store, acked: usize, disk: MemDisk, what: &str| {
        let rig = Rig::open(disk, small()).expect("a crash never stops recovery");
        assert!(rig.report.is_clean(), "{what}: {:?}", rig.report);
        assert!(rig.log_start() <= store.rig.log_start(), "{what}: nothing was durable to say so");
        let found = rig.models();
        let records: Vec<_> = store.all.iter().map(|(_, record)| record.clone()).collect();
        let known = (acked..=records.len()).any(|kept| {
            let wanted = Models::of(&records[..kept]);
            [1, 2].iter().all(|&of| {
                let (found, wanted) = (found.group(of), wanted.group(of));
                found.entries == wanted.entries
                    && found.base == wanted.base
                    && found.hard_state == wanted.hard_state
            })
        });
        assert!(known, "{what}: {}", found.summary());
        let oldest = store.rig.live()[0];
        for (place, record) in &store.all[..acked] {
            if place.segment() >= oldest {
                assert_eq!(rig.read(*place, 0).as_ref(), Ok(record), "{what}: {place}");
            }
        }
        rig.log_start()
    };
    let steps = [
        (DiskOp::Rename, 0),
        (DiskOp::SyncDir, 0),
        (DiskOp::Write, 0),
        (DiskOp::SyncData, 0),
        (DiskOp::Rename, 1),
        (DiskOp::SyncDir, 1),
    ];
    let (mut tasks, mut halfway) = (0, 0);
    for at in 1..=60u64 {
        let records = [
            vote(1, at, 1),
            entry(1, 1, at, 2000),
            value(2, &[at as u8; 1800]),
            entry(2, 1, at, 5),
            purge(1, 1, at - 1),
            purge(2, 1, at.saturating_sub(3)),
        ];
        store.rig.append(&records);
        store.note(&records);
        let newest = store.rig.live().last().copied().unwrap_or_default();
        store.rig.wal.release_values_before(newest.saturating_sub(4));
        loop {
            while let Some(task) = store.rig.wal.wanted_segments().pop() {
                // Every other attempt ends halfway, and power fails there.
                tasks += 1;
                let step = steps[tasks / 2 % steps.len()];
                if tasks % 2 == 0 {
                    store.rig.disk.fail(step.0, step.1, std::io::ErrorKind::StorageFull);
                }
                let done = task.run(&store.rig.disk);
                store.rig.disk.heal();
                for keep in [false, true] {
                    let disk = store.rig.disk.fork();
                    disk.crash(&mut |_| keep);
                    check(&store, acked, disk, &format!("{at}: task {tasks} {step:?} {keep}"));
                }
                halfway += usize::from(store.rig.wal.segment_ready(done).is_err());
                assert!(!store.rig.wal.is_latched());
            }
            let Some(op) = store.rig.wal.next_write() else { break };
            let file = store.rig.wal.file(op.segment).expect("open").clone();
            store.rig.disk.write_at(&file, op.offset, &op.buffer[..op.len]).expect("written");
            let sectors = (op.len / 512) as u64;
            let base = op.offset / 512;
            for lost in (0..=sectors).map(|lost| base + lost) {
                let disk = store.rig.disk.fork();
                disk.crash(&mut |what| match what {
                    Unsynced::Sector { sector, .. } => sector != lost,
                    Unsynced::DirChange { .. } => true,
                });
                seen.insert(check(&store, acked, disk, &format!("{at}: sector {lost}")));
            }
            store.rig.write(&op);
            store.rig.done(op);
        }
        acked = store.all.len();
    }
    assert!(halfway > 5, "{halfway} of {tasks}");
    assert!(seen.len() > 4, "the log proper moved on in between: {seen:?}");
}

/// The newest segment start was never written whole: the one before it tells.
#[test]
fn torn_segment_start_does_not_count() {
    let mut store = Store::aged();
    let before = store.reopen().rig.log_start();
    let active = *store.rig.live().last().expect("some");
    let mut at = 14;
    let op = loop {
        at += 1;
        let records = [entry(1, 3, at, 3000), purge(1, 3, at), purge(2, 4, 14)];
        store.rig.append(&records);
        store.note(&records);
        store.rig.wal.prepare_segments().expect("room");
        let op = store.rig.wal.next_write().expect("a write");
        if op.segment.number() > active {
            break op;
        }
        store.rig.write(&op);
        store.rig.done(op);
    };
    assert!(store.rig.log_start() > before, "the new segment tells a newer start");
    let file = store.rig.wal.file(op.segment).expect("open").clone();
    store.rig.disk.write_at(&file, op.offset, &op.buffer[..op.len]).expect("written");
    let (torn, whole) = (store.rig.disk.fork(), store.rig.disk.fork());
    let last = (op.offset + op.len as u64) / 512 - 1;
    torn.crash(&mut |lost| match lost {
        Unsynced::Sector { sector, .. } => sector + 2 < last,
        Unsynced::DirChange { .. } => true,
    });
    let torn = Rig::open(torn, small()).expect("opens");
    assert!(torn.report.torn.is_some() && torn.report.is_clean(), "{:?}", torn.report);
    assert_eq!(torn.log_start(), before);
    whole.crash(&mut |_| true);
    assert!(Rig::open(whole, small()).expect("opens").log_start() > before);
}

/// If what tells the start is damaged, an older one counts: recovery reads more, and loses
/// nothing.
#[test]
fn damaged_log_start_is_made_good_by_an_older_one() {
    let store = Store::aged();
    let sound = store.reopen();
    let active = *store.rig.live().last().expect("some");
    for at in 4096 + 64..4096 + 112 {
        let disk = store.rig.disk.fork();
        disk.flip(&name(active), at, 4);
        let again = Rig::open(disk, small()).expect("opens");
        assert!(again.log_start() <= sound.rig.log_start(), "{at}");
        assert!(again.report.damaged.is_empty(), "{at}: {:?}", again.report);
        for of in [1, 2] {
            let (found, wanted) = (again.models().group(of), sound.rig.models().group(of));
            assert_eq!(found.entries, wanted.entries, "{at}");
            assert_eq!(found.hard_state, wanted.hard_state, "{at}");
            assert_eq!(found.base, wanted.base, "{at}");
        }
    }
}

/// Logs of programs that did not know values.
#[test]
fn log_without_a_start_record_starts_at_its_oldest_segment() {
    let mut store = Store::new();
    for at in 1..=14 {
        store.commit(&[vote(1, at, 1), entry(1, 1, at, 3000), entry(2, 1, at, 700)]);
    }
    store.rig.idle();
    let disk = store.rig.disk.fork();
    for segment in store.rig.live() {
        without_start(&disk, &name(segment));
    }
    let mut again = Rig::open(disk, small()).expect("it is still a log");
    assert!(again.report.is_clean(), "{:?}", again.report);
    assert_eq!(again.report.torn, None);
    assert_eq!(again.log_start(), 1);
    assert_eq!(again.models(), store.reopen().rig.models());
    again.commit(&[vote(1, 99, 1)]);
    let third = Rig::open(again.disk.fork(), small()).expect("opens");
    assert_eq!((third.log_start(), third.report.is_clean()), (1, true));
}

/// Takes the first record out of the first batch of a segment.
fn without_start(disk: &MemDisk, file: &str) {
    let mut bytes = disk.contents(file).expect("there");
    let number = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    };
    let batch = &mut bytes[4096..];
    assert_eq!(batch[66], 7, "the first record tells where the log starts");
    let len = number(batch, 40) as usize;
    let seed = crc32c::crc32c(&batch[8..24]);
    batch.copy_within(112..len, 64);
    batch[len - 48..len].fill(0);
    let (mut at, mut crcs) = (64, 0);
    while at < len - 48 {
        batch[at + 40..at + 44].copy_from_slice(&(at as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &batch[at..at + 44]).to_le_bytes();
        batch[at + 44..at + 48].copy_from_slice(&crc);
        crcs = crc32c::crc32c_append(crcs, &crc);
        at += 48 + (number(batch, at + 32) as usize).next_multiple_of(8);
    }
    let count = number(batch, 44) - 1;
    batch[40..44].copy_from_slice(&(len as u32 - 48).to_le_bytes());
    batch[44..48].copy_from_slice(&count.to_le_bytes());
    batch[48..52].copy_from_slice(&crcs.to_le_bytes());
    let crc = crc32c::crc32c(&batch[..60]).to_le_bytes();
    batch[60..64].copy_from_slice(&crc);
    disk.set_contents(file, bytes);
}

/// A value that is lost in the log proper harms no group either: who needs it fetches it.
#[test]
fn damaged_value_in_the_log_proper_harms_only_itself() {
    let mut store = Store::new();
    store.commit(&[vote(1, 1, 1), value(2, &[4; 500])]);
    store.commit(&[vote(1, 2, 1), vote(2, 2, 1)]);
    store.rig.idle();
    let place = store.all[1].0;
    store.rig.disk.flip(&name(1), place.offset() as usize + 100, 1);
    let again = store.reopen();
    assert!(again.rig.report.is_clean(), "{:?}", again.rig.report);
    assert_eq!(again.rig.report.restored, 1);
    let read = again.rig.read(place, 500);
    assert!(matches!(read, Err(LoadError::Damaged { .. })), "{read:?}");
}
