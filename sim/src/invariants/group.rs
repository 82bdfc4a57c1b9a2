//! One group: its replicas as they were seen last, and the order in which the rules look at what
//! has changed.

use std::collections::VecDeque;

use coracle_engine::CoreAddr;
use coracle_engine::testing::Content;
use coracle_raft::{GroupId, LogIndex, LogPosition, Membership, Message, NodeId};

use super::digests::Digests;
use super::disk::Disk;
use super::election_safety::ElectionSafety;
use super::leader_completeness::LeaderCompleteness;
use super::log_matching::LogMatching;
use super::seen::{EntryId, Seen, Violation};
use super::state_machine_safety::StateMachineSafety;
use super::terms::Terms;
use super::{hard_state, leader_append_only, monotone, promises, quorum, recovered};

/// Entries remembered below the base of every replica: a base that is not durable may go back.
const KEPT_ENTRIES: u64 = 1024;

/// Memberships by the entry that made them, as [`coracle_raft::Raft::memberships`] has them.
pub(crate) type Memberships = VecDeque<(LogIndex, Membership)>;

struct Replica {
    node: NodeId,
    /// While it runs: how it was found last.
    seen: Option<Seen>,
    log: Terms,
    disk: Disk,
}

/// One group.
pub(crate) struct Group {
    id: GroupId,
    replicas: Vec<Replica>,
    elections: ElectionSafety,
    entries: LogMatching,
    committed: StateMachineSafety,
    completeness: LeaderCompleteness,
    digests: Digests,
    /// What its replicas hold is not compared any more.
    differs: bool,
}

impl Group {
    pub(crate) fn new(id: GroupId, nodes: impl Iterator<Item = NodeId>) -> Self {
        let replica =
            |node| Replica { node, seen: None, log: Terms::default(), disk: Disk::default() };
        Self {
            id,
            replicas: nodes.map(replica).collect(),
            elections: ElectionSafety::default(),
            entries: LogMatching::default(),
            committed: StateMachineSafety::default(),
            completeness: LeaderCompleteness::default(),
            digests: Digests::default(),
            differs: false,
        }
    }

    /// The replica on a node.
    pub(crate) fn place(&self, node: NodeId) -> Option<usize> {
        self.replicas.iter().position(|replica| replica.node == node)
    }

    /// How a running replica was found last.
    pub(crate) fn seen(&self, place: usize) -> Option<&Seen> {
        self.replicas[place].seen.as_ref()
    }

    /// The positions in a replica's log.
    pub(crate) fn log(&self, place: usize) -> &Terms {
        &self.replicas[place].log
    }

    pub(crate) fn disk(&mut self, place: usize) -> &mut Disk {
        &mut self.replicas[place].disk
    }

    pub(crate) fn stop(&mut self, place: usize) {
        self.replicas[place].seen = None;
    }

    /// A core starts without this replica.
    pub(crate) fn left_out(&self, place: usize, at: CoreAddr) -> Result<(), Violation> {
        recovered::check_left_out(&self.replicas[place].disk, at, self.id)
    }

    /// A replica starts with `log`; `entries` are the last ones of it.
    pub(crate) fn start(
        &mut self,
        place: usize,
        now: &Seen,
        log: Terms,
        entries: &[EntryId],
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let Replica { disk, .. } = &mut self.replicas[place];
        recovered::check(disk, now, &log)?;
        hard_state::check_recovered(disk.hard_state(), now)?;
        disk.recovered(now, &log);
        self.replicas[place].log = log;
        self.look(place, now, entries, memberships)
    }

    /// A replica has changed; the last of its entries, `entries`, are new in their place.
    pub(crate) fn look(
        &mut self,
        place: usize,
        now: &Seen,
        entries: &[EntryId],
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        monotone::check(now)?;
        let before = self.replicas[place].seen.replace(*now);
        if let Some(before) = &before {
            monotone::check_since(before, now)?;
            hard_state::check_since(before, now)?;
            leader_append_only::check(before, now, first_new(now, entries))?;
        }
        self.elections.check(now)?;
        self.follow(place, now, entries)?;
        self.commit(place, now, before.as_ref())?;
        self.completeness.check(now, &self.replicas[place].log)?;
        if let Some(before) = &before {
            let held = |node, position| {
                let replica = self.replicas.iter().find(|replica| replica.node == node);
                replica.is_some_and(|replica| replica.disk.held(position))
            };
            quorum::check(before, now, &self.replicas[place].log, memberships, held)?;
        }
        if before.is_none_or(|before| before.base != now.base) {
            self.forget();
        }
        Ok(())
    }

    /// Entries that a replica has in memory, the last of its log, whether new or not.
    pub(crate) fn look_again(&mut self, now: &Seen, entries: &[EntryId]) -> Result<(), Violation> {
        let first = first_new(now, entries);
        let mut before = None;
        for (&id, index) in entries.iter().zip(first.get()..) {
            let index = LogIndex::new(index);
            self.entries.check(now, index, id, before)?;
            if index <= now.commit {
                self.committed.check(now, index, id)?;
            }
            before = Some(id.term);
        }
        Ok(())
    }

