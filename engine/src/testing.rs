//! A whole cluster in one thread: cores joined by a fake network, each with a fake disk.
//!
//! Deterministic: the same options and calls give the same run. Time moves in steps; messages
//! and disk batches take a number of steps drawn from a range. Links keep their order and
//! deliver at most once; a cut link loses what is under way and both ends are told.

mod events;
mod inspect;
mod machine;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use coracle_raft::{BatchSeq, Entry, EntryKind, GroupId, LogPosition, NodeId, Record};

pub use self::inspect::{Content, Levels, Stored};
use self::machine::{Machine, Written};
pub use self::watch::Watch;
use crate::command::decode;
use crate::{
    CheckpointWork, ClusterMap, Core, CoreAddr, CoreConfig, CoreId, DiskSpace, Divergence, Drain,
    Effects, Input, Load, NodeInfo, PeerMessage, ReadMode, ReadValue, Recovery, Reply, Request,
    ScanSegment, Token, Via, WallMillis,
};

/// Disk batches of one core that may be under way at once, as with the real log.
const BATCHES_IN_FLIGHT_MAX: usize = 2;

/// The shape of a cluster and how slow its parts are.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Nodes. Default: 3.
    pub nodes: u32,
    /// Cores per node. Default: 1.
    pub cores: u16,
    /// Shards. Default: 16.
    pub shards: u16,
    /// Groups. Default: 4.
    pub groups: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps a message takes. Default: 1..=3.
    pub net_steps: RangeInclusive<u64>,
    /// Steps a disk batch takes. Default: 1..=3.
    pub disk_steps: RangeInclusive<u64>,
    /// Steps between ticks. Default: 10.
    pub tick_steps: u64,
    /// Wall time per tick. Default: 50 ms.
    pub tick_ms: u64,
    /// Keeps what is written, so that nodes can be restarted. Default: true.
    pub keep_disk: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            cores: 1,
            shards: 16,
            groups: 4,
            seed: 1,
            net_steps: 1..=3,
            disk_steps: 1..=3,
            tick_steps: 10,
            tick_ms: 50,
            keep_disk: true,
        }
    }
}

/// A layout with hosts `h1`, `h2`, … and plain port 7000, core ports from 7100.
pub fn map_of(nodes: u32, cores: u16, shards: u16, groups: u32) -> ClusterMap {
    let node = |n: u32| NodeInfo {
        id: NodeId::new(n),
        host: format!("h{n}"),
        plain_port: 7000,
        core_port: 7100,
        peer_port: 7200,
    };
    ClusterMap::new((1..=nodes).map(node).collect(), cores, shards, groups)
        .expect("tests ask for possible layouts")
}

/// Core `core` of node `node`.
pub const fn addr(node: u32, core: u16) -> CoreAddr {
    CoreAddr { node: NodeId::new(node), core: CoreId(core) }
}

enum Event {
    Message { from: CoreAddr, to: CoreAddr, link: u64, message: PeerMessage },
    Written { addr: CoreAddr, life: u64, batch: BatchSeq, records: Vec<Written> },
    Loaded { addr: CoreAddr, life: u64, load: Load },
    Read { addr: CoreAddr, life: u64, read: ReadValue },
    Scanned { addr: CoreAddr, life: u64, scan: ScanSegment },
    Checkpoint { addr: CoreAddr, life: u64, work: CheckpointWork },
}

/// The cluster.
pub struct Cluster {
    options: ClusterOptions,
    map: ClusterMap,
    configure: fn(&mut CoreConfig),
    machines: BTreeMap<CoreAddr, Machine>,
    events: BTreeMap<(u64, u64), Event>,
    /// When the last event of each queue is due, so that queues keep their order.
    queue_ends: BTreeMap<(CoreAddr, CoreAddr), u64>,
    /// Counts how often each pair's link was cut.
    links: BTreeMap<(CoreAddr, CoreAddr), u64>,
    cut: BTreeSet<(NodeId, NodeId)>,
    step: u64,
    event: u64,
    wall_ms: u64,
    random: u64,
    next_token: u64,
    answers: BTreeMap<Token, Option<Reply>>,
    outbox: VecDeque<CoreAddr>,
    watch: Option<Box<dyn Watch>>,
    divergences: Vec<(CoreAddr, Divergence)>,
}

