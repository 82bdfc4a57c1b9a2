//! Views into a core for those who check it.

use coracle_raft::{GroupId, LogIndex, Place, Raft};

use crate::store::{Item, Key, Located, Value};
use crate::{Core, SlotId};

/// What waits in a core and what it holds; every number has a limit in [`crate::CoreConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Reads that wait.
    pub reads_open: usize,
    /// Bytes of writes whose outcome is open.
    pub uncommitted_bytes: usize,
    /// Bytes of commands that other cores work on.
    pub forwards_bytes: usize,
    /// Commands that wait for a leader.
    pub parked: usize,
    /// Their bytes.
    pub parked_bytes: usize,
    /// Bytes of keys, values and indexes.
    pub memory_bytes: usize,
}

/// What a replica's state machine holds at one applied index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// See [`Core::digest`].
    pub digest: u64,
    /// Keys.
    pub keys: u64,
    /// Those that will expire.
    pub keys_with_expiry: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Milliseconds of the log clock.
    pub log_clock: u64,
}

/// A value that the index has in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Whose.
    pub group: GroupId,
    /// The key.
    pub key: Vec<u8>,
    /// Index of the entry that changed it last.
    pub version: LogIndex,
    /// Where its record stands.
    pub place: Place,
    /// Bytes that the record's payload has at least.
    pub payload_len: u64,
    /// Its record may hold values of other keys behind it.
    pub is_one_of_many: bool,
}

impl Core {
    /// The values that the index has in the log, in any order.
    pub fn stored_values(&self) -> impl Iterator<Item = Stored> {
        let shards = |group: &crate::group::Group| group.store.shards().len();
        let all = self.groups.iter().flat_map(move |group| {
            (0..shards(group)).flat_map(move |at| {
                group.store.shards()[at].items().map(move |item| (group.id, item))
            })
        });
        all.filter_map(|(group, item)| {
            let (located, key) = (item.value.located()?, item.key.bytes());
            Some(Stored {
                group,
                key: key.to_vec(),
                version: item.version,
                place: located.place,
                payload_len: located.payload_len(key) as u64,
                is_one_of_many: located.arg != Located::MOVED,
            })
        })
    }

    /// The oldest segment with a value of a shard that is arriving from another replica.
    pub fn oldest_arriving(&self) -> Option<u64> {
        self.groups.iter().filter_map(crate::group::Group::oldest_arriving).min()
    }

    /// A value whose bytes are unknown although the entry is applied at which they should be known
    /// again, and that entry.
    pub fn overdue_value(&self) -> Option<(GroupId, &[u8], LogIndex)> {
        self.groups.iter().find_map(|group| {
            let reached = |at| at <= group.applied();
            let mut lost = group.lost.iter().filter(|lost| !group.stalls.holds(lost.shard));
            let overdue = lost.find(|lost| reached(lost.known_at))?;
            Some((group.id, &*overdue.key, overdue.known_at))
        })
    }

    /// The version of a key whose value this replica has.
    pub fn version_of(&self, group: GroupId, key: &[u8]) -> Option<LogIndex> {
        let group = &self.groups[self.place(group)?];
        let item = group.store.shard(SlotId::of_key(key))?.peek(key)?;
        (!item.value.is_lost()).then_some(item.version)
    }

    /// Consensus of one group; `None` if it has no replica here.
    pub fn raft(&self, group: GroupId) -> Option<&Raft> {
        Some(&self.groups[self.place(group)?].raft)
    }

    /// Consensus of every group here, ascending.
    pub fn rafts(&self) -> impl Iterator<Item = (GroupId, &Raft)> {
        self.groups.iter().map(|group| (group.id, &group.raft))
    }

    /// What waits here now.
    pub fn levels(&self) -> Levels {
        Levels {
            reads_open: self.reads_open,
            uncommitted_bytes: self.tally.inflight_bytes,
            forwards_bytes: self.forwards.bytes(),
            parked: self.parked.len(),
            parked_bytes: self.parked.bytes(),
            memory_bytes: self.memory_bytes() as usize,
        }
    }

    /// Whether some shard here can only be had again with what a leader has sent of it.
    pub fn needs_received(&self) -> bool {
        self.groups.iter().any(|group| group.state_needed_from().is_some())
    }

    /// Changes what this replica holds for a key, as a bug or bad memory would: an item is made
    /// older by one entry. Returns whether there was one.
    pub fn corrupt(&mut self, key: &[u8]) -> bool {
        let slot = SlotId::of_key(key);
        let group = self.config.map.group_of_slot(slot);
        let Some(place) = self.place(group) else { return false };
        let store = &mut self.groups[place].store;
        let Some(shard) = store.place(slot) else { return false };
        let older = |item: &mut Item| item.version = LogIndex::new(item.version.get() - 1);
        store.change(shard, |shard| shard.update(key, older)).is_some()
    }

    /// Puts a key into the memory of this replica that no entry of the log has put there, as bad
    /// memory would. Returns its group, if it has a replica here.
    pub fn stray(&mut self, key: &[u8]) -> Option<GroupId> {
        let slot = SlotId::of_key(key);
        let id = self.config.map.group_of_slot(slot);
        let place = self.place(id)?;
        let version = self.groups[place].applied();
        let store = &mut self.groups[place].store;
        let (shard, before) = (store.place(slot)?, store.totals());
        let value = Value::Memory(b"stray".to_vec());
        let item = Item { key: Key::new(key), value, version, expires_at: 0, sum: 0 };
        store.change(shard, |shard| shard.insert(item));
        self.totals.exchange(before, self.groups[place].store.totals());
        Some(id)
    }

    /// Whether a group's replica here knows that it holds something else than the others.
    pub fn has_diverged(&self, group: GroupId) -> bool {
        self.place(group).is_some_and(|place| self.groups[place].checks.is_diverged())
    }

    /// What a group's replica here holds, and the index of the last entry that is in it. `None`
    /// if there is no replica, or if some of its shards came from a snapshot and hold more than
    /// is applied, or wait for a value and hold less. Looks at every key, and panics if the digest
    /// that is kept up to date is not that of the keys.
    pub fn content(&self, group: GroupId) -> Option<(LogIndex, Content)> {
        let group = &self.groups[self.place(group)?];
        if group.is_ahead() || !group.stalls.is_empty() {
            return None;
        }
        let digest = group.store.digest();
        assert_eq!(digest, group.store.digest_of_items(), "the digest is kept up to date");
        let content = Content {
            digest,
            keys: group.store.keys(),
            keys_with_expiry: group.store.keys_with_expiry(),
            bytes: group.store.totals().data as u64,
            log_clock: group.store.clock(),
        };
        Some((group.applied(), content))
    }
}
