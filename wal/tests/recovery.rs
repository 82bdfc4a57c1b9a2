//! Crashes and rot: what must come back, what must be told.

mod common;

use std::collections::BTreeSet;

use common::{
    Models, Rig, bare, entry, group, lose_everything, options, purge, same_but_lost, state, vote,
    wide,
};
use coracle_raft::Record;
use coracle_wal::{Disk, LoadError, MemDisk, SECTOR_BYTES, Unsynced};

/// A log of three groups in four batches, then a watermark.
fn small_log() -> (Rig, Vec<Vec<Record>>) {
    let mut rig = Rig::new();
    let batches = vec![
        vec![vote(1, 1, 1), vote(2, 1, 2), vote(3, 1, 0), entry(1, 1, 1, 0), entry(2, 1, 1, 100)],
        vec![entry(1, 1, 2, 300), entry(3, 1, 1, 700), state(3, b"piece one")],
        vec![vote(2, 2, 2), entry(2, 2, 2, 200), entry(1, 1, 3, 64), entry(3, 1, 2, 40)],
        vec![entry(1, 1, 4, 10), entry(2, 2, 3, 1500), entry(3, 1, 3, 9)],
    ];
    for batch in &batches {
        rig.commit(batch);
    }
    rig.idle();
    (rig, batches)
}

/// Whether `part` is what the group had at some moment of its life, perhaps with newer hard state.
fn is_prefix(part: &common::Model, whole: &[Record], of: u32) -> bool {
    let mut models = Models::default();
    let mut seen = vec![models.group(of)];
    for record in whole {
        models.apply(record);
        seen.push(models.group(of));
    }
    let hard_states: Vec<_> = seen.iter().map(|model| model.hard_state).collect();
    hard_states.contains(&part.hard_state)
        && seen.iter().any(|model| {
            model.entries == part.entries && model.states == part.states && model.base == part.base
        })
}

#[test]
fn everything_comes_back_and_goes_on_after_a_restart() {
    let (rig, batches) = small_log();
    let all: Vec<Record> = batches.concat();
    let mut again = Rig::reopen(&rig.disk);
    assert_eq!(again.recovered, all, "in the same order, nothing twice");
    assert!(again.report.is_clean(), "{:?}", again.report);
    assert_eq!(again.report.torn, None);
    again.commit(&[entry(1, 3, 5, 77), vote(1, 3, 1)]);
    let third = Rig::reopen(&again.disk);
    let mut models = Models::of(&all);
    models.apply(&entry(1, 3, 5, 77));
    models.apply(&vote(1, 3, 1));
    assert_eq!(third.models(), models);
    assert!(third.report.is_clean());
}

/// Damage in the middle and at the end, and what it must not take with it (RB24).
#[test]
fn every_flipped_byte_harms_only_its_groups() {
    let (rig, batches) = small_log();
    let all: Vec<Record> = batches.concat();
    let whole = Models::of(&all);
    let name = "0000000001.seg";
    let bytes = rig.disk.contents(name).expect("the segment is there");
    let used = 4096 * 6;
    assert!(bytes[used..].iter().all(|&byte| byte == 0), "five batches of one block");
    let (mut losses, mut damaged_flips) = (0, 0);
    for at in 0..used {
        let disk = rig.disk.fork();
        disk.flip(name, at, 1 << (at % 8));
        let again = Rig::open(disk, options()).expect("one flip never stops recovery");
        let models = again.models();
        for of in 1..=3 {
            let found = models.group(of);
            let told = again.report.lost_entries.get(&group(of)).map_or(0, Vec::len);
            if again.report.damaged.contains_key(&group(of)) {
                assert!(is_prefix(&found, &all, of), "flip {at} group {of}: {found:?}");
            } else {
                assert_eq!(same_but_lost(&found, &whole.group(of)), Ok(told), "{at}, {of}");
            }
        }
        // Nobody but this replica has its piece of state.
        let damaged: Vec<_> = again.report.damaged.keys().copied().collect();
        assert!(damaged.is_empty() || damaged == [group(3)] && at / 4096 == 2, "{at}: {damaged:?}");
        damaged_flips += usize::from(!damaged.is_empty());
        losses += usize::from(!again.report.lost_entries.is_empty());
        // The watermark itself, in the last batch, is not covered by a later one.
        assert!(
            again.report.torn.is_none() || at >= 4096 * 5,
            "flip {at} taken for a torn write: {:?}",
            again.report.torn
        );
        let lost = again.report.lost_entries.values().flatten().map(|lost| &lost.damage);
        for damage in again.report.damaged.values().flatten().chain(lost) {
            assert_eq!(damage.file, name);
            assert_eq!(damage.offset / 4096, at as u64 / 4096, "flip {at}: {damage}");
        }
    }
    assert!(losses > 2500, "{losses}");
    assert!((50..80).contains(&damaged_flips), "{damaged_flips}");
}

