//! A running node: start-up, one hot loop and one background executor per core, shutdown.
//!
//! The data path in the order bytes take: `clients` → `connection` → (`engine`) → `storage`,
//! `peers`. `hot_loop` drives them; `session`, `node_commands`, `cluster_view` and `info` answer
//! what concerns the node rather than the data.

mod background;
mod backoff;
mod client_memory;
mod clients;
mod cluster_view;
mod connection;
mod digests;
mod handshake;
mod hot_loop;
mod info;
mod keys;
mod mailbox;
mod node_commands;
mod pace;
mod peers;
mod recover;
mod segments;
mod session;
mod shared;
mod start;
mod stop;
mod storage;
mod surveys;
mod watch;

pub(crate) use start::run;
pub(crate) use storage::storage_error;

use std::time::{SystemTime, UNIX_EPOCH};

use coracle_engine::WallMillis;

/// Wall time; a clock before 1970 counts as 0.
fn wall() -> WallMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMillis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
