//! The index of one shard as a section of a checkpoint file.
//!
//! Items are of one size, so that they are read in place; keys and the values that are kept in
//! memory stand behind them, in the same order.

use coracle_raft::{GroupId, LogIndex, LogPosition, Place, Term};
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Serialize};

use crate::ShardId;
use crate::store::{Item, Key, Located, Shard, Value};

/// Stands for a value that is in the section itself.
const IN_SECTION: u64 = u64::MAX;

/// What a section says of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) group: GroupId,
    pub(crate) shard: ShardId,
    /// The last entry whose effect is in it.
    pub(crate) at: LogPosition,
    /// The group's log clock there.
    pub(crate) clock: u64,
    /// The oldest segment that any section of its file refers to.
    pub(crate) values_from: u64,
}

#[derive(Archive, Serialize)]
struct Section {
    group: u32,
    shard: u16,
    term: u64,
    index: u64,
    clock: u64,
    values_from: u64,
    items: Vec<Entry>,
    bytes: Vec<u8>,
}

#[derive(Archive, Serialize)]
struct Entry {
    version: u64,
    expires_at: u64,
    place: u64,
    value_len: u32,
    key_len: u32,
    sum: u32,
    arg: u16,
}

/// A section is not what [`encode`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Writes down a shard.
pub(crate) fn encode(about: &About, shard: &Shard, lacks_expiries: bool) -> Vec<u8> {
    let count = shard.totals().keys;
    // Items lie anywhere in memory. A walk that does little else with them asks for many at once;
    // the next one finds them in the caches.
    let beside = |item: &Item| item.key.bytes().len() + item.value.memory_bytes();
    let beside = shard.items().map(beside).sum();
    let mut section = Section {
        group: about.group.get(),
        shard: about.shard.0,
        term: about.at.term.get(),
        index: about.at.index.get(),
        clock: about.clock,
        values_from: about.values_from,
        items: Vec::with_capacity(count),
        bytes: Vec::with_capacity(beside),
    };
    for item in shard.items() {
        let key = item.key.bytes();
        section.bytes.extend_from_slice(key);
        let (place, arg) = match &item.value {
            Value::Memory(value) => {
                section.bytes.extend_from_slice(value);
                (IN_SECTION, 0)
            }
            Value::Log(located) => (located.place.get(), located.arg),
            Value::Lost(_) => unreachable!("a shard that lacks bytes is in no checkpoint"),
        };
        let narrow = |len: usize| u32::try_from(len).expect("keys and values are bounded");
        section.items.push(Entry {
            version: item.version.get(),
            expires_at: if lacks_expiries { 0 } else { item.expires_at },
            place,
            value_len: narrow(item.value.len()),
            key_len: narrow(key.len()),
            sum: item.sum,
            arg,
        });
    }
    let len = size_of::<ArchivedSection>() + count * size_of::<ArchivedEntry>() + beside;
    let room = Vec::with_capacity(len.next_multiple_of(16) + 16);
    rkyv::api::high::to_bytes_in::<_, rancor::Error>(&section, room)
        .expect("writing to memory does not fail")
}

/// What a section is about; the bytes may be any, at any alignment.
pub(crate) fn about(bytes: &[u8]) -> Result<About, Malformed> {
    with(bytes, |section| Ok(section.about()))
}

/// Puts the items of a section into `shard`.
pub(crate) fn decode(bytes: &[u8], shard: &mut Shard) -> Result<(), Malformed> {
    with(bytes, |section| {
        shard.reserve(section.items.len());
        section.each(&mut |item| {
            let fits = shard.takes(item.key.bytes()) && shard.insert(item).is_none();
            if fits { Ok(()) } else { Err(Malformed) }
        })
    })
}

/// Calls `take` with every item of a section.
pub(crate) fn each(
    bytes: &[u8],
    take: &mut dyn FnMut(Item) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    with(bytes, |section| section.each(take))
}

/// Reads a section in place, or a copy of it if it is not aligned.
fn with<R>(
    bytes: &[u8],
    f: impl FnOnce(&ArchivedSection) -> Result<R, Malformed>,
) -> Result<R, Malformed> {
    if (bytes.as_ptr() as usize).is_multiple_of(align_of::<ArchivedSection>()) {
        return f(access(bytes)?);
    }
    let mut aligned = AlignedVec::<16>::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    f(access(&aligned)?)
}

