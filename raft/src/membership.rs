//! Who belongs to a group: voters, learners, and the joint configuration between two sets of
//! voters (thesis §4.3). A membership takes effect when its entry is appended.

use std::fmt;

use crate::crc::crc32c;
use crate::{NodeId, Payload};

/// Version byte of the encoding.
const FORMAT: u8 = 1;
/// Members one list may have.
const LIST_MAX: usize = 1024;

/// The members of a group. Each list is ascending and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// They vote and are counted.
    pub voters: Vec<NodeId>,
    /// The voters before the change under way: not empty only while joint.
    pub outgoing: Vec<NodeId>,
    /// They receive the log and are never counted.
    pub learners: Vec<NodeId>,
    /// Outgoing voters that become learners once the change is complete.
    pub learners_next: Vec<NodeId>,
}

/// The members a group is to have. Voters and learners must not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipChange {
    /// All voters after the change; at least one.
    pub voters: Vec<NodeId>,
    /// All learners after the change.
    pub learners: Vec<NodeId>,
}

/// Why bytes are no membership, or a change is impossible.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidMembership {
    /// There would be no voters.
    NoVoters,
    /// A node is listed twice or in two roles.
    Duplicate(NodeId),
    /// Node 0 is listed.
    NodeZero,
    /// A list is longer than its bound.
    TooLong {
        /// Its length.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// The bytes are cut, too long, or of an unknown version.
    Encoding,
}

impl fmt::Display for InvalidMembership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVoters => write!(f, "a membership needs at least one voter"),
            Self::Duplicate(node) => write!(f, "{node} is listed twice"),
            Self::NodeZero => write!(f, "node 0 cannot be a member"),
            Self::TooLong { count, max } => write!(f, "{count} members in one list, at most {max}"),
            Self::Encoding => write!(f, "the bytes are no membership"),
        }
    }
}

impl std::error::Error for InvalidMembership {}

impl Membership {
    /// A group of these voters.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        let mut voters: Vec<_> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Self { voters, ..Self::default() }
    }

    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether this node votes.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Everybody who receives the log, ascending.
    pub fn members(&self) -> Vec<NodeId> {
        let lists = [&self.voters, &self.outgoing, &self.learners, &self.learners_next];
        let mut members: Vec<_> = lists.into_iter().flatten().copied().collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    /// The next membership on the way to `change`: joint if voters change, else final.
    pub fn enter(&self, change: &MembershipChange) -> Result<Self, InvalidMembership> {
        let target = Self {
            voters: sorted(&change.voters),
            learners: sorted(&change.learners),
            ..Self::default()
        };
        target.check()?;
        if target.voters == self.voters {
            return Ok(target);
        }
        // A voter that becomes a learner still votes in the outgoing half until the end.
        let (learners_next, learners) =
            target.learners.iter().partition(|node| self.voters.contains(node));
        let joint =
            Self { voters: target.voters, outgoing: self.voters.clone(), learners, learners_next };
        joint.check()?;
        Ok(joint)
    }

    /// The final membership of a joint one.
    pub fn leave(&self) -> Self {
        let mut learners = self.learners.clone();
        learners.extend(&self.learners_next);
        Self { voters: self.voters.clone(), learners: sorted(&learners), ..Self::default() }
    }

    /// Bytes for an entry or a snapshot.
    pub fn encode(&self) -> Payload {
        let mut bytes = vec![FORMAT];
        for list in [&self.voters, &self.outgoing, &self.learners, &self.learners_next] {
            let count = u16::try_from(list.len()).expect("check() bounds the lists");
            bytes.extend_from_slice(&count.to_le_bytes());
            for node in list {
                bytes.extend_from_slice(&node.get().to_le_bytes());
            }
        }
        let checksum = crc32c(&bytes);
        Payload::new(bytes, checksum)
    }

    /// Reads what [`Self::encode`] wrote. Any bytes may be given.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidMembership> {
        let [FORMAT, rest @ ..] = bytes else { return Err(InvalidMembership::Encoding) };
        let mut rest = rest;
        let mut membership = Self::default();
        let Self { voters, outgoing, learners, learners_next } = &mut membership;
        for list in [voters, outgoing, learners, learners_next] {
            let (count, after) =
                rest.split_first_chunk::<2>().ok_or(InvalidMembership::Encoding)?;
            rest = after;
            for _ in 0..u16::from_le_bytes(*count) {
                let (node, after) =
                    rest.split_first_chunk::<4>().ok_or(InvalidMembership::Encoding)?;
                rest = after;
                list.push(NodeId::new(u32::from_le_bytes(*node)));
            }
        }
        if !rest.is_empty() {
            return Err(InvalidMembership::Encoding);
        }
        membership.check()?;
        Ok(membership)
    }

    fn check(&self) -> Result<(), InvalidMembership> {
        if self.voters.is_empty() {
            return Err(InvalidMembership::NoVoters);
        }
        for list in [&self.voters, &self.outgoing, &self.learners, &self.learners_next] {
            if list.len() > LIST_MAX {
                return Err(InvalidMembership::TooLong { count: list.len(), max: LIST_MAX });
            }
            if list.contains(&NodeId::new(0)) {
                return Err(InvalidMembership::NodeZero);
            }
            if let Some(pair) = list.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(InvalidMembership::Duplicate(pair[1]));
            }
        }
        let future = self.learners.iter().chain(&self.learners_next);
        match future.copied().find(|node| {
            self.voters.contains(node)
                || (self.learners.contains(node)
                    && (self.learners_next.contains(node) || self.outgoing.contains(node)))
        }) {
            Some(node) => Err(InvalidMembership::Duplicate(node)),
            None => Ok(()),
        }
    }
}

fn sorted(nodes: &[NodeId]) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable();
    nodes
}
