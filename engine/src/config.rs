//! Settings of one core.

use std::fmt;

use coracle_raft::ReadPolicy;

use crate::{ClusterMap, CoreAddr};

/// Settings of one core. Ticks are of whatever length the driver chooses; the defaults are made
/// for 50 ms.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Which core of which node this is.
    pub addr: CoreAddr,
    /// The layout of the cluster.
    pub map: ClusterMap,
    /// Seed of everything random here; should differ between starts of the same core.
    pub seed: u64,
    /// Bytes of keys, values and indexes from which commands that add data are refused.
    /// Default: unlimited.
    pub memory_budget_bytes: usize,
    /// Bytes of proposals, and separately of forwarded and of parked commands, that may wait at
    /// once. Default: 64 MiB.
    pub inflight_bytes_max: usize,
    /// Reads that may wait at once. Default: 262144.
    pub reads_max: usize,
    /// Commands without a known leader that may wait at once. Default: 4096.
    pub parked_max: usize,
    /// How long a command may wait for its outcome. Default: 100.
    pub forward_timeout_ticks: u32,
    /// See [`coracle_raft::Config`]. Default: 20.
    pub election_timeout_ticks: u32,
    /// See [`coracle_raft::Config`]. Default: 4.
    pub heartbeat_ticks: u32,
    /// Applied entries kept in memory, over all groups of the core; followers that lag further
    /// behind are served from disk. Default: 32 MiB.
    pub cache_bytes_max: usize,
    /// Records kept in memory once their values were read from the log; 0: every value that is not
    /// in the index is read from there. Default: 256 MiB.
    pub value_cache_bytes_max: usize,
    /// Values computed by commands (`APPEND`, `SETRANGE`) that may be in memory only; beyond this
    /// they are written to the log. Default: 8 MiB.
    pub computed_bytes_max: usize,
    /// How reads are confirmed. Default: by a quorum.
    pub read: ReadPolicy,
    /// How often all cores are told which groups are led here. Default: 20.
    pub leads_interval_ticks: u32,
    /// How long a group's preferred leader must have been caught up before leadership is handed
    /// to it; 0: never. Default: 200.
    pub balance_after_ticks: u32,
    /// How often the leader of a group has its replicas compare what they hold; 0: never.
    /// Default: 1200.
    pub check_interval_ticks: u32,
}

/// Why settings are refused.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The node or core of `addr` is not in the layout.
    NotInMap {
        /// The address.
        addr: CoreAddr,
    },
    /// A number is too small.
    TooSmall {
        /// Which setting.
        what: &'static str,
        /// What was given.
        value: u64,
        /// Smallest legal value.
        min: u64,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInMap { addr } => write!(f, "core {addr} is not in the cluster's layout"),
            Self::TooSmall { what, value, min } => {
                write!(f, "{what} is {value}, but must be at least {min}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl CoreConfig {
    /// Settings with their defaults.
    pub fn new(addr: CoreAddr, map: ClusterMap) -> Self {
        Self {
            addr,
            map,
            seed: 1,
            memory_budget_bytes: usize::MAX,
            inflight_bytes_max: 64 << 20,
            reads_max: 262_144,
            parked_max: 4096,
            forward_timeout_ticks: 100,
            election_timeout_ticks: 20,
            heartbeat_ticks: 4,
            cache_bytes_max: 32 << 20,
            value_cache_bytes_max: 256 << 20,
            computed_bytes_max: 8 << 20,
            read: ReadPolicy::Quorum,
            leads_interval_ticks: 20,
            balance_after_ticks: 200,
            check_interval_ticks: 1200,
        }
    }

    /// Checks the settings against each other and the layout.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let known = self.map.node(self.addr.node).is_some();
        if !known || self.addr.core.0 >= self.map.core_count() {
            return Err(ConfigError::NotInMap { addr: self.addr });
        }
        let at_least = |what, value: u64, min: u64| {
            if value < min { Err(ConfigError::TooSmall { what, value, min }) } else { Ok(()) }
        };
        // One command of the largest size must fit, or it could never be executed.
        let largest = crate::command::COMMAND_BYTES_MAX as u64 + 4096;
        at_least("inflight_bytes_max", self.inflight_bytes_max as u64, largest)?;
        at_least("forward_timeout_ticks", u64::from(self.forward_timeout_ticks), 1)?;
        at_least("heartbeat_ticks", u64::from(self.heartbeat_ticks), 1)?;
        let slower = u64::from(self.heartbeat_ticks) + 1;
        at_least("election_timeout_ticks", u64::from(self.election_timeout_ticks), slower)?;
        at_least("leads_interval_ticks", u64::from(self.leads_interval_ticks), 1)
    }
}
