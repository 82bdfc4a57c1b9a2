//! Values that this replica's disk does not give any more are fetched from other replicas.
//!
//! What is asked for is the value of a key of a group as the entry at one index left it: that is
//! the same on every replica, wherever each of them keeps it. What comes back is written to the log
//! once more, like a value that is moved out of an old segment, and the index is pointed at it. All
//! that wait for the value (client reads, commands, snapshots, a segment that is to be emptied)
//! wait for that. A shard whose command waits may also go on with a later version, see
//! [`crate::lost`].
//!
//! Replicas are asked one at a time, in turn. When none of them could help, clients are sent
//! elsewhere, leadership goes to another replica, the value is tried on the own disk once more, and
//! after a while it all begins again.

use std::collections::BTreeMap;

use coracle_raft::{Bug, LogIndex, NodeId, Payload, Place, planted};

use crate::apply::Wanted;
use crate::cold::{Open, Waiter};
use crate::core::Core;
use crate::gc::{From, Target};
use crate::lost::{LOST_MAX, Lost};
use crate::moved::Moved;
use crate::store::{Item, Located, Value};
use crate::task::try_again;
use crate::{CoreAddr, PeerMessage, RepairNews, ShardId, SlotId, ValueAnswer, ValueWanted};

/// Values that are repaired at once; those found beyond that are given up by whoever needs them.
const OPEN_MAX: usize = 1024;
/// Values that are on their way from other replicas into the log at once, and their bytes.
const COMING_MAX: usize = 64;
const COMING_BYTES_MAX: usize = 16 << 20;
/// Ticks until the next replica is asked, if there is no answer.
const ANSWER_TICKS: u64 = 20;
/// Ticks until all are asked again.
const AGAIN_TICKS: u64 = 20;
/// Rounds without success after which leadership goes to another replica, in case that one can
/// reach more. After that many nobody is likely to have the value, and it would go round for ever.
const ROUNDS_SHED_MAX: u32 = 3;
/// Values that are read for other replicas at once.
const LENDING_MAX: usize = 64;

/// What is being done about a value.
#[derive(Debug)]
enum Stage {
    /// The next replica is to be asked at this tick.
    Ready(u64),
    /// A replica was asked, and should answer until this tick.
    Asked { id: u64, of: CoreAddr, until: u64 },
    /// It is tried on the own disk.
    Reading,
    /// It is on its way into the log.
    Writing(Payload),
}

/// A value that is being repaired.
#[derive(Debug)]
struct Repair {
    located: Located,
    waiters: Vec<Waiter>,
    stage: Stage,
    /// Replicas asked in this round.
    asked: usize,
    /// Rounds in which nobody could help.
    rounds: u32,
}

/// The values of one core that are being repaired.
#[derive(Debug)]
pub(crate) struct Repairs {
    next_id: u64,
    /// By place of the group, and key.
    open: BTreeMap<(usize, Box<[u8]>), Repair>,
    /// Values that are being read for other replicas.
    lending: usize,
    /// For the next drain.
    pub(crate) news: Vec<RepairNews>,
}

