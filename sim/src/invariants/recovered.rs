//! What was durable is there again after a restart (Raft paper fig. 2, "Persistent state on all
//! servers"), unless it was being replaced or was lost on purpose.

use coracle_engine::CoreAddr;
use coracle_raft::{GroupId, LogIndex};

use super::disk::Disk;
use super::seen::{Rule, Seen, Violation};
use super::terms::Terms;

pub(crate) const RULE: Rule =
    Rule { name: "durable entries are recovered", source: "Raft paper fig. 2, persistent state" };

/// A replica starts with `log`, from `disk`.
pub(crate) fn check(disk: &Disk, now: &Seen, log: &Terms) -> Result<(), Violation> {
    let (durable, last) = disk.log();
    let base = log.base();
    // A snapshot that is not known to be complete may have replaced it all.
    let replaced = durable.at(base.index).is_some_and(|term| term != base.term);
    if last <= base.index || replaced {
        return Ok(());
    }
    let starts = durable.runs().iter().chain(log.runs()).map(|run| run.index);
    let looked_at = starts.chain([last]).filter(|index| (base.index..=last).contains(index));
    for index in looked_at {
        let (Some(want), found) = (durable.at(index), log.at(index)) else { continue };
        if found != Some(want) {
            return Err(now.broken(&RULE, missing(index, want, found)));
        }
    }
    Ok(())
}

/// A replica is not started, though its core is.
pub(crate) fn check_left_out(disk: &Disk, at: CoreAddr, group: GroupId) -> Result<(), Violation> {
    if disk.is_excused() {
        return Ok(());
    }
    Err(RULE.broken(at, group, "it is left out, but nothing of it was damaged".to_owned()))
}

fn missing(index: LogIndex, want: coracle_raft::Term, found: Option<coracle_raft::Term>) -> String {
    let found = found.map_or_else(|| "nothing".to_owned(), |term| format!("one of {term}"));
    format!("entry {index} of {want} was durable, recovered was {found}")
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::addr;
    use coracle_raft::{Entry, EntryKind, Payload, Record};

    use super::super::seen::tests::{assert_breaks, follower};
    use super::super::terms::tests::{at, terms_of};
    use super::*;

    pub(crate) fn disk_of(terms: &[u64]) -> Disk {
        let mut disk = Disk::default();
        for (&term, index) in terms.iter().zip(1..) {
            let position = at(term, index);
            let (kind, payload) = (EntryKind::Empty, Payload::empty());
            let entry = Entry { term: position.term, index: position.index, kind, payload };
            disk.write(&Record::Entry { group: GroupId::new(0), entry });
        }
        disk
    }

    fn starts_with(disk: &Disk, log: &Terms) -> Result<(), Violation> {
        check(disk, &follower(1, 9), log)
    }

    #[test]
    fn the_same_log_more_of_it_or_a_snapshot_is_legal() {
        let disk = disk_of(&[1, 1, 2]);
        for log in [terms_of(&[1, 1, 2]), terms_of(&[1, 1, 2, 3])] {
            assert_eq!(starts_with(&disk, &log), Ok(()));
        }
        let snapshot = |term, index| Terms::new(at(term, index), &[], LogIndex::new(index));
        assert_eq!(starts_with(&disk, &snapshot(2, 3)), Ok(()));
        assert_eq!(starts_with(&disk, &snapshot(4, 2)), Ok(()), "it held something else");
    }

    #[test]
    fn a_log_that_lost_or_changed_entries_is_found() {
        let disk = disk_of(&[1, 1, 2, 2]);
        for terms in [&[1, 1, 2][..], &[], &[1, 2, 2, 2], &[1, 1, 3, 3]] {
            assert_breaks(&RULE, starts_with(&disk, &terms_of(terms)));
        }
        let snapshot = Terms::new(at(1, 2), &[], LogIndex::new(2));
        assert_breaks(&RULE, starts_with(&disk, &snapshot));
    }

    /// What a crash interrupts may have happened or not.
    #[test]
    fn entries_under_replacement_may_be_old_or_new() {
        let mut disk = disk_of(&[1, 1, 2, 2]);
        disk.replacing(LogIndex::new(3));
        for terms in [&[1, 1, 2, 2][..], &[1, 1, 3], &[1, 1]] {
            assert_eq!(starts_with(&disk, &terms_of(terms)), Ok(()));
        }
        assert_breaks(&RULE, starts_with(&disk, &terms_of(&[1])));
        disk.settled();
        assert_breaks(&RULE, starts_with(&disk, &terms_of(&[1, 1, 3])));
    }

    #[test]
    fn only_damage_excuses_a_replica_that_is_left_out() {
        let mut disk = disk_of(&[1]);
        let left_out = |disk: &Disk| check_left_out(disk, addr(1, 0), GroupId::new(0));
        assert_breaks(&RULE, left_out(&disk));
        disk.forget();
        assert_eq!(left_out(&disk), Ok(()));
        assert_eq!(starts_with(&disk, &terms_of(&[])), Ok(()), "it was lost on purpose");
    }
}
