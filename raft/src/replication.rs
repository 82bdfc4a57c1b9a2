//! Replication: appends, acknowledgements, commitment, flow control, and the leader's duties that
//! come with time (Raft paper §5.3, §5.4.2; thesis §6.2, §10.2.1).

use crate::planted::{Bug, planted};
use crate::raft::{NUMBER_MAX, Needs, Raft, Role};
use crate::{
    AppendOutcome, Body, Drain, Entry, EntryKind, LoadRange, LogIndex, LogPosition, Membership,
    MembershipChange, MembershipError, NodeId, Payload, Progress, ProposeError, SendState,
    quorum_value,
};

/// A snapshot transfer that is silent for this many election timeouts is started again.
const SNAPSHOT_PATIENCE: u64 = 10;

impl Raft {
    /// Appends a change of members; tells its place. Voters change through a joint
    /// configuration, which the leader leaves by itself (thesis §4.3).
    ///
    /// # Errors
    /// See [`MembershipError`]; nothing was appended.
    pub fn propose_membership(
        &mut self,
        change: MembershipChange,
    ) -> Result<LogPosition, MembershipError> {
        self.may_propose().map_err(MembershipError::Propose)?;
        if !self.can_read() {
            return Err(MembershipError::NoOwnCommit);
        }
        let at = self.membership_index();
        if at > self.log.applied() || self.membership().is_joint() {
            return Err(MembershipError::InProgress { at });
        }
        let next = self.membership().enter(&change).map_err(MembershipError::Invalid)?;
        Ok(self.append_own(EntryKind::Membership, next.encode()))
    }

    pub(crate) fn propose_entry(
        &mut self,
        kind: EntryKind,
        payload: Payload,
    ) -> Result<LogPosition, ProposeError> {
        self.may_propose()?;
        let limit_bytes = self.config.uncommitted_bytes_max;
        if self.uncommitted_bytes > 0 && self.uncommitted_bytes + payload.len() > limit_bytes {
            return Err(ProposeError::TooManyUncommitted { limit_bytes });
        }
        Ok(self.append_own(kind, payload))
    }

    /// Whether this replica leads and would append what is proposed to it, within its limits.
    pub fn accepts_proposals(&self) -> bool {
        self.may_propose().is_ok()
    }

