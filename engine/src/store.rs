//! The keys of one group: shards, versions, expiry, the log clock, memory accounting, digests.
//!
//! Everything here is a function of the log: two replicas that have applied the same entries
//! hold the same bytes. Time is the *log clock*, the largest stamp of any applied entry. A key
//! whose expiry is not after the log clock is dead from that entry on, on every replica; it
//! leaves memory a little later, by a rule that depends on the log alone.

use std::mem;

use ahash::RandomState;
use coracle_raft::{Bug, GroupId, LogIndex, planted};
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;

use crate::expiry::ExpiryIndex;
use crate::{ClusterMap, Reply, SLOT_COUNT, ShardId, Slice, SlotId};

/// Values up to this size are copied out of the log entry, so that the entry's bytes can go.
const SMALL_VALUE_BYTES: usize = 64;
/// What an item costs beside its key and value: the table slot, two allocations.
const ITEM_OVERHEAD_BYTES: usize = 112;
/// What an expiry costs beside a second copy of the key.
const EXPIRY_OVERHEAD_BYTES: usize = 48;
/// Due keys removed by each entry from the shard it touches.
const SWEEP_KEYS_PER_ENTRY: usize = 4;
/// Due keys removed by a clock entry from each shard.
const SWEEP_KEYS_PER_CLOCK: usize = 64;

/// The bytes of a key.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A part of the log entry that set it.
    Shared(Slice),
    /// Small or computed.
    Owned(Vec<u8>),
}

impl Value {
    /// The value at `start..end` of an entry's payload.
    pub(crate) fn of_entry(payload: &coracle_raft::Payload, (start, end): (usize, usize)) -> Self {
        if end - start <= SMALL_VALUE_BYTES {
            Self::Owned(payload.bytes()[start..end].to_vec())
        } else {
            Self::Shared(Slice::new(payload.clone(), start, end))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(slice) => slice.bytes(),
            Self::Owned(bytes) => bytes,
        }
    }

    pub(crate) fn reply(&self) -> Reply {
        match self {
            Self::Shared(slice) => Reply::Value(slice.clone()),
            Self::Owned(bytes) => Reply::Bulk(bytes.clone()),
        }
    }

    /// The bytes for changing them; a shared value is copied out first.
    pub(crate) fn make_owned(&mut self) -> &mut Vec<u8> {
        if let Self::Shared(slice) = self {
            *self = Self::Owned(slice.bytes().to_vec());
        }
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(_) => unreachable!("made owned above"),
        }
    }
}

/// What the store holds for a key.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) value: Value,
    /// Index of the entry that last changed it.
    pub(crate) version: LogIndex,
    /// Milliseconds of the log clock; 0: never.
    pub(crate) expires_at: u64,
}

impl Item {
    pub(crate) const fn is_dead(&self, clock: u64) -> bool {
        self.expires_at != 0 && self.expires_at <= clock
    }
}

/// What looking up a key finds.
pub(crate) enum Lookup<'a> {
    Missing,
    Here(&'a Item),
}

impl<'a> Lookup<'a> {
    pub(crate) const fn item(self) -> Option<&'a Item> {
        match self {
            Self::Missing => None,
            Self::Here(item) => Some(item),
        }
    }
}

/// The keys of one shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    items: HashMap<Box<[u8]>, Item, RandomState>,
    expiry: ExpiryIndex,
    first_slot: u16,
    slot_keys: Vec<u32>,
    bytes: usize,
    /// Keys removed because they were due.
    expired: u64,
    /// Entries up to here are already in (the shard came from a snapshot).
    pub(crate) base: LogIndex,
}

impl Shard {
    fn new(id: ShardId, map: &ClusterMap, hasher: RandomState) -> Self {
        let slots = slots_of(id, map.shard_count());
        Self {
            id,
            items: HashMap::with_hasher(hasher),
            expiry: ExpiryIndex::default(),
            first_slot: slots.start,
            slot_keys: vec![0; slots.len()],
            bytes: 0,
            expired: 0,
            base: LogIndex::ZERO,
        }
    }

