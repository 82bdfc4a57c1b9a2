//! Shard snapshots as bytes: what stands in `State` records and in Raft snapshots.
//!
//! A snapshot of a shard is a begin, pieces with items, and an end with a digest, all naming
//! the shard and the index they stand for. Little-endian; each is one payload. Whoever receives
//! one writes long values as records of their own, right before the piece they came in; the piece
//! in its log only has their length.

use std::collections::VecDeque;

use coracle_raft::{Bug, LogIndex, LogPosition, Payload, Place, Term, planted};
use hashbrown::HashMap;

use crate::ShardId;
use crate::apply::Wanted;
use crate::cache::Cache;
use crate::store::{Item, Key, Located, SMALL_VALUE_BYTES, Shard, Value, item_digest};

/// Stands for the length of a value that is a record of its own.
const APART: u32 = u32::MAX;

const BEGIN: u8 = 1;
const ITEMS: u8 = 2;
const END: u8 = 3;
const BASE: u8 = 4;

/// Where and when a shard snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begin {
    pub(crate) shard: ShardId,
    /// The last entry whose effect is in it.
    pub(crate) at: LogPosition,
    /// The group's log clock there.
    pub(crate) clock: u64,
    /// Items that follow.
    pub(crate) count: u64,
}

/// One payload of a snapshot.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    Begin(Begin),
    /// Some items of the shard.
    Items {
        shard: ShardId,
        index: LogIndex,
        items: Items<'a>,
    },
    /// The snapshot is whole if the items add up to this.
    End {
        shard: ShardId,
        index: LogIndex,
        digest: u64,
    },
    /// The group's membership as of the entry its log starts after.
    Base {
        base: LogPosition,
        membership: &'a [u8],
    },
}

/// Items not decoded yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Items<'a> {
    rest: &'a [u8],
}

/// A cursor over bytes from a disk or another node: every step may fail.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }
}

/// An item of a piece.
#[derive(Debug)]
pub(crate) struct PieceItem<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: PieceValue<'a>,
    pub(crate) version: LogIndex,
    pub(crate) expires_at: u64,
    pub(crate) sum: u32,
}

/// The value of an item of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceValue<'a> {
    Here(&'a [u8]),
    /// A record of its own, of this length.
    Apart(u32),
}

impl<'a> PieceItem<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Option<Self> {
        let key = cursor.bytes()?;
        let value = match cursor.u32()? {
            APART => PieceValue::Apart(cursor.u32()?),
            len => PieceValue::Here(cursor.take(len as usize)?),
        };
        let (version, expires_at) = (LogIndex::new(cursor.u64()?), cursor.u64()?);
        Some(Self { key, value, version, expires_at, sum: cursor.u32()? })
    }

    /// The item with its value from where it is.
    pub(crate) fn with(&self, value: Value) -> Item {
        let Self { key, version, expires_at, sum, .. } = *self;
        Item { key: Key::new(key), value, version, expires_at, sum }
    }
}

impl<'a> Items<'a> {
    /// The next item; `Err` if the bytes are no item.
    pub(crate) fn next(&mut self) -> Result<Option<PieceItem<'a>>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor(self.rest);
        let item = PieceItem::read(&mut cursor).ok_or(Malformed)?;
        self.rest = cursor.0;
        Ok(Some(item))
    }
}

/// The bytes are not what [`Piece::parse`] accepts or what a snapshot may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Piece<'a> {
    /// Reads a payload; any bytes may be given.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        Self::read(bytes).ok_or(Malformed)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let mut cursor = Cursor(rest);
        let shard = |cursor: &mut Cursor<'a>| cursor.u16().map(ShardId);
        let position = |cursor: &mut Cursor<'a>| {
            let (term, index) = (Term::new(cursor.u64()?), LogIndex::new(cursor.u64()?));
            Some(LogPosition { term, index })
        };
        let piece = match kind {
            BEGIN => Self::Begin(Begin {
                shard: shard(&mut cursor)?,
                at: position(&mut cursor)?,
                clock: cursor.u64()?,
                count: cursor.u64()?,
            }),
            ITEMS => {
                let (shard, index) = (shard(&mut cursor)?, LogIndex::new(cursor.u64()?));
                return Some(Self::Items { shard, index, items: Items { rest: cursor.0 } });
            }
            END => Self::End {
                shard: shard(&mut cursor)?,
                index: LogIndex::new(cursor.u64()?),
                digest: cursor.u64()?,
            },
            BASE => {
                let base = position(&mut cursor)?;
                return Some(Self::Base { base, membership: cursor.0 });
            }
            _ => return None,
        };
        cursor.0.is_empty().then_some(piece)
    }
}

