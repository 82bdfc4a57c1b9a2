//! Damage at rest that replicas repair from each other: values in old segments, which recovery
//! does not read, on every node.
//!
//! What cannot be repaired by anybody proves nothing. So the values of a key are damaged on one of
//! the group's replicas only, which one depends on the key: never on the node that other damage may
//! hit, and only while a third replica has the same value durably.
//!
//! And damage that no other replica is needed for: the newest checkpoint, while the one before is
//! whole.

use coracle_engine::testing::Stored;
use coracle_engine::{CoreAddr, CoreId};
use coracle_raft::GroupId;
use coracle_wal::SECTOR_BYTES;

use crate::faults::Undo;
use crate::plan::{Fault, SECOND};
use crate::world::{Event, Step, World};

/// Values damaged at once, at most.
const AT_ONCE_MAX: u64 = 8;
/// Bytes before the payload of a record.
const RECORD_HEADER_BYTES: u64 = 48;
/// Reads are of whole blocks.
const BLOCK: u64 = 4096;
/// A record with several values may be longer than the index knows by this much at most.
const SEVERAL_VALUES_BYTES: u64 = 256 << 10;

impl World {
    /// Damages some values on some core. Whether there were any.
    pub(crate) fn damage_old_values(&mut self) -> bool {
        let first = self.rng.below(self.hosts.len() as u64) as usize;
        for place in 0..self.hosts.len() {
            let host = (first + place) % self.hosts.len();
            let (mut hits, others) = self.values_of(host);
            if hits.is_empty() {
                continue;
            }
            for _ in 0..self.rng.between(1, AT_ONCE_MAX) {
                if hits.is_empty() {
                    break;
                }
                let hit = hits.swap_remove(self.rng.below(hits.len() as u64) as usize);
                self.damage_value(host, &hit, &others);
            }
            return true;
        }
        false
    }

    /// Damages the newest checkpoint of a core, and lets its node start again soon. Not on the node
    /// that other damage may hit, and not while one that was damaged earlier is still there: the
    /// newest may have only that one before it.
    pub(crate) fn damage_newest_checkpoint(&mut self, host: usize) -> bool {
        let node = self.node_of(host);
        if self.plan.hits_victim() && node == self.plan.victim as usize {
            return false;
        }
        let state = &mut self.hosts[host];
        if state.bad_checkpoint.as_ref().is_some_and(|name| state.disk.has(name)) {
            return false;
        }
        let Some(name) = state.disk.newest_checkpoint() else { return false };
        let Some(what) = state.disk.rot_file(&name, &mut self.rng) else { return false };
        state.bad_checkpoint = Some(name);
        self.trace.node(self.now, state.addr, Fault::BadCheckpoint.name(), what);
        let soon = self.now + self.rng.between(0, SECOND / 4);
        self.queue.push(soon, Event::Undo(Undo::ReadAgain(node)));
        true
    }

    /// A checkpoint was finished, and the one before it, which must be kept, is gone: that needs
    /// a reason.
    pub(crate) fn explain_lost_checkpoint(&self, host: usize) -> Step {
        let state = &self.hosts[host];
        if state.damaged || state.bad_checkpoint.is_some() {
            return Ok(());
        }
        let text = format!("{}: a checkpoint is gone that nobody damaged", state.addr);
        Err(self.failure("recovery", text))
    }

    /// Values of a core that may be damaged, and all its others.
    fn values_of(&self, host: usize) -> (Vec<Stored>, Vec<Stored>) {
        let state = &self.hosts[host];
        let (Some(core), Some(storage)) = (&state.core, &state.storage) else {
            return (Vec::new(), Vec::new());
        };
        let (node, before) = (self.node_of(host), storage.unread_before());
        let mut stored: Vec<Stored> = core.stored_values().collect();
        stored.sort_by_key(|value| value.place);
        let may_be_hit =
            |value: &Stored| value.place.segment() < before && self.is_spare(node, value);
        let others = stored.iter().filter(|value| !may_be_hit(value));
        let others: Vec<Stored> = others.cloned().collect();
        // One record may hold several values.
        let alone = |value: &Stored| others.iter().all(|other| other.place != value.place);
        let hits = stored.into_iter().filter(|value| may_be_hit(value) && alone(value));
        (hits.collect(), others)
    }

    /// Whether this is the replica on which the key's values may be damaged, and another one, on
    /// which they never are, has this one for certain.
    fn is_spare(&self, node: usize, value: &Stored) -> bool {
        let (group, core) = (value.group, self.map.core_of(value.group));
        let victim = self.plan.hits_victim().then_some(self.plan.victim as usize);
        let replicas = self.map.replicas(group).map(|id| id.get() as usize - 1);
        let replicas: Vec<usize> = replicas.filter(|&node| Some(node) != victim).collect();
        let hash = value.key.iter().fold(u64::from(group.get()), |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
        replicas[(hash >> 7) as usize % replicas.len()] == node
            && replicas.iter().any(|&other| other != node && self.has(other, core, group, value))
    }

    fn has(&self, node: usize, core: CoreId, group: GroupId, value: &Stored) -> bool {
        let id = self.hosts[self.hosts_of(node).start].addr.node;
        let host = self.host_at(CoreAddr { node: id, core });
        self.hosts[host].core.as_ref().is_some_and(|core| {
            let durable =
                core.raft(group).is_some_and(|raft| raft.durable_index() >= value.version);
            durable && core.version_of(group, &value.key) == Some(value.version)
        })
    }

    /// Changes bytes of a value, or makes a sector of it unreadable if no other one is near.
    fn damage_value(&mut self, host: usize, value: &Stored, others: &[Stored]) {
        let disk = self.hosts[host].disk.clone();
        let storage = self.hosts[host].storage.as_ref();
        let Some(name) = storage.and_then(|s| s.file_of(value.place.segment())) else { return };
        let start = value.place.offset() + RECORD_HEADER_BYTES;
        let sector = start.next_multiple_of(SECTOR_BYTES as u64);
        let fits = sector + SECTOR_BYTES as u64 <= start + value.payload_len;
        let block = sector & !(BLOCK - 1);
        let reads_it = |other: &Stored| {
            let end = other.place.offset() + RECORD_HEADER_BYTES + other.payload_len;
            let end = end + if other.is_one_of_many { SEVERAL_VALUES_BYTES } else { 0 };
            other.place.segment() == value.place.segment()
                && other.place.offset() & !(BLOCK - 1) <= block
                && block < end.next_multiple_of(BLOCK)
        };
        let what = if fits && !others.iter().any(reads_it) && self.rng.chance(0.5) {
            disk.make_unreadable(&name, sector..sector + SECTOR_BYTES as u64);
            format!("a sector at {sector} of {name}")
        } else {
            let at = start + self.rng.below(value.payload_len);
            disk.flip(&name, at, (self.rng.next() as u8).max(1));
            format!("a byte at {at} of {name}")
        };
        self.hosts[host].values_damaged = true;
        let key = String::from_utf8_lossy(&value.key);
        let what = format!("{what}: {key} of {}, version {}", value.group, value.version);
        self.trace.node(self.now, self.hosts[host].addr, Fault::OldValue.name(), what);
    }
}
