//! One seed from start to verdict.
//!
//! First phase: faults everywhere; nothing wrong may ever be seen. Second phase: one quorum is
//! left in peace, everything outside it stays as the faults left it; the quorum must serve every
//! group again within a bound. Then all is healed, all replicas must agree, and the history of
//! all clients must be linearizable.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_engine::{CoreAddr, SlotId};
use coracle_raft::{Bug, GroupId, plant};

use crate::checker;
use crate::client::{Call, Client, op};
use crate::history::{Bytes, Op, OpKind};
use crate::plan::{ELECTION_TIMEOUT_MAX, Fault, MS, Plan, Profile, SECOND};
use crate::queue::Micros;
use crate::report::{Counters, Failure};
use crate::stray;
use crate::trace::Trace;
use crate::world::World;

/// What the check of a history may cost: bursts on few keys are dear.
const CHECK: checker::Limits = checker::Limits { states_per_step: 5_000_000, states: 200_000_000 };
/// Most time that healed replicas may need to agree.
const CONVERGENCE_MAX: Micros = 120 * SECOND;

/// Keys that are read at once at the end.
const LAST_LOOK: usize = 16;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which faults.
    pub profile: Profile,
    /// Simulated seconds of the first phase.
    pub seconds: u64,
    /// A bug that is planted for the run.
    pub bug: Option<Bug>,
}

/// What came of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What it decided.
    pub plan: Plan,
    /// What happened.
    pub counters: Counters,
    /// What was wrong.
    pub failure: Option<Failure>,
    /// The last events of every node, if something was wrong.
    pub story: String,
    /// Of everything that happened.
    pub trace_hash: u64,
    /// Simulated time.
    pub simulated: Micros,
    /// Real time.
    pub took: Duration,
    /// Everything the clients saw.
    pub history: Vec<Op>,
    /// How long the quorum that was left in peace took to serve every group again.
    pub recovery: Option<Micros>,
    /// What happened in the first phase and in the second, as far as the run came.
    pub phases: Vec<Activity>,
}

/// What makes a phase of a run worth something.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// Entries committed, over all replicas.
    pub commits: u64,
    /// Writes answered.
    pub writes: u64,
    /// Reads answered.
    pub reads: u64,
    /// Elections won.
    pub elections: u64,
    /// Processes started.
    pub starts: u64,
}

impl Activity {
    fn between(before: &Counters, after: &Counters) -> Self {
        Self {
            commits: after.commits - before.commits,
            writes: after.writes - before.writes,
            reads: after.reads - before.reads,
            elections: after.elections - before.elections,
            starts: after.starts - before.starts,
        }
    }
}

/// Runs a seed. All events go to `file` as well.
pub fn run(seed: u64, options: &Options, file: Option<Box<dyn Write>>) -> Outcome {
    let started = Instant::now();
    let plan = Plan::draw(seed, options.profile, options.seconds);
    let mut world = None;
    plant(options.bug);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let trace = Trace::new(plan.nodes, file);
        let world = world.insert(World::new(plan.clone(), trace)?);
        phases(world)
    }));
    plant(None);
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(_) => {
            let at = world.as_ref().map_or(0, |world: &World| world.now);
            Some(Failure { kind: "panic", text: last_panic(), at })
        }
    };
    let Some(mut world) = world else {
        return Outcome {
            seed,
            plan,
            counters: Counters::default(),
            failure,
            story: String::new(),
            trace_hash: 0,
            simulated: 0,
            took: started.elapsed(),
            history: Vec::new(),
            recovery: None,
            phases: Vec::new(),
        };
    };
    let story = if failure.is_some() { world.trace.story() } else { String::new() };
    // What cannot be written does not change the verdict.
    let _ = world.trace.finish();
    Outcome {
        seed,
        plan,
        counters: world.totals(),
        failure,
        story,
        trace_hash: world.trace.hash(),
        simulated: world.now,
        took: started.elapsed(),
        history: world.history,
        recovery: world.recovery,
        phases: world.phases,
    }
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of runs for their reports instead of printing them.
pub fn catch_panics() {
    panic::set_hook(Box::new(|info| {
        LAST_PANIC.with_borrow_mut(|last| *last = info.to_string());
    }));
}