fn payload(bytes: Vec<u8>) -> Payload {
    let checksum = crc32c::crc32c(&bytes);
    Payload::new(bytes, checksum)
}

impl Begin {
    pub(crate) fn encode(&self) -> Payload {
        let mut bytes = Vec::with_capacity(35);
        bytes.push(BEGIN);
        bytes.extend_from_slice(&self.shard.0.to_le_bytes());
        for word in [self.at.term.get(), self.at.index.get(), self.clock, self.count] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        payload(bytes)
    }
}

/// The end of a shard's snapshot.
pub(crate) fn encode_end(shard: ShardId, index: LogIndex, digest: u64) -> Payload {
    let mut bytes = Vec::with_capacity(19);
    bytes.push(END);
    bytes.extend_from_slice(&shard.0.to_le_bytes());
    bytes.extend_from_slice(&index.get().to_le_bytes());
    bytes.extend_from_slice(&digest.to_le_bytes());
    payload(bytes)
}

/// The membership as of a log's base.
pub(crate) fn encode_base(base: LogPosition, membership: &Payload) -> Payload {
    let mut bytes = Vec::with_capacity(17 + membership.len());
    bytes.push(BASE);
    bytes.extend_from_slice(&base.term.get().to_le_bytes());
    bytes.extend_from_slice(&base.index.get().to_le_bytes());
    bytes.extend_from_slice(membership.bytes());
    payload(bytes)
}

/// Puts together a piece with items.
struct PieceWriter {
    bytes: Vec<u8>,
}

impl PieceWriter {
    fn new(shard: ShardId, index: LogIndex, capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(ITEMS);
        bytes.extend_from_slice(&shard.0.to_le_bytes());
        bytes.extend_from_slice(&index.get().to_le_bytes());
        Self { bytes }
    }

    fn put(&mut self, item: &PieceItem<'_>) {
        let bytes = &mut self.bytes;
        let mut put = |part: &[u8]| {
            let len = u32::try_from(part.len()).expect("keys and values are bounded");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(part);
        };
        put(item.key);
        match item.value {
            PieceValue::Here(value) => put(value),
            PieceValue::Apart(len) => {
                bytes.extend_from_slice(&APART.to_le_bytes());
                bytes.extend_from_slice(&len.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&item.version.get().to_le_bytes());
        bytes.extend_from_slice(&item.expires_at.to_le_bytes());
        bytes.extend_from_slice(&item.sum.to_le_bytes());
    }
}

/// A piece as it stands in the log of whoever received it: its long values are apart.
pub(crate) fn without_long_values(
    shard: ShardId,
    index: LogIndex,
    items: Items<'_>,
) -> Result<Payload, Malformed> {
    let mut writer = PieceWriter::new(shard, index, items.rest.len().min(64 << 10));
    let mut items = items;
    while let Some(mut item) = items.next()? {
        if let PieceValue::Here(value) = item.value
            && value.len() > SMALL_VALUE_BYTES
        {
            item.value = PieceValue::Apart(u32::try_from(value.len()).map_err(|_| Malformed)?);
        }
        writer.put(&item);
    }
    Ok(payload(writer.bytes))
}

/// A shard as it was at one index, on its way out.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) begin: Begin,
    items: VecDeque<Item>,
    digest: u64,
    oldest_segment: Option<u64>,
    /// Values of the next piece that were read from the disk.
    fetched: HashMap<Place, Payload, ahash::RandomState>,
}

impl Frozen {
    /// Takes hold of everything in `shard`: of the index, not of the values.
    pub(crate) fn new(shard: &Shard, at: LogPosition, clock: u64) -> Self {
        let items: VecDeque<Item> = shard.items().cloned().collect();
        let begin = Begin { shard: shard.id, at, clock, count: items.len() as u64 };
        let hasher = ahash::RandomState::with_seeds(at.index.get(), 1, 2, 3);
        let fetched = HashMap::with_hasher(hasher);
        Self { begin, items, digest: 0, oldest_segment: shard.live().oldest(), fetched }
    }

    /// The oldest segment that it refers to.
    pub(crate) const fn oldest_segment(&self) -> Option<u64> {
        self.oldest_segment
    }

    /// What must be read before a piece of about `bytes_max` can be made.
    pub(crate) fn wanted(&self, bytes_max: usize, cache: &Cache) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for item in self.next_items(bytes_max) {
            if let Some(located) = item.value.located() {
                let place = located.place;
                if !self.fetched.contains_key(&place) && cache.peek(place).is_none() {
                    wanted.push(Wanted { key: item.key.bytes().into(), located });
                }
            }
        }
        wanted
    }

