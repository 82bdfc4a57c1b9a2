//! What commands do to a store. Deterministic: a function of the store and the log alone.

use coracle_raft::{Bug, LogIndex, Payload, planted};

use crate::command::encoding::{Op, View, expire, set, ttl};
use crate::command::{NOT_AN_INTEGER, TOO_LONG, VALUE_BYTES_MAX, parse_integer};
use crate::store::{Item, Shard, Store, Value};
use crate::{Reply, WallMillis};

const FOREIGN_SLOT: &str = "ERR the slot is not in this group";

/// A read met a key that is past its expiry by the reader's time but not by the log clock: the
/// log clock must first move to this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockBehind(pub(crate) WallMillis);

/// Applies the command of one log entry.
pub(crate) fn write(store: &mut Store, index: LogIndex, payload: &Payload) -> Reply {
    let Some(view) = View::parse(payload.bytes()) else {
        return Reply::error("ERR malformed log entry");
    };
    store.advance_clock(view.at.0);
    if view.op == Op::Clock {
        store.sweep_all(index);
        return Reply::OK;
    }
    let clock = store.clock();
    let reply = store.change(view.slot, |shard| {
        if index <= shard.base && !planted(Bug::EntryAppliedTwice) {
            return Reply::OK;
        }
        shard.sweep_some(clock);
        for key in view.keys() {
            shard.bury(key, clock);
        }
        Write { shard, clock, index, payload, view }.execute()
    });
    reply.unwrap_or_else(|| Reply::error(FOREIGN_SLOT))
}

/// One write on a shard whose dead items among the command's keys are gone.
struct Write<'a> {
    shard: &'a mut Shard,
    clock: u64,
    index: LogIndex,
    payload: &'a Payload,
    view: View<'a>,
}

impl Write<'_> {
    fn execute(mut self) -> Reply {
        match self.view.op {
            Op::Set => self.set(),
            Op::MSet => self.mset(),
            Op::Append => self.append(),
            Op::IncrBy => self.incr_by(),
            Op::SetRange => self.set_range(),
            Op::Del => {
                let shard = self.shard;
                count(self.view.keys().filter(|key| shard.remove(key).is_some()).count())
            }
            Op::GetDel => {
                self.shard.remove(self.view.key()).map_or(Reply::Null, |item| item.value.reply())
            }
            Op::Expire => self.expire(),
            Op::Persist => {
                let index = self.index;
                let cleared = self.shard.update(self.view.key(), |item| {
                    let had = item.expires_at != 0;
                    if had {
                        (item.expires_at, item.version) = (0, index);
                    }
                    had
                });
                Reply::Integer(i64::from(cleared == Some(true)))
            }
            Op::Get | Op::StrLen | Op::Exists | Op::MGet | Op::GetRange | Op::Ttl | Op::Type => {
                Reply::error("ERR a read stands in the log")
            }
            Op::Clock => unreachable!("handled by the caller"),
        }
    }

    fn item(&self, arg: usize, expires_at: u64) -> Item {
        let value = Value::of_entry(self.payload, self.view.range(arg));
        Item { value, version: self.index, expires_at }
    }

    fn set(&mut self) -> Reply {
        let (key, has) = (self.view.key(), |flag| self.view.flags & flag != 0);
        // A plain SET needs no look at what was there.
        let old = if self.view.flags == 0 { None } else { self.shard.get(key, self.clock).item() };
        let refused = (has(set::NX) && old.is_some()) || (has(set::XX) && old.is_none());
        let kept = if has(set::KEEP_TTL) { old.map_or(0, |old| old.expires_at) } else { 0 };
        let reply = match () {
            () if has(set::GET) => old.map_or(Reply::Null, |old| old.value.reply()),
            () if has(set::COUNT) => Reply::Integer(i64::from(!refused)),
            () if refused => Reply::Null,
            () => Reply::OK,
        };
        if !refused {
            match self.view.expires_at {
                0 => self.shard.insert(key, self.item(1, kept)),
                at => match self.live_expiry(at) {
                    Some(at) => self.shard.insert(key, self.item(1, at)),
                    None => self.shard.remove(key),
                },
            };
        }
        reply
    }

    /// `at` as an item's expiry, or `None` if that time has passed.
    fn live_expiry(&self, at: i64) -> Option<u64> {
        u64::try_from(at).ok().filter(|&at| at > self.clock)
    }

    fn mset(&mut self) -> Reply {
        let mut ranges = self.view.ranges();
        while let (Some((start, end)), Some(value)) = (ranges.next(), ranges.next()) {
            let value = Value::of_entry(self.payload, value);
            let item = Item { value, version: self.index, expires_at: 0 };
            self.shard.insert(&self.payload.bytes()[start..end], item);
        }
        Reply::OK
    }

    fn append(&mut self) -> Reply {
        let (key, suffix, index) = (self.view.key(), self.view.arg(1), self.index);
        let appended = self.shard.update(key, |item| {
            let len = item.value.bytes().len() + suffix.len();
            if len > VALUE_BYTES_MAX {
                return Reply::error(TOO_LONG);
            }
            item.value.make_owned().extend_from_slice(suffix);
            item.version = index;
            count(len)
        });
        appended.unwrap_or_else(|| {
            self.shard.insert(key, self.item(1, 0));
            count(suffix.len())
        })
    }

    fn incr_by(&mut self) -> Reply {
        let (key, delta) = (self.view.key(), self.view.number(1));
        let old = self.shard.get(key, self.clock).item();
        let Some(number) = old.map_or(Some(0), |old| parse_integer(old.value.bytes())) else {
            return Reply::error(NOT_AN_INTEGER);
        };
        let Some(sum) = number.checked_add(delta) else {
            return Reply::error("ERR increment or decrement would overflow");
        };
        let expires_at = old.map_or(0, |old| old.expires_at);
        let value = Value::Owned(sum.to_string().into_bytes());
        self.shard.insert(key, Item { value, version: self.index, expires_at });
        Reply::Integer(sum)
    }

    fn set_range(&mut self) -> Reply {
        let (key, bytes, index) = (self.view.key(), self.view.arg(2), self.index);
        let old = self.shard.get(key, self.clock).item();
        let len = old.map_or(0, |old| old.value.bytes().len());
        if bytes.is_empty() {
            return count(len);
        }
        let start = usize::try_from(self.view.number(1)).ok();
        let Some(range) = start.and_then(|start| Some(start..start.checked_add(bytes.len())?))
        else {
            return Reply::error("ERR offset is out of range");
        };
        if range.end > VALUE_BYTES_MAX {
            return Reply::error(TOO_LONG);
        }
        let len = len.max(range.end);
        let overwrite = |value: &mut Vec<u8>| {
            value.resize(len, 0);
            value[range].copy_from_slice(bytes);
        };
        if old.is_none() {
            let mut value = Vec::with_capacity(len);
            overwrite(&mut value);
            let value = Value::Owned(value);
            self.shard.insert(key, Item { value, version: index, expires_at: 0 });
        } else {
            self.shard.update(key, |item| {
                overwrite(item.value.make_owned());
                item.version = index;
            });
        }
        count(len)
    }

    fn expire(&mut self) -> Reply {
        let (key, at, index) = (self.view.key(), self.view.expires_at, self.index);
        let has = |flag| self.view.flags & flag != 0;
        let Some(old) = self.shard.get(key, self.clock).item() else { return Reply::Integer(0) };
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
            None => {
                self.shard.remove(key);
            }
        }
        Reply::Integer(1)
    }
}