fn last_panic() -> String {
    LAST_PANIC.with_borrow_mut(std::mem::take)
}

type Step = Result<(), Failure>;

fn phases(world: &mut World) -> Step {
    world.run_until(world.plan.faulty)?;
    let first = end_phase(world, &Counters::default())?;
    let quorum = leave_in_peace(world);
    prove_progress(world, &quorum)?;
    end_phase(world, &first)?;
    heal_everything(world);
    settle(world)?;
    expect_refusals(world)?;
    read_everything(world)?;
    miss_the_stray(world)?;
    world.deep_check()?;
    world.spread_wholes()?;
    check_history(world)
}

/// A phase in which too little happened shows nothing.
fn end_phase(world: &mut World, before: &Counters) -> Result<Counters, Failure> {
    let now = world.totals();
    let seen = Activity::between(before, &now);
    world.phases.push(seen);
    // The second phase always has a quorum. The first has to show as much as its faults left it
    // time for, and that the plan's faults happened.
    let least = if world.phases.len() == 1 { least_of_first(world) } else { 1 };
    if seen.commits.min(seen.writes).min(seen.reads) < least {
        let text = format!("too little happened, at least {least} of each: {seen:?}");
        return Err(world.failure("idle", text));
    }
    // A lie needs a write that it can be told about, and an idle core has none; a value must be
    // old, and a checkpoint there.
    let perhaps = |fault: &Fault| {
        matches!(
            fault,
            Fault::Misdirect
                | Fault::StaleBlock
                | Fault::OldValue
                | Fault::BadCheckpoint
                | Fault::LostEntry
        )
    };
    if !world.plan.faults.iter().all(perhaps) && now.faults.is_empty() {
        return Err(world.failure("idle", "no fault of the plan has happened".to_owned()));
    }
    Ok(now)
}

/// Commits, writes and reads that the first phase must show: one of each for every two clients
/// and second in which all groups had a quorum at a stretch, the time of an election apart. Runs
/// show five times that at least.
const fn least_of_first(world: &World) -> u64 {
    // Clients may still wait for answers of processes that are gone.
    let settling = ELECTION_TIMEOUT_MAX + world.plan.load.timeout;
    let calm = world.calm.longest().saturating_sub(settling);
    calm * world.plan.load.clients as u64 / (4 * SECOND)
}

/// Chooses a quorum without damage and ends all faults inside it.
fn leave_in_peace(world: &mut World) -> Vec<usize> {
    world.faulty = false;
    let nodes = world.nodes.len();
    let mut whole: Vec<usize> = (0..nodes).filter(|&node| !world.nodes[node].damaged).collect();
    whole.sort_by_key(|_| world.rng.next());
    // Groups have three replicas: any two nodes may be the majority of one.
    whole.truncate(nodes - (3 / 2));
    whole.sort_unstable();
    world.net.spared = whole.iter().copied().collect();
    // No fault begins any more, one that was armed included.
    for storage in world.hosts.iter_mut().filter_map(|host| host.storage.as_mut()) {
        storage.end_lies();
    }
    for &node in &whole {
        end_faults(world, node);
    }
    for (from, to) in world.net.cuts() {
        if whole.contains(&from) && whole.contains(&to) {
            world.heal(from, to);
        }
    }
    world.end_silence(&whole);
    world.open_hosts = whole.iter().flat_map(|&node| world.hosts_of(node)).collect();
    let detail = format!("{:?}", whole.iter().map(|node| node + 1).collect::<Vec<_>>());
    world.trace.cluster(world.now, "LeftInPeace", detail);
    whole
}

/// Ends what goes on at one node.
fn end_faults(world: &mut World, node: usize) {
    world.set_full(node, false);
    world.set_unreadable(node, false);
    world.release_disk(node);
    world.net.set_slow(node, 0);
    let state = &mut world.nodes[node];
    state.slowness = 1;
    (state.crash_loops, state.death) = (0, None);
    if state.paused_until > world.now {
        state.paused_until = world.now;
    }
    for host in world.hosts_of(node) {
        let state = &mut world.hosts[host];
        state.disk_slowness = 1;
        state.write_fails = false;
        if state.core.is_some() {
            state.turn_planned = false;
            world.wake(host);
        }
    }
    if !world.nodes[node].up {
        world.plan_start(node, 100 * MS);
    }
}

