//! Walking over the keys of one group: what `SCAN`, `KEYS`, `RANDOMKEY` and `DBSIZE` ask it.
//!
//! A key that is there from the first call of a scan to the last is returned: keys are walked slot
//! by slot, and within a slot by their positions, which never change (`store/table.rs`). A call
//! looks at a bounded number of slots, keys and bytes.

use coracle_raft::{Bug, planted};

use crate::apply::NotYet;
use crate::command::encoding::{Op, View, op_of};
use crate::command::parse_integer;
use crate::glob;
use crate::store::{Item, POSITION_BITS, Store};
use crate::{Reply, SLOT_COUNT, SlotId, WallMillis};

/// Keys that one part looks at.
pub(crate) const PART_KEYS_MAX: usize = 1000;
/// Slots that one part looks at.
const PART_SLOTS_MAX: usize = 4096;
/// Bytes of keys in the answer of one part, but for the last one.
const PART_BYTES_MAX: usize = 256 << 10;
/// Steps of the pattern in one part, and so on one key.
const PART_FUEL: u32 = 1_000_000;
/// Keys of one position, which come together: there are two in a slot of a million, unless
/// somebody makes them on purpose.
const TWINS_MAX: usize = 10_000;
/// Bytes of such keys.
const TWINS_BYTES_MAX: usize = 4 << 20;
/// Keys that are tried until one is found that has not expired.
const DRAWS_MAX: u64 = 64;

/// Where a scan goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) slot: SlotId,
    pub(crate) position: u64,
}

impl Cursor {
    /// The beginning of a slot; `None` behind the last one.
    pub(crate) fn at_slot(slot: u16) -> Option<Self> {
        SlotId::new(slot).map(|slot| Self { slot, position: 0 })
    }

    /// Behind a position of a slot.
    fn behind(slot: SlotId, position: u64) -> Option<Self> {
        let position = position + 1;
        if position >> POSITION_BITS == 0 {
            return Some(Self { slot, position });
        }
        Self::at_slot(slot.get() + 1)
    }

    /// What clients are told, below 2^53; 0 is the beginning.
    pub(crate) fn number(self) -> u64 {
        (u64::from(self.slot.get()) << POSITION_BITS) | self.position
    }

    pub(crate) fn from_number(number: u64) -> Option<Self> {
        let slot = u16::try_from(number >> POSITION_BITS).ok().and_then(SlotId::new)?;
        Some(Self { slot, position: number & ((1 << POSITION_BITS) - 1) })
    }

    /// What a client sends.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        Self::from_number(u64::try_from(parse_integer(text)?).ok()?)
    }
}

/// One part of a scan, as its group answers it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Where to go on in this group; `None` at its end.
    pub(crate) next: Option<Cursor>,
    /// Keys that were looked at.
    pub(crate) seen: u64,
    /// Those that are meant.
    pub(crate) keys: Vec<Reply>,
}

impl Part {
    fn reply(self) -> Reply {
        let number = |n: u64| Reply::Integer(i64::try_from(n).unwrap_or(i64::MAX));
        let next = self.next.map_or(Reply::Integer(-1), |next| number(next.number()));
        Reply::Array(vec![next, number(self.seen), Reply::Array(self.keys)])
    }

    /// Reads what a group answered; gives back what is no such answer.
    pub(crate) fn parse(reply: Reply) -> Result<Self, Reply> {
        let Reply::Array(fields) = reply else { return Err(reply) };
        match <[Reply; 3]>::try_from(fields) {
            Ok([Reply::Integer(next), Reply::Integer(seen), Reply::Array(keys)]) => {
                let next = u64::try_from(next).ok().and_then(Cursor::from_number);
                Ok(Self { next, seen: u64::try_from(seen).unwrap_or(0), keys })
            }
            _ => Err(Reply::error("ERR a node of another version answers")),
        }
    }
}

/// Answers a command on the whole group at the reader's time `at`. `waits` says which shards, by
/// their places, are behind; the one of the command's slot is not.
pub(crate) fn read(
    store: &Store,
    waits: impl Fn(usize) -> bool,
    view: &View<'_>,
    at: WallMillis,
) -> Result<Reply, NotYet> {
    match view.op {
        Op::Size => Ok(Reply::Integer(i64::try_from(store.keys()).unwrap_or(i64::MAX))),
        Op::RandomKey => random_key(store, view.number(0) as u64, at),
        Op::Scan => scan(store, waits, view, at),
        _ => Ok(Reply::error("ERR not a read of a group")),
    }
}

