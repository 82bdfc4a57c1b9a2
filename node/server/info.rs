//! `INFO`: the node's numbers in the sections and names of Redis, with our own beside them.

use std::fmt::Write;

use coracle_engine::{CoreId, CoreStats, Reply, Via};

use super::clients::ClientUse;
use super::cluster_view;
use super::node_commands::{REDIS_VERSION, View};
use super::session::Session;
use super::storage::DiskUse;

/// Numbers of a node, gathered when they are shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeStats {
    /// What each core published last, by core number.
    pub(crate) cores: Vec<CoreStats>,
    /// What the clients of each core take, by core number.
    pub(super) client_uses: Vec<ClientUse>,
    /// What the log of each core takes of the disk, by core number.
    pub(super) disks: Vec<DiskUse>,
    /// Open client connections.
    pub(crate) clients: u64,
    /// Log lines dropped because the sink was too slow.
    pub(crate) dropped_log_lines: u64,
    /// What the process uses.
    pub(crate) process: ProcessUse,
}

/// Memory and time of this process as the kernel counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProcessUse {
    /// Resident memory.
    pub(crate) resident_bytes: u64,
    /// Seconds of CPU in user space.
    pub(crate) user_seconds: f64,
    /// Seconds of CPU in the kernel.
    pub(crate) system_seconds: f64,
}

impl ProcessUse {
    /// Asks the kernel. What it does not tell stays 0.
    pub(crate) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::parse(&stat, &status)
    }

    /// Reads `/proc/self/stat` and `/proc/self/status` (proc(5)).
    fn parse(stat: &str, status: &str) -> Self {
        /// The unit of these times on every Linux that user space sees.
        const TICKS_PER_SECOND: f64 = 100.0;
        // The second field is the program's name in parentheses and may hold anything.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let field = |number: usize| {
            let text = after_name.split(' ').nth(number - 3);
            text.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Self {
            resident_bytes: kibibytes.map_or(0, |kibibytes: u64| kibibytes * 1024),
            user_seconds: field(14) / TICKS_PER_SECOND,
            system_seconds: field(15) / TICKS_PER_SECOND,
        }
    }
}

impl NodeStats {
    /// Keys that a connection is told of: on a core's port those that the core leads, on the plain
    /// port those that this node has.
    pub(super) fn keys_for(&self, via: Via, core: CoreId) -> u64 {
        match via {
            Via::Core => self.cores.get(usize::from(core.0)).map_or(0, |core| core.keys_led),
            Via::Plain => self.sum(|core| core.keys),
        }
    }

    fn sum(&self, number: impl Fn(&CoreStats) -> u64) -> u64 {
        self.cores.iter().map(number).sum()
    }

    /// Bytes of the logs.
    pub(super) fn log_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.log_bytes).sum()
    }

    /// Different numbers on every core, for tests.
    #[cfg(test)]
    pub(super) fn sample(cores: u16) -> Self {
        let core = |n: u64| CoreStats {
            keys: 100 * n,
            keys_led: 10 * n,
            keys_with_expiry: n,
            keys_expired: 5 * n,
            memory_bytes: 1000 * n,
            commands: 7 * n,
            live_bytes: 50 * n,
            ..CoreStats::default()
        };
        let disk = |n| DiskUse {
            log_bytes: 400 * n,
            checkpoint_bytes: 20 * n,
            free_bytes: 30 * n,
            space: coracle_engine::DiskSpace::ALL[usize::from(n > 1)],
        };
        Self {
            cores: (1..=u64::from(cores)).map(core).collect(),
            disks: (1..=u64::from(cores)).map(disk).collect(),
            clients: 3,
            ..Self::default()
        }
    }
}

