//! Processes end and start again.

use coracle_engine::{Core, CoreConfig, Effects, Recovery};
use coracle_raft::{Entry, EntryKind, GroupId, LogPosition, Payload, Place, Record};
use coracle_wal::{Brief, Identity, Options, Visitor};

use crate::disk::SimDisk;
use crate::host::{Arrival, Seen};
use crate::network::CLUSTER_ID;
use crate::plan::{Fault, MS, SECOND};
use crate::queue::Micros;
use crate::report::Failure;
use crate::storage::Storage;
use crate::values;
use crate::world::{Event, Step, World};

/// Writes of one log in flight, as in the node.
const WRITES_IN_FLIGHT: usize = 4;
/// How soon a supervisor starts a process again.
const RESTART: (Micros, Micros) = (100 * MS, 3 * SECOND);

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process is gone, the machine is not.
    Process,
    /// The machine is.
    Power,
}

impl World {
    /// A process ends because of its disk.
    pub(crate) fn died(&mut self, host: usize, why: String) {
        let addr = self.hosts[host].addr;
        self.trace.node(self.now, addr, "Exit", why);
        self.counters.exits += 1;
        let node = self.node_of(host);
        self.crash(node, Crash::Process);
        let after = self.rng.between(RESTART.0, RESTART.1);
        self.plan_start(node, after);
    }

    /// Ends all cores of a node at once.
    ///
    /// If they have ended already, the machine may still lose its power, and with it what a dead
    /// process left in the kernel's memory.
    pub(crate) fn crash(&mut self, node: usize, how: Crash) {
        if !self.nodes[node].up {
            if how == Crash::Power {
                self.lose_power(node);
            }
            return;
        }
        self.nodes[node].up = false;
        self.nodes[node].generation += 1;
        self.nodes[node].paused_until = 0;
        self.nodes[node].refused_by.clear();
        let power = how == Crash::Power;
        let event = if power { "PowerLoss" } else { "Crash" };
        self.trace.node(self.now, self.hosts[self.hosts_of(node).start].addr, event, String::new());
        self.counters.crashes += 1;
        for host in self.hosts_of(node) {
            let state = &mut self.hosts[host];
            if let Some(core) = state.core.take() {
                self.counters.add(&core.stats());
            }
            if let Some(storage) = state.storage.take() {
                storage.crash(power, &mut self.rng);
            }
            state.life += 1;
            state.inbox.clear();
            state.held.clear();
            state.turn_planned = false;
            state.seal_planned = false;
            state.effects = Effects::default();
            state.askers.clear();
            state.connections.clear();
            let addr = state.addr;
            self.invariants.stopped(addr);
        }
        self.drop_connections(node, power);
    }

    /// Power fails on a machine on which no process runs.
    fn lose_power(&mut self, node: usize) {
        let addr = self.hosts[self.hosts_of(node).start].addr;
        self.trace.node(self.now, addr, "PowerLoss", "no process runs".to_owned());
        self.counters.idle_power_losses += 1;
        for host in self.hosts_of(node) {
            self.hosts[host].disk.lose_power(&mut self.rng);
        }
    }

    fn drop_connections(&mut self, node: usize, power: bool) {
        let own = self.hosts_of(node);
        for link in 0..self.net.links.len() {
            let (from, to) = (self.net.links[link].from, self.net.links[link].to);
            let (from, to) = (self.host_at(from), self.host_at(to));
            if own.contains(&to) && !own.contains(&from) && self.net.break_link(link) {
                let epoch = self.net.links[link].epoch;
                let arrival = Arrival::LinkEnded { link, epoch };
                let after = self.silence(power);
                self.queue.push(self.now + after, Event::ArriveAny { host: from, arrival });
            } else if own.contains(&from) && !own.contains(&to) {
                let (epoch, due) = self.net.forget(link);
                let arrival = Arrival::PeerEnded { link, epoch };
                // The end of a stream comes after its bytes.
                let end = due.max(self.now + self.silence(power));
                self.queue.push(end, Event::ArriveAny { host: to, arrival });
            }
        }
        for client in 0..self.clients.len() {
            if own.contains(&self.clients[client].host) {
                let serial = self.clients[client].serial;
                let after = self.silence(power);
                self.queue.push(self.now + after, Event::Disconnected { client, serial });
            }
        }
    }

    /// How long others do not notice that a process is gone.
    fn silence(&mut self, power: bool) -> Micros {
        if power { self.rng.between(100 * MS, 10 * SECOND) } else { self.rng.between(50, 5 * MS) }
    }

    /// Starts a node after a while, if nothing else happens to it before.
    pub(crate) fn plan_start(&mut self, node: usize, after: Micros) {
        let generation = self.nodes[node].generation;
        self.queue.push(self.now + after, Event::Start { node, generation });
    }

