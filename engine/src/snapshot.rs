//! Shard snapshots as bytes: what stands in `State` records and in Raft snapshots.
//!
//! A snapshot of a shard is a begin, pieces with items, and an end with a digest, all naming
//! the shard and the index they stand for. Little-endian; each is one payload.

use coracle_raft::{Bug, LogIndex, LogPosition, Payload, Term, planted};

use crate::ShardId;
use crate::store::{Item, Shard, Value, item_digest};

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

impl<'a> Items<'a> {
    /// The next item; `Err` if the bytes are no item.
    fn next(&mut self) -> Result<Option<(&'a [u8], Item)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor(self.rest);
        let mut read = || {
            let (key, value) = (cursor.bytes()?, cursor.bytes()?);
            let (version, expires_at) = (LogIndex::new(cursor.u64()?), cursor.u64()?);
            Some((key, Item { value: Value::Owned(value.to_vec()), version, expires_at }))
        };
        let item = read().ok_or(Malformed)?;
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

/// A shard as it was at one index, on its way out.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) begin: Begin,
    items: std::vec::IntoIter<(Box<[u8]>, Item)>,
    digest: u64,
}

impl Frozen {
    /// Takes hold of everything in `shard`. Values are shared, not copied.
    pub(crate) fn new(shard: &Shard, at: LogPosition, clock: u64) -> Self {
        let mut items: Vec<(Box<[u8]>, Item)> =
            shard.items().map(|(key, item)| (key.into(), item.clone())).collect();
        if planted(Bug::CheckpointLacksExpiries) {
            items.iter_mut().for_each(|(_, item)| item.expires_at = 0);
        }
        let begin = Begin { shard: shard.id, at, clock, count: items.len() as u64 };
        Self { begin, items: items.into_iter(), digest: 0 }
    }

    /// The next payload: items of about `bytes_max` but at least one, then the end.
    pub(crate) fn next(&mut self, bytes_max: usize) -> (Payload, bool) {
        let Begin { shard, at, .. } = self.begin;
        if self.items.len() == 0 {
            return (encode_end(shard, at.index, self.digest), true);
        }
        let mut bytes = Vec::with_capacity(self.next_bytes(bytes_max));
        bytes.push(ITEMS);
        bytes.extend_from_slice(&shard.0.to_le_bytes());
        bytes.extend_from_slice(&at.index.get().to_le_bytes());
        for (key, item) in self.items.by_ref() {
            self.digest = self.digest.wrapping_add(item_digest(&key, &item));
            for part in [&key, item.value.bytes()] {
                let len = u32::try_from(part.len()).expect("keys and values are bounded");
                bytes.extend_from_slice(&len.to_le_bytes());
                bytes.extend_from_slice(part);
            }
            bytes.extend_from_slice(&item.version.get().to_le_bytes());
            bytes.extend_from_slice(&item.expires_at.to_le_bytes());
            if bytes.len() >= bytes_max {
                break;
            }
        }
        (payload(bytes), false)
    }

    /// Length of the next payload with items.
    fn next_bytes(&self, bytes_max: usize) -> usize {
        let mut bytes = 11;
        for (key, item) in self.items.as_slice() {
            bytes += 24 + key.len() + item.value.bytes().len();
            if bytes >= bytes_max {
                break;
            }
        }
        bytes
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
        blank.base = begin.at.index;
        Self { begin, shard: blank, digest: 0 }
    }

    pub(crate) fn add(&mut self, mut items: Items<'_>) -> Result<(), Malformed> {
        while let Some((key, item)) = items.next()? {
            self.digest = self.digest.wrapping_add(item_digest(key, &item));
            if self.shard.insert(key, item).is_some() {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    /// The shard, if it is what was frozen.
    pub(crate) fn finish(self, digest: u64) -> Result<Shard, Malformed> {
        let whole = self.digest == digest && self.shard.keys() as u64 == self.begin.count;
        if whole { Ok(self.shard) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use ahash::RandomState;
    use proptest::prelude::*;

    use super::*;
    use crate::store::Store;
    use crate::testing::map_of;

    fn blank() -> Shard {
        Store::blank_shard(ShardId(0), &map_of(1, 1, 1, 1), &RandomState::with_seeds(1, 2, 3, 4))
    }

    fn shard_of(items: &[(Vec<u8>, Vec<u8>, u64)]) -> Shard {
        let mut shard = blank();
        for (key, value, expires_at) in items {
            let version = LogIndex::new(value.len() as u64 + 1);
            let value = Value::Owned(value.clone());
            shard.insert(key, Item { value, version, expires_at: *expires_at });
        }
        shard
    }

    fn freeze(shard: &Shard, bytes_max: usize) -> Vec<Payload> {
        let at = LogPosition { term: Term::new(3), index: LogIndex::new(99) };
        let mut frozen = Frozen::new(shard, at, 1234);
        let mut pieces = vec![frozen.begin.encode()];
        loop {
            let (piece, done) = frozen.next(bytes_max);
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
                Piece::Items { items, .. } => thawing.as_mut().ok_or(Malformed)?.add(items)?,
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
            prop_assert_eq!((thawed.keys(), thawed.bytes()), (shard.keys(), shard.bytes()));
            prop_assert_eq!(thawed.base, LogIndex::new(99));
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
