//! The whole cluster in one thread under a seed.
//!
//! Real `raft`, `engine`, `wal` and `net` code on a fake tick, network and disk. One seed gives one
//! run; a run that fails is replayed by its seed.

#![forbid(unsafe_code)]

pub mod checker;
pub mod history;
pub mod invariants;
