//! One core: takes events, keeps the list of groups with work, hands out effects.

use std::collections::VecDeque;
use std::mem;

use ahash::RandomState;
use coracle_raft::{BatchSeq, Drain, GroupId, NodeId, Raft, Ready, Term};
use hashbrown::HashMap;

use crate::cache::Cache;
use crate::checkpoint::{Checkpoints, StateQueue};
use crate::cold::{ColdReads, Waiter};
use crate::config::CoreConfig;
use crate::divergence::Divergence;
use crate::forward::{Forwards, Parked};
use crate::gc::{Gc, Targets};
use crate::group::{Cold, Group, Leadership, Tally, Turn};
use crate::keyspace::Keyspace;
use crate::located::Placing;
use crate::pace::SnapshotPace;
use crate::recovery::Recovery;
use crate::refetch::Refetches;
use crate::repair::Repairs;
use crate::stats::CoreStats;
use crate::store::{Graveyard, Totals};
use crate::task::{Origin, Outbox, Task, try_again};
use crate::{
    CoreAddr, DiskSpace, Effects, Forward, Input, PeerMessage, ReadMode, Reply, Request, Token,
    Via, WallMillis,
};

/// Ticks between two looks for keys that are due.
const EXPIRY_CHECK_TICKS: u64 = 4;

/// What is known about the leader of a group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LeaderHint {
    /// The newest term heard of.
    pub(crate) term: Term,
    /// Its leader; kept when it is lost, so that clients are shown every slot all the time.
    pub(crate) last: Option<NodeId>,
}

/// What is known about another core.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Something was heard since the link was made or lost.
    pub(crate) up: bool,
    /// Counts the losses.
    pub(crate) losses: u32,
    /// What it said last about its disk, and in which tick.
    pub(crate) space: (DiskSpace, u64),
}

/// One core's brain. See the crate documentation for the contract.
pub struct Core {
    pub(crate) config: CoreConfig,
    pub(crate) groups: Vec<Group>,
    /// Group number → place in `groups`.
    pub(crate) places: Vec<Option<u32>>,
    pub(crate) hints: Vec<LeaderHint>,
    pub(crate) links: HashMap<CoreAddr, Link, RandomState>,
    pub(crate) forwards: Forwards,
    pub(crate) parked: Parked,
    pub(crate) ticks: u64,
    pub(crate) now: WallMillis,
    /// How full the disk is.
    pub(crate) space: DiskSpace,
    /// Places of groups that may have work.
    dirty: Vec<u32>,
    /// Spare list of the same kind.
    visiting: Vec<u32>,
    pub(crate) next_batch: BatchSeq,
    /// The newest batch that is on disk.
    pub(crate) persisted_batch: BatchSeq,
    /// Batches whose places in the log are not known, and what is in them.
    pub(crate) placing: VecDeque<(BatchSeq, Vec<Placing>)>,
    /// The newest segment of the log that is known.
    pub(crate) newest_segment: u64,
    /// Batches on their way to the disk and the groups that are in them.
    writing: VecDeque<(BatchSeq, Vec<u32>)>,
    context: u64,
    ready: Ready,
    pub(crate) out: Outbox,
    serve: Vec<Task>,
    /// Messages made by `handle`, sent by the next drain.
    pub(crate) sends: Vec<(CoreAddr, PeerMessage)>,
    pub(crate) tally: Tally,
    pub(crate) counters: CoreStats,
    /// Sums over the groups.
    pub(crate) totals: Totals,
    /// Reads that wait in any group.
    pub(crate) reads_open: usize,
    pub(crate) state: StateQueue,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) released: Vec<(GroupId, BatchSeq)>,
    /// Differences found by `handle`, for the next drain.
    pub(crate) divergences: Vec<Divergence>,
    /// Recent records of the log.
    pub(crate) cache: Cache,
    pub(crate) cold: ColdReads,
    /// Values that groups asked for in their turn.
    cold_asked: Vec<Cold>,
    pub(crate) gc: Gc,
    pub(crate) targets: Targets,
    /// What was flushed and not dropped yet.
    pub(crate) graveyard: Graveyard,
    pub(crate) keyspace: Keyspace,
    pub(crate) repairs: Repairs,
    pub(crate) refetches: Refetches,
    /// For snapshots to followers.
    pub(crate) pace: SnapshotPace,
    /// For the next drain: no value is needed before this segment.
    pub(crate) values_from: Option<u64>,
    /// Ticks for which the preferred leader of a group led elsewhere has been caught up.
    pub(crate) balance: Vec<crate::balance::Balance>,
}

