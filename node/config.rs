//! The effective configuration of a node: flags, then environment, then file, then default.
//!
//! In: [`Flags`], the environment, a TOML file. Out: a validated [`Config`] that remembers where
//! each value came from. No other module parses files or flags of the server.

mod file;
mod flags;
mod resolve;
mod size;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use coracle_engine::command::COMMAND_BYTES_MAX;
use coracle_engine::{ClusterMap, NodeInfo};
use coracle_raft::NodeId;
use coracle_wal::{Identity, Options};
use serde::Deserialize;

use crate::fatal::Fatal;
use crate::password::Password;

use file::File;
pub(crate) use file::closest;
pub(crate) use flags::{CpuList, Flags};
use resolve::resolve;
pub(crate) use size::ByteSize;

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A command-line flag.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File,
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        })
    }
}

/// One value as `check-config` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its key in the file, with the table's name: `wal.segment_size`.
    pub(crate) key: &'static str,
    /// The value in the notation of the file.
    pub(crate) value: String,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// The write-ahead log of each core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WalConfig {
    /// Size of one segment file. Default: 64 MiB. Range: 10 MiB..=1 GiB, a multiple of 4096: the
    /// largest command must fit.
    pub(crate) segment_bytes: u64,
    /// Whether the page cache is bypassed (`O_DIRECT`). Default: true.
    pub(crate) direct_io: bool,
    /// Size near which the log of each core is kept by moving values out of old segments, or twice
    /// the values in use and two intervals between checkpoints if that is more. Default: 1 GiB. At
    /// least four segments.
    pub(crate) bytes_max: u64,
}

/// When the index of each core is written out, so that a restart need not read the whole log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointConfig {
    /// Bytes appended to the log between two checkpoints, or ten times the length of the newest
    /// checkpoint file if that is more. A start reads up to two and a quarter times as much.
    /// Default: 256 MiB. At least 1 MiB.
    pub(crate) bytes: u64,
    /// Longest time between two checkpoints if anything is appended. Default: 300 s. Range:
    /// 1..=86400 s.
    pub(crate) period: Duration,
}

impl WalConfig {
    /// Largest segment file.
    const SEGMENT_BYTES_MAX: u64 = 1 << 30;

    /// Layout of a log with these settings; `identity` says whose.
    pub(crate) fn options(&self, identity: Identity) -> Options {
        Options { identity, segment_bytes: self.segment_bytes, ..Options::default() }
    }

    /// Whether segments of `segment_bytes` take the largest command.
    fn takes_commands(segment_bytes: u64) -> bool {
        let options = Options { segment_bytes, ..Options::default() };
        options.validate().is_ok() && options.payload_bytes_max() >= COMMAND_BYTES_MAX
    }

    fn validate_segment_size(&self) -> Result<(), Fatal> {
        let size = self.segment_bytes;
        if size > Self::SEGMENT_BYTES_MAX || !Self::takes_commands(size) {
            let mut sizes = (1..).map(|mebibytes| mebibytes << 20);
            let min = sizes.find(|&size| Self::takes_commands(size)).expect("large ones do");
            let (min, max) = (ByteSize(min), ByteSize(Self::SEGMENT_BYTES_MAX));
            let (size, largest) = (ByteSize(size), ByteSize(COMMAND_BYTES_MAX as u64));
            return Err(Fatal::usage(
                "wal.segment_size is impossible",
                format!(
                    "it is {size}, but must be a multiple of 4096 bytes from {min} to {max}: a \
                     segment must take the largest command, which is {largest}"
                ),
                "set wal.segment_size (--wal-segment-size) to a size in this range",
            ));
        }
        Ok(())
    }
}

