//! Joins flags, environment, file and defaults into one configuration.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use coracle_engine::{ClusterMap, NodeInfo};
use coracle_raft::NodeId;

use super::file::{File, FileNode};
use super::{
    ByteSize, CheckpointConfig, Config, Flags, LogFormat, Origin, RaftConfig, Setting, WalConfig,
    in_range, read_password,
};
use crate::fatal::Fatal;
use crate::password::Password;

/// Joins the sources value by value.
struct Resolver<'a> {
    from_environment: &'a dyn Fn(&str) -> bool,
    settings: Vec<Setting>,
}

impl Resolver<'_> {
    /// The first value there is. `flag_name` is the flag's field name in [`Flags`].
    fn pick<T>(
        &mut self,
        key: &'static str,
        flag_name: &str,
        flag: Option<T>,
        file: Option<T>,
        default: Option<T>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, Fatal> {
        let (value, origin) = if let Some(value) = flag {
            let environment = (self.from_environment)(flag_name);
            (value, if environment { Origin::Environment } else { Origin::Flag })
        } else if let Some(value) = file {
            (value, Origin::File)
        } else if let Some(value) = default {
            (value, Origin::Default)
        } else {
            return Err(Fatal::usage(
                format!("`{key}` is not set"),
                "a node cannot start without it",
                format!(
                    "set `{key}` in the configuration file, or --{0}, or CORACLE_{1}",
                    if key == "nodes" { "node".to_owned() } else { key.replace('_', "-") },
                    key.to_uppercase()
                ),
            ));
        };
        self.settings.push(Setting { key, value: show(&value), origin });
        Ok(value)
    }

    /// The client password: its file by flag, environment or configuration file, or the text in
    /// `CORACLE_REQUIREPASS`. Never on the command line, where every user of the machine sees it.
    fn password(
        &mut self,
        flag: Option<PathBuf>,
        file: Option<PathBuf>,
        text: Option<OsString>,
    ) -> Result<Option<Password>, Fatal> {
        let chosen = match (flag, text, file) {
            (Some(path), _, _) => {
                let environment = (self.from_environment)("requirepass_file");
                let origin = if environment { Origin::Environment } else { Origin::Flag };
                Some((read_password(&path)?, origin))
            }
            (None, Some(text), _) => Some((text.into_encoded_bytes(), Origin::Environment)),
            (None, None, Some(path)) => Some((read_password(&path)?, Origin::File)),
            (None, None, None) => None,
        };
        let origin = chosen.as_ref().map_or(Origin::Default, |&(_, origin)| origin);
        let shown = if chosen.is_some() { "(hidden)" } else { "(none)" };
        self.settings.push(Setting { key: "requirepass", value: shown.to_owned(), origin });
        chosen
            .map(|(text, _)| {
                in_range("the length of the password", text.len() as u64, 1, 512)?;
                Ok(Password::new(&text))
            })
            .transpose()
    }
}