/// A run of lost blocks, wherever it begins and however long it is, and another one anywhere behind
/// it: nothing is forgotten but contents of entries.
#[test]
fn every_two_runs_of_lost_blocks_are_restored() {
    let mut rig = Rig::new();
    let mut all = Vec::new();
    for at in 1..=9 {
        let mut batch = vec![entry(1, 1, at, 40), entry(2, 1, at, 40)];
        match at {
            3 | 6 => batch.push(vote(1, at, 1)),
            4 | 8 => batch.push(purge(3, 1, at)),
            // These replace others.
            5 => batch = vec![entry(2, 2, 3, 10), entry(2, 2, 4, 10), entry(1, 1, 5, 9)],
            7 => batch.splice(1.., [entry(2, 2, 5, 10)]).for_each(drop),
            9 => batch.splice(1.., [entry(2, 2, 6, 10)]).for_each(drop),
            _ => {}
        }
        if at == 6 || at == 8 {
            batch.remove(1);
        }
        rig.commit(&batch);
        all.extend(batch);
    }
    rig.commit(&[vote(2, 2, 2)]);
    all.push(vote(2, 2, 2));
    rig.idle();
    let whole = Models::of(&all);
    let mut most = 0;
    for first in 1..=10 {
        for len in 1..=11 - first {
            for second in first + len..=11 {
                let disk = rig.disk.fork();
                disk.make_unreadable("0000000001.seg", 4096 * first..4096 * (first + len));
                if second < 11 {
                    disk.flip("0000000001.seg", 4096 * second as usize + 20, 0xff);
                }
                let again = Rig::open(disk, options()).expect("it opens");
                let report = &again.report;
                assert!(report.damaged.is_empty(), "{first} {len} {second}: {report:?}");
                for of in 1..=3 {
                    let (found, whole) = (again.models().group(of), whole.group(of));
                    let told = report.lost_entries.get(&group(of)).map_or(0, Vec::len);
                    assert_eq!(same_but_lost(&found, &whole), Ok(told), "{first} {len} {second}");
                    most = most.max(told);
                }
            }
        }
    }
    assert_eq!(most, 9);
}

/// What is lost stays so, and known, until it is overwritten or purged; the log goes on meanwhile.
#[test]
fn lost_entries_stay_known_until_they_do_not_matter() {
    let lost = |rig: &Rig| {
        assert!(rig.report.damaged.is_empty(), "{:?}", rig.report);
        let lost = rig.report.lost_entries.get(&group(1)).into_iter().flatten();
        lost.map(|lost| lost.position.index.get()).collect::<Vec<_>>()
    };
    for later in [purge(1, 1, 3), entry(1, 2, 2, 50)] {
        let mut rig = Rig::new();
        rig.commit(&[vote(1, 1, 1), entry(1, 1, 1, 100)]);
        rig.commit(&[entry(1, 1, 2, 100), entry(2, 1, 1, 9), entry(1, 1, 3, 100)]);
        rig.commit(&[entry(1, 1, 4, 100)]);
        rig.idle();
        rig.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 3);
        let mut again = Rig::reopen(&rig.disk);
        assert_eq!(lost(&again), [2, 3]);
        assert_eq!(again.try_load(1, 1, 4), Ok(vec![bare(&entry(1, 1, 1, 100))]));
        let refused = again.try_load(1, 2, 4);
        assert!(matches!(refused, Err(LoadError::Damaged { offset: 8192.., .. })), "{refused:?}");
        assert_eq!(again.try_load(1, 4, 4), Ok(vec![bare(&entry(1, 1, 4, 100))]));
        again.commit(&[entry(1, 1, 5, 3000)]);
        again.idle();
        let mut third = Rig::reopen(&again.disk);
        assert_eq!(lost(&third), [2, 3]);
        third.commit(std::slice::from_ref(&later));
        third.idle();
        let fourth = Rig::reopen(&third.disk);
        assert_eq!(lost(&fourth), [0; 0]);
        assert_eq!(fourth.report.healed, 2);
    }
}

