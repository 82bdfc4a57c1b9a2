//! What commands do to a store and what they answer. A function of the log and of nothing else:
//! where the bytes of a value are decides when a command is applied, never what it does.

use coracle_raft::{Bug, LogIndex, Payload, Place, Raft, planted};

use crate::cache::Cache;
use crate::command::decimal::Decimal;
use crate::command::encoding::{Op, View, expire, getex, set, ttl};
use crate::command::{NOT_A_FLOAT, NOT_AN_INTEGER, TOO_LONG, VALUE_BYTES_MAX, parse_integer};
use crate::store::{Item, Key, Located, SMALL_VALUE_BYTES, Shard, Store, Value};
use crate::task::uncertain;
use crate::{Reply, Slice, WallMillis};

/// Bytes of values in one reply: what one frame between nodes holds beside the framing of a million
/// values.
const MGET_BYTES_MAX: usize = 15 << 20;

pub(crate) const FOREIGN_SLOT: &str = "ERR the slot is not in this group";

/// A value that must be read from the disk first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) key: Box<[u8]>,
    pub(crate) located: Located,
}

/// Why a read cannot be answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotYet {
    /// A key is past its expiry by the reader's time but not by the log clock, which must first
    /// move to this time.
    ClockBehind(WallMillis),
    /// These are not in memory.
    Cold(Vec<Wanted>),
    /// The bytes of a value are unknown here for now, see [`crate::lost`].
    Lost,
}

/// The bytes behind the index, as far as they are in memory.
pub(crate) struct Values<'a> {
    pub(crate) cache: &'a mut Cache,
    /// Consensus, which has the newest entries in memory.
    pub(crate) raft: Option<&'a Raft>,
    /// Records that were read from the disk for this command.
    pub(crate) fetched: &'a [(Place, Payload)],
    /// Keys that got a value which is to be written out.
    pub(crate) dirty: &'a mut Vec<Box<[u8]>>,
}

impl Values<'_> {
    /// The value of an item; `Ok(None)` if its record is not what the index says.
    fn slice(&mut self, item: &Item, located: &Located) -> Result<Option<Slice>, Wanted> {
        let (key, place) = (item.key.bytes(), located.place);
        if let Some(slice) = self.recent(item, located) {
            return Ok(Some(slice));
        }
        let fetched = self.fetched.iter().find(|(at, _)| *at == place).map(|(_, payload)| payload);
        match fetched.or_else(|| self.cache.get(place)) {
            Some(payload) => Ok(located.slice(key, payload)),
            None => Err(Wanted { key: key.into(), located: *located }),
        }
    }

    /// The value of an item whose entry consensus still has. The entry of its version may be one
    /// that changed only the expiry; then it is not found this way.
    fn recent(&self, item: &Item, located: &Located) -> Option<Slice> {
        let raft = self.raft.filter(|_| located.arg != Located::MOVED)?;
        let entry = raft.recent_entry(item.version)?;
        located.slice(item.key.bytes(), &entry.payload)
    }

    fn reply(&mut self, item: &Item) -> Result<Reply, Wanted> {
        Ok(match &item.value {
            Value::Memory(bytes) => Reply::Bulk(bytes.clone()),
            Value::Log(located) => match self.slice(item, located)? {
                Some(slice) => Reply::Value(slice),
                None => not_there(),
            },
            Value::Lost(_) => uncertain("its old value cannot be read on this replica"),
        })
    }

    /// A copy of the value's bytes, which are in memory, with room for `len`.
    fn copy(&mut self, item: &Item, len: usize) -> Vec<u8> {
        let mut copy = Vec::with_capacity(len);
        match &item.value {
            Value::Memory(bytes) => copy.extend_from_slice(bytes),
            Value::Log(located) => {
                let slice = self.slice(item, located).ok().flatten();
                let slice = slice.expect("values are read and checked before the command");
                copy.extend_from_slice(slice.bytes());
            }
            Value::Lost(_) => unreachable!("what is unknown is not copied"),
        }
        copy
    }

    /// The value of an item is not needed any more.
    fn forget(&mut self, old: Option<&Item>) {
        if let Some(located) = old.and_then(|old| old.value.located()) {
            self.cache.remove(located.place);
        }
    }
}

fn not_there() -> Reply {
    Reply::error("ERR the log does not hold what the index says")
}

