//! The keys of one group: shards, versions, expiry, the log clock, accounting, digests.
//!
//! Everything here but the places of values is a function of the log: two replicas that have
//! applied the same entries hold the same. Time is the *log clock*, the largest stamp of any
//! applied entry. A key whose expiry is not after the log clock is dead from that entry on, on
//! every replica; it leaves memory a little later, by a rule that depends on the log alone.

mod digest;
mod graveyard;
mod item;
mod live;
mod shard;
mod table;
mod warm;

use ahash::RandomState;
use coracle_raft::{Bug, GroupId, LogIndex, planted};

pub(crate) use self::digest::item_digest;
pub(crate) use self::graveyard::Graveyard;
pub(crate) use self::item::{Item, Key, Located, SMALL_VALUE_BYTES, Value};
pub(crate) use self::shard::{Shard, Totals};
pub(crate) use self::table::POSITION_BITS;
pub(crate) use self::warm::WARM_KEYS;
use crate::{ClusterMap, SLOT_COUNT, ShardId, SlotId};

/// The keys of one group.
#[derive(Debug)]
pub(crate) struct Store {
    shards: Vec<Shard>,
    shard_count: u16,
    first_shard: u16,
    clock: u64,
    /// Sums over the shards.
    totals: Totals,
}

impl Store {
    /// An empty store of the shards that `map` gives to `group`.
    pub(crate) fn new(group: GroupId, map: &ClusterMap, hasher: &RandomState) -> Self {
        let ids: Vec<ShardId> = shards_of(group, map).collect();
        let first_shard = ids.first().map_or(0, |id| id.0);
        let shards = ids.into_iter().map(|id| Shard::new(id, map, hasher.clone())).collect();
        let shard_count = map.shard_count();
        Self { shards, shard_count, first_shard, clock: 0, totals: Totals::default() }
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

    /// Where the shard of a slot stands among [`Store::shards`].
    pub(crate) fn place(&self, slot: SlotId) -> Option<usize> {
        let place = slot.shard(self.shard_count).0.checked_sub(self.first_shard)?;
        Some(usize::from(place)).filter(|&place| place < self.shards.len())
    }

    /// Where a shard stands among [`Store::shards`].
    pub(crate) fn place_of(&self, shard: ShardId) -> Option<usize> {
        let place = usize::from(shard.0.checked_sub(self.first_shard)?);
        (place < self.shards.len()).then_some(place)
    }

    /// Changes a shard through `f`. Panics if `place` is not below the number of shards.
    pub(crate) fn change<R>(&mut self, place: usize, f: impl FnOnce(&mut Shard) -> R) -> R {
        let shard = &mut self.shards[place];
        let before = shard.totals();
        let result = f(shard);
        let after = shard.totals();
        self.totals.exchange(before, after);
        result
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// What a clock entry at `index` does to one shard: removes up to `max` due keys, unless the
    /// shard has got the effect of this entry already.
    pub(crate) fn sweep(&mut self, place: usize, index: LogIndex, clock: u64, max: usize) {
        self.change(place, |shard| {
            if index > shard.base.index {
                shard.sweep(clock, max);
            }
        });
    }

    /// What a flush at `index` does: forgets every key of every shard that has not got its effect
    /// already. Takes time in proportion to the slots, not to the keys.
    pub(crate) fn flush(&mut self, index: LogIndex, graveyard: &mut Graveyard) {
        let spared = usize::from(planted(Bug::FlushSparesShard));
        for place in 0..self.shards.len() - spared {
            self.change(place, |shard| {
                if index > shard.base.index || planted(Bug::FlushAppliedTwice) {
                    shard.flush(graveyard);
                }
            });
        }
    }

    /// Shards with keys that are due.
    pub(crate) fn shards_due(&self, now: u64) -> usize {
        let due = |shard: &&Shard| shard.expiry().next().is_some_and(|at| at <= now);
        self.shards.iter().filter(due).count()
    }

    /// The item of this number, in any order that lasts until something changes.
    pub(crate) fn nth(&self, mut number: usize) -> Option<&Item> {
        for shard in &self.shards {
            let count = shard.totals().keys;
            if number < count {
                return shard.nth(number);
            }
            number -= count;
        }
        None
    }

    /// Up to `max` live keys of a slot, in any order.
    pub(crate) fn keys_of_slot(&self, slot: SlotId, max: usize) -> Vec<Vec<u8>> {
        let Some(shard) = self.shard(slot) else { return Vec::new() };
        let live = shard.items_of(slot).filter(|item| !item.is_dead(self.clock));
        live.take(max).map(|item| item.key.bytes().to_vec()).collect()
    }

    /// The earliest expiry of any key.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.expiry().next()).min()
    }

    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) const fn keys(&self) -> u64 {
        self.totals.keys as u64
    }

    pub(crate) fn keys_with_expiry(&self) -> u64 {
        self.shards.iter().map(|shard| shard.expiry().len() as u64).sum()
    }

    pub(crate) fn keys_in_slot(&self, slot: SlotId) -> u64 {
        self.shard(slot).map_or(0, |shard| shard.keys_in(slot) as u64)
    }

    /// The oldest segment with a value that the index refers to.
    pub(crate) fn oldest_live(&self) -> Option<u64> {
        self.shards.iter().filter_map(|shard| shard.live().oldest()).min()
    }

