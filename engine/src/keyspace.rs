//! Commands on the whole keyspace: `SCAN`, `KEYS`, `DBSIZE`, `RANDOMKEY`, `FLUSHALL`.
//!
//! The core that takes one asks the leaders of the groups, each by a command of its own that finds
//! its way like any other: through ReadIndex or the log, forwarded where that is due. On the plain
//! port all groups are meant; on a core's port those that this core leads, because a cluster client
//! asks every endpoint and puts the answers together; `FLUSHALL` always means all.

use std::collections::BTreeMap;

use coracle_raft::GroupId;

use crate::command::Command;
use crate::command::encoding::{Header, Op, View, scan};
use crate::core::Core;
use crate::scan::{Cursor, PART_KEYS_MAX, Part};
use crate::task::{Origin, Task, overloaded, uncertain};
use crate::{ReadMode, Reply, SlotId, Token, Via, WallMillis};

/// Commands of this kind under way on one core.
const OPEN_MAX: usize = 256;
/// Of them, those that gather the keys of the whole keyspace.
const KEYS_OPEN_MAX: usize = 8;
/// Keys that one call of `SCAN` looks at, whatever its `COUNT`.
const SCAN_KEYS_MAX: u64 = 10_000;
/// Bytes of keys from which a call of `SCAN` is answered.
const SCAN_BYTES_MAX: usize = 256 << 10;
/// Groups, or parts of them, that one call of `SCAN` asks.
const SCAN_PARTS_MAX: u32 = 32;
/// Keys that `KEYS` answers at most.
const KEYS_MAX: usize = 100_000;
/// Bytes of keys that `KEYS` answers at most.
const KEYS_BYTES_MAX: usize = 8 << 20;
/// Keys that `KEYS` looks at, at most.
const KEYS_SEEN_MAX: u64 = 2_000_000;
/// Groups that are asked for a random key before it is believed that there is none.
const DRAWS_MAX: u32 = 8;
/// Flushed keys dropped by one turn: about a hundred microseconds of it.
const GRAVES_PER_TURN: usize = 512;
/// Ticks for which an endpoint goes on scanning a group that it led: a scan of all endpoints that
/// began before the leadership moved must not miss the group.
const COVERED_TICKS: u64 = 12_000;

/// The keyspace commands of one core.
#[derive(Debug)]
pub(crate) struct Keyspace {
    next: u64,
    open: BTreeMap<u64, Open>,
    random: u64,
}

/// One command that has not been answered.
#[derive(Debug)]
struct Open {
    token: Token,
    via: Via,
    at: WallMillis,
    work: Work,
    /// Groups that have not answered what they were asked.
    waiting: usize,
}

#[derive(Debug)]
enum Work {
    Scan(Gathering, u64),
    Keys(Gathering),
    Size { sum: i64 },
    Random { sizes: Vec<(GroupId, u64)>, draws: u32 },
    Flush { done: Vec<GroupId>, unknown: Vec<(GroupId, String)>, refused: Vec<(GroupId, Reply)> },
}

/// Keys that come part by part.
#[derive(Debug, Default)]
struct Gathering {
    pattern: Option<Vec<u8>>,
    keys: Vec<Reply>,
    bytes: usize,
    seen: u64,
    parts: u32,
}

impl Gathering {
    fn take(&mut self, part: Part) {
        let len = |key: &Reply| if let Reply::Bulk(key) = key { key.len() } else { 0 };
        self.bytes += part.keys.iter().map(len).sum::<usize>();
        self.seen += part.seen;
        self.keys.extend(part.keys);
    }
}

/// What comes after an answer.
enum Next {
    /// More answers are awaited.
    Wait,
    /// These groups are to be asked.
    Ask(Vec<(GroupId, Command)>),
    Done(Reply),
}

impl Keyspace {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { next: 0, open: BTreeMap::new(), random: seed }
    }

    /// The client is gone: what it asked for is not gone on with.
    pub(crate) fn forget(&mut self, token: Token) {
        self.open.retain(|_, open| open.token != token);
    }

    /// Splitmix64.
    fn dice(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn refusal(&self, view: &View<'_>) -> Option<Reply> {
        let gathers = |open: &&Open| matches!(open.work, Work::Keys(_));
        if self.open.len() >= OPEN_MAX {
            return Some(overloaded("commands on the whole keyspace", OPEN_MAX));
        }
        let full =
            view.op == Op::Keys && self.open.values().filter(gathers).count() >= KEYS_OPEN_MAX;
        full.then(|| overloaded("KEYS commands", KEYS_OPEN_MAX))
    }
}

