//! The `coracle` command: the server and its tools.
//!
//! In: flags, environment, a configuration file. Out: a running node, or a client's work.
//!
//! Not here: consensus (`raft`), data (`engine`), bytes on disk (`wal`) and on the wire (`net`).

/// A named place where tests can end or stop the process (docs/testing.md): nothing without the
/// feature `failpoints`.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($name);
    };
}

mod cli;
mod client;
mod config;
mod ctl;
mod data_dir;
mod demo;
#[cfg(feature = "failpoints")]
mod failpoints;
mod fatal;
mod logging;
mod password;
mod preflight;
mod server;

use std::process::ExitCode;

/// Values come and go at the rate of writes, on cold memory: this allocator keeps its lists out of
/// the freed blocks (figures in docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::{Config, Flags};
use crate::data_dir::DataDir;
use crate::fatal::Fatal;

/// A sharded, linearizable, durable key-value store that speaks the Redis protocol
#[derive(Parser)]
#[command(name = "coracle", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value, made once")]
enum Command {
    /// Run a node
    Node(Node),
    /// Send one command, or open a prompt
    Cli(cli::CliArgs),
    /// Look at data directories, and compare replicas
    Ctl(ctl::CtlArgs),
    /// Start a cluster on this machine to try things out; thrown away at the end
    Demo(demo::DemoArgs),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Node {
    #[command(subcommand)]
    action: Option<NodeAction>,
    #[command(flatten)]
    flags: Flags,
    /// Stop when stdin is closed, as it is when the process at its other end is gone
    #[arg(long)]
    exit_with_parent: bool,
}

#[derive(Subcommand)]
enum NodeAction {
    /// Print the effective configuration and where each value came from
    CheckConfig(CheckConfig),
}

#[derive(Args)]
struct CheckConfig {
    #[command(flatten)]
    flags: Flags,
}

fn main() -> ExitCode {
    fatal::install_panic_hook();
    // What the environment says in FAILPOINTS holds until the process ends.
    #[cfg(feature = "failpoints")]
    std::mem::forget(fail::FailScenario::setup());
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    // Flags stand in the deepest subcommand.
    let mut deepest = &matches;
    while let Some((_, below)) = deepest.subcommand() {
        deepest = below;
    }
    let from_environment = |name: &str| {
        let known = deepest.try_contains_id(name).unwrap_or(false);
        known && deepest.value_source(name) == Some(ValueSource::EnvVariable)
    };
    let load = |flags| Config::load(flags, &from_environment, &|name| std::env::var_os(name));
    let result = match cli.command {
        Command::Node(Node { action: None, flags, exit_with_parent }) => {
            if exit_with_parent {
                stop_with_parent();
            }
            load(flags).and_then(run_node).map(|()| ExitCode::SUCCESS)
        }
        Command::Node(Node { action: Some(NodeAction::CheckConfig(check)), .. }) => {
            load(check.flags).map(|config| {
                print(&config.describe());
                ExitCode::SUCCESS
            })
        }
        Command::Cli(args) => cli::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Demo(args) => demo::run(args),
    };
    result.unwrap_or_else(|fatal| fatal.report())
}

/// Sends this process SIGTERM once stdin ends.
fn stop_with_parent() {
    let watch = || {
        // Nobody writes there; an error ends it just as the end does.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    };
    // Without the thread the node only outlives its parent.
    let _ = std::thread::Builder::new().name("parent".to_owned()).spawn(watch);
}

/// Runs a node until it is told to stop.
fn run_node(config: Config) -> Result<(), Fatal> {
    let logging = logging::start(&config)?;
    for warning in preflight::check(&config)? {
        tracing::warn!(target: "node", "{warning}");
    }
    let data_dir = DataDir::open(&config)?;
    preflight::check_places(&config)?;
    tracing::info!(
        target: "node",
        version = env!("CARGO_PKG_VERSION"),
        node = config.id.get(),
        cluster = config.cluster,
        data_dir = %data_dir.path().display(),
        "starting"
    );
    let result = server::run(config, &data_dir, logging.drop_counter());
    tracing::info!(target: "node", "stopped");
    result
}

/// Writes to stdout; a closed pipe is the reader's choice.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