    /// Replicas were made to differ on purpose.
    pub(crate) const fn will_differ(&mut self) {
        self.differs = true;
    }

    /// What a replica's state machine holds.
    pub(crate) fn content(
        &mut self,
        at: CoreAddr,
        content: (LogIndex, Content),
    ) -> Result<(), Violation> {
        if self.differs { Ok(()) } else { self.digests.check(at, self.id, content) }
    }

    /// A replica sends a message.
    pub(crate) fn sent(&self, at: CoreAddr, message: &Message) -> Result<(), Violation> {
        let Some(place) = self.place(at.node) else { return Ok(()) };
        let receiver = self.replicas.iter().find(|replica| {
            let leads = |seen: &Seen| seen.leads() && seen.term == message.term;
            replica.node == message.to && replica.seen.as_ref().is_some_and(leads)
        });
        let receiver = receiver.map(|replica| &replica.log);
        promises::check((at, self.id), message, &self.replicas[place].disk, receiver)
    }

    /// Takes over the changes of a log and compares what is new.
    fn follow(&mut self, place: usize, now: &Seen, entries: &[EntryId]) -> Result<(), Violation> {
        let Replica { log, disk, .. } = &mut self.replicas[place];
        let first = first_new(now, entries);
        log.cut(now.base);
        if first <= log.last() {
            disk.replacing(first);
        }
        log.truncate(first.prev());
        for (&id, index) in entries.iter().zip(first.get()..) {
            let index = LogIndex::new(index);
            self.entries.check(now, index, id, log.at(index.prev()))?;
            log.append(LogPosition { term: id.term, index });
        }
        if now.durable == now.last.index {
            disk.settled();
        }
        Ok(())
    }

