//! One core and its disk.

use std::collections::{BTreeMap, VecDeque};

use coracle_raft::{BatchSeq, Entry, GroupId, LogIndex, Record};

use crate::{Core, Effects, Load};

/// One core with its disk.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) core: Option<Core>,
    /// Counts its starts: what was begun in an earlier life is void.
    pub(super) life: u64,
    /// What is durable, in order, with the batch that wrote it in this life.
    pub(super) disk: Vec<(BatchSeq, Record)>,
    /// The same entries by place, to be read back.
    pub(super) entries: BTreeMap<(GroupId, LogIndex), Entry>,
    pub(super) writing: usize,
    pub(super) frozen_disk: bool,
    /// Batches that would be durable if the disk were not frozen.
    pub(super) stalled: VecDeque<(BatchSeq, Vec<Record>)>,
    pub(super) effects: Effects,
}

impl Machine {
    /// Makes a batch durable.
    pub(super) fn write(&mut self, batch: BatchSeq, records: Vec<Record>) {
        self.disk.extend(records.iter().map(|record| (batch, record.clone())));
        for record in &records {
            match record {
                Record::Entry { group, entry } => {
                    let later = (*group, entry.index)..=(*group, LogIndex::new(u64::MAX));
                    let stale: Vec<_> = self.entries.range(later).map(|(&at, _)| at).collect();
                    for at in stale {
                        self.entries.remove(&at);
                    }
                    self.entries.insert((*group, entry.index), entry.clone());
                }
                Record::Purge { group, base } => {
                    let group = *group;
                    self.entries.retain(|&(g, index), _| g != group || index > base.index);
                    self.disk.retain(|(_, record)| match record {
                        Record::Entry { group: g, entry } => {
                            *g != group || entry.index > base.index
                        }
                        Record::Purge { group: g, base: b } => *g != group || b >= base,
                        _ => true,
                    });
                }
                Record::HardState { .. } | Record::State { .. } => {}
            }
        }
    }

    /// Forgets superseded state records, as a log does that uses old segments again.
    pub(super) fn release(&mut self, group: GroupId, before: BatchSeq) {
        self.disk.retain(|(batch, record)| {
            !matches!(record, Record::State { .. }) || record.group() != group || *batch >= before
        });
    }

    /// Reads entries back.
    pub(super) fn read(&self, load: Load) -> Result<Vec<Entry>, String> {
        let range = (load.group, load.first)..=(load.group, load.last);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (_, entry) in self.entries.range(range) {
            bytes += entry.size_bytes();
            entries.push(entry.clone());
            if bytes >= load.bytes_max {
                break;
            }
        }
        if entries.is_empty() { Err(format!("no entry at {}", load.first)) } else { Ok(entries) }
    }
}
