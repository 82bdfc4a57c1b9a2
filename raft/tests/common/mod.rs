//! A cluster of replicas in one thread: the test decides what the network and the disks do, and
//! after each step what must hold is checked.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of it")]

pub mod disk;
pub mod run;
pub mod truth;

use std::collections::{BTreeMap, BTreeSet};

use coracle_raft::{
    BatchSeq, Body, Config, Drain, Entry, EntryKind, LogIndex, LogPosition, Membership,
    MembershipChange, Message, NodeId, Payload, Raft, ReadState, Ready, Role, Term,
};

use disk::{Disk, Write};
use truth::Truth;

/// Shortest election timeout in the tests, in ticks.
pub const TIMEOUT: u32 = 10;
/// Ticks between heartbeats in the tests.
pub const HEARTBEAT: u32 = 3;

pub fn node(id: u32) -> NodeId {
    NodeId::new(id)
}

pub fn nodes(ids: impl IntoIterator<Item = u32>) -> Vec<NodeId> {
    ids.into_iter().map(NodeId::new).collect()
}

pub fn voters(ids: impl IntoIterator<Item = u32>) -> Membership {
    Membership::of_voters(nodes(ids))
}

pub fn change(voters: &[u32], learners: &[u32]) -> MembershipChange {
    MembershipChange {
        voters: nodes(voters.iter().copied()),
        learners: nodes(learners.iter().copied()),
    }
}

/// The tests look at content, not at checksums.
pub fn payload(text: &str) -> Payload {
    Payload::new(text.as_bytes().to_vec(), 0)
}

/// A position, by its numbers.
pub fn position(term: u64, index: u64) -> LogPosition {
    LogPosition { term: Term::new(term), index: LogIndex::new(index) }
}

pub fn entry(term: u64, index: u64, text: &str) -> Entry {
    let LogPosition { term, index } = position(term, index);
    Entry { term, index, kind: EntryKind::Command, payload: payload(text) }
}

pub fn append(prev: (u64, u64), entries: Vec<Entry>, commit: u64) -> Body {
    let (prev, commit) = (position(prev.0, prev.1), LogIndex::new(commit));
    Body::Append { prev, entries, commit, round: 1 }
}

pub fn config(id: u32, seed: u64) -> Config {
    Config {
        election_timeout_ticks: TIMEOUT,
        heartbeat_ticks: HEARTBEAT,
        ..Config::new(node(id), seed)
    }
}

/// A replica with its disk and its driver's memory.
pub struct Node {
    pub config: Config,
    /// `None` while it is down.
    pub raft: Option<Raft>,
    pub disk: Disk,
    pub batch: BatchSeq,
    /// How many entries a restart reads into memory.
    pub tail_count: usize,
    /// Reads of old entries fail.
    pub loads_fail: bool,
    /// No other replica has what it fails to read.
    pub loads_lost: bool,
    /// Reads of old entries asked for and not answered.
    pub loads: Vec<coracle_raft::LoadRange>,
    pub reads: Vec<ReadState>,
    pub applied: Vec<Entry>,
    /// What the state machine holds: last entry and digest.
    pub state: (LogIndex, u64),
    sending: BTreeMap<NodeId, LogPosition>,
}

/// All replicas, the network between them, and what has been seen of them.
pub struct Cluster {
    pub nodes: BTreeMap<u32, Node>,
    pub network: Vec<Message>,
    /// Directions in which nothing arrives.
    pub cut: BTreeSet<(u32, u32)>,
    pub truth: Truth,
    contexts: u64,
    /// Reads under way: who asked, and what was committed then.
    open_reads: BTreeMap<u64, (u32, LogIndex)>,
}

impl Cluster {
    /// Replicas 1..=count, all voters.
    pub fn new(count: u32) -> Self {
        Self::with(1..=count, &voters(1..=count), |_| {})
    }