    /// What `key` holds when the log clock shows `clock`.
    pub(crate) fn get(&self, key: &[u8], clock: u64) -> Lookup<'_> {
        match self.items.get(key) {
            Some(item) if !item.is_dead(clock) => Lookup::Here(item),
            _ => Lookup::Missing,
        }
    }

    /// Removes `key` if it is dead, so that what follows sees only live items.
    pub(crate) fn bury(&mut self, key: &[u8], clock: u64) {
        if !self.expiry.is_empty() && self.items.get(key).is_some_and(|item| item.is_dead(clock)) {
            self.remove(key);
            self.expired += 1;
        }
    }

    /// Puts an item in the place of whatever was there.
    pub(crate) fn insert(&mut self, key: &[u8], item: Item) -> Option<Item> {
        let (new_bytes, to) = (item_bytes(key, &item), item.expires_at);
        let old = match self.items.entry_ref(key) {
            EntryRef::Occupied(mut place) => Some(mem::replace(place.get_mut(), item)),
            EntryRef::Vacant(place) => {
                place.insert_with_key(key.into(), item);
                None
            }
        };
        match &old {
            Some(old) => self.bytes -= item_bytes(key, old),
            None => self.count(key, 1),
        }
        self.bytes += new_bytes;
        let from = old.as_ref().map_or(0, |old| old.expires_at);
        self.expiry.change(key, from, to);
        old
    }

    /// Takes an item out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Item> {
        let (key, item) = self.items.remove_entry(key)?;
        self.bytes -= item_bytes(&key, &item);
        self.expiry.change(&key, item.expires_at, 0);
        self.count(&key, u32::MAX);
        Some(item)
    }

    /// Changes an item in place; `None` if there is none.
    pub(crate) fn update<R>(&mut self, key: &[u8], f: impl FnOnce(&mut Item) -> R) -> Option<R> {
        let item = self.items.get_mut(key)?;
        let (bytes, from) = (item_bytes(key, item), item.expires_at);
        let result = f(item);
        let to = item.expires_at;
        self.bytes = self.bytes - bytes + item_bytes(key, item);
        self.expiry.change(key, from, to);
        Some(result)
    }

    /// What each entry does first in the shard it touches: removes some due keys.
    pub(crate) fn sweep_some(&mut self, clock: u64) {
        self.sweep(clock, SWEEP_KEYS_PER_ENTRY);
    }

    /// Removes up to `max` keys that are due.
    fn sweep(&mut self, clock: u64, max: usize) {
        for _ in 0..max {
            let Some(key) = self.expiry.first_due(clock) else { return };
            let key: Box<[u8]> = key.into();
            self.remove(&key);
            self.expired += 1;
        }
    }

    /// Adds what `other` holds beyond this: only a planted bug does that.
    fn keep_keys_of(&mut self, other: &Self) {
        for (key, item) in other.items() {
            if !self.items.contains_key(key) {
                self.insert(key, item.clone());
            }
        }
    }

    pub(crate) fn keys(&self) -> usize {
        self.items.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = (&[u8], &Item)> {
        self.items.iter().map(|(key, item)| (&**key, item))
    }

    /// Sum over all items of a hash of everything that replicas must agree on.
    pub(crate) fn digest(&self) -> u64 {
        self.items().fold(0, |sum, (key, item)| sum.wrapping_add(item_digest(key, item)))
    }

    /// Adds `change` (wrapping) to the number of keys in the slot of `key`.
    fn count(&mut self, key: &[u8], change: u32) {
        let slot = SlotId::of_key(key).get();
        let place = usize::from(slot).checked_sub(usize::from(self.first_slot));
        if let Some(count) = place.and_then(|place| self.slot_keys.get_mut(place)) {
            *count = count.wrapping_add(change);
        }
    }
}

/// The keys of one group.
#[derive(Debug)]
pub(crate) struct Store {
    shards: Vec<Shard>,
    shard_count: u16,
    first_shard: u16,
    clock: u64,
    /// Sums over the shards.
    bytes: usize,
    keys: usize,
    /// Keys removed because they were due, from this process' start on.
    expired: u64,
}