    pub(crate) fn plan_restart(&mut self, node: usize) {
        let after = self.rng.between(RESTART.0, RESTART.1);
        self.plan_start(node, after);
    }

    /// Starts a node from its disks.
    pub(crate) fn start_node(&mut self, node: usize) -> Step {
        if self.nodes[node].up || self.nodes[node].refused.is_some() {
            return Ok(());
        }
        self.nodes[node].up = true;
        self.counters.starts += 1;
        let executors = self.rng.between(1, u64::from(self.plan.cores)) as usize;
        self.nodes[node].busy = vec![self.now; executors];
        for host in self.hosts_of(node) {
            if let Err(why) = self.start_host(host)? {
                let addr = self.hosts[host].addr;
                self.trace.node(self.now, addr, "StartFailed", why);
                self.crash(node, Crash::Process);
                self.plan_restart(node);
                return Ok(());
            }
        }
        self.count_start(node);
        Ok(())
    }

    /// Starts one core. The inner error is why it has to be tried again.
    fn start_host(&mut self, host: usize) -> Result<Result<(), String>, Failure> {
        let node = self.node_of(host);
        let addr = self.hosts[host].addr;
        let disk = self.hosts[host].disk.clone();
        disk.revive();
        // What cannot be read at the start counts as damage for good.
        disk.set_unreadable(false);
        let options = Options {
            identity: Identity {
                cluster: CLUSTER_ID,
                node: addr.node,
                core: u32::from(addr.core.0),
            },
            segment_bytes: self.plan.disk.segment_bytes,
            batch_bytes_max: 32 << 10,
            groups_max: 16,
            inflight_max: WRITES_IN_FLIGHT,
            salt_seed: self.rng.next().max(1),
            ..Options::default()
        };
        // Sometimes the log is read once, sometimes parts of it again.
        let salt = options.salt_seed;
        let options = Options { recovery_headers_max: salt as usize % 2000, ..options };
        // Now and then the process dies while it recovers.
        if self.faulty && self.plan.faults.contains(&Fault::CrashLoop) && self.rng.chance(0.2) {
            disk.die_after(self.rng.below(10) as u32);
        }
        let tail = (salt >> 20) % (64 << 10);
        let mut recovery = Recovery::new(self.map.clone(), addr).with_tail_of(tail);
        let newest = match read_checkpoints(&disk, options.identity, &mut recovery) {
            Ok(newest) => newest,
            Err(error) if disk.died() => return Ok(Err(error)),
            Err(error) => return Err(self.failure("recovery", format!("{addr}: {error}"))),
        };
        // The records in full are for the invariants only.
        let mut all = All::default();
        let looked = coracle_wal::inspect_into(&disk, Some(options.identity), &mut all);
        let All(records) = all;
        let recovered = looked.and_then(|_| {
            coracle_wal::recover_into(disk.clone(), options, &mut Collect(&mut recovery))
        });
        let (wal, report) = match recovered {
            Ok(recovered) => recovered,
            Err(error) if disk.died() => return Ok(Err(error.to_string())),
            Err(error) if self.hosts[host].damaged || self.nodes[node].amnesiac => {
                self.nodes[node].refused = Some(error.to_string());
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(self.failure("recovery", format!("{addr}: {error}"))),
        };
        for group in self.map.groups_on(addr).filter(|&group| report.is_damaged(group)) {
            recovery.mark_damaged(group, "its part of the log is damaged");
        }
        let damaged = recovery.damaged();
        self.counters.groups_damaged += damaged.len() as u64;
        let lost: usize = report.lost_entries.values().map(Vec::len).sum();
        self.counters.entries_lost += lost as u64;
        self.counters.batches_restored += report.restored;
        let fallback = self.hosts[host].only_checkpoint;
        let made = self.hosts[host].damaged && !fallback || self.nodes[node].amnesiac;
        if !damaged.is_empty() && !made {
            let text = format!("{addr} finds damage that nobody made: {damaged:?}, {report:?}");
            return Err(self.failure("recovery", text));
        }
        let forgotten: Vec<_> = damaged.keys().copied().collect();
        self.invariants.forgot(addr, &forgotten);
        let mut storage = Storage::new(wal, self.plan.disk.gather, newest);
        while !storage.may_seal(self.now) {
            if !storage.start_task() {
                break;
            }
            match storage.task_done() {
                Ok(true) => {}
                // It serves what can be read, and goes on when there is space.
                Ok(false) => break,
                Err(error) if disk.died() => return Ok(Err(error.to_string())),
                Err(error) => return Err(self.failure("recovery", format!("{addr}: {error}"))),
            }
        }
        disk.revive();
        let config = CoreConfig {
            seed: self.rng.next(),
            cache_bytes_max: self.plan.cache_bytes,
            value_cache_bytes_max: self.plan.disk.value_cache_bytes,
            computed_bytes_max: self.plan.disk.computed_bytes,
            // From one to a few seconds.
            check_interval_ticks: 20 + (self.plan.seed % 64) as u32,
            ..CoreConfig::new(addr, self.map.clone())
        };
        let core = Core::new(config, recovery);
        if !self.nodes[node].amnesiac {
            self.invariants.durable(addr, &records);
            let started = self.invariants.started(addr, &core);
            started.map_err(|violation| self.violation(&violation))?;
            self.expect_values(host, &core, &mut storage)?;
        }
        let torn = report.torn.map(|torn| torn.to_string()).unwrap_or_default();
        self.trace.node(self.now, addr, "Start", torn);
        let seen = core.groups_hosted().filter_map(|group| {
            let status = core.group_status(group)?;
            Some(Seen { group, role: status.role, term: status.term, commit: status.commit })
        });
        let seen = seen.collect();
        let state = &mut self.hosts[host];
        (state.core, state.storage, state.seen) = (Some(core), Some(storage), seen);
        state.acquaintances.restart();
        let life = state.life;
        let first = self.now + self.rng.below(self.plan.tick);
        self.queue.push(first, Event::Tick { host, life });
        self.wake(host);
        Ok(Ok(()))
    }

    /// What a core has recovered refers to nothing that its log lacks, unless somebody took it.
    fn expect_values(&self, host: usize, core: &Core, storage: &mut Storage) -> Step {
        let state = &self.hosts[host];
        if state.damaged || state.values_damaged {
            return Ok(());
        }
        let (_, wal) = storage.values();
        for stored in core.stored_values() {
            if let Some(why) = values::missing(wal, &stored) {
                let (addr, key) = (state.addr, String::from_utf8_lossy(&stored.key).into_owned());
                let text = format!("{addr} lost the value of {key} that nobody damaged: {why}");
                return Err(self.failure("recovery", text));
            }
        }
        Ok(())
    }
}

/// Hands all sections of checkpoints to the recovery, those of the newest file first. Returns the
/// number of the newest file that can be read.
fn read_checkpoints(
    disk: &SimDisk,
    identity: Identity,
    recovery: &mut Recovery,
) -> Result<Option<u64>, String> {
    let read = coracle_wal::read_checkpoints(disk, identity, &mut |section| {
        recovery.section(section.checkpoint, section.bytes);
    });
    let (checkpoints, report) = read.map_err(|error| error.to_string())?;
    recovery.taken_numbers(report.newest_number);
    Ok(checkpoints.first().map(|checkpoint| checkpoint.number))
}

/// What the node does: most commands are taken note of without their content.
struct Collect<'a>(&'a mut Recovery);

