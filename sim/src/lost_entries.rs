//! Entries of the log proper that are lost on every node, and that replicas give each other.
//!
//! An entry of one index is damaged on one of the group's replicas only, which one depends on the
//! index: never on the node that other damage may hit, and only while a third replica has the entry
//! durably and knows that it is committed. So whatever else is lost, somebody has it, or a snapshot
//! with what it did.

use coracle_raft::{EntryKind, GroupId, LogIndex, Record};
use coracle_wal::{Examination, Found};

use crate::faults::Undo;
use crate::plan::{Fault, SECOND};
use crate::world::{Event, World};

/// Entries damaged at once, at most.
const AT_ONCE_MAX: u64 = 12;
/// Bytes before the payload of a record.
const RECORD_HEADER_BYTES: u64 = 48;
/// What a disk reads at once.
const BLOCK_BYTES: u64 = coracle_wal::BLOCK_BYTES as u64;
/// So many later batches prove that one was durable: four are in flight at most, and the one after
/// them says so.
const BATCHES_BEHIND: usize = 6;

/// An entry on a disk.
struct Stood {
    group: GroupId,
    index: LogIndex,
    segment: u64,
    /// Where its record starts in the segment.
    offset: u64,
    payload_len: u64,
    /// Number of its batch.
    batch: usize,
}

impl World {
    /// Damages some entries in the log proper of some core. Whether there were any.
    pub(crate) fn lose_entries(&mut self) -> bool {
        let first = self.rng.below(self.hosts.len() as u64) as usize;
        for place in 0..self.hosts.len() {
            let host = (first + place) % self.hosts.len();
            let mut entries = self.entries_to_lose(host);
            if entries.is_empty() {
                continue;
            }
            for _ in 0..self.rng.between(1, AT_ONCE_MAX) {
                if entries.is_empty() {
                    break;
                }
                let hit = entries.swap_remove(self.rng.below(entries.len() as u64) as usize);
                self.lose(host, &hit);
            }
            if self.rng.chance(0.7) {
                let soon = self.now + self.rng.between(0, SECOND / 2);
                let node = self.node_of(host);
                self.queue.push(soon, Event::Undo(Undo::ReadAgain(node)));
            }
            return true;
        }
        false
    }

    fn entries_to_lose(&self, host: usize) -> Vec<Stood> {
        let state = &self.hosts[host];
        if state.core.is_none() || state.damaged {
            return Vec::new();
        }
        let disk = state.disk.copy();
        let Ok(mut log) = Examination::open(&disk, None) else { return Vec::new() };
        let (mut stood, mut batch, mut is_old) = (Vec::new(), 0, false);
        let read = log.each(&mut |found| match found {
            Found::Segment { values_only, .. } => is_old = values_only,
            Found::Batch => batch += 1,
            Found::Record { place, record: Record::Entry { group, entry }, .. } if !is_old => {
                if entry.kind == EntryKind::Command {
                    stood.push(Stood {
                        group,
                        index: entry.index,
                        segment: place.segment(),
                        offset: place.offset(),
                        payload_len: entry.payload.len() as u64,
                        batch,
                    });
                }
            }
            Found::Record { .. } | Found::Damage(_) => {}
        });
        stood.retain(|entry| entry.batch + BATCHES_BEHIND <= batch && self.may_lose(host, entry));
        if read.is_ok() { stood } else { Vec::new() }
    }

    /// Whether this is the replica that may lose the entry, and another one has it for certain.
    fn may_lose(&self, host: usize, entry: &Stood) -> bool {
        let (node, core) = (self.node_of(host), self.hosts[host].addr.core);
        let victim = self.plan.hits_victim().then_some(self.plan.victim as usize);
        let replicas = self.map.replicas(entry.group).map(|id| id.get() as usize - 1);
        let replicas: Vec<usize> = replicas.filter(|&node| Some(node) != victim).collect();
        let has = |node: usize| {
            let there = self.hosts_of(node).find(|&host| self.hosts[host].addr.core == core);
            let core = there.and_then(|host| self.hosts[host].core.as_ref());
            core.and_then(|core| core.raft(entry.group)).is_some_and(|raft| {
                raft.commit() >= entry.index && raft.durable_index() >= entry.index
            })
        };
        let spare = (entry.index.get() / 3 + u64::from(entry.group.get())) as usize;
        replicas[spare % replicas.len()] == node
            && replicas.iter().any(|&other| other != node && has(other))
    }

    /// Changes a byte of the entry's record, or all of its start, or makes a part of it unreadable
    /// that is no other's.
    fn lose(&mut self, host: usize, entry: &Stood) {
        let disk = self.hosts[host].disk.clone();
        let storage = self.hosts[host].storage.as_ref();
        let Some(name) = storage.and_then(|storage| storage.file_of(entry.segment)) else { return };
        let len = RECORD_HEADER_BYTES + entry.payload_len;
        let block = entry.offset.next_multiple_of(BLOCK_BYTES);
        if block + BLOCK_BYTES <= entry.offset + len && self.rng.chance(0.5) {
            disk.make_unreadable(&name, block..block + BLOCK_BYTES);
        } else {
            let bytes = if self.rng.chance(0.5) { 0..1 } else { 0..RECORD_HEADER_BYTES };
            let from = if bytes.end == 1 { self.rng.below(len) } else { 0 };
            for at in bytes {
                disk.flip(&name, entry.offset + from + at, (self.rng.next() as u8).max(1));
            }
        }
        self.hosts[host].values_damaged = true;
        let what =
            format!("entry {} of {}, at {} of {name}", entry.index, entry.group, entry.offset);
        self.trace.node(self.now, self.hosts[host].addr, Fault::LostEntry.name(), what);
    }
}