/// Whether an item can be shown: `Err` if it is past its time by the reader's clock only.
fn shown(item: &Item, clock: u64, at: WallMillis) -> Result<bool, NotYet> {
    match item.is_dead(clock) {
        true => Ok(false),
        false if item.is_dead(at.0) => Err(NotYet::ClockBehind(at)),
        false => Ok(true),
    }
}

/// Each key is as likely as any other, as long as few have expired and are not removed.
fn random_key(store: &Store, dice: u64, at: WallMillis) -> Result<Reply, NotYet> {
    let count = store.keys();
    for draw in 0..DRAWS_MAX.min(count) {
        let number = dice.wrapping_add(draw.wrapping_mul(0x9E37_79B9_7F4A_7C15)) % count;
        let Some(item) = usize::try_from(number).ok().and_then(|n| store.nth(n)) else { break };
        if shown(item, store.clock(), at)? {
            return Ok(Reply::Bulk(item.key.bytes().to_vec()));
        }
    }
    Ok(Reply::Null)
}

/// What a part of a scan may still look at.
struct Walk<'a> {
    store: &'a Store,
    at: WallMillis,
    pattern: Option<&'a [u8]>,
    count: usize,
    part: Part,
    bytes: usize,
    fuel: u32,
}

fn scan(
    store: &Store,
    waits: impl Fn(usize) -> bool,
    view: &View<'_>,
    at: WallMillis,
) -> Result<Reply, NotYet> {
    let count = usize::try_from(view.number(1)).unwrap_or(0).clamp(1, PART_KEYS_MAX);
    let pattern = (view.arg_count() > 2).then(|| view.arg(2));
    let part = Part { next: None, seen: 0, keys: Vec::new() };
    let mut walk = Walk { store, at, pattern, count, part, bytes: 0, fuel: PART_FUEL };
    let first = view.slot.get();
    let mut from = u64::try_from(view.number(0)).unwrap_or(u64::MAX);
    for number in first..SLOT_COUNT {
        let Some(slot) = SlotId::new(number) else { break };
        let Some(place) = store.place(slot) else { break };
        let far = usize::from(number - first) >= PART_SLOTS_MAX;
        if number > first && (far || walk.is_full() || waits(place)) {
            walk.part.next = Some(Cursor { slot, position: 0 });
            break;
        }
        let Some(shard) = store.shard(slot) else { break };
        let table = shard.slot(slot).filter(|table| !table.is_empty()).into_iter();
        match walk.slot(slot, table.flat_map(|table| table.walk(from)))? {
            End::Slot => {}
            End::Part => break,
            End::Error(text) => return Ok(Reply::error(text)),
        }
        from = 0;
    }
    Ok(walk.part.reply())
}

enum End {
    /// Everything in the slot was looked at.
    Slot,
    /// The part is full; where to go on is set.
    Part,
    Error(&'static str),
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.part.seen as usize >= self.count || self.bytes >= PART_BYTES_MAX
    }

    fn slot<'a>(
        &mut self,
        slot: SlotId,
        items: impl Iterator<Item = (u64, &'a Item)>,
    ) -> Result<End, NotYet> {
        let (mut last, mut twins) = (None, 0);
        for (position, item) in items {
            twins = if last == Some(position) { twins + 1 } else { 0 };
            if let Some(last) = last.filter(|&last| last != position && self.is_full()) {
                self.part.next = Cursor::behind(slot, last);
                return Ok(End::Part);
            }
            if twins >= TWINS_MAX || (twins > 0 && self.bytes >= TWINS_BYTES_MAX) {
                return Ok(End::Error("ERR too many keys share one position of the scan"));
            }
            match self.meant(item) {
                None if self.part.seen == 0 || twins > 0 => {
                    return Ok(End::Error("ERR the pattern takes too long on one key"));
                }
                // With new fuel it may do.
                None => {
                    self.part.next = Some(Cursor { slot, position });
                    return Ok(End::Part);
                }
                Some(true) if shown(item, self.store.clock(), self.at)? => {
                    let key = item.key.bytes();
                    self.bytes += key.len();
                    self.part.keys.push(Reply::Bulk(key.to_vec()));
                }
                Some(_) => {}
            }
            self.part.seen += 1;
            last = Some(position);
        }
        Ok(End::Slot)
    }

    /// Whether the pattern fits; `None` without fuel.
    fn meant(&mut self, item: &Item) -> Option<bool> {
        let Some(pattern) = self.pattern else { return Some(true) };
        glob::matches(pattern, item.key.bytes(), &mut self.fuel)
    }
}

/// Whether a read is not to be confirmed by a quorum: only a planted bug says so.
pub(crate) fn is_unconfirmed_read(bytes: &[u8]) -> bool {
    planted(Bug::ScanUnconfirmed) && op_of(bytes) == Some(Op::Scan)
}
