//! Three real nodes on free ports of this machine, for the client tests.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;
use crate::steps::Context;

const NODE_COUNT: usize = 3;

/// How long the nodes may take to elect leaders for every group.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a node may take to stop after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Longest answer to a readiness question; `CLUSTER INFO` takes a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

struct Node {
    child: Child,
    plain_port: u16,
    log: PathBuf,
}

/// The running nodes. Dropped, it kills what still runs.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    core_ports: Vec<u16>,
    dir: PathBuf,
}

impl Cluster {
    /// Starts the nodes on empty data directories and waits until every slot is served.
    pub(crate) fn start(context: &Context) -> Result<Self> {
        let binary = context.binary("coracle");
        ensure!(binary.is_file(), "{} is missing; run the step `build`", binary.display());
        let dir = context.target().join("clients-cluster");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let cpus: Vec<u16> = allowed_cpus()?.into_iter().take(2).collect();
        let cores = cpus.len();
        let ports = free_ports(NODE_COUNT, cores)?;
        let mut cluster = Self { nodes: Vec::new(), core_ports: Vec::new(), dir };
        for ports in &ports {
            cluster.core_ports.extend((0..cores as u16).map(|core| ports.core + core));
        }
        for number in 1..=NODE_COUNT {
            let config = config(number, &cluster.dir, &cpus, &ports);
            let node = Node::start(context, &binary, &cluster.dir, number, &config, &ports)?;
            cluster.nodes.push(node);
        }
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// Client ports that forward.
    pub(crate) fn plain_ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.plain_port).collect()
    }

    /// Client ports of every core of every node, node by node.
    pub(crate) fn core_ports(&self) -> &[u16] {
        &self.core_ports
    }

    /// Where data directories and logs are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        for node in &mut self.nodes {
            while let Err(error) = node.ask_ready() {
                if let Some(status) = node.child.try_wait().context("cannot wait for a node")? {
                    bail!("a node ended with {status} at its start:\n{}", tail(&node.log));
                }
                if Instant::now() >= deadline {
                    bail!("port {} is not ready: {error:#}\n{}", node.plain_port, tail(&node.log));
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// Asks every node to stop; an error unless each does so in time and with success.
    pub(crate) fn stop(mut self) -> Result<()> {
        for node in &self.nodes {
            let pid = node.child.id().to_string();
            process::run(Command::new("kill").args(["-TERM", &pid]), STOP_LIMIT)?;
        }
        for node in &mut self.nodes {
            match process::wait(&mut node.child, STOP_LIMIT)? {
                Some(status) if status.success() => {}
                Some(status) => bail!("a node stopped with {status}:\n{}", tail(&node.log)),
                None => bail!("a node did not stop on SIGTERM:\n{}", tail(&node.log)),
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Either it runs and dies, or it has ended by itself: both are fine here.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

impl Node {
    fn start(
        context: &Context,
        binary: &Path,
        dir: &Path,
        number: usize,
        config: &str,
        ports: &[Ports],
    ) -> Result<Self> {
        let config_path = dir.join(format!("node-{number}.toml"));
        fs::write(&config_path, config)
            .with_context(|| format!("cannot write {}", config_path.display()))?;
        let log = dir.join(format!("node-{number}.log"));
        let output =
            File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = context.command(binary);
        command.arg("node").arg("--config").arg(&config_path);
        let errors = output.try_clone().context("cannot share a log file")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().context("cannot start a node")?;
        Ok(Self { child, plain_port: ports[number - 1].plain, log })
    }

    /// Whether it answers, and says that every slot is served.
    fn ask_ready(&self) -> Result<()> {
        let answer = ask(self.plain_port, b"PING\r\nCLUSTER INFO\r\n", b"cluster_state:ok")?;
        ensure!(answer.starts_with("+PONG\r\n"), "PING was answered {answer:?}");
        Ok(())
    }
}

/// Sends `request` and reads until `wanted` has come, at most for a second.
fn ask(port: u16, request: &[u8], wanted: &[u8]) -> Result<String> {
    let limit = Duration::from_secs(1);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&addr, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(wanted.len()).any(|window| window == wanted) {
        ensure!(answer.len() <= ANSWER_BYTES_MAX, "an answer without end");
        let seen = String::from_utf8_lossy(&answer).into_owned();
        match stream.read(&mut piece).with_context(|| format!("so far {seen:?}"))? {
            0 => bail!("closed after {seen:?}"),
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// First ports of one node; core and peer ports go on upwards, one per core.
struct Ports {
    plain: u16,
    core: u16,
    peer: u16,
}

/// Finds free ports for `count` nodes. They are held until all are found, then released; a port
/// taken by somebody else in the meantime shows as a node that does not start.
fn free_ports(count: usize, cores: usize) -> Result<Vec<Ports>> {
    let mut held = Vec::new();
    let mut run = |length: usize| -> Result<u16> {
        for _ in 0..1000 {
            let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
            let base = first.local_addr().context("a bound socket has an address")?.port();
            let mut listeners = vec![first];
            for offset in 1..length as u16 {
                let Some(port) = base.checked_add(offset) else { break };
                listeners.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
            }
            if listeners.len() == length {
                held.append(&mut listeners);
                return Ok(base);
            }
        }
        bail!("no {length} free ports in a row")
    };
    let mut ports = Vec::new();
    for _ in 0..count {
        ports.push(Ports { plain: run(1)?, core: run(cores)?, peer: run(cores)? });
    }
    Ok(ports)
}

/// The CPUs this process may run on.
fn allowed_cpus() -> Result<Vec<u16>> {
    let status = crate::steps::read(Path::new("/proc/self/status"))?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("the kernel does not say which CPUs are allowed")?;
    parse_cpus(list.trim())
}

/// `0-2,5` as numbers.
fn parse_cpus(list: &str) -> Result<Vec<u16>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().with_context(|| format!("CPU list {list:?}"));
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

/// The configuration file of one node.
fn config(number: usize, dir: &Path, cpus: &[u16], ports: &[Ports]) -> String {
    let data = dir.join(format!("node-{number}"));
    let mut text = format!(
        "id = {number}\ncluster = \"clients\"\ndata_dir = {:?}\ncores = {cpus:?}\n\
         shards = 1024\ngroups = 12\n",
        data.display().to_string()
    );
    for (index, Ports { plain, core, peer }) in ports.iter().enumerate() {
        let id = index + 1;
        text.push_str(&format!(
            "\n[[nodes]]\nid = {id}\nhost = \"127.0.0.1\"\nport = {plain}\n\
             core_port = {core}\npeer_port = {peer}\n"
        ));
    }
    text
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_else(|error| format!("{} cannot be read: {error}", path.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_ranges_and_numbers() {
        assert_eq!(parse_cpus("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(parse_cpus("7").unwrap(), [7]);
        assert!(parse_cpus("").is_err());
    }

    /// No port is given out twice, runs included.
    #[test]
    fn ports_are_distinct() {
        let mut all = Vec::new();
        for Ports { plain, core, peer } in free_ports(3, 2).unwrap() {
            all.extend([plain, core, core + 1, peer, peer + 1]);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "{all:?}");
    }
}
