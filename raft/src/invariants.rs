//! Relations that always hold within one replica; O(n), for tests and the simulator.

use crate::raft::{Raft, Role};
use crate::{LogIndex, SendState};

impl Raft {
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
