//! Faults and how they end.

use coracle_net::peers::{Lineage, Start};
use coracle_raft::{GroupId, Role};

use crate::disk::SimDisk;
use crate::host::{Copy, Lie};
use crate::lifecycle::Crash;
use crate::plan::{Fault, MS, SECOND};
use crate::queue::Micros;
use crate::world::{Event, Step, World};

/// The end of a fault.
#[derive(Clone, Debug)]
pub(crate) enum Undo {
    /// Nothing is cut in these directions any more.
    Heal(Vec<(usize, usize)>),
    /// A link that flaps changes its state once more.
    Flap {
        a: usize,
        b: usize,
        cut: bool,
        left: u32,
    },
    /// A spell of this kind at a node ends, unless a later one of its kind goes on.
    Spell(Fault, usize),
    CrashAgain(usize),
    Churn(u32),
    /// A node whose disk was damaged starts again.
    ReadAgain(usize),
}

/// How soon a fault is tried again while none has been possible yet.
const FIRST_AGAIN: Micros = 20 * MS;

impl World {
    /// One more fault, and plans the next.
    pub(crate) fn fault(&mut self) -> Step {
        if !self.faulty {
            return Ok(());
        }
        let fault = *self.rng.pick(&self.plan.faults);
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        if self.inject(fault, node) {
            self.counters.count_fault(fault);
        }
        // A phase must not end before any fault was possible.
        let none_yet = self.counters.faults.is_empty();
        let next = if none_yet { FIRST_AGAIN } else { self.rng.wait(self.plan.fault_every) };
        self.queue.push(self.now + next, Event::Fault);
        Ok(())
    }

