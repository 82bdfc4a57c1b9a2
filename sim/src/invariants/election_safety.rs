//! At most one leader can be elected in a given term (Raft paper fig. 3, "Election Safety", §5.2).
//!
//! A replica that follows is a witness of its leader, so a leader counts though it was never seen
//! leading itself.

use std::collections::BTreeMap;

use coracle_raft::{NodeId, Term};

use super::seen::{Rule, Seen, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "election safety", source: "Raft paper fig. 3 and §5.2" };

/// Newest terms whose leaders are remembered.
const TERMS_MAX: usize = 4096;

/// The leaders of one group.
#[derive(Debug, Default)]
pub(crate) struct ElectionSafety {
    leaders: BTreeMap<Term, NodeId>,
}

impl ElectionSafety {
    pub(crate) fn check(&mut self, seen: &Seen) -> Result<(), Violation> {
        let leader = if seen.leads() { Some(seen.at.node) } else { seen.leader };
        let Some(leader) = leader else { return Ok(()) };
        let known = *self.leaders.entry(seen.term).or_insert(leader);
        if self.leaders.len() > TERMS_MAX {
            self.leaders.pop_first();
        }
        if known == leader {
            return Ok(());
        }
        Err(seen.broken(&RULE, format!("{} is led by {known} and by {leader}", seen.term)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, follower, leader};
    use super::*;

    #[test]
    fn one_leader_per_term_is_legal() {
        let mut rule = ElectionSafety::default();
        let follows = Seen { leader: Some(NodeId::new(1)), ..follower(2, 1) };
        for seen in [leader(1, 1), follows, follower(3, 1), leader(2, 2), leader(1, 1)] {
            assert_eq!(rule.check(&seen), Ok(()), "{seen:?}");
        }
    }

    #[test]
    fn two_leaders_of_a_term_are_found() {
        let mut rule = ElectionSafety::default();
        assert_eq!(rule.check(&leader(1, 4)), Ok(()));
        assert_breaks(&RULE, rule.check(&leader(2, 4)));
    }

    /// The other leader was gone before anybody looked, but it had a follower.
    #[test]
    fn a_follower_witnesses_its_leader() {
        let mut rule = ElectionSafety::default();
        let follows = Seen { leader: Some(NodeId::new(1)), ..follower(3, 4) };
        assert_eq!(rule.check(&follows), Ok(()));
        assert_breaks(&RULE, rule.check(&leader(2, 4)));
    }
}
