//! One replica: its state, the dispatch of what comes in, and what is handed out.

use std::collections::{BTreeMap, VecDeque};

use crate::log::Log;
use crate::planted::{Bug, planted};
use crate::progress::Progress;
use crate::read::Reads;
use crate::rng::Rng;
use crate::{
    BatchSeq, Body, Config, ConfigError, Drain, Entry, EntryKind, HardState, LogIndex, LogPosition,
    Membership, Message, NodeId, Payload, ProposeError, ReadPolicy, Ready, Term,
};

/// What a replica is in its term (Raft paper §5.1), with the step before candidacy that changes
/// nothing (thesis §9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader or waits for one.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What the log on disk says about one group.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Newest term and vote.
    pub hard_state: HardState,
    /// The log starts after this.
    pub base: LogPosition,
    /// Membership as of `base`.
    pub membership: Membership,
    /// First entry of each run of equal terms after `base`, ascending; the first run starts at
    /// `base.index + 1`. Empty if there are no entries.
    pub runs: Vec<LogPosition>,
    /// Last entry; `base.index` if there are none.
    pub last: LogIndex,
    /// All entries up to here are known to be committed; anything up to `base` says nothing new.
    pub commit: LogIndex,
    /// The state machine holds the effects of all entries up to here, which are committed: they are
    /// not delivered again. Anything up to `base` says nothing new.
    pub applied: LogIndex,
    /// Contiguous entries that end with `last`, kept in memory; older ones are loaded on demand.
    pub tail: Vec<Entry>,
    /// All membership entries after `base`, in order.
    pub memberships: Vec<Entry>,
}

/// Terms and indexes beyond this are not reached by counting: whoever names one is no replica.
pub(crate) const NUMBER_MAX: u64 = u64::MAX / 2;

/// What must be durable before something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The term and vote.
    HardState,
    /// Term, vote, and every entry of the log.
    Log,
}

/// Something that waits for the disk.
#[derive(Debug)]
enum Held {
    Message(Message),
    /// The candidate's vote for itself, in this term.
    SelfVote(Term),
}

/// One replica of one group. See the crate's documentation for the driver's contract.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) log: Log,
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) vote: Option<NodeId>,
    pub(crate) leader: Option<NodeId>,
    /// Ticks since the start.
    pub(crate) now: u64,
    /// Tick at which a leader was last heard of, a vote given, or a campaign started.
    pub(crate) heard_at: u64,
    pub(crate) timeout_ticks: u32,
    pub(crate) rng: Rng,
    pub(crate) votes: BTreeMap<NodeId, bool>,
    /// Memberships by the entry that made them; the first is that of the base or older.
    pub(crate) memberships: VecDeque<(LogIndex, Membership)>,
    /// Leader only: all other members.
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    pub(crate) uncommitted_bytes: usize,
    /// Leader only: the target of a transfer, and when it started.
    pub(crate) transfer: Option<(NodeId, u64)>,
    /// Leader only: the target of a transfer may campaign at any time.
    pub(crate) lease_void: bool,
    /// With leases: what was promised to a leader before a restart is kept until this tick.
    pub(crate) sworn_until: u64,
    pub(crate) reads: Reads,
    /// Leader only: number of the newest send.
    pub(crate) round: u64,
    /// Follower only: the newest round heard of the leader in this term.
    pub(crate) heard_round: u64,
    pub(crate) heartbeat_at: u64,
    /// Leader only: when CheckQuorum looks next, and the round a quorum must have passed then.
    pub(crate) check_at: u64,
    pub(crate) check_round: u64,
    /// A heartbeat is due.
    pub(crate) heartbeat_due: bool,
    /// Followers may be behind: the next full drain looks at them.
    pub(crate) send_due: bool,
    hard_state_dirty: bool,
    hard_state_batch: BatchSeq,
    log_batch: BatchSeq,
    persisted: BatchSeq,
    /// Tick at which a write last completed, or none was under way.
    disk_moved_at: u64,
    /// What waits for a batch that has been drained.
    held: VecDeque<(BatchSeq, Held)>,
    /// What waits for the next full drain, and then for its batch.
    unbatched: Vec<Held>,
    pub(crate) out: Ready,
    /// The state machine needs entries that are on disk only, and is waiting for this one.
    pub(crate) apply_load: Option<LogIndex>,
    pub(crate) apply_load_after: u64,
    /// Since the last snapshot there was an entry to apply that no replica could give.
    pub(crate) lacking: bool,
}