impl Cluster {
    /// A cluster with empty disks. Nothing has happened yet.
    pub fn new(options: ClusterOptions) -> Self {
        Self::with_config(options, |_| {})
    }

    /// As [`Cluster::new`], with settings of every core changed by `configure`.
    pub fn with_config(options: ClusterOptions, configure: fn(&mut CoreConfig)) -> Self {
        let map = map_of(options.nodes, options.cores, options.shards, options.groups);
        let mut cluster = Self {
            machines: map.cores().map(|addr| (addr, Machine::default())).collect(),
            map,
            configure,
            events: BTreeMap::new(),
            queue_ends: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            step: 0,
            event: 0,
            wall_ms: 1_700_000_000_000,
            random: options.seed,
            next_token: 1,
            answers: BTreeMap::new(),
            outbox: VecDeque::new(),
            watch: None,
            divergences: Vec::new(),
            options,
        };
        for node in 1..=cluster.options.nodes {
            cluster.start(node);
        }
        cluster
    }

    /// Tells `watch` of everything from now on, and of every core that runs.
    pub fn watch(&mut self, mut watch: Box<dyn Watch>) {
        for (&at, machine) in &self.machines {
            if let Some(core) = &machine.core {
                watch.started(at, core);
            }
        }
        self.watch = Some(watch);
    }

    /// The layout.
    pub const fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Differences between replicas that were reported, and by whom.
    pub fn divergences(&self) -> &[(CoreAddr, Divergence)] {
        &self.divergences
    }

    /// A running core. Panics if its node is down.
    pub fn core(&self, at: CoreAddr) -> &Core {
        self.machines[&at].core.as_ref().expect("the node is up")
    }

    /// A running core. Panics if its node is down.
    pub fn core_mut(&mut self, at: CoreAddr) -> &mut Core {
        let machine = self.machines.get_mut(&at).expect("an address of this cluster");
        machine.core.as_mut().expect("the node is up")
    }

    /// Wall time now.
    pub const fn wall(&self) -> WallMillis {
        WallMillis(self.wall_ms)
    }

    /// Moves the wall clocks of all nodes forward.
    pub const fn advance_wall(&mut self, ms: u64) {
        self.wall_ms += ms;
    }

    /// What is durable on a core's disk and not released.
    pub fn disk(&self, at: CoreAddr) -> impl Iterator<Item = &Record> {
        self.machines[&at].disk.iter().map(|written| &written.record)
    }

    /// A core's checkpoint files, the oldest first.
    pub fn files(&self, at: CoreAddr) -> impl Iterator<Item = (u64, &[Vec<u8>])> {
        self.machines[&at].files.iter().map(|(&number, sections)| (number, &sections[..]))
    }

    /// Takes away the newest checkpoint file of every core of a node that is down.
    pub fn lose_newest_checkpoint(&mut self, node: u32) {
        for core in 0..self.options.cores {
            let machine = self.machines.get_mut(&addr(node, core)).expect("a node of this cluster");
            assert!(machine.core.is_none(), "the node is down");
            machine.files.pop_last();
        }
    }

    /// From now on a core cannot read entries of its log back, or can again.
    pub fn fail_loads(&mut self, at: CoreAddr, fails: bool) {
        self.machines.get_mut(&at).expect("a core of this cluster").fails_loads = fails;
    }

    /// Damages every record on a core's disk that holds these bytes.
    pub fn damage_values(&mut self, at: CoreAddr, bytes: &[u8]) {
        let machine = self.machines.get_mut(&at).expect("an address of this cluster");
        machine.damage_values(bytes);
    }