/// What is told behind the first batch of the log proper begins before it, in segments that are
/// kept for their values: nothing of that is lost (`mix 20 700964`).
#[test]
fn what_stands_before_the_log_proper_is_not_missed() {
    let mut rig = Rig::new();
    rig.values_free = false;
    for at in 1..80 {
        rig.commit(&[state(3, b"piece"), entry(1, 1, at, 2000), purge(1, 1, at - 1)]);
        if at == 40 {
            rig.commit(&[entry(4, 1, 1, 10)]);
        } else if at < 36 {
            let position = rig.wal.position();
            rig.wal.release_state_before(group(3), position);
        }
    }
    rig.idle();
    let start = rig.log_start();
    let live = rig.live();
    assert!(live[0] == 1 && start == 3 && live.len() > 4, "{live:?} from {start}");
    for batches in 1..4 {
        // A batch takes one block.
        let disk = rig.disk.fork();
        disk.make_unreadable(&format!("{start:010}.seg"), 4096..4096 + 4096 * batches);
        let again = Rig::open(disk, options()).expect("opens");
        let sound = Rig::reopen(&rig.disk);
        let (found, wanted) = (again.models().group(1), sound.models().group(1));
        let told = again.report.lost_entries.get(&group(1)).map_or(0, Vec::len);
        assert_eq!(same_but_lost(&found, &wanted), Ok(told));
        // Of the pieces of state only those that stood here are missed.
        let damages = &again.report.damaged[&group(3)];
        assert_eq!(damages.len() as u64, batches, "{damages:?}");
    }
}

/// The last batch before a restart is repeated by the first one after it.
#[test]
fn batches_are_told_across_a_restart() {
    let mut rig = Rig::new();
    rig.commit(&[entry(1, 1, 1, 10)]);
    rig.commit(&[vote(1, 5, 2), entry(1, 5, 2, 10), purge(2, 3, 7)]);
    let mut again = Rig::reopen(&rig.disk);
    again.commit(&[entry(3, 1, 1, 10)]);
    again.idle();
    again.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 3);
    let third = Rig::reopen(&again.disk);
    assert!(third.report.damaged.is_empty(), "{:?}", third.report);
    assert_eq!(third.report.lost_entries[&group(1)].len(), 1);
    let models = third.models();
    assert_eq!(models.group(1).hard_state, Models::of(&[vote(1, 5, 2)]).group(1).hard_state);
    assert_eq!(models.group(2).base, Some(common::position(3, 7)));
}

/// RB24: one rotten record does not touch the groups beside it.
#[test]
fn rot_in_one_payload_names_that_group_alone() {
    let (rig, batches) = small_log();
    let all: Vec<Record> = batches.concat();
    // Second batch: header 64, record header 48, then the 300 bytes of group 1's entry 2.
    let disk = rig.disk.fork();
    disk.flip("0000000001.seg", 4096 * 2 + 64 + 48 + 150, 0x10);
    let again = Rig::open(disk, options()).expect("opens");
    assert!(again.report.damaged.is_empty(), "{:?}", again.report);
    let lost: Vec<_> = again.report.lost_entries.keys().copied().collect();
    assert_eq!(lost, [group(1)]);
    let lost = &again.report.lost_entries[&group(1)];
    assert_eq!((lost.len(), lost[0].position), (1, common::position(1, 2)));
    let damage = &lost[0].damage;
    assert_eq!((damage.file.as_str(), damage.offset), ("0000000001.seg", 4096 * 2 + 64));
    let whole = Models::of(&all);
    assert_eq!(again.models().group(2), whole.group(2));
    assert_eq!(again.models().group(3), whole.group(3));
    assert_eq!(same_but_lost(&again.models().group(1), &whole.group(1)), Ok(1));
}

/// Two unreadable batches in a row, the second with many groups: nobody tells what stood in the
/// first one, and groups that wrote again later are proven whole by their numbers.
#[test]
fn lost_batches_clear_groups_with_later_records() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), vote(2, 1, 1), vote(3, 1, 1)]);
    rig.commit(&[entry(1, 1, 1, 2000)]);
    rig.commit(&wide());
    rig.commit(&[entry(1, 1, 2, 20), entry(2, 1, 1, 20)]);
    rig.idle();
    rig.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 4);
    let again = Rig::reopen(&rig.disk);
    let damaged: Vec<_> = again.report.damaged.keys().copied().collect();
    // 3 never wrote again and cannot prove anything.
    assert!(damaged.contains(&group(1)), "{damaged:?}");
    assert!(!damaged.contains(&group(2)), "{damaged:?}");
    assert!(damaged.contains(&group(3)), "{damaged:?}");
    assert_eq!(again.report.unattributed.len(), 1);
    assert!(again.report.is_damaged(group(9)), "a group without any record cannot prove itself");
    assert!(!again.report.is_damaged(group(2)));
}

