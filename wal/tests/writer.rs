//! The writer: durability rules, batches, segments, reading back.

mod common;

use std::io;

use common::{Models, Rig, bare, entry, group, index, options, purge, state, vote};
use coracle_raft::{BatchSeq, Record};
use coracle_wal::{
    Disk, DiskOp, Identity, LoadError, MemDisk, Options, RecoverError, WalError, recover,
};

/// RB2: the first failure is the last word.
#[test]
fn first_error_latches_and_nothing_is_acknowledged_after_it() {
    let mut rig = Rig::new();
    rig.append(&[entry(1, 1, 1, 100)]);
    let first = rig.wal.next_write().expect("a write");
    rig.append(&[entry(1, 1, 2, 100)]);
    let second = rig.wal.next_write().expect("a second write");
    rig.append(&[entry(1, 1, 3, 100)]);
    let error = rig.wal.written(first.id, Err(io::Error::other("no")), first.buffer);
    assert!(matches!(error, Err(WalError::Write { .. })), "{error:?}");
    let then = rig.wal.written(second.id, Ok(second.len), second.buffer);
    assert!(matches!(then, Err(WalError::Latched)), "{then:?}");
    rig.append(&[entry(1, 1, 4, 100)]);
    assert!(rig.wal.is_latched());
    assert!(rig.wal.next_write().is_none());
    assert!(!rig.wal.can_seal());
    assert!(!rig.wal.idle_watermark());
    assert!(rig.wal.wanted_segments().is_empty());
}

/// The second write fails while the first is under way: the first is not acknowledged either.
#[test]
fn error_of_a_later_write_latches_the_earlier_one() {
    let mut rig = Rig::new();
    rig.append(&[entry(1, 1, 1, 100)]);
    let first = rig.wal.next_write().expect("a write");
    rig.append(&[entry(1, 1, 2, 100)]);
    let second = rig.wal.next_write().expect("a second write");
    let error = rig.wal.written(second.id, Err(io::Error::other("no")), second.buffer);
    assert!(matches!(error, Err(WalError::Write { .. })), "{error:?}");
    let then = rig.wal.written(first.id, Ok(first.len), first.buffer);
    assert!(matches!(then, Err(WalError::Latched)), "{then:?}");
}

#[test]
fn short_write_is_an_error() {
    let mut rig = Rig::new();
    rig.append(&[entry(1, 1, 1, 100)]);
    let op = rig.wal.next_write().expect("a write");
    let error = rig.wal.written(op.id, Ok(op.len - 512), op.buffer).expect_err("short");
    let text = error.to_string();
    assert!(text.contains("only 3584 of 4096 bytes"), "{text}");
    assert!(rig.wal.is_latched());
}

#[test]
fn no_space_for_a_segment_is_retried_and_other_failures_are_final() {
    let cases = [
        (DiskOp::Write, io::ErrorKind::StorageFull, false),
        (DiskOp::Write, io::ErrorKind::Other, true),
        (DiskOp::SyncData, io::ErrorKind::Other, true),
        (DiskOp::SyncDir, io::ErrorKind::Other, true),
    ];
    for (op, kind, latches) in cases {
        let disk = MemDisk::new();
        let (mut wal, _) = recover(disk.clone(), options(), &mut |_, _| {}).expect("opens");
        disk.fail(op, 0, kind);
        let error = wal.prepare_segments().expect_err("it fails");
        assert_eq!(wal.is_latched(), latches, "{op:?} {kind:?}: {error}");
        assert_eq!(matches!(error, WalError::NoSpace { .. }), !latches, "{error:?}");
        assert_eq!(wal.prepare_segments().is_ok() && wal.can_seal(), !latches);
    }
}

/// A file system that runs full takes a part of a write first. A node ended because of that short
/// write. What was made of the segment gives its space back.
#[test]
fn a_segment_that_does_not_fit_is_given_up_and_tried_again() {
    for fits in [4096, 20 << 10, 60 << 10] {
        let disk = MemDisk::new();
        let (mut wal, _) = recover(disk.clone(), options(), &mut |_, _| {}).expect("opens");
        disk.bound_files(Some(fits));
        let error = wal.prepare_segments().expect_err("it is full");
        assert!(matches!(error, WalError::NoSpace { .. }), "{fits}: {error}");
        assert!(!wal.is_latched() && disk.list().expect("list").is_empty(), "{fits}");
        disk.bound_files(None);
        wal.prepare_segments().expect("there is space again");
        assert!(wal.can_seal());
    }
}