/// Writes the lines of a section.
type Section = fn(&mut Writer<'_>);

/// The sections in their order.
const SECTIONS: [(&str, Section); 9] = [
    ("Server", server),
    ("Clients", clients),
    ("Memory", memory),
    ("Persistence", persistence),
    ("Stats", stats),
    ("Replication", replication),
    ("CPU", cpu),
    ("Cluster", cluster),
    ("Keyspace", keyspace),
];

/// Answers `INFO`; `wanted` are the sections asked for, none meaning all.
pub(super) fn answer(wanted: &[&[u8]], session: &Session, view: &View<'_>) -> Reply {
    let stats = (view.stats)();
    let mut writer = Writer { text: String::new(), stats: &stats, session, view };
    for (name, section) in SECTIONS {
        let is_wanted = wanted.iter().any(|wanted| {
            [name, "all", "default", "everything"]
                .iter()
                .any(|known| wanted.eq_ignore_ascii_case(known.as_bytes()))
        });
        if is_wanted || wanted.is_empty() {
            if !writer.text.is_empty() {
                writer.text.push_str("\r\n");
            }
            writer.text.push_str("# ");
            writer.text.push_str(name);
            writer.text.push_str("\r\n");
            section(&mut writer);
        }
    }
    Reply::Verbatim(writer.text)
}

/// Collects the lines of the sections.
struct Writer<'a> {
    text: String,
    stats: &'a NodeStats,
    session: &'a Session,
    view: &'a View<'a>,
}

impl Writer<'_> {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{name}:{value}\r\n");
    }

    fn sum(&mut self, name: &str, number: impl Fn(&CoreStats) -> u64) {
        self.line(name, self.stats.sum(number));
    }
}

fn server(w: &mut Writer<'_>) {
    let (view, me) = (w.view, w.view.config.me());
    let uptime = view.now.0.saturating_sub(view.started.0) / 1000;
    let port = match w.session.via {
        Via::Plain => me.plain_port,
        Via::Core => me.core_port + view.me.core.0,
    };
    w.line("redis_version", REDIS_VERSION);
    w.line("coracle_version", env!("CARGO_PKG_VERSION"));
    w.line("redis_mode", "cluster");
    w.line("os", std::env::consts::OS);
    w.line("arch_bits", usize::BITS);
    w.line("multiplexing_api", "io_uring");
    w.line("process_id", std::process::id());
    w.line("run_id", cluster_view::endpoint_id(view, view.me));
    w.line("tcp_port", port);
    w.line("uptime_in_seconds", uptime);
    w.line("uptime_in_days", uptime / 86_400);
    w.line("coracle_cluster", &view.config.cluster);
    w.line("coracle_node", view.me.node.get());
    w.line("coracle_core", view.me.core.0);
    w.line("coracle_cores", view.map.core_count());
    w.line("coracle_log_lines_dropped", w.stats.dropped_log_lines);
}

fn clients(w: &mut Writer<'_>) {
    w.line("connected_clients", w.stats.clients);
    w.line("cluster_connections", 0);
    w.line("maxclients", w.view.config.maxclients);
    w.line("blocked_clients", 0);
    w.line(
        "evicted_clients",
        w.stats.client_uses.iter().map(|clients| clients.evicted).sum::<u64>(),
    );
}

fn memory(w: &mut Writer<'_>) {
    let used = w.stats.sum(|core| core.memory_bytes);
    let limit = w.view.config.maxmemory_bytes;
    w.line("used_memory", used);
    w.line("used_memory_human", mebibytes(used));
    w.line("used_memory_rss", w.stats.process.resident_bytes);
    w.line("used_memory_rss_human", mebibytes(w.stats.process.resident_bytes));
    w.line("maxmemory", limit);
    w.line("maxmemory_human", mebibytes(limit));
    w.line("maxmemory_policy", "noeviction");
    let clients: u64 = w.stats.client_uses.iter().map(|clients| clients.bytes).sum();
    w.line("mem_clients_normal", clients);
    w.sum("coracle_uncommitted_bytes", |core| core.uncommitted_bytes);
    w.sum("coracle_value_cache_bytes", |core| core.value_cache_bytes);
}