/// Timing of elections, and of the comparison of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RaftConfig {
    /// Length of a tick. Default: 25. Range: 5..=1000.
    pub(crate) tick_ms: u32,
    /// Shortest election timeout; the longest is twice that. Default: 20. Range: 4..=10000.
    pub(crate) election_ticks: u32,
    /// Ticks between heartbeats. Default: 4. Less than half of `election_ticks`.
    pub(crate) heartbeat_ticks: u32,
    /// Seconds between two comparisons of what the replicas of a group hold; 0: never.
    /// Default: 60. Range: 0..=86400.
    pub(crate) check_seconds: u32,
}

impl RaftConfig {
    /// The same in ticks.
    pub(crate) fn check_ticks(self) -> u32 {
        let ticks = u64::from(self.check_seconds) * 1000 / u64::from(self.tick_ms);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }
}

/// Everything a node needs to know to start.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// This node's number.
    pub(crate) id: NodeId,
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// Directory for everything the node writes.
    pub(crate) data_dir: PathBuf,
    /// The CPU of each engine core; core `i` is pinned to the `i`-th.
    pub(crate) cores: Vec<u16>,
    /// Addresses to listen on. Default: 127.0.0.1.
    pub(crate) bind: Vec<IpAddr>,
    /// The client password, if there is one.
    pub(crate) password: Option<Password>,
    /// Whether other than loopback addresses may be used without a password. Default: false.
    pub(crate) allow_insecure: bool,
    /// Most client connections at once. Default: 10000. Range: 1..=1000000.
    pub(crate) maxclients: u32,
    /// Seconds after which an idle client is closed, 0 for never. Default: 0. Range: 0..=31536000.
    pub(crate) timeout_seconds: u32,
    /// Memory budget of the node, split over its cores. Default: 1 GiB per core. At least
    /// 64 MiB per core.
    pub(crate) maxmemory_bytes: u64,
    /// Part of the memory budget for values that were read from the log, split over the cores.
    /// Default: a quarter of `maxmemory_bytes`. At most half of it.
    pub(crate) value_cache_bytes: u64,
    /// Memory of the node that is touched before it serves, split over its cores. Default: 0. At
    /// most `maxmemory_bytes`.
    pub(crate) prefault_bytes: u64,
    /// Bytes of disk of the node, split over its cores. Default: 0, what the file system has. At
    /// least twelve segments per core.
    pub(crate) maxdisk_bytes: u64,
    /// Log levels. Default: `info`.
    pub(crate) log: String,
    /// Form of log lines. Default: text.
    pub(crate) log_format: LogFormat,
    /// The write-ahead log.
    pub(crate) wal: WalConfig,
    /// Checkpoints of the index.
    pub(crate) checkpoint: CheckpointConfig,
    /// Timing of elections.
    pub(crate) raft: RaftConfig,
    /// Nodes, shards, groups, cores and who holds what.
    pub(crate) map: ClusterMap,
    /// Each value with its origin, in the order of the reference page.
    pub(crate) settings: Vec<Setting>,
}