fn access(bytes: &[u8]) -> Result<&ArchivedSection, Malformed> {
    rkyv::access::<ArchivedSection, rancor::Error>(bytes).map_err(|_| Malformed)
}

impl ArchivedSection {
    fn about(&self) -> About {
        About {
            group: GroupId::new(self.group.to_native()),
            shard: ShardId(self.shard.to_native()),
            at: LogPosition {
                term: Term::new(self.term.to_native()),
                index: LogIndex::new(self.index.to_native()),
            },
            clock: self.clock.to_native(),
            values_from: self.values_from.to_native(),
        }
    }

    fn each(
        &self,
        take_item: &mut dyn FnMut(Item) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut rest = self.bytes.as_slice();
        for entry in self.items.iter() {
            let mut take = |len: u32| {
                let (head, tail) = rest.split_at_checked(len as usize)?;
                rest = tail;
                Some(head)
            };
            let key = take(entry.key_len.to_native()).ok_or(Malformed)?;
            let len = entry.value_len.to_native();
            let value = match entry.place.to_native() {
                IN_SECTION => Value::Memory(take(len).ok_or(Malformed)?.to_vec()),
                place => {
                    let place = Place::from_raw(place).ok_or(Malformed)?;
                    Value::Log(Located { place, len, arg: entry.arg.to_native() })
                }
            };
            take_item(Item {
                key: Key::new(key),
                value,
                version: LogIndex::new(entry.version.to_native()),
                expires_at: entry.expires_at.to_native(),
                sum: entry.sum.to_native(),
            })?;
        }
        if rest.is_empty() { Ok(()) } else { Err(Malformed) }
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

    fn about_any() -> About {
        About {
            group: GroupId::new(3),
            shard: ShardId(0),
            at: LogPosition { term: Term::new(4), index: LogIndex::new(99) },
            clock: 1234,
            values_from: 7,
        }
    }

    type Spec = (Vec<u8>, Vec<u8>, u64, Option<(u16, u16)>);

    fn shard_of(specs: &[Spec]) -> Shard {
        let mut shard = blank();
        for (key, value, expires_at, place) in specs {
            let value = match place {
                None => Value::Memory(value.clone()),
                Some((segment, offset)) => Value::Log(Located {
                    place: Place::new(u64::from(*segment), u64::from(*offset) * 8),
                    len: 65 + value.len() as u32,
                    arg: 1,
                }),
            };
            let version = LogIndex::new(key.len() as u64 + 1);
            let (key, expires_at, sum) = (Key::new(key), *expires_at, 77);
            shard.insert(Item { key, value, version, expires_at, sum });
        }
        shard
    }

    proptest! {
        /// The shard that comes out is the one that went in, places of values included.
        #[test]
        fn sections_round_trip(specs: Vec<Spec>, shift in 0usize..16) {
            let shard = shard_of(&specs);
            let bytes = encode(&about_any(), &shard, false);
            let mut moved = vec![0; shift];
            moved.extend_from_slice(&bytes);
            prop_assert_eq!(about(&moved[shift..]), Ok(about_any()));
            let mut back = blank();
            prop_assert_eq!(decode(&moved[shift..], &mut back), Ok(()));
            prop_assert_eq!(back.digest(), shard.digest());
            prop_assert_eq!(back.totals(), shard.totals());
            for item in shard.items() {
                let other = back.peek(item.key.bytes()).unwrap();
                prop_assert_eq!(other.value.located(), item.value.located());
            }
        }

        /// No bytes make it panic.
        #[test]
        fn damaged_sections_never_panic(at: usize, with: u8, cut: usize) {
            let item = |i: u8| (vec![i], vec![i; 9], u64::from(i % 3), None);
            let shard = shard_of(&(0..20).map(item).collect::<Vec<_>>());
            let mut bytes = encode(&about_any(), &shard, false).to_vec();
            let len = bytes.len();
            bytes[at % len] = with;
            bytes.truncate(len - cut % len);
            let _ = (about(&bytes), decode(&bytes, &mut blank()));
        }
    }
}