    /// A value that was wanted.
    pub(crate) fn fetched(&mut self, place: Place, payload: Payload) {
        self.fetched.insert(place, payload);
    }

    /// A value that was wanted and came from another replica.
    pub(crate) fn repaired(&mut self, key: &[u8], old: Located, value: &[u8]) {
        let item = self.items.iter_mut().find(|item| item.key.bytes() == key);
        if let Some(item) = item.filter(|item| item.value.located() == Some(old)) {
            item.value = Value::Memory(value.to_vec());
        }
    }

    /// The next payload: items of about `bytes_max` but at least one, then the end. `None` if a
    /// value of it is not there.
    pub(crate) fn next(&mut self, bytes_max: usize, cache: &Cache) -> Option<(Payload, bool)> {
        let Begin { shard, at, .. } = self.begin;
        if self.items.is_empty() {
            return Some((encode_end(shard, at.index, self.digest), true));
        }
        let mut writer = PieceWriter::new(shard, at.index, bytes_max.min(1 << 20));
        let count = self.next_items(bytes_max).count();
        let mut digest = self.digest;
        for item in self.items.iter().take(count) {
            let key = item.key.bytes();
            let slice;
            let value = match &item.value {
                Value::Memory(bytes) => bytes,
                Value::Log(located) => {
                    let payload = self.fetched.get(&located.place);
                    slice = located.slice(key, payload.or_else(|| cache.peek(located.place))?)?;
                    slice.bytes()
                }
                Value::Lost(_) => return None,
            };
            let lacks_expiries = planted(Bug::SnapshotLacksExpiries);
            let expires_at = if lacks_expiries { 0 } else { item.expires_at };
            let (value, version, sum) = (PieceValue::Here(value), item.version, item.sum);
            writer.put(&PieceItem { key, value, version, expires_at, sum });
            digest = digest.wrapping_add(item_digest(item, expires_at));
        }
        self.digest = digest;
        self.items.drain(..count);
        self.fetched.clear();
        Some((payload(writer.bytes), false))
    }

    /// The items of the next piece.
    fn next_items(&self, bytes_max: usize) -> impl Iterator<Item = &Item> {
        let mut bytes = 11;
        self.items.iter().take_while(move |item| {
            let before = bytes;
            bytes += 28 + item.key.bytes().len() + item.value.len();
            before < bytes_max.max(12)
        })
    }
}

/// A shard on its way in.
#[derive(Debug)]
pub(crate) struct Thawing {
    pub(crate) begin: Begin,
    shard: Shard,
    digest: u64,
}

impl Thawing {
    /// `blank` is an empty shard of the number that `begin` names.
    pub(crate) fn new(begin: Begin, mut blank: Shard) -> Self {
        (blank.base, blank.base_clock) = (begin.at, begin.clock);
        Self { begin, shard: blank, digest: 0 }
    }

    pub(crate) fn add(&mut self, item: Item) -> Result<(), Malformed> {
        self.digest = self.digest.wrapping_add(item_digest(&item, item.expires_at));
        let fits = self.shard.takes(item.key.bytes()) && self.shard.insert(item).is_none();
        if fits { Ok(()) } else { Err(Malformed) }
    }

    /// What has arrived so far.
    pub(crate) const fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The same, to be changed.
    pub(crate) const fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// The shard, if it is what was frozen.
    pub(crate) fn finish(self, digest: u64) -> Result<Shard, Malformed> {
        let whole = self.digest == digest && self.shard.totals().keys as u64 == self.begin.count;
        if whole { Ok(self.shard) } else { Err(Malformed) }
    }
}

/// Values of received pieces that stand in the log on their own, before the piece that names them.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    values: VecDeque<(Place, Payload)>,
    bytes: usize,
}

impl Apart {
    /// Values that stand between two pieces are at most this many bytes.
    const BYTES_MAX: usize = 64 << 20;

    pub(crate) fn push(&mut self, place: Place, payload: Payload) {
        self.bytes += payload.len();
        self.values.push_back((place, payload));
        while self.bytes > Self::BYTES_MAX {
            let Some((_, oldest)) = self.values.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.bytes = 0;
    }

    /// Where the value of a key is.
    pub(crate) fn find(&self, shard: ShardId, item: &PieceItem<'_>, len: u32) -> Option<Value> {
        let here = self.values.iter().find(|(_, payload)| {
            crate::moved::Moved::parse(payload.bytes()).is_some_and(|moved| {
                moved.shard == shard
                    && moved.key == item.key
                    && moved.version == item.version
                    && moved.value.len() == len as usize
            })
        });
        here.map(|&(place, _)| Value::Log(Located { place, len, arg: Located::MOVED }))
    }
}

#[cfg(test)]
mod tests {
    use ahash::RandomState;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::map_of;

