//! Views into a core for those who check it.

use coracle_raft::{GroupId, LogIndex, Raft};

use crate::Core;

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

impl Core {
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

    /// What a group's replica here holds, and the index of the last entry that is in it. `None`
    /// if there is no replica, or if some of its shards came from a snapshot and hold more than
    /// is applied, or wait for a value and hold less. Looks at every key.
    pub fn content(&self, group: GroupId) -> Option<(LogIndex, Content)> {
        let group = &self.groups[self.place(group)?];
        if group.is_ahead() || !group.stalls.is_empty() {
            return None;
        }
        let content = Content {
            digest: group.store.digest(),
            keys: group.store.keys(),
            keys_with_expiry: group.store.keys_with_expiry(),
            bytes: group.store.totals().data as u64,
            log_clock: group.store.clock(),
        };
        Some((group.applied(), content))
    }
}