/// Serving begins after recovery, so nothing is ever loading here.
fn persistence(w: &mut Writer<'_>) {
    let checkpoint_bytes: u64 = w.stats.disks.iter().map(|disk| disk.checkpoint_bytes).sum();
    w.line("loading", 0);
    w.line("async_loading", 0);
    w.line("rdb_bgsave_in_progress", 0);
    w.line("rdb_last_bgsave_status", "ok");
    w.line("aof_enabled", 1);
    w.line("aof_rewrite_in_progress", 0);
    w.line("aof_last_write_status", "ok");
    w.sum("coracle_log_batches", |core| core.batches);
    w.sum("coracle_checkpoints", |core| core.checkpoints);
    w.sum("coracle_checkpoints_failed", |core| core.checkpoints_failed);
    w.line("coracle_checkpoint_bytes", checkpoint_bytes);
    w.line("maxdisk", w.view.config.maxdisk_bytes);
    w.line("coracle_disk_used_bytes", w.stats.log_bytes() + checkpoint_bytes);
    w.line(
        "coracle_disk_free_bytes",
        w.stats.disks.iter().map(|disk| disk.free_bytes).sum::<u64>(),
    );
    let space = w.stats.disks.iter().map(|disk| disk.space).max().unwrap_or_default();
    w.line("coracle_disk_space", space.name());
    w.line("coracle_log_bytes", w.stats.log_bytes());
    w.sum("coracle_log_live_bytes", |core| core.live_bytes);
    w.sum("coracle_log_moved_bytes", |core| core.moved_bytes);
}

fn stats(w: &mut Writer<'_>) {
    w.sum("total_commands_processed", |core| core.commands);
    w.sum("expired_keys", |core| core.keys_expired);
    w.line("evicted_keys", 0);
    w.sum("coracle_proposals", |core| core.proposals);
    w.sum("coracle_committed", |core| core.committed);
    w.sum("coracle_applied", |core| core.applied);
    w.sum("coracle_reads_served", |core| core.reads_served);
    w.sum("coracle_forwarded", |core| core.forwarded);
    w.sum("coracle_forwards_received", |core| core.forwards_received);
    w.sum("coracle_forwards_refused", |core| core.forwards_refused);
    w.sum("coracle_moved", |core| core.moved);
    w.sum("coracle_refused_overload", |core| core.refused_overload);
    w.sum("coracle_refused_memory", |core| core.refused_memory);
    w.sum("coracle_refused_disk", |core| core.refused_disk);
    w.sum("coracle_dropped_disk", |core| core.dropped_disk);
    w.sum("coracle_uncertain", |core| core.uncertain);
    w.sum("coracle_lost_proposals", |core| core.lost_proposals);
    w.sum("coracle_ignored_messages", |core| core.ignored_messages);
    w.sum("coracle_failed_loads", |core| core.failed_loads);
    w.sum("coracle_values_read", |core| core.values_read);
    w.sum("coracle_failed_reads", |core| core.failed_reads);
    w.sum("coracle_checks", |core| core.checks);
    w.sum("coracle_divergences", |core| core.divergences);
    w.sum("coracle_groups_diverged", |core| core.diverged);
    w.sum("coracle_groups_undecided", |core| core.undecided);
    w.sum("coracle_values_damaged", |core| core.values_damaged);
    w.sum("coracle_values_repaired", |core| core.values_repaired);
    w.sum("coracle_values_lent", |core| core.values_lent);
    w.sum("coracle_repairs_open", |core| core.repairs_open);
    w.sum("coracle_repairs_failed", |core| core.repairs_failed);
    w.sum("coracle_entries_fetched", |core| core.entries_fetched);
    w.sum("coracle_entries_lent", |core| core.entries_lent);
    w.sum("coracle_fetches_open", |core| core.fetches_open);
}

/// Clients want a master; every endpoint is one for the slots it leads.
fn replication(w: &mut Writer<'_>) {
    let offset = w.stats.sum(|core| core.applied_offset);
    w.line("role", "master");
    w.line("connected_slaves", 0);
    w.line("master_failover_state", "no-failover");
    w.line("master_replid", cluster_view::endpoint_id(w.view, w.view.me));
    w.line("master_repl_offset", offset);
    w.sum("coracle_elections_won", |core| core.elections_won);
    w.sum("coracle_leader_changes", |core| core.leader_changes);
    w.sum("coracle_balanced", |core| core.balanced);
    w.sum("coracle_snapshots_installed", |core| core.snapshots_installed);
}