    /// Bytes of values in the log that the index refers to.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.live().total()).sum()
    }

    /// Order-independent digest of all items.
    pub(crate) fn digest(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.digest()))
    }

    /// What [`Store::digest`] must be, from every item.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn digest_of_items(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.wrapping_add(shard.digest_of_items()))
    }

    /// Puts a shard filled from a snapshot in place of the one with the same number.
    /// Returns false if this store has no such shard.
    pub(crate) fn replace_shard(&mut self, mut shard: Shard, graveyard: &mut Graveyard) -> bool {
        let Some(place) = self.place_of(shard.id) else { return false };
        self.change(place, |old| {
            if planted(Bug::SnapshotKeepsOldKeys) {
                shard.keep_keys_of(old);
            }
            std::mem::replace(old, shard).flush(graveyard);
        });
        true
    }

    /// Sets the log clock, for a store filled from snapshots.
    pub(crate) const fn set_clock(&mut self, clock: u64) {
        self.clock = clock;
    }
}

/// The shards that `map` gives to `group`: a contiguous range.
pub(crate) fn shards_of(group: GroupId, map: &ClusterMap) -> impl Iterator<Item = ShardId> {
    (0..map.shard_count()).map(ShardId).filter(move |&shard| map.group_of(shard) == group)
}

pub(crate) fn slots_of(shard: ShardId, shard_count: u16) -> std::ops::Range<u16> {
    let start = |shard: u32| {
        let slot = (shard * u32::from(SLOT_COUNT)).div_ceil(u32::from(shard_count));
        u16::try_from(slot).expect("at most 16384")
    };
    start(u32::from(shard.0))..start(u32::from(shard.0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::map_of;

    fn item(key: &[u8], value: &[u8], expires_at: u64) -> Item {
        let (value, version) = (Value::Memory(value.to_vec()), LogIndex::new(3));
        Item { key: Key::new(key), value, version, expires_at, sum: 5 }
    }

    fn put(store: &mut Store, item: Item) {
        let place = store.place(SlotId::of_key(item.key.bytes())).unwrap();
        store.change(place, |shard| shard.insert(item));
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
        let place = store.place(slot).unwrap();
        store.change(place, |shard| {
            shard.insert(item(b"k", b"one", 0));
            shard.insert(item(b"k", &[b'x'; 100], 50));
            shard.update(b"k", |item| item.expires_at = 70);
        });
        let (shard, totals) = (store.shard(slot).unwrap(), store.totals());
        assert_eq!((totals.dirty, totals.data, totals.keys), (100, 101, 1));
        assert!(totals.memory > 200, "{totals:?}");
        assert!(shard.get(b"k", 69).is_some());
        assert!(shard.get(b"k", 70).is_none(), "dead from its time on");
        assert_eq!((store.keys_in_slot(slot), store.next_expiry()), (1, Some(70)));
        let located = Located { place: coracle_raft::Place::new(4, 64), len: 100, arg: 1 };
        store.change(place, |shard| {
            shard.update(b"k", |item| item.value = Value::Log(located));
        });
        assert_eq!((store.totals().dirty, store.totals().data), (0, 101), "only moved");
        assert_eq!((store.oldest_live(), store.live_bytes() > 100), (Some(4), true));
        store.advance_clock(70);
        store.sweep(place, LogIndex::new(1), 70, 64);
        assert_eq!(store.totals(), Totals { expired: 1, ..Totals::default() });
        assert_eq!((store.keys_in_slot(slot), store.oldest_live()), (0, None));
        assert_eq!((store.next_expiry(), store.digest()), (None, 0));
        store.change(place, |shard| {
            shard.insert(item(b"k", b"buried", 70));
            shard.bury(b"k", 69);
            shard.bury(b"k", 70);
            shard.insert(item(b"k", b"removed", 99));
            shard.remove(b"k");
        });
        assert_eq!((store.totals().expired, store.keys()), (2, 0), "only what was due counts");
    }

    /// Keys of one slot among those of its shard (redis `cluster.c`, "GETKEYSINSLOT").
    #[test]
    fn keys_of_a_slot_are_found_within_its_shard() {
        let mut store = store();
        for n in 0..300 {
            let key = format!("k{n}").into_bytes();
            put(&mut store, item(&key, b"v", 0));
        }
        let slot = SlotId::of_key(b"t");
        for (key, expires_at) in [(b"{t}a", 0), (b"{t}b", 9), (b"{t}c", 0), (b"{t}d", 0)] {
            put(&mut store, item(key, b"v", expires_at));
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
        let of = |items: &[Item]| {
            let mut store = store();
            items.iter().for_each(|item| put(&mut store, item.clone()));
            store.digest()
        };
        let (a, b) = (item(b"a", b"1", 0), item(b"b", b"2", 9));
        let base = of(&[a.clone(), b.clone()]);
        assert_eq!(base, of(&[b.clone(), a.clone()]));
        let newer = Item { version: LogIndex::new(4), ..a.clone() };
        let made = Item { sum: 6, ..a };
        let others = [item(b"a", b"2", 0), item(b"a", b"1", 1), item(b"a", b"1\0", 0)];
        for other in others.into_iter().chain([newer, made, item(b"A", b"1", 0)]) {
            assert_ne!(base, of(&[other, b.clone()]));
        }
        let long = |first: u8| Item { key: Key::new(b"a"), ..item(b"a", &[first; 99], 0) };
        let located = Located { place: coracle_raft::Place::new(4, 64), len: 99, arg: 1 };
        let moved = Item { value: Value::Log(located), ..long(1) };
        assert_eq!(of(&[long(1)]), of(&[moved]), "wherever the value is");
    }
}
