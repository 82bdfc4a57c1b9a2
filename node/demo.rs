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
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Flags of `coracle demo`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// CPUs of each node's cores, one core each; default: the first two of this machine
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

/// Runs `coracle demo`.
pub(crate) fn run(args: DemoArgs) -> Result<ExitCode, Fatal> {
    let plan = Plan::of(&args)?;
    let dir = DemoDir::open(args.keep.as_deref(), plan.fixed)?;
    if plan.fixed != dir.fixed() {
        say(&format!("'{}' keeps its own layout: {}", dir.path().display(), dir.fixed()));
    }
    let cpus = plan.cpus(dir.fixed());
    if let Some(warning) = warning(dir.fixed().nodes, &cpus) {
        say(&format!("warning: {warning}"));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let cluster = Arc::new(Cluster::start(dir, &cpus, &args.log)?);
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
    match result {
        // A signal is not a mistake of the cluster, whatever it interrupted.
        Err(_) if interrupted.load(Ordering::SeqCst) => Ok(ExitCode::from(130)),
        other => other,
    }
}

/// What is asked for.
struct Plan {
    fixed: files::Fixed,
    cpus: Vec<u16>,
}

impl Plan {
    fn of(args: &DemoArgs) -> Result<Self, Fatal> {
        let usable = usable_cpus();
        let cpus = match &args.cores {
            Some(list) => list.0.clone(),
            None => usable.iter().copied().take(2).collect(),
        };
        if let Some(missing) = cpus.iter().find(|cpu| !usable.contains(cpu)) {
            return Err(Fatal::usage(
                format!("CPU {missing} cannot be used"),
                format!("this process may run on CPUs {usable:?}"),
                "correct --cores",
            ));
        }
        let cores = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
        Ok(Self {
            fixed: files::Fixed { nodes: args.nodes, cores, groups: args.groups },
            cpus,
        })
    }

    /// The CPU of each core when the data fixes another number of cores.
    fn cpus(&self, fixed: files::Fixed) -> Vec<u16> {
        self.cpus.iter().copied().cycle().take(usize::from(fixed.cores)).collect()
    }
}

fn usable_cpus() -> Vec<u16> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    (0..1024).filter(|&cpu| set.is_set(usize::from(cpu))).collect()
}

/// What makes this cluster slower than one on machines of its own.
fn warning(nodes: u32, cpus: &[u16]) -> Option<String> {
    let threads = nodes as usize * cpus.len();
    let mut distinct = cpus.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    (threads > distinct.len()).then(|| {
        format!(
            "{threads} cores of {nodes} nodes share {} CPUs of this machine; real nodes have \
             their own",
            distinct.len()
        )
    })
}

/// On the first signal a load ends early and is reported; anything else ends at once, with the
/// nodes stopped and the data removed. The flag tells that there was a signal.
fn watch_signals(
    stop: &Arc<AtomicBool>,
    cluster: &Arc<Cluster>,
    reports: bool,
) -> Result<Arc<AtomicBool>, Fatal> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| Fatal::failed("cannot handle signals", error.to_string(), ""))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let (seen, stop, cluster) = (Arc::clone(&interrupted), Arc::clone(stop), Arc::clone(cluster));
    let watch = move || {
        for signal in signals.forever() {
            let is_first = !seen.swap(true, Ordering::SeqCst);
            stop.store(true, Ordering::SeqCst);
            if !(is_first && reports && cluster.is_ready()) {
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

/// Prints where everything is, and lines to paste.
fn show(cluster: &Cluster) {
    let mut table = Table::new();
    let style = if io::stdout().is_terminal() {
        presets::UTF8_FULL_CONDENSED
    } else {
        presets::NOTHING
    };
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

    /// The warning counts threads against CPUs.
    #[test]
    fn sharing_cpus_is_said_once() {
        assert_eq!(warning(1, &[0, 1]), None);
        let warning = warning(3, &[0, 1]).expect("six on two");
        assert!(warning.contains("6 cores of 3 nodes share 2 CPUs"), "{warning}");
    }
}
