//! Entries that are on disk only: what is asked for, and what comes back.

use crate::planted::{Bug, planted};
use crate::raft::{Needs, Raft, Role};
use crate::{Body, Entry, LoadRange, LogIndex, LogPosition};

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

    /// Entries asked for by [`crate::Ready::loads`], or why they cannot be read. Returns those the
    /// state machine waits for, if it does.
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

    /// Whether entries from `first` on were asked for, to be applied or to be sent, and have not
    /// come.
    pub fn waits_for(&self, first: LogIndex) -> bool {
        self.waits_to_apply(first)
            || self.progress.values().any(|progress| progress.loading == Some(first))
    }

    /// The last entry that is on disk only; those after it are in memory.
    pub fn last_on_disk_only(&self) -> LogIndex {
        self.log.last_on_disk_only()
    }

    /// Entries from `first` up to `last` that are in memory: at least one, and then while they fit
    /// `bytes_max` and `count_max`. `None` if the first one is on disk only; none if there is none.
    pub fn recent_entries(
        &self,
        first: LogIndex,
        last: LogIndex,
        bytes_max: usize,
        count_max: usize,
    ) -> Option<Vec<Entry>> {
        self.log.entries(first, last, bytes_max, count_max)
    }

    /// Whether this log holds the entry at this position. Whoever has an entry of this index and
    /// term has the same entry (Raft paper §5.3, log matching).
    pub fn holds(&self, at: LogPosition) -> bool {
        self.log.term_of(at.index) == Some(at.term) || planted(Bug::FetchedEntryUnproven)
    }

    /// Entries from `first` on can be read neither here nor at another replica. If they wait to be
    /// applied here, the leader is asked for a snapshot. If followers wait for them, they get a
    /// snapshot of what is applied here; where that is less, and what is lost may not even be
    /// committed, this replica stands aside: it cannot commit anything, but others may.
    ///
    /// To be told before [`Raft::entries_loaded`], after which nobody waits for them.
    pub fn lacks(&mut self, first: LogIndex) {
        if self.waits_to_apply(first) && self.role == Role::Follower {
            self.lacking = true;
            if let Some(leader) = self.leader {
                self.send_after(Needs::HardState, leader, Body::SnapshotWanted { first });
            }
        }
        let waiting = self.progress.iter().filter(|(_, progress)| progress.loading == Some(first));
        let waiting: Vec<_> = waiting.map(|(&to, _)| to).collect();
        if waiting.is_empty() {
            return;
        }
        if first > self.log.commit() {
            self.stand_aside();
        } else if first <= self.log.applied() {
            waiting.into_iter().for_each(|to| self.begin_snapshot(to));
        }
    }

    pub(crate) fn load(&mut self, range: LoadRange) {
        if !self.out.loads.contains(&range) {
            self.out.loads.push(range);
        }
    }

    /// Whether entries read back are still what the log holds there.
    fn is_ours(&self, first: LogIndex, entries: &[Entry]) -> bool {
        !entries.is_empty()
            && entries
                .iter()
                .zip(first.get()..)
                .all(|(entry, index)| entry.index.get() == index && self.holds(entry.position()))
    }
}
