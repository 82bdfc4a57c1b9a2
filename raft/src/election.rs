//! Elections: PreVote, votes, stickiness, terms (Raft paper §5.2, §5.4.1; thesis §4.2.3, §9.6),
//! and leadership transfer (thesis §3.10).

use crate::planted::{Bug, planted};
use crate::raft::{Needs, Raft, Role};
use crate::{
    Body, EntryKind, LogPosition, Message, NodeId, Payload, Progress, Term, TransferError,
    VoteResult, vote_result,
};

/// Election timeouts for which a replica that stands aside does not campaign by itself.
const ASIDE_TIMEOUTS: u32 = 4;

impl Raft {
    /// Starts an election now, as if the timeout had passed: first asks whether it could be won.
    /// Does nothing on a leader, a replica that hears one, or one without a vote.
    pub fn campaign(&mut self) {
        // As long as it hears a leader it has promised to elect nobody else.
        if self.is_loyal() {
            return;
        }
        self.reset_timeout();
        // Also without a vote: the new timeout must not renew loyalty to a leader that is gone.
        self.leader = None;
        self.drop_reads();
        if !self.may_campaign() {
            self.role = Role::Follower;
            return;
        }
        self.role = Role::PreCandidate;
        self.votes.clear();
        self.votes.insert(self.config.id, true);
        if self.vote_result() == VoteResult::Won {
            return self.become_candidate(false);
        }
        let body = Body::PreVote { last: self.log.last_position() };
        let term = self.term.next();
        for to in self.other_voters() {
            let from = self.config.id;
            self.out.messages.push(Message { from, to, term, body: body.clone() });
        }
    }

