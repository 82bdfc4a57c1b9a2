//! An entry committed in a term is in the logs of the leaders of all later terms (Raft paper
//! fig. 3, "Leader Completeness", §5.4).
//!
//! Positions are compared: that equal positions mean equal logs is log matching.

use std::collections::BTreeMap;

use coracle_raft::{LogPosition, Term};

use super::seen::{Rule, Seen, Violation};
use super::terms::Terms;

pub(crate) const RULE: Rule =
    Rule { name: "leader completeness", source: "Raft paper fig. 3 and §5.4" };

/// Newest terms that are told apart.
const TERMS_MAX: usize = 256;

/// What was committed in one group by when.
#[derive(Debug, Default)]
pub(crate) struct LeaderCompleteness {
    /// The last entry committed in a term or before; both ascend.
    by_term: BTreeMap<Term, LogPosition>,
}

impl LeaderCompleteness {
    /// Everything up to `position` is committed, as a replica says whose term is `term`.
    pub(crate) fn committed(&mut self, term: Term, position: LogPosition) {
        if self.by(term).is_some_and(|known| known.index >= position.index) {
            return;
        }
        self.by_term.insert(term, position);
        while let Some((&later, known)) = self.by_term.range(term.next()..).next()
            && known.index <= position.index
        {
            self.by_term.remove(&later);
        }
        if self.by_term.len() > TERMS_MAX {
            self.by_term.pop_first();
        }
    }

    /// If `seen` leads, its log must hold all that was committed in its term or before.
    pub(crate) fn check(&self, seen: &Seen, log: &Terms) -> Result<(), Violation> {
        let Some(committed) = self.by(seen.term).filter(|_| seen.leads()) else { return Ok(()) };
        if log.holds(committed) {
            return Ok(());
        }
        let LogPosition { term, index } = committed;
        let found = log.at(index).map_or_else(|| "nothing".to_owned(), |term| term.to_string());
        let text = format!("{index} of {term} is committed, the leader has {found} there");
        Err(seen.broken(&RULE, text))
    }

    fn by(&self, term: Term) -> Option<LogPosition> {
        self.by_term.range(..=term).next_back().map(|(_, &position)| position)
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, follower, leader};
    use super::super::terms::tests::{at, terms_of};
    use super::*;

    fn rule() -> LeaderCompleteness {
        let mut rule = LeaderCompleteness::default();
        rule.committed(Term::new(3), at(3, 4));
        rule.committed(Term::new(3), at(1, 2));
        rule.committed(Term::new(5), at(5, 6));
        rule
    }

    #[test]
    fn leaders_with_everything_of_their_past_are_legal() {
        let rule = rule();
        let older = terms_of(&[1, 1]);
        let complete = terms_of(&[1, 1, 3, 3, 5, 5, 6]);
        assert_eq!(rule.check(&leader(1, 2), &older), Ok(()), "before anything was committed");
        assert_eq!(rule.check(&leader(1, 4), &terms_of(&[1, 1, 3, 3])), Ok(()));
        assert_eq!(rule.check(&leader(1, 6), &complete), Ok(()));
        assert_eq!(rule.check(&follower(1, 6), &older), Ok(()), "followers may lag");
        let snapshot = Terms::new(at(5, 7), &[], at(5, 7).index);
        assert_eq!(rule.check(&leader(1, 6), &snapshot), Ok(()));
    }

    #[test]
    fn a_leader_that_lacks_a_committed_entry_is_found() {
        let rule = rule();
        assert_breaks(&RULE, rule.check(&leader(2, 4), &terms_of(&[1, 1, 3])));
        assert_breaks(&RULE, rule.check(&leader(2, 6), &terms_of(&[1, 1, 3, 3, 4, 4, 6])));
    }

    /// An old leader may still say what was committed in its term, after the next was elected.
    #[test]
    fn an_older_term_may_report_later() {
        let mut rule = rule();
        rule.committed(Term::new(4), at(4, 9));
        assert_eq!(rule.by(Term::new(5)), Some(at(4, 9)));
        assert_eq!(rule.by(Term::new(3)), Some(at(3, 4)));
        assert_breaks(&RULE, rule.check(&leader(2, 5), &terms_of(&[1, 1, 3, 3, 5, 5])));
    }
}
