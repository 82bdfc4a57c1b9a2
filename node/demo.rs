//! `coracle demo`: a real cluster of node processes on this machine, thrown away afterwards.
//!
//! In: how many nodes, cores and groups. Out: a table of endpoints and then a prompt, or the
//! report of a load. The nodes end with this process, however it ends.

mod cluster;
mod files;
mod ports;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use clap::Args;
use comfy_table::{Table, presets};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli;
use crate::client::Client;
use crate::config::CpuList;
use crate::fatal::{Exit, Fatal};

use cluster::Cluster;
use files::DemoDir;

/// Memory of a key beside its value, about.
const ENTRY_BYTES: usize = 256;
/// Memory of a node for its log, the entries it keeps and its buffers, about.
const LOG_MEMORY_BYTES: u64 = 96 << 20;
/// Most memory that is readied; the default budget of one core.
const PREFAULT_BYTES_MAX: u64 = 1 << 30;

/// Flags of `coracle demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// CPUs of each node's cores, one core each; default: the CPUs of this machine are shared out
    /// among the nodes, at least one core each
    #[arg(long, value_name = "LIST")]
    cores: Option<CpuList>,
    /// Number of Raft groups
    #[arg(long, default_value_t = 8)]
    groups: u32,
    /// Instead of the prompt: send this many requests per second, print a report and end
    #[arg(long, value_name = "RATE")]
    load: Option<f64>,
    /// Length of the load
    #[arg(long, default_value_t = 10.0, requires = "load")]
    seconds: f64,
    /// Bytes of each value of the load
    #[arg(long, default_value_t = 4096, value_name = "BYTES", requires = "load")]
    value_size: usize,
    /// Part of the load that is GET, from 0 to 1
    #[arg(long, default_value_t = 0.0, requires = "load")]
    read_ratio: f64,
    /// Keep the data under this name and start from it next time
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
    /// Log levels of the nodes
    #[arg(long, default_value = "info", value_name = "LEVELS")]
    log: String,
}

impl DemoArgs {
    /// Memory that the load will fill on each node. Its first seconds would otherwise tell how
    /// fast this machine hands out memory; that is slow on a virtual one.
    fn prefault_bytes(&self) -> u64 {
        let Some(rate) = self.load else { return 0 };
        let keys = coracle_loadgen::Options::default().keys as f64;
        let values = keys.min(rate * self.seconds) * (self.value_size + ENTRY_BYTES) as f64;
        (values as u64 + LOG_MEMORY_BYTES).min(PREFAULT_BYTES_MAX)
    }
}

/// Runs `coracle demo`.
pub(crate) fn run(args: DemoArgs) -> Result<ExitCode, Fatal> {
    let plan = Plan::of(&args)?;
    let dir = DemoDir::open(args.keep.as_deref(), plan.fixed)?;
    if plan.fixed != dir.fixed() {
        say(&format!("'{}' keeps its own layout: {}", dir.path().display(), dir.fixed()));
    }
    let cpus = plan.cpus(dir.fixed());
    if let Some(warning) = warning(&cpus) {
        say(&format!("warning: {warning}"));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let cluster = Arc::new(Cluster::start(dir, &cpus, &args.log, args.prefault_bytes())?);
    let interrupted = watch_signals(&stop, &cluster, args.load.is_some())?;
    let result = cluster.wait_until_ready(&stop).and_then(|()| {
        show(&cluster);
        match args.load {
            Some(rate) => load(rate, &args, &cluster, &stop),
            None => cli::prompt(&mut Client::new(cluster.plain_endpoints(), None)),
        }
    });
    cluster.stop();
    // Not left to the drop: the thread that watches for signals keeps the cluster alive.
    cluster.remove();
    let signal = interrupted.load(Ordering::SeqCst);
    match result {
        // A signal is not a mistake of the cluster, whatever it interrupted. A load that it ended
        // early has its report all the same.
        _ if signal != 0 && args.load.is_none() => Ok(signal_status(signal)),
        Err(_) if signal != 0 => Ok(signal_status(signal)),
        other => other,
    }
}

/// What is asked for.
struct Plan {
    fixed: files::Fixed,
    /// CPUs that every node uses, if they were given.
    chosen: Option<Vec<u16>>,
    /// CPUs this process may run on.
    usable: Vec<u16>,
}

impl Plan {
    fn of(args: &DemoArgs) -> Result<Self, Fatal> {
        let usable = usable_cpus();
        let chosen = args.cores.as_ref().map(|list| list.0.clone());
        if let Some(missing) = chosen.iter().flatten().find(|cpu| !usable.contains(cpu)) {
            return Err(Fatal::usage(
                format!("CPU {missing} cannot be used"),
                format!("this process may run on CPUs {usable:?}"),
                "correct --cores",
            ));
        }
        let cores = match &chosen {
            Some(cpus) => cpus.len(),
            None => (usable.len() / args.nodes as usize).max(1),
        };
        let cores = u16::try_from(cores).unwrap_or(u16::MAX);
        let fixed = files::Fixed { nodes: args.nodes, cores, groups: args.groups };
        Ok(Self { fixed, chosen, usable })
    }

    /// The CPUs of each node. Kept data may fix other numbers than were asked for.
    fn cpus(&self, fixed: files::Fixed) -> Vec<Vec<u16>> {
        let cores = usize::from(fixed.cores);
        let of_node = |node: usize| -> Vec<u16> {
            let (cpus, skipped) = match &self.chosen {
                Some(chosen) => (chosen, 0),
                None => (&self.usable, node * cores % self.usable.len()),
            };
            cpus.iter().copied().cycle().skip(skipped).take(cores).collect()
        };
        (0..fixed.nodes as usize).map(of_node).collect()
    }
}

fn usable_cpus() -> Vec<u16> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    (0..1024).filter(|&cpu| set.is_set(usize::from(cpu))).collect()
}

