//! One core and its disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_raft::{BatchSeq, Entry, EntryKind, GroupId, LogIndex, Place, Record};

use crate::{CheckpointWork, Core, Effects, Load, ScanSegment};

/// Records in a segment: few, so that segments come and go.
const SEGMENT_RECORDS: u64 = 64;
/// Records that one part of a scan gives.
const SCAN_RECORDS: usize = 24;
/// Checkpoint files that are kept.
const FILES_MAX: usize = 2;

/// A record with its place, and the batch of this life that wrote it.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) batch: BatchSeq,
    pub(super) place: Place,
    pub(super) record: Record,
}

/// One core with its disk.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) core: Option<Core>,
    /// Counts its starts: what was begun in an earlier life is void.
    pub(super) life: u64,
    /// What is durable and counts for a restart, in order.
    pub(super) disk: Vec<Written>,
    /// The same entries by place in their group's log, to be read back.
    pub(super) entries: BTreeMap<(GroupId, LogIndex), (Place, Entry)>,
    /// Durable records that hold values.
    values: BTreeMap<Place, Record>,
    /// Segments before this one are gone.
    pub(super) values_from: u64,
    /// Records whose values cannot be read any more.
    damaged: BTreeSet<Place>,
    /// Entries that cannot be read any more, neither for their values nor for themselves.
    pub(super) lost: BTreeSet<Place>,
    /// Records that were given a place.
    placed: u64,
    /// Complete checkpoint files.
    pub(super) files: BTreeMap<u64, Vec<Vec<u8>>>,
    /// The one that is being written.
    file: Option<(u64, Vec<Vec<u8>>)>,
    pub(super) writing: usize,
    pub(super) frozen_disk: bool,
    /// Entries cannot be read back.
    pub(super) fails_loads: bool,
    /// Batches that would be durable if the disk were not frozen.
    pub(super) stalled: VecDeque<(BatchSeq, Vec<Written>)>,
    pub(super) effects: Effects,
}

impl Machine {
    /// Gives records their places.
    pub(super) fn place(&mut self, batch: BatchSeq, records: Vec<Record>) -> Vec<Written> {
        let place = |record| {
            let (segment, at) = (self.placed / SEGMENT_RECORDS, self.placed % SEGMENT_RECORDS);
            self.placed += 1;
            Written { batch, place: Place::new(segment, at * 8), record }
        };
        records.into_iter().map(place).collect()
    }

    /// The segment that is being written.
    pub(super) const fn segment(&self) -> u64 {
        self.placed / SEGMENT_RECORDS
    }