impl Core {
    /// A core as its log on disk left it. Panics if `config` does not pass
    /// [`CoreConfig::validate`].
    pub fn new(config: CoreConfig, mut recovery: Recovery) -> Self {
        if let Err(error) = config.validate() {
            panic!("{error}");
        }
        let damaged = recovery.damaged();
        let ids: Vec<GroupId> =
            config.map.groups_on(config.addr).filter(|id| !damaged.contains_key(id)).collect();
        let hasher = RandomState::with_seeds(config.seed, 0x5EED, config.seed.rotate_left(32), 7);
        let mut places = vec![None; config.map.group_count() as usize];
        let mut groups = Vec::with_capacity(ids.len());
        for (place, &id) in ids.iter().enumerate() {
            let (log, state) = recovery.take(id, &hasher);
            let raft = Raft::new(raft_config(&config, id, ids.len()), log);
            places[id.get() as usize] = Some(u32::try_from(place).expect("fewer groups than 2^32"));
            groups.push(Group::new(id, config.addr.core, raft, state, hasher.clone()));
        }
        let by_addr_hasher = hasher.clone();
        let links = config.map.cores().filter(|&addr| addr != config.addr);
        let mut by_addr = HashMap::with_hasher(hasher.clone());
        by_addr.extend(links.map(|addr| (addr, Link::default())));
        let mut core = Self {
            hints: vec![LeaderHint::default(); places.len()],
            links: by_addr,
            forwards: Forwards::new(hasher.hash_one(config.seed), hasher),
            parked: Parked::default(),
            ticks: 0,
            now: WallMillis(0),
            space: DiskSpace::Ample,
            dirty: Vec::new(),
            visiting: Vec::new(),
            next_batch: BatchSeq::new(1),
            writing: VecDeque::new(),
            // A late answer to a read of this core's earlier life must not fit one of this life.
            context: config.seed >> 1,
            ready: Ready::default(),
            out: Outbox::default(),
            serve: Vec::new(),
            sends: Vec::new(),
            tally: Tally::default(),
            counters: CoreStats::default(),
            state: StateQueue::default(),
            persisted_batch: BatchSeq::default(),
            placing: VecDeque::new(),
            newest_segment: recovery.newest_segment(),
            checkpoints: recovery.checkpoints(),
            cache: Cache::new(config.value_cache_bytes_max, by_addr_hasher.clone()),
            cold: ColdReads::new(by_addr_hasher),
            cold_asked: Vec::new(),
            gc: Gc::default(),
            targets: Targets::new(),
            graveyard: Graveyard::default(),
            keyspace: Keyspace::new(config.seed),
            repairs: Repairs::new(config.seed.rotate_left(17)),
            refetches: Refetches::new(config.seed.rotate_left(23)),
            pace: SnapshotPace::default(),
            values_from: None,
            reads_open: 0,
            released: Vec::new(),
            divergences: Vec::new(),
            totals: groups.iter().fold(Totals::default(), |mut sum, group| {
                sum.exchange(Totals::default(), group.store.totals());
                sum
            }),
            balance: groups.iter().map(|_| crate::balance::Balance::default()).collect(),
            config,
            groups,
            places,
        };
        for place in 0..core.groups.len() {
            core.mark(place);
        }
        core
    }

