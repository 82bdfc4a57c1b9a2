//! Entries that this replica's disk does not give any more are fetched from other replicas.
//!
//! An entry is known by its index and its term: whoever has one with both has the same (Raft paper
//! §5.3, log matching). So other replicas are asked for what is at an index in a term, and of what
//! they answer counts what this replica's log says to be there; the terms of all its entries are in
//! memory. Consensus takes it as if it had come from the disk. The entry itself is not written once
//! more, but its long values are, since nobody could read them where it stands.
//!
//! Replicas are asked one at a time, in turn. When none of them could help, consensus is told, and
//! asks again after a while. Until then leadership goes to another replica if this one has to apply
//! the entries, and a snapshot takes the place of what the others have forgotten.
//!
//! A replica that cannot read what it is asked for says so, and asks nobody on its part.

use std::collections::{BTreeMap, btree_map};

use coracle_raft::{
    Bug, Entry, EntryKind, GroupId, LogIndex, LogPosition, NodeId, Payload, Raft, planted,
};

use crate::core::Core;
use crate::{CoreAddr, EntriesAnswer, EntriesWanted, Load, PeerMessage, RepairNews};

/// Entries of one answer.
const COUNT_MAX: usize = 1024;
/// Bytes of one answer, unless its first entry alone has more.
const BYTES_MAX: usize = 1 << 20;
/// Requests under way at once; further entries wait in line.
const ASKED_MAX: usize = 16;
/// Ticks until the next replica is asked, if there is no answer.
const ANSWER_TICKS: u64 = 20;
/// Rounds in vain, for the same entry, after which leadership goes to another replica. After that
/// the others are likely to lack it too, and it goes round only now and then.
const SHED_ROUNDS: u32 = 3;
const SHED_AGAIN_ROUNDS: u32 = 16;
/// Lost entries that are remembered, so that they are told once.
const FOUND_MAX: usize = 1024;
/// Reads for other replicas at once.
const LENDING_MAX: usize = 64;

/// What is being done about entries.
#[derive(Debug)]
enum Stage {
    /// The next replica is to be asked once there is room.
    Ready,
    /// A replica was asked, and should answer until this tick.
    Asked { id: u64, of: CoreAddr, until: u64 },
}

/// Entries that consensus waits for.
#[derive(Debug)]
struct Fetch {
    /// Why they cannot be read here.
    why: String,
    stage: Stage,
    /// Replicas asked.
    asked: usize,
    /// One that should have them does not: waiting for the others may be in vain.
    gone: bool,
    /// Those that have applied them, and forgotten them.
    ahead: Vec<NodeId>,
}

/// Entries that are read for another replica.
#[derive(Debug)]
struct Lending {
    to: CoreAddr,
    /// The asker's number.
    id: u64,
    /// Place of the group.
    group: usize,
    first: LogIndex,
    last: LogIndex,
}

/// The entries of one core that are being fetched, and those that are read for other replicas.
#[derive(Debug)]
pub(crate) struct Refetches {
    next_id: u64,
    /// By place of the group, and first entry. No more than consensus waits for: one for each
    /// replica of a group.
    open: BTreeMap<(usize, LogIndex), Fetch>,
    /// How often none of the others could help, for those that were found lost and have not come.
    found: BTreeMap<(usize, LogIndex), u32>,
    lending: Vec<Lending>,
    /// For the next drain.
    pub(crate) loads: Vec<Load>,
}

