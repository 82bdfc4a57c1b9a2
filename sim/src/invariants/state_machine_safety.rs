//! If a replica has applied an entry at an index, no other ever applies another one there (Raft
//! paper fig. 3, "State Machine Safety", §5.4.3; thesis §3.6.3).
//!
//! Checked when an entry is committed, which is before it is applied; and again when a replica
//! commits it again after a restart, so that what it applies again is the same.

use std::collections::VecDeque;

use coracle_raft::LogIndex;

use super::seen::{EntryId, Rule, Seen, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "state machine safety", source: "Raft paper fig. 3 and §5.4.3" };

/// Newest committed entries of a group that are remembered, 16 bytes each.
const ENTRIES_MAX: usize = 1 << 20;

/// Everything that is committed in one group, by whoever says so.
#[derive(Debug, Default)]
pub(crate) struct StateMachineSafety {
    /// Entries up to here are forgotten.
    base: LogIndex,
    entries: VecDeque<EntryId>,
}

impl StateMachineSafety {
    /// At `seen` the entry `id` is committed at `index`.
    pub(crate) fn check(
        &mut self,
        seen: &Seen,
        index: LogIndex,
        id: EntryId,
    ) -> Result<(), Violation> {
        let Some(place) = self.place(index) else { return Ok(()) };
        if place > self.entries.len() {
            // Somebody starts from a snapshot of what was never seen.
            self.entries.clear();
            self.base = index.prev();
        }
        let place = place.min(self.entries.len());
        if let Some(known) = self.entries.get_mut(place) {
            if !known.agrees_with(id) {
                let text = format!("entry {index} is committed as {id}, elsewhere as {known}");
                return Err(seen.broken(&RULE, text));
            }
            known.content = known.content.or(id.content);
            return Ok(());
        }
        self.entries.push_back(id);
        if self.entries.len() > ENTRIES_MAX {
            self.forget(self.base.next());
        }
        Ok(())
    }

    /// Drops entries up to `index`.
    pub(crate) fn forget(&mut self, index: LogIndex) {
        while self.base < index && self.entries.pop_front().is_some() {
            self.base = self.base.next();
        }
    }

    fn place(&self, index: LogIndex) -> Option<usize> {
        let place = index.get().checked_sub(self.base.next().get())?;
        usize::try_from(place).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, entry, follower};
    use super::*;

    #[test]
    fn committing_the_same_at_any_time_is_legal() {
        let mut rule = StateMachineSafety::default();
        for node in [1, 2, 1] {
            for index in 1..=5 {
                let id = entry(index / 2, index as u32);
                let seen = follower(node, 9);
                assert_eq!(rule.check(&seen, LogIndex::new(index), id), Ok(()));
            }
        }
        rule.forget(LogIndex::new(3));
        let forgotten = rule.check(&follower(3, 9), LogIndex::new(2), entry(9, 9));
        assert_eq!(forgotten, Ok(()), "nothing is known there any more");
        assert_eq!((rule.base, rule.entries.len()), (LogIndex::new(3), 2));
    }

    #[test]
    fn another_entry_at_an_index_is_found() {
        for other in [entry(1, 8), entry(2, 7)] {
            let mut rule = StateMachineSafety::default();
            assert_eq!(rule.check(&follower(1, 9), LogIndex::new(1), entry(1, 7)), Ok(()));
            assert_breaks(&RULE, rule.check(&follower(2, 9), LogIndex::new(1), other));
        }
    }

    /// Also when its content was first known by its term alone, as after a restart.
    #[test]
    fn what_is_learned_later_counts() {
        let mut rule = StateMachineSafety::default();
        let unknown = EntryId { content: None, ..entry(1, 0) };
        for (node, id) in [(1, unknown), (2, entry(1, 7)), (3, unknown)] {
            assert_eq!(rule.check(&follower(node, 9), LogIndex::new(1), id), Ok(()));
        }
        assert_breaks(&RULE, rule.check(&follower(3, 9), LogIndex::new(1), entry(1, 8)));
    }
}