impl Raft {
    /// A replica as its disk left it: a follower that knows no leader.
    ///
    /// # Errors
    /// If a value of `config` is outside its range.
    ///
    /// # Panics
    /// If `recovered` contradicts itself.
    pub fn try_new(config: Config, mut recovered: Recovered) -> Result<Self, ConfigError> {
        config.validate()?;
        let mut memberships =
            VecDeque::from([(recovered.base.index, recovered.membership.clone())]);
        for entry in &recovered.memberships {
            let membership = Membership::decode(entry.payload.bytes())
                .expect("memberships are checked before they are appended");
            memberships.push_back((entry.index, membership));
        }
        let mut rng = Rng::new(config.seed);
        let timeout_ticks =
            config.election_timeout_ticks + rng.below(config.election_timeout_ticks);
        if planted(Bug::HardStateForgotten) {
            recovered.hard_state = HardState::default();
        }
        let HardState { term: voted_in, vote } = recovered.hard_state;
        let log = Log::new(&mut recovered, config.cache_bytes_max);
        let term = voted_in.max(log.last_position().term);
        let alone = recovered.membership.members() == [config.id];
        let sworn_until = match config.read {
            ReadPolicy::Lease { .. } if term > Term::default() && !alone => {
                u64::from(config.election_timeout_ticks)
            }
            _ => 0,
        };
        Ok(Self {
            log,
            role: Role::Follower,
            term,
            vote: vote.filter(|_| term == voted_in),
            leader: None,
            now: 0,
            heard_at: 0,
            timeout_ticks,
            rng,
            votes: BTreeMap::new(),
            memberships,
            progress: BTreeMap::new(),
            uncommitted_bytes: 0,
            transfer: None,
            lease_void: false,
            sworn_until,
            reads: Reads::new(config.reads_max),
            round: 0,
            heard_round: 0,
            heartbeat_at: 0,
            check_at: 0,
            check_round: 0,
            heartbeat_due: false,
            send_due: false,
            hard_state_dirty: false,
            hard_state_batch: BatchSeq::default(),
            log_batch: BatchSeq::default(),
            persisted: BatchSeq::default(),
            disk_moved_at: 0,
            held: VecDeque::new(),
            unbatched: Vec::new(),
            out: Ready::default(),
            apply_load: None,
            apply_load_after: 0,
            lacking: false,
            config,
        })
    }

    /// As [`Self::try_new`], for configurations known to be valid.
    ///
    /// # Panics
    /// If a value of `config` is outside its range.
    pub fn new(config: Config, recovered: Recovered) -> Self {
        match Self::try_new(config, recovered) {
            Ok(raft) => raft,
            Err(error) => panic!("invalid configuration: {error}"),
        }
    }

    /// A tick has passed.
    pub fn tick(&mut self) {
        self.now += 1;
        let written = self.hard_state_batch.max(self.log_batch);
        if written <= self.persisted && !self.has_unwritten() {
            self.disk_moved_at = self.now;
        }
        match (self.role, self.disk_is_stuck()) {
            (Role::Leader, true) => self.step_down(),
            (Role::Leader, false) => self.tick_leader(),
            (_, true) => {}
            (_, false) if self.now - self.heard_at >= u64::from(self.timeout_ticks) => {
                self.campaign();
            }
            (_, false) => {}
        }
        self.expire_forwarded_reads();
    }