/// A command of the log that is being applied.
#[derive(Clone, Copy)]
pub(crate) struct Command<'a> {
    pub(crate) view: View<'a>,
    pub(crate) payload: &'a Payload,
    /// Where its record stands in the core's log; `None` if it may not be readable there.
    pub(crate) place: Option<Place>,
    pub(crate) index: LogIndex,
    /// What the log clock shows, its own stamp included.
    pub(crate) clock: u64,
    /// Somebody waits for what it answers.
    pub(crate) asked: bool,
}

/// Applies a command to the shard at `place` of the store, or changes nothing if a value must be
/// read first.
pub(crate) fn write(
    store: &mut Store,
    place: usize,
    values: &mut Values<'_>,
    command: Command<'_>,
) -> Result<Reply, Wanted> {
    store.change(place, |shard| {
        if command.index <= shard.base.index && !planted(Bug::EntryAppliedTwice) {
            // What it answered was known where the snapshot was taken.
            let asked = command.asked;
            return Ok(if asked { uncertain("a snapshot holds its result") } else { Reply::OK });
        }
        // Before anything is changed: the command comes again when the value is there.
        command.missing(shard, values)?;
        shard.sweep_some(command.clock);
        for key in command.view.keys() {
            shard.bury(key, command.clock);
        }
        Ok(Write { shard, values, command }.execute())
    })
}

impl Command<'_> {
    /// Whether the command needs the bytes of a value that are not in memory.
    fn missing(&self, shard: &Shard, values: &mut Values<'_>) -> Result<(), Wanted> {
        let needed = match self.view.op {
            Op::Append | Op::SetRange => true,
            Op::GetDel | Op::GetEx => self.asked,
            Op::Set => self.asked && self.view.flags & set::GET != 0,
            _ => false,
        };
        if !needed {
            return Ok(());
        }
        let key = self.view.key();
        let Some(item) = shard.get(key, self.clock) else { return Ok(()) };
        match item.value.located() {
            Some(located) => values.slice(item, &located).map(drop),
            None => Ok(()),
        }
    }
}

/// One write on a shard whose dead items among the command's keys are gone.
struct Write<'a, 'b> {
    shard: &'a mut Shard,
    values: &'a mut Values<'b>,
    command: Command<'a>,
}