impl Config {
    /// Reads the file named in `flags` and joins all sources. `from_environment` tells of a
    /// flag's name whether its value came from the environment; `environment` reads a variable.
    pub(crate) fn load(
        flags: Flags,
        from_environment: &dyn Fn(&str) -> bool,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Fatal> {
        let file = match &flags.config {
            Some(path) => file::read(path)?,
            None => File::default(),
        };
        resolve(flags, file, from_environment, environment)
    }

    /// A stable 128-bit number made from the cluster's name.
    pub(crate) fn cluster_id(&self) -> u128 {
        stable_hash(&[self.cluster.as_bytes()])
    }

    /// A stable 128-bit number of one node of this cluster, made from its number.
    pub(crate) fn node_uuid(&self, node: NodeId) -> u128 {
        stable_hash(&[&self.cluster_id().to_le_bytes(), &node.get().to_le_bytes()])
    }

    /// This node's entry in the map.
    pub(crate) fn me(&self) -> &NodeInfo {
        self.map.node(self.id).expect("validate() found this node in the list")
    }

    /// The address of one of this node's cores.
    #[cfg(test)]
    pub(crate) fn core_addr(&self, core: u16) -> coracle_engine::CoreAddr {
        coracle_engine::CoreAddr { node: self.id, core: coracle_engine::CoreId(core) }
    }

    /// Memory budget of one core.
    pub(crate) fn memory_per_core_bytes(&self) -> u64 {
        self.maxmemory_bytes / u64::from(self.map.core_count())
    }

    /// What the clients of one core may hold in commands and replies under way.
    pub(crate) fn client_memory_per_core_bytes(&self) -> usize {
        /// Enough for a few of the longest commands at once.
        const LEAST: u64 = 64 << 20;
        let bytes = LEAST.max(self.memory_per_core_bytes() / 8);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Value cache of one core.
    pub(crate) fn value_cache_per_core_bytes(&self) -> u64 {
        self.value_cache_bytes / u64::from(self.map.core_count())
    }

    /// Every TCP address this node listens on, with what for.
    pub(crate) fn listen_addresses(&self) -> Vec<(SocketAddr, &'static str)> {
        let me = self.me();
        let cores = self.map.core_count();
        let ports = std::iter::once((me.plain_port, "clients (plain)"))
            .chain((0..cores).map(|i| (me.core_port + i, "clients of one core")))
            .chain((0..cores).map(|i| (me.peer_port + i, "peers")));
        ports
            .flat_map(|(port, what)| {
                self.bind.iter().map(move |&ip| (SocketAddr::new(ip, port), what))
            })
            .collect()
    }

    /// The effective values as a table, one per line, each with its origin.
    pub(crate) fn describe(&self) -> String {
        let width = self.settings.iter().map(|s| s.key.len()).max().unwrap_or(0);
        self.settings
            .iter()
            .map(|s| format!("{:width$} = {}  # {}\n", s.key, s.value, s.origin))
            .collect()
    }

    fn validate(&self) -> Result<(), Fatal> {
        if self.map.node(self.id).is_none() {
            let known: Vec<_> = self.map.nodes().iter().map(|n| n.id.get().to_string()).collect();
            return Err(Fatal::usage(
                "this node is not in the list of nodes",
                format!("id is {}, the list has {}", self.id.get(), known.join(", ")),
                "correct `id` (--id) or add the node to [[nodes]] (--node)",
            ));
        }
        self.validate_ports()?;
        self.validate_ranges()?;
        self.validate_exposure()
    }

    fn validate_ranges(&self) -> Result<(), Fatal> {
        let cores = u64::from(self.map.core_count());
        let raft = self.raft;
        in_range("maxclients", u64::from(self.maxclients), 1, 1_000_000)?;
        in_range("timeout", u64::from(self.timeout_seconds), 0, 31_536_000)?;
        in_range("maxmemory", self.maxmemory_bytes, cores * (64 << 20), 1 << 50)?;
        let cache = "value_cache (at most half of maxmemory)";
        in_range(cache, self.value_cache_bytes, 0, self.maxmemory_bytes / 2)?;
        in_range("prefault (at most maxmemory)", self.prefault_bytes, 0, self.maxmemory_bytes)?;
        self.wal.validate_segment_size()?;
        in_range("wal.max_size", self.wal.bytes_max, 4 * self.wal.segment_bytes, 1 << 50)?;
        if self.maxdisk_bytes > 0 {
            let min = 12 * cores * self.wal.segment_bytes;
            let maxdisk = "maxdisk (twelve segments per core, or 0)";
            in_range(maxdisk, self.maxdisk_bytes, min, 1 << 50)?;
        }
        in_range("checkpoint.bytes", self.checkpoint.bytes, 1 << 20, 1 << 50)?;
        in_range("checkpoint.period", self.checkpoint.period.as_secs(), 1, 86_400)?;
        in_range("raft.tick_ms", u64::from(raft.tick_ms), 5, 1000)?;
        in_range("raft.election_ticks", u64::from(raft.election_ticks), 4, 10_000)?;
        in_range("raft.check_interval", u64::from(raft.check_seconds), 0, 86_400)?;
        let heartbeat_max = u64::from((raft.election_ticks - 1) / 2).max(1);
        let heartbeat = "raft.heartbeat_ticks (less than half of raft.election_ticks)";
        in_range(heartbeat, u64::from(raft.heartbeat_ticks), 1, heartbeat_max)?;
        Ok(())
    }

    /// Ports of one node must not run into each other or past 65535.
    fn validate_ports(&self) -> Result<(), Fatal> {
        let cores = self.map.core_count();
        let mut used: Vec<(&str, u32, u32, String)> = Vec::new();
        for node in self.map.nodes() {
            let blocks = [
                ("port", node.plain_port, 1),
                ("core_port", node.core_port, cores),
                ("peer_port", node.peer_port, cores),
            ];
            for (what, first, count) in blocks {
                let name = format!("{what} of node {}", node.id.get());
                let (first, end) = (u32::from(first), u32::from(first) + u32::from(count));
                if first == 0 || end > 65536 {
                    return Err(Fatal::usage(
                        format!("{name} is impossible"),
                        format!("it needs ports {first} to {}, but ports are 1 to 65535", end - 1),
                        "choose another port",
                    ));
                }
                let clash = used.iter().find(|u| u.0 == node.host && u.1 < end && first < u.2);
                if let Some((host, _, _, other)) = clash {
                    return Err(Fatal::usage(
                        format!("{name} and {other} overlap on {host}"),
                        format!("{what} takes one port per core: {first} to {}", end - 1),
                        "choose ports further apart",
                    ));
                }
                used.push((&node.host, first, end, name));
            }
        }
        Ok(())
    }

    fn validate_exposure(&self) -> Result<(), Fatal> {
        let open = self.bind.iter().find(|ip| !ip.is_loopback());
        match open {
            Some(ip) if self.password.is_none() && !self.allow_insecure => Err(Fatal::usage(
                format!("refusing to listen on {ip} without a password"),
                "anybody who reaches this address could read and change everything",
                "set requirepass_file (or CORACLE_REQUIREPASS), or bind 127.0.0.1, or set \
                 allow_insecure = true",
            )),
            _ => Ok(()),
        }
    }
}

fn in_range(what: &str, value: u64, min: u64, max: u64) -> Result<(), Fatal> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Fatal::usage(
        format!("{what} is out of range"),
        format!("it is {value}, but must be from {min} to {max}"),
        "correct the flag, the environment variable or the line of the file that sets it",
    ))
}