/// Answers a read at the reader's time `at`.
pub(crate) fn read(store: &Store, view: &View<'_>, at: WallMillis) -> Result<Reply, ClockBehind> {
    let Some(shard) = store.shard(view.slot) else {
        return Ok(Reply::error(FOREIGN_SLOT));
    };
    let clock = store.clock();
    let get = |key: &[u8]| match shard.get(key, clock).item() {
        Some(item) if item.is_dead(at.0) => Err(ClockBehind(at)),
        found => Ok(found),
    };
    let one = || get(view.key());
    Ok(match view.op {
        Op::Get => one()?.map_or(Reply::Null, |item| item.value.reply()),
        Op::StrLen => count(one()?.map_or(0, |item| item.value.bytes().len())),
        Op::Type => Reply::Status(if one()?.is_some() { "string" } else { "none" }),
        Op::Exists => {
            let mut found = 0;
            for key in view.keys() {
                found += usize::from(get(key)?.is_some());
            }
            count(found)
        }
        Op::MGet => {
            let value = |key| Ok(get(key)?.map_or(Reply::Null, |item| item.value.reply()));
            Reply::Array(view.keys().map(value).collect::<Result<_, ClockBehind>>()?)
        }
        Op::GetRange => match one()? {
            Some(item) => get_range(&item.value, view.number(1), view.number(2)),
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

/// Redis' `GETRANGE`: both ends are inclusive, negative ones count from the end.
fn get_range(value: &Value, start: i64, end: i64) -> Reply {
    let len = i64::try_from(value.bytes().len()).unwrap_or(i64::MAX);
    if start < 0 && end < 0 && start > end {
        return Reply::Bulk(Vec::new());
    }
    let from_end = |n: i64| if n < 0 { len.saturating_add(n).max(0) } else { n };
    let (start, end) = (from_end(start), from_end(end).min(len - 1));
    if len == 0 || start > end {
        return Reply::Bulk(Vec::new());
    }
    let index = |n: i64| usize::try_from(n).expect("within the value");
    let range = index(start)..index(end) + 1;
    match value {
        Value::Shared(slice) => Reply::Value(slice.part(range)),
        Value::Owned(bytes) => Reply::Bulk(bytes[range].to_vec()),
    }
}

fn time_to_live(expires_at: u64, flags: u8, now: u64) -> Reply {
    let shown =
        if flags & ttl::ABSOLUTE != 0 { expires_at } else { expires_at.saturating_sub(now) };
    let shown = if flags & ttl::MILLIS != 0 { shown } else { shown.saturating_add(500) / 1000 };
    Reply::Integer(i64::try_from(shown).unwrap_or(i64::MAX))
}
