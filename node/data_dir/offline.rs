//! A data directory that is only looked at, while no node runs on it.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use coracle_raft::NodeId;
use coracle_wal::Identity as LogIdentity;

use super::{IDENTITY, Identity, LOCK, disk};
use crate::fatal::{Exit, Fatal};

/// A directory that no node uses as long as this lives. Nothing in it is changed.
#[derive(Debug)]
pub(crate) struct Offline {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whose it is: name and number of the cluster.
    pub(crate) cluster: String,
    /// The number of the cluster.
    cluster_id: u128,
    /// The node's number.
    pub(crate) node: u32,
    /// Cores of the node.
    pub(crate) cores: u16,
    /// Shards of the cluster.
    pub(crate) shards: u16,
    /// Keeps a node from starting on it.
    _lock: Option<File>,
}

impl Offline {
    /// Looks whose directory it is and that no node runs on it.
    pub(crate) fn open(path: &Path) -> Result<Self, Fatal> {
        let lock = lock(path)?;
        let Some(identity) = Identity::read(path)? else {
            return Err(Fatal::new(
                Exit::WrongIdentity,
                format!("{} is not a data directory of coracle", path.display()),
                format!("it has no {IDENTITY}"),
                "give the directory that the node has as --data-dir",
            ));
        };
        let cluster_id = u128::from_str_radix(&identity.cluster_id, 16).map_err(|error| {
            Fatal::new(
                Exit::DataDamaged,
                format!("{} is damaged", path.join(IDENTITY).display()),
                format!("the number of the cluster: {error}"),
                "restore the file from a copy",
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            cluster: identity.cluster,
            cluster_id,
            node: identity.node,
            cores: identity.cores,
            shards: identity.shards,
            _lock: lock,
        })
    }

    /// Whether this looks like a data directory.
    pub(crate) fn is_at(path: &Path) -> bool {
        path.join(IDENTITY).exists()
    }

    /// The directory of one core's log.
    pub(crate) fn core_dir(&self, core: u16) -> PathBuf {
        self.path.join(format!("core-{core}"))
    }

    /// What the log of a core must say of itself.
    pub(crate) fn log_identity(&self, core: u16) -> LogIdentity {
        let node = NodeId::new(self.node);
        LogIdentity { cluster: self.cluster_id, node, core: u32::from(core) }
    }
}

/// Keeps nodes away, as far as there is a file to lock: it is made by the first start.
fn lock(dir: &Path) -> Result<Option<File>, Fatal> {
    let path = dir.join(LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(disk("cannot open", &path)(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner = owner.trim();
            Err(Fatal::new(
                Exit::WrongIdentity,
                format!("{} is in use", dir.display()),
                format!("process {owner} runs on it and changes it all the time"),
                "stop that node first; `coracle ctl digest` compares replicas that run",
            ))
        }
        Err(TryLockError::Error(error)) => Err(disk("cannot lock", &path)(error)),
    }
}
