//! Raft consensus for one group, as a pure state machine.
//!
//! In: the methods of [`Raft`] (a tick, a peer message, a proposal, an I/O completion).
//! Out: [`Ready`], filled by [`Raft::drain`].
//! No sockets, files, clocks, threads or global randomness: same seed and inputs, same outputs.
//!
//! Driver contract: do everything in a [`Ready`] at once and in any order. What must wait for
//! the disk (votes, append acknowledgements, the leader counting itself) is held back here and
//! released by [`Raft::persisted`].
//!
//! Not here: keys and slots (`engine`), bytes on disk (`wal`), bytes on the wire (`net`).

#![forbid(unsafe_code)]

mod config;
mod crc;
mod election;
mod error;
mod invariants;
mod loads;
mod log;
mod membership;
mod message;
mod planted;
mod progress;
mod quorum;
mod raft;
mod read;
mod ready;
mod record;
mod replication;
mod rng;
mod snapshot;
mod types;

pub use config::{Config, ConfigError, ReadPolicy};
pub use error::{MembershipError, ProposeError, TransferError};
pub use membership::{InvalidMembership, Membership, MembershipChange};
pub use message::{AppendOutcome, Body, Message};
#[cfg(feature = "planted")]
pub use planted::plant;
pub use planted::{Bug, planted};
pub use progress::{Progress, SendState};
pub use quorum::{VoteResult, majority_value, quorum_value, vote_result};
pub use raft::{Raft, Recovered, Role};
pub use ready::{LoadRange, ReadState, Ready, SnapshotAck, SnapshotPiece};
pub use record::{Place, Record};
pub use types::{
    BatchSeq, Drain, Entry, EntryKind, GroupId, HardState, LogIndex, LogPosition, NodeId, Payload,
    Term,
};