impl Refetches {
    /// `first_id` should differ between starts, so that no late answer is taken for another.
    pub(crate) const fn new(first_id: u64) -> Self {
        Self {
            next_id: first_id,
            open: BTreeMap::new(),
            found: BTreeMap::new(),
            lending: Vec::new(),
            loads: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// The fetch that a replica answers.
    fn answered(&self, from: CoreAddr, answer: u64) -> Option<(usize, LogIndex)> {
        let mut open = self.open.iter();
        let found = open.find(|(_, fetch)| match fetch.stage {
            Stage::Asked { id, of, .. } => (id, of) == (answer, from),
            Stage::Ready => false,
        });
        found.map(|(key, _)| *key)
    }

    fn keys(&self, wanted: impl Fn(&Stage) -> bool) -> Vec<(usize, LogIndex)> {
        let keys = self.open.iter().filter(|(_, fetch)| wanted(&fetch.stage));
        keys.map(|(key, _)| *key).collect()
    }

    /// Whether another request may be made.
    fn have_room(&self) -> bool {
        let asked = |fetch: &&Fetch| matches!(fetch.stage, Stage::Asked { .. });
        self.open.values().filter(asked).count() < ASKED_MAX
    }
}

impl Core {
    /// Entries of the own log were read back, or could not be.
    pub(crate) fn entries_loaded(
        &mut self,
        group: GroupId,
        first: LogIndex,
        entries: Result<Vec<Entry>, String>,
    ) {
        let Some(place) = self.place(group) else { return };
        self.lend_loaded(place, first, entries.as_deref().unwrap_or_default());
        let raft = &self.groups[place].raft;
        if !raft.waits_for(first) {
            return;
        }
        match entries {
            Err(_) if planted(Bug::LostEntrySkipped) => {
                let term = raft.term_of(first).unwrap_or_default();
                let (index, kind, payload) = (first, EntryKind::Empty, Payload::empty());
                self.entries_there(
                    place,
                    first,
                    Ok(vec![Entry { term, index, kind, payload }]),
                    false,
                );
            }
            Err(why) => self.fetch(place, first, why),
            Ok(_) => {
                self.refetches.open.remove(&(place, first));
                self.entries_there(place, first, entries, false);
            }
        }
    }

    /// Hands consensus what it waits for.
    fn entries_there(
        &mut self,
        place: usize,
        first: LogIndex,
        entries: Result<Vec<Entry>, String>,
        is_fetched: bool,
    ) {
        if entries.is_ok() {
            self.refetches.found.remove(&(place, first));
        }
        self.groups[place].loaded(first, entries, is_fetched, &mut self.out, &mut self.tally);
        self.mark(place);
    }

    /// Entries cannot be read here: begins to ask the other replicas.
    fn fetch(&mut self, place: usize, first: LogIndex, why: String) {
        if self.refetches.open.contains_key(&(place, first)) {
            return;
        }
        if let btree_map::Entry::Vacant(found) = self.refetches.found.entry((place, first)) {
            found.insert(0);
            let (group, why) = (self.groups[place].id, why.clone());
            self.repairs.news.push(RepairNews::EntriesLost { group, first, why });
            if self.refetches.found.len() > FOUND_MAX {
                self.refetches.found.pop_first();
            }
        }
        let fetch = Fetch { why, stage: Stage::Ready, asked: 0, gone: false, ahead: Vec::new() };
        self.refetches.open.insert((place, first), fetch);
        self.ask_for_entries((place, first));
    }

    /// Goes on with all fetches whose time has come.
    pub(crate) fn tick_refetches(&mut self) {
        let now = self.ticks;
        let due = self.refetches.keys(|stage| match stage {
            Stage::Ready => true,
            Stage::Asked { until, .. } => *until <= now,
        });
        due.into_iter().for_each(|key| self.ask_for_entries(key));
    }

    /// The link to a replica broke: what it was asked for, others are asked for.
    pub(crate) fn peer_with_entries_lost(&mut self, addr: CoreAddr) {
        let of_it = |stage: &Stage| matches!(stage, Stage::Asked { of, .. } if *of == addr);
        let lost = self.refetches.keys(of_it);
        lost.into_iter().for_each(|key| self.ask_for_entries(key));
    }

    /// Asks the next replica, or gives up for now.
    fn ask_for_entries(&mut self, key: (usize, LogIndex)) {
        let (place, first) = key;
        let peers = self.peers_of(place);
        let Some(fetch) = self.refetches.open.get_mut(&key) else { return };
        fetch.stage = Stage::Ready;
        let raft = &self.groups[place].raft;
        let term = raft.term_of(first).filter(|_| first > raft.base().index);
        let Some(term) = term.filter(|_| raft.waits_for(first)) else {
            // The log has moved on meanwhile.
            self.refetches.open.remove(&key);
            return self.entries_there(place, first, Err("not needed any more".to_owned()), false);
        };
        if !self.refetches.have_room() {
            return;
        }
        let Some(fetch) = self.refetches.open.get_mut(&key) else { return };
        while let Some(&of) = peers.get(fetch.asked) {
            fetch.asked += 1;
            if self.links.get(&of).is_some_and(|link| link.up) {
                self.refetches.next_id = self.refetches.next_id.wrapping_add(1);
                let (id, until) = (self.refetches.next_id, self.ticks + ANSWER_TICKS);
                fetch.stage = Stage::Asked { id, of, until };
                let group = self.groups[place].id;
                let last = last_of(raft, first, raft.last_on_disk_only());
                let first = LogPosition { term, index: first };
                let wanted = EntriesWanted { id, group, first, last };
                self.sends.push((of, PeerMessage::EntriesWanted(wanted)));
                return;
            }
        }
        if let Some(fetch) = self.refetches.open.remove(&key) {
            self.nobody_has(place, first, fetch);
        }
    }

    /// None of the other replicas could help. A leader that cannot apply them serves nothing.
    fn nobody_has(&mut self, place: usize, first: LogIndex, fetch: Fetch) {
        self.tally.failed_loads += 1;
        let rounds = self.refetches.found.entry((place, first)).or_default();
        *rounds += 1;
        let sheds = *rounds <= SHED_ROUNDS || rounds.is_multiple_of(SHED_AGAIN_ROUNDS);
        if self.groups[place].raft.waits_to_apply(first) {
            if !fetch.ahead.is_empty() {
                self.shed_leadership_to(place, |node| fetch.ahead.contains(&node));
            } else if sheds {
                self.shed_leadership(place);
            }
        }
        if fetch.gone {
            self.groups[place].raft.lacks(first);
        }
        self.entries_there(place, first, Err(fetch.why), false);
    }

    /// Another replica has answered.
    pub(crate) fn entries_answer(&mut self, from: CoreAddr, answer: EntriesAnswer) {
        let Some(key) = self.refetches.answered(from, answer.id) else {
            self.counters.ignored_messages += 1;
            return;
        };
        let (place, first) = key;
        let EntriesAnswer { base, mut entries, .. } = answer;
        let raft = &self.groups[place].raft;
        let is_ours = |entry: &Entry, index| {
            let whole = crc32c::crc32c(entry.payload.bytes()) == entry.payload.checksum();
            entry.index.get() == index && raft.holds(entry.position()) && whole
        };
        let ours = entries.iter().zip(first.get()..).take_while(|&(entry, at)| is_ours(entry, at));
        let ours = ours.count();
        entries.truncate(ours);
        let Some(last) = entries.last().map(|entry| entry.index) else {
            let leads = |node| raft.leader() == Some(node);
            if let Some(fetch) = self.refetches.open.get_mut(&key) {
                fetch.ahead.extend((base >= first).then_some(from.node));
                fetch.gone |= base >= first || leads(from.node) || leads(self.config.addr.node);
            }
            return self.ask_for_entries(key);
        };
        self.refetches.open.remove(&key);
        self.counters.entries_fetched += entries.len() as u64;
        let group = self.groups[place].id;
        self.repairs.news.push(RepairNews::EntriesFetched { group, first, last });
        self.entries_there(place, first, Ok(entries), true);
        // There is room for another request.
        let next = self.refetches.keys(|stage| matches!(stage, Stage::Ready));
        if let Some(&next) = next.first() {
            self.ask_for_entries(next);
        }
    }

    /// Another replica cannot read its entries.
    pub(crate) fn entries_wanted(&mut self, from: CoreAddr, wanted: EntriesWanted) {
        let EntriesWanted { id, group, first, last } = wanted;
        let map = &self.config.map;
        let is_replica = |_: &usize| {
            map.core_of(group) == from.core && map.replicas(group).any(|node| node == from.node)
        };
        let Some(place) = self.place(group).filter(is_replica) else {
            self.counters.ignored_messages += 1;
            return;
        };
        let raft = &self.groups[place].raft;
        let is_here = first.index > raft.base().index && raft.holds(first) && last >= first.index;
        if !is_here {
            return self.answer_entries(from, id, place, Vec::new());
        }
        let first = first.index;
        let last = last_of(raft, first, last);
        if let Some(entries) = raft.recent_entries(first, last, BYTES_MAX, COUNT_MAX) {
            return self.answer_entries(from, id, place, entries);
        }
        if self.refetches.lending.len() >= LENDING_MAX {
            return self.answer_entries(from, id, place, Vec::new());
        }
        let last = last_of(raft, first, last.min(raft.last_on_disk_only()));
        self.refetches.lending.push(Lending { to: from, id, group: place, first, last });
        self.refetches.loads.push(Load { group, first, last, bytes_max: BYTES_MAX });
    }

    /// Answers the replicas that want these entries; without any, they cannot be read here.
    fn lend_loaded(&mut self, place: usize, first: LogIndex, entries: &[Entry]) {
        let theirs = |lending: &mut Lending| (lending.group, lending.first) == (place, first);
        let lendings: Vec<_> = self.refetches.lending.extract_if(.., theirs).collect();
        for Lending { to, id, last, .. } in lendings {
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                let is_first = bytes == 0;
                bytes += entry.size_bytes();
                entry.index <= last && (is_first || bytes <= BYTES_MAX)
            };
            let lent = entries.iter().take_while(fits).cloned().collect();
            self.answer_entries(to, id, place, lent);
        }
    }

    fn answer_entries(&mut self, to: CoreAddr, id: u64, place: usize, entries: Vec<Entry>) {
        self.counters.entries_lent += entries.len() as u64;
        let base = self.groups[place].raft.base().index;
        let answer = EntriesAnswer { id, base, entries };
        self.sends.push((to, PeerMessage::EntriesAnswer(answer)));
    }
}

/// The last entry of a request that begins with `first`: not after `last`, and one that exists.
fn last_of(raft: &Raft, first: LogIndex, last: LogIndex) -> LogIndex {
    let bound = first.plus(COUNT_MAX as u64 - 1).min(raft.last_index());
    last.min(bound).max(first)
}