    /// Loses the content of the durable entries of a core's log that are chosen: it cannot load
    /// them any more, and a restart finds only where they stood. Returns how many there are.
    pub fn lose_entries(
        &mut self,
        at: CoreAddr,
        chosen: impl FnMut(GroupId, &Entry) -> bool,
    ) -> u64 {
        self.machines.get_mut(&at).expect("an address of this cluster").lose_entries(chosen)
    }

    /// The durable entries of a core's log, and whether they can be read.
    pub fn entries(&self, at: CoreAddr) -> BTreeMap<(GroupId, LogPosition), bool> {
        let machine = &self.machines[&at];
        let entries = machine.entries.iter().map(|(&(group, _), (place, entry))| {
            ((group, entry.position()), !machine.lost.contains(place))
        });
        entries.collect()
    }

    /// The segments that a core's log keeps for their values, and the one that is written.
    pub fn segments(&self, at: CoreAddr) -> (std::ops::Range<u64>, u64) {
        let machine = &self.machines[&at];
        (machine.values_from..machine.segment(), machine.segment())
    }

    /// Lets every core write a part of its checkpoint and move values out of old segments.
    pub fn checkpoint(&mut self, bytes_budget: usize) {
        for at in self.map.cores().collect::<Vec<_>>() {
            self.checkpoint_on(at, bytes_budget);
        }
    }

    /// As [`Cluster::checkpoint`], for one core, if it runs.
    pub fn checkpoint_on(&mut self, at: CoreAddr, bytes_budget: usize) {
        let machine = self.machines.get_mut(&at).expect("an address of this cluster");
        let before = machine.segment();
        if let Some(core) = &mut machine.core {
            core.checkpoint_step(bytes_budget);
            core.gc_step(before, bytes_budget);
            self.outbox.push_back(at);
        }
    }

    /// Tells the cores of a node how full their disk is.
    pub fn set_disk_space(&mut self, node: u32, space: DiskSpace) {
        for core in 0..self.options.cores {
            self.give(addr(node, core), Input::Space(space));
        }
    }

    /// Starts a node from its disks.
    pub fn start(&mut self, node: u32) {
        for core in 0..self.options.cores {
            let at = addr(node, core);
            let seed = self.below(u64::MAX);
            let mut config = CoreConfig::new(at, self.map.clone());
            config.seed = seed;
            (self.configure)(&mut config);
            let tail = seed % 200;
            let mut recovery = Recovery::new(self.map.clone(), at).with_tail_of(tail);
            let machine = self.machines.get_mut(&at).expect("an address of this cluster");
            for (&number, sections) in machine.files.iter().rev() {
                sections.iter().for_each(|section| recovery.section(number, section));
            }
            // Some of what is in memory after a start, and all of what follows, counted in records.
            let mut left = machine.disk.len() as u64;
            for Written { batch, place, record } in &mut machine.disk {
                // Batches of an earlier life come before all of this one.
                *batch = BatchSeq::default();
                if machine.lost.contains(place)
                    && let Record::Entry { group, entry } = record
                {
                    left -= 1;
                    recovery.lost(*place, *group, entry.position());
                    continue;
                }
                let (group, position) = match record {
                    Record::Entry { group, entry } if entry.kind == EntryKind::Command => {
                        (*group, Some(entry.position()))
                    }
                    Record::Value { group, .. } => (*group, None),
                    record => {
                        recovery.record(*place, record.clone());
                        continue;
                    }
                };
                left -= 1;
                if !recovery.brief(*place, group, position, left) {
                    recovery.record(*place, record.clone());
                }
            }
            assert_eq!(recovery.damaged(), BTreeMap::new(), "{at} wrote what does not add up");
            assert_eq!(recovery.ignored(), 0, "{at} wrote records it does not understand");
            machine.life += 1;
            machine.writing = 0;
            machine.stalled.clear();
            machine.effects = Effects::default();
            let core = machine.core.insert(Core::new(config, recovery));
            if let Some(watch) = &mut self.watch {
                watch.started(at, core);
            }
        }
    }

