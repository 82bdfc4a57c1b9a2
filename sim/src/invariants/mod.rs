//! What must hold after every event of a run, over all replicas and disks at once.
//!
//! One file per rule, each with the place in the Raft paper (Ongaro and Ousterhout, extended
//! version) or in Ongaro's thesis that states it. The rules compare plain values; translating a
//! [`Core`] into them is done here, and only for replicas that have changed.
//!
//! Contract of the caller: [`Invariants::durable`] when a batch completes, before its core is
//! told; [`Invariants::forgot`] before the core that lost something starts;
//! [`Invariants::observe`] and then [`Invariants::sent`] after every drain.
//!
//! Limits: what happens and is undone between two drains is not seen. A replica's entries are
//! compared when their position is new; [`Invariants::observe_deep`] compares all in memory.
//!
//! Not here: what clients see (linearizability), progress.

mod bounds;
mod digests;
mod disk;
mod election_safety;
mod group;
mod hard_state;
mod leader_append_only;
mod leader_completeness;
mod log_matching;
mod monotone;
mod ownership;
mod promises;
mod quorum;
mod recovered;
mod seen;
mod state_machine_safety;
mod terms;
mod unknown_values;

use coracle_engine::{ClusterMap, Core, CoreAddr, PeerMessage};
use coracle_raft::{GroupId, Raft, Record};

use self::bounds::{Limits, LogBytes};
pub(crate) use self::digests::RULE as DIGESTS;
use self::group::Group;
pub use self::seen::Violation;
use self::seen::{EntryId, Seen, new_entries};
use self::terms::Terms;

/// Everything that is checked after every event of a run.
pub struct Invariants {
    map: ClusterMap,
    /// By number.
    groups: Vec<Group>,
    /// All cores of one number hold the same groups.
    same_groups: bool,
    /// Spare list.
    entries: Vec<EntryId>,
}

impl Invariants {
    /// Nothing has happened yet.
    pub fn new(map: &ClusterMap) -> Self {
        let group = |id| Group::new(id, map.replicas(id));
        let groups: Vec<_> = (0..map.group_count()).map(GroupId::new).map(group).collect();
        let replicas = map.replicas(GroupId::new(0)).count();
        let same_groups = replicas == map.nodes().len();
        Self { groups, same_groups, map: map.clone(), entries: Vec::new() }
    }

    /// Core `at` starts (again): `core` was just made from what is on its disk.
    pub fn started(&mut self, at: CoreAddr, core: &Core) -> Result<(), Violation> {
        self.stopped(at);
        ownership::check(&self.map, &core.config().map, at)?;
        for id in self.map.groups_on(at).filter(|&id| core.raft(id).is_none()) {
            let group = &self.groups[id.get() as usize];
            if let Some(place) = group.place(at.node) {
                group.left_out(place, at)?;
            }
        }
        for (id, raft) in core.rafts() {
            ownership::check_replica(&self.map, at, id)?;
            raft.check_invariants();
            let Some((group, place)) = replica(&mut self.groups, id, at) else { continue };
            let log = Terms::new(raft.base(), raft.term_runs(), raft.last_index());
            new_entries(&Terms::default(), raft, &mut self.entries);
            let now = Seen::of(at, id, raft);
            group.start(place, &now, log, &self.entries, raft.memberships())?;
        }
        Ok(())
    }

    /// Core `at` stopped or crashed.
    pub fn stopped(&mut self, at: CoreAddr) {
        for id in self.map.groups_on(at) {
            if let Some((group, place)) = replica(&mut self.groups, id, at) {
                group.stop(place);
            }
        }
    }

    /// Core `at` has handled inputs and been drained; only what changed since is looked at.
    pub fn observe(&mut self, at: CoreAddr, core: &Core) -> Result<(), Violation> {
        let limits = Limits::new(core.config(), self.same_groups);
        limits.check(at, &core.levels())?;
        unknown_values::check(at, core.overdue_value())?;
        for (id, raft) in core.rafts() {
            let Some((group, place)) = replica(&mut self.groups, id, at) else { continue };
            let now = Seen::of(at, id, raft);
            match group.seen(place) {
                Some(seen) if *seen == now => continue,
                Some(_) => {}
                None => return self.started(at, core),
            }
            limits.check_log((at, id), LogBytes::of(raft), || raft.unsettled_bytes())?;
            new_entries(group.log(place), raft, &mut self.entries);
            group.look(place, &now, &self.entries, raft.memberships())?;
        }
        Ok(())
    }

    /// Core `at` has handed out these messages, and was observed after that.
    pub fn sent(
        &mut self,
        at: CoreAddr,
        sends: &[(CoreAddr, PeerMessage)],
    ) -> Result<(), Violation> {
        for (_, message) in sends {
            if let PeerMessage::Raft { group, message } = message
                && let Some(group) = self.groups.get(group.get() as usize)
            {
                group.sent(at, message)?;
            }
        }
        Ok(())
    }

    /// These records are now durable on the disk of `at` (the batch completed), in log order.
    pub fn durable(&mut self, at: CoreAddr, records: &[Record]) {
        for record in records {
            if let Some((group, place)) = replica(&mut self.groups, record.group(), at) {
                group.disk(place).write(record);
            }
        }
    }

    /// A disk lost or damaged data of these groups on purpose (wiped, restored from an old copy,
    /// rotten, reported as damaged by recovery).
    pub fn forgot(&mut self, at: CoreAddr, groups: &[GroupId]) {
        for &id in groups {
            if let Some((group, place)) = replica(&mut self.groups, id, at) {
                group.disk(place).forget();
            }
        }
    }

    /// Replicas of a group were made to differ on purpose.
    pub fn will_differ(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(id.get() as usize) {
            group.will_differ();
        }
    }

    /// Costly checks, for now and then and for the end of a run: digests, every entry in memory,
    /// every relation within a replica.
    ///
    /// # Panics
    /// If a relation within one replica does not hold: [`Raft::check_invariants`].
    pub fn observe_deep(
        &mut self,
        cores: &mut dyn Iterator<Item = (CoreAddr, &Core)>,
    ) -> Result<(), Violation> {
        for (at, core) in cores {
            self.observe(at, core)?;
            for (id, raft) in core.rafts() {
                Raft::check_invariants(raft);
                let Some((group, _)) = replica(&mut self.groups, id, at) else { continue };
                new_entries(&Terms::default(), raft, &mut self.entries);
                group.look_again(&Seen::of(at, id, raft), &self.entries)?;
                if let Some(content) = core.content(id) {
                    group.content(at, content)?;
                }
            }
        }
        Ok(())
    }
}

/// The replica of a group on the node of a core.
fn replica(groups: &mut [Group], id: GroupId, at: CoreAddr) -> Option<(&mut Group, usize)> {
    let group = groups.get_mut(id.get() as usize)?;
    let place = group.place(at.node)?;
    Some((group, place))
}
