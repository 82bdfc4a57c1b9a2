//! The node processes of a demo.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_engine::Reply;
use rustix::process::{Pid, Signal, kill_process};

use super::files::DemoDir;
use super::ports::{self, Claim, Ports};
use crate::client::{Client, Timeouts};
use crate::fatal::Fatal;
use crate::preflight;

/// How long nodes may take until every group has a leader.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long the leaders may take to be where the layout wants them.
const PLACED_MAX: Duration = Duration::from_secs(3);
/// How long nodes may take to stop before they are killed.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a node's log that are shown when it fails.
const LOG_LINES_SHOWN: usize = 20;

/// One node as the table shows it.
#[derive(Debug)]
pub(super) struct Node {
    /// Its number.
    pub(super) id: u32,
    /// Its ports.
    pub(super) ports: Ports,
    /// Its process.
    pub(super) pid: u32,
    /// Where its log lines go.
    pub(super) log: PathBuf,
    cores: u16,
}

impl Node {
    /// For clients that know nothing of clusters.
    pub(super) fn plain_endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// For cluster clients.
    pub(super) fn core_endpoints(&self) -> impl Iterator<Item = String> {
        let first = self.ports.core;
        (0..self.cores).map(move |core| format!("127.0.0.1:{}", first + core))
    }
}

/// A running cluster. Stopped when dropped; the directory goes unless it is kept.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    children: Mutex<Vec<Child>>,
    /// Given back once the nodes listen.
    claim: Mutex<Option<Claim>>,
    ready: AtomicBool,
    dir: DemoDir,
}

impl Cluster {
    /// Starts all nodes; `cpus` has those of each node's cores. In each of them `prefault_bytes`
    /// of memory are readied.
    pub(super) fn start(
        dir: DemoDir,
        cpus: &[Vec<u16>],
        log: &str,
        prefault_bytes: u64,
    ) -> Result<Self, Fatal> {
        let fixed = dir.fixed();
        let claim = Claim::wait()?;
        let ports = ports::choose(&claim, fixed.nodes, fixed.cores)?;
        let direct_io = preflight::direct_io(dir.path()).is_ok();
        let mut cluster = Self {
            nodes: Vec::new(),
            children: Mutex::new(Vec::new()),
            claim: Mutex::new(Some(claim)),
            ready: AtomicBool::new(false),
            dir,
        };
        for ((id, &own), cpus) in (1..).zip(&ports).zip(cpus) {
            let text = config(&cluster.dir, id, &ports, cpus, log, direct_io, prefault_bytes);
            cluster.spawn(id, own, &text).map_err(|error| {
                Fatal::failed(format!("cannot start node {id}"), error.to_string(), "")
            })?;
        }
        Ok(cluster)
    }

    fn spawn(&mut self, id: u32, ports: Ports, config: &str) -> io::Result<()> {
        let base = self.dir.path().join(format!("node-{id}"));
        let (file, log) = (base.with_extension("toml"), base.with_extension("log"));
        fs::write(&file, config)?;
        let stderr = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
        let child = Command::new(std::env::current_exe()?)
            .args(["node", "--exit-with-parent", "--config"])
            .arg(&file)
            // The configuration file alone decides, whatever is set for the real nodes here.
            .env_clear()
            // What was readied stays: the allocator would give back what is unused for a while.
            .env("MIMALLOC_PURGE_DELAY", "-1")
            // Its other end closes when this process ends, however it ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            // A Ctrl-C on the terminal is for this process; it stops the nodes in order.
            .process_group(0)
            .spawn()?;
        let cores = self.dir.fixed().cores;
        self.nodes.push(Node { id, ports, pid: child.id(), log, cores });
        self.lock().push(child);
        Ok(())
    }