    /// Whether a node runs.
    pub fn is_up(&self, node: u32) -> bool {
        self.machines[&addr(node, 0)].core.is_some()
    }

    /// Stops a node at once; what is not durable is lost.
    pub fn kill(&mut self, node: u32) {
        let gone: Vec<_> = (0..self.options.cores).map(|core| addr(node, core)).collect();
        for at in &gone {
            let machine = self.machines.get_mut(at).expect("an address of this cluster");
            let ran = machine.core.take().is_some();
            machine.stop();
            if let Some(watch) = self.watch.as_mut().filter(|_| ran) {
                watch.stopped(*at);
            }
        }
        let others: Vec<_> = self.machines.keys().copied().collect();
        for at in gone {
            for &other in &others {
                self.break_link(at, other);
            }
        }
    }

    /// Cuts every link between two nodes.
    pub fn cut(&mut self, a: u32, b: u32) {
        let pair = |a, b| (NodeId::new(a), NodeId::new(b));
        self.cut.extend([pair(a, b), pair(b, a)]);
        for x in 0..self.options.cores {
            for y in 0..self.options.cores {
                self.break_link(addr(a, x), addr(b, y));
            }
        }
    }

    /// Cuts a node off from all others.
    pub fn isolate(&mut self, node: u32) {
        for other in (1..=self.options.nodes).filter(|&other| other != node) {
            self.cut(node, other);
        }
    }

    /// Joins all nodes again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Lets no disk write of a node complete, or lets them complete again.
    pub fn freeze_disk(&mut self, node: u32, frozen: bool) {
        for core in 0..self.options.cores {
            let machine = self.machines.get_mut(&addr(node, core)).expect("a node of this cluster");
            machine.frozen_disk = frozen;
            self.complete_writes(addr(node, core));
        }
    }

    /// Sends a command to a core as a client on a fresh connection of the plain port would.
    pub fn submit(&mut self, at: CoreAddr, args: &[&[u8]]) -> Token {
        self.submit_as(at, Via::Plain, ReadMode::Leader, false, args)
    }

