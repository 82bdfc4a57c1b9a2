//! A leader commits an entry of its own term once it is durable on a majority of the voters, of
//! both halves when joint (Raft paper §5.3, §5.4.2 and fig. 8; thesis §4.3, §10.2.1).

use std::collections::VecDeque;

use coracle_raft::{LogIndex, LogPosition, Membership, NodeId, quorum_value};

use super::seen::{Rule, Seen, Violation};
use super::terms::Terms;

pub(crate) const RULE: Rule = Rule {
    name: "committed entries are durable on a quorum",
    source: "Raft paper §5.3 and §5.4.2; thesis §4.3 and §10.2.1",
};

/// `held` tells whether an entry is durable at a node. If the commit index moved while
/// memberships changed it is not known which one counted: any from the committed entry on will do.
pub(crate) fn check(
    before: &Seen,
    now: &Seen,
    log: &Terms,
    memberships: &VecDeque<(LogIndex, Membership)>,
    held: impl Fn(NodeId, LogPosition) -> bool + Copy,
) -> Result<(), Violation> {
    let index = now.commit;
    if !now.leads() || index <= before.commit {
        return Ok(());
    }
    let Some(term) = log.at(index) else { return Ok(()) };
    if now.still_leads(before) && term != now.term {
        let text = format!("{index} of {term} was committed by counting in {}", now.term);
        return Err(now.broken(&RULE, text));
    }
    let position = LogPosition { term, index };
    let holds = |membership: &Membership| {
        quorum_value(membership, |node| u64::from(held(node, position))) >= 1
    };
    let settled = memberships.partition_point(|(at, _)| *at <= index).saturating_sub(1);
    let mut open = memberships.range(settled..).map(|(_, membership)| membership);
    if open.any(holds) {
        return Ok(());
    }
    let members = memberships.back().map_or_else(Vec::new, |(_, last)| last.members());
    let holders: Vec<_> = members.iter().filter(|&&node| held(node, position)).collect();
    let text = format!("{index} of {term} is durable only at {holders:?} of {members:?}");
    Err(now.broken(&RULE, text))
}

#[cfg(test)]
mod tests {
    use super::super::seen::tests::{assert_breaks, leader};
    use super::super::terms::tests::terms_of;
    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId::new).collect()
    }

    fn voters(ids: &[u32]) -> Membership {
        Membership::of_voters(nodes(ids))
    }

    /// Node 1 leads term 3 and commits entry `commit`, which is durable at `holders`.
    fn commits(
        memberships: &[(u64, Membership)],
        commit: u64,
        holders: &[u32],
    ) -> Result<(), Violation> {
        let log = terms_of(&[1, 2, 3, 3]);
        let memberships =
            memberships.iter().map(|(at, m)| (LogIndex::new(*at), m.clone())).collect();
        let now = Seen { commit: LogIndex::new(commit), ..leader(1, 3) };
        let held = |node: NodeId, _| holders.contains(&node.get());
        check(&leader(1, 3), &now, &log, &memberships, held)
    }

    #[test]
    fn a_majority_is_enough_and_the_leader_need_not_be_in_it() {
        let three = [(0, voters(&[1, 2, 3]))];
        for holders in [&[1, 2][..], &[2, 3], &[1, 2, 3]] {
            assert_eq!(commits(&three, 4, holders), Ok(()));
        }
        assert_eq!(commits(&[(0, voters(&[1]))], 4, &[1]), Ok(()));
    }

    #[test]
    fn less_than_a_majority_is_found() {
        let three = [(0, voters(&[1, 2, 3]))];
        for holders in [&[][..], &[1], &[3, 4]] {
            assert_breaks(&RULE, commits(&three, 4, holders));
        }
    }

    #[test]
    fn joint_memberships_need_both_majorities() {
        let joint = Membership { outgoing: nodes(&[1, 2, 3]), ..voters(&[3, 4, 5]) };
        let joint = [(2, joint)];
        assert_eq!(commits(&joint, 4, &[1, 3, 4]), Ok(()));
        assert_breaks(&RULE, commits(&joint, 4, &[1, 2, 3]));
        assert_breaks(&RULE, commits(&joint, 4, &[3, 4, 5, 6]));
    }

    /// The change was appended after the commit, before anybody looked.
    #[test]
    fn the_membership_at_the_commit_counts_too() {
        let changed = [(0, voters(&[1, 2, 3])), (4, voters(&[1, 4, 5]))];
        assert_eq!(commits(&changed, 3, &[1, 2]), Ok(()));
        assert_breaks(&RULE, commits(&changed, 4, &[1, 2]));
    }

    /// Raft paper fig. 8: an older entry on a majority may still be overwritten.
    #[test]
    fn entries_of_older_terms_are_not_committed_by_counting() {
        let three = [(0, voters(&[1, 2, 3]))];
        assert_breaks(&RULE, commits(&three, 2, &[1, 2, 3]));
    }
}