/// A segment without its header is read all the same: its first batch tells salt and position. Of
/// the segments before the last one a later batch tells, and with that what stood in the first.
#[test]
fn a_lost_segment_header_costs_nothing() {
    let mut rig = Rig::new();
    let mut all = vec![vote(1, 1, 1), entry(1, 1, 1, 20), vote(2, 1, 1)];
    rig.commit(&all);
    while rig.live().len() < 2 {
        let at = all.len() as u64 - 2;
        all.push(entry(2, 1, at, 3000));
        rig.commit(&all[all.len() - 1..]);
    }
    rig.idle();
    // A restart cuts the segment and begins another one.
    let mut rig = Rig::reopen(&rig.disk);
    let at = all.len() as u64 - 2;
    for at in at..at + 3 {
        all.push(entry(2, 1, at, 3000));
        rig.commit(&all[all.len() - 1..]);
    }
    rig.idle();
    let live = rig.live();
    assert!(live.len() >= 3, "{live:?}");
    for (segment, lost) in live.iter().map(|&id| (id, 1)).chain([(live[0], 3), (live[1], 2)]) {
        let disk = rig.disk.fork();
        disk.make_unreadable(&format!("{segment:010}.seg"), 0..4096 * lost);
        let mut again = Rig::open(disk, options()).expect("opens");
        assert!(again.report.damaged.is_empty(), "{segment}: {:?}", again.report);
        assert_eq!(again.report.is_clean(), lost == 1, "{segment}: {:?}", again.report);
        assert_eq!((again.report.headers_restored, again.report.torn.clone()), (1, None));
        for of in 1..=2 {
            let told = again.report.lost_entries.get(&group(of)).map_or(0, Vec::len);
            let found = again.models().group(of);
            assert_eq!(same_but_lost(&found, &Models::of(&all).group(of)), Ok(told), "{segment}");
        }
        again.commit(&[vote(1, 9, 1)]);
        again.idle();
        let third = Rig::reopen(&again.disk);
        assert_eq!(third.report.lost_entries, again.report.lost_entries, "{segment}");
        assert_eq!(
            third.models().group(1).hard_state,
            Models::of(&[vote(1, 9, 1)]).group(1).hard_state
        );
    }
}

/// The header of the very first segment is lost, its first batch too, and with it a group's only
/// entry: that its vote stands at the start of the next segment once more does not make the group
/// whole (`rot 20 256`).
#[test]
fn the_loss_of_the_first_segment_is_told_of_every_group_in_it() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), entry(1, 1, 1, 20), vote(2, 1, 1)]);
    let mut at = 0;
    while rig.live().len() < 3 {
        at += 1;
        rig.commit(&[entry(2, 1, at, 3000)]);
    }
    rig.idle();
    assert_eq!(rig.log_start(), 1);
    rig.disk.make_unreadable("0000000001.seg", 0..64 << 10);
    let again = Rig::reopen(&rig.disk);
    for of in [1, 2] {
        assert!(again.report.is_damaged(group(of)), "group {of}: {:?}", again.report);
    }
}

/// The evidence of a loss does not fade when the damaged group writes again.
#[test]
fn damage_stays_until_the_group_is_reset() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), vote(2, 1, 1)]);
    rig.commit(&[vote(1, 2, 1)]);
    rig.commit(&wide());
    rig.commit(&[vote(2, 3, 1), entry(11, 1, 2, 9)]);
    rig.idle();
    // Group 1's second vote, and the batch that repeats it.
    rig.disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 4);
    let mut again = Rig::reopen(&rig.disk);
    assert_eq!(again.report.damaged.keys().copied().collect::<Vec<_>>(), [group(1)]);
    again.commit(&[vote(1, 7, 1), vote(2, 7, 1)]);
    again.commit(&[vote(5, 1, 1)]);
    again.idle();
    let mut third = Rig::reopen(&again.disk);
    assert_eq!(third.report.damaged.keys().copied().collect::<Vec<_>>(), [group(1), group(5)]);
    assert_eq!(
        third.models().group(1).hard_state,
        Models::of(&[vote(1, 7, 1)]).group(1).hard_state
    );
    for of in [1, 5] {
        third.batch += 1;
        third.wal.reset_group(coracle_raft::BatchSeq::new(third.batch), group(of));
        third.append(&[vote(of, 9, 1), purge(of, 3, 20), entry(of, 3, 21, 5)]);
    }
    third.flush();
    third.idle();
    let fourth = Rig::reopen(&third.disk);
    assert!(fourth.report.damaged.is_empty(), "{:?}", fourth.report.damaged);
    let want = Models::of(&[vote(1, 9, 1), purge(1, 3, 20), entry(1, 3, 21, 5)]);
    assert_eq!(fourth.models().group(1), want.group(1));
}

