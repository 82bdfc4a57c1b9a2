//! Two entries with the same index and term are the same entry, and the logs are the same up to
//! there (Raft paper fig. 3, "Log Matching", §5.3).
//!
//! Over everything that was ever in any log: kind, payload checksum, and the term of the entry
//! before, from which the rest follows by induction.

use std::collections::BTreeMap;

use coracle_raft::{EntryKind, LogIndex, Term};

use super::seen::{EntryId, Rule, Seen, Violation};

pub(crate) const RULE: Rule = Rule { name: "log matching", source: "Raft paper fig. 3 and §5.3" };

/// Newest entries of a group that are remembered.
const ENTRIES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Found {
    content: (EntryKind, u32),
    /// Term of the entry before it, if that is known.
    before: Option<Term>,
}

/// Every entry of one group that was ever seen.
#[derive(Debug, Default)]
pub(crate) struct LogMatching {
    entries: BTreeMap<(LogIndex, Term), Found>,
}

impl LogMatching {
    /// `seen` has the entry `id` at `index`, and before it one of the term `before`.
    pub(crate) fn check(
        &mut self,
        seen: &Seen,
        index: LogIndex,
        id: EntryId,
        before: Option<Term>,
    ) -> Result<(), Violation> {
        let Some(content) = id.content else { return Ok(()) };
        let found = self.entries.entry((index, id.term)).or_insert(Found { content, before });
        let known = *found;
        found.before = found.before.or(before);
        if self.entries.len() > ENTRIES_MAX {
            self.entries.pop_first();
        }
        if known.content != content {
            let known = EntryId { term: id.term, content: Some(known.content) };
            return Err(seen.broken(&RULE, format!("entry {index} is {id}, elsewhere {known}")));
        }
        match known.before.zip(before) {
            Some((known, before)) if known != before => {
                let term = id.term;
                let text = format!("{index} of {term} follows {before}, elsewhere {known}");
                Err(seen.broken(&RULE, text))
            }
            _ => Ok(()),
        }
    }

    /// The entry of this index and term; its content is unknown if it was never seen.
    pub(crate) fn id_of(&self, index: LogIndex, term: Term) -> EntryId {
        let content = self.entries.get(&(index, term)).map(|found| found.content);
        EntryId { term, content }
    }

    /// Drops entries up to `index`.
    pub(crate) fn forget(&mut self, index: LogIndex) {
        while self.entries.first_key_value().is_some_and(|(&(at, _), _)| at <= index) {
            self.entries.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, entry, follower};
    use super::*;

    fn look(
        rule: &mut LogMatching,
        node: u32,
        (index, term, checksum): (u64, u64, u32),
        before: u64,
    ) -> Result<(), Violation> {
        let before = Some(Term::new(before));
        rule.check(&follower(node, 9), LogIndex::new(index), entry(term, checksum), before)
    }

    #[test]
    fn equal_entries_and_entries_of_other_terms_are_legal() {
        let mut rule = LogMatching::default();
        assert_eq!(look(&mut rule, 1, (1, 1, 7), 0), Ok(()));
        assert_eq!(look(&mut rule, 2, (1, 1, 7), 0), Ok(()));
        assert_eq!(look(&mut rule, 3, (1, 2, 8), 0), Ok(()));
        assert_eq!(look(&mut rule, 3, (2, 2, 8), 2), Ok(()));
        assert_eq!(rule.id_of(LogIndex::new(1), Term::new(2)), entry(2, 8));
        rule.forget(LogIndex::new(1));
        assert_eq!(rule.id_of(LogIndex::new(1), Term::new(2)).content, None);
        assert_eq!(rule.id_of(LogIndex::new(2), Term::new(2)), entry(2, 8));
    }

    #[test]
    fn another_content_is_found() {
        let mut rule = LogMatching::default();
        assert_eq!(look(&mut rule, 1, (5, 2, 7), 2), Ok(()));
        assert_breaks(&RULE, look(&mut rule, 2, (5, 2, 8), 2));
    }

    #[test]
    fn another_predecessor_is_found() {
        let mut rule = LogMatching::default();
        assert_eq!(look(&mut rule, 1, (5, 3, 7), 2), Ok(()));
        assert_breaks(&RULE, look(&mut rule, 2, (5, 3, 7), 1));
    }
}
