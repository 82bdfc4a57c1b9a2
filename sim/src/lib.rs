//! The whole cluster in one thread under a seed.
//!
//! Real `raft`, `engine`, `wal` and `net` code on a fake tick, network and disk. One seed gives one
//! run; a run that fails is replayed by its seed. See `docs/testing.md`.

#![forbid(unsafe_code)]

mod calm;
pub mod checker;
mod client;
mod delivery;
mod disk;
mod faults;
mod handshake;
pub mod history;
mod host;
pub mod invariants;
mod io;
mod lifecycle;
mod lonely;
mod lost_entries;
mod network;
pub mod plan;
mod queue;
pub mod report;
mod rng;
pub mod run;
mod spoil;
mod storage;
mod stray;
pub mod trace;
mod traffic;
mod values;
mod whole;
mod world;

pub use queue::Micros;