    /// Takes a message of another replica. Any message may come; impossible ones are ignored.
    pub fn step(&mut self, message: Message) {
        let addressed = message.to == self.config.id && message.from != self.config.id;
        if !addressed || message.term.get() > NUMBER_MAX {
            return;
        }
        if message.term > self.term && !self.meet_higher_term(&message) {
            return;
        }
        if message.term < self.term {
            self.answer_lower_term(&message);
            return;
        }
        let Message { from, term, body, .. } = message;
        match body {
            Body::PreVote { last } => self.handle_pre_vote(from, term, last),
            Body::PreVoteResponse { granted } => self.handle_pre_vote_response(from, term, granted),
            Body::Vote { last, transfer } => self.handle_vote(from, last, transfer),
            Body::VoteResponse { granted } => self.handle_vote_response(from, granted),
            Body::Append { prev, entries, commit, round } => {
                if self.follow(from, round) {
                    self.handle_append(from, prev, entries, commit, round);
                }
            }
            Body::Heartbeat { commit, round } => {
                if self.follow(from, round) {
                    self.handle_heartbeat(from, commit, round);
                }
            }
            Body::AppendResponse { outcome, round } => {
                self.handle_append_response(from, outcome, round);
            }
            Body::HeartbeatResponse { round } => self.handle_heartbeat_response(from, round),
            Body::ReadIndex { context } => self.handle_read_index(from, context),
            Body::ReadIndexResponse { context, index } => {
                self.handle_read_index_response(from, context, index);
            }
            Body::TimeoutNow => self.handle_timeout_now(from),
            Body::Snapshot { base, membership, piece, done, payload, round } => {
                if self.follow(from, round) {
                    self.handle_snapshot(from, base, &membership, piece, done, payload, round);
                }
            }
            Body::SnapshotResponse { base, next_piece, round } => {
                self.handle_snapshot_response(from, base, next_piece, round);
            }
            Body::SnapshotWanted { first } => self.handle_snapshot_wanted(from, first),
        }
    }

    /// Appends a command to the leader's log; tells its place. The command is applied if and only
    /// if the entry that is committed at that index has that term.
    ///
    /// # Errors
    /// See [`ProposeError`]; nothing was appended.
    pub fn propose(&mut self, payload: Payload) -> Result<LogPosition, ProposeError> {
        self.propose_entry(EntryKind::Command, payload)
    }

    /// Everything drained with this batch or an earlier one is on disk.
    pub fn persisted(&mut self, batch: BatchSeq) {
        self.persisted = self.persisted.max(batch);
        self.disk_moved_at = self.now;
        self.log.persisted(batch);
        while self.held.front().is_some_and(|(waits_for, _)| *waits_for <= batch) {
            let (_, held) = self.held.pop_front().expect("just seen");
            self.release(held);
        }
        if self.role == Role::Leader {
            self.advance_commit();
        }
    }

    /// Whether a drain would hand out anything.
    pub fn needs_drain(&self, mode: Drain) -> bool {
        let urgent = self.heartbeat_due
            || self.reads.wants_round()
            || !self.out.messages.is_empty()
            || !self.out.reads.is_empty()
            || !self.out.loads.is_empty()
            || !self.out.snapshots_wanted.is_empty()
            || !self.out.snapshot_acks.is_empty()
            || !self.out.snapshot_pieces.is_empty();
        let full = self.has_unwritten() || self.send_due || !self.unbatched.is_empty();
        urgent || (mode == Drain::All && full)
    }

    /// Hands out what is pending; `batch` numbers what is to be written. Batches must ascend.
    pub fn drain(&mut self, mode: Drain, batch: BatchSeq, ready: &mut Ready) {
        if self.role == Role::Leader {
            self.send_round(mode);
        }
        if mode == Drain::All {
            self.hand_out(batch, ready);
        }
        ready.messages.append(&mut self.out.messages);
        ready.reads.append(&mut self.out.reads);
        ready.loads.append(&mut self.out.loads);
        ready.snapshots_wanted.append(&mut self.out.snapshots_wanted);
        ready.snapshot_acks.append(&mut self.out.snapshot_acks);
        ready.snapshot_pieces.append(&mut self.out.snapshot_pieces);
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: LogIndex) {
        self.log.applied_to(index);
        self.after_apply();
    }

    /// Forgets the log up to `index`, which must be applied and held durably by the state machine.
    pub fn compact(&mut self, index: LogIndex) {
        self.log.compact(index);
        let base = self.log.base().index;
        while self.memberships.get(1).is_some_and(|(at, _)| *at <= base) {
            self.memberships.pop_front();
        }
    }

    /// Its role.
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Its own node.
    pub const fn node(&self) -> NodeId {
        self.config.id
    }

    /// Its term.
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The leader of its term, if it knows one.
    pub const fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Whom it voted for in its term.
    pub const fn vote(&self) -> Option<NodeId> {
        self.vote
    }

    /// Last entry known to be committed.
    pub const fn commit(&self) -> LogIndex {
        self.log.commit()
    }

    /// Last entry of its log.
    pub const fn last_index(&self) -> LogIndex {
        self.log.last()
    }

    /// Last entry of its log that is on its disk.
    pub const fn durable_index(&self) -> LogIndex {
        self.log.durable()
    }

