//! Majorities, plain and joint (Raft paper §5.3, thesis §4.3).

use crate::{Membership, NodeId};

/// The largest value that a majority of `voters` has reached. With no voters there is nothing to
/// wait for: `u64::MAX`, so that the empty outgoing half of a joint configuration never decides.
pub fn majority_value(voters: &[NodeId], value_of: impl Fn(NodeId) -> u64) -> u64 {
    const INLINE: usize = 9;
    let mut inline = [0; INLINE];
    let mut heap;
    let values: &mut [u64] = if voters.len() <= INLINE {
        &mut inline[..voters.len()]
    } else {
        heap = vec![0; voters.len()];
        &mut heap
    };
    for (value, &voter) in values.iter_mut().zip(voters) {
        *value = value_of(voter);
    }
    values.sort_unstable();
    match values.len() {
        0 => u64::MAX,
        count => values[(count - 1) / 2],
    }
}

/// The largest value that a quorum has reached: majorities of both halves when joint.
pub fn quorum_value(membership: &Membership, value_of: impl Fn(NodeId) -> u64 + Copy) -> u64 {
    let incoming = majority_value(&membership.voters, value_of);
    incoming.min(majority_value(&membership.outgoing, value_of))
}

/// Where an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum has granted.
    Won,
    /// No quorum can grant any more.
    Lost,
    /// Not decided.
    Pending,
}

/// Counts votes: `vote_of` tells what a voter has answered, if it has.
pub fn vote_result(
    membership: &Membership,
    vote_of: impl Fn(NodeId) -> Option<bool> + Copy,
) -> VoteResult {
    let granted = |voter| u64::from(vote_of(voter) == Some(true));
    let possible = |voter| u64::from(vote_of(voter) != Some(false));
    if membership.voters.is_empty() {
        VoteResult::Lost
    } else if quorum_value(membership, granted) >= 1 {
        VoteResult::Won
    } else if quorum_value(membership, possible) == 0 {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}