/// Damage in what was overwritten or purged later harms nobody.
#[test]
fn damage_in_dead_entries_is_healed() {
    type Case = (&'static str, Vec<Record>);
    let cases: [Case; 2] = [
        ("purged", vec![purge(1, 1, 3)]),
        ("overwritten", vec![entry(1, 2, 2, 50), entry(1, 2, 3, 50)]),
    ];
    for (name, later) in cases {
        let mut rig = Rig::new();
        let mut all = vec![vote(1, 1, 1), entry(1, 1, 1, 100)];
        rig.commit(&all);
        rig.commit(&[entry(1, 1, 2, 100)]);
        rig.commit(&[entry(1, 1, 3, 100), entry(1, 1, 4, 100)]);
        rig.commit(&later);
        rig.idle();
        all.extend([entry(1, 1, 2, 100), entry(1, 1, 3, 100), entry(1, 1, 4, 100)]);
        all.extend(later);
        rig.disk.flip("0000000001.seg", 4096 * 2 + 64 + 48 + 5, 1);
        let again = Rig::reopen(&rig.disk);
        assert!(again.report.is_clean(), "{name}: {:?}", again.report);
        assert_eq!(again.report.healed, 1, "{name}");
        assert_eq!(again.models(), Models::of(&all), "{name}");
        // No gap is ever shown, not even for a moment.
        let mut next = None;
        for record in &again.recovered {
            match record {
                Record::Entry { entry, .. } => {
                    let at = entry.index.get();
                    assert!(next.is_none_or(|next| at <= next), "{name}: gap before {at}");
                    next = Some(at + 1);
                }
                Record::Purge { base, .. } => next = Some(base.index.get() + 1),
                _ => {}
            }
        }
    }
}

/// The entry that replaced a later one may be purged while the replaced one is not: it must not
/// come back.
#[test]
fn overwritten_entry_does_not_return_when_its_overwriter_is_purged() {
    let mut rig = Rig::new();
    let all =
        [entry(1, 1, 1, 10), entry(1, 1, 2, 20), entry(1, 2, 1, 30), purge(1, 2, 1), vote(1, 3, 1)];
    rig.commit(&all);
    let again = Rig::reopen(&rig.disk);
    assert_eq!(again.recovered, [purge(1, 2, 1), vote(1, 3, 1)]);
    assert!(again.wal.locate(group(1), common::index(2), common::index(2), 1).is_err());
}

/// A snapshot replaces the log: what followed the base in the old log does not follow the new one.
#[test]
fn purge_that_contradicts_the_log_ends_it() {
    let old: Vec<Record> = (1..=5).map(|at| entry(1, 1, at, 10 * at as usize)).collect();
    let cases: [(&str, Record, &[u64]); 4] = [
        ("same term", purge(1, 1, 3), &[4, 5]),
        ("other term", purge(1, 2, 3), &[]),
        ("beyond the end", purge(1, 2, 9), &[]),
        ("the last one", purge(1, 1, 5), &[]),
    ];
    for (name, purge, left) in cases {
        let mut rig = Rig::new();
        rig.commit(&old);
        rig.commit(&[purge]);
        let mut again = Rig::reopen(&rig.disk);
        let entries: Vec<u64> = again.models().group(1).entries.keys().copied().collect();
        assert_eq!(entries, left, "{name}");
        // The segment start says it again, which changes nothing.
        again.commit(&[vote(1, 9, 1)]);
        let third = Rig::reopen(&again.disk);
        assert_eq!(third.models().group(1).entries, again.models().group(1).entries, "{name}");
    }
}

/// Every length the last segment can be cut to.
#[test]
fn every_truncation_is_told_from_an_unfinished_write() {
    let (rig, batches) = small_log();
    let name = "0000000001.seg";
    let bytes = rig.disk.contents(name).expect("the segment is there");
    for len in (0..4096 * 6 + 512).step_by(64).chain(4096 * 4 - 9..4096 * 4 + 90) {
        let disk = rig.disk.fork();
        disk.set_contents(name, bytes[..len].to_vec());
        let mut again = Rig::open(disk, options()).expect("a short file never stops recovery");
        again.commit(&[vote(1, 50, 1)]);
        let third = Rig::reopen(&again.disk).models().group(1).hard_state;
        assert_eq!(third, Models::of(&[vote(1, 50, 1)]).group(1).hard_state, "{len}: goes on");
        if len < 128 {
            assert!(!again.report.unattributed.is_empty(), "{len}: the segment header is gone");
            continue;
        }
        // What is gone took its own watermark with it: the log simply ends earlier.
        let kept = (len.saturating_sub(4096) / 4096).min(4);
        let models = again.models();
        let now = Models::of(&batches[..kept].concat());
        let more = Models::of(&batches[..(kept + 1).min(4)].concat());
        assert!(models == now || models == more, "{len}: {kept} whole batches");
        assert!(again.report.damaged.is_empty(), "{len}: {:?}", again.report.damaged);
    }
}

/// A segment cut short below the watermark that a later segment holds is damage.
#[test]
fn truncation_before_a_later_segment_is_damage() {
    let (rig, batches) = small_log();
    let mut again = Rig::reopen(&rig.disk);
    again.commit(&[entry(1, 3, 5, 10), entry(2, 3, 4, 10)]);
    again.idle();
    let names = again.disk.list().expect("list");
    let first = "0000000001.seg";
    assert!(names.len() >= 2, "{names:?}");
    let whole = again.disk.contents(first).expect("the segment is there");
    for blocks in 1..5 {
        let disk = again.disk.fork();
        disk.set_contents(first, whole[..4096 * blocks].to_vec());
        let third = Rig::open(disk, options()).expect("opens");
        assert!(!third.report.unattributed.is_empty(), "{blocks} blocks left");
        let lost: BTreeSet<_> = batches[blocks - 1..].concat().iter().map(Record::group).collect();
        for of in lost {
            assert!(third.report.is_damaged(of), "{blocks} blocks left, {of}");
        }
    }
}

/// Any subset of the last write's sectors may be missing.
#[test]
fn every_subset_of_the_last_batchs_sectors_is_all_or_nothing() {
    let mut rig = Rig::new();
    let first = [vote(1, 1, 1), vote(2, 1, 1), entry(1, 1, 1, 500)];
    rig.commit(&first);
    let last = [entry(1, 1, 2, 1200), entry(2, 1, 1, 900), entry(1, 1, 3, 1100)];
    rig.append(&last);
    let op = rig.wal.next_write().expect("a write");
    let file = *rig.wal.file(op.segment).as_ref().expect("open");
    rig.disk.write_at(file, op.offset, &op.buffer[..op.len]).expect("written, not synced");
    let sectors = op.len / SECTOR_BYTES;
    assert_eq!(sectors, 8);
    let base = op.offset / SECTOR_BYTES as u64;
    let before = Models::of(&first);
    let after = Models::of(first.iter().chain(&last));
    let mut torn = 0;
    for kept in 0..1u32 << sectors {
        let disk = rig.disk.fork();
        disk.crash(&mut |lost| match lost {
            Unsynced::Sector { sector, .. } => kept & (1 << (sector - base)) != 0,
            Unsynced::DirChange { .. } => false,
        });
        let again = Rig::open(disk, options()).expect("opens");
        assert!(again.report.is_clean(), "{kept:08b}: {:?}", again.report);
        // The last sector holds only the end of the last payload and padding.
        let all = kept & 0x7f == 0x7f;
        let want = if all { &after } else { &before };
        assert_eq!(again.models(), *want, "{kept:08b}");
        torn += usize::from(again.report.torn.is_some());
    }
    assert!(torn >= 200, "most are reported: {torn}");
}

/// For recycled segments: the old bytes are valid batches of their time.
#[test]
fn stale_bytes_of_a_recycled_segment_never_count() {
    let mut rig = Rig::new();
    let mut at = 0;
    let mut recycled = None;
    // Same shape of batches all along: old and new batches start at the same offsets.
    while recycled.is_none() {
        at += 1;
        rig.commit(&[entry(1, 1, at, 3000)]);
        rig.commit(&[purge(1, 1, at - 1)]);
        recycled = rig.wal.take_released().first().copied();
        assert!(at < 200, "a segment is recycled in time");
    }
    let stale = rig.disk.list().expect("list");
    // Fill up to the start of the recycled file, then crash in its first batches.
    let active = |rig: &Rig| rig.wal.live_segments().last().expect("one is active").number();
    let now = active(&rig);
    while active(&rig) < now + 2 {
        at += 1;
        rig.commit(&[entry(1, 1, at, 3000)]);
        rig.commit(&[purge(1, 1, at - 1)]);
    }
    let name = format!("{:010}.seg", now + 2);
    assert!(stale.len() <= rig.disk.list().expect("list").len() + 1);
    let bytes = rig.disk.contents(&name).expect("the active segment");
    let old = bytes[4096 * 6..].iter().filter(|&&byte| byte != 0).count();
    assert!(old > 10_000, "the file is full of old batches: {old} bytes");
    rig.append(&[entry(1, 1, at + 1, 3000), entry(2, 1, 1, 3000)]);
    let op = rig.wal.next_write().expect("a write");
    let file = *rig.wal.file(op.segment).as_ref().expect("open");
    rig.disk.write_at(file, op.offset, &op.buffer[..op.len]).expect("written, not synced");
    let base = op.offset / SECTOR_BYTES as u64;
    let sectors = op.len / SECTOR_BYTES;
    let used = u32::from_le_bytes(op.buffer[40..44].try_into().expect("four bytes")) as usize;
    assert!(used + SECTOR_BYTES < op.len, "there is padding");
    let want = common::Model {
        base: Some(common::position(1, at - 1)),
        entries: [(at, bare(&entry(1, 1, at, 3000)))].into(),
        ..Default::default()
    };
    for missing in 0..sectors {
        for keep_only in [false, true] {
            let disk = rig.disk.fork();
            disk.crash(&mut |lost| match lost {
                Unsynced::Sector { sector, .. } => {
                    ((sector - base) as usize == missing) == keep_only
                }
                Unsynced::DirChange { .. } => false,
            });
            let again = Rig::open(disk, options()).expect("opens");
            assert!(again.report.is_clean(), "{missing}: {:?}", again.report);
            let found = again.models().group(1);
            // The last sectors are padding.
            let mut want = want.clone();
            if !keep_only && missing >= used.div_ceil(SECTOR_BYTES) {
                want.entries.insert(at + 1, bare(&entry(1, 1, at + 1, 3000)));
            }
            assert_eq!(found, want, "sector {missing}, alone: {keep_only}");
        }
    }
}

/// A segment that was cut off with whole batches in it is used again under the same number: the
/// old batches stand at the right positions of the log, only the salt tells them apart.
#[test]
fn whole_batches_that_were_cut_off_do_not_return_in_the_same_place() {
    let three = || coracle_wal::Options { inflight_max: 3, ..options() };
    let mut rig = Rig::open(MemDisk::new(), three()).expect("opens");
    let mut all = Vec::new();
    for at in 1..=14 {
        all.push(entry(1, 1, at, 100));
        rig.commit(&[entry(1, 1, at, 100)]);
    }
    // The last block of this segment, then two batches in the next one.
    let mut ops = Vec::new();
    for at in 15..=17 {
        rig.append(&[entry(1, 1, at, 100)]);
        ops.push(rig.wal.next_write().expect("three in flight"));
    }
    assert_eq!(ops[0].offset + 4096, 64 << 10);
    assert_eq!((ops[1].offset, ops[2].offset), (4096, 8192));
    rig.write(&ops[1]);
    rig.write(&ops[2]);
    lose_everything(&rig.disk);
    let mut again = Rig::open(rig.disk.fork(), three()).expect("opens");
    assert_eq!(again.recovered, all);
    assert_eq!(again.report.torn.as_ref().map(|torn| torn.batches_dropped), Some(2));
    all.push(vote(1, 5, 1));
    again.commit(&[vote(1, 5, 1)]);
    let stale = again.disk.contents("0000000002.seg").expect("used again");
    assert_eq!(stale[8192..8192 + 4], ops[2].buffer[..4], "the old batch is still there");
    // As little do they if the header that tells the new salt is lost: then that is told.
    for block in [None, Some(1)] {
        let disk = again.disk.fork();
        let mut bytes = disk.contents("0000000002.seg").expect("there");
        bytes[..4096].fill(0);
        if let Some(block) = block {
            // What the batch that was cut off left is all there is.
            bytes[4096 * block..4096 * (block + 1)].copy_from_slice(&ops[1].buffer[..4096]);
        }
        disk.set_contents("0000000002.seg", bytes);
        let found = Rig::open(disk, three()).expect("opens");
        assert_eq!(found.report.is_clean(), block.is_none(), "{:?}", found.report);
        let wanted = if block.is_none() { &all[..] } else { &all[..14] };
        assert_eq!(found.recovered, wanted);
    }
    let third = Rig::open(again.disk.fork(), three()).expect("opens");
    assert_eq!(third.recovered, all);
    assert!(third.report.is_clean(), "{:?}", third.report);
    assert_eq!(third.report.end.get(), (64 << 10) + 8192);
}

/// Two writes in flight, the second completes first, then power fails.
#[test]
fn second_of_two_in_flight_is_cut_with_the_first() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), entry(1, 1, 1, 100)]);
    let before = rig.disk.fork();
    let one = rig.append(&[entry(1, 1, 2, 100)]);
    let first = rig.wal.next_write().expect("a write");
    let two = rig.append(&[entry(1, 1, 3, 100), entry(2, 1, 1, 50)]);
    let second = rig.wal.next_write().expect("a second write");
    rig.append(&[entry(1, 1, 4, 100)]);
    assert!(rig.wal.next_write().is_none(), "two in flight at most");
    rig.write(&second);
    let id = (second.id, second.len);
    let ack = rig.wal.written(id.0, Ok(id.1), second.buffer).expect("no error");
    assert_eq!(ack, None, "not a contiguous prefix");

    let again = Rig::reopen(&rig.disk);
    assert_eq!(again.models(), Rig::reopen(&before).models());
    let torn = again.report.torn.clone().expect("the cut is reported");
    assert_eq!((torn.offset, torn.batches_dropped), (first.offset, 1));
    assert!(again.report.is_clean());
    // What was cut stays cut, after new writes at the same positions of the log too.
    let mut again = again;
    again.commit(&[entry(1, 2, 2, 100)]);
    let third = Rig::reopen(&again.disk);
    let want = Models::of(&[vote(1, 1, 1), entry(1, 1, 1, 100), entry(1, 2, 2, 100)]);
    assert_eq!(third.models(), want);
    assert_eq!(third.report.torn, None);

    rig.write(&first);
    assert_eq!(rig.done(first), Some(two));
    assert!(one < two);
    assert_eq!(rig.flush(), Some(coracle_raft::BatchSeq::new(rig.batch)));
}

