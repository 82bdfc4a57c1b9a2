//! ReadIndex: linearizable reads without log entries (thesis §6.4).
//!
//! A read is confirmed by echoes of a quorum to a round that was sent after the read arrived.
//! Reads that arrive between two sends share a round; there are no contexts on the wire that
//! could be taken for those of another leader.

use std::collections::VecDeque;

use crate::planted::{Bug, planted};
use crate::raft::{Raft, Role};
use crate::{Body, LogIndex, NodeId, ReadPolicy, ReadState};

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asker {
    /// `None`: this replica's own driver.
    node: Option<NodeId>,
    context: u64,
}

/// Reads on their way.
#[derive(Debug)]
pub(crate) struct Reads {
    max: usize,
    /// Leader: they wait for the first commit of the term.
    early: Vec<Asker>,
    /// Leader: they wait for the next send.
    unsent: Vec<(Asker, LogIndex)>,
    /// Leader: they wait for a quorum's echo of a round; ascending.
    sent: VecDeque<(u64, Asker, LogIndex)>,
    /// Leader, with leases: rounds and the ticks they were sent at; ascending.
    rounds: VecDeque<(u64, u64)>,
    /// Follower: passed on to the leader at a tick.
    forwarded: VecDeque<(u64, u64)>,
}

impl Reads {
    pub(crate) const fn new(max: usize) -> Self {
        Self {
            max,
            early: Vec::new(),
            unsent: Vec::new(),
            sent: VecDeque::new(),
            rounds: VecDeque::new(),
            forwarded: VecDeque::new(),
        }
    }

    /// Whether reads wait for a send.
    pub(crate) fn wants_round(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// A round goes out now: it will confirm what has arrived until now.
    pub(crate) fn round_sent(&mut self, round: u64, now: u64) {
        self.sent.extend(self.unsent.drain(..).map(|(asker, index)| (round, asker, index)));
        if self.rounds.back().is_none_or(|&(_, at)| at < now) {
            self.rounds.push_back((round, now));
        }
    }

    fn is_full(&self) -> bool {
        self.early.len() + self.unsent.len() + self.sent.len() + self.forwarded.len() >= self.max
    }
}

impl Raft {
    /// Asks for an index such that reads served after applying it are linearizable. The answer
    /// comes in [`crate::Ready::reads`], exactly once; its index is `None` when leadership or
    /// term changed or the leader did not answer: ask again. Contexts must not be used twice.
    pub fn read_index(&mut self, context: u64) {
        let asker = Asker { node: None, context };
        if self.role == Role::Leader {
            return self.read_as_leader(asker);
        }
        match self.leader {
            Some(_) if planted(Bug::FollowerReadsOwnCommit) => {
                self.answer(asker, Some(self.log.commit()));
            }
            Some(leader) if !self.reads.is_full() => {
                self.reads.forwarded.push_back((context, self.now));
                self.send(leader, Body::ReadIndex { context });
            }
            _ => self.answer(asker, None),
        }
    }

    pub(crate) fn handle_read_index(&mut self, from: NodeId, context: u64) {
        let asker = Asker { node: Some(from), context };
        if self.role == Role::Leader && self.progress.contains_key(&from) {
            self.read_as_leader(asker);
        } else {
            self.answer(asker, None);
        }
    }

    pub(crate) fn handle_read_index_response(
        &mut self,
        from: NodeId,
        context: u64,
        index: Option<LogIndex>,
    ) {
        if self.leader != Some(from) {
            return;
        }
        let found = self.reads.forwarded.iter().position(|&(asked, _)| asked == context);
        if let Some(at) = found {
            self.reads.forwarded.remove(at);
            self.out.reads.push(ReadState { context, index });
        }
    }

    fn read_as_leader(&mut self, asker: Asker) {
        if self.reads.is_full() {
            self.answer(asker, None);
        } else if !self.can_read() && !planted(Bug::ReadBeforeOwnCommit) {
            // The commit index may be behind what earlier leaders acknowledged (§6.4, step 1).
            self.reads.early.push(asker);
        } else if self.has_lease() || planted(Bug::ReadWithoutQuorum) {
            self.answer(asker, Some(self.log.commit()));
        } else if planted(Bug::ReadConfirmedByOldRound) {
            let round = self.quorum_round() + 1;
            self.reads.sent.push_back((round, asker, self.log.commit()));
        } else {
            self.reads.unsent.push((asker, self.log.commit()));
        }
    }

    /// The first commit of the term may have come: reads can start.
    pub(crate) fn admit_reads(&mut self) {
        if !self.reads.early.is_empty() && self.can_read() {
            for asker in std::mem::take(&mut self.reads.early) {
                self.read_as_leader(asker);
            }
        }
    }

    /// Answers the reads whose round a quorum has echoed.
    pub(crate) fn confirm_reads(&mut self) {
        let reached = self.quorum_round();
        while self.reads.sent.front().is_some_and(|&(round, ..)| round <= reached) {
            let (_, asker, index) = self.reads.sent.pop_front().expect("just seen");
            self.answer(asker, Some(index));
        }
        // Keep the newest round that is reached: the lease counts from when it was sent.
        while self.reads.rounds.get(1).is_some_and(|&(round, _)| round <= reached) {
            self.reads.rounds.pop_front();
        }
    }

    /// Followers' reads that the leader does not answer are refused after an election timeout.
    pub(crate) fn expire_forwarded_reads(&mut self) {
        let patience = u64::from(self.config.election_timeout_ticks);
        while let Some(&(context, since)) = self.reads.forwarded.front() {
            if self.now - since < patience {
                break;
            }
            self.reads.forwarded.pop_front();
            self.out.reads.push(ReadState { context, index: None });
        }
    }

    /// Leadership or term have changed: no read under way can be confirmed any more.
    pub(crate) fn drop_reads(&mut self) {
        let Reads { early, unsent, sent, forwarded, rounds, .. } = &mut self.reads;
        let askers = early
            .drain(..)
            .chain(unsent.drain(..).map(|(asker, _)| asker))
            .chain(sent.drain(..).map(|(_, asker, _)| asker))
            .chain(forwarded.drain(..).map(|(context, _)| Asker { node: None, context }))
            .filter(|asker| asker.node.is_none());
        let refused = askers.map(|asker| ReadState { context: asker.context, index: None });
        self.out.reads.extend(refused);
        rounds.clear();
    }

    fn answer(&mut self, asker: Asker, index: Option<LogIndex>) {
        let Asker { node, context } = asker;
        match node {
            Some(node) => self.send(node, Body::ReadIndexResponse { context, index }),
            None => self.out.reads.push(ReadState { context, index }),
        }
    }

    /// Whether a quorum is bound to follow this leader for now (thesis §6.4.1). A transfer frees
    /// its target of that, so it ends the lease.
    fn has_lease(&self) -> bool {
        let ReadPolicy::Lease { drift_ticks } = self.config.read else { return false };
        // A follower's last tick before it heard the round may be nearly over: one tick less.
        let length = u64::from(self.config.election_timeout_ticks - drift_ticks - 1);
        let reached = self.quorum_round();
        self.transfer.is_none()
            && !self.lease_void
            && self
                .reads
                .rounds
                .front()
                .is_some_and(|&(round, sent_at)| round <= reached && self.now < sent_at + length)
    }
}