fn cpu(w: &mut Writer<'_>) {
    w.line("used_cpu_sys", format_args!("{:.6}", w.stats.process.system_seconds));
    w.line("used_cpu_user", format_args!("{:.6}", w.stats.process.user_seconds));
}

fn cluster(w: &mut Writer<'_>) {
    w.line("cluster_enabled", 1);
    w.line("coracle_groups", w.view.map.group_count());
    w.sum("coracle_groups_hosted", |core| core.groups);
    w.sum("coracle_groups_led", |core| core.leaders);
    w.sum("coracle_groups_leaderless", |core| core.leaderless);
    for (number, core) in w.stats.cores.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(
            w.text,
            "coracle_core{number}:groups={},led={},keys={},memory={},commands={},proposals={},\
             reads={},forwarded={},moved={},uncommitted={},open={}\r\n",
            core.groups,
            core.leaders,
            core.keys,
            core.memory_bytes,
            core.commands,
            core.proposals,
            core.reads_served,
            core.forwarded,
            core.moved,
            core.uncommitted_bytes,
            core.proposals_open + core.reads_open + core.forwards_open + core.parked,
        );
    }
}

fn keyspace(w: &mut Writer<'_>) {
    let keys = w.stats.keys_for(w.session.via, w.view.me.core);
    if keys > 0 {
        let expires = w.stats.sum(|core| core.keys_with_expiry).min(keys);
        w.line("db0", format_args!("keys={keys},expires={expires},avg_ttl=0"));
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2}M", bytes as f64 / (1u64 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::node_commands::tests::{Fixture, text};
    use super::super::session::tests::session;
    use super::*;

    fn info(flags: &str, sections: &[&str]) -> String {
        let fixture = Fixture::new(flags);
        let sections: Vec<&[u8]> = sections.iter().map(|name| name.as_bytes()).collect();
        let session = session(Via::Core, &fixture.config);
        text(fixture.with_leaders(&|_| None, |view| answer(&sections, &session, view)))
    }

    /// The lines that clients look for.
    #[test]
    fn clients_find_their_lines() {
        let all = info("--cores 0,0", &[]);
        for line in [
            "redis_version:7.2.4",
            "loading:0",
            "connected_clients:3",
            "role:master",
            "cluster_enabled:1",
            "tcp_port:7102",
            "db0:keys=10,expires=3,avg_ttl=0",
            "used_memory:3000",
            "total_commands_processed:21",
            "expired_keys:15",
            "coracle_log_bytes:1200",
            "coracle_log_live_bytes:150",
            "coracle_checkpoint_bytes:60",
            "coracle_disk_used_bytes:1260",
            "coracle_disk_free_bytes:90",
            "coracle_disk_space:low",
        ] {
            assert!(all.lines().any(|l| l == line), "{line} in {all}");
        }
        assert!(all.contains("master_repl_offset:"), "lettuce reads it");
        assert!(all.contains("\r\nredis_version:"), "redis-cli looks for the line");
    }

    /// Sections come alone or together, whatever their case; unknown ones are empty.
    #[test]
    fn sections_are_selected() {
        let headers = |text: &str| {
            text.lines().filter(|l| l.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(headers(&info("", &["server"])), ["# Server"]);
        assert_eq!(headers(&info("", &["KEYSPACE", "cpu"])), ["# CPU", "# Keyspace"]);
        assert_eq!(headers(&info("", &["everything"])).len(), SECTIONS.len());
        assert_eq!(info("", &["nothing"]), "");
    }

    /// A program name with spaces and parentheses does not shift the fields (proc(5)).
    #[test]
    fn process_use_is_read_from_proc() {
        let stat = "1 (a) b (c) S 2 3 4 5 6 7 8 9 10 11 250 50 0 0";
        let used = ProcessUse::parse(stat, "VmSize:\t 9 kB\nVmRSS:\t 20 kB\n");
        assert_eq!((used.user_seconds, used.system_seconds), (2.5, 0.5));
        assert_eq!(used.resident_bytes, 20 * 1024);
        let none = ProcessUse::parse("", "");
        assert_eq!((none.user_seconds, none.resident_bytes), (0.0, 0));
        assert!(ProcessUse::now().resident_bytes > 0, "this process uses memory");
    }
}