impl Core {
    /// Whether flushed keys wait to be dropped: each [`Core::drain`] drops some, and the next one
    /// should come soon, though not at once. Memory is all that waits for it.
    pub fn is_dropping(&self) -> bool {
        !self.graveyard.is_empty()
    }

    /// Drops some of what was flushed, and the records that were kept for it.
    pub(crate) fn drop_flushed(&mut self) {
        let cache = &mut self.cache;
        self.graveyard.drop_some(GRAVES_PER_TURN, |item| {
            if let Some(located) = item.value.located() {
                cache.remove(located.place);
            }
        });
    }

    /// Takes a client's command on the whole keyspace.
    pub(crate) fn keyspace_command(
        &mut self,
        token: Token,
        via: Via,
        at: WallMillis,
        command: &Command,
    ) {
        let origin = Origin::Client(token);
        let Some(view) = View::parse(command.payload.bytes()) else {
            return self.out.reply(origin, Reply::error("ERR malformed command"));
        };
        if let Some(refusal) = self.keyspace.refusal(&view) {
            self.counters.refused_overload += 1;
            return self.out.reply(origin, refusal);
        }
        let pattern = |n: usize| (view.arg_count() > n).then(|| view.arg(n).to_vec());
        let gathering = |pattern| Gathering { pattern, ..Gathering::default() };
        let work = match view.op {
            Op::Scan if view.flags & scan::NOTHING != 0 => {
                return self.out.reply(origin, scanned(None, Vec::new()));
            }
            Op::Scan => {
                let count = u64::try_from(view.number(1)).unwrap_or(1);
                Work::Scan(gathering(pattern(2)), count.clamp(1, SCAN_KEYS_MAX))
            }
            Op::Keys => Work::Keys(gathering(pattern(0))),
            Op::Size => Work::Size { sum: 0 },
            Op::RandomKey => Work::Random { sizes: Vec::new(), draws: 0 },
            _ => Work::Flush { done: Vec::new(), unknown: Vec::new(), refused: Vec::new() },
        };
        let position = if view.op == Op::Scan { view.number(0) } else { 0 };
        let from = Cursor { slot: view.slot, position: u64::try_from(position).unwrap_or(0) };
        let mut open = Open { token, via, at, work, waiting: 0 };
        let first = self.begin(&mut open, from);
        self.keyspace.next += 1;
        let id = self.keyspace.next;
        self.keyspace.open.insert(id, open);
        self.go_on(id, first);
    }

    fn begin(&self, open: &mut Open, from: Cursor) -> Next {
        let (via, at) = (open.via, open.at);
        match &open.work {
            Work::Scan(..) | Work::Keys(_) => self.gather(open, Some(from)),
            Work::Size { .. } | Work::Random { .. } => {
                let command = |group| (group, self.for_group(Op::Size, group, at, &[]));
                let groups = self.groups_of(via).map(command).collect();
                Next::Ask(groups)
            }
            Work::Flush { .. } => {
                let command = |group| (group, self.for_group(Op::Flush, group, at, &[]));
                Next::Ask(self.groups_of(Via::Plain).map(command).collect())
            }
        }
    }

    /// Asks groups, or answers the client.
    fn go_on(&mut self, id: u64, next: Next) {
        match next {
            Next::Wait => {}
            Next::Ask(parts) => {
                let Some(open) = self.keyspace.open.get_mut(&id) else { return };
                open.waiting = parts.len();
                let at = open.at;
                if parts.is_empty() {
                    // Nothing is meant: this core leads no group.
                    let Some(open) = self.keyspace.open.remove(&id) else { return };
                    let reply = match open.work {
                        Work::Random { .. } => Reply::Null,
                        _ => Reply::Integer(0),
                    };
                    return self.out.reply(Origin::Client(open.token), reply);
                }
                for (group, command) in parts {
                    self.ask(id, group, at, command);
                }
            }
            Next::Done(reply) => {
                let Some(open) = self.keyspace.open.remove(&id) else { return };
                self.out.reply(Origin::Client(open.token), reply);
            }
        }
    }

    fn ask(&mut self, id: u64, group: GroupId, at: WallMillis, command: Command) {
        let (via, read_mode, follows) = (Via::Plain, ReadMode::Leader, false);
        let (origin, deadline) = (Origin::Part { id, group }, self.deadline());
        let (hops, fetched) = (0, Vec::new());
        self.route(Task { origin, via, read_mode, follows, at, command, hops, deadline, fetched });
    }