impl Store {
    /// An empty store of the shards that `map` gives to `group`.
    pub(crate) fn new(group: GroupId, map: &ClusterMap, hasher: &RandomState) -> Self {
        let ids: Vec<ShardId> = shards_of(group, map).collect();
        let first_shard = ids.first().map_or(0, |id| id.0);
        let shards = ids.into_iter().map(|id| Shard::new(id, map, hasher.clone())).collect();
        let shard_count = map.shard_count();
        Self { shards, shard_count, first_shard, clock: 0, bytes: 0, keys: 0, expired: 0 }
    }

    /// The largest stamp of any applied entry.
    pub(crate) const fn clock(&self) -> u64 {
        self.clock
    }

    pub(crate) fn advance_clock(&mut self, stamp: u64) {
        self.clock = self.clock.max(stamp);
    }

    pub(crate) fn shard(&self, slot: SlotId) -> Option<&Shard> {
        self.shards.get(self.place(slot)?)
    }

    /// Changes a shard through `f`; `None` if the slot is not in this group.
    pub(crate) fn change<R>(&mut self, slot: SlotId, f: impl FnOnce(&mut Shard) -> R) -> Option<R> {
        let place = self.place(slot)?;
        let shard = self.shards.get_mut(place)?;
        let (bytes, keys, expired) = (shard.bytes(), shard.keys(), shard.expired);
        let result = f(shard);
        self.bytes = self.bytes - bytes + shard.bytes();
        self.keys = self.keys - keys + shard.keys();
        self.expired += shard.expired - expired;
        Some(result)
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// What a clock entry at `index` does: removes due keys of every shard that has not got
    /// the effect of this entry already.
    pub(crate) fn sweep_all(&mut self, index: LogIndex) {
        for shard in &mut self.shards {
            if index > shard.base {
                let (bytes, keys, expired) = (shard.bytes(), shard.keys(), shard.expired);
                shard.sweep(self.clock, SWEEP_KEYS_PER_CLOCK);
                self.bytes = self.bytes - bytes + shard.bytes();
                self.keys = self.keys - keys + shard.keys();
                self.expired += shard.expired - expired;
            }
        }
    }

    /// Up to `max` live keys of a slot, in any order. Looks at the keys of the whole shard, until
    /// it has enough.
    pub(crate) fn keys_of_slot(&self, slot: SlotId, max: usize) -> Vec<Vec<u8>> {
        let Some(shard) = self.shard(slot) else { return Vec::new() };
        let held = usize::try_from(self.keys_in_slot(slot)).unwrap_or(usize::MAX);
        let in_slot = shard.items().filter(|(key, _)| SlotId::of_key(key) == slot);
        let live = in_slot.take(held).filter(|(_, item)| !item.is_dead(self.clock));
        live.take(max).map(|(key, _)| key.to_vec()).collect()
    }

    /// The earliest expiry of any key.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.expiry.next()).min()
    }

    pub(crate) const fn keys(&self) -> u64 {
        self.keys as u64
    }

    /// Keys removed because they were due, by every way this replica has applied.
    pub(crate) const fn expired(&self) -> u64 {
        self.expired
    }

    pub(crate) fn keys_with_expiry(&self) -> u64 {
        self.shards.iter().map(|shard| shard.expiry.len() as u64).sum()
    }

