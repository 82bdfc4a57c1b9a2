//! What a node's disk remembers of its own starts and of those of the other nodes, so that a node
//! whose disk was wiped or replaced by an old copy is found out (`coracle_net::peers`).

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use coracle_net::peers::{Lineage, PeerBook, Start};
use coracle_raft::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{disk, replace};
use crate::fatal::{Exit, Fatal};

/// This node's starts.
pub(super) const STARTS: &str = "starts.json";

/// Counts this process among the starts of its node.
#[derive(Debug)]
pub(crate) struct Starts {
    dir: PathBuf,
    before: Option<Lineage>,
    counted: OnceLock<Result<Arc<Lineage>, Fatal>>,
}

impl Starts {
    /// Reads what the directory remembers.
    pub(super) fn open(dir: &Path) -> Result<Self, Fatal> {
        let stored: Option<StoredStarts> = read(dir, STARTS)?;
        let before = match stored {
            None => None,
            Some(StoredStarts { disk, starts, nonces }) => {
                let lineage = Lineage::from_parts(disk.0, starts, numbers(nonces));
                let lineage = lineage.ok_or_else(|| damaged(dir, STARTS, "wrong counts"))?;
                Some(lineage)
            }
        };
        Ok(Self { dir: dir.to_owned(), before, counted: OnceLock::new() })
    }

    /// Whether a node has already run on the directory.
    pub(super) const fn are_any(&self) -> bool {
        self.before.is_some()
    }

    /// Makes this start durable; the same for all who ask. To be called when nothing is left that
    /// can prevent the start, and before anything is sent: peers that miss many starts in a row
    /// refuse the node.
    pub(crate) fn count(&self) -> Result<Arc<Lineage>, Fatal> {
        self.counted.get_or_init(|| self.write()).clone()
    }

    fn write(&self) -> Result<Arc<Lineage>, Fatal> {
        let lineage = match self.before.clone() {
            Some(mut lineage) => {
                lineage.start(random());
                lineage
            }
            None => Lineage::new(random(), random()),
        };
        let stored = StoredStarts {
            disk: Hex(lineage.disk()),
            starts: lineage.count(),
            nonces: lineage.nonces().iter().copied().map(Hex).collect(),
        };
        write(&self.dir, STARTS, &stored)?;
        tracing::info!(
            target: "node", disk = format!("{:016x}", lineage.disk()), start = lineage.count(),
            "start counted"
        );
        Ok(Arc::new(lineage))
    }
}

/// Where one core's book of peers is kept.
#[derive(Debug)]
pub(crate) struct PeersFile {
    dir: PathBuf,
    name: String,
}

impl PeersFile {
    pub(super) fn new(dir: &Path, core: u16) -> Self {
        Self { dir: dir.to_owned(), name: format!("peers-{core}.json") }
    }

    /// The book; an empty one if there is none.
    pub(crate) fn read(&self) -> Result<PeerBook, Fatal> {
        let stored: BTreeMap<u32, StoredStart> = read(&self.dir, &self.name)?.unwrap_or_default();
        Ok(PeerBook::new(stored.into_iter().map(|(node, start)| {
            let StoredStart { disk: Hex(disk), start: count, nonce: Hex(nonce) } = start;
            (NodeId::new(node), Start { disk, count, nonce })
        })))
    }

    /// Makes what a book holds durable.
    pub(crate) fn write(&self, starts: &[(NodeId, Start)]) -> Result<(), Fatal> {
        let stored = |&(node, start): &(NodeId, Start)| {
            let Start { disk, count, nonce } = start;
            (node.get(), StoredStart { disk: Hex(disk), start: count, nonce: Hex(nonce) })
        };
        let stored: BTreeMap<u32, StoredStart> = starts.iter().map(stored).collect();
        write(&self.dir, &self.name, &stored)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredStarts {
    disk: Hex,
    starts: u64,
    nonces: Vec<Hex>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredStart {
    disk: Hex,
    start: u64,
    nonce: Hex,
}

/// Random numbers are written as in the logs and refusals; not every JSON tool keeps 64 bits.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hex(u64);

impl Clone for Hex {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

impl From<Hex> for String {
    fn from(number: Hex) -> Self {
        format!("{:016x}", number.0)
    }
}

fn numbers(stored: Vec<Hex>) -> Vec<u64> {
    stored.into_iter().map(|Hex(number)| number).collect()
}

/// A random number from the operating system's keys.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, Fatal> {
    let path = dir.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(stored) => Ok(Some(stored)),
            Err(error) => Err(damaged(dir, name, &error.to_string())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk("cannot read", &path)(error)),
    }
}

fn write(dir: &Path, name: &str, stored: &impl Serialize) -> Result<(), Fatal> {
    let mut text = serde_json::to_string_pretty(stored).expect("plain fields become JSON");
    text.push('\n');
    replace(dir, name, text.as_bytes())
}

fn damaged(dir: &Path, name: &str, cause: &str) -> Fatal {
    Fatal::new(
        Exit::DataDamaged,
        format!("{} is damaged", dir.join(name).display()),
        cause,
        "restore this file as it was last; without it a wiped disk cannot be told from a whole one",
    )
}
