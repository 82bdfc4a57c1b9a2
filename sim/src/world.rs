//! One run: nodes, links, disks and clients on one clock, in one thread.

use std::collections::BTreeMap;

use coracle_engine::{
    ClusterMap, CoreAddr, CoreId, CoreStats, Drain, Input, PeerMessage, not_sent, testing,
};
use coracle_raft::{GroupId, NodeId};

use crate::calm::Calm;
use crate::client::Client;
use crate::history::Op;
use crate::host::{Arrival, Host, Node, Seen};
use crate::invariants::{DIGESTS, Invariants};
use crate::io::IoStep;
use crate::lonely::Lonely;
use crate::network::Network;
use crate::plan::{Fault, Plan, SECOND};
use crate::queue::{Micros, Queue};
use crate::report::{Counters, Failure};
use crate::rng::Rng;
use crate::run::Activity;
use crate::trace::{Trace, role_event};
use crate::whole::Whole;

/// Arrivals of one turn, as in the node.
const TURN_ARRIVALS_MAX: usize = 16;
/// What a turn costs, and each arrival in it.
const TURN_COST: Micros = 20;
const ARRIVAL_COST: Micros = 4;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    Tick {
        host: usize,
        life: u64,
    },
    Turn {
        host: usize,
        life: u64,
    },
    /// An operation of the disk is done, unless the disk is stuck.
    DiskDone {
        host: usize,
        life: u64,
        arrival: Arrival,
    },
    /// Enough has gathered for a batch.
    Seal {
        host: usize,
        life: u64,
    },
    Arrive {
        host: usize,
        life: u64,
        arrival: Arrival,
    },
    /// For whatever process runs there by then.
    ArriveAny {
        host: usize,
        arrival: Arrival,
    },
    Reply {
        client: usize,
        serial: u64,
        step: usize,
        bytes: Vec<u8>,
    },
    ClientNext {
        client: usize,
        serial: u64,
    },
    ClientTimeout {
        client: usize,
        serial: u64,
    },
    Disconnected {
        client: usize,
        serial: u64,
    },
    Start {
        node: usize,
        generation: u64,
    },
    Fault,
    Undo(crate::faults::Undo),
    DeepCheck,
    LonelyCheck,
}

/// The simulated cluster and everything around it.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) map: ClusterMap,
    pub(crate) now: Micros,
    pub(crate) queue: Queue<Event>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) history: Vec<Op>,
    /// Commands on all keys, that are not in the history yet.
    pub(crate) wholes: Vec<Whole>,
    /// The group in which one replica was given a key that the others do not have.
    pub(crate) stray: Option<GroupId>,
    pub(crate) invariants: Invariants,
    pub(crate) trace: Trace,
    pub(crate) counters: Counters,
    pub(crate) rng: Rng,
    /// Clients connect only here, and begin something new only while this is set.
    pub(crate) open_hosts: Vec<usize>,
    pub(crate) clients_run: bool,
    pub(crate) lonely: Lonely,
    pub(crate) calm: Calm,
    /// When the faults that last for a while end, by kind and node.
    pub(crate) spells: BTreeMap<(Fault, usize), Micros>,
    pub(crate) phases: Vec<Activity>,
    /// How long the quorum that was left in peace took to serve every group again.
    pub(crate) recovery: Option<Micros>,
    /// Whether new faults happen.
    pub(crate) faulty: bool,
    /// Whether all commands of the client that probes were done.
    pub(crate) probed: bool,
    /// Operations are numbered so that no two happen at the same time.
    pub(crate) ns: u64,
}

pub(crate) type Step = Result<(), Failure>;

