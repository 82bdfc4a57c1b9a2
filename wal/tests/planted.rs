//! Planted bugs must be found: a check of what the other tests check.
#![cfg(feature = "planted")]

mod common;

use std::io;
use std::panic::catch_unwind;

use common::{Rig, entry, group, options, purge, value, vote, wide};
use coracle_raft::{Bug, plant};
use coracle_wal::{
    Checkpoint, CheckpointWriter, Disk, LoadError, MemDisk, Options, open_checkpoints,
};

/// Whether a scenario fails with the bug planted. Without it, it must not.
fn is_found(bug: Bug, scenario: fn()) -> bool {
    plant(None);
    scenario();
    let failed = catch_unwind(|| {
        plant(Some(bug));
        scenario();
    });
    plant(None);
    failed.is_err()
}

/// Batches count as durable in their order, whichever write is done first.
fn writes_complete_out_of_order() {
    let mut rig = Rig::new();
    let first = rig.append(&[entry(1, 1, 1, 100)]);
    let one = rig.wal.next_write().expect("a batch is open");
    let second = rig.append(&[entry(1, 1, 2, 100)]);
    let two = rig.wal.next_write().expect("two writes may be in flight");
    assert!(first < second);
    rig.write(&two);
    assert_eq!(rig.done(two), None, "the first write is not done");
    rig.write(&one);
    assert_eq!(rig.done(one), Some(second));
}

/// What the disk has refused is never durable.
fn a_write_fails() {
    let mut rig = Rig::new();
    rig.append(&[entry(1, 1, 1, 100)]);
    let op = rig.wal.next_write().expect("a batch is open");
    let result = rig.wal.written(op.id, Err(io::Error::other("refused")), op.buffer);
    assert!(result.is_err(), "acknowledged {result:?}");
}

/// Terms, bases and needed entries outlive the segments they were written to first.
fn the_log_moves_on() {
    let small = || Options { segment_bytes: 64 << 10, ..options() };
    let mut rig = Rig::open(coracle_wal::MemDisk::new(), small()).expect("an empty disk is a log");
    rig.commit(&[vote(1, 7, 3), vote(2, 5, 2), entry(3, 1, 1, 100), entry(1, 7, 1, 100)]);
    rig.commit(&[entry(4, 1, 1, 100), purge(4, 1, 1)]);
    for at in 2..80 {
        rig.commit(&[entry(1, 7, at, 4000), purge(1, 7, at - 1)]);
    }
    rig.commit(&[purge(3, 1, 1), entry(3, 1, 2, 9)]);
    rig.commit(&(80..100).map(|at| entry(1, 7, at, 4000)).collect::<Vec<_>>());
    rig.commit(&(80..100).map(|at| purge(1, 7, at)).collect::<Vec<_>>());
    for at in 100..180 {
        rig.commit(&[entry(1, 7, at, 4000), purge(1, 7, at - 1)]);
    }
    rig.idle();
    let again = Rig::open(rig.disk.fork(), small()).expect("the log opens");
    let models = again.models();
    assert!(again.report.is_clean(), "{:?}", again.report);
    assert_eq!(models.group(1).hard_state.map(|state| state.term.get()), Some(7), "the term");
    assert_eq!(models.group(2).hard_state.map(|state| state.term.get()), Some(5), "the term");
    assert_eq!(models.group(4).base.map(|base| base.index.get()), Some(1), "the base");
    assert_eq!(models.group(3).entries.len(), 1, "an entry that is needed");
}

/// Three batches of two groups; changes a byte of the payload in one of them.
fn flipped(batch: usize, told: bool) -> Rig {
    let mut rig = Rig::new();
    for at in 1..=3u64 {
        rig.commit(&[entry(at as u32 % 2 + 1, 1, at.div_ceil(2), 200)]);
    }
    if told {
        rig.idle();
    }
    let name = rig.disk.list().expect("it lists").remove(0);
    // One batch per block after the header's; the payload follows two headers.
    rig.disk.flip(&name, 4096 * batch + 64 + 48 + 100, 0x40);
    rig
}

/// What a write under way leaves when power fails is dropped, and is no damage.
fn the_last_write_is_torn() {
    let rig = flipped(3, false);
    let again = Rig::reopen(&rig.disk);
    assert!(again.report.is_clean(), "a torn write is no damage: {:?}", again.report);
    assert_eq!(again.recovered, [entry(2, 1, 1, 200), entry(1, 1, 1, 200)]);
}

/// Damage of what was acknowledged is told, and costs the other groups nothing (RB24).
fn an_old_record_rots() {
    let rig = flipped(1, true);
    let again = Rig::reopen(&rig.disk);
    assert_eq!(lost(&again, 2), [1], "lost and not told: {:?}", again.report);
    assert_eq!(lost(&again, 1), [0; 0], "{:?}", again.report);
    assert_eq!(again.models().group(1).entries.len(), 1, "the other group lost its entry");
}

/// The entries of a group that are known to be lost.
fn lost(rig: &Rig, of: u32) -> Vec<u64> {
    assert!(rig.report.damaged.is_empty(), "{:?}", rig.report);
    let lost = rig.report.lost_entries.get(&group(of)).into_iter().flatten();
    lost.map(|lost| lost.position.index.get()).collect()
}

/// Of a batch that is gone as a whole, terms and votes come back.
fn a_batch_is_lost() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), entry(2, 1, 1, 20)]);
    rig.commit(&[vote(1, 2, 3), entry(1, 2, 1, 20)]);
    rig.commit(&[entry(2, 1, 2, 20)]);
    rig.idle();
    rig.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 3);
    let again = Rig::reopen(&rig.disk);
    assert_eq!((lost(&again, 1), lost(&again, 2)), (vec![1], vec![]));
    let hard_state = again.models().group(1).hard_state.expect("it voted");
    assert_eq!(hard_state.term.get(), 2, "the vote is forgotten");
}