    pub(crate) fn keys_in_slot(&self, slot: SlotId) -> u64 {
        let Some(shard) = self.shard(slot) else { return 0 };
        let place = slot.get().checked_sub(shard.first_slot).map(usize::from);
        place.and_then(|place| shard.slot_keys.get(place)).map_or(0, |&count| u64::from(count))
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Order-independent digest of all items.
    pub(crate) fn digest(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.digest()))
    }

    /// An empty shard to fill from a snapshot.
    pub(crate) fn blank_shard(id: ShardId, map: &ClusterMap, hasher: &RandomState) -> Shard {
        Shard::new(id, map, hasher.clone())
    }

    /// Puts a shard filled from a snapshot in place of the one with the same number.
    /// Returns false if this store has no such shard.
    pub(crate) fn replace_shard(&mut self, mut shard: Shard) -> bool {
        match self.shards.iter_mut().find(|old| old.id == shard.id) {
            Some(old) => {
                if planted(Bug::SnapshotKeepsOldKeys) {
                    shard.keep_keys_of(old);
                }
                self.bytes = self.bytes - old.bytes() + shard.bytes();
                self.keys = self.keys - old.keys() + shard.keys();
                *old = shard;
                true
            }
            None => false,
        }
    }

    /// Sets the log clock, for a store filled from snapshots.
    pub(crate) const fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }

    fn place(&self, slot: SlotId) -> Option<usize> {
        slot.shard(self.shard_count).0.checked_sub(self.first_shard).map(usize::from)
    }
}

/// The shards that `map` gives to `group`: a contiguous range.
pub(crate) fn shards_of(group: GroupId, map: &ClusterMap) -> impl Iterator<Item = ShardId> {
    (0..map.shard_count()).map(ShardId).filter(move |&shard| map.group_of(shard) == group)
}

fn slots_of(shard: ShardId, shard_count: u16) -> std::ops::Range<u16> {
    let start = |shard: u32| {
        let slot = (shard * u32::from(SLOT_COUNT)).div_ceil(u32::from(shard_count));
        u16::try_from(slot).expect("at most 16384")
    };
    start(u32::from(shard.0))..start(u32::from(shard.0) + 1)
}

fn item_bytes(key: &[u8], item: &Item) -> usize {
    let expiry = if item.expires_at == 0 { 0 } else { EXPIRY_OVERHEAD_BYTES + key.len() };
    ITEM_OVERHEAD_BYTES + key.len() + item.value.bytes().len() + expiry
}

/// A hash that is the same in every build and on every machine.
pub(crate) fn item_digest(key: &[u8], item: &Item) -> u64 {
    let numbers = mix(item.version.get() ^ 0x9E37_79B9_7F4A_7C15, item.expires_at ^ KEY_SEED);
    mix(stable_hash(key, KEY_SEED), stable_hash(item.value.bytes(), numbers) | 1)
}

const KEY_SEED: u64 = 0xD6E8_FEB8_6659_FD93;

/// Multiplies into 128 bits and folds.
const fn mix(a: u64, b: u64) -> u64 {
    let wide = (a as u128) * (b as u128);
    (wide as u64) ^ ((wide >> 64) as u64)
}