    /// Does it, if that is possible now.
    fn inject(&mut self, fault: Fault, node: usize) -> bool {
        let nodes = self.nodes.len();
        let other = (node + 1 + self.rng.below(nodes as u64 - 1) as usize) % nodes;
        let long = self.rng.wait(2 * SECOND);
        let addr = self.hosts[self.hosts_of(node).start].addr;
        self.trace.node(self.now, addr, "Fault", fault.name().to_owned());
        match fault {
            Fault::Kill | Fault::PowerLoss => {
                if !self.may_crash(node) {
                    return false;
                }
                let power = fault == Fault::PowerLoss;
                self.crash(node, if power { Crash::Power } else { Crash::Process });
                self.plan_start(node, long);
            }
            Fault::Blackout => {
                if !(0..nodes).all(|node| self.may_crash(node)) {
                    return false;
                }
                for node in 0..nodes {
                    self.crash(node, Crash::Power);
                    let after = self.rng.between(0, SECOND);
                    self.plan_start(node, after);
                }
            }
            Fault::CrashLoop => {
                self.nodes[node].crash_loops = self.rng.between(2, 5) as u32;
                self.crash_again(node);
            }
            // It counts when it happens.
            Fault::DeathAtIo => {
                self.plan_death(node);
                return false;
            }
            Fault::Pause => {
                let until = self.now + self.rng.wait(SECOND);
                self.pause(node, until);
            }
            Fault::Nap => {
                let nap = self.rng.between(SECOND, 3 * SECOND);
                self.pause(node, self.now + nap);
                self.cut_until(&pairs(node, |other| other != node, nodes), nap + 2 * SECOND);
            }
            Fault::Isolate => self.cut_until(&pairs(node, |other| other != node, nodes), long),
            Fault::Split => {
                let side = self.rng.below((1 << nodes) - 2) + 1;
                let on_side = |node: usize| side >> node & 1 == 1;
                let cut: Vec<_> = (0..nodes)
                    .filter(|&a| on_side(a))
                    .flat_map(|a| pairs(a, |b| !on_side(b), nodes))
                    .collect();
                self.cut_until(&cut, long);
            }
            Fault::Cut => self.cut_until(&[(node, other), (other, node)], long),
            Fault::OneWay => {
                let all = self.rng.chance(0.5);
                let inward = self.rng.chance(0.5);
                let others = (0..nodes).filter(|&b| b != node && (all || b == other));
                let cut: Vec<_> =
                    others.map(|b| if inward { (b, node) } else { (node, b) }).collect();
                self.cut_until(&cut, long);
            }
            Fault::Flap => {
                // An odd number: the last change heals.
                let left = 2 * self.rng.between(2, 10) as u32 - 1;
                self.undo_flap(node, other, true, left);
            }
            Fault::Swizzle => {
                let mut order: Vec<usize> = (0..nodes).filter(|_| self.rng.chance(0.7)).collect();
                order.sort_by_key(|_| self.rng.next());
                for node in order {
                    let cut = pairs(node, |other| other != node, nodes);
                    let length = self.rng.wait(2 * SECOND);
                    self.cut_until(&cut, length);
                }
            }
            Fault::Reset => {
                let links = self.net.links_between(node, other);
                for link in links {
                    self.break_link(link);
                }
            }
            Fault::SlowNet => {
                self.net.set_slow(node, self.plan.net.delay.1 * 20);
                self.spell(fault, node, long);
            }
            Fault::Corrupt => {
                self.net.corrupting = true;
                self.spell(fault, node, long);
            }
            Fault::StuckDisk => {
                for host in self.hosts_of(node) {
                    self.hosts[host].stuck = true;
                }
                self.spell(fault, node, long);
            }
            Fault::SlowDisk => {
                let slowness = self.rng.between(10, 200);
                for host in self.hosts_of(node) {
                    self.hosts[host].disk_slowness = slowness;
                }
                self.spell(fault, node, long);
            }
            Fault::FullDisk => {
                self.set_full(node, true);
                self.spell(fault, node, long);
            }
            Fault::WriteError => {
                if !self.may_crash(node) {
                    return false;
                }
                let cores = self.hosts_of(node);
                let host = cores.start + self.rng.below(cores.len() as u64) as usize;
                self.hosts[host].write_fails = true;
            }
            Fault::ReadError => {
                self.set_unreadable(node, true);
                self.spell(fault, node, long);
            }
            Fault::SlowCore => {
                self.nodes[node].slowness = self.rng.between(5, 200);
                self.spell(fault, node, long);
            }
            Fault::ClockJump => {
                let jump = *self.rng.pick(&[-864_000_000i64, -3_600_000, -500, 500, 3_600_000]);
                self.nodes[node].clock_ms += jump;
            }
            Fault::Transfer => return self.transfer(),
            Fault::Churn => {
                let left = self.rng.between(5, 30) as u32;
                self.churn(left);
            }
            Fault::BitRot | Fault::BadSector | Fault::Misdirect | Fault::StaleBlock => {
                return self.damage(fault);
            }
            Fault::OldValue => return self.damage_old_values(),
            Fault::LostEntry => return self.lose_entries(),
            Fault::BadCheckpoint => {
                let host = self.rng.below(self.hosts.len() as u64) as usize;
                return self.damage_newest_checkpoint(host);
            }
            Fault::Stray => return self.put_stray(node),
            Fault::Wipe => return self.wipe(long),
            Fault::OldCopy => return self.old_copy(long),
        }
        true
    }

    /// A disk that deceived us tells that apart from a torn write only once a later write says
    /// that the earlier one is durable.
    pub(crate) fn may_crash(&self, node: usize) -> bool {
        let lying = |host: usize| {
            self.hosts[host].storage.as_ref().is_some_and(|storage| storage.is_lie_open())
        };
        !self.hosts_of(node).any(lying)
    }

    fn pause(&mut self, node: usize, until: Micros) {
        let paused_until = &mut self.nodes[node].paused_until;
        *paused_until = until.max(*paused_until);
    }

    /// Plans the end of something that has just begun at a node. Where such spells overlap, the
    /// last end counts.
    fn spell(&mut self, fault: Fault, node: usize, long: Micros) {
        let node = Self::spell_node(fault, node);
        let end = self.now + long;
        let planned = self.spells.entry((fault, node)).or_default();
        *planned = end.max(*planned);
        self.queue.push(end, Event::Undo(Undo::Spell(fault, node)));
    }