/// A key that belongs to a group.
fn key_of(world: &World, group: GroupId) -> Vec<u8> {
    let key = |number: u64| format!("probe{number}").into_bytes();
    let here = |key: &Vec<u8>| world.map.group_of_slot(SlotId::of_key(key)) == group;
    (0..).map(key).find(here).expect("every group has slots")
}

/// Every group must serve a write and a read through the quorum.
fn prove_progress(world: &mut World, quorum: &[usize]) -> Step {
    let begin = world.now;
    let groups: Vec<GroupId> = (0..world.plan.groups).map(GroupId::new).collect();
    let hosts: Vec<usize> = quorum.iter().flat_map(|&node| world.hosts_of(node)).collect();
    let mut left: Vec<(GroupId, bool)> =
        groups.iter().flat_map(|&group| [(group, true), (group, false)]).collect();
    let prober = world.clients.len();
    let client = Client::new(prober as u64, hosts[0], &mut world.rng);
    world.clients.push(client);
    while let Some(&(group, write)) = left.first() {
        if world.now > begin + world.plan.recovery_max {
            let text = format!(
                "{} s after the faults around nodes {:?} ended, group {group} serves no {}{}",
                (world.now - begin) / SECOND,
                quorum.iter().map(|node| node + 1).collect::<Vec<_>>(),
                if write { "write" } else { "read" },
                status(world, group),
            );
            return Err(world.failure("progress", text));
        }
        let key = key_of(world, group);
        let kind = if write { OpKind::Set(b"probe".as_slice().into()) } else { OpKind::Get };
        if ask(world, prober, vec![op(&key, kind)])? {
            left.remove(0);
        }
    }
    world.recovery = Some(world.now - begin);
    // The other clients go on for a while, so that more than probes is seen.
    let end = world.now + 2 * SECOND;
    world.run_until(end)
}

/// Sends commands and waits until they are answered or given up; whether all were done.
fn ask(world: &mut World, prober: usize, calls: Vec<Call>) -> Result<bool, Failure> {
    // In turn, not by chance: a node that is cut off from a leader outside the quorum does not
    // serve, and may come up many times in a row.
    let open = &world.open_hosts;
    let at = open.iter().position(|&host| host == world.clients[prober].host);
    let next = open[at.map_or(0, |at| (at + 1) % open.len())];
    world.reconnect(prober, Some(next));
    world.probed = false;
    world.clients[prober].probing = true;
    world.client_send(prober, calls);
    while !world.clients[prober].open.is_empty() {
        world.run_until(world.now + MS)?;
    }
    if !world.probed {
        world.run_until(world.now + 20 * MS)?;
    }
    Ok(world.probed)
}

fn status(world: &World, group: GroupId) -> String {
    let line = |addr: CoreAddr| {
        let host = &world.hosts[world.host_at(addr)];
        match host.core.as_ref().map(|core| core.group_status(group)) {
            None => format!("\n  {addr}: down"),
            Some(None) => format!("\n  {addr}: not taking part"),
            Some(Some(s)) => format!(
                "\n  {addr}: {:?} term {} leader {:?} last {} commit {} applied {} base {}",
                s.role, s.term, s.leader, s.last, s.commit, s.applied, s.base
            ),
        }
    };
    let core = world.map.core_of(group);
    world.map.replicas(group).map(|node| line(CoreAddr { node, core })).collect()
}

/// Everything works again, everywhere.
fn heal_everything(world: &mut World) {
    for node in 0..world.nodes.len() {
        end_faults(world, node);
    }
    for (from, to) in world.net.cuts() {
        world.heal(from, to);
    }
    world.net.corrupting = false;
    world.net.spared = (0..world.nodes.len()).collect();
    world.open_hosts = (0..world.hosts.len()).collect();
    world.clients_run = false;
    world.trace.cluster(world.now, "Healed", String::new());
}

