//! Entries that are on disk only: what is asked for, and what comes back.

use crate::raft::Raft;
use crate::{Entry, LoadRange, LogIndex};

impl Raft {
    /// Committed entries after the last ones handed out. Empty when there are none, or when they
    /// have to be read back first: then the next drain asks for them.
    pub fn next_committed(&mut self, bytes_max: usize) -> Vec<Entry> {
        if let Some(entries) = self.log.deliver(bytes_max) {
            return entries;
        }
        let first = self.log.delivered().next();
        if self.apply_load != Some(first) && self.now >= self.apply_load_after {
            self.apply_load = Some(first);
            let last = self.log.last_on_disk_only().min(self.log.commit());
            self.load(LoadRange { first, last, bytes_max });
        }
        Vec::new()
    }

    /// Entries asked for by [`crate::Ready::loads`], or why they cannot be read. Returns those the state
    /// machine waits for, if it does.
    pub fn entries_loaded(
        &mut self,
        first: LogIndex,
        entries: Result<Vec<Entry>, String>,
    ) -> Vec<Entry> {
        let retry_at = self.now + u64::from(self.config.election_timeout_ticks);
        let entries = match entries {
            Ok(entries) if self.is_ours(first, &entries) => entries,
            // Damage, or the log has moved on: those who wait ask again, a little later.
            _ => {
                if self.apply_load == Some(first) {
                    self.apply_load = None;
                    self.apply_load_after = retry_at;
                }
                for progress in self.progress.values_mut() {
                    if progress.loading == Some(first) {
                        progress.loading = None;
                        progress.load_after = retry_at;
                    }
                }
                return Vec::new();
            }
        };
        self.send_loaded(first, &entries);
        if self.apply_load != Some(first) {
            return Vec::new();
        }
        self.apply_load = None;
        let mut entries = entries;
        if first != self.log.delivered().next() {
            return Vec::new();
        }
        entries.retain(|entry| entry.index <= self.log.commit());
        if let Some(last) = entries.last() {
            self.log.delivered_to(last.index);
        }
        entries
    }

    /// Whether entries from `first` on were asked for because they are to be applied, and have not
    /// come.
    pub fn waits_to_apply(&self, first: LogIndex) -> bool {
        self.apply_load == Some(first)
    }

    pub(crate) fn load(&mut self, range: LoadRange) {
        if !self.out.loads.contains(&range) {
            self.out.loads.push(range);
        }
    }

    /// Whether entries read back are still what the log holds there.
    fn is_ours(&self, first: LogIndex, entries: &[Entry]) -> bool {
        !entries.is_empty()
            && entries.iter().zip(first.get()..).all(|(entry, index)| {
                entry.index.get() == index && self.log.term_of(entry.index) == Some(entry.term)
            })
    }
}
