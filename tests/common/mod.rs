//! Real clusters for end-to-end tests: processes of the real binary on free loopback ports, with
//! data on a real disk.
//!
//! Contract: a [`Cluster`] kills its processes when it is dropped, and they end by themselves
//! should the test process die. When a test panics, the ends of the nodes' logs are shown and
//! their directory stays.

#![allow(dead_code, unreachable_pub, reason = "each test file uses another part")]
#![allow(clippy::print_stderr, reason = "logs are shown when a test fails")]

pub mod cgroup;
pub mod client;
pub mod ledger;
pub mod mount;
pub mod stored;

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_engine::Reply;
use rustix::process::{Pid, Signal, kill_process};

use client::Client;

/// The binary under test.
pub const CORACLE: &str = env!("CARGO_BIN_EXE_coracle");
/// How long a healthy cluster may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long leaderships of a new cluster may move.
const BALANCE_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks at something that changes by itself.
const POLL: Duration = Duration::from_millis(10);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes.
    pub nodes: u32,
    /// Cores per node.
    pub cores: u16,
    /// Groups.
    pub groups: u32,
    /// More flags of `coracle node`.
    pub flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, cores: 1, groups: 4, flags: Vec::new() }
    }
}

impl Options {
    /// One node, for what concerns only one.
    pub fn single() -> Self {
        Self { nodes: 1, ..Self::default() }
    }
}

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Plain client port.
    pub plain: u16,
    /// Client port of core 0.
    pub core: u16,
    /// Peer port of core 0.
    pub peer: u16,
}

/// One node of a cluster, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its number, from 1.
    pub id: u32,
    /// Its ports.
    pub ports: Ports,
    /// Its data directory.
    pub data_dir: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Starts its process.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts its process with these variables in its environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("log file");
        let child = Command::new(CORACLE)
            .args(&self.args)
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start a node");
        self.child = Some(child);
    }

    /// Kills its process at once, as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill a child");
            child.wait().expect("wait for a child");
        }
    }

    /// Stops its process in order (SIGTERM); its status.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_exit()
    }

    /// Waits until its process ends by itself.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it was started");
        let mut status = None;
        wait_until("the node ends", || {
            status = child.try_wait().expect("wait for a child");
            status.is_some()
        });
        status.expect("just seen")
    }

    /// Stops it where it is, without its knowledge (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not zero");
        kill_process(pid, signal).expect("signal a child");
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Whether its process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_none())
    }

    /// A connection to its plain port.
    pub fn client(&self) -> Client {
        Client::connect(self.ports.plain).expect("the node serves")
    }

    /// A connection to the port of its core 0.
    pub fn core_client(&self) -> Client {
        Client::connect(self.ports.core).expect("the node serves")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The arguments its process is started with.
    pub fn args(&self) -> &[String] {
        &self.args
    }
}

/// A cluster of node processes.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes; node `n` is at `n - 1`.
    pub nodes: Vec<Node>,
    dir: PathBuf,
    groups: u32,
    /// Keeps other clusters off the blocks of ports.
    _reserved: Vec<TcpListener>,
}

impl Cluster {
    /// Starts a cluster and waits until every group has a leader.
    pub fn start(options: &Options) -> Self {
        let mut cluster = Self::prepare(options);
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_until_ready();
        cluster.wait_until_balanced();
        cluster
    }

