//! Values on their way to a new place in the log: those that were computed, those that came from
//! another replica, and those that stand in old segments which are to be used again.
//!
//! Old segments go first in, first out: the oldest one is read from start to end, what the index
//! still refers to is written once more, and the index is changed when the new place is known. A
//! value that changed meanwhile is left alone. The old place stays good until two checkpoints
//! know the new one, so nothing is lost whenever the process dies.

use std::collections::VecDeque;

use coracle_raft::{Bug, EntryKind, GroupId, LogIndex, Place, Record, planted};

use crate::apply::Wanted;
use crate::cold::Waiter;
use crate::command::encoding::View;
use crate::core::Core;
use crate::moved::Moved;
use crate::store::{Item, Located, Value};
use crate::{DiskSpace, ScanSegment, ShardId, SlotId};

/// Bytes of values moved by one turn.
const MOVED_BYTES_PER_TURN: usize = 1 << 20;
/// Values whose new places are not known yet: no more is read meanwhile.
const MOVING_MAX: usize = 1024;
/// Values that are read one by one at once.
const BY_INDEX_MAX: usize = 16;

/// A value record whose place is not known yet.
#[derive(Debug)]
pub(crate) struct Target {
    /// Place of the group.
    pub(crate) group: usize,
    pub(crate) shard: ShardId,
    pub(crate) key: Box<[u8]>,
    pub(crate) from: From,
}

/// What the index must hold for a moved value to be the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The value in memory of this version.
    Memory(LogIndex),
    /// The value at this place.
    Log(Place),
}

/// The segment that is being emptied.
#[derive(Debug, Default)]
pub(crate) struct Gc {
    scan: Option<ScanSegment>,
    /// The next part to read.
    next: Option<(u64, u64)>,
    /// Read to its end, but not empty: something in it cannot be read.
    stuck: Option<u64>,
    pub(crate) wanted: Option<ScanSegment>,
}

impl Core {
    /// Reads about `bytes` more of the oldest segment with values, if it is before segment
    /// `before`, and moves what is still needed. Returns whether it asked for anything: not while
    /// a part is being read, or much is being moved.
    pub fn gc_step(&mut self, before: u64, bytes: usize) -> bool {
        let is_moving = self.state.bytes() > 0 || self.targets.len() > MOVING_MAX;
        if self.gc.scan.is_some() || is_moving {
            return false;
        }
        let Some(oldest) = self.oldest_value().filter(|&oldest| oldest < before) else {
            return false;
        };
        let (segment, from) = match self.gc.next.take() {
            Some((segment, from)) if segment == oldest => (segment, from),
            // What is still in it may be on its way.
            _ if self.gc.stuck == Some(oldest) => {
                return self.targets.is_empty() && self.empty_by_index(oldest);
            }
            _ => (oldest, 0),
        };
        let scan = ScanSegment { segment, from, bytes };
        (self.gc.scan, self.gc.wanted) = (Some(scan), Some(scan));
        true
    }

    /// Bytes of values in the log that the index refers to, their records included.
    pub fn live_bytes(&self) -> u64 {
        self.groups.iter().map(|group| group.store.live_bytes()).sum()
    }

    /// Whether the index refers to a value in a record of a group: a command, or a value on its
    /// own. The payload may be damaged: then the answer means nothing, but there is one.
    pub fn refers_to(
        &self,
        place: Place,
        group: GroupId,
        is_command: bool,
        payload: &[u8],
    ) -> bool {
        let Some(store) = self.place(group).map(|place| &self.groups[place].store) else {
            return false;
        };
        let refers = |key: &[u8]| {
            let item = store.shard(SlotId::of_key(key)).and_then(|shard| shard.peek(key));
            let located = item.and_then(|item| item.value.located());
            located.is_some_and(|located| located.place == place)
        };
        if is_command {
            View::parse(payload).is_some_and(|view| view.keys().any(refers))
        } else {
            Moved::parse(payload).is_some_and(|moved| refers(moved.key))
        }
    }

    /// A part of a segment has been read.
    pub(crate) fn scanned(
        &mut self,
        scan: ScanSegment,
        records: Vec<(Place, Record)>,
        next: Option<u64>,
    ) {
        if self.gc.scan.take_if(|asked| *asked == scan).is_none() {
            return;
        }
        for (place, record) in records {
            self.move_record(place, &record);
        }
        match next {
            Some(next) => self.gc.next = Some((scan.segment, next)),
            // Whether it is empty shows when the last places are known.
            None => self.gc.stuck = Some(scan.segment),
        }
    }

    /// Asks for values one by one that the index still refers to in a segment, though it was read
    /// to its end: what of it can be read is moved, the rest is repaired. Returns whether it did.
    fn empty_by_index(&mut self, segment: u64) -> bool {
        if self.repairs.len() > 0 || self.cold.waits_for(Waiter::Gc) {
            return false;
        }
        let mut found: Vec<(usize, Wanted)> = Vec::new();
        for (place, group) in self.groups.iter().enumerate() {
            let shards = group.store.shards().iter();
            let shards = shards.filter(|shard| shard.live().oldest() == Some(segment));
            // One shard at a time: looking at all keys may take too long.
            if let Some(shard) = shards.take(1).next() {
                let wanted = shard.items().filter_map(|item| {
                    let located = item.value.located()?;
                    let key = item.key.bytes().into();
                    (located.place.segment() == segment).then_some(Wanted { key, located })
                });
                found.extend(wanted.take(BY_INDEX_MAX).map(|wanted| (place, wanted)));
                break;
            }
        }
        let any = !found.is_empty();
        for (place, wanted) in found {
            self.cold.want(place, wanted, Waiter::Gc);
        }
        any
    }