impl Repairs {
    /// `first_id` should differ between starts, so that no late answer is taken for another.
    pub(crate) const fn new(first_id: u64) -> Self {
        Self { next_id: first_id, open: BTreeMap::new(), lending: 0, news: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether this waits for the repair of a key.
    pub(crate) fn waits(&self, group: usize, key: &[u8], waiter: Waiter) -> bool {
        let open = self.open.get(&(group, Box::from(key)));
        open.is_some_and(|open| open.waiters.contains(&waiter))
    }

    /// Values that replicas were asked for or have sent, and their bytes.
    fn coming(&self) -> (usize, usize) {
        let coming = |open: &&Repair| matches!(open.stage, Stage::Asked { .. } | Stage::Writing(_));
        let coming = self.open.values().filter(coming);
        coming.fold((0, 0), |(count, bytes), open| (count + 1, bytes + open.located.len as usize))
    }

    /// The repair that a replica answers.
    fn answered(&mut self, from: CoreAddr, answer: u64) -> Option<(usize, Box<[u8]>)> {
        let mut open = self.open.iter_mut();
        let found = open.find(|(_, open)| match open.stage {
            Stage::Asked { id, of, .. } => (id, of) == (answer, from),
            _ => false,
        });
        found.map(|(key, _)| key.clone())
    }
}

impl Core {
    /// A value cannot be read here: begins to repair it for all that wait for it.
    pub(crate) fn unreadable(&mut self, open: Open, why: &str) {
        let Open { wanted, group, mut waiters } = open;
        waiters.retain(|&waiter| match waiter {
            Waiter::Peer(from, id) => {
                self.repairs.lending -= 1;
                self.answer_value(from, id, LogIndex::ZERO, None);
                false
            }
            _ => true,
        });
        if self.item_at(group, &wanted).is_none() {
            return self.look_again(group, &wanted, waiters);
        }
        let key = (group, wanted.key.clone());
        if let Some(repair) = self.repairs.open.get_mut(&key) {
            waiters.retain(|waiter| !repair.waiters.contains(waiter));
            repair.waiters.append(&mut waiters);
            repair.located = wanted.located;
            if matches!(repair.stage, Stage::Reading) {
                repair.stage = Stage::Ready(self.ticks + AGAIN_TICKS);
            }
            return;
        }
        if self.peers_of(group).is_empty() || self.repairs.open.len() >= OPEN_MAX {
            return self.give_up(group, waiters, why);
        }
        self.counters.values_damaged += 1;
        let (id, place) = (self.groups[group].id, wanted.located.place);
        let why = why.to_owned();
        self.repairs.news.push(RepairNews::Damaged { group: id, place, why });
        let (located, stage) = (wanted.located, Stage::Ready(self.ticks));
        self.repairs
            .open
            .insert(key.clone(), Repair { located, waiters, stage, asked: 0, rounds: 0 });
        self.ask_next(key);
    }

    /// Goes on with all repairs whose time has come.
    pub(crate) fn tick_repairs(&mut self) {
        let now = self.ticks;
        let due = self.repairs.open.iter().filter(|(_, open)| match open.stage {
            Stage::Ready(at) => at <= now,
            Stage::Asked { until, .. } => until <= now,
            Stage::Reading | Stage::Writing(_) => false,
        });
        let due: Vec<_> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            self.ask_next(key);
        }
    }

    /// The link to a replica broke: what it was asked for, others are asked for.
    pub(crate) fn peer_with_values_lost(&mut self, addr: CoreAddr) {
        let lost = self.repairs.open.iter().filter(|(_, open)| match open.stage {
            Stage::Asked { of, .. } => of == addr,
            _ => false,
        });
        let lost: Vec<_> = lost.map(|(key, _)| key.clone()).collect();
        for key in lost {
            self.ask_next(key);
        }
    }

    /// Asks the next replica, or ends the round.
    fn ask_next(&mut self, key: (usize, Box<[u8]>)) {
        let peers = self.peers_of(key.0);
        let (now, coming) = (self.ticks, self.repairs.coming());
        let Some(repair) = self.repairs.open.get_mut(&key) else { return };
        let wanted = Wanted { key: key.1.clone(), located: repair.located };
        repair.stage = Stage::Ready(now + 1);
        let Some(item) = self.item_at(key.0, &wanted) else {
            return self.close(&key, None);
        };
        let version = item.version;
        let Some(repair) = self.repairs.open.get_mut(&key) else { return };
        let fits = coming.0 == 0
            || (coming.0 < COMING_MAX
                && coming.1 + repair.located.len as usize <= COMING_BYTES_MAX);
        if !fits {
            return;
        }
        while let Some(&of) = peers.get(repair.asked) {
            repair.asked += 1;
            if self.links.get(&of).is_some_and(|link| link.up) {
                self.repairs.next_id = self.repairs.next_id.wrapping_add(1);
                let id = self.repairs.next_id;
                repair.stage = Stage::Asked { id, of, until: now + ANSWER_TICKS };
                let group = self.groups[key.0].id;
                let checksum = crc32c::crc32c(&key.1);
                let key = Payload::new(key.1.to_vec(), checksum);
                let wanted = ValueWanted { id, group, version, key };
                self.sends.push((of, PeerMessage::ValueWanted(wanted)));
                return;
            }
        }
        self.round_failed(&key, wanted);
    }

    /// None of the other replicas could help. Clients and snapshots do not wait any longer.
    fn round_failed(&mut self, key: &(usize, Box<[u8]>), wanted: Wanted) {
        let Some(repair) = self.repairs.open.get_mut(key) else { return };
        self.counters.repairs_failed += 1;
        (repair.asked, repair.rounds, repair.stage) = (0, repair.rounds + 1, Stage::Reading);
        let sheds = repair.rounds <= ROUNDS_SHED_MAX;
        let patient = |waiter: &mut Waiter| !matches!(waiter, Waiter::Shard(_) | Waiter::Gc);
        let waiters: Vec<_> = repair.waiters.extract_if(.., patient).collect();
        let stalls = repair.waiters.iter().any(|waiter| matches!(waiter, Waiter::Shard(_)));
        self.cold.want(key.0, wanted, Waiter::Repair);
        if sheds {
            self.give_up(key.0, waiters, "no other replica has it now");
            if stalls {
                self.shed_leadership(key.0);
            }
            return;
        }
        for waiter in waiters {
            match waiter {
                Waiter::Task(reader) => {
                    if let Some(task) = self.cold.give_up(reader) {
                        self.out.reply(task.origin, try_again());
                    }
                }
                Waiter::Snapshot(to) => self.groups[key.0].snapshot_value_failed(to),
                Waiter::Shard(_) | Waiter::Peer(..) | Waiter::Gc | Waiter::Repair => {}
            }
        }
        self.mark(key.0);
    }

    /// What waits for a value that cannot be had must find another way.
    fn give_up(&mut self, group: usize, waiters: Vec<Waiter>, why: &str) {
        for waiter in waiters {
            match waiter {
                Waiter::Task(reader) => {
                    if let Some(task) = self.cold.give_up(reader) {
                        self.unreadable_here(group, task, why);
                    }
                }
                // Asked for again with the next tick.
                Waiter::Shard(_) => self.shed_leadership(group),
                Waiter::Snapshot(to) => {
                    self.groups[group].snapshot_value_failed(to);
                    self.shed_leadership(group);
                    self.mark(group);
                }
                Waiter::Peer(..) | Waiter::Gc | Waiter::Repair => {}
            }
        }
    }

    /// The index means something else by now: what waits for the value looks again.
    fn look_again(&mut self, group: usize, wanted: &Wanted, waiters: Vec<Waiter>) {
        for waiter in waiters {
            match waiter {
                Waiter::Task(reader) => self.reader_goes_on(reader, None),
                Waiter::Shard(shard) => {
                    let waits = self.groups[group].stalls.wanted_by(shard);
                    if waits.is_some_and(|(waits, _)| waits == wanted) {
                        self.groups[group].woken.push((shard, None));
                        self.mark(group);
                    }
                }
                Waiter::Snapshot(to) => {
                    self.groups[group].snapshot_value_failed(to);
                    self.mark(group);
                }
                Waiter::Peer(..) | Waiter::Gc | Waiter::Repair => {}
            }
        }
    }

    /// A value could be read here after all. Returns who waited for its repair.
    pub(crate) fn readable_again(&mut self, group: usize, wanted: &Wanted) -> Vec<Waiter> {
        let key = (group, wanted.key.clone());
        let writing = |repair: &Repair| matches!(repair.stage, Stage::Writing(_));
        let mine = |open: &&Repair| open.located == wanted.located && !writing(open);
        if self.repairs.open.get(&key).filter(mine).is_none() {
            return Vec::new();
        }
        let (group, place) = (self.groups[group].id, wanted.located.place);
        self.repairs.news.push(RepairNews::Repaired { group, place });
        self.repairs.open.remove(&key).map_or_else(Vec::new, |open| open.waiters)
    }

    /// Another replica has answered.
    pub(crate) fn value_answer(&mut self, from: CoreAddr, answer: ValueAnswer) {
        let Some(key) = self.repairs.answered(from, answer.id) else {
            self.counters.ignored_messages += 1;
            return;
        };
        if !self.take_answer(&key, answer) {
            self.ask_next(key);
        }
        // There is room for another request.
        let now = self.ticks;
        let ready = |open: &Repair| {
            matches!(open.stage, Stage::Ready(at) if at <= now + 1) && open.asked == 0
        };
        let next = self.repairs.open.iter().find(|(_, open)| ready(open));
        if let Some(next) = next.map(|(key, _)| key.clone()) {
            self.ask_next(next);
        }
    }

    /// Whether the answer is of use.
    fn take_answer(&mut self, key: &(usize, Box<[u8]>), answer: ValueAnswer) -> bool {
        let group = key.0;
        let Some(repair) = self.repairs.open.get(key) else { return false };
        let wanted = Wanted { key: key.1.clone(), located: repair.located };
        let Some(item) = self.item_at(group, &wanted) else {
            self.close(key, None);
            return true;
        };
        let Some(payload) = answer.value else {
            return self.goes_on_without(&wanted, group, answer.at, None);
        };
        let shard = self.config.map.shard_of(SlotId::of_key(&key.1));
        let moved = Moved::parse(payload.bytes());
        let meant = |moved: &Moved<'_>| moved.key == &*key.1 && moved.shard == shard;
        let Some(moved) = moved.filter(meant) else { return false };
        let version = item.version;
        let same = (moved.version, moved.sum) == (version, item.sum)
            && moved.value.len() == wanted.located.len as usize;
        if same || planted(Bug::RepairTakesAnyVersion) {
            self.state.push_value(self.groups[group].id, payload.clone());
            let from = From::Log(wanted.located.place);
            self.targets.push_back(Target { group, shard, key: wanted.key, from });
            if let Some(repair) = self.repairs.open.get_mut(key) {
                repair.stage = Stage::Writing(payload);
            }
            return true;
        }
        if moved.version <= version {
            return false;
        }
        let (known_at, bytes) = (moved.version, moved.value.to_vec());
        self.goes_on_without(&wanted, group, known_at, Some(bytes))
    }

    /// A shard waits for a value, and another replica has told what is left of it at a later entry:
    /// lets the shard go on without the old bytes. Whether it did.
    fn goes_on_without(
        &mut self,
        wanted: &Wanted,
        group: usize,
        known_at: LogIndex,
        bytes: Option<Vec<u8>>,
    ) -> bool {
        let place = &self.groups[group];
        let Some(shard) = place.store.place(SlotId::of_key(&wanted.key)) else { return false };
        let passed = place.stalls.wanted_by(shard).is_some_and(|(waits, needed_at)| {
            waits == wanted && (known_at >= needed_at || planted(Bug::LostWithoutProof))
        });
        if !passed || place.lost.len() >= LOST_MAX {
            return false;
        }
        let before = place.store.totals();
        let lost = Lost { shard, key: wanted.key.clone(), known_at, bytes };
        self.groups[group].lose(lost);
        self.totals.exchange(before, self.groups[group].store.totals());
        self.cache.remove(wanted.located.place);
        self.close(&(group, wanted.key.clone()), None);
        self.mark(group);
        true
    }

    /// The index refers to the repaired value, at `new`, or means something else by now.
    pub(crate) fn repaired(&mut self, group: usize, key: &[u8], old: Place, new: Option<Place>) {
        let key = (group, Box::from(key));
        let Some(repair) = self.repairs.open.get(&key) else { return };
        if repair.located.place != old {
            return;
        }
        match (&repair.stage, new) {
            (Stage::Writing(payload), Some(new)) => {
                let payload = payload.clone();
                self.cache.insert(new, payload.clone());
                self.tally.values_repaired += 1;
                self.close(&key, Some((new, payload)));
            }
            // It was read and moved meanwhile.
            (_, Some(_)) => self.close(&key, None),
            (Stage::Writing(_), None) => self.close(&key, None),
            (_, None) => {}
        }
    }

    /// The end of a repair, with the value if it is there.
    fn close(&mut self, key: &(usize, Box<[u8]>), value: Option<(Place, Payload)>) {
        let Some(repair) = self.repairs.open.remove(key) else { return };
        let (group, place) = (key.0, repair.located.place);
        let id = self.groups[group].id;
        self.repairs.news.push(RepairNews::Repaired { group: id, place });
        let wanted = Wanted { key: key.1.clone(), located: repair.located };
        let Some((new, payload)) = value else {
            return self.look_again(group, &wanted, repair.waiters);
        };
        for waiter in repair.waiters {
            match waiter {
                Waiter::Task(reader) => {
                    self.reader_goes_on(reader, Some((new, payload.clone())));
                }
                Waiter::Shard(shard) => {
                    let woken = (shard, Some((new, payload.clone())));
                    self.groups[group].woken.push(woken);
                }
                Waiter::Snapshot(to) => {
                    let value = Moved::parse(payload.bytes()).map_or(&[][..], |moved| moved.value);
                    self.groups[group].snapshot_value_repaired(to, &wanted, value);
                }
                Waiter::Peer(..) | Waiter::Gc | Waiter::Repair => {}
            }
        }
        self.mark(group);
    }

    /// The item that is meant, if the index still says so.
    fn item_at(&self, group: usize, wanted: &Wanted) -> Option<&Item> {
        let shard = self.groups[group].store.shard(SlotId::of_key(&wanted.key))?;
        shard.peek(&wanted.key).filter(|item| item.value.located() == Some(wanted.located))
    }

    /// The other replicas of a group, the one after this one first.
    pub(crate) fn peers_of(&self, group: usize) -> Vec<CoreAddr> {
        let CoreAddr { node: here, core } = self.config.addr;
        let nodes: Vec<NodeId> = self.config.map.replicas(self.groups[group].id).collect();
        let at = nodes.iter().position(|&node| node == here).map_or(0, |at| at + 1);
        let (before, after) = nodes.split_at(at);
        let others = after.iter().chain(before).filter(|&&node| node != here);
        others.map(|&node| CoreAddr { node, core }).collect()
    }

    /// Another replica cannot read its value.
    pub(crate) fn value_wanted(&mut self, from: CoreAddr, wanted: &ValueWanted) {
        let ValueWanted { id, group, version, key } = wanted;
        let map = &self.config.map;
        let expected = map.group_of_slot(SlotId::of_key(key.bytes())) == *group
            && map.core_of(*group) == from.core
            && map.replicas(*group).any(|node| node == from.node);
        let Some(place) = self.place(*group).filter(|_| expected) else {
            self.counters.ignored_messages += 1;
            return;
        };
        match self.value_of(place, key.bytes(), *version) {
            Ok((at, value)) => self.answer_value(from, *id, at, value),
            Err(_) if self.repairs.lending >= LENDING_MAX => {
                self.answer_value(from, *id, LogIndex::ZERO, None);
            }
            Err(wanted) => {
                self.repairs.lending += 1;
                self.cold.want(place, wanted, Waiter::Peer(from, *id));
            }
        }
    }

    /// What is known of a key whose value is wanted in this version or a later one; `Err` if it
    /// must be read first.
    fn value_of(
        &self,
        place: usize,
        key: &[u8],
        version: LogIndex,
    ) -> Result<(LogIndex, Option<Payload>), Wanted> {
        const UNKNOWN: (LogIndex, Option<Payload>) = (LogIndex::ZERO, None);
        let group = &self.groups[place];
        let Some(at) = group.store.place(SlotId::of_key(key)) else { return Ok(UNKNOWN) };
        let shard = &group.store.shards()[at];
        let Some(item) = shard.peek(key) else {
            let waits = group.stalls.holds(at);
            let known = if waits { LogIndex::ZERO } else { group.applied().max(shard.base.index) };
            return Ok((known, None));
        };
        if item.version < version {
            return Ok(UNKNOWN);
        }
        match &item.value {
            Value::Memory(bytes) => Ok((item.version, Some(moved(shard.id, item, bytes)))),
            Value::Lost(_) => Ok(UNKNOWN),
            Value::Log(located) => {
                let wanted = || Wanted { key: key.into(), located: *located };
                let payload = self.cache.peek(located.place).ok_or_else(wanted)?;
                let slice = located.slice(key, payload).ok_or_else(wanted)?;
                Ok((item.version, Some(moved(shard.id, item, slice.bytes()))))
            }
        }
    }

    /// A value that another replica wants has been read.
    pub(crate) fn value_for_peer(&mut self, open: &Open, to: CoreAddr, id: u64, read: &Payload) {
        self.repairs.lending -= 1;
        let Wanted { key, located } = &open.wanted;
        let shard = self.groups[open.group].store.shard(SlotId::of_key(key));
        let value = self.item_at(open.group, &open.wanted).zip(shard).and_then(|(item, shard)| {
            let slice = located.slice(key, read)?;
            Some((item.version, moved(shard.id, item, slice.bytes())))
        });
        let (at, value) = value.map_or((LogIndex::ZERO, None), |(at, value)| (at, Some(value)));
        self.answer_value(to, id, at, value);
    }

    fn answer_value(&mut self, to: CoreAddr, id: u64, at: LogIndex, value: Option<Payload>) {
        self.counters.values_lent += u64::from(value.is_some());
        self.sends.push((to, PeerMessage::ValueAnswer(ValueAnswer { id, at, value })));
    }
}

fn moved(shard: ShardId, item: &Item, value: &[u8]) -> Payload {
    Moved { shard, sum: item.sum, version: item.version, key: item.key.bytes(), value }.encode()
}
