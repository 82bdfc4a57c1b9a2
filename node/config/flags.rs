//! The flags of `coracle node`, each with a twin in the environment.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::LogFormat;
use super::file::FileNode;
use super::size::ByteSize;

/// Settings from the command line or from the environment. Without a value here, the
/// configuration file decides, then the default.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Flags {
    /// Configuration file (TOML)
    #[arg(long, env = "CORACLE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This node's number in the cluster, from 1
    #[arg(long, env = "CORACLE_ID", value_name = "N")]
    pub(super) id: Option<u32>,
    /// Name of the cluster; nodes of different clusters refuse each other
    #[arg(long, env = "CORACLE_CLUSTER", value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Directory for everything the node writes
    #[arg(long, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// CPUs to run on, one engine core each: 0,1 or 0-3
    #[arg(long, env = "CORACLE_CORES", value_name = "LIST")]
    pub(super) cores: Option<CpuList>,
    /// Number of shards of the cluster; fixed at the first start
    #[arg(long, env = "CORACLE_SHARDS", value_name = "N")]
    pub(super) shards: Option<u16>,
    /// Number of Raft groups of the cluster; fixed at the first start
    #[arg(long, env = "CORACLE_GROUPS", value_name = "N")]
    pub(super) groups: Option<u32>,
    /// Address to listen on; repeat or separate by commas
    #[arg(long, env = "CORACLE_BIND", value_name = "IP", value_delimiter = ',')]
    pub(super) bind: Option<Vec<IpAddr>>,
    /// A node of the cluster: 1=127.0.0.1:7001/7101/7201 (number, host, plain port, first core
    /// port, first peer port); repeat for each node
    #[arg(long = "node", env = "CORACLE_NODES", value_name = "NODE", value_delimiter = ',')]
    pub(super) nodes: Option<Vec<NodeFlag>>,
    /// File that holds the client password
    #[arg(long, env = "CORACLE_REQUIREPASS_FILE", value_name = "FILE")]
    pub(super) requirepass_file: Option<PathBuf>,
    /// Listen on other than loopback addresses without a password (insecure)
    #[arg(
        long,
        env = "CORACLE_ALLOW_INSECURE",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true
    )]
    pub(super) allow_insecure: Option<bool>,
    /// Most client connections at once
    #[arg(long, env = "CORACLE_MAXCLIENTS", value_name = "N")]
    pub(super) maxclients: Option<u32>,
    /// Seconds after which an idle client is closed; 0: never
    #[arg(long, env = "CORACLE_TIMEOUT", value_name = "SECONDS")]
    pub(super) timeout: Option<u32>,
    /// Memory budget of the node for keys and the value cache, for example 4GiB
    #[arg(long, env = "CORACLE_MAXMEMORY", value_name = "SIZE")]
    pub(super) maxmemory: Option<ByteSize>,
    /// Part of the memory budget for values that were read from the log
    /// [default: a quarter of maxmemory]
    #[arg(long, env = "CORACLE_VALUE_CACHE", value_name = "SIZE")]
    pub(super) value_cache: Option<ByteSize>,
    /// Memory to touch before serving, so that first writes do not wait for the system to hand it
    /// out; 0 for none
    #[arg(long, env = "CORACLE_PREFAULT", value_name = "SIZE")]
    pub(super) prefault: Option<ByteSize>,
    /// Disk budget of the node, at least twelve segments per core: writes that add data are refused
    /// before it is reached; 0 for as much as the file system has
    #[arg(long, env = "CORACLE_MAXDISK", value_name = "SIZE")]
    pub(super) maxdisk: Option<ByteSize>,
    /// Log level, also per component: info,raft=debug
    #[arg(long, env = "CORACLE_LOG", value_name = "LEVELS")]
    pub(super) log: Option<String>,
    /// Form of log lines
    #[arg(long, env = "CORACLE_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
    /// Size of one log segment, from 10MiB to 1GiB
    #[arg(long, env = "CORACLE_WAL_SEGMENT_SIZE", value_name = "SIZE")]
    pub(super) wal_segment_size: Option<ByteSize>,
    /// Whether the log bypasses the page cache
    #[arg(long, env = "CORACLE_WAL_DIRECT_IO", value_name = "BOOL")]
    pub(super) wal_direct_io: Option<bool>,
    /// Size near which the log of each core is kept, at least four segments; more if the values in
    /// use need it
    #[arg(long, env = "CORACLE_WAL_MAX_SIZE", value_name = "SIZE")]
    pub(super) wal_max_size: Option<ByteSize>,
    /// Bytes appended to the log of a core between two checkpoints of its index; more if the index
    /// is large [default: 256MiB]
    #[arg(long, env = "CORACLE_CHECKPOINT_BYTES", value_name = "SIZE")]
    pub(super) checkpoint_bytes: Option<ByteSize>,
    /// Longest time in seconds between two checkpoints if anything is written [default: 300]
    #[arg(long, env = "CORACLE_CHECKPOINT_PERIOD", value_name = "SECONDS")]
    pub(super) checkpoint_period: Option<u32>,
    /// Length of a tick in milliseconds
    #[arg(long, env = "CORACLE_RAFT_TICK_MS", value_name = "MS")]
    pub(super) raft_tick_ms: Option<u32>,
    /// Shortest election timeout in ticks; the longest is twice that
    #[arg(long, env = "CORACLE_RAFT_ELECTION_TICKS", value_name = "N")]
    pub(super) raft_election_ticks: Option<u32>,
    /// Ticks between heartbeats
    #[arg(long, env = "CORACLE_RAFT_HEARTBEAT_TICKS", value_name = "N")]
    pub(super) raft_heartbeat_ticks: Option<u32>,
    /// Seconds between two comparisons of what the replicas of a group hold; 0: never
    /// [default: 60]
    #[arg(long, env = "CORACLE_RAFT_CHECK_INTERVAL", value_name = "SECONDS")]
    pub(super) raft_check_interval: Option<u32>,
}