    /// Makes a batch durable.
    pub(super) fn write(&mut self, records: Vec<Written>) {
        self.disk.extend(records.iter().cloned());
        for Written { place, record, .. } in &records {
            match record {
                Record::Entry { group, entry } => {
                    let later = (*group, entry.index)..=(*group, LogIndex::new(u64::MAX));
                    let stale: Vec<_> = self.entries.range(later).map(|(&at, _)| at).collect();
                    for at in stale {
                        self.entries.remove(&at);
                    }
                    self.entries.insert((*group, entry.index), (*place, entry.clone()));
                    if entry.kind == EntryKind::Command {
                        self.values.insert(*place, record.clone());
                    }
                }
                Record::Value { .. } => {
                    self.values.insert(*place, record.clone());
                }
                Record::Purge { group, base } => {
                    let group = *group;
                    self.entries.retain(|&(g, index), _| g != group || index > base.index);
                    self.disk.retain(|written| match &written.record {
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
        self.disk.retain(|Written { batch, record, .. }| {
            !matches!(record, Record::State { .. }) || record.group() != group || *batch >= before
        });
    }

    /// No value is needed before this segment.
    pub(super) fn release_values(&mut self, from: u64) {
        // A new life counts what is not applied yet, and was in the life before.
        if from <= self.values_from {
            return;
        }
        self.values_from = from;
        self.values = self.values.split_off(&Place::new(from, 0));
        // What recovery reads begins with the oldest record that it needs.
        let needed = |written: &&Written| !matches!(written.record, Record::Value { .. });
        let start = self.disk.iter().find(needed).map_or(from, |written| written.place.segment());
        self.disk.retain(|written| needed(&written) || written.place.segment() >= start.min(from));
    }

    /// Reads a value; `None` if it is not durable yet.
    pub(super) fn value(&self, at: Place) -> Option<Result<Record, String>> {
        match self.values.get(&at) {
            _ if self.is_damaged(at) => Some(Err(format!("{at} is damaged"))),
            Some(record) => Some(Ok(record.clone())),
            None if at.segment() < self.values_from => Some(Err(format!("{at} is gone"))),
            None => None,
        }
    }

    fn is_damaged(&self, at: Place) -> bool {
        self.damaged.contains(&at) || self.lost.contains(&at)
    }

    /// Loses the content of durable entries; all but membership changes can be lost.
    pub(super) fn lose_entries(&mut self, mut chosen: impl FnMut(GroupId, &Entry) -> bool) -> u64 {
        let mut count = 0;
        for (&(group, _), (place, entry)) in &self.entries {
            if entry.kind != EntryKind::Membership && chosen(group, entry) {
                count += u64::from(self.lost.insert(*place));
            }
        }
        count
    }

    pub(super) fn damage_values(&mut self, bytes: &[u8]) {
        for (&place, record) in &self.values {
            let (Record::Entry { entry: Entry { payload, .. }, .. }
            | Record::Value { payload, .. }) = record
            else {
                continue;
            };
            if payload.bytes().windows(bytes.len()).any(|part| part == bytes) {
                self.damaged.insert(place);
            }
        }
    }

    /// Reads a part of a segment.
    pub(super) fn scan(&self, scan: ScanSegment) -> (Vec<(Place, Record)>, Option<u64>) {
        let range = Place::new(scan.segment, scan.from)..Place::new(scan.segment + 1, 0);
        let mut found = self.values.range(range).filter(|(at, _)| !self.is_damaged(**at));
        let core = self.core.as_ref();
        let is_needed = |(at, record): &(&Place, &Record)| {
            let (is_command, payload) = match record {
                Record::Entry { entry, .. } => (true, &entry.payload),
                Record::Value { payload, .. } => (false, payload),
                _ => return false,
            };
            core.is_some_and(|core| {
                core.refers_to(**at, record.group(), is_command, payload.bytes())
            })
        };
        let records = found.by_ref().take(SCAN_RECORDS).filter(is_needed);
        let records = records.map(|(&at, record)| (at, record.clone())).collect();
        (records, found.next().map(|(next, _)| next.offset()))
    }

    /// Does a part of the work on a checkpoint; returns the number of a file that is finished.
    pub(super) fn checkpoint(&mut self, work: CheckpointWork) -> Option<u64> {
        match work {
            CheckpointWork::Begin { number } => self.file = Some((number, Vec::new())),
            CheckpointWork::Section { number, bytes, .. } => {
                if let Some((_, sections)) = self.file.as_mut().filter(|file| file.0 == number) {
                    sections.push(bytes);
                }
            }
            CheckpointWork::Finish { number } => {
                let (_, sections) = self.file.take_if(|file| file.0 == number)?;
                self.files.insert(number, sections);
                while self.files.len() > FILES_MAX {
                    self.files.pop_first();
                }
                return Some(number);
            }
        }
        None
    }

    /// The process is gone, and with it the file that was being written.
    pub(super) fn stop(&mut self) {
        self.file = None;
    }

    /// Reads entries back.
    pub(super) fn read(&self, load: Load) -> Result<Vec<Entry>, String> {
        let range = (load.group, load.first)..=(load.group, load.last);
        if self.fails_loads {
            return Err("the medium cannot be read".to_owned());
        }
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (_, (place, entry)) in self.entries.range(range) {
            if self.lost.contains(place) {
                break;
            }
            bytes += entry.size_bytes();
            entries.push(entry.clone());
            if bytes >= load.bytes_max {
                break;
            }
        }
        if entries.is_empty() { Err(format!("no entry at {}", load.first)) } else { Ok(entries) }
    }
}