    /// Where a spell is kept: some are the whole cluster's.
    const fn spell_node(fault: Fault, node: usize) -> usize {
        if matches!(fault, Fault::Corrupt) { 0 } else { node }
    }

    fn end_spell(&mut self, fault: Fault, node: usize) {
        if self.spells.get(&(fault, node)).is_some_and(|&end| end > self.now) {
            return;
        }
        self.spells.remove(&(fault, node));
        match fault {
            Fault::SlowNet => self.net.set_slow(node, 0),
            Fault::Corrupt => self.net.corrupting = false,
            Fault::SlowDisk => {
                for host in self.hosts_of(node) {
                    self.hosts[host].disk_slowness = 1;
                }
            }
            Fault::StuckDisk => self.release_disk(node),
            Fault::FullDisk => self.set_full(node, false),
            Fault::ReadError => self.set_unreadable(node, false),
            Fault::SlowCore => self.nodes[node].slowness = 1,
            other => unreachable!("{} is no spell", other.name()),
        }
    }

    fn cut_until(&mut self, cut: &[(usize, usize)], long: u64) {
        for &(from, to) in cut {
            self.net.cut(from, to);
            if self.rng.chance(0.3) {
                for link in self.net.links_between(from, to) {
                    self.break_link(link);
                }
            }
        }
        self.queue.push(self.now + long, Event::Undo(Undo::Heal(cut.to_vec())));
    }