/// No file is made for later while space is short, but the one without which the log stands still.
#[test]
fn a_thrifty_log_takes_no_space_it_can_do_without() {
    let mut rig = Rig::open(MemDisk::new(), Options { spare_max: 3, ..options() }).expect("opens");
    rig.wal.be_thrifty(true);
    assert_eq!(rig.wal.spare_count(), 3, "made at the start");
    let mut at = 0;
    while rig.wal.spare_count() > 0 {
        at += 1;
        rig.append(&[entry(1, 1, at, 3000)]);
        while let Some(op) = rig.wal.next_write() {
            rig.write(&op);
            rig.done(op);
        }
    }
    let before = rig.wal.reserved_bytes();
    rig.wal.prepare_segments().expect("prepared");
    assert_eq!((rig.wal.spare_count(), rig.wal.wanted_segments().len()), (1, 0));
    assert_eq!(rig.wal.reserved_bytes(), before + (60 << 10));
    rig.wal.be_thrifty(false);
    rig.wal.prepare_segments().expect("prepared");
    assert_eq!(rig.wal.spare_count(), 3);
}

/// Every second attempt to prepare a segment finds the disk full, at
/// each step of it in turn.
#[test]
fn full_disk_while_preparing_goes_on_later() {
    let mut rig = Rig::new();
    let mut attempts = 0;
    let mut failures = 0;
    for at in 1..=300 {
        rig.append(&[entry(1, 1, at, 3000), purge(1, 1, at - 1)]);
        while let Some(op) = rig.wal.next_write() {
            rig.write(&op);
            rig.done(op);
        }
        let Some(task) = rig.wal.wanted_segments().pop() else { continue };
        attempts += 1;
        if attempts % 2 == 0 {
            let steps = [DiskOp::Write, DiskOp::Rename, DiskOp::SyncDir, DiskOp::Open];
            rig.disk.fail(steps[attempts / 2 % 4], 0, io::ErrorKind::StorageFull);
        }
        let done = task.run(&rig.disk);
        match rig.wal.segment_ready(done) {
            Ok(()) => {}
            Err(WalError::NoSpace { .. }) => failures += 1,
            Err(error) => panic!("{error}"),
        }
        rig.disk.heal();
        assert!(rig.wal.disk_bytes() <= 8 * (64 << 10), "{}", rig.wal.disk_bytes());
    }
    assert!(failures > 10, "{failures} of {attempts}");
    rig.flush();
    let again = Rig::reopen(&rig.disk);
    assert_eq!(again.models().group(1).entries.keys().copied().collect::<Vec<_>>(), [300]);
}

#[test]
fn batches_are_split_and_acknowledged_when_all_parts_are_on_disk() {
    let mut rig = Rig::new();
    let records: Vec<Record> = (1..=20).map(|at| entry(1, 1, at, 4000)).collect();
    let big = rig.append(&records);
    let mut parts = 0;
    let mut acked = None;
    loop {
        rig.wal.prepare_segments().expect("room");
        let Some(op) = rig.wal.next_write() else { break };
        assert!(op.len <= options().batch_bytes_max);
        assert_eq!(acked, None, "acknowledged before its last part");
        parts += 1;
        rig.write(&op);
        acked = rig.done(op);
    }
    assert_eq!(acked, Some(big));
    assert!(parts >= 5, "{parts}");
    assert_eq!(Rig::reopen(&rig.disk).recovered, records);
}

#[test]
fn record_larger_than_a_batch_gets_its_own() {
    let mut rig = Rig::new();
    let records = [entry(1, 1, 1, 10), entry(1, 1, 2, 40_000), entry(1, 1, 3, 10)];
    rig.commit(&records);
    assert_eq!(Rig::reopen(&rig.disk).recovered, records);
    assert_eq!(rig.load(1, 2, 2, 1)[0].payload.len(), 40_000);
}

#[test]
#[should_panic(expected = "payload of 70000 bytes")]
fn record_larger_than_a_segment_is_a_bug_of_the_caller() {
    Rig::new().append(&[entry(1, 1, 1, 70_000)]);
}

#[test]
fn largest_payload_fits_with_all_groups() {
    let mut rig = Rig::new();
    let votes: Vec<Record> = (1..=64).flat_map(|of| [vote(of, 1, 1), purge(of, 1, 9)]).collect();
    rig.commit(&votes);
    let largest = options().payload_bytes_max();
    assert!(largest > 30_000, "{largest}");
    for at in 10..14 {
        rig.commit(&[entry(1, 1, at, largest)]);
    }
    assert_eq!(Rig::reopen(&rig.disk).models().group(1).entries.len(), 4);
}

