//! What comes back from the log: the places of records, and values that were read.

use coracle_raft::{BatchSeq, EntryKind, LogPosition, Payload, Place, Record};

use crate::ReadMode;
use crate::apply::Wanted;
use crate::cold::{Open, Waiter};
use crate::core::Core;
use crate::task::{Task, unreadable};

/// What a record of a batch means to its core once it has a place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placing {
    Entry { group: u32, at: LogPosition },
    Value,
    Other,
}

impl Core {
    /// Remembers what is in a batch, for when its places are known.
    pub(crate) fn note_records(&mut self, records: &[Record]) {
        let placing = |record: &Record| match record {
            Record::Entry { group, entry } => {
                let group = self.places[group.get() as usize].expect("its records are here");
                Placing::Entry { group, at: entry.position() }
            }
            Record::Value { .. } => Placing::Value,
            _ => Placing::Other,
        };
        let placing = records.iter().map(placing).collect();
        self.placing.push_back((self.next_batch, placing));
    }

    /// The records of a batch have their places.
    pub(crate) fn placed(&mut self, batch: BatchSeq, places: &[Place]) {
        let Some((noted, placing)) = self.placing.pop_front() else { return };
        assert_eq!((noted, placing.len()), (batch, places.len()), "each batch is placed once");
        if let Some(last) = places.last() {
            self.newest_segment = self.newest_segment.max(last.segment());
        }
        for (&place, placing) in places.iter().zip(placing) {
            match placing {
                Placing::Entry { group, at } => {
                    self.groups[group as usize].places.put(at, place);
                    self.mark(group as usize);
                }
                Placing::Value => self.value_placed(place),
                Placing::Other => {}
            }
        }
    }

    /// A value has been read.
    pub(crate) fn value_read(&mut self, id: u64, record: Result<Record, String>) {
        let Some(open) = self.cold.done(id) else { return };
        let Wanted { key, located } = &open.wanted;
        let group = self.groups[open.group].id;
        let payload = record.and_then(|record| {
            let payload = payload_of(&record).filter(|_| record.group() == group);
            payload
                .filter(|payload| located.slice(key, payload).is_some())
                .cloned()
                .ok_or_else(|| format!("{} holds something else", located.place))
        });
        self.counters.values_read += 1;
        self.counters.failed_reads += u64::from(payload.is_err());
        match payload {
            Ok(payload) => {
                self.cache.insert(located.place, payload.clone());
                let waiters = self.readable_again(open.group, &open.wanted);
                self.value_there(&open, waiters, &payload);
            }
            Err(why) => self.unreadable(open, &why),
        }
    }

    /// Hands a value that was read to all that wait for it.
    fn value_there(&mut self, open: &Open, more: Vec<Waiter>, payload: &Payload) {
        let Wanted { key, located } = &open.wanted;
        for &waiter in open.waiters.iter().chain(&more) {
            match waiter {
                Waiter::Task(reader) => {
                    self.reader_goes_on(reader, Some((located.place, payload.clone())));
                }
                Waiter::Shard(shard) => {
                    let woken = (shard, Some((located.place, payload.clone())));
                    self.groups[open.group].woken.push(woken);
                    self.mark(open.group);
                }
                Waiter::Snapshot(to) => {
                    let payload = payload.clone();
                    self.groups[open.group].snapshot_value(to, located.place, payload);
                    self.mark(open.group);
                }
                Waiter::Peer(from, id) => self.value_for_peer(open, from, id, payload),
                Waiter::Gc => self.move_value(open.group, key, located.place, |located, key| {
                    located.slice(key, payload).map(|slice| slice.bytes().to_vec())
                }),
                Waiter::Repair => {}
            }
        }
    }

    /// A value that a client's read lacked is there, or the read must look again.
    pub(crate) fn reader_goes_on(&mut self, reader: u64, fetched: Option<(Place, Payload)>) {
        if let Some((group, task)) = self.cold.arrived(reader, fetched) {
            self.groups[group].warmed.push(task);
            self.mark(group);
        }
    }

    /// A read cannot be answered from this replica's disk: another one may do better.
    pub(crate) fn unreadable_here(&mut self, place: usize, task: Task, why: &str) {
        if self.groups[place].raft.progress().count() == 0 && self.groups[place].leads() {
            return self.out.reply(task.origin, unreadable(why));
        }
        self.shed_leadership(place);
        self.again(Task { read_mode: ReadMode::Leader, ..task }, None);
    }
}

/// The payload of a record that can hold a value.
fn payload_of(record: &Record) -> Option<&Payload> {
    match record {
        Record::Entry { entry, .. } if entry.kind == EntryKind::Command => Some(&entry.payload),
        Record::Value { payload, .. } => Some(payload),
        _ => None,
    }
}
