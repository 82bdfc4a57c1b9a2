//! Majorities equal what counting all subsets gives, and any two quorums of one membership, or
//! of it and the next one, share a voter; memberships survive their encoding.

mod common;

use std::collections::BTreeMap;

use common::{change, node, nodes, voters};
use coracle_raft::{
    Membership, NodeId, Payload, VoteResult, majority_value, quorum_value, vote_result,
};
use proptest::prelude::*;

/// Whether more than half of `voters` are in `set`.
fn is_majority(voters: &[NodeId], set: impl Fn(NodeId) -> bool) -> bool {
    voters.is_empty() || voters.iter().filter(|&&voter| set(voter)).count() * 2 > voters.len()
}

fn is_quorum(membership: &Membership, set: impl Fn(NodeId) -> bool + Copy) -> bool {
    is_majority(&membership.voters, set) && is_majority(&membership.outgoing, set)
}

fn list(count_min: usize, count_max: usize) -> impl Strategy<Value = Vec<NodeId>> {
    prop::collection::btree_set(1..8_u32, count_min..=count_max).prop_map(nodes)
}

/// Majority rule for every small group (Raft paper §5.3).
#[test]
fn the_majority_value_is_what_most_have_reached() {
    let cases: &[(&str, &[u64], u64)] = &[
        ("no voters wait for nothing", &[], u64::MAX),
        ("one", &[7], 7),
        ("two need both", &[9, 4], 4),
        ("three, one slow", &[9, 9, 2], 9),
        ("three, two slow", &[9, 2, 2], 2),
        ("four need three", &[9, 9, 2, 2], 2),
        ("five, two slow", &[5, 1, 4, 2, 3], 3),
        ("more than fit on the stack", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 6),
    ];
    for &(name, values, want) in cases {
        let voters = nodes(0..values.len() as u32);
        let value_of = |voter: NodeId| values[voter.get() as usize];
        assert_eq!(majority_value(&voters, value_of), want, "{name}");
    }
}

/// A group without voters elects nobody.
#[test]
fn no_voters_elect_nobody() {
    let nobody = Membership::default();
    assert_eq!(vote_result(&nobody, |_| Some(true)), VoteResult::Lost);
}

proptest! {
    #[test]
    fn quorum_values_equal_brute_force(
        incoming in list(1, 7),
        outgoing in list(0, 7),
        values in prop::collection::vec(0..6_u64, 8),
    ) {
        let membership = Membership { voters: incoming, outgoing, ..Membership::default() };
        let value_of = |voter: NodeId| values[voter.get() as usize];
        let reached = |value| is_quorum(&membership, |voter| value_of(voter) >= value);
        let want = (0..6).rev().find(|&value| reached(value)).expect("all have reached 0");
        prop_assert_eq!(quorum_value(&membership, value_of), want);
    }

    #[test]
    fn votes_equal_brute_force(
        incoming in list(1, 7),
        outgoing in list(0, 7),
        votes in prop::collection::vec(prop::option::of(any::<bool>()), 8),
    ) {
        let membership = Membership { voters: incoming, outgoing, ..Membership::default() };
        let vote_of = |voter: NodeId| votes[voter.get() as usize];
        let won = is_quorum(&membership, |voter| vote_of(voter) == Some(true));
        let open = is_quorum(&membership, |voter| vote_of(voter) != Some(false));
        let want = match (won, open) {
            (true, _) => VoteResult::Won,
            (false, true) => VoteResult::Pending,
            (false, false) => VoteResult::Lost,
        };
        prop_assert_eq!(vote_result(&membership, vote_of), want);
    }

    /// Thesis §4.3: on the way from one membership to the next no two disjoint sets can decide.
    #[test]
    fn quorums_of_neighbouring_memberships_meet(
        old in list(1, 5),
        new in list(1, 5),
        first in 0..256_u32,
        second in 0..256_u32,
    ) {
        let old = Membership { voters: old, ..Membership::default() };
        let to = common::change(&new.iter().map(|n| n.get()).collect::<Vec<_>>(), &[]);
        let joint = old.enter(&to).expect("voters only");
        let steps = [old, joint.clone(), joint.leave()];
        for (a, b) in [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)] {
            let in_first = |voter: NodeId| first & (1 << voter.get()) != 0;
            let in_second = |voter: NodeId| second & (1 << voter.get()) != 0;
            let both = is_quorum(&steps[a], in_first) && is_quorum(&steps[b], in_second);
            prop_assert!(!both || first & second != 0, "{:?} {:?}", steps[a], steps[b]);
        }
    }

    #[test]
    fn memberships_survive_their_encoding(
        voters in list(1, 4), learners in list(0, 4), new in list(1, 4), next in list(0, 4),
    ) {
        let numbers = |list: &[NodeId]| list.iter().map(|n| n.get()).collect::<Vec<_>>();
        let apart = |from: &[NodeId], not: &[NodeId]| {
            from.iter().copied().filter(|node| !not.contains(node)).collect::<Vec<_>>()
        };
        let learners = apart(&learners, &voters);
        let start = Membership { voters, learners, ..Membership::default() };
        let to = change(&numbers(&new), &numbers(&apart(&next, &new)));
        let joint = start.enter(&to).expect("they do not overlap");
        for membership in [start, joint.clone(), joint.leave()] {
            let bytes = membership.encode();
            prop_assert_eq!(Membership::decode(bytes.bytes()), Ok(membership));
        }
        let end = joint.leave();
        prop_assert_eq!((end.voters, end.learners), (to.voters, to.learners));
    }

    #[test]
    fn decoding_survives_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(membership) = Membership::decode(&bytes) {
            let again = membership.encode();
            prop_assert_eq!(again.bytes(), &bytes[..]);
        }
    }
}