#[test]
fn next_write_waits_for_a_segment() {
    let (mut wal, _) = recover(MemDisk::new(), options(), &mut |_, _| {}).expect("opens");
    wal.append(BatchSeq::new(1), &[entry(1, 1, 1, 10)], &mut Vec::new());
    assert!(!wal.can_seal());
    assert!(wal.next_write().is_none(), "no segment is prepared");
    assert!(wal.pending_bytes() > 0);
    let task = wal.wanted_segments().pop().expect("one is wanted");
    assert!(wal.wanted_segments().is_empty(), "one task at a time");
    let disk = wal.disk().clone();
    // The driver runs it on another thread.
    let done = std::thread::spawn(move || task.run(&disk)).join().expect("no panic");
    wal.segment_ready(done).expect("prepared");
    assert!(wal.can_seal());
    assert!(wal.next_write().is_some());
}

/// Terms and votes outlive the segments they were written in.
#[test]
fn hard_state_survives_recycling() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 5, 2), vote(2, 9, 3), vote(3, 4, 0), purge(3, 3, 77)]);
    let mut at = 0;
    let mut released = Vec::new();
    while released.len() < 5 {
        at += 1;
        rig.commit(&[entry(1, 5, at, 2500)]);
        if at.is_multiple_of(4) {
            rig.commit(&[purge(1, 5, at - 2)]);
        }
        released.extend(rig.wal.take_released());
        assert!(at < 500, "segments are recycled in time");
    }
    let numbers: Vec<u64> = released.iter().map(|id| id.number()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5], "oldest first");
    assert!(rig.wal.disk_bytes() <= 5 * (64 << 10), "{}", rig.wal.disk_bytes());
    let again = Rig::reopen(&rig.disk);
    let want = Models::of(&[vote(1, 5, 2), vote(2, 9, 3), vote(3, 4, 0), purge(3, 3, 77)]);
    for of in 1..=3 {
        assert_eq!(again.models().group(of).hard_state, want.group(of).hard_state, "{of}");
    }
    assert_eq!(again.models().group(3).base, want.group(3).base);
    assert!(again.report.is_clean(), "{:?}", again.report);
    let entries: Vec<u64> = again.models().group(1).entries.keys().copied().collect();
    let base = again.models().group(1).base.expect("a base").index.get();
    assert_eq!(entries, (base + 1..=at).collect::<Vec<_>>(), "nothing after the base is missing");
}

/// A purge counts for recycling only once it is on disk.
#[test]
fn unwritten_purge_releases_nothing() {
    let mut rig = Rig::new();
    for at in 1..=40 {
        rig.commit(&[entry(1, 1, at, 3000)]);
    }
    let live = rig.wal.live_segments().count();
    assert!(live >= 2);
    rig.append(&[purge(1, 1, 40)]);
    assert_eq!(rig.wal.live_segments().count(), live);
    rig.flush();
    assert_eq!(rig.wal.live_segments().count(), 1);
}

#[test]
fn state_is_kept_until_released_and_pins_only_while_needed() {
    let mut rig = Rig::new();
    rig.commit(&[state(1, &[1; 1000]), state(1, &[2; 1000])]);
    let mut at = 0;
    let mut fill = |rig: &mut Rig, rounds: u64| {
        for _ in 0..rounds {
            at += 1;
            rig.commit(&[entry(2, 1, at, 3000)]);
            rig.commit(&[purge(2, 1, at)]);
        }
    };
    fill(&mut rig, 40);
    assert!(rig.wal.live_segments().count() > 2, "state pins the log");
    let oldest = rig.wal.oldest_needed(group(1)).expect("state is needed");
    assert!(rig.wal.oldest_needed(group(2)).is_none(), "all of it is purged");
    assert_eq!(oldest.get(), 0);
    let mark = rig.wal.position();
    rig.append(&[state(1, &[3; 1000])]);
    rig.wal.release_state_before(group(1), mark);
    assert!(rig.wal.live_segments().count() > 2, "the newer state is not on disk yet");
    rig.flush();
    assert!(rig.wal.live_segments().count() <= 2);
    fill(&mut rig, 3);
    assert_eq!(Rig::reopen(&rig.disk).models().group(1).states, [vec![3; 1000]]);
}