    /// Everything but the processes.
    pub fn prepare(options: &Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("cluster-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        // Below the build directory: a real disk, where /tmp may be memory without direct I/O.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).expect("create the cluster's directory");
        let (reserved, ports) = reserve(options);
        let mut all = Vec::new();
        for (id, ports) in (1..=options.nodes).zip(&ports) {
            all.push("--node".to_owned());
            all.push(format!("{id}=127.0.0.1:{}/{}/{}", ports.plain, ports.core, ports.peer));
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cores: Vec<_> =
            (0..usize::from(options.cores)).map(|core| (core % cpus).to_string()).collect();
        let nodes = (1..=options.nodes).zip(ports).map(|(id, ports)| {
            let data_dir = dir.join(format!("node-{id}"));
            let mut args: Vec<String> = format!(
                "node --exit-with-parent --id {id} --cluster test --cores {} --groups {} \
                 --shards 64 --wal-segment-size 16MiB --data-dir",
                cores.join(","),
                options.groups,
            )
            .split_whitespace()
            .map(str::to_owned)
            .collect();
            args.push(data_dir.display().to_string());
            args.extend(all.iter().cloned());
            args.extend(options.flags.iter().cloned());
            let log = dir.join(format!("node-{id}.log"));
            Node { id, ports, data_dir, log, args, child: None }
        });
        let nodes = nodes.collect();
        Self { nodes, dir, groups: options.groups, _reserved: reserved }
    }

    /// Waits until every running node knows a leader for every group that runs.
    pub fn wait_until_ready(&mut self) {
        let groups = self.groups.to_string();
        for index in 0..self.nodes.len() {
            if !self.nodes[index].is_running() {
                continue;
            }
            let port = self.nodes[index].ports.plain;
            wait_until(&format!("node {} knows all leaders", index + 1), || {
                let node = &mut self.nodes[index];
                assert!(node.is_running(), "node {} ended:\n{}", node.id, node.log());
                let Ok(mut client) = Client::connect(port) else { return false };
                client.info_line("coracle_groups_with_leader").is_ok_and(|led| led == groups)
            });
        }
    }

    /// Waits until leaderships are where they will stay, as far as all nodes know. Not for ever: on
    /// a busy machine they may always move.
    fn wait_until_balanced(&self) {
        let groups = self.groups.to_string();
        let settled = |node: &Node| {
            let line = "coracle_groups_with_preferred_leader";
            let led = node.client().info_line(line);
            led.is_ok_and(|led| led == groups)
        };
        let start = Instant::now();
        while start.elapsed() < BALANCE_MAX && !self.nodes.iter().all(settled) {
            std::thread::sleep(POLL);
        }
    }

    /// The nodes that run.
    pub fn running(&mut self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].is_running()).collect()
    }

    /// The node that leads a key's group, as node `seen_from` (an index) believes.
    pub fn leader_of(&self, key: &str, seen_from: usize) -> Option<usize> {
        let mut client = Client::connect(self.nodes[seen_from].ports.plain).ok()?;
        let slot = i64::from(coracle_engine::SlotId::of_key(key.as_bytes()).get());
        let Ok(Reply::Array(entries)) = client.call(&["CLUSTER", "SLOTS"]) else { return None };
        for entry in entries {
            let Reply::Array(entry) = entry else { continue };
            let [Reply::Integer(first), Reply::Integer(last), Reply::Array(node), ..] = &entry[..]
            else {
                continue;
            };
            if (*first..=*last).contains(&slot) {
                let Reply::Integer(port) = node[1] else { return None };
                return self.nodes.iter().position(|n| i64::from(n.ports.core) == port);
            }
        }
        None
    }

    /// Keys that cover all groups: `count` of them, named after `prefix`.
    pub fn keys(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{prefix}:{n}")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = node.log();
                let lines: Vec<_> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("--- end of {}\n{tail}", node.log.display());
            }
        } else {
            fs::remove_dir_all(&self.dir).expect("remove the cluster's directory");
        }
    }
}

/// A block of free ports per node. The first port of each block is held, so that no other
/// cluster, of this or another test process, takes the block.
fn reserve(options: &Options) -> (Vec<TcpListener>, Vec<Ports>) {
    // Outside the range of ports that Linux gives to outgoing connections.
    const FIRST: u16 = 10_000;
    const END: u16 = 18_000;
    // The same for all clusters, so that blocks never overlap.
    const WIDTH: u16 = 16;
    let width = 2 + 2 * options.cores;
    assert!(width <= WIDTH, "{} cores need wider blocks", options.cores);
    let blocks = (END - FIRST) / WIDTH;
    let start = std::process::id() % u32::from(blocks);
    let (mut reserved, mut ports) = (Vec::new(), Vec::new());
    for step in 0..u32::from(blocks) {
        if ports.len() == options.nodes as usize {
            return (reserved, ports);
        }
        let block = u16::try_from((start + step) % u32::from(blocks)).expect("below END");
        let first = FIRST + block * WIDTH;
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let Ok(holder) = bind(first) else { continue };
        if (first + 1..first + width).all(|port| bind(port).is_ok()) {
            reserved.push(holder);
            let core = first + 2;
            ports.push(Ports { plain: first + 1, core, peer: core + options.cores });
        }
    }
    panic!("no free block of {width} ports between {FIRST} and {END}");
}

/// Waits until `condition` holds; panics after [`PATIENCE`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, condition);
}

/// Waits until `condition` holds; panics after `limit`. How long it took.
pub fn wait_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "after {limit:?} still waiting until {what}");
        std::thread::sleep(POLL);
    }
    start.elapsed()
}

/// Lets one test of this file run at a time: what measures time needs the machine for itself.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
