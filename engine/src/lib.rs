//! One core's brain, pure: many Raft groups, the key-value state machine, routing, admission.
//!
//! In: [`Input`], one event at a time. Out: [`Effects`], drained once per turn.
//! No sockets, files, clocks, threads or global randomness: same seed and inputs, same outputs.
//!
//! Driver contract: everything in an [`Effects`] may be executed at once and in any order; every
//! ordering decision has been made inside.
//!
//! Not here: consensus of one group (`raft`), bytes on disk (`wal`), bytes on the wire (`net`).

#![forbid(unsafe_code)]

mod apply;
mod applying;
mod balance;
mod cache;
mod checking;
mod checkpoint;
mod cold;
pub mod command;
mod config;
mod core;
mod divergence;
mod expiry;
mod forward;
mod gc;
mod glob;
mod group;
mod ids;
mod io;
mod keyspace;
mod located;
mod lost;
mod map;
mod moved;
pub mod offline;
mod pace;
mod pipeline;
mod places;
mod reads;
mod recovery;
mod refetch;
mod repair;
mod reply;
mod route;
mod scan;
mod snapshot;
mod space;
mod stall;
mod stats;
mod store;
mod task;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod view;

pub use checking::GroupDigest;
pub use config::{ConfigError, CoreConfig};
pub use coracle_raft::Drain;
pub use core::Core;
pub use divergence::{Divergence, Standing};
pub use ids::{CoreAddr, CoreId, SLOT_COUNT, ShardId, SlotId, WallMillis};
pub use io::{
    CheckpointWork, Effects, EntriesAnswer, EntriesWanted, Forward, Input, Load, PeerMessage,
    ReadMode, ReadValue, RepairNews, Request, ScanSegment, Token, ValueAnswer, ValueWanted, Via,
};
pub use map::{ClusterMap, MapError, NodeInfo};
pub use pipeline::{Order, Unanswered};
pub use recovery::Recovery;
pub use reply::{Reply, Slice};
pub use space::{DiskSpace, SpaceGauge};
pub use stats::{CoreStats, GroupStatus};
pub use task::not_sent;