impl World {
    /// All nodes are started; nothing has happened yet.
    pub(crate) fn new(plan: Plan, trace: Trace) -> Result<Self, Failure> {
        let map = testing::map_of(plan.nodes, plan.cores, plan.shards, plan.groups);
        let cores = usize::from(plan.cores);
        let mut hosts = Vec::new();
        for node in 1..=plan.nodes {
            for core in 0..plan.cores {
                hosts.push(Host::new(CoreAddr { node: NodeId::new(node), core: CoreId(core) }));
            }
        }
        let mut rng = Rng::new(plan.seed, "world");
        let drift = i64::try_from(plan.drift_ppm).unwrap_or(0);
        let nodes = (0..plan.nodes)
            .map(|_| Node::new(cores, rng.between(0, 2 * plan.drift_ppm) as i64 - drift))
            .collect();
        let addrs: Vec<CoreAddr> = hosts.iter().map(|host| host.addr).collect();
        let net = Network::new(plan.seed, plan.net.clone(), &addrs, cores);
        let clients = (0..plan.load.clients)
            .map(|id| {
                let host = rng.below(hosts.len() as u64) as usize;
                Client::new(u64::from(id), host, &mut rng)
            })
            .collect();
        let mut world = Self {
            invariants: Invariants::new(&map),
            open_hosts: (0..hosts.len()).collect(),
            map,
            now: 0,
            queue: Queue::default(),
            hosts,
            nodes,
            net,
            clients,
            history: Vec::new(),
            wholes: Vec::new(),
            stray: None,
            trace,
            counters: Counters::default(),
            rng,
            clients_run: true,
            faulty: true,
            lonely: Lonely::new(),
            calm: Calm::default(),
            spells: BTreeMap::new(),
            phases: Vec::new(),
            recovery: None,
            probed: false,
            ns: 0,
            plan,
        };
        for node in 0..world.nodes.len() {
            world.start_node(node)?;
        }
        for client in 0..world.clients.len() {
            world.client_later(client);
        }
        if !world.plan.faults.is_empty() {
            let first = world.rng.wait(world.plan.fault_every).min(world.plan.faulty / 2);
            world.queue.push(first, Event::Fault);
        }
        world.queue.push(SECOND, Event::DeepCheck);
        world.queue.push(0, Event::LonelyCheck);
        Ok(world)
    }