/// Runs until nothing is open and all replicas have applied the same.
fn settle(world: &mut World) -> Step {
    let end = world.now + CONVERGENCE_MAX;
    while !is_settled(world) {
        if world.now > end {
            let all: String = (0..world.plan.groups)
                .map(|group| format!("\ngroup {group}:{}", status(world, GroupId::new(group))))
                .collect();
            return Err(world.failure("convergence", format!("replicas do not agree:{all}")));
        }
        world.run_until(world.now + 50 * MS)?;
    }
    world.deep_check()
}

fn is_settled(world: &World) -> bool {
    let quiet = world.clients.iter().all(|client| client.open.is_empty());
    let whole = |host: &crate::host::Host| world.is_whole(world.node_of_addr(host.addr));
    let up = world.hosts.iter().filter(|host| whole(host)).all(|host| host.core.is_some());
    let agree = |group: u32| {
        let group = GroupId::new(group);
        let mut replicas = world
            .hosts
            .iter()
            .filter(|host| whole(host))
            .filter_map(|host| host.core.as_ref()?.group_status(group));
        let Some(first) = replicas.next() else { return true };
        first.applied == first.last
            && replicas.all(|other| (other.applied, other.last) == (first.applied, first.last))
    };
    quiet && up && (0..world.plan.groups).all(agree)
}

/// A node that has lost its disk, or got an old copy of it, must have been refused by now.
fn expect_refusals(world: &mut World) -> Step {
    let end = world.now + CONVERGENCE_MAX;
    loop {
        let mut nodes = world.nodes.iter();
        let Some(place) = nodes.position(|node| node.amnesiac && node.refused.is_none()) else {
            return Ok(());
        };
        if world.now > end {
            let text = format!("node {} may have forgotten promises, and is let in", place + 1);
            return Err(world.failure("amnesia", text));
        }
        world.run_until(world.now + 50 * MS)?;
    }
}

/// One last look at every key: an acknowledged write that is gone shows here.
fn read_everything(world: &mut World) -> Step {
    let prober = world.clients.len() - 1;
    // Also those that a pipeline alone has ever used.
    let keys: BTreeSet<Bytes> = world.history.iter().map(|op| Arc::clone(&op.key)).collect();
    let keys: Vec<Bytes> = keys.into_iter().collect();
    read_all(world, prober, &keys)?;
    let damaged = world.nodes.iter().any(|node| node.damaged);
    let repaired = |fault: &Fault| matches!(fault, Fault::OldValue | Fault::LostEntry);
    if !damaged && !world.plan.faults.iter().any(repaired) {
        return Ok(());
    }
    // What was damaged at one replica must be whole there again.
    world.clients[prober].stays_with_replica = true;
    let nodes: Vec<usize> = (0..world.nodes.len()).filter(|&node| world.is_whole(node)).collect();
    for node in nodes {
        world.open_hosts = world.hosts_of(node).collect();
        read_all(world, prober, &keys)?;
    }
    Ok(())
}

/// A replica that is known to hold something else than the others does not show it.
fn miss_the_stray(world: &mut World) -> Step {
    let Some(node) = world.lone_holder()? else { return Ok(()) };
    let prober = world.clients.len() - 1;
    world.clients[prober].stays_with_replica = true;
    world.open_hosts = world.hosts_of(node).collect();
    // Nobody has ever written it, as the history knows.
    read_all(world, prober, &[Bytes::from(stray::KEY)])
}

/// Reads keys until all are answered.
fn read_all(world: &mut World, prober: usize, keys: &[Bytes]) -> Step {
    for some in keys.chunks(LAST_LOOK) {
        let mut tries = 0;
        while !ask(world, prober, some.iter().map(|key| op(key, OpKind::Get)).collect())? {
            tries += 1;
            if tries > 100 {
                let first = String::from_utf8_lossy(&some[0]).into_owned();
                let text =
                    format!("a healthy cluster does not answer GET {first} and what follows");
                return Err(world.failure("progress", text));
            }
        }
    }
    Ok(())
}

fn check_history(world: &World) -> Step {
    match checker::check_within(&world.history, CHECK) {
        Ok(_) => Ok(()),
        Err(why @ checker::Failure::NotLinearizable(_)) => {
            Err(world.failure("linearizability", why.to_string()))
        }
        Err(why @ checker::Failure::Undecided(_)) => {
            Err(world.failure("undecided", why.to_string()))
        }
    }
}