/// An acknowledged batch that rots is not taken for a torn one once the log has said so.
fn the_last_record_rots() {
    let rig = flipped(3, true);
    let again = Rig::reopen(&rig.disk);
    assert_eq!(lost(&again, 2), [2], "lost and not told: {:?}", again.report);
}

/// Nobody tells what stood in the first of two lost batches, if the second one has many groups.
fn two_batches_in_a_row_are_lost() {
    let mut rig = Rig::new();
    rig.commit(&[entry(1, 1, 1, 20)]);
    rig.commit(&[entry(2, 1, 1, 20)]);
    rig.commit(&wide());
    rig.commit(&[entry(2, 1, 2, 20), entry(1, 1, 2, 20)]);
    rig.idle();
    rig.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 4);
    let again = Rig::reopen(&rig.disk);
    assert!(again.report.is_damaged(group(2)), "lost and not told: {:?}", again.report);
    assert!(!again.report.is_damaged(group(1)), "{:?}", again.report);
}

fn checkpoint(disk: &MemDisk, number: u64) {
    let mut writer =
        CheckpointWriter::create(disk.clone(), options().identity, number).expect("there is room");
    writer.add(group(1), 2, &[number as u8; 5000]).expect("there is room");
    writer.finish().expect("there is room");
}

fn checkpoints(disk: &MemDisk) -> Vec<u64> {
    let (found, report) = open_checkpoints(disk, options().identity).expect("it opens");
    assert_eq!(report.damaged_sections, []);
    found.iter().map(Checkpoint::number).collect()
}

/// What has a checkpoint's name is on disk, whatever the crash.
fn power_fails_after_a_checkpoint() {
    let disk = MemDisk::new();
    checkpoint(&disk, 1);
    common::lose_everything(&disk);
    assert_eq!(checkpoints(&disk), [1]);
}

/// A checkpoint that rots leaves the one before it.
fn a_checkpoint_rots() {
    let disk = MemDisk::new();
    (1..=3).for_each(|number| checkpoint(&disk, number));
    let name = "0000000003.ckp";
    let bytes = disk.contents(name).expect("it is there");
    disk.set_contents(name, bytes[..bytes.len() - 4096].to_vec());
    assert_eq!(checkpoints(&disk), [2]);
}

/// What recovery needs stands in the log proper, wherever that starts.
fn the_log_starts_later() {
    let mut rig = Rig::new();
    rig.values_free = false;
    rig.commit(&[vote(1, 1, 1), vote(2, 1, 1)]);
    for at in 1..40 {
        rig.commit(&[entry(1, 1, at, 3000), purge(1, 1, at - 1)]);
    }
    // An entry that is needed, in the middle of a segment; then two more segments.
    rig.commit(&[entry(2, 1, 1, 100)]);
    for at in 40..90 {
        rig.commit(&[entry(1, 1, at, 3000), purge(1, 1, at - 1)]);
    }
    rig.idle();
    let again = Rig::reopen(&rig.disk);
    assert!(again.report.is_clean(), "{:?}", again.report);
    assert!(again.report.value_segments > 0, "the log proper starts with the needed entry");
    assert_eq!(again.models().group(2).entries.len(), 1, "an entry that is needed");
}

/// A value that somebody refers to outlives everything that recovery needs.
fn an_old_value_is_needed() {
    let mut rig = Rig::new();
    rig.values_free = false;
    let wanted = value(2, &[7; 500]);
    rig.commit(std::slice::from_ref(&wanted));
    let place = rig.places[0];
    for at in 1..60 {
        rig.commit(&[entry(1, 1, at, 3000), purge(1, 1, at)]);
        assert_eq!(rig.read(place, 500).as_ref(), Ok(&wanted));
    }
}

/// Rot in a value is found when the value is read.
fn an_old_value_rots() {
    let mut rig = Rig::new();
    rig.commit(&[value(2, &[7; 500])]);
    let place = rig.places[0];
    rig.disk.flip("0000000001.seg", place.offset() as usize + 48 + 100, 0x10);
    let read = rig.read(place, 500);
    assert!(matches!(read, Err(LoadError::Damaged { .. })), "{read:?}");
}

#[test]
fn scenarios_find_planted_bugs() {
    let cases: &[(Bug, fn())] = &[
        (Bug::DurableOutOfOrder, writes_complete_out_of_order),
        (Bug::FailedWriteAcked, a_write_fails),
        (Bug::HardStateNotRestated, the_log_moves_on),
        (Bug::BaseNotRestated, the_log_moves_on),
        (Bug::SegmentRecycledInUse, the_log_moves_on),
        (Bug::PayloadChecksumIgnored, the_last_write_is_torn),
        (Bug::TornTailTakenForDamage, the_last_write_is_torn),
        (Bug::DamageTakenForTornTail, an_old_record_rots),
        (Bug::WatermarkNotWritten, the_last_record_rots),
        (Bug::DamageNotReported, two_batches_in_a_row_are_lost),
        (Bug::EchoedVoteDropped, a_batch_is_lost),
        (Bug::CheckpointRenamedBeforeSync, power_fails_after_a_checkpoint),
        (Bug::CheckpointRemovesBoth, a_checkpoint_rots),
        (Bug::LogStartTooLate, the_log_starts_later),
        (Bug::ValuesRetiredTooEarly, an_old_value_is_needed),
        (Bug::ValueReadUnchecked, an_old_value_rots),
    ];
    for &(bug, scenario) in cases {
        assert!(is_found(bug, scenario), "{} is not found", bug.name());
    }
}