    /// A group has answered.
    pub(crate) fn part_answered(&mut self, id: u64, group: GroupId, reply: Reply) {
        // It may have been answered already, because another group could not.
        let Some(mut open) = self.keyspace.open.remove(&id) else { return };
        open.waiting -= 1;
        let next = self.after(&mut open, group, reply);
        self.keyspace.open.insert(id, open);
        self.go_on(id, next);
    }

    fn after(&mut self, open: &mut Open, group: GroupId, reply: Reply) -> Next {
        let waiting = open.waiting;
        match &mut open.work {
            Work::Scan(gathering, _) | Work::Keys(gathering) => {
                let part = match Part::parse(reply) {
                    Ok(part) => part,
                    Err(other) => return Next::Done(other),
                };
                let end = self.config.map.slots_of(group).end;
                let next = part.next.or_else(|| Cursor::at_slot(end));
                gathering.take(part);
                self.gather(open, next)
            }
            Work::Size { sum } => match reply {
                Reply::Integer(count) => {
                    *sum += count;
                    if waiting > 0 { Next::Wait } else { Next::Done(Reply::Integer(*sum)) }
                }
                other => Next::Done(other),
            },
            Work::Random { sizes, draws } => {
                match reply {
                    Reply::Integer(count) => {
                        sizes.push((group, u64::try_from(count).unwrap_or(0)));
                    }
                    // All that were tried have expired.
                    Reply::Null => sizes.retain(|&(other, _)| other != group),
                    other => return Next::Done(other),
                }
                if waiting > 0 {
                    return Next::Wait;
                }
                *draws += 1;
                let drawn = draw(sizes, self.keyspace.dice()).filter(|_| *draws <= DRAWS_MAX);
                let Some(group) = drawn else { return Next::Done(Reply::Null) };
                let dice = self.keyspace.dice().to_le_bytes();
                let command = self.for_group(Op::RandomKey, group, open.at, &[&dice]);
                Next::Ask(vec![(group, command)])
            }
            Work::Flush { done, unknown, refused } => {
                match reply {
                    Reply::Error(text) if text.starts_with("UNCERTAIN") => {
                        unknown.push((group, text));
                    }
                    Reply::Error(_) => refused.push((group, reply)),
                    _ => done.push(group),
                }
                if waiting > 0 { Next::Wait } else { Next::Done(flushed(done, unknown, refused)) }
            }
        }
    }

    /// The next part of a `SCAN` or `KEYS` that has got to `cursor`, or its answer.
    fn gather(&self, open: &mut Open, cursor: Option<Cursor>) -> Next {
        let (via, at) = (open.via, open.at);
        let cursor = cursor.and_then(|cursor| self.first_covered(cursor, via, &open.work));
        let count = match &mut open.work {
            Work::Scan(gathering, count) => {
                let left = count.saturating_sub(gathering.seen);
                let full = left == 0
                    || gathering.bytes >= SCAN_BYTES_MAX
                    || gathering.parts >= SCAN_PARTS_MAX;
                if full || cursor.is_none() {
                    return Next::Done(scanned(cursor, std::mem::take(&mut gathering.keys)));
                }
                left.min(PART_KEYS_MAX as u64)
            }
            Work::Keys(gathering) => {
                if let Some(refusal) = too_many(gathering) {
                    return Next::Done(refusal);
                }
                if cursor.is_none() {
                    return Next::Done(Reply::Array(std::mem::take(&mut gathering.keys)));
                }
                PART_KEYS_MAX as u64
            }
            _ => return Next::Wait,
        };
        let (Some(cursor), Work::Scan(gathering, _) | Work::Keys(gathering)) =
            (cursor, &mut open.work)
        else {
            return Next::Wait;
        };
        gathering.parts += 1;
        let (position, count) = (cursor.position.to_le_bytes(), count.to_le_bytes());
        let header = Header::new(Op::Scan, cursor.slot, at);
        let command = match &gathering.pattern {
            Some(pattern) => header.encode(&[&position, &count, pattern]),
            None => header.encode(&[&position, &count]),
        };
        Next::Ask(vec![(self.config.map.group_of_slot(cursor.slot), command)])
    }