    /// Lets time pass.
    pub(crate) fn run_until(&mut self, end: Micros) -> Step {
        while let Some((at, event)) = self.queue.pop(end) {
            self.now = at;
            self.counters.events += 1;
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Step {
        match event {
            Event::Turn { host, life } if life == self.hosts[host].life => self.turn(host)?,
            Event::Tick { host, life } if life == self.hosts[host].life => self.tick(host),
            Event::Arrive { host, life, arrival } if life == self.hosts[host].life => {
                self.arrive(host, arrival);
            }
            Event::Seal { host, life } if life == self.hosts[host].life => {
                self.hosts[host].seal_planned = false;
                self.wake(host);
            }
            Event::DiskDone { host, life, arrival } if life == self.hosts[host].life => {
                match self.hosts[host].stuck {
                    true => self.hosts[host].held.push(arrival),
                    false => self.arrive(host, arrival),
                }
            }
            Event::Turn { .. }
            | Event::DiskDone { .. }
            | Event::Tick { .. }
            | Event::Seal { .. }
            | Event::Arrive { .. } => {}
            Event::ArriveAny { host, arrival } => self.arrive(host, arrival),
            Event::Reply { client, serial, step, bytes } => {
                self.client_reply(client, serial, step, &bytes)?;
            }
            Event::ClientNext { client, serial } => self.client_next(client, serial),
            Event::ClientTimeout { client, serial } => self.client_timeout(client, serial),
            Event::Disconnected { client, serial } => self.client_disconnected(client, serial),
            Event::Start { node, generation } if generation == self.nodes[node].generation => {
                self.start_node(node)?;
            }
            Event::Start { .. } => {}
            Event::Fault => self.fault()?,
            Event::Undo(undo) => self.undo(undo)?,
            Event::LonelyCheck => {
                self.look_for_calm();
                self.check_lonely_leaders()?;
            }
            Event::DeepCheck => {
                self.deep_check()?;
                self.queue.push(self.now + SECOND, Event::DeepCheck);
            }
        }
        Ok(())
    }

    /// The node of a host.
    pub(crate) fn node_of(&self, host: usize) -> usize {
        host / usize::from(self.plan.cores)
    }

    /// Whether a node has all that it should have, in the end: none of its disks was damaged, or it
    /// takes part with every group all the same, since what was lost can be had from others.
    pub(crate) fn is_whole(&self, node: usize) -> bool {
        let state = &self.nodes[node];
        let hosts_all = |host: usize| {
            let core = self.hosts[host].core.as_ref();
            let hosted = core.map(|core| core.groups_hosted().count());
            hosted == Some(self.map.groups_on(self.hosts[host].addr).count())
        };
        !state.damaged || (!state.amnesiac && self.hosts_of(node).all(hosts_all))
    }

    /// The hosts of a node.
    pub(crate) fn hosts_of(&self, node: usize) -> std::ops::Range<usize> {
        let cores = usize::from(self.plan.cores);
        node * cores..(node + 1) * cores
    }

    pub(crate) fn node_of_addr(&self, addr: CoreAddr) -> usize {
        self.node_of(self.host_at(addr))
    }

    pub(crate) fn host_at(&self, addr: CoreAddr) -> usize {
        (addr.node.get() as usize - 1) * usize::from(self.plan.cores) + usize::from(addr.core.0)
    }

    pub(crate) fn arrive(&mut self, host: usize, arrival: Arrival) {
        if self.hosts[host].core.is_some() {
            self.hosts[host].inbox.push_back(arrival);
            self.wake(host);
        }
    }

    /// Plans a turn of a core as soon as its executor is free.
    pub(crate) fn wake(&mut self, host: usize) {
        if self.hosts[host].turn_planned {
            return;
        }
        self.hosts[host].turn_planned = true;
        let node = &self.nodes[self.node_of(host)];
        let executor = usize::from(self.hosts[host].addr.core.0) % node.busy.len();
        let at = self.now.max(node.busy[executor]).max(node.paused_until);
        self.queue.push(at, Event::Turn { host, life: self.hosts[host].life });
    }

    fn tick(&mut self, host: usize) {
        let node = &self.nodes[self.node_of(host)];
        let life = self.hosts[host].life;
        let sleeps = node.paused_until > self.now;
        self.queue.push(self.now + node.tick(self.plan.tick), Event::Tick { host, life });
        // Ticks that were slept through are not made up for.
        if !sleeps {
            self.arrive(host, Arrival::Tick);
        }
    }

    fn turn(&mut self, host: usize) -> Step {
        self.hosts[host].turn_planned = false;
        let place = self.node_of(host);
        let executor = usize::from(self.hosts[host].addr.core.0) % self.nodes[place].busy.len();
        let free = self.nodes[place].busy[executor].max(self.nodes[place].paused_until);
        if free > self.now {
            self.wake(host);
            return Ok(());
        }
        let mut cost = TURN_COST;
        for _ in 0..TURN_ARRIVALS_MAX {
            let Some(arrival) = self.hosts[host].inbox.pop_front() else { break };
            cost += ARRIVAL_COST;
            let storage = self.hosts[host].storage.as_ref();
            let step = storage.and_then(|storage| IoStep::of(&arrival, storage));
            if let Err(why) = self.take(host, arrival)? {
                self.died(host, why);
                return Ok(());
            }
            if step.is_some_and(|step| self.dies_at(place, step)) {
                return Ok(());
            }
        }
        self.act(host)?;
        self.nodes[place].busy[executor] = self.now + cost * self.nodes[place].slowness;
        let Host { inbox, core, storage, .. } = &self.hosts[host];
        let (Some(core), Some(storage)) = (core, storage) else { return Ok(()) };
        let seal_at = storage.may_seal_at().filter(|_| core.has_pending(Drain::All));
        let more = !inbox.is_empty() || core.has_pending(Drain::Urgent);
        if more || seal_at.is_some_and(|at| at <= self.now) {
            self.wake(host);
        } else if let Some(at) = seal_at
            && !std::mem::replace(&mut self.hosts[host].seal_planned, true)
        {
            self.queue.push(at, Event::Seal { host, life: self.hosts[host].life });
        }
        Ok(())
    }

    /// Hands one arrival to the engine. The inner error ends the process.
    fn take(&mut self, host: usize, arrival: Arrival) -> Result<Result<(), String>, Failure> {
        let wall = self.nodes[self.node_of(host)].wall(self.now);
        let state = &mut self.hosts[host];
        let (Some(core), Some(storage)) = (&mut state.core, &mut state.storage) else {
            return Ok(Ok(()));
        };
        match arrival {
            Arrival::Tick => {
                core.handle(Input::Tick { at: wall });
                if let Some(space) = storage.tick() {
                    self.counters.space_changes += 1;
                    core.handle(Input::Space(space));
                }
                self.dial_all(host);
                if let Some(late) = self.hosts[host].tick() {
                    let text = format!("{} never answers {late:?}", self.hosts[host].addr);
                    return Err(self.failure("answers", text));
                }
            }
            Arrival::Commands(commands) => {
                let taken = state.take(&commands, wall);
                taken.map_err(|text| self.failure("codec", text))?;
            }
            Arrival::Forget(tokens) => {
                for token in tokens {
                    state.askers.remove(&token);
                    core.handle(Input::Forget(token));
                }
            }
            Arrival::Frame(frame) => return self.take_frame(host, frame).map(Ok),
            Arrival::Mail(from, message) => core.handle(Input::Peer { from, message }),
            Arrival::LinkEnded { link, epoch } => {
                if self.net.sender_knows(link, epoch, self.now) {
                    core.handle(Input::PeerLost(self.net.links[link].to));
                }
            }
            Arrival::PeerEnded { link, epoch } => {
                self.net.receiver_knows(link, epoch);
                core.handle(Input::PeerLost(self.net.links[link].from));
            }
            Arrival::NotSent { to, id } => {
                let message = PeerMessage::ForwardReply { id, reply: not_sent() };
                core.handle(Input::Peer { from: to, message });
            }
            Arrival::WriteDone(job) => return Ok(self.write_done(host, job)),
            Arrival::LoadDone(job) => {
                if let Some(input) = storage.load_done(job) {
                    core.handle(input);
                }
            }
            Arrival::ReadDone(job) => {
                let (values, wal) = storage.values();
                if let Some(read) = values.done(wal, job) {
                    self.go_on_reading(host, read);
                }
            }
            Arrival::ScanDone => {
                let (values, wal) = storage.values();
                if let Some(input) = values.scan_done(wal, core) {
                    core.handle(input);
                }
            }
            Arrival::CheckpointDone => {
                let input = storage.checkpoint_done();
                let ended = matches!(&input, Some(Input::Checkpointed { .. }));
                let is_gone = ended && storage.has_lost_checkpoint();
                if let Some(input) = input {
                    core.handle(input);
                }
                if is_gone {
                    self.explain_lost_checkpoint(host)?;
                }
                if ended {
                    self.harm_checkpointer(host);
                }
                self.start_checkpoint(host);
            }
            Arrival::TaskDone => {
                if let Err(error) = storage.task_done() {
                    return Ok(Err(error.to_string()));
                }
            }
            Arrival::BookSaved { version, starts } => {
                self.book_saved(host, version, starts)?;
            }
            Arrival::PeerRefused { by, text } => return self.peer_refused(host, by, text),
        }
        Ok(Ok(()))
    }

    /// Executes what the engine wants done, as the node's hot loop does.
    fn act(&mut self, host: usize) -> Step {
        let state = &mut self.hosts[host];
        let (Some(core), Some(storage)) = (&mut state.core, &mut state.storage) else {
            return Ok(());
        };
        let mode = if storage.may_seal(self.now) { Drain::All } else { Drain::Urgent };
        let mut effects = std::mem::take(&mut state.effects);
        core.drain(mode, &mut effects);
        if !effects.records.is_empty() {
            let (batch, places) = (effects.batch, storage.append(effects.batch, &effects.records));
            core.handle(Input::Placed { batch, places });
            effects.records.clear();
        }
        storage.release(&effects.released);
        effects.released.clear();
        if let Some(from) = effects.values_from.take() {
            // It may take long until anybody misses them.
            let arriving = core.oldest_arriving();
            assert!(
                arriving.is_none_or(|oldest| oldest >= from),
                "{arriving:?} goes, below {from}"
            );
            storage.release_values(from);
        }
        effects.repairs.clear();
        storage.push_checkpoint(effects.checkpoint.drain(..));
        let (budget, emptied) = storage.take_upkeep(&self.plan.disk);
        if budget > 0 {
            core.checkpoint_step(budget);
        }
        if let Some(before) = emptied {
            core.gc_step(before, budget);
        }
        self.observe(host)?;
        let addr = self.hosts[host].addr;
        effects.divergences.retain(|found| self.stray != Some(found.group));
        if let Some(found) = effects.divergences.first() {
            let violation = DIGESTS.broken(addr, found.group, format!("{found:?}"));
            return Err(self.violation(&violation));
        }
        if !self.is_amnesiac(addr) {
            let sent = self.invariants.sent(addr, &effects.sends);
            sent.map_err(|violation| self.violation(&violation))?;
        }
        self.start_writes(host);
        self.start_task(host);
        self.send(host, effects.sends.drain(..));
        for (token, reply) in effects.replies.drain(..) {
            let Some((asker, bytes)) = self.hosts[host].answer(token, &reply) else { continue };
            let way = self.client_way();
            let (client, serial, step) = (asker.client, asker.serial, asker.step);
            let wall = self.nodes[self.node_of(host)].wall(self.now);
            self.hosts[host].go_on(client, wall);
            self.queue.push(self.now + way, Event::Reply { client, serial, step, bytes });
        }
        for load in effects.loads.drain(..) {
            self.counters.loads += 1;
            let Some(storage) = &mut self.hosts[host].storage else { break };
            match storage.start_load(load) {
                Ok(job) => self.plan_disk(host, Arrival::LoadDone(job)),
                Err(input) => {
                    if let Some(core) = &mut self.hosts[host].core {
                        core.handle(input);
                    }
                }
            }
        }
        for asked in effects.reads.drain(..) {
            self.counters.value_reads += 1;
            let Some(storage) = &mut self.hosts[host].storage else { break };
            let (values, wal) = storage.values();
            let read = values.start(wal, asked);
            self.go_on_reading(host, read);
        }
        if let Some(scan) = effects.scan.take() {
            self.counters.scans += 1;
            self.start_scan(host, scan);
        }
        self.start_checkpoint(host);
        self.hosts[host].effects = effects;
        Ok(())
    }

    /// Checks and records what a turn has changed.
    fn observe(&mut self, host: usize) -> Step {
        let node = self.node_of(host);
        let Host { addr, core: Some(core), seen, .. } = &mut self.hosts[host] else {
            return Ok(());
        };
        for last in seen.iter_mut() {
            let Some(status) = core.group_status(last.group) else { continue };
            let at = (status.term, status.last.get());
            if (status.role, status.term) != (last.role, last.term) {
                let event = role_event(status.role);
                self.trace.replica(self.now, *addr, last.group, event, at);
            }
            if status.commit != last.commit {
                let at = (status.term, status.commit.get());
                self.trace.replica(self.now, *addr, last.group, "Commit", at);
            }
            let (role, term, commit) = (status.role, status.term, status.commit);
            *last = Seen { group: last.group, role, term, commit };
        }
        if self.nodes[node].amnesiac {
            return Ok(());
        }
        let checked = self.invariants.observe(*addr, core);
        checked.map_err(|violation| self.violation(&violation))
    }

    /// The costly checks.
    pub(crate) fn deep_check(&mut self) -> Step {
        let (nodes, per_node) = (&self.nodes, usize::from(self.plan.cores));
        let whole = |place: usize| !nodes[place / per_node].amnesiac;
        let hosts = self.hosts.iter().enumerate().filter(|(place, _)| whole(*place));
        let mut cores = hosts.filter_map(|(_, host)| Some((host.addr, host.core.as_ref()?)));
        let checked = self.invariants.observe_deep(&mut cores);
        checked.map_err(|violation| self.violation(&violation))
    }

    /// How long bytes travel between a client and a node.
    pub(crate) fn client_way(&mut self) -> Micros {
        self.rng.between(30, 1500)
    }

    /// Counters of all running cores and of those that ran before.
    pub(crate) fn totals(&self) -> Counters {
        let mut totals = self.counters.clone();
        for core in self.hosts.iter().filter_map(|host| host.core.as_ref()) {
            let stats: CoreStats = core.stats();
            totals.add(&stats);
        }
        totals.frames = self.net.frames;
        totals.frames_lost = self.net.frames_lost;
        totals
    }

    pub(crate) fn failure(&self, kind: &'static str, text: String) -> Failure {
        Failure { kind, text, at: self.now }
    }

    pub(crate) fn violation(&self, violation: &crate::invariants::Violation) -> Failure {
        self.failure(violation.invariant, violation.to_string())
    }
}
