//! One replica's disk: what is durable, and the writes under way, which a crash loses.

use std::collections::VecDeque;

use coracle_raft::{
    BatchSeq, Entry, EntryKind, HardState, LoadRange, LogIndex, LogPosition, Membership, Recovered,
    SnapshotPiece, Term,
};

/// One write under way.
pub enum Write {
    /// What one drain handed out.
    Batch { seq: BatchSeq, hard_state: Option<HardState>, entries: Vec<Entry> },
    /// A piece of a snapshot.
    Piece(SnapshotPiece),
    /// The state machine's own snapshot: the log up to it is not needed any more.
    Purge { base: LogPosition, membership: Membership },
}

/// One replica's disk.
pub struct Disk {
    pub hard_state: HardState,
    pub base: LogPosition,
    pub membership: Membership,
    /// The durable log, contiguous from `base.index + 1`.
    pub entries: Vec<Entry>,
    pub writes: VecDeque<Write>,
}

impl Disk {
    pub fn new(membership: Membership) -> Self {
        Self {
            hard_state: HardState::default(),
            base: LogPosition::default(),
            membership,
            entries: Vec::new(),
            writes: VecDeque::new(),
        }
    }

    pub fn last(&self) -> LogIndex {
        self.base.index.plus(self.entries.len() as u64)
    }

    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entries.get(self.offset(index)?).map(|entry| entry.term)
    }

    fn offset(&self, index: LogIndex) -> Option<usize> {
        index.get().checked_sub(self.base.index.get() + 1).map(|offset| offset as usize)
    }

    /// Applies what a batch holds: each entry replaces what is at its index and after it.
    pub fn write(&mut self, hard_state: Option<HardState>, entries: Vec<Entry>) {
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        for entry in entries {
            let Some(offset) = self.offset(entry.index) else { continue };
            assert!(offset <= self.entries.len(), "entry {} leaves a gap", entry.index);
            self.entries.truncate(offset);
            self.entries.push(entry);
        }
    }

    /// The log starts after `base`; what follows it stays only if the log agrees there.
    pub fn rebase(&mut self, base: LogPosition, membership: Membership) {
        if base.index <= self.base.index {
            return;
        }
        if self.term_of(base.index) == Some(base.term) {
            self.entries.drain(..base.index.since(self.base.index) as usize);
        } else {
            self.entries.clear();
        }
        self.base = base;
        self.membership = membership;
    }

    /// Reads entries back.
    pub fn load(&self, range: LoadRange) -> Result<Vec<Entry>, String> {
        let first = self.offset(range.first).ok_or("forgotten")?;
        let count = range.last.next().since(range.first) as usize;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in self.entries.iter().skip(first).take(count) {
            bytes += entry.size_bytes();
            entries.push(entry.clone());
            if bytes >= range.bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// What a restart finds; `tail_count` of the newest entries are read into memory.
    pub fn recovered(&self, tail_count: usize) -> Recovered {
        let mut runs: Vec<LogPosition> = Vec::new();
        for entry in &self.entries {
            if runs.last().is_none_or(|run| run.term != entry.term) {
                runs.push(entry.position());
            }
        }
        let tail_from = self.entries.len().saturating_sub(tail_count);
        let is_membership = |entry: &&Entry| entry.kind == EntryKind::Membership;
        Recovered {
            hard_state: self.hard_state,
            base: self.base,
            membership: self.membership.clone(),
            runs,
            last: self.last(),
            commit: LogIndex::ZERO,
            applied: LogIndex::ZERO,
            tail: self.entries[tail_from..].to_vec(),
            memberships: self.entries.iter().filter(is_membership).cloned().collect(),
        }
    }
}