pub(super) fn resolve(
    flags: Flags,
    file: File,
    from_environment: &dyn Fn(&str) -> bool,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, Fatal> {
    let mut r = Resolver { from_environment, settings: Vec::new() };
    let text = |value: &String| format!("{value:?}");
    let path = |value: &PathBuf| format!("{:?}", value.display().to_string());
    let size = |value: &ByteSize| format!("\"{value}\"");
    let id = r.pick("id", "id", flags.id, file.id, None, u32::to_string)?;
    let cluster = r.pick("cluster", "cluster", flags.cluster, file.cluster, None, text)?;
    let data_dir = r.pick("data_dir", "data_dir", flags.data_dir, file.data_dir, None, path)?;
    let cpu_flag = flags.cores.map(|list| list.0);
    let cpus =
        r.pick("cores", "cores", cpu_flag, file.cores, Some(vec![0]), |v| format!("{v:?}"))?;
    let shards =
        r.pick("shards", "shards", flags.shards, file.shards, Some(1024), u16::to_string)?;
    let groups = r.pick("groups", "groups", flags.groups, file.groups, Some(8), u32::to_string)?;
    let loopback = Some(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let show_bind =
        |v: &Vec<IpAddr>| format!("{:?}", v.iter().map(IpAddr::to_string).collect::<Vec<_>>());
    let bind = r.pick("bind", "bind", flags.bind, file.bind, loopback, show_bind)?;
    let secret = environment("CORACLE_REQUIREPASS");
    let password = r.password(flags.requirepass_file, file.requirepass_file, secret)?;
    let allow_insecure = r.pick(
        "allow_insecure",
        "allow_insecure",
        flags.allow_insecure,
        file.allow_insecure,
        Some(false),
        bool::to_string,
    )?;
    let maxclients = r.pick(
        "maxclients",
        "maxclients",
        flags.maxclients,
        file.maxclients,
        Some(10_000),
        u32::to_string,
    )?;
    let timeout =
        r.pick("timeout", "timeout", flags.timeout, file.timeout, Some(0), u32::to_string)?;
    let budget = Some(ByteSize((1 << 30) * cpus.len() as u64));
    let memory = r.pick("maxmemory", "maxmemory", flags.maxmemory, file.maxmemory, budget, size)?;
    let cache = Some(ByteSize(memory.0 / 4));
    let flag = flags.value_cache;
    let cache = r.pick("value_cache", "value_cache", flag, file.value_cache, cache, size)?;
    let none = Some(ByteSize(0));
    let prefault = r.pick("prefault", "prefault", flags.prefault, file.prefault, none, size)?;
    let maxdisk = r.pick("maxdisk", "maxdisk", flags.maxdisk, file.maxdisk, none, size)?;
    let log = r.pick("log", "log", flags.log, file.log, Some("info".to_owned()), text)?;
    let show_format = |v: &LogFormat| format!("\"{}\"", format!("{v:?}").to_lowercase());
    let log_format = r.pick(
        "log_format",
        "log_format",
        flags.log_format,
        file.log_format,
        Some(LogFormat::Text),
        show_format,
    )?;
    let wal = WalConfig {
        segment_bytes: r
            .pick(
                "wal.segment_size",
                "wal_segment_size",
                flags.wal_segment_size,
                file.wal.segment_size,
                Some(ByteSize(64 << 20)),
                size,
            )?
            .0,
        direct_io: r.pick(
            "wal.direct_io",
            "wal_direct_io",
            flags.wal_direct_io,
            file.wal.direct_io,
            Some(true),
            bool::to_string,
        )?,
        bytes_max: r
            .pick(
                "wal.max_size",
                "wal_max_size",
                flags.wal_max_size,
                file.wal.max_size,
                Some(ByteSize(1 << 30)),
                size,
            )?
            .0,
    };
    let checkpoint = CheckpointConfig {
        bytes: r
            .pick(
                "checkpoint.bytes",
                "checkpoint_bytes",
                flags.checkpoint_bytes,
                file.checkpoint.bytes,
                Some(ByteSize(256 << 20)),
                size,
            )?
            .0,
        period: Duration::from_secs(u64::from(r.pick(
            "checkpoint.period",
            "checkpoint_period",
            flags.checkpoint_period,
            file.checkpoint.period,
            Some(300),
            u32::to_string,
        )?)),
    };
    let raft = RaftConfig {
        tick_ms: r.pick(
            "raft.tick_ms",
            "raft_tick_ms",
            flags.raft_tick_ms,
            file.raft.tick_ms,
            Some(25),
            u32::to_string,
        )?,
        election_ticks: r.pick(
            "raft.election_ticks",
            "raft_election_ticks",
            flags.raft_election_ticks,
            file.raft.election_ticks,
            Some(20),
            u32::to_string,
        )?,
        heartbeat_ticks: r.pick(
            "raft.heartbeat_ticks",
            "raft_heartbeat_ticks",
            flags.raft_heartbeat_ticks,
            file.raft.heartbeat_ticks,
            Some(4),
            u32::to_string,
        )?,
        check_seconds: r.pick(
            "raft.check_interval",
            "raft_check_interval",
            flags.raft_check_interval,
            file.raft.check_interval,
            Some(60),
            u32::to_string,
        )?,
    };
    let node_flags = flags.nodes.map(|nodes| nodes.into_iter().map(|node| node.0).collect());
    let nodes =
        r.pick("nodes", "nodes", node_flags, file.nodes, None, |nodes| show_nodes(nodes))?;
    let config = Config {
        id: NodeId::new(id),
        cluster,
        data_dir,
        map: layout(nodes, &cpus, shards, groups)?,
        cores: cpus,
        bind,
        password,
        allow_insecure,
        maxclients,
        timeout_seconds: timeout,
        maxmemory_bytes: memory.0,
        value_cache_bytes: cache.0,
        prefault_bytes: prefault.0,
        maxdisk_bytes: maxdisk.0,
        log,
        log_format,
        wal,
        checkpoint,
        raft,
        settings: r.settings,
    };
    config.validate()?;
    Ok(config)
}

fn layout(
    nodes: Vec<FileNode>,
    cpus: &[u16],
    shards: u16,
    groups: u32,
) -> Result<ClusterMap, Fatal> {
    if nodes.iter().any(|node| node.id == 0) {
        return Err(Fatal::usage(
            "a node has the number 0",
            "0 means \"no node\"",
            "count nodes from 1",
        ));
    }
    let nodes = nodes.into_iter().map(|node| NodeInfo {
        id: NodeId::new(node.id),
        host: node.host,
        plain_port: node.port,
        core_port: node.core_port,
        peer_port: node.peer_port,
    });
    let cores = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
    ClusterMap::new(nodes.collect(), cores, shards, groups).map_err(|error| {
        Fatal::usage(
            "this cluster layout is impossible",
            error.to_string(),
            "correct cores, shards, groups or nodes; they must be the same on every node",
        )
    })
}

fn show_nodes(nodes: &[FileNode]) -> String {
    let one =
        |n: &FileNode| format!("{}={}:{}/{}/{}", n.id, n.host, n.port, n.core_port, n.peer_port);
    format!("{:?}", nodes.iter().map(one).collect::<Vec<_>>())
}