impl Visitor for Collect<'_> {
    fn record(&mut self, place: Place, record: Record) {
        self.0.record(place, record);
    }

    fn brief(&mut self, brief: &Brief) -> bool {
        self.0.brief(brief.place, brief.group, brief.position, brief.bytes_behind)
    }

    fn lost(&mut self, place: Place, group: GroupId, position: LogPosition) {
        self.0.lost(place, group, position);
    }
}

/// Every record. Those whose contents are lost have none.
#[derive(Default)]
struct All(Vec<Record>);

impl Visitor for All {
    fn record(&mut self, _: Place, record: Record) {
        self.0.push(record);
    }

    fn lost(&mut self, _: Place, group: GroupId, position: LogPosition) {
        let LogPosition { term, index } = position;
        let (kind, payload) = (EntryKind::Command, Payload::empty());
        self.0.push(Record::Entry { group, entry: Entry { term, index, kind, payload } });
    }
}

#[cfg(test)]
mod tests {
    use coracle_wal::Disk;

    use super::*;
    use crate::plan::{Plan, Profile};
    use crate::trace::Trace;

    /// A world at its start.
    fn world(seed: u64) -> World {
        let plan = Plan::draw(seed, Profile::Calm, 1);
        let trace = Trace::new(plan.nodes, None);
        World::new(plan, trace).expect("an empty cluster starts")
    }

    #[test]
    fn what_a_dead_process_did_not_sync_goes_with_the_power() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..40 {
            let mut world = world(seed);
            let disk = world.hosts[0].disk.clone();
            disk.create("unsynced").expect("created");
            world.crash(0, Crash::Process);
            let there = |disk: &crate::disk::SimDisk| {
                disk.list().expect("listed").iter().any(|name| name == "unsynced")
            };
            assert!(there(&disk), "the machine still has it");
            world.crash(0, Crash::Power);
            assert_eq!(world.counters.idle_power_losses, 1);
            if there(&disk) { kept += 1 } else { lost += 1 }
        }
        assert!(kept > 5 && lost > 5, "{kept} kept, {lost} lost");
    }
}