/// The first line of a password file that nobody else may read.
pub(crate) fn read_password(path: &Path) -> Result<Vec<u8>, Fatal> {
    let what = || format!("cannot use the password file {}", path.display());
    let fix = "make a file that only the user of the node may read, with the password in its first \
               line, and name it in requirepass_file (--requirepass-file)";
    let unreadable = |error: std::io::Error| Fatal::usage(what(), error.to_string(), fix);
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Fatal::usage(
            what(),
            format!("its mode is {:o}: others may read it", mode & 0o777),
            format!("chmod 600 {}", path.display()),
        ));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    Ok(bytes.split(|&byte| byte == b'\n' || byte == b'\r').next().unwrap_or_default().to_vec())
}

/// FNV-1a over 128 bits, each part preceded by its length. Never changes: cluster and node ids
/// come from it, and clients remember those.
fn stable_hash(parts: &[&[u8]]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        let length = (part.len() as u64).to_le_bytes();
        for &byte in length.iter().chain(part.iter()) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    hash
}

/// A configuration from the flags of a command line, for tests.
#[cfg(test)]
pub(crate) fn test_config(flags: &str) -> Config {
    use clap::{Args, FromArgMatches};
    let command = Flags::augment_args(clap::Command::new("t").no_binary_name(true));
    let matches = command.try_get_matches_from(flags.split_whitespace()).expect(flags);
    let flags = Flags::from_arg_matches(&matches).expect("the same arguments");
    Config::load(flags, &|_| false, &|_| None).expect("valid flags")
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