/// The bytes are on disks and wires: they must not change unnoticed.
#[test]
fn the_encoding_is_pinned() {
    let membership = Membership {
        voters: nodes([1, 2, 0x0102_0304]),
        outgoing: nodes([1]),
        learners: nodes([7]),
        learners_next: Vec::new(),
    };
    let payload: Payload = membership.encode();
    let want = [
        1, // format
        3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1, // voters
        1, 0, 1, 0, 0, 0, // outgoing
        1, 0, 7, 0, 0, 0, // learners
        0, 0, // learners next
    ];
    assert_eq!(payload.bytes(), want);
    assert_eq!(payload.checksum(), 0x3B82_576A, "CRC32C, computed elsewhere");
}

/// Every cut and every flipped version of an encoding is refused.
#[test]
fn cut_encodings_are_refused() {
    let bytes = voters([1, 2, 3]).encode();
    for cut in 0..bytes.len() {
        assert!(Membership::decode(&bytes.bytes()[..cut]).is_err(), "{cut} bytes");
    }
    let mut longer = bytes.bytes().to_vec();
    longer.push(0);
    assert!(Membership::decode(&longer).is_err());
    longer.pop();
    longer[0] = 2;
    assert!(Membership::decode(&longer).is_err(), "of another version");
}

/// Learners are never counted, in neither half.
#[test]
fn a_learner_that_votes_is_refused() {
    let learners = nodes([2]);
    for voting in [
        Membership { voters: nodes([1, 2]), ..Membership::default() },
        Membership { voters: nodes([1]), outgoing: nodes([2, 3]), ..Membership::default() },
    ] {
        let membership = Membership { learners: learners.clone(), ..voting };
        assert!(Membership::decode(membership.encode().bytes()).is_err(), "{membership:?}");
    }
}

/// A voter that becomes a learner votes in the outgoing half until the end (thesis §4.2.1).
#[test]
fn a_demoted_voter_is_a_learner_only_in_the_end() {
    let joint = voters([1, 2, 3]).enter(&change(&[1, 2], &[3, 4])).expect("they do not overlap");
    let want = Membership {
        voters: nodes([1, 2]),
        outgoing: nodes([1, 2, 3]),
        learners: nodes([4]),
        learners_next: nodes([3]),
    };
    assert_eq!(joint, want);
    assert!(joint.is_voter(node(3)) && joint.is_joint());
    assert_eq!(joint.leave().learners, nodes([3, 4]));
}

/// A change of learners alone needs no joint membership: quorums stay what they are.
#[test]
fn learners_change_in_one_step() {
    let next = voters([1, 2, 3]).enter(&change(&[1, 2, 3], &[4])).expect("they do not overlap");
    assert!(!next.is_joint());
    let votes: BTreeMap<_, _> = nodes(1..=4).into_iter().map(|n| (n, n == node(4))).collect();
    assert_eq!(vote_result(&next, |n| votes.get(&n).copied()), VoteResult::Lost);
}