    /// Compares what is newly known to be committed, and looks whether leaders have it.
    fn commit(&mut self, place: usize, now: &Seen, before: Option<&Seen>) -> Result<(), Violation> {
        let from = before.map_or(LogIndex::ZERO, |before| before.commit);
        if now.commit <= from {
            return Ok(());
        }
        let log = &self.replicas[place].log;
        for index in from.max(now.base.index.prev()).next().get()..=now.commit.get() {
            let index = LogIndex::new(index);
            if let Some(term) = log.at(index).filter(|_| index > LogIndex::ZERO) {
                self.committed.check(now, index, self.entries.id_of(index, term))?;
            }
        }
        let Some(term) = log.at(now.commit) else { return Ok(()) };
        self.completeness.committed(now.term, LogPosition { term, index: now.commit });
        for replica in &self.replicas {
            match &replica.seen {
                Some(leader) if leader.term >= now.term && replica.node != now.at.node => {
                    self.completeness.check(leader, &replica.log)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Drops what lies far below the base of every replica.
    fn forget(&mut self) {
        let lowest = self.replicas.iter().map(|replica| replica.log.base().index).min();
        let lowest = lowest.unwrap_or_default().get().saturating_sub(KEPT_ENTRIES);
        self.entries.forget(LogIndex::new(lowest));
        self.committed.forget(LogIndex::new(lowest));
    }
}

/// Index of the first of a log's last entries.
fn first_new(now: &Seen, entries: &[EntryId]) -> LogIndex {
    LogIndex::new(now.last.index.next().get() - entries.len() as u64)
}

#[cfg(test)]
mod tests {
    use coracle_raft::{Entry, EntryKind, HardState, Payload, Record, Term};

    use super::super::seen::tests::{assert_breaks, entry, follower, leader};
    use super::super::terms::tests::at;
    use super::super::{election_safety, leader_completeness, log_matching, state_machine_safety};
    use super::*;

    /// Three replicas on nodes 1 to 3, all with the same membership.
    struct Three {
        group: Group,
        memberships: Memberships,
    }

    impl Three {
        fn new() -> Self {
            let nodes = [1, 2, 3].map(NodeId::new);
            let memberships = [(LogIndex::ZERO, Membership::of_voters(nodes))].into();
            Self { group: Group::new(GroupId::new(0), nodes.into_iter()), memberships }
        }

        fn look(&mut self, now: Seen, entries: &[EntryId]) -> Result<(), Violation> {
            let place = self.group.place(now.at.node).unwrap();
            self.group.look(place, &now, entries, &self.memberships)
        }

        fn durable(&mut self, node: u32, (term, index): (u64, u64)) {
            let position = at(term, index);
            let (kind, payload) = (EntryKind::Command, Payload::empty());
            let entry = Entry { term: position.term, index: position.index, kind, payload };
            let place = self.group.place(NodeId::new(node)).unwrap();
            let group = GroupId::new(0);
            let hard_state = HardState { term: Term::new(term), vote: Some(NodeId::new(1)) };
            let disk = self.group.disk(place);
            disk.write(&Record::HardState { group, hard_state });
            disk.write(&Record::Entry { group, entry });
        }
    }

    fn with(seen: Seen, last: (u64, u64), commit: u64) -> Seen {
        Seen { last: at(last.0, last.1), commit: LogIndex::new(commit), ..seen }
    }

    /// A leader appends, a majority writes, it commits, a follower learns; a new leader follows.
    #[test]
    fn a_legal_run_breaks_nothing() {
        let mut three = Three::new();
        let entries = [entry(1, 1), entry(1, 2)];
        three.look(leader(1, 1), &[]).unwrap();
        three.look(with(leader(1, 1), (1, 2), 0), &entries).unwrap();
        three.look(with(follower(2, 1), (1, 2), 0), &entries).unwrap();
        for node in [1, 2] {
            three.durable(node, (1, 1));
            three.durable(node, (1, 2));
        }
        three.look(with(leader(1, 1), (1, 2), 2), &[]).unwrap();
        three.look(with(follower(2, 1), (1, 2), 2), &[]).unwrap();
        let applied = Seen { applied: LogIndex::new(2), ..with(follower(2, 1), (1, 2), 2) };
        three.look(applied, &[]).unwrap();
        three.group.stop(0);
        let next = Seen { role: coracle_raft::Role::Leader, term: Term::new(2), ..applied };
        three.look(Seen { vote: Some(NodeId::new(2)), leader: None, ..next }, &[]).unwrap();
        let log = Terms::new(at(0, 0), &[at(1, 1)], LogIndex::new(2));
        let again = with(follower(1, 2), (1, 2), 0);
        three.group.start(0, &again, log, &entries, &three.memberships.clone()).unwrap();
    }

    /// The rules get what they need: each is broken through the whole of the looking.
    #[test]
    fn every_rule_is_asked() {
        let mut three = Three::new();
        three.look(with(leader(1, 2), (2, 1), 0), &[entry(2, 1)]).unwrap();
        assert_breaks(&election_safety::RULE, three.look(leader(2, 2), &[]));

        let mut three = Three::new();
        three.look(with(leader(1, 2), (2, 2), 0), &[entry(2, 1), entry(2, 2)]).unwrap();
        let other = with(follower(2, 2), (2, 1), 0);
        assert_breaks(&log_matching::RULE, three.look(other, &[entry(2, 9)]));
        let shorter = with(leader(1, 2), (2, 1), 0);
        assert_breaks(&leader_append_only::RULE, three.look(shorter, &[]));

        let mut three = Three::new();
        three.look(leader(1, 2), &[]).unwrap();
        let commits = with(leader(1, 2), (2, 1), 1);
        assert_breaks(&quorum::RULE, three.look(commits, &[entry(2, 1)]));

        let mut three = Three::new();
        three.look(with(follower(1, 2), (2, 1), 1), &[entry(2, 1)]).unwrap();
        let other = with(follower(2, 2), (1, 1), 1);
        assert_breaks(&state_machine_safety::RULE, three.look(other, &[entry(1, 1)]));
        assert_breaks(&leader_completeness::RULE, three.look(leader(3, 3), &[]));
        let back = with(follower(1, 2), (2, 1), 0);
        assert_breaks(&monotone::RULE, three.look(back, &[]));

        let mut three = Three::new();
        three.look(follower(1, 2), &[]).unwrap();
        assert_breaks(&hard_state::RULE, three.look(follower(1, 1), &[]));
    }

    /// A leader of a newer term is there already when an older commit becomes known.
    #[test]
    fn leaders_are_asked_on_every_commit() {
        let mut three = Three::new();
        three.look(with(leader(3, 3), (3, 1), 0), &[entry(3, 1)]).unwrap();
        let commits = with(follower(1, 2), (2, 1), 1);
        assert_breaks(&leader_completeness::RULE, three.look(commits, &[entry(2, 1)]));
    }

    /// What was durable must be there after a restart; a vote too.
    #[test]
    fn restarts_are_compared_with_the_disk() {
        let start = |term: u64, entries: u64| {
            let mut three = Three::new();
            three.durable(2, (1, 1));
            three.durable(2, (1, 2));
            let runs = if entries == 0 { vec![] } else { vec![at(1, 1)] };
            let log = Terms::new(at(0, 0), &runs, LogIndex::new(entries));
            let now = with(follower(2, term), (1, entries), 0);
            three.group.start(1, &now, log, &[], &three.memberships)
        };
        assert_eq!(start(2, 2), Ok(()));
        assert_breaks(&recovered::RULE, start(2, 1));
        assert_breaks(&hard_state::RULE, start(1, 2));
    }

    #[test]
    fn memory_follows_the_lowest_base() {
        let mut three = Three::new();
        let entries: Vec<_> = (0..5000).map(|i| entry(1, i)).collect();
        for node in [1, 2, 3] {
            let all = with(follower(node, 1), (1, 5000), 5000);
            let all = Seen { applied: LogIndex::new(5000), ..all };
            three.look(all, &entries).unwrap();
            three.look(Seen { base: at(1, 4000), ..all }, &[]).unwrap();
        }
        let forgotten = LogIndex::new(4000 - KEPT_ENTRIES);
        assert_eq!(three.group.entries.id_of(forgotten, Term::new(1)).content, None);
        assert_eq!(three.group.entries.id_of(forgotten.next(), Term::new(1)), entries[2976]);
    }
}
