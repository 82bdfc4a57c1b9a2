//! `coracle ctl`: looks at data directories while no node runs on them, and compares replicas of a
//! cluster that runs.
//!
//! In: directories or addresses. Out: text or JSON on stdout, and a status that tells what was
//! found. Nothing is ever changed.
//!
//! Not here: how bytes are read (`wal`) and what they mean (`engine`).

mod check;
mod digest;
mod dump;
mod findings;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle_wal::{Examination, Identity, RealDisk};
use indicatif::{ProgressBar, ProgressStyle};

use crate::data_dir::Offline;
use crate::fatal::{Exit, Fatal};
use crate::server::storage_error;

/// Flags of `coracle ctl`.
#[derive(Args, Debug)]
pub(crate) struct CtlArgs {
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand, Debug)]
enum CtlCommand {
    /// Look at write-ahead logs
    Wal {
        #[command(subcommand)]
        command: WalCommand,
    },
    /// Check a data directory: logs, checkpoints, and that every value is where the index says
    Check(Target),
    /// Compare what the replicas of each group hold, at the same entry
    Digest(digest::DigestArgs),
}

#[derive(Subcommand, Debug)]
enum WalCommand {
    /// Print the entries in the order of the log
    Dump(dump::DumpArgs),
    /// Read every segment, batch and record, and report damage
    Verify(Target),
}

/// What to look at, and how to show it.
#[derive(Args, Debug)]
struct Target {
    /// A data directory, or the directory of one core in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only this core
    #[arg(long, value_name = "N")]
    core: Option<u16>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs `coracle ctl`.
pub(crate) fn run(args: CtlArgs) -> Result<ExitCode, Fatal> {
    match args.command {
        CtlCommand::Wal { command: WalCommand::Dump(args) } => dump::run(&args),
        CtlCommand::Wal { command: WalCommand::Verify(target) } => check::verify(&target),
        CtlCommand::Check(target) => check::run(&target),
        CtlCommand::Digest(args) => digest::run(&args),
    }
}

/// The logs to look at.
struct Logs {
    /// The data directory they are in, if they are in one.
    dir: Option<Offline>,
    logs: Vec<Log>,
}

/// One core's log.
struct Log {
    /// The core, if the directory says which one.
    core: Option<u16>,
    disk: RealDisk,
    /// What it must say of itself, if that is known.
    identity: Option<Identity>,
}

impl Log {
    /// How the log is called in what is printed.
    fn name(&self) -> String {
        match self.core {
            Some(core) => format!("core-{core}"),
            None => self.disk.dir().display().to_string(),
        }
    }

    fn open(&self) -> Result<Examination<'_, RealDisk>, Fatal> {
        Examination::open(&self.disk, self.identity).map_err(storage_error)
    }
}

impl Target {
    fn logs(&self) -> Result<Logs, Fatal> {
        logs(&self.dir, self.core)
    }
}

/// Finds the logs in a data directory, or the one of a core's directory.
fn logs(dir: &Path, core: Option<u16>) -> Result<Logs, Fatal> {
    if let Err(error) = std::fs::read_dir(dir) {
        return Err(Fatal::disk(&format!("cannot list {}", dir.display()), &error));
    }
    if Offline::is_at(dir) {
        return in_data_dir(Offline::open(dir)?, core);
    }
    let canonical = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let name = canonical.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("core-").and_then(|number| number.parse().ok());
    if let (Some(number), Some(parent)) = (number, canonical.parent())
        && Offline::is_at(parent)
    {
        return in_data_dir(Offline::open(parent)?, Some(number));
    }
    // A copy, perhaps: nothing tells whose it must be.
    let disk = RealDisk::read_only(dir);
    Ok(Logs { dir: None, logs: vec![Log { core: None, disk, identity: None }] })
}

fn in_data_dir(dir: Offline, core: Option<u16>) -> Result<Logs, Fatal> {
    if let Some(core) = core.filter(|&core| core >= dir.cores) {
        let (what, has) = (format!("there is no core {core}"), format!("it has {}", dir.cores));
        return Err(Fatal::usage(what, has, "give a smaller number (--core)"));
    }
    let cores = (0..dir.cores).filter(|&at| core.is_none_or(|wanted| wanted == at));
    let log = |core| Log {
        core: Some(core),
        disk: RealDisk::read_only(&dir.core_dir(core)),
        identity: Some(dir.log_identity(core)),
    };
    let logs = cores.map(log).collect();
    Ok(Logs { dir: Some(dir), logs })
}

/// A bar on the terminal, if there is one.
fn progress(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {msg}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Writes to stdout. `false`: nobody reads it any more.
fn print(text: &str) -> bool {
    std::io::stdout().write_all(text.as_bytes()).is_ok()
}

/// Bytes for people to read: what is not printable ASCII is escaped.
fn readable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn status(exit: Option<Exit>) -> ExitCode {
    exit.map_or(ExitCode::SUCCESS, ExitCode::from)
}