    fn blank() -> Shard {
        Shard::new(ShardId(0), &map_of(1, 1, 1, 1), RandomState::with_seeds(1, 2, 3, 4))
    }

    fn shard_of(items: &[(Vec<u8>, Vec<u8>, u64)]) -> Shard {
        let mut shard = blank();
        for (key, value, expires_at) in items {
            let version = LogIndex::new(value.len() as u64 + 1);
            let (key, value) = (Key::new(key), Value::Memory(value.clone()));
            shard.insert(Item { key, value, version, expires_at: *expires_at, sum: 9 });
        }
        shard
    }

    fn freeze(shard: &Shard, bytes_max: usize) -> Vec<Payload> {
        let at = LogPosition { term: Term::new(3), index: LogIndex::new(99) };
        let cache = Cache::new(0, RandomState::with_seeds(1, 2, 3, 4));
        let mut frozen = Frozen::new(shard, at, 1234);
        let mut pieces = vec![frozen.begin.encode()];
        loop {
            let (piece, done) = frozen.next(bytes_max, &cache).expect("all is in memory");
            pieces.push(piece);
            if done {
                return pieces;
            }
        }
    }

    /// Reads pieces as a receiver does; `Err` if any of them is refused.
    fn thaw<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Shard, Malformed> {
        let mut thawing = None;
        for piece in pieces {
            match Piece::parse(piece)? {
                Piece::Begin(begin) => thawing = Some(Thawing::new(begin, blank())),
                Piece::Items { mut items, .. } => {
                    let thawing = thawing.as_mut().ok_or(Malformed)?;
                    while let Some(item) = items.next()? {
                        let PieceValue::Here(value) = item.value else { return Err(Malformed) };
                        thawing.add(item.with(Value::Memory(value.to_vec())))?;
                    }
                }
                Piece::End { digest, .. } => return thawing.ok_or(Malformed)?.finish(digest),
                Piece::Base { .. } => return Err(Malformed),
            }
        }
        Err(Malformed)
    }

    proptest! {
        /// Whatever the size of the pieces, the shard that comes out is the one that went in.
        #[test]
        fn shards_survive_freezing(
            items: Vec<(Vec<u8>, Vec<u8>, u64)>,
            bytes_max in 1usize..300,
        ) {
            let shard = shard_of(&items);
            let pieces = freeze(&shard, bytes_max);
            let thawed = thaw(pieces.iter().map(Payload::bytes)).unwrap();
            prop_assert_eq!(thawed.digest(), shard.digest());
            prop_assert_eq!(thawed.totals(), shard.totals());
            prop_assert_eq!((thawed.base.index, thawed.base_clock), (LogIndex::new(99), 1234));
        }

        /// One changed byte anywhere never panics, and never gives another shard's content.
        #[test]
        fn damaged_pieces_are_refused(piece in 0usize..100, byte: usize, with: u8) {
            let item = |i: u8| (vec![i], vec![i; 9], u64::from(i % 3));
            let items: Vec<_> = (0..20).map(item).collect();
            let shard = shard_of(&items);
            let mut pieces: Vec<Vec<u8>> =
                freeze(&shard, 100).iter().map(|p| p.bytes().to_vec()).collect();
            let count = pieces.len();
            let target = &mut pieces[piece % count];
            let at = byte % target.len();
            target[at] = with;
            if let Ok(thawed) = thaw(pieces.iter().map(Vec::as_slice)) {
                prop_assert_eq!(thawed.digest(), shard.digest());
            }
        }
    }

    /// Every cut of a snapshot, and any piece left out, is noticed.
    #[test]
    fn incomplete_snapshots_are_refused() {
        let items: Vec<_> = (0..50u8).map(|i| (vec![i], vec![i; 30], 0)).collect();
        let pieces = freeze(&shard_of(&items), 200);
        assert!(pieces.len() > 10);
        for left_out in 0..pieces.len() {
            let rest = pieces.iter().enumerate().filter(|&(i, _)| i != left_out);
            assert!(thaw(rest.map(|(_, p)| p.bytes())).is_err(), "without piece {left_out}");
        }
    }
}