/// CPU numbers written as `0,2-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuList(pub(crate) Vec<u16>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim()
                .parse::<u16>()
                .map_err(|_| format!("'{text}' is not a list of CPUs; write 0,1 or 0-3"))
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cpus.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("the range {first}-{last} is reversed"));
                    }
                    cpus.extend(first..=last);
                }
            }
        }
        Ok(Self(cpus))
    }
}

/// A node written as `1=127.0.0.1:7001/7101/7201`.
#[derive(Clone, Debug)]
pub(crate) struct NodeFlag(pub(super) FileNode);

impl FromStr for NodeFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_node(text).map(Self).ok_or_else(|| {
            format!(
                "'{text}' is not a node; write NUMBER=HOST:PORT/CORE_PORT/PEER_PORT, for \
                 example 1=127.0.0.1:7001/7101/7201"
            )
        })
    }
}

fn parse_node(text: &str) -> Option<FileNode> {
    let (id, rest) = text.trim().split_once('=')?;
    let (host, ports) = rest.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let mut ports = ports.split('/').map(|port| port.parse::<u16>().ok());
    let node = FileNode {
        id: id.parse().ok()?,
        host: host.to_owned(),
        port: ports.next()??,
        core_port: ports.next()??,
        peer_port: ports.next()??,
    };
    (ports.next().is_none() && !node.host.is_empty()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists and ranges of CPUs, and what is neither.
    #[test]
    fn cpu_lists_parse() {
        let cases: &[(&str, &[u16])] = &[("0", &[0]), ("0,1", &[0, 1]), ("0-2,5", &[0, 1, 2, 5])];
        for &(text, cpus) in cases {
            assert_eq!(text.parse(), Ok(CpuList(cpus.to_vec())), "{text}");
        }
        for bad in ["", "a", "3-1", "0,", "-1"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    /// Nodes with names, IPv4 and IPv6 addresses, and what is none.
    #[test]
    fn nodes_parse() {
        let cases: &[(&str, u32, &str, [u16; 3])] = &[
            ("1=127.0.0.1:7001/7101/7201", 1, "127.0.0.1", [7001, 7101, 7201]),
            ("12=db.example:1/2/3", 12, "db.example", [1, 2, 3]),
            ("2=[::1]:1/2/3", 2, "::1", [1, 2, 3]),
        ];
        for &(text, id, host, ports) in cases {
            let NodeFlag(node) = text.parse().expect(text);
            assert_eq!((node.id, node.host.as_str()), (id, host), "{text}");
            assert_eq!([node.port, node.core_port, node.peer_port], ports, "{text}");
        }
        for bad in ["", "1", "1=h", "1=h:1", "1=h:1/2", "1=h:1/2/3/4", "x=h:1/2/3", "1=:1/2/3"] {
            assert!(bad.parse::<NodeFlag>().is_err(), "{bad}");
        }
    }
}