/// A crash at any moment of a recovery leaves a log that the next recovery opens with the same
/// result.
#[test]
fn recovery_can_be_interrupted_anywhere() {
    let mut rig = Rig::new();
    rig.commit(&[vote(1, 1, 1), entry(1, 1, 1, 100)]);
    rig.append(&[entry(1, 1, 2, 100)]);
    let _lost = rig.wal.next_write().expect("a write");
    rig.append(&[entry(1, 1, 3, 100)]);
    let second = rig.wal.next_write().expect("a second write");
    rig.write(&second);
    let want = Models::of(&[vote(1, 1, 1), entry(1, 1, 1, 100)]);
    use coracle_wal::DiskOp;
    let mut failures = 0;
    for op in [DiskOp::Truncate, DiskOp::Rename, DiskOp::SyncDir, DiskOp::Write, DiskOp::SyncData] {
        for after in 0..4 {
            for lose in [false, true] {
                let disk = rig.disk.fork();
                disk.fail(op, after, std::io::ErrorKind::Other);
                let mut visited = Vec::new();
                let opened = coracle_wal::recover(disk.clone(), options(), &mut |_, record| {
                    visited.push(record);
                });
                let failed = match opened {
                    Err(_) => true,
                    Ok((mut wal, _)) => wal.prepare_segments().is_err(),
                };
                failures += usize::from(failed);
                disk.heal();
                disk.crash(&mut |_| !lose);
                let again = Rig::open(disk, options()).expect("opens");
                assert_eq!(again.models(), want, "{op:?} {after} {lose}");
            }
        }
    }
    assert!(failures >= 8, "{failures}");
}

