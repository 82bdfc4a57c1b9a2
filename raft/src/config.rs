//! Timing and bounds of one replica.

use std::fmt;

use crate::NodeId;

/// How a leader makes sure it still leads before a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadPolicy {
    /// By echoes of a quorum sent after the read arrived (thesis §6.4). Needs no clock.
    Quorum,
    /// By a lease: echoes of a quorum to a round sent less than an election timeout ago
    /// (thesis §6.4.1). Correct only while clocks of all replicas run alike within the bound.
    Lease {
        /// Ticks taken off the lease for clocks that run apart.
        drift_ticks: u32,
    },
}

/// Timing and bounds of one replica.
#[derive(Clone, Debug)]
pub struct Config {
    /// This replica's node.
    pub id: NodeId,
    /// Shortest election timeout; each is drawn from `n..2n`. Default: 20. Range: 2..=100000.
    pub election_timeout_ticks: u32,
    /// Ticks between heartbeats. Default: 4. Range: 1..election_timeout_ticks.
    pub heartbeat_ticks: u32,
    /// Payload bytes of one `Append`; a single larger entry still goes. Default: 1 MiB.
    pub append_bytes_max: usize,
    /// Entries of one `Append`. Default: 1024.
    pub append_entries_max: usize,
    /// Unacknowledged bytes per follower. Default: 8 MiB.
    pub inflight_bytes_max: usize,
    /// Unacknowledged messages per follower. Default: 128.
    pub inflight_messages_max: usize,
    /// Bytes proposed and not committed; beyond it proposals are refused. Default: 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of applied entries kept in memory for followers that lag. Default: 8 MiB.
    pub cache_bytes_max: usize,
    /// Read indexes under way; beyond it they are refused. Default: 65536.
    pub reads_max: usize,
    /// How reads are confirmed. Default: by quorum.
    pub read: ReadPolicy,
    /// Spreads election timeouts.
    pub seed: u64,
}

impl Config {
    /// The defaults for a node.
    pub const fn new(id: NodeId, seed: u64) -> Self {
        Self {
            id,
            election_timeout_ticks: 20,
            heartbeat_ticks: 4,
            append_bytes_max: 1 << 20,
            append_entries_max: 1024,
            inflight_bytes_max: 8 << 20,
            inflight_messages_max: 128,
            uncommitted_bytes_max: 64 << 20,
            cache_bytes_max: 8 << 20,
            reads_max: 1 << 16,
            read: ReadPolicy::Quorum,
            seed,
        }
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |what, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError { what, value, min, max })
            }
        };
        let election = u64::from(self.election_timeout_ticks);
        let most = u64::from(u32::MAX);
        refuse("id", u64::from(self.id.get()), 1, most)?;
        refuse("election_timeout_ticks", election, 2, 100_000)?;
        refuse("heartbeat_ticks", u64::from(self.heartbeat_ticks), 1, election - 1)?;
        if let ReadPolicy::Lease { drift_ticks } = self.read {
            refuse("drift_ticks", u64::from(drift_ticks), 0, election - 1)?;
        }
        let bounds = [
            ("append_bytes_max", self.append_bytes_max),
            ("append_entries_max", self.append_entries_max),
            ("inflight_bytes_max", self.inflight_bytes_max),
            ("inflight_messages_max", self.inflight_messages_max),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
            ("reads_max", self.reads_max),
        ];
        bounds.into_iter().try_for_each(|(what, value)| refuse(what, value as u64, 1, u64::MAX))
    }
}

/// A value outside its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Which value.
    pub what: &'static str,
    /// What was given.
    pub value: u64,
    /// Smallest legal value.
    pub min: u64,
    /// Largest legal value.
    pub max: u64,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, min, max } = self;
        write!(f, "{what} is {value}, but must be from {min} to {max}")
    }
}

impl std::error::Error for ConfigError {}