impl<'a> Write<'a, '_> {
    fn execute(mut self) -> Reply {
        let Command { view, index, .. } = self.command;
        match view.op {
            Op::Set => self.set(),
            Op::MSet => self.mset(),
            Op::Append => self.append(),
            Op::IncrBy => self.incr_by(),
            Op::SetRange => self.set_range(),
            Op::Del if planted(Bug::UnaskedDeleteSkipped) && !self.command.asked => Reply::OK,
            Op::Del => count(view.keys().filter(|key| self.remove(key)).count()),
            Op::GetDel => {
                let reply = self.old(view.key());
                self.remove(view.key());
                reply
            }
            Op::Expire => self.expire(),
            Op::Persist => {
                let cleared = self.shard.update(view.key(), |item| {
                    let had = item.expires_at != 0;
                    if had {
                        (item.expires_at, item.version) = (0, index);
                    }
                    had
                });
                Reply::Integer(i64::from(cleared == Some(true)))
            }
            Op::GetEx => self.get_ex(),
            Op::MSetNx => {
                if view.keys().any(|key| self.get(key).is_some()) {
                    return Reply::Integer(0);
                }
                self.mset();
                Reply::Integer(1)
            }
            Op::IncrByFloat => self.incr_by_float(),
            Op::Get
            | Op::StrLen
            | Op::Exists
            | Op::MGet
            | Op::GetRange
            | Op::Ttl
            | Op::Type
            | Op::Scan
            | Op::Keys
            | Op::Size
            | Op::RandomKey => Reply::error("ERR a read stands in the log"),
            Op::Clock | Op::Check | Op::Flush => Reply::error("ERR not a command on one shard"),
        }
    }

    fn get(&self, key: &[u8]) -> Option<&Item> {
        self.shard.get(key, self.command.clock)
    }

    /// The value that a key has, as an answer; if nobody asked, anything.
    fn old(&mut self, key: &[u8]) -> Reply {
        match self.shard.get(key, self.command.clock) {
            Some(item) if self.command.asked => {
                self.values.reply(item).unwrap_or_else(|_| not_there())
            }
            _ => Reply::Null,
        }
    }

    /// Puts argument `arg` of the command as the value of `key`.
    fn put(&mut self, key: &[u8], arg: usize, (start, end): (usize, usize), expires_at: u64) {
        let Command { payload, place, index, .. } = self.command;
        let len = end - start;
        let in_log = place.filter(|_| len > SMALL_VALUE_BYTES && arg <= Located::ARG_MAX);
        let value = if let Some(place) = in_log {
            let len = u32::try_from(len).expect("values are bounded");
            Value::Log(Located { place, len, arg: arg as u16 })
        } else {
            Value::Memory(payload.bytes()[start..end].to_vec())
        };
        let is_dirty = value.is_dirty();
        let sum = payload.checksum();
        let item = Item { key: Key::new(key), value, version: index, expires_at, sum };
        let old = self.shard.insert(item);
        self.values.forget(old.as_ref());
        if is_dirty && old.is_none_or(|old| !old.value.is_dirty()) {
            self.values.dirty.push(key.into());
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let old = self.shard.remove(key);
        self.values.forget(old.as_ref());
        old.is_some()
    }

    /// Puts bytes that the command computed as the value of `key`.
    fn put_computed(&mut self, key: &[u8], bytes: Vec<u8>) {
        let Command { payload, index, .. } = self.command;
        let (sum, expires_at) = self.get(key).map_or((0, 0), |old| (old.sum, old.expires_at));
        let sum = crc32c::crc32c_append(sum, &payload.checksum().to_le_bytes());
        let value = Value::Memory(bytes);
        let is_dirty = value.is_dirty();
        let item = Item { key: Key::new(key), value, version: index, expires_at, sum };
        let old = self.shard.insert(item);
        self.values.forget(old.as_ref());
        if is_dirty && old.is_none_or(|old| !old.value.is_dirty()) {
            self.values.dirty.push(key.into());
        }
    }

    /// As [`Write::put_computed`] for a value whose bytes cannot be computed here.
    fn put_lost(&mut self, key: &[u8], len: usize) {
        let Command { payload, index, .. } = self.command;
        self.shard.update(key, |item| {
            item.value = Value::Lost(u32::try_from(len).expect("values are bounded"));
            item.version = index;
            item.sum = crc32c::crc32c_append(item.sum, &payload.checksum().to_le_bytes());
        });
    }

    fn set(&mut self) -> Reply {
        let Command { view, .. } = self.command;
        let (key, has) = (view.key(), |flag| view.flags & flag != 0);
        // A plain SET needs no look at what was there.
        let old = if view.flags == 0 { None } else { self.get(key) };
        let refused = (has(set::NX) && old.is_some()) || (has(set::XX) && old.is_none());
        let kept = if has(set::KEEP_TTL) { old.map_or(0, |old| old.expires_at) } else { 0 };
        let reply = match () {
            () if has(set::GET) => self.old(key),
            () if has(set::COUNT) => Reply::Integer(i64::from(!refused)),
            () if refused => Reply::Null,
            () => Reply::OK,
        };
        if !refused {
            match (view.expires_at, self.live_expiry(view.expires_at)) {
                (0, _) => self.put(key, 1, view.range(1), kept),
                (_, Some(at)) => self.put(key, 1, view.range(1), at),
                (_, None) => drop(self.remove(key)),
            }
        }
        reply
    }

    /// `at` as an item's expiry, or `None` if that time has passed.
    fn live_expiry(&self, at: i64) -> Option<u64> {
        u64::try_from(at).ok().filter(|&at| at > self.command.clock)
    }

    fn mset(&mut self) -> Reply {
        let Command { view, payload, .. } = self.command;
        let mut ranges = view.ranges().enumerate();
        while let (Some((_, (start, end))), Some((arg, value))) = (ranges.next(), ranges.next()) {
            self.put(&payload.bytes()[start..end], arg, value, 0);
        }
        Reply::OK
    }

    fn append(&mut self) -> Reply {
        let Command { view, index, payload, .. } = self.command;
        let (key, suffix) = (view.key(), view.arg(1));
        let Some(old) = self.shard.get(key, self.command.clock) else {
            self.put(key, 1, view.range(1), 0);
            return count(suffix.len());
        };
        let len = old.value.len() + suffix.len();
        if len > VALUE_BYTES_MAX {
            return Reply::error(TOO_LONG);
        }
        if matches!(old.value, Value::Memory(_)) {
            let became_dirty = !old.value.is_dirty();
            let became_dirty = self.shard.update(key, |item| {
                if let Value::Memory(bytes) = &mut item.value {
                    bytes.extend_from_slice(suffix);
                }
                item.version = index;
                item.sum = crc32c::crc32c_append(item.sum, &payload.checksum().to_le_bytes());
                became_dirty && item.value.is_dirty()
            });
            if became_dirty == Some(true) {
                self.values.dirty.push(key.into());
            }
        } else if old.value.is_lost() {
            self.put_lost(key, len);
        } else {
            let mut bytes = self.values.copy(old, len);
            bytes.extend_from_slice(suffix);
            self.put_computed(key, bytes);
        }
        count(len)
    }

    fn incr_by(&mut self) -> Reply {
        let Command { view, .. } = self.command;
        let (key, delta) = (view.key(), view.number(1));
        let number = match self.get(key).map(|old| &old.value) {
            None => Some(0),
            Some(Value::Memory(bytes)) => parse_integer(bytes),
            // Too long for a number.
            Some(Value::Log(_) | Value::Lost(_)) => None,
        };
        let Some(number) = number else { return Reply::error(NOT_AN_INTEGER) };
        let Some(sum) = number.checked_add(delta) else {
            return Reply::error("ERR increment or decrement would overflow");
        };
        self.put_computed(key, sum.to_string().into_bytes());
        Reply::Integer(sum)
    }

    fn incr_by_float(&mut self) -> Reply {
        let Command { view, .. } = self.command;
        let (key, by) = (view.key(), Decimal::parse(view.arg(1)));
        let number = match self.get(key).map(|old| &old.value) {
            None => Some(Decimal::ZERO),
            Some(Value::Memory(bytes)) => Decimal::parse(bytes),
            // Too long for a number.
            Some(Value::Log(_) | Value::Lost(_)) => None,
        };
        let (Some(number), Some(by)) = (number, by) else { return Reply::error(NOT_A_FLOAT) };
        let Some(sum) = number.add(by) else {
            return Reply::error("ERR increment would produce NaN or Infinity");
        };
        let text = sum.to_text().into_bytes();
        self.put_computed(key, text.clone());
        Reply::Bulk(text)
    }

    fn get_ex(&mut self) -> Reply {
        let Command { view, index, .. } = self.command;
        let (key, persist) = (view.key(), view.flags & getex::PERSIST != 0);
        let reply = self.old(key);
        let at = if persist { Some(0) } else { self.live_expiry(view.expires_at) };
        match at {
            Some(at) => {
                self.shard.update(key, |item| {
                    if item.expires_at != at {
                        (item.expires_at, item.version) = (at, index);
                    }
                });
            }
            None => drop(self.remove(key)),
        }
        reply
    }

    fn set_range(&mut self) -> Reply {
        let Command { view, .. } = self.command;
        let (key, bytes) = (view.key(), view.arg(2));
        let old = self.shard.get(key, self.command.clock);
        let len = old.map_or(0, |old| old.value.len());
        if bytes.is_empty() {
            return count(len);
        }
        let start = usize::try_from(view.number(1)).ok();
        let Some(range) = start.and_then(|start| Some(start..start.checked_add(bytes.len())?))
        else {
            return Reply::error("ERR offset is out of range");
        };
        if range.end > VALUE_BYTES_MAX {
            return Reply::error(TOO_LONG);
        }
        let len = len.max(range.end);
        if old.is_some_and(|old| old.value.is_lost()) {
            self.put_lost(key, len);
            return count(len);
        }
        let mut value = match old {
            Some(old) => self.values.copy(old, len),
            None => Vec::with_capacity(len),
        };
        value.resize(len, 0);
        value[range].copy_from_slice(bytes);
        self.put_computed(key, value);
        count(len)
    }

    fn expire(&mut self) -> Reply {
        let Command { view, index, .. } = self.command;
        let (key, at, has) = (view.key(), view.expires_at, |flag| view.flags & flag != 0);
        let Some(old) = self.get(key) else { return Reply::Integer(0) };
        let current = i64::try_from(old.expires_at).unwrap_or(i64::MAX);
        let refused = (has(expire::NX) && current != 0)
            || (has(expire::XX) && current == 0)
            || (has(expire::GT) && (current == 0 || at <= current))
            || (has(expire::LT) && current != 0 && at >= current);
        if refused {
            return Reply::Integer(0);
        }
        match self.live_expiry(at) {
            Some(at) => {
                self.shard.update(key, |item| (item.expires_at, item.version) = (at, index));
            }
            None => drop(self.remove(key)),
        }
        Reply::Integer(1)
    }
}

