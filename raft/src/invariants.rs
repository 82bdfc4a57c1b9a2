//! For tests and the simulator: relations that always hold within one replica, in O(n), and views
//! from which relations between replicas are checked.

use std::collections::VecDeque;

use crate::raft::{Raft, Role};
use crate::{Config, Entry, LogIndex, LogPosition, Membership, SendState};

impl Raft {
    /// Its settings.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Where its last entry stands; the base if there are none.
    pub fn last_position(&self) -> LogPosition {
        self.log.last_position()
    }

    /// An entry of its log, if it is in memory: what is neither applied nor durable always is.
    pub fn entry(&self, index: LogIndex) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// First entry of each run of equal terms after the base, ascending.
    pub fn term_runs(&self) -> &[LogPosition] {
        self.log.runs()
    }

    /// The memberships it knows by the entry that made them, ascending; the first is that of the
    /// base or older, the last is in effect.
    pub const fn memberships(&self) -> &VecDeque<(LogIndex, Membership)> {
        &self.memberships
    }

    /// Bytes of the entries in memory.
    pub const fn cache_bytes(&self) -> usize {
        self.log.cache_bytes()
    }

    /// Bytes of the entries that must stay in memory, for they are not applied or not durable.
    pub fn unsettled_bytes(&self) -> usize {
        let settled = self.log.applied().min(self.log.durable());
        self.log.bytes_between(settled.next(), self.log.last())
    }

    /// Checks every relation within this replica.
    ///
    /// # Panics
    /// If one does not hold: that is a bug.
    pub fn check_invariants(&self) {
        self.log.check();
        let base = self.log.base();
        assert!(self.term >= self.log.last_position().term, "an entry of a term not entered");
        assert!(self.memberships[0].0 <= base.index, "no membership for the base {}", base.index);
        let ordered = self.memberships.iter().zip(self.memberships.iter().skip(1));
        for (a, b) in ordered {
            assert!(a.0 < b.0, "memberships at {} and {}", a.0, b.0);
        }
        assert!(self.membership_index() <= self.log.last(), "a membership past the end");
        match self.role {
            Role::Leader => self.check_leader(),
            _ => assert!(self.progress.is_empty(), "a {:?} tracks followers", self.role),
        }
    }

    fn check_leader(&self) {
        assert!(self.leader == Some(self.config.id), "a leader follows {:?}", self.leader);
        assert!(!self.progress.contains_key(&self.config.id), "a leader follows itself");
        let last: LogIndex = self.log.last();
        for (node, progress) in &self.progress {
            assert!(progress.matched <= last, "{node} matches {} of {last}", progress.matched);
            assert!(progress.next > progress.matched, "{node} is sent what it has");
            assert!(progress.echoed <= self.round, "{node} echoed the future");
            if let SendState::Replicate = progress.state {
                assert!(progress.next <= last.next(), "{node} is sent what does not exist");
            }
        }
    }
}
