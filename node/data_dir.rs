//! The data directory: whose it is, and that only one process uses it.
//!
//! `LOCK` is locked by the running process and names it; `identity.json` says which node of
//! which cluster wrote here and with which fixed counts; `starts.json` and `peers-0.json`, … are
//! described in `memory`; `core-0`, `core-1`, … hold the logs.

mod memory;
mod offline;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use self::memory::{PeersFile, Starts};
pub(crate) use self::offline::Offline;
use crate::config::Config;
use crate::fatal::{Exit, Fatal};

/// Version of the directory's layout that this program reads and writes.
const FORMAT: u32 = 1;
const LOCK: &str = "LOCK";
const IDENTITY: &str = "identity.json";

/// A directory in use by this process. Dropping it lets another process in.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    starts: Arc<Starts>,
    cluster_id: u128,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Creates or opens the directory of this node and checks that it is its own.
    pub(crate) fn open(config: &Config) -> Result<Self, Fatal> {
        let path = &config.data_dir;
        create_private(path).map_err(disk("cannot create the data directory", path))?;
        let fresh = !exists(&path.join(IDENTITY))?;
        if fresh {
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        let wanted = Identity::of(config);
        match Identity::read(path)? {
            Some(found) => found.check(&wanted, path)?,
            None => wanted.write(path)?,
        }
        let starts = Starts::open(path)?;
        for core in 0..config.map.core_count() {
            let dir = path.join(format!("core-{core}"));
            if starts.are_any() && !holds_files(&dir)? {
                return Err(Fatal::new(
                    Exit::DataDamaged,
                    format!("{} is gone or empty", dir.display()),
                    "this node has run with it, and may have acknowledged what was there",
                    "restore the data directory as a whole, as it was last",
                ));
            }
            create_private(&dir).map_err(disk("cannot create the log directory", &dir))?;
        }
        sync_dir(path).map_err(disk("cannot sync the data directory", path))?;
        let starts = Arc::new(starts);
        Ok(Self { path: path.clone(), starts, cluster_id: config.cluster_id(), _lock: lock })
    }

    /// The directory of one core's log.
    pub(crate) fn core_dir(&self, core: u16) -> PathBuf {
        self.path.join(format!("core-{core}"))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster that the directory belongs to.
    pub(crate) const fn cluster_id(&self) -> u128 {
        self.cluster_id
    }

    /// What counts this start.
    pub(crate) const fn starts(&self) -> &Arc<Starts> {
        &self.starts
    }

    /// Where a core keeps its book of peers.
    pub(crate) fn peers_file(&self, core: u16) -> PeersFile {
        PeersFile::new(&self.path, core)
    }
}

/// What is fixed by the first start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster: String,
    cluster_id: String,
    node: u32,
    cores: u16,
    shards: u16,
    groups: u32,
    nodes: Vec<u32>,
}

impl Identity {
    fn of(config: &Config) -> Self {
        Self {
            format: FORMAT,
            cluster: config.cluster.clone(),
            cluster_id: format!("{:032x}", config.cluster_id()),
            node: config.id.get(),
            cores: config.map.core_count(),
            shards: config.map.shard_count(),
            groups: config.map.group_count(),
            nodes: config.map.nodes().iter().map(|node| node.id.get()).collect(),
        }
    }

    fn read(dir: &Path) -> Result<Option<Self>, Fatal> {
        /// The part every version has.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let path = dir.join(IDENTITY);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("cannot read", &path)(error)),
        };
        let damaged = |error: serde_json::Error| {
            Fatal::new(
                Exit::DataDamaged,
                format!("{} is damaged", path.display()),
                error.to_string(),
                "restore the file from a copy; without it the owner of the data is not known",
            )
        };
        let version: Version = serde_json::from_str(&text).map_err(damaged)?;
        if version.format != FORMAT {
            return Err(Fatal::new(
                Exit::UnknownFormat,
                format!("{} has format {}", dir.display(), version.format),
                format!("this version of coracle reads format {FORMAT}"),
                "use the version that wrote it",
            ));
        }
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    fn write(&self, dir: &Path) -> Result<(), Fatal> {
        let mut text = serde_json::to_string_pretty(self).expect("plain fields become JSON");
        text.push('\n');
        replace(dir, IDENTITY, text.as_bytes())
    }