    /// Where the first group that is meant begins, from `cursor` on.
    fn first_covered(&self, cursor: Cursor, via: Via, work: &Work) -> Option<Cursor> {
        let covers = |group: GroupId| match work {
            _ if via == Via::Plain => true,
            Work::Scan(..) => self.covers(group),
            _ => self.leads_group(group),
        };
        let first = self.config.map.group_of_slot(cursor.slot);
        if covers(first) {
            return Some(cursor);
        }
        let later = first.get() + 1..self.config.map.group_count();
        let group = later.map(GroupId::new).find(|&group| covers(group))?;
        Cursor::at_slot(self.config.map.slots_of(group).start)
    }

    fn groups_of(&self, via: Via) -> impl Iterator<Item = GroupId> {
        let all = (0..self.config.map.group_count()).map(GroupId::new);
        all.filter(move |&group| via == Via::Plain || self.leads_group(group))
    }

    fn leads_group(&self, group: GroupId) -> bool {
        self.place(group).is_some_and(|place| self.groups[place].leads())
    }

    /// Whether this endpoint scans a group: it leads it, or has done so a while ago.
    fn covers(&self, group: GroupId) -> bool {
        self.place(group).is_some_and(|place| {
            let group = &self.groups[place];
            let led = group.led_at.is_some_and(|tick| self.ticks - tick <= COVERED_TICKS);
            group.leads() || led
        })
    }

    /// A command that is addressed to a group by its first slot.
    fn for_group(&self, op: Op, group: GroupId, at: WallMillis, args: &[&[u8]]) -> Command {
        let slot = SlotId::new(self.config.map.slots_of(group).start);
        Header::new(op, slot.expect("every group has a slot"), at).encode(args)
    }
}

/// A group, each as likely as it has keys.
fn draw(sizes: &[(GroupId, u64)], dice: u64) -> Option<GroupId> {
    let total: u64 = sizes.iter().map(|(_, count)| count).sum();
    let mut number = dice.checked_rem(total)?;
    let drawn = sizes.iter().find(|(_, count)| {
        let here = number < *count;
        number = number.saturating_sub(*count);
        here
    });
    drawn.map(|(group, _)| *group)
}

fn scanned(next: Option<Cursor>, keys: Vec<Reply>) -> Reply {
    let cursor = next.map_or(0, Cursor::number).to_string().into_bytes();
    Reply::Array(vec![Reply::Bulk(cursor), Reply::Array(keys)])
}

/// Why `KEYS` is given up, if it is.
fn too_many(gathering: &Gathering) -> Option<Reply> {
    let limit = match () {
        () if gathering.keys.len() > KEYS_MAX => format!("{KEYS_MAX} keys match"),
        () if gathering.bytes > KEYS_BYTES_MAX => {
            format!("{KEYS_BYTES_MAX} bytes of keys match")
        }
        () if gathering.seen > KEYS_SEEN_MAX => format!("{KEYS_SEEN_MAX} keys exist"),
        () => return None,
    };
    Some(Reply::Error(format!("ERR KEYS is given up: more than {limit}, use SCAN instead")))
}

/// The answer to `FLUSHALL`. If nothing was done for certain, it is the error of one group, which
/// says so; if the groups differ, nobody may take it for certain, and it tells which ones did what.
fn flushed(done: &[GroupId], unknown: &[(GroupId, String)], refused: &[(GroupId, Reply)]) -> Reply {
    if unknown.is_empty() && refused.is_empty() {
        return Reply::OK;
    }
    if let ([], [], [(_, refusal), ..]) = (done, unknown, refused) {
        return refusal.clone();
    }
    const SHOWN_MAX: usize = 16;
    let list = |groups: &mut dyn Iterator<Item = GroupId>| {
        let mut shown: Vec<String> = Vec::new();
        for group in groups {
            if shown.len() == SHOWN_MAX {
                shown.push("...".to_owned());
                break;
            }
            shown.push(group.get().to_string());
        }
        if shown.is_empty() { "none".to_owned() } else { shown.join(",") }
    };
    let why = unknown.first().map(|(_, text)| text.clone()).or_else(|| {
        refused.first().and_then(|(_, reply)| match reply {
            Reply::Error(text) => Some(text.clone()),
            _ => None,
        })
    });
    uncertain(&format!(
        "flushed groups: {}; not flushed: {}; perhaps: {} ({})",
        list(&mut done.iter().copied()),
        list(&mut refused.iter().map(|(group, _)| *group)),
        list(&mut unknown.iter().map(|(group, _)| *group)),
        why.unwrap_or_default(),
    ))
}