#[test]
fn entries_are_read_back_across_batches_overwrites_and_segments() {
    let mut rig = Rig::new();
    for at in 1..=30 {
        rig.commit(&[entry(1, 1, at, 2000), entry(2, 1, at, 500), vote(1, 1, 1)]);
    }
    // Overwritten twice, the second time within one batch.
    rig.commit(&[entry(1, 2, 20, 700), entry(1, 2, 21, 700)]);
    rig.commit(&[entry(1, 3, 21, 30), entry(1, 3, 22, 30), entry(1, 4, 22, 31)]);
    for rig in [&rig, &Rig::reopen(&rig.disk)] {
        let loaded = rig.load(1, 1, 22, usize::MAX);
        let want: Vec<_> = (1..=19)
            .map(|at| entry(1, 1, at, 2000))
            .chain([entry(1, 2, 20, 700), entry(1, 3, 21, 30), entry(1, 4, 22, 31)])
            .map(|record| bare(&record))
            .collect();
        assert_eq!(loaded, want);
        for first in 1..=22 {
            for last in first..=22 {
                let range = first as usize - 1..last as usize;
                assert_eq!(rig.load(1, first, last, usize::MAX), want[range]);
            }
        }
        assert_eq!(rig.load(1, 5, 22, 1).len(), 1, "at least one");
        assert_eq!(rig.load(1, 5, 22, 2048 * 2).len(), 2, "as many as reach the limit");
        let missing = rig.wal.locate(group(1), index(23), index(30), 1);
        assert_eq!(missing, Err(LoadError::Missing { group: group(1), first: index(23) }));
        assert!(rig.wal.locate(group(8), index(1), index(1), 1).is_err());
    }
}

#[test]
fn long_runs_are_split_so_that_reads_stay_small() {
    let mut large = options();
    large.segment_bytes = 8 << 20;
    large.batch_bytes_max = 4 << 20;
    let mut rig = Rig::open(MemDisk::new(), large).expect("opens");
    let records: Vec<Record> = (1..=900).map(|at| entry(1, 1, at, 4000)).collect();
    rig.commit(&records);
    let ops = rig.wal.locate(group(1), index(777), index(777), 1).expect("found");
    assert_eq!(ops.len(), 1);
    assert!(ops[0].len <= 160 << 10, "{} bytes for one entry", ops[0].len);
    assert_eq!(rig.load(1, 777, 777, 1)[0].index, index(777));
}

#[test]
fn entries_not_on_disk_and_damaged_entries_are_refused() {
    let mut rig = Rig::new();
    rig.commit(&[entry(1, 1, 1, 100)]);
    rig.append(&[entry(1, 1, 2, 100)]);
    let error = rig.wal.locate(group(1), index(2), index(2), 1);
    assert_eq!(error, Err(LoadError::NotDurable { group: group(1), first: index(2) }));
    let ops = rig.wal.locate(group(1), index(1), index(2), usize::MAX).expect("the first is");
    assert_eq!(ops.len(), 1);
    let bytes = rig.disk.contents("0000000001.seg").expect("the segment");
    let block = bytes[4096..8192].to_vec();
    // The segment says first where the log starts.
    for at in 112..112 + 148 {
        let mut bad = block.clone();
        bad[at] ^= 4;
        let result = rig.wal.decode_entries(&ops, &[bad]);
        assert!(matches!(result, Err(LoadError::Damaged { .. })), "{at}: {result:?}");
    }
    for len in 0..112 + 148 {
        let result = rig.wal.decode_entries(&ops, &[&block[..len]]);
        assert!(result.is_err(), "{len}");
    }
    assert_eq!(rig.wal.decode_entries(&ops, &[block]).expect("whole").len(), 1);
}

/// Simulator, mix 353111971539: an entry was damaged, and those before it in the same read did not
/// come either. Another replica had lost one of those, and no group had them all.
#[test]
fn a_damaged_entry_takes_no_other_with_it() {
    let lens = [100, 5000, 0, 30_000, 60, 700, 9000, 40];
    let count = lens.len() as u64;
    let records: Vec<Record> = (1..=count)
        .flat_map(|at| {
            let len = lens[at as usize - 1];
            [entry(1, 1, at, len), entry(2, 1, at, 333), entry(3, 1, at, len / 2)]
        })
        .collect();
    let large = Options { segment_bytes: 1 << 20, batch_bytes_max: 512 << 10, ..options() };
    let mut rig = Rig::open(MemDisk::new(), large).expect("opens");
    rig.commit(&records);
    let name = "0000000001.seg";
    for (record, place) in records.iter().zip(rig.places.clone()) {
        let Record::Entry { group, entry } = record else { unreachable!("all are entries") };
        let (of, hit) = (group.get(), entry.index.get());
        let start = place.offset() as usize;
        let end = start + 48 + entry.payload.len();
        for flip in [start, end - 1] {
            rig.disk.flip(name, flip, 0x20);
            check_loads(&rig, of, hit, count);
            rig.disk.flip(name, flip, 0x20);
        }
        let block = start.next_multiple_of(4096);
        if block + 4096 <= end {
            rig.disk.make_unreadable(name, block as u64..block as u64 + 1);
            check_loads(&rig, of, hit, count);
            rig.disk.heal();
        }
    }
}