fn stable_hash(bytes: &[u8], seed: u64) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mut hash = seed ^ mix(bytes.len() as u64 ^ 0xA076_1D64_78BD_642F, KEY_SEED);
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        let (low, high) = (word(&chunk[..8]), word(&chunk[8..]));
        hash = mix(low ^ 0xE703_7ED1_A0B4_28DB ^ hash, high ^ 0x8EBC_6AF0_9C88_C6E3);
    }
    let (low, high) = chunks.remainder().split_at(chunks.remainder().len().min(8));
    mix(word(low) ^ 0x5899_65CC_7537_4CC3 ^ hash, word(high) ^ 0x1D8E_4E27_C47D_124F)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::map_of;

    fn item(value: &[u8], expires_at: u64) -> Item {
        Item { value: Value::Owned(value.to_vec()), version: LogIndex::new(3), expires_at }
    }

    fn store() -> Store {
        let map = map_of(1, 1, 1, 1);
        Store::new(GroupId::new(0), &map, &RandomState::with_seeds(1, 2, 3, 4))
    }

    /// Slots of all shards cover 0..16384 once, for even and odd shard counts.
    #[test]
    fn slots_of_shards_partition_the_slots() {
        for shard_count in [1u16, 3, 10, 1000, 1024, 16384] {
            for shard in 0..shard_count {
                for slot in slots_of(ShardId(shard), shard_count) {
                    let slot = SlotId::new(slot).unwrap();
                    assert_eq!(slot.shard(shard_count).0, shard, "{shard_count} shards");
                }
            }
            let total: usize =
                (0..shard_count).map(|s| slots_of(ShardId(s), shard_count).len()).sum();
            assert_eq!(total, 16384, "{shard_count} shards");
        }
    }

    /// Bytes, slot counts and the expiry index follow every change and return to zero.
    #[test]
    fn accounting_returns_to_zero() {
        let mut store = store();
        let slot = SlotId::of_key(b"k");
        store.change(slot, |shard| {
            shard.insert(b"k", item(b"one", 0));
            shard.insert(b"k", item(b"three", 50));
            shard.update(b"k", |item| {
                item.value.make_owned().extend_from_slice(b"!!");
                item.expires_at = 70;
            });
        });
        let shard = store.shard(slot).unwrap();
        assert_eq!(shard.bytes(), ITEM_OVERHEAD_BYTES + 1 + 7 + EXPIRY_OVERHEAD_BYTES + 1);
        assert!(shard.get(b"k", 69).item().is_some());
        assert!(shard.get(b"k", 70).item().is_none(), "dead from its time on");
        assert_eq!((store.keys_in_slot(slot), store.next_expiry()), (1, Some(70)));
        store.advance_clock(70);
        store.sweep_all(LogIndex::new(1));
        assert_eq!((store.bytes(), store.keys(), store.keys_in_slot(slot)), (0, 0, 0));
        assert_eq!((store.next_expiry(), store.digest()), (None, 0));
        assert_eq!(store.expired(), 1);
        store.change(slot, |shard| {
            shard.insert(b"k", item(b"buried", 70));
            shard.bury(b"k", 69);
            shard.bury(b"k", 70);
            shard.insert(b"k", item(b"removed", 99));
            shard.remove(b"k");
        });
        assert_eq!((store.expired(), store.keys()), (2, 0), "only what was due counts");
    }

    /// Keys of one slot among those of its shard (redis `cluster.c`, "GETKEYSINSLOT").
    #[test]
    fn keys_of_a_slot_are_found_within_its_shard() {
        let mut store = store();
        for n in 0..300 {
            let key = format!("k{n}").into_bytes();
            store.change(SlotId::of_key(&key), |shard| shard.insert(&key, item(b"v", 0)));
        }
        let slot = SlotId::of_key(b"t");
        for (key, expires_at) in [(b"{t}a", 0), (b"{t}b", 9), (b"{t}c", 0), (b"{t}d", 0)] {
            store.change(slot, |shard| shard.insert(key, item(b"v", expires_at)));
        }
        store.advance_clock(9);
        for (max, want) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (usize::MAX, 3)] {
            let mut keys = store.keys_of_slot(slot, max);
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), want, "{max}");
            assert!(keys.iter().all(|key| key.starts_with(b"{t}") && key != b"{t}b"), "{keys:?}");
        }
        assert!(store.keys_of_slot(SlotId::of_key(b"empty"), 9).is_empty());
    }

    /// The digest sees key, value, version and expiry, and not the order of insertion.
    #[test]
    fn digest_covers_every_field_and_no_order() {
        let of = |pairs: &[(&[u8], Item)]| {
            let mut store = store();
            for (key, item) in pairs {
                store.change(SlotId::of_key(key), |shard| shard.insert(key, item.clone()));
            }
            store.digest()
        };
        let (a, b) = ((&b"a"[..], item(b"1", 0)), (&b"b"[..], item(b"2", 9)));
        let base = of(&[a.clone(), b.clone()]);
        assert_eq!(base, of(&[b.clone(), a.clone()]));
        let mut newer = item(b"1", 0);
        newer.version = LogIndex::new(4);
        for other in [item(b"2", 0), item(b"1", 1), item(b"1\0", 0), newer] {
            assert_ne!(base, of(&[(&b"a"[..], other), b.clone()]));
        }
        assert_ne!(base, of(&[(&b"A"[..], item(b"1", 0)), b]));
    }
}