    /// Waits until every node knows a leader for every group.
    pub(super) fn wait_until_ready(&self, stop: &AtomicBool) -> Result<(), Fatal> {
        let deadline = Instant::now() + READY_MAX;
        for node in &self.nodes {
            let second = Duration::from_secs(1);
            let timeouts = Timeouts { connect: second, reply: second, retry: Duration::ZERO };
            let mut client = Client::new(vec![node.plain_endpoint()], None).with_timeouts(timeouts);
            while !every_group(&mut client, "coracle_groups_with_leader:") {
                if let Some((node, status)) = self.first_ended() {
                    return Err(failed(node, &format!("it ended: {status}")));
                }
                if stop.load(Ordering::SeqCst) {
                    return Err(Fatal::failed("interrupted", "", ""));
                }
                if Instant::now() >= deadline {
                    let seconds = READY_MAX.as_secs();
                    return Err(failed(node, &format!("not ready after {seconds} s")));
                }
                std::thread::sleep(POLL);
            }
            // Moving them under load would cost it some time. No more than a wish, though.
            let placed_by = Instant::now() + PLACED_MAX;
            while !every_group(&mut client, "coracle_groups_with_preferred_leader:")
                && Instant::now() < placed_by
                && !stop.load(Ordering::SeqCst)
            {
                std::thread::sleep(POLL);
            }
        }
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.ready.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether [`Self::wait_until_ready`] has succeeded.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// The nodes in ascending order of their numbers.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One endpoint per node, for any client.
    pub(super) fn plain_endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::plain_endpoint).collect()
    }

    /// One endpoint per core, for cluster clients.
    pub(super) fn core_endpoints(&self) -> Vec<String> {
        self.nodes.iter().flat_map(Node::core_endpoints).collect()
    }

    /// Stops all nodes: asks them, waits, kills those that do not listen.
    pub(super) fn stop(&self) {
        let mut children = self.lock();
        for child in children.iter() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                // Not waited for yet, so the number is still its own.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_MAX;
        for child in children.iter_mut() {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
        children.clear();
    }

    /// Throws the data away, unless it is kept. The nodes must have stopped.
    pub(super) fn remove(&self) {
        self.dir.remove();
    }

    fn first_ended(&self) -> Option<(&Node, ExitStatus)> {
        let mut children = self.lock();
        let ended = children.iter_mut().map(|child| child.try_wait().ok().flatten());
        self.nodes.iter().zip(ended).find_map(|(node, status)| Some((node, status?)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        self.remove();
    }
}

/// The configuration file of node `id`.
fn config(
    dir: &DemoDir,
    id: u32,
    ports: &[Ports],
    cpus: &[u16],
    log: &str,
    direct_io: bool,
    prefault_bytes: u64,
) -> String {
    let data = dir.path().join(format!("node-{id}"));
    let mut text = format!(
        "id = {id}\ncluster = \"demo\"\ndata_dir = {:?}\ncores = {cpus:?}\ngroups = {}\n\
         log = {log:?}\nprefault = {prefault_bytes}\n\n[wal]\ndirect_io = {direct_io}\n",
        data.display().to_string(),
        dir.fixed().groups,
    );
    for (id, ports) in (1..).zip(ports) {
        let id: u32 = id;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[[nodes]]\nid = {id}\nhost = \"127.0.0.1\"\nport = {}\ncore_port = {}\n\
             peer_port = {}\n",
            ports.plain, ports.core, ports.peer
        );
    }
    text
}

/// Whether a line of `CLUSTER INFO` counts all groups.
fn every_group(client: &mut Client, counted: &str) -> bool {
    let Ok(Reply::Bulk(info)) = client.call(&[b"CLUSTER", b"INFO"]) else { return false };
    let info = String::from_utf8_lossy(&info);
    let number =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.parse::<u32>().ok());
    let groups = number("coracle_groups:");
    groups.is_some() && groups == number(counted)
}

/// Why a node does not serve, with the end of its log.
fn failed(node: &Node, why: &str) -> Fatal {
    let text = fs::read_to_string(&node.log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
    Fatal::failed(format!("node {} does not serve", node.id), format!("{why}\n  {tail}"), "")
}