    /// Last entry its state machine has applied.
    pub const fn applied_index(&self) -> LogIndex {
        self.log.applied()
    }

    /// Its log starts after this.
    pub const fn base(&self) -> LogPosition {
        self.log.base()
    }

    /// An entry, if it is in memory.
    pub fn recent_entry(&self, index: LogIndex) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// Term of an entry; `None` if it is forgotten or does not exist.
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.log.term_of(index)
    }

    /// Bytes proposed in its term and not committed.
    pub const fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Whether it leads and has committed an entry of its term: the precondition of reads.
    pub fn can_read(&self) -> bool {
        self.role == Role::Leader && self.log.term_of(self.log.commit()) == Some(self.term)
    }

    /// What it knows of each other member while it leads.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, &Progress)> {
        self.progress.iter().map(|(&node, progress)| (node, progress))
    }

    /// The membership in effect: that of the newest entry that sets one, committed or not.
    pub fn membership(&self) -> &Membership {
        &self.memberships.back().expect("the base's membership is never dropped").1
    }

    /// The membership as of an entry.
    pub fn membership_at(&self, index: LogIndex) -> &Membership {
        let after = self.memberships.partition_point(|(at, _)| *at <= index);
        &self.memberships[after.saturating_sub(1)].1
    }

    /// Sends a message once what it needs is on disk; at once if it is.
    pub(crate) fn send_after(&mut self, needs: Needs, to: NodeId, body: Body) {
        let message = Message { from: self.config.id, to, term: self.term, body };
        self.hold(needs, Held::Message(message));
    }

    /// Sends a message with the next drain.
    pub(crate) fn send(&mut self, to: NodeId, body: Body) {
        let message = Message { from: self.config.id, to, term: self.term, body };
        self.out.messages.push(message);
    }

    /// Counts the own vote once it is on disk.
    pub(crate) fn vote_for_self(&mut self) {
        self.hold(Needs::HardState, Held::SelfVote(self.term));
    }

    /// Term or vote have changed.
    pub(crate) fn touch_hard_state(&mut self) {
        self.hard_state_dirty = true;
    }

    fn hold(&mut self, needs: Needs, held: Held) {
        let dirty = match needs {
            Needs::HardState => self.hard_state_dirty,
            Needs::Log => self.has_unwritten(),
        };
        let batch = match needs {
            Needs::HardState => self.hard_state_batch,
            Needs::Log => self.hard_state_batch.max(self.log_batch),
        };
        if dirty {
            self.unbatched.push(held);
        } else if batch > self.persisted {
            // Batches complete in order, and so must what waits for them.
            let at = self.held.partition_point(|(waits_for, _)| *waits_for <= batch);
            self.held.insert(at, (batch, held));
        } else {
            self.release(held);
        }
    }

    fn release(&mut self, held: Held) {
        match held {
            // What was promised in an earlier term is void: the log may have changed since.
            Held::Message(message) if message.term == self.term => self.out.messages.push(message),
            Held::SelfVote(term) if term == self.term && self.role == Role::Candidate => {
                self.record_vote(self.config.id, true);
            }
            Held::Message(_) | Held::SelfVote(_) => {}
        }
    }

    fn has_unwritten(&self) -> bool {
        self.hard_state_dirty || self.log.has_unhanded()
    }

    fn hand_out(&mut self, batch: BatchSeq, ready: &mut Ready) {
        if std::mem::take(&mut self.hard_state_dirty) {
            assert!(batch > self.hard_state_batch, "batch {batch} is not new");
            self.hard_state_batch = batch;
            ready.hard_state = Some(HardState { term: self.term, vote: self.vote });
        }
        if self.log.has_unhanded() {
            assert!(batch > self.log_batch, "batch {batch} is not new");
            self.log_batch = batch;
            self.log.hand_out(batch, &mut ready.entries);
        }
        // What waits may have been truncated away: then it waits for what was written before.
        let batch = self.hard_state_batch.max(self.log_batch);
        for held in std::mem::take(&mut self.unbatched) {
            if batch > self.persisted {
                self.held.push_back((batch, held));
            } else {
                self.release(held);
            }
        }
    }

    /// Whether writes have made no progress for an election timeout. Such a replica must not
    /// lead: its heartbeats would keep a group from electing one that can write.
    fn disk_is_stuck(&self) -> bool {
        self.now - self.disk_moved_at >= u64::from(self.config.election_timeout_ticks)
    }
}