    /// Takes one event. Its effects come out of the next [`Core::drain`].
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick { at } => self.tick(at),
            Input::Request(request) => self.request(request),
            Input::Forget(token) => self.forget(token),
            Input::Peer { from, message } => self.peer(from, message),
            Input::PeerLost(addr) => self.peer_lost(addr),
            Input::Placed { batch, places } => self.placed(batch, &places),
            Input::Persisted(batch) => self.persisted(batch),
            Input::Space(space) => self.space_changed(space),
            Input::ValueRead { id, record } => self.value_read(id, record),
            Input::Scanned { scan, records, next } => self.scanned(scan, records, next),
            Input::Checkpointed { number, result } => self.checkpointed(number, result),
            Input::EntriesLoaded { group, first, entries } => {
                self.entries_loaded(group, first, entries);
            }
        }
    }

    /// Hands out what is to be done. `effects` should be empty; it is appended to.
    pub fn drain(&mut self, mode: Drain, effects: &mut Effects) {
        let records_before = effects.records.len();
        if !self.graveyard.is_empty() {
            self.drop_flushed();
        }
        if mode == Drain::All {
            self.write_out();
        }
        let mut wrote = Vec::new();
        mem::swap(&mut self.dirty, &mut self.visiting);
        for i in 0..self.visiting.len() {
            let place = self.visiting[i];
            self.groups[place as usize].dirty = false;
            if self.visit(place as usize, mode, effects) {
                wrote.push(place);
            }
        }
        self.visiting.clear();
        if mode == Drain::All && !self.state.is_empty() {
            let writes = self.state.has_records() || effects.records.len() > records_before;
            // What holds nothing new waits for the batches before it.
            let last = BatchSeq::new(self.next_batch.get() - 1);
            let batch = if writes { self.next_batch } else { last };
            self.state.flush(batch, effects);
            if !writes && self.writing.is_empty() {
                self.state_persisted(last);
            }
        }
        if effects.records.len() > records_before {
            effects.batch = self.next_batch;
            self.note_records(&effects.records[records_before..]);
            self.writing.push_back((self.next_batch, wrote));
            self.next_batch = self.next_batch.next();
            self.counters.batches += 1;
        }
        effects.released.append(&mut self.released);
        effects.checkpoint.append(&mut self.checkpoints.work);
        effects.scan = self.gc.wanted.take().or(effects.scan);
        effects.values_from = self.values_from.take().or(effects.values_from);
        effects.repairs.append(&mut self.repairs.news);
        effects.loads.append(&mut self.refetches.loads);
        self.cold.issue(effects);
        self.send_answers(effects);
        effects.sends.append(&mut self.sends);
        effects.divergences.append(&mut self.divergences);
        self.counters.divergences += effects.divergences.len() as u64;
    }

    /// Whether [`Core::drain`] in this mode would have something to hand out or to do.
    pub fn has_pending(&self, mode: Drain) -> bool {
        !self.sends.is_empty()
            || !self.out.replies.is_empty()
            || !self.out.again.is_empty()
            || !self.released.is_empty()
            || !self.divergences.is_empty()
            || !self.checkpoints.work.is_empty()
            || self.gc.wanted.is_some()
            || self.values_from.is_some()
            || !self.repairs.news.is_empty()
            || !self.refetches.loads.is_empty()
            || self.cold.has_next()
            || (mode == Drain::All && !self.state.is_empty())
            || self.dirty.iter().any(|&place| {
                let group = &self.groups[place as usize];
                group.needs_turn(mode)
            })
    }

    /// Asks the leader of `group`, if it is here, to hand leadership to `to`. Returns whether
    /// the transfer has begun.
    pub fn transfer_leadership(&mut self, group: GroupId, to: NodeId) -> bool {
        let Some(place) = self.place(group) else { return false };
        let began = self.groups[place].raft.transfer_leadership(to).is_ok();
        self.mark(place);
        began
    }

    /// The number of the newest read context.
    #[cfg(test)]
    pub(crate) const fn read_context(&self) -> u64 {
        self.context
    }

    pub(crate) fn place(&self, group: GroupId) -> Option<usize> {
        self.places.get(group.get() as usize)?.map(|place| place as usize)
    }

    /// Puts a group on the list of those to visit.
    pub(crate) fn mark(&mut self, place: usize) {
        let group = &mut self.groups[place];
        if !group.dirty {
            group.dirty = true;
            self.dirty.push(u32::try_from(place).expect("fewer groups than 2^32"));
        }
    }

    /// Visits one group; returns whether it has something in this disk batch.
    fn visit(&mut self, place: usize, mode: Drain, effects: &mut Effects) -> bool {
        let records_before = effects.records.len();
        let group = &mut self.groups[place];
        let (totals_before, reads_before) = (group.store.totals(), group.reads.len());
        group.turn(&mut Turn {
            mode,
            batch: self.next_batch,
            now: self.now,
            ready: &mut self.ready,
            contexts: &mut self.context,
            effects,
            out: &mut self.out,
            tally: &mut self.tally,
            serve: &mut self.serve,
            cache: &mut self.cache,
            cold: &mut self.cold_asked,
            state: &mut self.state,
            targets: &mut self.targets,
            graveyard: &mut self.graveyard,
            pace: &mut self.pace,
            place,
            map: &self.config.map,
            tick: self.ticks,
        });
        self.totals.exchange(totals_before, group.store.totals());
        self.reads_open = self.reads_open - reads_before + group.reads.len();
        for cold in self.cold_asked.drain(..) {
            match cold {
                Cold::Task(task, wanted) => self.cold.want_for(place, task, wanted),
                Cold::Other(waiter, wanted) => self.cold.want(place, wanted, waiter),
            }
        }
        let leadership = group.leadership();
        if leadership != group.seen {
            let before = mem::replace(&mut group.seen, leadership);
            self.leadership_changed(place, before, leadership);
        }
        if self.groups[place].needs_turn(Drain::All) {
            self.mark(place);
        }
        effects.records.len() > records_before
    }

    fn leadership_changed(&mut self, place: usize, before: Leadership, now: Leadership) {
        let id = self.groups[place].id;
        let hint = &mut self.hints[id.get() as usize];
        let is_first = hint.last.is_none();
        if now.term >= hint.term && now.leader.is_some() {
            *hint = LeaderHint { term: now.term, last: now.leader };
        }
        if now.leader.is_some() && now.leader != before.leader {
            self.counters.leader_changes += 1;
        }
        if now.here && !(before.here && before.term == now.term) {
            self.counters.elections_won += 1;
            self.balance[place].became_leader(self.ticks, is_first);
            self.announce(vec![(id, now.term)]);
        }
        if now.leader.is_some() {
            self.retry_parked(id);
        }
    }

    /// Tells every other core about groups led here.
    fn announce(&mut self, led: Vec<(GroupId, Term)>) {
        if led.is_empty() {
            return;
        }
        let here = self.config.addr;
        let others = self.config.map.cores().filter(|&addr| addr != here);
        self.sends.extend(others.map(|addr| (addr, PeerMessage::Leads(led.clone()))));
    }

    /// Turns collected answers into effects and sends commands on their next way.
    fn send_answers(&mut self, effects: &mut Effects) {
        let again = mem::take(&mut self.out.again);
        for task in again {
            self.again(task, None);
        }
        // What one part answers can be the end of a command, or call for another part that is
        // refused at once.
        while !self.out.replies.is_empty() {
            let mut replies = mem::take(&mut self.out.replies);
            for (origin, reply) in replies.drain(..) {
                match origin {
                    Origin::Client(token) => effects.replies.push((token, reply)),
                    Origin::Part { id, group } => self.part_answered(id, group, reply),
                    Origin::Forwarded { from, id, link } => {
                        if self.links.get(&from).is_some_and(|state| state.losses == link) {
                            self.sends.push((from, PeerMessage::ForwardReply { id, reply }));
                        }
                    }
                }
            }
            if self.out.replies.is_empty() {
                self.out.replies = replies;
                return;
            }
        }
    }

    fn tick(&mut self, at: WallMillis) {
        self.ticks += 1;
        self.now = at;
        self.pace.tick();
        for place in 0..self.groups.len() {
            self.tick_group(place);
        }
        if self.ticks.is_multiple_of(u64::from(self.config.leads_interval_ticks)) {
            let led = self.groups.iter().filter(|group| group.leads());
            self.announce(led.map(|group| (group.id, group.raft.term())).collect());
        }
        for task in self.cold.overdue(self.ticks) {
            self.out.reply(task.origin, try_again());
        }
        self.tick_repairs();
        self.tick_refetches();
        self.space_tick();
        self.release_values();
        for group in self.parked.groups() {
            self.retry_parked(group);
        }
        self.expire_forwards();
    }

    fn tick_group(&mut self, place: usize) {
        let group = &mut self.groups[place];
        group.raft.tick();
        let reads_before = group.reads.len();
        group.expire(self.ticks, &mut self.out, &mut self.tally);
        self.reads_open = self.reads_open - reads_before + group.reads.len();
        group.tick_snapshots(self.ticks);
        for (shard, wanted) in group.stalled_wants() {
            if !self.repairs.waits(place, &wanted.key, Waiter::Shard(shard)) {
                self.cold.want_once(place, wanted, Waiter::Shard(shard));
            }
        }
        let group = &mut self.groups[place];
        if group.leads() {
            group.led_at = Some(self.ticks);
        }
        let due = group.is_behind_expiry || self.ticks.is_multiple_of(EXPIRY_CHECK_TICKS);
        if due && self.space < DiskSpace::Out {
            group.propose_due_expiry(self.now);
        }
        self.balance_group(place);
        self.shed_for_space(place);
        self.tick_checks(place);
        let group = &self.groups[place];
        if group.needs_turn(Drain::All)
            // Entries that could not be read back are asked for again.
            || group.raft.commit() > group.applied()
            || self.groups[place].leadership() != self.groups[place].seen
        {
            self.mark(place);
        }
    }

    fn persisted(&mut self, batch: BatchSeq) {
        self.persisted_batch = self.persisted_batch.max(batch);
        self.settle_cycle();
        while let Some((number, _)) = self.writing.front() {
            if *number > batch {
                break;
            }
            let Some((number, places)) = self.writing.pop_front() else { break };
            for place in places {
                self.groups[place as usize].raft.persisted(number);
                self.mark(place as usize);
            }
        }
        self.state_persisted(batch);
    }

    fn request(&mut self, request: Request) {
        self.counters.commands += 1;
        self.now = self.now.max(request.at);
        let Request { token, via, read_mode, follows, at, command } = request;
        if command.spans_groups() {
            return self.keyspace_command(token, via, at, &command);
        }
        let origin = Origin::Client(token);
        let deadline = self.deadline();
        let (hops, fetched) = (0, Vec::new());
        self.route(Task { origin, via, read_mode, follows, at, command, hops, deadline, fetched });
    }

    /// Drops what has not been begun for this client.
    fn forget(&mut self, token: Token) {
        self.parked.forget(Origin::Client(token));
        self.keyspace.forget(token);
    }

    fn peer(&mut self, from: CoreAddr, message: PeerMessage) {
        let Some(link) = self.links.get_mut(&from) else {
            self.counters.ignored_messages += 1;
            return;
        };
        link.up = true;
        let link = link.losses;
        match message {
            PeerMessage::Raft { group, message } => {
                let expected = message.from == from.node
                    && message.to == self.config.addr.node
                    && self.config.map.core_of(group) == from.core
                    && self.config.map.replicas(group).any(|node| node == from.node);
                match self.place(group).filter(|_| expected) {
                    Some(_) if !self.has_space_for(&message) => {}
                    Some(place) => {
                        self.groups[place].raft.step(message);
                        self.mark(place);
                    }
                    None => self.counters.ignored_messages += 1,
                }
            }
            PeerMessage::Forward(Forward { id, at, command }) => {
                self.counters.forwards_received += 1;
                let origin = Origin::Forwarded { from, id, link };
                let deadline = self.deadline();
                let (via, read_mode, follows) = (Via::Plain, ReadMode::Leader, false);
                let (hops, fetched) = (0, Vec::new());
                self.route(Task {
                    origin,
                    via,
                    read_mode,
                    follows,
                    at,
                    command,
                    hops,
                    deadline,
                    fetched,
                });
            }
            PeerMessage::ForwardReply { id, reply } => self.forward_reply(from, id, reply),
            PeerMessage::Leads(led) => self.leads(from, &led),
            PeerMessage::Digests(said) => self.told(from, said.bytes()),
            PeerMessage::ValueWanted(wanted) => self.value_wanted(from, &wanted),
            PeerMessage::ValueAnswer(answer) => self.value_answer(from, answer),
            PeerMessage::EntriesWanted(wanted) => self.entries_wanted(from, wanted),
            PeerMessage::EntriesAnswer(answer) => self.entries_answer(from, answer),
            PeerMessage::Space(space) => self.space_reported(from, space),
        }
    }

    pub(crate) fn deadline(&self) -> u64 {
        self.ticks + u64::from(self.config.forward_timeout_ticks)
    }

    pub(crate) fn refuse(&mut self, task: &Task, reply: Reply) {
        self.out.reply(task.origin, reply);
    }
}

/// Settings of one group's consensus.
fn raft_config(config: &CoreConfig, group: GroupId, groups: usize) -> coracle_raft::Config {
    let salt = u64::from(group.get()) << 32 | u64::from(config.addr.node.get());
    let seed = config.seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut raft = coracle_raft::Config::new(config.addr.node, seed);
    raft.election_timeout_ticks = config.election_timeout_ticks;
    raft.heartbeat_ticks = config.heartbeat_ticks;
    raft.cache_bytes_max = (config.cache_bytes_max / groups.max(1)).max(256 << 10);
    raft.uncommitted_bytes_max = config.inflight_bytes_max;
    raft.read = config.read;
    raft
}