    /// Replicas that start from a membership, with a say in each one's configuration.
    pub fn with(
        ids: impl IntoIterator<Item = u32>,
        membership: &Membership,
        adapt: impl Fn(&mut Config),
    ) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            truth: Truth::default(),
            contexts: 0,
            open_reads: BTreeMap::new(),
        };
        for id in ids {
            let mut config = config(id, u64::from(id));
            adapt(&mut config);
            let node = Node {
                raft: None,
                disk: Disk::new(membership.clone()),
                config,
                batch: BatchSeq::default(),
                tail_count: usize::MAX,
                loads_fail: false,
                loads_lost: false,
                loads: Vec::new(),
                reads: Vec::new(),
                applied: Vec::new(),
                state: (LogIndex::ZERO, 0),
                sending: BTreeMap::new(),
            };
            cluster.nodes.insert(id, node);
            cluster.start(id);
        }
        cluster
    }

    pub fn node(&mut self, id: u32) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this cluster")
    }

    pub fn ids(&self) -> Vec<u32> {
        self.nodes.keys().copied().collect()
    }

    pub fn up(&self, id: u32) -> bool {
        self.nodes[&id].raft.is_some()
    }

    pub fn raft(&self, id: u32) -> &Raft {
        self.nodes[&id].raft.as_ref().expect("the node is up")
    }

    /// Does something with a replica, and checks everything after it.
    pub fn with_raft<T>(&mut self, id: u32, act: impl FnOnce(&mut Raft) -> T) -> T {
        let done = act(self.node(id).raft.as_mut().expect("the node is up"));
        self.check(id);
        done
    }

    pub fn crash(&mut self, id: u32) {
        let node = self.node(id);
        node.raft = None;
        node.disk.writes.clear();
        node.loads.clear();
        node.sending.clear();
        self.open_reads.retain(|_, (asker, _)| *asker != id);
    }

    pub fn start(&mut self, id: u32) {
        let node = self.node(id);
        assert!(node.raft.is_none(), "{id} runs already");
        node.config.seed += 1000;
        let recovered = node.disk.recovered(node.tail_count);
        let base = recovered.base.index;
        node.raft = Some(Raft::new(node.config.clone(), recovered));
        node.batch = BatchSeq::default();
        let digest = self.truth.digest_at(base);
        self.node(id).state = (base, digest);
        self.check(id);
    }

    pub fn restart(&mut self, id: u32) {
        self.crash(id);
        self.start(id);
    }

    pub fn tick(&mut self, id: u32, count: u32) {
        for _ in 0..count {
            self.with_raft(id, Raft::tick);
        }
    }

    pub fn campaign(&mut self, id: u32) {
        self.with_raft(id, Raft::campaign);
    }

    /// Asks for a read index; the answer must not be older than what is committed now.
    pub fn read(&mut self, id: u32) -> u64 {
        self.contexts += 1;
        let context = self.contexts;
        self.open_reads.insert(context, (id, self.truth.last_committed()));
        self.with_raft(id, |raft| raft.read_index(context));
        context
    }

    /// The answer to a read, if it has come.
    pub fn answer(&self, id: u32, context: u64) -> Option<Option<LogIndex>> {
        let found = self.nodes[&id].reads.iter().find(|read| read.context == context);
        found.map(|read| read.index)
    }

    pub fn propose(&mut self, id: u32, text: &str) -> LogPosition {
        self.with_raft(id, |raft| raft.propose(payload(text))).expect("it leads")
    }

    /// Carries out what a replica wants: messages go to the network, writes and loads wait.
    pub fn drain(&mut self, id: u32, mode: Drain) {
        let mut ready = Ready::default();
        let batch = self.node(id).batch.next();
        let needed = self.raft(id).needs_drain(mode);
        self.node(id).batch = batch;
        self.with_raft(id, |raft| raft.drain(mode, batch, &mut ready));
        let idle = ready.hard_state.is_none() && ready.entries.is_empty();
        assert!(needed || (idle && ready.messages.is_empty()), "{id} forgot that it had work");
        assert!(mode == Drain::All || idle, "an urgent drain writes nothing");
        assert!(!self.raft(id).needs_drain(mode), "{id} is never done");
        let mut before = ready.entries.first().and_then(|e| self.raft(id).term_of(e.index.prev()));
        for entry in &ready.entries {
            let term = before.expect("what is written follows what is known");
            self.truth.entry(term, entry);
            before = Some(entry.term);
        }
        for read in &ready.reads {
            let asked = self.open_reads.remove(&read.context);
            let (asker, floor) = asked.expect("each read is answered once");
            assert!(asker == id, "{id} answers the read of {asker}");
            let fresh = read.index.is_none_or(|index| index >= floor);
            assert!(fresh, "{id} reads {:?}, but {floor} was committed", read.index);
        }
        let node = self.node(id);
        node.reads.append(&mut ready.reads);
        node.loads.append(&mut ready.loads);
        if !idle {
            let (hard_state, entries) = (ready.hard_state, ready.entries);
            node.disk.writes.push_back(Write::Batch { seq: batch, hard_state, entries });
        }
        node.disk.writes.extend(ready.snapshot_pieces.into_iter().map(Write::Piece));
        self.network.append(&mut ready.messages);
        for to in ready.snapshots_wanted {
            let at = self.raft(id).applied_index();
            let term = self.raft(id).term_of(at).expect("applied and not forgotten");
            self.node(id).sending.insert(to, LogPosition { term, index: at });
            self.send_piece(id, to, 0);
        }
        for ack in ready.snapshot_acks {
            if self.node(id).sending.get(&ack.from) == Some(&ack.base) {
                self.send_piece(id, ack.from, ack.next_piece);
            }
        }
    }

    /// A snapshot has two pieces: nothing, and the digest of the state machine.
    fn send_piece(&mut self, id: u32, to: NodeId, piece: u64) {
        let base = self.node(id).sending[&to];
        if piece > 1 || base.index < self.raft(id).base().index {
            return;
        }
        let digest = self.truth.digest_at(base.index).to_le_bytes().to_vec();
        let payload = Payload::new(if piece == 0 { Vec::new() } else { digest }, 0);
        self.with_raft(id, |raft| raft.send_snapshot_piece(to, base, piece, piece == 1, payload));
    }

    /// Completes the oldest write of a replica. Returns whether there was one.
    pub fn persist(&mut self, id: u32) -> bool {
        let Some(write) = self.node(id).disk.writes.pop_front() else { return false };
        match write {
            Write::Batch { seq, hard_state, entries } => {
                self.node(id).disk.write(hard_state, entries);
                let hard_state = self.node(id).disk.hard_state;
                if let Some(vote) = hard_state.vote {
                    self.truth.votes(node(id), hard_state.term, vote);
                }
                self.with_raft(id, |raft| raft.persisted(seq));
            }
            Write::Purge { base, membership } => {
                self.node(id).disk.rebase(base, membership);
                self.with_raft(id, |raft| raft.compact(base.index));
            }
            Write::Piece(p) if !p.done => self.with_raft(id, |raft| {
                raft.snapshot_piece_persisted(p.from, p.base, p.piece + 1, p.round);
            }),
            Write::Piece(p) => {
                if self.raft(id).takes_snapshot(p.base) {
                    let node = self.node(id);
                    node.disk.rebase(p.base, p.membership.clone());
                    let bytes = p.payload.bytes().try_into().expect("a digest");
                    node.state = (p.base.index, u64::from_le_bytes(bytes));
                }
                self.with_raft(id, |raft| {
                    raft.snapshot_installed(p.from, p.base, p.membership, p.round)
                });
            }
        }
        true
    }

    /// Answers the oldest read of old entries. Returns whether there was one.
    pub fn load(&mut self, id: u32) -> bool {
        let node = self.node(id);
        if node.loads.is_empty() {
            return false;
        }
        let range = node.loads.remove(0);
        let fail = Err("the disk is damaged".to_owned());
        let found = if node.loads_fail { fail } else { node.disk.load(range) };
        let lost = found.is_err() && node.loads_lost;
        let entries = self.with_raft(id, |raft| {
            if lost {
                raft.lacks(range.first);
            }
            raft.entries_loaded(range.first, found)
        });
        self.take(id, entries);
        true
    }

    /// Applies what is committed and in memory. Returns whether there was anything.
    pub fn apply(&mut self, id: u32) -> bool {
        let entries = self.with_raft(id, |raft| raft.next_committed(1 << 16));
        self.take(id, entries)
    }

    fn take(&mut self, id: u32, entries: Vec<Entry>) -> bool {
        let Some(last) = entries.last().map(|entry| entry.index) else { return false };
        for entry in &entries {
            let next = self.node(id).state.0.next();
            assert!(entry.index == next, "{id} applies {} in place of {next}", entry.index);
            let term = self.truth.committed_term(entry.index);
            assert!(term == Some(entry.term), "{id} applies what is not committed");
            self.node(id).state = (entry.index, self.truth.digest_at(entry.index));
        }
        self.node(id).applied.extend(entries);
        self.with_raft(id, |raft| raft.applied(last));
        true
    }

    /// Has a replica forget its log up to what it has applied, once that is on its disk.
    pub fn compact(&mut self, id: u32) {
        let index = self.raft(id).applied_index();
        let term = self.raft(id).term_of(index).expect("applied and not forgotten");
        let membership = self.raft(id).membership_at(index).clone();
        let write = Write::Purge { base: LogPosition { term, index }, membership };
        self.node(id).disk.writes.push_back(write);
    }

    /// Brings one message of the network to its receiver, unless it is down or cut off.
    pub fn deliver(&mut self, at: usize) {
        let message = self.network.remove(at);
        self.hand_over(message);
    }

    pub fn hand_over(&mut self, message: Message) {
        let (from, to) = (message.from.get(), message.to.get());
        if !self.cut.contains(&(from, to)) && self.nodes.get(&to).is_some_and(|n| n.raft.is_some())
        {
            self.with_raft(to, |raft| raft.step(message));
        }
    }

    /// Gives a replica a message that nobody has sent.
    pub fn step(&mut self, from: u32, to: u32, term: u64, body: Body) {
        let message = Message { from: node(from), to: node(to), term: Term::new(term), body };
        self.with_raft(to, |raft| raft.step(message));
    }

    /// Takes all messages of one kind and way from the network.
    pub fn take_messages(&mut self, from: u32, to: u32, wanted: &str) -> Vec<Message> {
        let wanted =
            |m: &mut Message| m.from == node(from) && m.to == node(to) && kind(&m.body) == wanted;
        self.network.extract_if(.., wanted).collect()
    }

    /// How many messages of one kind are on one way.
    pub fn count(&self, from: u32, to: u32, wanted: &str) -> usize {
        let ways = self.network.iter().filter(|m| m.from == node(from) && m.to == node(to));
        ways.filter(|m| kind(&m.body) == wanted).count()
    }

    /// Has a replica do all it can do, but keeps what it sends on the network.
    pub fn settle_alone(&mut self, id: u32) {
        while self.settle_one(id) {}
    }

    /// Terms of a replica's log after its base.
    pub fn terms(&self, id: u32) -> Vec<u64> {
        let raft = self.raft(id);
        let indexes = raft.base().index.get() + 1..=raft.last_index().get();
        let term = |index| raft.term_of(LogIndex::new(index)).expect("in the log").get();
        indexes.map(term).collect()
    }

    /// Cuts both directions between two sides.
    pub fn partition(&mut self, side: &[u32], other: &[u32]) {
        for &a in side {
            self.cut.extend(other.iter().flat_map(|&b| [(a, b), (b, a)]));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Does all that can be done without time passing, in order.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut busy = false;
            for id in self.ids() {
                busy |= self.settle_one(id);
            }
            if !self.network.is_empty() {
                busy = true;
                self.deliver(0);
            }
            if !busy {
                return;
            }
        }
        let last = &self.network;
        panic!("the cluster never comes to rest:\n{}{last:?}", self.describe());
    }

    /// Does all that one replica can do by itself. Returns whether there was anything.
    pub fn settle_one(&mut self, id: u32) -> bool {
        if !self.up(id) {
            return false;
        }
        for turn in 0..100_000 {
            let mut more = false;
            if self.raft(id).needs_drain(Drain::All) {
                self.drain(id, Drain::All);
                more = true;
            }
            more |= self.persist(id) | self.apply(id) | self.load(id);
            if !more {
                return turn > 0;
            }
        }
        panic!("{id} never comes to rest");
    }

    /// Lets time pass on all replicas alike.
    pub fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            for id in self.ids() {
                if self.up(id) {
                    self.tick(id, 1);
                }
            }
            self.settle();
        }
    }

    /// Lets time pass until `done`; tells how many ticks it took.
    pub fn run_until(&mut self, ticks_max: u32, done: impl Fn(&Self) -> bool) -> u32 {
        for ticks in 0..ticks_max {
            if done(self) {
                return ticks;
            }
            self.run(1);
        }
        panic!("nothing came of it in {ticks_max} ticks: {}", self.describe());
    }

    /// Makes a replica the leader of a cluster at rest.
    pub fn elect(&mut self, id: u32) {
        self.campaign(id);
        self.settle();
        assert!(self.raft(id).role() == Role::Leader, "{}", self.describe());
    }

    /// The leader of the newest term.
    pub fn leader(&self) -> Option<u32> {
        let leads = |id: &u32| self.up(*id) && self.raft(*id).role() == Role::Leader;
        self.ids().into_iter().filter(leads).max_by_key(|&id| self.raft(id).term())
    }

    pub fn describe(&self) -> String {
        let describe = |id| match &self.nodes[&id].raft {
            None => format!("{id} down\n"),
            Some(raft) => format!(
                "{id} {:?} {} leader {:?} commit {} last {} applied {} base {} {:?}\n",
                raft.role(),
                raft.term(),
                raft.leader().map(NodeId::get),
                raft.commit(),
                raft.last_index(),
                raft.applied_index(),
                raft.base().index,
                raft.membership(),
            ),
        };
        self.ids().into_iter().map(describe).collect()
    }

    /// Checks one replica after it has done something.
    fn check(&mut self, id: u32) {
        let Some(raft) = &self.nodes[&id].raft else { return };
        raft.check_invariants();
        if raft.role() == Role::Leader && self.truth.leads(node(id), raft.term()) {
            self.check_complete(id);
        }
        self.check_commit(id);
    }

    /// Leader Completeness: a new leader has all that was committed in lower terms (§5.4.3).
    fn check_complete(&self, id: u32) {
        let raft = self.raft(id);
        let needed = self.truth.committed_before(raft.term());
        for at in needed.filter(|at| at.index >= raft.base().index) {
            let found = raft.term_of(at.index);
            assert!(found == Some(at.term), "{id} leads {} with {found:?} at {at:?}", raft.term());
        }
    }

    /// What is committed was on the disks of a quorum when its leader committed it.
    fn check_commit(&mut self, id: u32) {
        let raft = self.nodes[&id].raft.as_ref().expect("checked by the caller");
        let (commit, term) = (raft.commit(), raft.term());
        let last = self.truth.last_committed();
        if commit > last {
            assert!(raft.role() == Role::Leader, "{id} commits {commit} before its leader");
            let membership = raft.membership();
            let at = LogPosition { term, index: commit };
            assert!(raft.term_of(commit) == Some(term), "{at:?} is committed by counting");
            for half in [&membership.voters, &membership.outgoing] {
                let holds = |voter: &&NodeId| {
                    let disk = &self.nodes[&voter.get()].disk;
                    disk.base.index >= commit || disk.term_of(commit) == Some(term)
                };
                let held = half.iter().filter(holds).count();
                assert!(half.is_empty() || held * 2 > half.len(), "{at:?} is on {held} disks");
            }
        }
        let from = last.min(commit).max(raft.base().index);
        for index in from.get().max(1)..=commit.get() {
            let index = LogIndex::new(index);
            let entry_term = raft.term_of(index).expect("committed and not forgotten");
            self.truth.commits(LogPosition { term: entry_term, index }, term);
        }
        self.truth.membership(commit, raft.membership_at(commit));
        let (applied, digest) = self.nodes[&id].state;
        let right = self.truth.digest_at(applied);
        assert!(digest == right, "the state of {id} at {applied} is {digest}, not {right}");
    }
}

/// Kind of a message, for filters.
pub fn kind(body: &Body) -> &'static str {
    match body {
        Body::PreVote { .. } => "PreVote",
        Body::PreVoteResponse { .. } => "PreVoteResponse",
        Body::Vote { .. } => "Vote",
        Body::VoteResponse { .. } => "VoteResponse",
        Body::Append { .. } => "Append",
        Body::AppendResponse { .. } => "AppendResponse",
        Body::Heartbeat { .. } => "Heartbeat",
        Body::HeartbeatResponse { .. } => "HeartbeatResponse",
        Body::ReadIndex { .. } => "ReadIndex",
        Body::ReadIndexResponse { .. } => "ReadIndexResponse",
        Body::TimeoutNow => "TimeoutNow",
        Body::Snapshot { .. } => "Snapshot",
        Body::SnapshotResponse { .. } => "SnapshotResponse",
        Body::SnapshotWanted { .. } => "SnapshotWanted",
    }
}