/// Entry `hit` of a group cannot be read; all others can, whatever range is asked for.
fn check_loads(rig: &Rig, of: u32, hit: u64, count: u64) {
    for first in 1..=count {
        for last in first..=count {
            let loaded = rig.try_load(of, first, last);
            let end = if first < hit { last.min(hit - 1) } else { last };
            if first == hit {
                assert!(matches!(loaded, Err(LoadError::Damaged { .. })), "{hit}: {loaded:?}");
                continue;
            }
            let loaded = loaded.unwrap_or_else(|error| panic!("{first}..{last}, {hit}: {error}"));
            let indexes: Vec<u64> = loaded.iter().map(|entry| entry.index.get()).collect();
            assert_eq!(indexes, (first..=end).collect::<Vec<_>>(), "without {hit}");
        }
    }
}

#[test]
fn wrong_place_wrong_version_and_missing_segments_are_refused() {
    let mut rig = Rig::new();
    for at in 1..=80 {
        rig.commit(&[entry(1, 1, at, 3000)]);
    }
    let open = |disk: MemDisk, options: Options| match Rig::open(disk, options) {
        Ok(_) => panic!("it must be refused"),
        Err(error) => error,
    };
    let mut other = options();
    other.identity = Identity { core: 3, ..other.identity };
    let error = open(rig.disk.fork(), other);
    assert!(matches!(error, RecoverError::Identity { .. }), "{error}");

    let disk = rig.disk.fork();
    disk.remove("0000000002.seg").expect("remove");
    let error = open(disk, options());
    assert!(matches!(error, RecoverError::Gap { first_missing: 2, .. }), "{error}");

    let disk = rig.disk.fork();
    let (two, three) = (disk.contents("0000000002.seg"), disk.contents("0000000003.seg"));
    disk.set_contents("0000000002.seg", three.expect("there"));
    disk.set_contents("0000000003.seg", two.expect("there"));
    let error = open(disk, options());
    assert!(matches!(error, RecoverError::Misplaced { found: 3, wanted: 2, .. }), "{error}");

    let disk = rig.disk.fork();
    let mut bytes = disk.contents("0000000001.seg").expect("there");
    for at in [0, 2048] {
        bytes[at + 8..at + 12].copy_from_slice(&2u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[at..at + 124]);
        bytes[at + 124..at + 128].copy_from_slice(&crc.to_le_bytes());
    }
    disk.set_contents("0000000001.seg", bytes);
    let error = open(disk, options());
    assert!(matches!(error, RecoverError::Version { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("0000000001.seg"), "{error}");
}

#[test]
fn restarts_do_not_eat_the_disk() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1)]);
    for term in 2..60 {
        rig = Rig::reopen(&rig.disk);
        rig.commit(&[vote(1, term, 1)]);
    }
    // Old segments hold nothing but terms and votes that were written again.
    assert!(rig.wal.disk_bytes() <= 4 * (64 << 10), "{}", rig.wal.disk_bytes());
    assert_eq!(Rig::reopen(&rig.disk).models(), Models::of(&[vote(1, 59, 1)]));
}

#[test]
fn inspect_changes_nothing() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), entry(1, 1, 1, 10)]);
    let names = rig.disk.list().expect("list");
    let before: Vec<_> = names.iter().map(|name| rig.disk.contents(name)).collect();
    let mut records = Vec::new();
    let report =
        coracle_wal::inspect(&rig.disk, None, &mut |_, record| records.push(record)).expect("read");
    assert_eq!(records, [vote(1, 1, 1), entry(1, 1, 1, 10)]);
    assert_eq!(report.records, 2);
    let after: Vec<_> = names.iter().map(|name| rig.disk.contents(name)).collect();
    assert_eq!(rig.disk.list().expect("list"), names);
    assert!(before == after);
}