    /// Sends a command to a core.
    pub fn submit_as(
        &mut self,
        at: CoreAddr,
        via: Via,
        read_mode: ReadMode,
        follows: bool,
        args: &[&[u8]],
    ) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        let now = self.wall();
        match decode(args, now) {
            Err(reply) => {
                self.answers.insert(token, Some(reply));
            }
            Ok(command) => {
                self.answers.insert(token, None);
                let request = Request { token, via, read_mode, follows, at: now, command };
                self.core_mut(at).handle(Input::Request(request));
                self.settle(at);
            }
        }
        token
    }

    /// The answer to a command, if it has come.
    pub fn answer(&self, token: Token) -> Option<&Reply> {
        self.answers.get(&token)?.as_ref()
    }

    /// Runs until a command is answered. Panics if that takes more than 100000 steps.
    pub fn wait(&mut self, token: Token) -> Reply {
        let answered = self.run_until(100_000, |cluster| cluster.answer(token).is_some());
        assert!(answered, "no answer to {token:?}");
        self.answers.remove(&token).flatten().expect("just seen")
    }

    /// Sends a command, words separated by single spaces, and waits for the answer.
    pub fn call(&mut self, at: CoreAddr, command: &str) -> Reply {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let token = self.submit(at, &args);
        self.wait(token)
    }

    /// Runs for a number of steps.
    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Runs until `done` or for at most `steps`; returns whether it was done.
    pub fn run_until(&mut self, steps: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        for _ in 0..steps {
            if done(self) {
                return true;
            }
            self.step();
        }
        done(self)
    }

    /// The core that leads a group with the support of a majority, if there is one.
    pub fn leader(&self, group: u32) -> Option<CoreAddr> {
        let group = GroupId::new(group);
        let leads = |(&at, machine): (&CoreAddr, &Machine)| {
            let status = machine.core.as_ref()?.group_status(group)?;
            (status.role == coracle_raft::Role::Leader).then_some((status.term, at))
        };
        self.machines.iter().filter_map(leads).max().map(|(_, at)| at)
    }

    /// Runs until every group has a leader that every live replica follows.
    pub fn wait_for_leaders(&mut self) {
        let all = |cluster: &Self| {
            (0..cluster.options.groups).all(|group| {
                let Some(leader) = cluster.leader(group) else { return false };
                let id = GroupId::new(group);
                let live = cluster.machines.values().filter_map(|m| m.core.as_ref());
                live.filter_map(|core| core.group_status(id))
                    .all(|status| status.leader == Some(leader.node))
            })
        };
        assert!(self.run_until(100_000, all), "some group found no leader");
    }

    /// Runs until all live replicas of every group have applied the same entries, then asserts
    /// that they hold the same data.
    pub fn assert_replicas_agree(&mut self) {
        let statuses = |cluster: &Self, group: u32| {
            let id = GroupId::new(group);
            let live = cluster.machines.values().filter_map(|m| m.core.as_ref());
            live.filter_map(|core| Some((core.group_status(id)?, core.digest(id)?)))
                .collect::<Vec<_>>()
        };
        let settled = |cluster: &Self| {
            (0..cluster.options.groups).all(|group| {
                let id = GroupId::new(group);
                let live = cluster.machines.values().filter_map(|m| m.core.as_ref());
                let mut seen = live.filter_map(|core| core.group_status(id));
                let Some(first) = seen.next() else { return true };
                let mut live = cluster.machines.values().filter_map(|m| m.core.as_ref());
                // Nowhere does a command wait for a value.
                live.all(|core| core.group_status(id).is_none() || core.content(id).is_some())
                    && first.applied == first.last
                    && seen.all(|other| other.applied == first.applied && other.last == first.last)
            })
        };
        assert!(self.run_until(100_000, settled), "replicas do not catch up");
        for group in 0..self.options.groups {
            let seen = statuses(self, group);
            for (status, digest) in &seen {
                let (first, want) = &seen[0];
                assert_eq!(digest, want, "group {group}: data differs at {}", first.applied);
                assert_eq!(status.log_clock, first.log_clock, "group {group}: log clocks");
                assert_eq!((status.keys, status.bytes), (first.keys, first.bytes), "{group}");
            }
        }
    }

    /// One step: ticks, messages, disks, then a turn of every core with work.
    pub fn step(&mut self) {
        self.step += 1;
        if self.step.is_multiple_of(self.options.tick_steps) {
            self.wall_ms += self.options.tick_ms;
            let at = self.wall();
            for machine in self.machines.values_mut() {
                if let Some(core) = &mut machine.core {
                    core.handle(Input::Tick { at });
                }
            }
            self.outbox.extend(self.machines.keys());
        }
        while let Some((&key, _)) = self.events.first_key_value().filter(|(k, _)| k.0 <= self.step)
        {
            let event = self.events.remove(&key).expect("just seen");
            self.happen(event);
        }
        let touched: BTreeSet<_> = self.outbox.drain(..).collect();
        for at in touched {
            self.settle(at);
        }
    }

    fn give(&mut self, to: CoreAddr, input: Input) {
        let machine = self.machines.get_mut(&to).expect("an address of this cluster");
        if let Some(core) = &mut machine.core {
            core.handle(input);
            self.outbox.push_back(to);
        }
    }

    /// Drains a core until it has nothing more to hand out.
    fn settle(&mut self, at: CoreAddr) {
        for turn in 0.. {
            assert!(turn < 10_000, "{at} never comes to rest");
            let machine = self.machines.get_mut(&at).expect("an address of this cluster");
            let Some(core) = &mut machine.core else { return };
            let room = machine.writing < BATCHES_IN_FLIGHT_MAX;
            let mode = if room { Drain::All } else { Drain::Urgent };
            if !core.has_pending(mode) && !core.is_dropping() {
                return;
            }
            core.drain(mode, &mut machine.effects);
            if let Some(watch) = &mut self.watch {
                watch.drained(at, core, &machine.effects);
            }
            self.execute(at);
        }
    }

    fn execute(&mut self, at: CoreAddr) {
        let machine = self.machines.get_mut(&at).expect("an address of this cluster");
        let life = machine.life;
        let mut effects = std::mem::take(&mut machine.effects);
        if !effects.records.is_empty() {
            machine.writing += 1;
            let (batch, records) = (effects.batch, std::mem::take(&mut effects.records));
            let records = machine.place(batch, records);
            let places = records.iter().map(|written| written.place).collect();
            self.give(at, Input::Placed { batch, places });
            let event = Event::Written { addr: at, life, batch, records };
            self.schedule((at, at), self.options.disk_steps.clone(), event);
        }
        for (to, message) in effects.sends.drain(..) {
            let up = self.machines.get(&to).is_some_and(|machine| machine.core.is_some());
            if up && !self.cut.contains(&(at.node, to.node)) {
                let link = self.link(at, to);
                let event = Event::Message { from: at, to, link, message };
                self.schedule((at, to), self.options.net_steps.clone(), event);
            }
        }
        for load in effects.loads.drain(..) {
            let event = Event::Loaded { addr: at, life, load };
            self.schedule((at, at), self.options.disk_steps.clone(), event);
        }
        let disk = self.options.disk_steps.clone();
        for read in effects.reads.drain(..) {
            self.schedule((at, at), disk.clone(), Event::Read { addr: at, life, read });
        }
        if let Some(scan) = effects.scan.take() {
            self.schedule((at, at), disk.clone(), Event::Scanned { addr: at, life, scan });
        }
        for work in effects.checkpoint.drain(..) {
            self.schedule((at, at), disk.clone(), Event::Checkpoint { addr: at, life, work });
        }
        if let Some(from) = effects.values_from.take() {
            let arriving = self.core(at).oldest_arriving();
            assert!(arriving.is_none_or(|oldest| oldest >= from), "{at} releases {arriving:?}");
            let machine = self.machines.get_mut(&at).expect("an address of this cluster");
            machine.release_values(from);
        }
        for (group, batch) in effects.released.drain(..) {
            let machine = self.machines.get_mut(&at).expect("an address of this cluster");
            machine.release(group, batch);
        }
        self.divergences.extend(effects.divergences.drain(..).map(|found| (at, found)));
        effects.repairs.clear();
        for (token, reply) in effects.replies.drain(..) {
            let place = self.answers.get_mut(&token);
            let place = place.unwrap_or_else(|| panic!("{token:?} was not asked: {reply:?}"));
            assert!(place.is_none(), "{token:?} is answered twice: {place:?}, {reply:?}");
            *place = Some(reply);
        }
        let machine = self.machines.get_mut(&at).expect("an address of this cluster");
        machine.effects = effects;
    }

    fn schedule(&mut self, queue: (CoreAddr, CoreAddr), steps: RangeInclusive<u64>, event: Event) {
        let span = steps.end() - steps.start() + 1;
        let due = self.step + steps.start() + self.below(span);
        let end = self.queue_ends.entry(queue).or_default();
        *end = due.max(*end);
        self.event += 1;
        self.events.insert((*end, self.event), event);
    }

    fn link(&self, a: CoreAddr, b: CoreAddr) -> u64 {
        self.links.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    fn break_link(&mut self, a: CoreAddr, b: CoreAddr) {
        if a == b {
            return;
        }
        *self.links.entry((a.min(b), a.max(b))).or_default() += 1;
        self.give(a, Input::PeerLost(b));
        self.give(b, Input::PeerLost(a));
    }

    /// SplitMix64.
    const fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % bound
    }
}