    /// Writes once more what the index refers to in one record.
    fn move_record(&mut self, at: Place, record: &Record) {
        let Some(place) = self.place(record.group()) else { return };
        match record {
            Record::Entry { entry, .. } if entry.kind == EntryKind::Command => {
                let payload = &entry.payload;
                let Some(view) = View::parse(payload.bytes()) else { return };
                for key in view.keys() {
                    self.move_value(place, key, at, |located, key| {
                        located.slice(key, payload).map(|slice| slice.bytes().to_vec())
                    });
                }
            }
            Record::Value { payload, .. } => {
                let Some(moved) = Moved::parse(payload.bytes()) else { return };
                self.move_value(place, moved.key, at, |located, key| {
                    located.slice(key, payload).map(|slice| slice.bytes().to_vec())
                });
            }
            _ => {}
        }
    }

    pub(crate) fn move_value(
        &mut self,
        place: usize,
        key: &[u8],
        at: Place,
        value: impl FnOnce(&Located, &[u8]) -> Option<Vec<u8>>,
    ) {
        let group = &self.groups[place];
        let Some(shard) = group.store.shard(SlotId::of_key(key)) else { return };
        let Some(item) = shard.peek(key) else { return };
        let Some(located) = item.value.located().filter(|located| located.place == at) else {
            return;
        };
        let Some(value) = value(&located, key) else { return };
        let (id, from) = (shard.id, From::Log(at));
        let payload = moved(id, item, &value);
        self.state.push_value(group.id, payload);
        self.counters.moved_bytes += value.len() as u64;
        self.targets.push_back(Target { group: place, shard: id, key: key.into(), from });
    }

    /// Writes out computed values once they take too much memory.
    pub(crate) fn write_out(&mut self) {
        let limit = self.config.computed_bytes_max;
        let mut over = self.totals.dirty.saturating_sub(limit);
        if over == 0 || self.state.bytes() > 0 || self.space == DiskSpace::Out {
            return;
        }
        over = (over + limit / 2).min(MOVED_BYTES_PER_TURN);
        for place in 0..self.groups.len() {
            while over > 0
                && let Some((shard, key)) = self.groups[place].dirty_keys.pop_front()
            {
                let group = &self.groups[place];
                let shard = &group.store.shards()[shard];
                let Some(item) = shard.peek(&key).filter(|item| item.value.is_dirty()) else {
                    continue;
                };
                let Value::Memory(bytes) = &item.value else { continue };
                over = over.saturating_sub(bytes.len());
                let (from, id) = (From::Memory(item.version), shard.id);
                let payload = moved(id, item, bytes);
                self.state.push_value(group.id, payload);
                self.targets.push_back(Target { group: place, shard: id, key, from });
            }
        }
    }

    /// A value record got its place: the index goes there, if it still means this value.
    pub(crate) fn value_placed(&mut self, place: Place) {
        let Some(target) = self.targets.pop_front() else { return };
        let Target { group, shard, key, from } = target;
        // What stands in the log already is no part of a shard that is arriving.
        let in_memory = matches!(from, From::Memory(_));
        let arriving = self.groups[group].incoming_shard(shard).filter(|_| in_memory);
        let changed = match arriving.filter(|arriving| arriving.peek(&key).is_some()) {
            Some(arriving) => relocate(arriving, &key, from, place),
            None => {
                let Some(at) = self.groups[group].store.place_of(shard) else { return };
                let store = &mut self.groups[group].store;
                let before = store.totals();
                let changed = store.change(at, |shard| relocate(shard, &key, from, place));
                self.totals.exchange(before, store.totals());
                changed
            }
        };
        match changed {
            Relocated::Yes => {
                if let From::Log(old) = from {
                    self.cache.remove(old);
                    self.repaired(group, &key, old, Some(place));
                }
            }

            Relocated::No => {
                if let From::Log(old) = from {
                    self.repaired(group, &key, old, None);
                }
            }
            Relocated::StillDirty => {
                let group = &mut self.groups[group];
                if let Some(at) = group.store.place_of(shard) {
                    group.dirty_keys.push_back((at, key));
                }
            }
        }
        if self.targets.is_empty()
            && self.gc.stuck.is_some()
            && self.gc.stuck != self.oldest_value()
        {
            self.gc.stuck = None;
        }
    }
}

enum Relocated {
    Yes,
    No,
    /// It changed in memory meanwhile.
    StillDirty,
}

fn relocate(shard: &mut crate::store::Shard, key: &[u8], from: From, place: Place) -> Relocated {
    let Some(item) = shard.peek(key) else { return Relocated::No };
    let same = match (&item.value, from) {
        (Value::Log(located), From::Log(old)) => located.place == old,
        (Value::Memory(_), From::Memory(version)) => item.version == version,
        _ => false,
    };
    if !same && !planted(Bug::MovedOverNewer) {
        return if item.value.is_dirty() { Relocated::StillDirty } else { Relocated::No };
    }
    let changed = shard.update(key, |item| {
        let len = u32::try_from(item.value.len()).expect("values are bounded");
        item.value = Value::Log(Located { place, len, arg: Located::MOVED });
    });
    if changed.is_some() { Relocated::Yes } else { Relocated::No }
}

fn moved(shard: ShardId, item: &Item, value: &[u8]) -> coracle_raft::Payload {
    Moved { shard, sum: item.sum, version: item.version, key: item.key.bytes(), value }.encode()
}

/// Value records in the order in which they were made.
pub(crate) type Targets = VecDeque<Target>;