#[test]
fn empty_watermark_batches_end_and_are_not_repeated() {
    let mut rig = Rig::new();
    assert!(!rig.wal.idle_watermark(), "nothing to say on an empty log");
    rig.commit(&[vote(1, 1, 1)]);
    assert!(rig.wal.idle_watermark());
    assert!(!rig.wal.idle_watermark(), "it is in line");
    rig.flush();
    assert!(!rig.wal.idle_watermark(), "said once");
    rig.commit(&[vote(1, 2, 1)]);
    lose_everything(&rig.disk);
    let mut again = Rig::reopen(&rig.disk);
    assert!(again.wal.idle_watermark(), "what was recovered is recorded as durable");
    again.idle();
    assert!(!again.wal.idle_watermark());
}

#[test]
fn unreadable_sectors_damage_their_groups_only() {
    let (rig, _) = small_log();
    let disk: MemDisk = rig.disk.fork();
    // The block of batch 2: groups 1 and 3 have entries there, and 3 a piece of state.
    disk.make_unreadable("0000000001.seg", 4096 * 2..4096 * 3);
    let again = Rig::open(disk, options()).expect("opens");
    assert_eq!(again.report.unreadable_blocks, 1);
    let damaged: Vec<_> = again.report.damaged.keys().copied().collect();
    let lost: Vec<_> = again.report.lost_entries.keys().copied().collect();
    assert_eq!((damaged, lost), (vec![group(3)], vec![group(1)]));
}
