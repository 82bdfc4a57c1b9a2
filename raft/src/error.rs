//! Why something was refused.

use std::fmt;

use crate::{InvalidMembership, LogIndex, NodeId};

/// Why a proposal was refused. It was certainly not appended; the caller may retry every variant.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeError {
    /// This replica does not lead; `hint` is the leader it heard from in this term.
    NotLeader {
        /// Whom to ask.
        hint: Option<NodeId>,
    },
    /// Uncommitted bytes reached the limit; back off until some commit.
    TooManyUncommitted {
        /// The limit.
        limit_bytes: usize,
    },
    /// Leadership is being handed over; ask `to` in a moment.
    Transferring {
        /// The next leader.
        to: NodeId,
    },
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { hint: Some(leader) } => write!(f, "not the leader; {leader} is"),
            Self::NotLeader { hint: None } => write!(f, "not the leader; none is known"),
            Self::TooManyUncommitted { limit_bytes } => {
                write!(f, "uncommitted entries reached {limit_bytes} bytes")
            }
            Self::Transferring { to } => write!(f, "leadership is being handed to {to}"),
        }
    }
}

impl std::error::Error for ProposeError {}

/// Why a membership change was refused.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipError {
    /// As for any proposal.
    Propose(ProposeError),
    /// An earlier change has not been applied yet; wait for it.
    InProgress {
        /// Its entry.
        at: LogIndex,
    },
    /// No entry of the leader's own term is committed yet; try again soon (Ongaro, raft-dev 2015).
    NoOwnCommit,
    /// The change makes no sense.
    Invalid(InvalidMembership),
}

impl fmt::Display for MembershipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose(error) => error.fmt(f),
            Self::InProgress { at } => write!(f, "the change at index {at} is not complete"),
            Self::NoOwnCommit => write!(f, "the leader has not committed in its term yet"),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MembershipError {}

/// Why leadership cannot be handed over.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// This replica does not lead.
    NotLeader,
    /// The target is this replica, or not a voter.
    NotAVoter(NodeId),
    /// Another transfer is under way; it ends within an election timeout.
    InProgress {
        /// Its target.
        to: NodeId,
    },
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader => write!(f, "not the leader"),
            Self::NotAVoter(node) => write!(f, "{node} is not another voter of this group"),
            Self::InProgress { to } => write!(f, "leadership is already being handed to {to}"),
        }
    }
}

impl std::error::Error for TransferError {}