/// What makes this cluster slower than one on machines of its own.
fn warning(cpus: &[Vec<u16>]) -> Option<String> {
    let mut distinct = cpus.concat();
    let cores = distinct.len();
    distinct.sort_unstable();
    distinct.dedup();
    (cores > distinct.len()).then(|| {
        format!(
            "{cores} cores of {} nodes share {} CPUs of this machine; real nodes have their own",
            cpus.len(),
            distinct.len()
        )
    })
}

/// On the first signal a load ends early and is reported; anything else ends at once, with the
/// nodes stopped and the data removed. The number of the first signal is kept, 0 before it.
fn watch_signals(
    stop: &Arc<AtomicBool>,
    cluster: &Arc<Cluster>,
    reports: bool,
) -> Result<Arc<AtomicI32>, Fatal> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Fatal::failed("cannot handle signals", error.to_string(), ""))?;
    let interrupted = Arc::new(AtomicI32::new(0));
    let (seen, stop, cluster) = (Arc::clone(&interrupted), Arc::clone(stop), Arc::clone(cluster));
    let watch = move || {
        for signal in signals.forever() {
            let first = seen.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
            stop.store(true, Ordering::SeqCst);
            if !(first.is_ok() && reports && cluster.is_ready()) {
                cluster.stop();
                cluster.remove();
                std::process::exit(128 + signal);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map_err(|error| Fatal::failed("cannot start a thread", error.to_string(), ""))?;
    Ok(interrupted)
}

/// The status shells give a process that a signal ended.
fn signal_status(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// Prints where everything is, and lines to paste.
fn show(cluster: &Cluster) {
    let mut table = Table::new();
    let style =
        if io::stdout().is_terminal() { presets::UTF8_FULL_CONDENSED } else { presets::NOTHING };
    table.load_style(style).set_header(["node", "any client", "per core", "pid", "log"]);
    for node in cluster.nodes() {
        let cores: Vec<_> = node.core_endpoints().collect();
        table.add_row([
            node.id.to_string(),
            node.plain_endpoint(),
            cores.join("\n"),
            node.pid.to_string(),
            node.log.display().to_string(),
        ]);
    }
    let first = &cluster.nodes()[0];
    let lines = format!(
        "{table}\n\nEvery group has a leader. From another terminal:\n  \
         redis-cli -p {}\n  redis-cli -c -p {}\n  export CORACLE_ENDPOINTS={}\n  \
         coracle cli\n\n",
        first.ports.plain,
        first.ports.core,
        cluster.plain_endpoints().join(","),
    );
    // Whoever closed stdout does not want the table.
    let _ = io::stdout().write_all(lines.as_bytes());
}

fn load(
    rate: f64,
    args: &DemoArgs,
    cluster: &Cluster,
    stop: &Arc<AtomicBool>,
) -> Result<ExitCode, Fatal> {
    let options = coracle_loadgen::Options {
        endpoints: cluster.core_endpoints(),
        cluster: true,
        rate: Some(rate),
        seconds: args.seconds,
        value_size: args.value_size,
        read_ratio: args.read_ratio,
        fail_on_error: true,
        ..coracle_loadgen::Options::default()
    };
    let report = coracle_loadgen::run(options, Arc::clone(stop)).map_err(|error| {
        let is_usage = error.is::<coracle_loadgen::UsageError>();
        let exit = if is_usage { Exit::Usage } else { Exit::Failed };
        Fatal::new(exit, "the load could not be made", format!("{error:#}"), "")
    })?;
    let _ = writeln!(io::stdout(), "{report}");
    Ok(ExitCode::from(report.exit_code()))
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a list the CPUs are dealt out in turn; a list is for every node.
    #[test]
    fn cpus_are_shared_out() {
        let plan = |usable: &[u16], chosen: Option<&[u16]>, nodes, cores| {
            let fixed = files::Fixed { nodes, cores, groups: 8 };
            let chosen = chosen.map(<[u16]>::to_vec);
            Plan { fixed, chosen, usable: usable.to_vec() }.cpus(fixed)
        };
        assert_eq!(plan(&[0, 1], None, 3, 1), [[0], [1], [0]]);
        assert_eq!(plan(&[0, 1, 4, 5, 6, 7], None, 3, 2), [[0, 1], [4, 5], [6, 7]]);
        assert_eq!(plan(&[0, 1], Some(&[1]), 2, 1), [[1], [1]]);
        assert_eq!(plan(&[0, 1], Some(&[1]), 2, 2), [[1, 1], [1, 1]], "kept data has two cores");
    }

    /// The warning counts cores against CPUs.
    #[test]
    fn sharing_cpus_is_said_once() {
        assert_eq!(warning(&[vec![0, 1]]), None);
        let warning = warning(&[vec![0, 1], vec![0, 1], vec![0, 1]]).expect("six on two");
        assert!(warning.contains("6 cores of 3 nodes share 2 CPUs"), "{warning}");
    }
}
