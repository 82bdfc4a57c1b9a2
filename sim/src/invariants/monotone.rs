//! Commit index and applied index only grow while a process lives, and the parts of a log keep
//! their order: base, applied, commit, last (Raft paper fig. 2, "Volatile state on all servers").

use super::seen::{Rule, Seen, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "commit and applied only grow", source: "Raft paper fig. 2, volatile state" };

/// The parts of one replica's log against each other.
pub(crate) fn check(now: &Seen) -> Result<(), Violation> {
    let Seen { base, applied, commit, last, durable, .. } = *now;
    let order = [base.index, applied, commit, last.index];
    if order.is_sorted() && durable <= last.index {
        return Ok(());
    }
    let (base, last) = (base.index, last.index);
    let text =
        format!("base {base}, applied {applied}, commit {commit}, last {last}, durable {durable}");
    Err(now.broken(&RULE, text))
}

/// One replica against itself, earlier in the same life.
pub(crate) fn check_since(before: &Seen, now: &Seen) -> Result<(), Violation> {
    let parts = [
        ("base", before.base.index, now.base.index),
        ("applied", before.applied, now.applied),
        ("commit", before.commit, now.commit),
    ];
    match parts.into_iter().find(|(_, before, now)| now < before) {
        Some((part, from, to)) => {
            Err(now.broken(&RULE, format!("{part} went back from {from} to {to}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use coracle_raft::LogIndex;

    use super::super::seen::tests::{assert_breaks, follower};
    use super::super::terms::tests::at;
    use super::*;

    fn parts(base: u64, applied: u64, commit: u64, last: u64) -> Seen {
        let (applied, commit) = (LogIndex::new(applied), LogIndex::new(commit));
        Seen { base: at(1, base), applied, commit, last: at(1, last), ..follower(1, 1) }
    }

    #[test]
    fn growth_in_order_is_legal() {
        let steps = [parts(0, 0, 0, 3), parts(0, 1, 2, 3), parts(1, 2, 2, 2), parts(9, 9, 9, 9)];
        for pair in steps.windows(2) {
            assert_eq!(check(&pair[1]), Ok(()));
            assert_eq!(check_since(&pair[0], &pair[1]), Ok(()));
        }
    }

    #[test]
    fn disorder_is_found() {
        for seen in [parts(2, 1, 3, 4), parts(0, 3, 2, 4), parts(0, 1, 5, 4)] {
            assert_breaks(&RULE, check(&seen));
        }
        assert_breaks(&RULE, check(&Seen { durable: LogIndex::new(5), ..parts(0, 0, 0, 4) }));
    }

    #[test]
    fn going_back_is_found() {
        let before = parts(2, 4, 6, 9);
        for seen in [parts(1, 4, 6, 9), parts(2, 3, 6, 9), parts(2, 4, 5, 9)] {
            assert_breaks(&RULE, check_since(&before, &seen));
        }
    }
}