    /// Whether a node that is `wanted` may use a directory of this identity.
    fn check(&self, wanted: &Self, dir: &Path) -> Result<(), Fatal> {
        let differs = |what: &str, found: String, now: String, fix: &str| {
            Err(Fatal::new(
                Exit::WrongIdentity,
                format!("{} belongs to another {what}", dir.display()),
                format!("it was written for {what} {found}, this node is started for {now}"),
                fix,
            ))
        };
        let other_dir = "give this node its own directory (--data-dir), or correct the setting";
        let fixed = "this is fixed when a cluster is first started; set it back";
        if self.cluster_id != wanted.cluster_id {
            let (found, now) = (self.cluster.clone(), wanted.cluster.clone());
            return differs("cluster", found, now, other_dir);
        }
        if self.node != wanted.node {
            return differs("node", self.node.to_string(), wanted.node.to_string(), other_dir);
        }
        let counts = [
            ("number of cores", u64::from(self.cores), u64::from(wanted.cores)),
            ("number of shards", u64::from(self.shards), u64::from(wanted.shards)),
            ("number of groups", u64::from(self.groups), u64::from(wanted.groups)),
        ];
        for (what, found, now) in counts {
            if found != now {
                return differs(what, found.to_string(), now.to_string(), fixed);
            }
        }
        if self.nodes != wanted.nodes {
            let (found, now) = (format!("{:?}", self.nodes), format!("{:?}", wanted.nodes));
            return differs("list of nodes", found, now, fixed);
        }
        Ok(())
    }
}

/// A directory without identity must hold nothing that is not ours.
fn refuse_foreign(dir: &Path) -> Result<(), Fatal> {
    let entries = fs::read_dir(dir).map_err(disk("cannot list", dir))?;
    for entry in entries {
        let name = entry.map_err(disk("cannot list", dir))?.file_name();
        let name = name.to_string_lossy();
        // A first start that was cut short leaves these; file systems make the last one.
        let ours = [LOCK, "identity.json.tmp", "lost+found"];
        if !ours.contains(&&*name) {
            return Err(Fatal::new(
                Exit::WrongIdentity,
                format!("{} is not a data directory of coracle", dir.display()),
                format!("it has no {IDENTITY}, but it is not empty: it holds '{name}'"),
                "give an empty or a new directory (--data-dir)",
            ));
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File, Fatal> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(disk("cannot open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner = owner.trim();
            return Err(Fatal::new(
                Exit::WrongIdentity,
                format!("{} is in use", dir.display()),
                format!("process {owner} runs on it"),
                format!("stop process {owner}, or give another directory (--data-dir)"),
            ));
        }
        Err(TryLockError::Error(error)) => return Err(disk("cannot lock", &path)(error)),
    }
    file.set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(disk("cannot write", &path))?;
    Ok(file)
}

/// Writes a whole file so that after any crash either the old or the new one is there.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Fatal> {
    let tmp = dir.join(format!("{name}.tmp"));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&tmp, dir.join(name))?;
        sync_dir(dir)
    };
    write().map_err(disk("cannot write", &dir.join(name)))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates the directory and its parents if missing; takes group and others out of its mode.
fn create_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mode = fs::metadata(dir)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Whether there is a directory with something in it.
fn holds_files(dir: &Path) -> Result<bool, Fatal> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(disk("cannot list", dir)(error)),
    }
}

fn exists(path: &Path) -> Result<bool, Fatal> {
    path.try_exists().map_err(disk("cannot look at", path))
}

fn disk(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Fatal {
    let what = format!("{what} {}", path.display());
    move |error| {
        let fix = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as the owner of the directory",
            io::ErrorKind::StorageFull => "free space on that file system",
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                "a file is in the way; choose another directory (--data-dir)"
            }
            io::ErrorKind::NotFound => "choose a place where directories can be made (--data-dir)",
            io::ErrorKind::ReadOnlyFilesystem => "mount the file system writable",
            _ => "",
        };
        let is_full_disk =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Fatal { is_full_disk, ..Fatal::new(Exit::DiskError, what, error.to_string(), fix) }
    }
}

#[cfg(test)]
#[path = "data_dir/tests.rs"]
mod tests;
