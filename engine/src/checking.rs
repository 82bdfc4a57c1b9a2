//! The check that replicas hold the same, on its way through a group: the leader puts an entry
//! into the log from time to time; whoever applies it tells all other replicas the digests that
//! its shards have right then; each compares (`divergence`).
//!
//! A replica that has diverged serves nothing of the group: no reads, no answers that depend on
//! what it holds, no snapshots. If it leads, it hands the leadership to a replica that is not known
//! to have diverged.

use coracle_raft::{Bug, GroupId, LogIndex, planted};

use crate::command::encoding::{Header, Op};
use crate::core::Core;
use crate::divergence::{Divergence, Said, Standing};
use crate::group::{Group, Turn};
use crate::stall::Stalled;
use crate::{CoreAddr, PeerMessage, ShardId, SlotId, WallMillis};

/// A new leader checks after this part of the interval.
const FIRST_PART: u64 = 4;

/// What a replica last said of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupDigest {
    /// Which group.
    pub group: GroupId,
    /// Right after which entry.
    pub index: LogIndex,
    /// Sum of the digests of all shards.
    pub digest: u64,
    /// What this replica thinks of itself now.
    pub standing: Standing,
}

impl Group {
    /// Whether what this replica holds may be shown to a client.
    pub(crate) fn may_serve(&self) -> bool {
        match self.checks.standing() {
            Standing::Agreed => true,
            Standing::Undecided => self.leads(),
            Standing::Diverged => planted(Bug::DivergedReplicaServes),
        }
    }

    /// As leader: proposes a check if one is due.
    pub(crate) fn tick_checks(&mut self, tick: u64, interval: u64) {
        if !self.leads() {
            self.checks.due = None;
            return;
        }
        let spread = u64::from(self.id.get()) % (interval / FIRST_PART + 1);
        let first = tick + interval / FIRST_PART + spread;
        if tick < *self.checks.due.get_or_insert(first) {
            return;
        }
        let slot = SlotId::new(0).expect("slot 0 exists");
        let check = Header::new(Op::Check, slot, WallMillis(0)).encode(&[]);
        // Refused while too much is uncommitted: then at the next tick.
        if self.raft.propose(check.payload).is_ok() {
            self.checks.due = Some(tick + interval);
        }
    }

    /// The entry at `index` is a check, and everything before it is applied or stands in line.
    pub(crate) fn check_applied(&mut self, index: LogIndex, turn: &mut Turn<'_>) {
        let (mut shards, mut waiting) = (Vec::new(), 0);
        for at in 0..self.store.shards().len() {
            let shard = &self.store.shards()[at];
            let there = shard.base.index <= index;
            if self.stalls.holds(at) {
                waiting += 1;
                shards.push(None);
                self.stalls.push(at, Stalled::Check { index });
            } else {
                shards.push(there.then(|| shard.digest()));
            }
        }
        let ahead = self.store.shards().iter().any(|shard| shard.base.index > index);
        let clock = (!ahead).then_some(self.store.clock());
        let said = Said { index, clock, shards };
        if let Some(said) = self.checks.begin(said, waiting) {
            self.say(said, turn);
        }
    }

    /// A shard that waited has come to the check at `index`.
    pub(crate) fn check_reached(&mut self, index: LogIndex, at: usize, turn: &mut Turn<'_>) {
        let digest = self.store.shards()[at].digest();
        if let Some(said) = self.checks.put(index, at, Some(digest)) {
            self.say(said, turn);
        }
    }

    /// Tells the other replicas what this one holds.
    fn say(&mut self, said: Said, turn: &mut Turn<'_>) {
        let (payload, index) = (said.encode(self.id), said.index);
        let me = self.raft.node();
        for node in turn.map.replicas(self.id).filter(|&node| node != me) {
            let message = PeerMessage::Digests(payload.clone());
            turn.effects.sends.push((CoreAddr { node, core: self.core }, message));
        }
        turn.tally.checks += 1;
        if self.checks.take(me, said) {
            self.compare(index, turn.map, &mut turn.effects.divergences);
        }
    }

    fn compare(&mut self, index: LogIndex, map: &crate::ClusterMap, reports: &mut Vec<Divergence>) {
        let (ids, replicas) = ((self.id, self.raft.node()), map.replicas(self.id).count());
        if let Some(mut report) = self.checks.compare(ids, replicas, index) {
            let ids = self.store.shards();
            report.shards.iter_mut().for_each(|at| *at = ids[usize::from(at.0)].id);
            reports.push(report);
        }
    }
}

impl Core {
    /// The newest digests that the replicas here have told, those of each group oldest first. They
    /// can be compared with those of other replicas at the same index.
    pub fn digests(&self) -> Vec<GroupDigest> {
        let mut digests = Vec::new();
        for group in &self.groups {
            let standing = group.checks.standing();
            digests.extend(group.checks.said_by(self.config.addr.node).map(|said| GroupDigest {
                group: group.id,
                index: said.index,
                digest: said.digest(),
                standing,
            }));
        }
        digests
    }

    /// Lets every group led here check at the next tick.
    pub fn check_soon(&mut self) {
        for group in self.groups.iter_mut().filter(|group| group.leads()) {
            group.checks.due = Some(self.ticks);
        }
    }

    /// Looks after the checks of one group, once per tick.
    pub(crate) fn tick_checks(&mut self, place: usize) {
        let group = &mut self.groups[place];
        let replicas = self.config.map.replicas(group.id).count();
        let interval = u64::from(self.config.check_interval_ticks);
        let asked = group.checks.due.is_some_and(|due| due <= self.ticks);
        if replicas > 0 && (interval > 0 || asked) {
            // Asked for by hand where it is switched off: once.
            group.tick_checks(self.ticks, if interval > 0 { interval } else { u64::MAX >> 1 });
        }
        if group.leads() && group.checks.is_diverged() {
            self.shed_leadership(place);
        }
    }

    /// Another replica tells what it holds.
    pub(crate) fn told(&mut self, from: CoreAddr, bytes: &[u8]) {
        let map = &self.config.map;
        let said = Said::parse(bytes).and_then(|(id, said)| {
            let place = self.place(id)?;
            let fits = said.shards.len() == self.groups[place].store.shards().len()
                && map.core_of(id) == from.core
                && map.replicas(id).any(|node| node == from.node);
            fits.then_some((place, said))
        });
        let Some((place, said)) = said.filter(|_| from.node != self.config.addr.node) else {
            self.counters.ignored_messages += 1;
            return;
        };
        let (index, group) = (said.index, &mut self.groups[place]);
        if group.checks.take(from.node, said) {
            group.compare(index, &self.config.map, &mut self.divergences);
        }
    }
}

/// Shards are numbered in a group by `u16` places.
const _: () = assert!(size_of::<ShardId>() == size_of::<u16>());