/// Answers a read at the reader's time `at`.
pub(crate) fn read(
    store: &Store,
    values: &mut Values<'_>,
    view: &View<'_>,
    at: WallMillis,
) -> Result<Reply, NotYet> {
    let Some(shard) = store.shard(view.slot) else {
        return Ok(Reply::error(FOREIGN_SLOT));
    };
    let clock = store.clock();
    let get = |key: &[u8]| match shard.get(key, clock) {
        Some(item) if item.is_dead(at.0) => Err(NotYet::ClockBehind(at)),
        Some(item) if item.value.is_lost() => Err(NotYet::Lost),
        found => Ok(found),
    };
    let cold = |wanted| NotYet::Cold(vec![wanted]);
    let one = || get(view.key());
    Ok(match view.op {
        Op::Get => match one()? {
            Some(item) => values.reply(item).map_err(cold)?,
            None => Reply::Null,
        },
        Op::StrLen => count(one()?.map_or(0, |item| item.value.len())),
        Op::Type => Reply::Status(if one()?.is_some() { "string" } else { "none" }),
        Op::Exists => {
            let mut found = 0;
            for key in view.keys() {
                found += usize::from(get(key)?.is_some());
            }
            count(found)
        }
        Op::MGet => {
            let (mut replies, mut wanted, mut bytes) = (Vec::new(), Vec::new(), 0);
            for key in view.keys() {
                let item = get(key)?;
                bytes += item.map_or(0, |item| item.value.len());
                if bytes > MGET_BYTES_MAX {
                    return Ok(Reply::error(format!(
                        "ERR the values of these keys are too long for one reply, which holds \
                         {MGET_BYTES_MAX} bytes of them; ask for fewer keys at once"
                    )));
                }
                match item.map(|item| values.reply(item)) {
                    None => replies.push(Reply::Null),
                    Some(Ok(reply)) => replies.push(reply),
                    Some(Err(cold)) => wanted.push(cold),
                }
            }
            if !wanted.is_empty() {
                return Err(NotYet::Cold(wanted));
            }
            Reply::Array(replies)
        }
        Op::GetRange => match one()? {
            Some(item) => {
                let range = range_of(item.value.len(), view.number(1), view.number(2));
                match values.reply(item).map_err(cold)? {
                    Reply::Value(slice) => Reply::Value(slice.part(range)),
                    Reply::Bulk(bytes) => Reply::Bulk(bytes[range].to_vec()),
                    other => other,
                }
            }
            None => Reply::Bulk(Vec::new()),
        },
        Op::Ttl => match one()? {
            None => Reply::Integer(-2),
            Some(item) if item.expires_at == 0 => Reply::Integer(-1),
            Some(item) => time_to_live(item.expires_at, view.flags, clock.max(at.0)),
        },
        _ => Reply::error("ERR not a read"),
    })
}

fn count(n: usize) -> Reply {
    Reply::Integer(i64::try_from(n).unwrap_or(i64::MAX))
}

/// The part that Redis' `GETRANGE` gives of a value: both ends are inclusive, negative ones count
/// from the end.
fn range_of(len: usize, start: i64, end: i64) -> std::ops::Range<usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    if start < 0 && end < 0 && start > end {
        return 0..0;
    }
    let from_end = |n: i64| if n < 0 { len.saturating_add(n).max(0) } else { n };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if len == 0 || start > end {
        return 0..0;
    }
    let index = |n: i64| usize::try_from(n).expect("within the value");
    index(start)..index(end) + 1
}

fn time_to_live(expires_at: u64, flags: u8, now: u64) -> Reply {
    let shown =
        if flags & ttl::ABSOLUTE != 0 { expires_at } else { expires_at.saturating_sub(now) };
    let shown = if flags & ttl::MILLIS != 0 { shown } else { shown.saturating_add(500) / 1000 };
    Reply::Integer(i64::try_from(shown).unwrap_or(i64::MAX))
}