    fn may_propose(&self) -> Result<(), ProposeError> {
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader { hint: self.leader });
        }
        match self.transfer {
            Some((to, _)) => Err(ProposeError::Transferring { to }),
            None => Ok(()),
        }
    }

    /// Appends to the own log as leader.
    pub(crate) fn append_own(&mut self, kind: EntryKind, payload: Payload) -> LogPosition {
        assert!(self.role == Role::Leader, "a {:?} appends nothing of its own", self.role);
        let entry = Entry { term: self.term, index: self.log.last().next(), kind, payload };
        let position = entry.position();
        self.uncommitted_bytes += entry.size_bytes();
        self.append(entry);
        self.send_due = true;
        position
    }

    fn append(&mut self, entry: Entry) {
        let membership = (entry.kind == EntryKind::Membership).then(|| {
            Membership::decode(entry.payload.bytes()).expect("checked before it is appended")
        });
        let index = entry.index;
        self.log.append(entry);
        if let Some(membership) = membership {
            self.memberships.push_back((index, membership));
            self.follow_membership();
        }
    }

    /// Starts and stops tracking followers as the membership has it.
    fn follow_membership(&mut self) {
        if self.role != Role::Leader {
            return;
        }
        let members = self.membership().members();
        self.progress.retain(|node, _| members.contains(node));
        let next = self.log.last().next();
        for node in members.into_iter().filter(|&node| node != self.config.id) {
            let now = self.now;
            self.progress.entry(node).or_insert_with(|| Progress::new(next, now));
        }
        // New voters have echoed nothing yet.
        self.expect_quorum();
    }

    pub(crate) fn handle_append(
        &mut self,
        from: NodeId,
        prev: LogPosition,
        entries: Vec<Entry>,
        commit: LogIndex,
        round: u64,
    ) {
        if !self.is_plausible(prev, &entries) {
            return;
        }
        let last_new = prev.index.plus(entries.len() as u64);
        let known =
            prev.index < self.log.commit() || self.log.term_of(prev.index) == Some(prev.term);
        let known = known || (planted(Bug::PrevTermIgnored) && prev.index <= self.log.last());
        let outcome = if known {
            self.accept_entries(entries);
            let agreed = last_new.max(self.log.commit());
            self.commit_to(commit.min(last_new));
            // What is committed here is in the log of every later leader (§5.4.3).
            AppendOutcome::Accepted { matched: agreed }
        } else {
            let hint = self.log.last_at_most(prev);
            AppendOutcome::Rejected { prev: prev.index, hint }
        };
        let wait = known && !planted(Bug::AckBeforePersist);
        let needs = if wait { Needs::Log } else { Needs::HardState };
        self.send_after(needs, from, Body::AppendResponse { outcome, round });
    }

    /// Appends what the log lacks. What contradicts the leader is dropped first (§5.3).
    fn accept_entries(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if entry.index <= self.log.commit() {
                continue;
            }
            match self.log.term_of(entry.index) {
                Some(_) if planted(Bug::ConflictKept) => continue,
                Some(term) if term == entry.term && !planted(Bug::MatchTruncates) => continue,
                Some(_) => {
                    self.log.truncate(entry.index);
                    while self.membership_index() >= entry.index {
                        self.memberships.pop_back();
                    }
                }
                None => {}
            }
            self.append(entry);
        }
    }

    /// Whether a correct leader of this term could have sent this.
    fn is_plausible(&self, prev: LogPosition, entries: &[Entry]) -> bool {
        let mut before = prev;
        if prev.term > self.term || prev.index.get() > NUMBER_MAX {
            return false;
        }
        for entry in entries {
            let next = entry.position();
            let member = entry.kind == EntryKind::Membership;
            if next.index != before.index.next()
                || next.term < before.term
                || next.term > self.term
                || (member && Membership::decode(entry.payload.bytes()).is_err())
            {
                return false;
            }
            before = next;
        }
        // No entry below the commit index can differ: this is not from a leader of our group.
        entries.iter().all(|entry| {
            entry.index > self.log.commit()
                || self.log.term_of(entry.index).is_none_or(|term| term == entry.term)
        })
    }

    pub(crate) fn handle_heartbeat(&mut self, from: NodeId, commit: LogIndex, round: u64) {
        // The leader caps it at what it knows this log to agree with.
        self.commit_to(commit.min(self.log.last()));
        self.send_after(Needs::HardState, from, Body::HeartbeatResponse { round });
    }

    pub(crate) fn handle_append_response(
        &mut self,
        from: NodeId,
        outcome: AppendOutcome,
        round: u64,
    ) {
        if self.role != Role::Leader {
            return;
        }
        self.echo(from, round);
        let (last, now) = (self.log.last(), self.now);
        let Some(progress) = self.progress.get_mut(&from) else { return };
        match outcome {
            AppendOutcome::Accepted { matched } if matched <= last => {
                if progress.accept(matched, round, now) {
                    self.advance_commit();
                }
                if self.transfer.is_some_and(|(to, _)| to == from) {
                    self.finish_transfer();
                }
                self.send_due = true;
            }
            AppendOutcome::Rejected { prev, hint } => {
                let stale = match progress.state {
                    SendState::Probe => prev != progress.next.prev(),
                    SendState::Replicate => false,
                    SendState::Snapshot { .. } => true,
                };
                if !stale && prev > progress.matched && hint.index <= prev {
                    let base = self.log.base();
                    // Where they part is forgotten here: then only a snapshot helps.
                    let forgotten = hint.index < base.index || hint.term < base.term;
                    let agree = self.log.last_at_most(hint).index;
                    progress.probe(if forgotten { base.index } else { agree.next() }, now);
                    self.send_due = true;
                }
            }
            AppendOutcome::Accepted { .. } => {}
        }
    }

    pub(crate) fn handle_heartbeat_response(&mut self, from: NodeId, round: u64) {
        if self.role != Role::Leader {
            return;
        }
        self.echo(from, round);
        let last = self.log.last();
        let Some(progress) = self.progress.get_mut(&from) else { return };
        if progress.state == SendState::Probe {
            // The probe or its answer was lost.
            progress.paused = false;
        }
        if progress.matched < last {
            self.send_due = true;
        }
    }

    /// A member has answered the send of this round.
    pub(crate) fn echo(&mut self, from: NodeId, round: u64) {
        if round > self.round {
            return;
        }
        match self.progress.get_mut(&from) {
            Some(progress) if round > progress.echoed => progress.echoed = round,
            _ => return,
        }
        self.confirm_reads();
    }

    /// The newest round that a quorum has echoed.
    pub(crate) fn quorum_round(&self) -> u64 {
        let round = self.round;
        quorum_value(self.membership(), |node| {
            if node == self.config.id {
                round
            } else {
                self.progress.get(&node).map_or(0, |progress| progress.echoed)
            }
        })
    }

    /// Commits what a quorum has on disk, if its last entry is of this term (§5.4.2).
    pub(crate) fn advance_commit(&mut self) {
        let unwritten = planted(Bug::UnwrittenCounted);
        let durable = if unwritten { self.log.last() } else { self.log.durable() };
        let reached = LogIndex::new(quorum_value(self.membership(), |node| {
            if node == self.config.id {
                durable.get()
            } else {
                self.progress.get(&node).map_or(0, |progress| progress.matched.get())
            }
        }));
        let own_term = self.log.term_of(reached) == Some(self.term);
        if reached > self.log.commit() && (own_term || planted(Bug::OldTermCounted)) {
            self.commit_to(reached);
        }
    }

    /// Moves the commit index forward, if this is forward.
    fn commit_to(&mut self, index: LogIndex) {
        if index <= self.log.commit() {
            return;
        }
        if self.role == Role::Leader {
            let first = self.log.commit().next();
            let committed = self.log.bytes_between(first, index);
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(committed);
        }
        self.log.commit_to(index);
        if self.role == Role::Leader {
            self.admit_reads();
        }
    }

    /// The leader's duties that come with time.
    pub(crate) fn tick_leader(&mut self) {
        if self.now >= self.heartbeat_at {
            self.heartbeat_at = self.now + u64::from(self.config.heartbeat_ticks);
            self.heartbeat_due = true;
        }
        let patience = u64::from(self.config.election_timeout_ticks);
        if self.transfer.is_some_and(|(_, since)| self.now - since >= patience) {
            self.transfer = None;
        }
        for progress in self.progress.values_mut() {
            let silent = self.now - progress.moved_at;
            let stalled = match progress.state {
                SendState::Probe => false,
                SendState::Replicate => progress.is_waiting() && silent >= patience,
                SendState::Snapshot { .. } => silent >= SNAPSHOT_PATIENCE * patience,
            };
            if stalled {
                progress.probe(progress.matched.next(), self.now);
                self.send_due = true;
            }
            if progress.next <= self.log.last() && progress.load_after == self.now {
                self.send_due = true;
            }
        }
        // Thesis §6.2: a leader that reaches no quorum must let clients look elsewhere.
        if self.now >= self.check_at && !planted(Bug::CheckQuorumOff) {
            if self.quorum_round() <= self.check_round && self.check_round < self.round {
                return self.step_down();
            }
            self.expect_quorum();
        }
    }

    /// A quorum must echo a round sent after this within an election timeout.
    pub(crate) fn expect_quorum(&mut self) {
        self.check_at = self.now + u64::from(self.config.election_timeout_ticks);
        self.check_round = self.round;
    }

    /// Sends what is due as one round: entries where there is room, else heartbeats.
    pub(crate) fn send_round(&mut self, mode: Drain) {
        let pulse = self.heartbeat_due || self.reads.wants_round();
        let append = mode == Drain::All && std::mem::take(&mut self.send_due);
        if !pulse && !append {
            return;
        }
        self.round += 1;
        self.reads.round_sent(self.round, self.now);
        let nodes: Vec<_> = self.progress.keys().copied().collect();
        for node in nodes {
            let sent = append && self.send_appends(node);
            if pulse && !sent {
                let capped = !planted(Bug::HeartbeatCommitUncapped);
                let limit = if capped { self.progress[&node].matched } else { self.log.last() };
                let commit = self.log.commit().min(limit);
                self.send(node, Body::Heartbeat { commit, round: self.round });
            }
        }
        if pulse {
            self.heartbeat_due = false;
            // Alone, there is nobody to wait for.
            self.confirm_reads();
        }
    }

    /// Sends entries to one follower while its window has room. Returns whether any were.
    fn send_appends(&mut self, to: NodeId) -> bool {
        let mut sent = false;
        loop {
            let config = &self.config;
            let progress = self.progress.get_mut(&to).expect("only called for members");
            let probing = progress.state == SendState::Probe;
            if !progress.has_room(config.inflight_messages_max, config.inflight_bytes_max)
                || progress.loading.is_some()
                || (progress.next > self.log.last() && !probing)
            {
                return sent;
            }
            let first = progress.next;
            if first <= self.log.base().index {
                self.begin_snapshot(to);
                return sent;
            }
            let (bytes_max, count_max) = (config.append_bytes_max, config.append_entries_max);
            match self.log.entries(first, self.log.last(), bytes_max, count_max) {
                Some(entries) => self.send_append(to, first, entries),
                None => {
                    self.load_for(to, first);
                    return sent;
                }
            }
            sent = true;
        }
    }

    fn send_append(&mut self, to: NodeId, first: LogIndex, entries: Vec<Entry>) {
        let term = self.log.term_of(first.prev()).expect("the base is known and first is after it");
        let prev = LogPosition { term, index: first.prev() };
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        let last = prev.index.plus(entries.len() as u64);
        let progress = self.progress.get_mut(&to).expect("only called for members");
        progress.sent(last, bytes, self.now);
        let commit = self.log.commit();
        self.send(to, Body::Append { prev, entries, commit, round: self.round });
    }

    fn load_for(&mut self, to: NodeId, first: LogIndex) {
        let progress = self.progress.get_mut(&to).expect("only called for members");
        if self.now < progress.load_after {
            return;
        }
        progress.loading = Some(first);
        let last = self.log.last_on_disk_only();
        let bytes_max = self.config.append_bytes_max;
        self.load(LoadRange { first, last, bytes_max });
    }

    /// Sends entries that were read back to those who wait for them.
    pub(crate) fn send_loaded(&mut self, first: LogIndex, entries: &[Entry]) {
        let waiting: Vec<_> = self
            .progress
            .iter()
            .filter(|(_, progress)| progress.loading == Some(first))
            .map(|(&node, _)| node)
            .collect();
        for node in waiting {
            let progress = self.progress.get_mut(&node).expect("just listed");
            progress.loading = None;
            self.send_due = true;
            if progress.next == first && first > self.log.base().index {
                let entries = entries.iter().take(self.config.append_entries_max);
                self.send_append(node, first, entries.cloned().collect());
            }
        }
    }

    /// The state machine has caught up: a change of members may go on.
    pub(crate) fn after_apply(&mut self) {
        if self.role != Role::Leader || self.membership_index() > self.log.applied() {
            return;
        }
        if self.membership().is_joint() {
            let last = self.membership().leave();
            self.append_own(EntryKind::Membership, last.encode());
        } else if !self.membership().voters.contains(&self.config.id) {
            // Thesis §4.2.2: a removed leader steps down once the change is committed. The last
            // round lets the others know.
            self.send_due = true;
            self.heartbeat_due = true;
            self.send_round(Drain::All);
            self.step_down();
        }
    }

    /// Index of the entry that set the membership in effect.
    pub(crate) fn membership_index(&self) -> LogIndex {
        self.memberships.back().expect("the base's membership is never dropped").0
    }
}