    /// Hands leadership to another voter: it is brought up to date, then told to campaign.
    /// Proposals are refused meanwhile, for at most an election timeout.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn transfer_leadership(&mut self, to: NodeId) -> Result<(), TransferError> {
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader);
        }
        if let Some((to, _)) = self.transfer {
            return Err(TransferError::InProgress { to });
        }
        if to == self.config.id || !self.membership().voters.contains(&to) {
            return Err(TransferError::NotAVoter(to));
        }
        self.transfer = Some((to, self.now));
        self.send_due = true;
        self.finish_transfer();
        Ok(())
    }

    /// Tells the target of a transfer to campaign once it has everything.
    pub(crate) fn finish_transfer(&mut self) {
        let Some((to, _)) = self.transfer else { return };
        if self.progress.get(&to).is_some_and(|p| p.matched == self.log.last()) {
            // It may arrive at any later time, so there is no lease for the rest of the term.
            self.lease_void = true;
            self.send(to, Body::TimeoutNow);
        }
    }

    /// A message of a higher term has come. Returns whether to look at its content.
    pub(crate) fn meet_higher_term(&mut self, message: &Message) -> bool {
        match message.body {
            // Asks about a term that does not exist yet.
            Body::PreVote { .. } | Body::PreVoteResponse { granted: true } => true,
            // A removed or cut-off replica must not disturb a group that has a leader.
            Body::Vote { transfer: false, .. } if self.is_loyal() => false,
            _ => {
                self.enter_term(message.term);
                true
            }
        }
    }

    /// A message of a lower term has come: its sender must learn ours.
    pub(crate) fn answer_lower_term(&mut self, message: &Message) {
        let body = match message.body {
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
                Body::HeartbeatResponse { round: 0 }
            }
            Body::PreVote { .. } => Body::PreVoteResponse { granted: false },
            Body::Vote { .. } => Body::VoteResponse { granted: false },
            _ => return,
        };
        self.send_after(Needs::HardState, message.from, body);
    }

    pub(crate) fn handle_pre_vote(&mut self, from: NodeId, term: Term, last: LogPosition) {
        let granted = term > self.term && self.is_up_to_date(last) && !self.is_loyal();
        if granted {
            // The answer names the term asked about, which is not ours.
            let body = Body::PreVoteResponse { granted };
            self.out.messages.push(Message { from: self.config.id, to: from, term, body });
        } else {
            self.send_after(Needs::HardState, from, Body::PreVoteResponse { granted });
        }
    }

    pub(crate) fn handle_pre_vote_response(&mut self, from: NodeId, term: Term, granted: bool) {
        if planted(Bug::PreVoteCountedAsVote) {
            self.handle_vote_response(from, granted);
        }
        let asked = self.term.next();
        if self.role != Role::PreCandidate || (granted && term != asked) {
            return;
        }
        if !self.membership().is_voter(from) {
            return;
        }
        self.votes.entry(from).or_insert(granted);
        match self.vote_result() {
            VoteResult::Won => self.become_candidate(false),
            VoteResult::Lost => self.role = Role::Follower,
            VoteResult::Pending => {}
        }
    }

    pub(crate) fn handle_vote(&mut self, from: NodeId, last: LogPosition, transfer: bool) {
        // In the same term a vote already given stands, whoever asks.
        let unbound = self.vote.is_none() || planted(Bug::VoteTwiceInTerm);
        let free = unbound && self.leader.is_none();
        let granted = (free || self.vote == Some(from))
            && self.is_up_to_date(last)
            && (transfer || !self.is_loyal());
        if granted && self.vote.is_none() {
            self.vote = Some(from);
            self.touch_hard_state();
        }
        if granted {
            self.heard_at = self.now;
        }
        if planted(Bug::VoteBeforePersist) {
            return self.send(from, Body::VoteResponse { granted });
        }
        self.send_after(Needs::HardState, from, Body::VoteResponse { granted });
    }

    pub(crate) fn handle_vote_response(&mut self, from: NodeId, granted: bool) {
        if self.role == Role::Candidate && self.membership().is_voter(from) {
            self.record_vote(from, granted);
        }
    }

    pub(crate) fn handle_timeout_now(&mut self, from: NodeId) {
        if self.leader == Some(from) && self.membership().voters.contains(&self.config.id) {
            self.reset_timeout();
            self.become_candidate(true);
        }
    }

    pub(crate) fn record_vote(&mut self, from: NodeId, granted: bool) {
        self.votes.entry(from).or_insert(granted);
        match self.vote_result() {
            VoteResult::Won => self.become_leader(),
            VoteResult::Lost => self.role = Role::Follower,
            VoteResult::Pending => {}
        }
    }

    /// The sender leads this term. Returns whether that is possible.
    pub(crate) fn follow(&mut self, leader: NodeId, round: u64) -> bool {
        if self.role == Role::Leader || self.leader.is_some_and(|known| known != leader) {
            return false;
        }
        if self.leader.is_none() {
            self.leader = Some(leader);
            self.drop_reads();
        }
        self.role = Role::Follower;
        self.heard_at = self.now;
        self.heard_round = self.heard_round.max(round);
        true
    }

    /// Enters a higher term as a follower of nobody.
    pub(crate) fn enter_term(&mut self, term: Term) {
        assert!(term > self.term, "terms ascend: {} -> {term}", self.term);
        self.term = term;
        self.vote = None;
        self.touch_hard_state();
        self.step_down();
    }

    /// Stops leading or campaigning, in the same term.
    pub(crate) fn step_down(&mut self) {
        if self.role == Role::Leader {
            // A leader's timer has not run; it must not campaign at once.
            self.reset_timeout();
        }
        self.role = Role::Follower;
        self.leader = None;
        self.heard_round = 0;
        self.transfer = None;
        self.uncommitted_bytes = 0;
        self.votes.clear();
        self.progress.clear();
        self.heartbeat_due = false;
        self.send_due = false;
        self.drop_reads();
    }

    /// Stops leading and lets the others try, though none of them may have as long a log.
    pub(crate) fn stand_aside(&mut self) {
        self.step_down();
        self.timeout_ticks += ASIDE_TIMEOUTS * self.config.election_timeout_ticks;
    }

    fn become_candidate(&mut self, transfer: bool) {
        self.enter_term(self.term.next());
        self.role = Role::Candidate;
        self.vote = Some(self.config.id);
        self.vote_for_self();
        let body = Body::Vote { last: self.log.last_position(), transfer };
        for to in self.other_voters() {
            self.send_after(Needs::HardState, to, body.clone());
        }
    }

    fn become_leader(&mut self) {
        assert!(self.role == Role::Candidate, "{:?} cannot become leader", self.role);
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.drop_reads();
        self.lease_void = false;
        let (commit, last) = (self.log.commit(), self.log.last());
        self.uncommitted_bytes = self.log.bytes_between(commit.next(), last);
        let others = self.membership().members().into_iter().filter(|&n| n != self.config.id);
        self.progress = others.map(|node| (node, Progress::new(last.next(), self.now))).collect();
        self.heartbeat_at = self.now + u64::from(self.config.heartbeat_ticks);
        self.expect_quorum();
        // Raft paper §8: commits what earlier terms left, and lets reads know the commit index.
        self.append_own(EntryKind::Empty, Payload::empty());
    }

    /// Whether its log may be the one that must win. A replica that a change removes is needed
    /// until the change is committed, though its own vote does not count (thesis §4.2.2).
    fn may_campaign(&self) -> bool {
        let (id, commit) = (self.config.id, self.log.commit());
        // After a restart little is known to be committed, so several may be open.
        let settled = self.memberships.partition_point(|(at, _)| *at <= commit).saturating_sub(1);
        self.memberships.range(settled..).any(|(_, membership)| membership.is_voter(id))
    }

    /// Whether a leader was heard of so recently that nobody else is to be elected.
    fn is_loyal(&self) -> bool {
        match self.role {
            Role::Leader => true,
            _ => {
                let patience = u64::from(self.config.election_timeout_ticks);
                self.now < self.sworn_until
                    || (self.leader.is_some() && self.now - self.heard_at < patience)
            }
        }
    }

    fn is_up_to_date(&self, last: LogPosition) -> bool {
        let own = self.log.last_position();
        match () {
            () if planted(Bug::UpToDateByLength) => last.index >= own.index,
            () if planted(Bug::UpToDateByTerm) => last.term >= own.term,
            () => last >= own,
        }
    }

    fn vote_result(&self) -> VoteResult {
        vote_result(self.membership(), |voter| self.votes.get(&voter).copied())
    }

    fn other_voters(&self) -> Vec<NodeId> {
        let membership = self.membership();
        let mut voters: Vec<_> =
            membership.voters.iter().chain(&membership.outgoing).copied().collect();
        voters.sort_unstable();
        voters.dedup();
        voters.retain(|&node| node != self.config.id);
        voters
    }

    fn reset_timeout(&mut self) {
        self.heard_at = self.now;
        let least = self.config.election_timeout_ticks;
        self.timeout_ticks = least + self.rng.below(least);
    }
}