    /// Lets messages pass again in one direction.
    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        let (broken, late) = self.net.heal(from, to);
        for link in broken {
            self.break_link(link);
        }
        for frame in late {
            self.travel(frame);
        }
    }

    fn undo_flap(&mut self, a: usize, b: usize, cut: bool, left: u32) {
        if cut {
            self.net.cut(a, b);
            self.net.cut(b, a);
        } else {
            self.heal(a, b);
            self.heal(b, a);
        }
        if left > 0 {
            let after = self.rng.wait(200 * MS);
            let undo = Undo::Flap { a, b, cut: !cut, left: left - 1 };
            self.queue.push(self.now + after, Event::Undo(undo));
        }
    }

    fn crash_again(&mut self, node: usize) {
        if self.nodes[node].crash_loops == 0 || !self.faulty || !self.may_crash(node) {
            return;
        }
        self.nodes[node].crash_loops -= 1;
        let power = self.rng.chance(0.5);
        self.crash(node, if power { Crash::Power } else { Crash::Process });
        let restart = self.rng.between(MS, 300 * MS);
        self.plan_start(node, restart);
        let again = restart + self.rng.wait(150 * MS);
        self.queue.push(self.now + again, Event::Undo(Undo::CrashAgain(node)));
    }

    /// A disk that was stuck goes on.
    pub(crate) fn release_disk(&mut self, node: usize) {
        for host in self.hosts_of(node) {
            let state = &mut self.hosts[host];
            state.stuck = false;
            for arrival in std::mem::take(&mut state.held) {
                self.arrive(host, arrival);
            }
        }
    }

    pub(crate) fn set_full(&mut self, node: usize, full: bool) {
        for host in self.hosts_of(node) {
            // From nothing to a little more than what matters; the last segment may be cut off in
            // the middle.
            let left = self.rng.below(4 * self.plan.disk.segment_bytes);
            self.hosts[host].disk.set_free(full.then_some(left));
        }
    }

    pub(crate) fn set_unreadable(&mut self, node: usize, unreadable: bool) {
        for host in self.hosts_of(node) {
            self.hosts[host].disk.set_unreadable(unreadable);
        }
    }

    /// Asks a leader to hand over to some other replica.
    fn transfer(&mut self) -> bool {
        let group = GroupId::new(self.rng.below(u64::from(self.plan.groups)) as u32);
        let leads = |host: &crate::host::Host| {
            let status = host.core.as_ref().and_then(|core| core.group_status(group));
            status.is_some_and(|status| status.role == Role::Leader)
        };
        let Some(host) = self.hosts.iter().position(leads) else { return false };
        let replicas: Vec<_> = self.map.replicas(group).collect();
        let to = *self.rng.pick(&replicas);
        let Some(core) = self.hosts[host].core.as_mut() else { return false };
        let began = core.transfer_leadership(group, to);
        self.wake(host);
        began
    }

    /// Asks some leader to hand over, and again soon.
    fn churn(&mut self, left: u32) {
        if left == 0 || !self.faulty {
            return;
        }
        self.transfer();
        let soon = self.rng.wait(100 * MS);
        self.queue.push(self.now + soon, Event::Undo(Undo::Churn(left - 1)));
    }

    /// Damages something that the victim holds, or arms a lie, which counts once it is told.
    fn damage(&mut self, fault: Fault) -> bool {
        let node = self.plan.victim as usize;
        // A core without groups writes nothing that a lie could be told about.
        let writes = |&host: &usize| self.map.groups_on(self.hosts[host].addr).next().is_some();
        let cores: Vec<usize> = self.hosts_of(node).filter(writes).collect();
        let Some(&host) = cores.get(self.rng.below(cores.len().max(1) as u64) as usize) else {
            return false;
        };
        let state = &mut self.hosts[host];
        let Some(storage) = &mut state.storage else { return false };
        match fault {
            Fault::Misdirect => storage.lie_next(Lie::Misdirect),
            Fault::StaleBlock => storage.lie_next(Lie::Stale),
            _ => {
                let (disk, rng) = (&state.disk, &mut self.rng);
                let place = if fault == Fault::BitRot { disk.rot(rng) } else { disk.spoil(rng) };
                let Some(place) = place else { return false };
                storage.lied();
                self.damaged(host, place);
                return true;
            }
        }
        false
    }

    /// The disk of a core has deceived a write.
    pub(crate) fn lied(&mut self, host: usize, lie: Lie) {
        let fault = match lie {
            Lie::Misdirect => Fault::Misdirect,
            Lie::Stale => Fault::StaleBlock,
        };
        self.counters.count_fault(fault);
        self.damaged(host, format!("a write: {}", fault.name()));
    }

    /// The log of a core is damaged from now on.
    fn damaged(&mut self, host: usize, what: String) {
        let node = self.node_of(host);
        let state = &mut self.hosts[host];
        state.only_checkpoint = !state.damaged && what.ends_with(".ckp");
        state.damaged = true;
        self.nodes[node].damaged = true;
        self.trace.node(self.now, self.hosts[host].addr, "Damage", what);
        // Damage shows when the log is read.
        let soon = self.now + self.rng.between(500 * MS, 3 * SECOND);
        self.queue.push(soon, Event::Undo(Undo::ReadAgain(node)));
    }

    /// Replaces the victim's disks by empty ones, if all others can find that out.
    fn wipe(&mut self, down: Micros) -> bool {
        let node = self.plan.victim as usize;
        let Some(lineage) = &self.nodes[node].lineage else { return false };
        let disk = lineage.disk();
        if !self.is_known_to_all(node, |start| start.disk == disk) {
            return false;
        }
        let cores = self.hosts_of(node).map(|_| (SimDisk::new(), Vec::new())).collect();
        self.replace_disks(node, Copy { lineage: None, cores }, down)
    }

    /// Makes a copy of the victim's disks; with one at hand, puts it in their place, if all others
    /// can find that out.
    fn old_copy(&mut self, down: Micros) -> bool {
        let node = self.plan.victim as usize;
        if let Some(copy) = &self.nodes[node].copy {
            let count = copy.lineage.as_ref().map_or(0, Lineage::count);
            let copy = copy.clone();
            return self.is_known_to_all(node, |start| start.count > count)
                && self.replace_disks(node, copy, down);
        }
        if self.nodes[node].damaged || !self.may_crash(node) {
            return false;
        }
        self.crash(node, Crash::Process);
        let core = |host: usize| {
            let host = &self.hosts[host];
            (host.disk.copy(), host.acquaintances.durable.clone())
        };
        let cores = self.hosts_of(node).map(core).collect();
        self.nodes[node].copy = Some(Copy { lineage: self.nodes[node].lineage.clone(), cores });
        self.plan_start(node, down);
        true
    }

    /// Whether every core of every other node has durably met a start like this of the node.
    fn is_known_to_all(&self, node: usize, like: impl Fn(Start) -> bool) -> bool {
        let own = self.hosts_of(node);
        let id = self.hosts[own.start].addr.node;
        let others = (0..self.hosts.len()).filter(|host| !own.contains(host));
        let mut known = others.map(|host| self.hosts[host].acquaintances.durably_known(id));
        known.all(|start| start.is_some_and(&like))
    }

    fn replace_disks(&mut self, node: usize, disks: Copy, down: Micros) -> bool {
        if self.nodes[node].damaged || !self.may_crash(node) {
            return false;
        }
        self.crash(node, Crash::Power);
        for (host, (disk, durable)) in self.hosts_of(node).zip(disks.cores) {
            let state = &mut self.hosts[host];
            (state.disk, state.acquaintances.durable) = (disk, durable);
            let addr = state.addr;
            let groups: Vec<GroupId> = self.map.groups_on(addr).collect();
            self.invariants.forgot(addr, &groups);
            self.trace.node(self.now, addr, "DiskReplaced", String::new());
        }
        let state = &mut self.nodes[node];
        state.lineage = disks.lineage;
        (state.damaged, state.amnesiac) = (true, true);
        self.plan_start(node, down);
        true
    }

    /// The end of a fault.
    pub(crate) fn undo(&mut self, undo: Undo) -> Step {
        match undo {
            Undo::Heal(cuts) => cuts.into_iter().for_each(|(from, to)| self.heal(from, to)),
            Undo::Flap { a, b, cut, left } => {
                if self.faulty || !cut {
                    self.undo_flap(a, b, cut, left);
                }
            }
            Undo::Spell(fault, node) => self.end_spell(fault, node),
            Undo::CrashAgain(node) => self.crash_again(node),
            Undo::Churn(left) => self.churn(left),
            Undo::ReadAgain(node) if self.faulty && !self.may_crash(node) => {
                let again = Event::Undo(Undo::ReadAgain(node));
                self.queue.push(self.now + 100 * MS, again);
            }
            Undo::ReadAgain(node) if self.faulty => {
                self.crash(node, Crash::Process);
                self.plan_restart(node);
            }
            Undo::ReadAgain(_) => {}
        }
        Ok(())
    }
}

/// Both directions between a node and some others.
fn pairs(node: usize, others: impl Fn(usize) -> bool, nodes: usize) -> Vec<(usize, usize)> {
    let others = (0..nodes).filter(|&other| other != node && others(other));
    others.flat_map(|other| [(node, other), (other, node)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Profile};
    use crate::trace::Trace;

    /// The end of a short spell within a long one ends nothing.
    #[test]
    fn overlapping_spells_end_with_the_last_of_them() {
        let plan = Plan::draw(1, Profile::Calm, 1);
        let trace = Trace::new(plan.nodes, None);
        let mut world = World::new(plan, trace).expect("an empty cluster starts");
        let is_slow = |world: &World| world.nodes[1].slowness != 1;
        world.nodes[1].slowness = 2;
        world.spell(Fault::SlowCore, 1, 50 * MS);
        world.spell(Fault::SlowCore, 1, 10 * MS);
        for (until, slow) in [(20, true), (49, true), (51, false)] {
            world.run_until(until * MS).expect("nothing is wrong");
            assert_eq!(is_slow(&world), slow, "at {until} ms");
        }
    }
}
