//! The keys of one shard: a table for each slot, so that a slot's keys are found without looking
//! at the others and no table grows large at once.

use std::mem;

use ahash::RandomState;
use coracle_raft::{Bug, LogPosition, planted};

use super::digest::item_digest;
use super::graveyard::Graveyard;
use super::item::{Item, Key};
use super::live::LiveBytes;
use super::slots_of;
use super::table::SlotTable;
use super::warm::Probe;
use crate::expiry::ExpiryIndex;
use crate::{ClusterMap, ShardId, SlotId};

/// What an item costs beside a long key and a value in memory: its allocation and its place in
/// the table.
const ITEM_BYTES: usize = 96;
/// What an expiry costs beside a second copy of the key.
const EXPIRY_BYTES: usize = 48;
/// Due keys removed by each entry from the shard it touches.
const SWEEP_KEYS_PER_ENTRY: usize = 4;

/// What is in a shard, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Bytes of memory.
    pub(crate) memory: usize,
    /// Bytes of values in memory that are to be written out.
    pub(crate) dirty: usize,
    /// Bytes of keys and values, wherever they are: equal on all replicas.
    pub(crate) data: usize,
    pub(crate) keys: usize,
    /// Keys removed because they were due, by every way this replica has applied.
    pub(crate) expired: u64,
}

impl Totals {
    fn add(&mut self, item: &Item) {
        let cost = Self::of(item);
        self.memory += cost.memory;
        self.dirty += cost.dirty;
        self.data += cost.data;
        self.keys += 1;
    }

    fn subtract(&mut self, item: &Item) {
        let cost = Self::of(item);
        self.memory -= cost.memory;
        self.dirty -= cost.dirty;
        self.data -= cost.data;
        self.keys -= 1;
    }

    /// In a sum over shards: one had `before`, and has `after` now.
    pub(crate) fn exchange(&mut self, before: Self, after: Self) {
        self.memory = self.memory - before.memory + after.memory;
        self.dirty = self.dirty - before.dirty + after.dirty;
        self.data = self.data - before.data + after.data;
        self.keys = self.keys - before.keys + after.keys;
        // A shard that comes in place of another starts counting at zero.
        self.expired += after.expired.saturating_sub(before.expired);
    }

    pub(crate) fn of(item: &Item) -> Self {
        let (key, value) = (item.key.bytes().len(), &item.value);
        let expiry = if item.expires_at == 0 { 0 } else { EXPIRY_BYTES + key };
        let memory = ITEM_BYTES + Key::heap_bytes(key) + value.memory_bytes() + expiry;
        let dirty = if value.is_dirty() { value.memory_bytes() } else { 0 };
        Self { memory, dirty, data: key + value.len(), keys: 1, expired: 0 }
    }
}

/// The keys of one shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    slots: Vec<SlotTable>,
    first_slot: u16,
    hasher: RandomState,
    expiry: ExpiryIndex,
    live: LiveBytes,
    totals: Totals,
    /// Sum of [`item_digest`] over all items.
    digest: u64,
    /// Bytes of the longest value that has ever been here.
    longest_value: usize,
    /// Entries up to here are already in: the shard came from a snapshot.
    pub(crate) base: LogPosition,
    /// What the group's log clock showed there.
    pub(crate) base_clock: u64,
}

impl Shard {
    pub(crate) fn new(id: ShardId, map: &ClusterMap, hasher: RandomState) -> Self {
        let slots = slots_of(id, map.shard_count());
        Self {
            id,
            first_slot: slots.start,
            slots: slots.map(|_| SlotTable::default()).collect(),
            hasher,
            expiry: ExpiryIndex::default(),
            live: LiveBytes::default(),
            totals: Totals::default(),
            digest: 0,
            longest_value: 0,
            base: LogPosition::default(),
            base_clock: 0,
        }
    }

    /// Makes room for `count` more keys, if they are spread over the slots as keys are.
    pub(crate) fn reserve(&mut self, count: usize) {
        // Tables of a few keys grow soon enough; room for them in every slot would be thrown away.
        let each = count / self.slots.len().max(1);
        if each == 0 {
            return;
        }
        // So much above the average is rare.
        let each = each + each.isqrt() * 2;
        let hasher = &self.hasher;
        for table in &mut self.slots {
            table.reserve(each, hasher);
        }
    }

    /// What `key` holds when the log clock shows `clock`.
    pub(crate) fn get(&self, key: &[u8], clock: u64) -> Option<&Item> {
        self.peek(key).filter(|item| !item.is_dead(clock))
    }

    /// What is kept for `key`, dead or not.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<&Item> {
        let table = self.slots.get(self.place(key)?)?;
        table.find(self.hasher.hash_one(key), key)
    }

    /// Where to look for a key of a slot.
    pub(super) fn probe(&self, slot: SlotId, key: &[u8]) -> Option<Probe<'_>> {
        let place = slot.get().checked_sub(self.first_slot)?;
        let table = self.slots.get(usize::from(place))?.table(key);
        Some(Probe { table, hash: self.hasher.hash_one(key) })
    }

    /// Removes `key` if it is dead, so that what follows sees only live items.
    pub(crate) fn bury(&mut self, key: &[u8], clock: u64) {
        if !self.expiry.is_empty() && self.peek(key).is_some_and(|item| item.is_dead(clock)) {
            self.remove(key);
            self.totals.expired += 1;
        }
    }

    /// Whether a key belongs here.
    pub(crate) fn takes(&self, key: &[u8]) -> bool {
        self.place(key).is_some_and(|place| place < self.slots.len())
    }

    /// Puts an item in the place of whatever was there, which it returns. Panics if the key is
    /// not of this shard.
    pub(crate) fn insert(&mut self, item: Item) -> Option<Item> {
        let (key, to) = (item.key.bytes(), item.expires_at);
        let table = self.place(key).and_then(|place| self.slots.get_mut(place));
        let table = table.expect("a key is put into the shard of its slot");
        self.totals.add(&item);
        self.longest_value = self.longest_value.max(item.value.len());
        self.digest = self.digest.wrapping_add(item_digest(&item, to));
        if let Some(located) = item.value.located() {
            self.live.add(key.len(), &located);
        }
        let expiring = (to != 0).then(|| Box::from(key));
        let old = table.insert(item, &self.hasher);
        match &old {
            Some(old) => {
                self.forget(old);
                self.expiry.change(old.key.bytes(), old.expires_at, to);
            }
            None => {
                if let Some(key) = expiring {
                    self.expiry.add(key, to);
                }
            }
        }
        old
    }

    /// Takes an item out.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Item> {
        let place = self.place(key)?;
        let table = self.slots.get_mut(place)?;
        let item = table.remove(key, &self.hasher)?;
        self.forget(&item);
        self.expiry.change(key, item.expires_at, 0);
        Some(*item)
    }

    /// Takes an item out of the numbers.
    fn forget(&mut self, item: &Item) {
        self.totals.subtract(item);
        self.digest = self.digest.wrapping_sub(item_digest(item, item.expires_at));
        if let Some(located) = item.value.located() {
            self.live.subtract(item.key.bytes().len(), &located);
        }
    }

    /// Changes an item in place; `None` if there is none.
    pub(crate) fn update<R>(&mut self, key: &[u8], f: impl FnOnce(&mut Item) -> R) -> Option<R> {
        let place = self.place(key)?;
        let table = self.slots.get_mut(place)?;
        let item = table.find_mut(self.hasher.hash_one(key), key)?;
        let (totals, live) = (&mut self.totals, &mut self.live);
        let from = item.expires_at;
        totals.subtract(item);
        let before = item_digest(item, from);
        if let Some(located) = item.value.located() {
            live.subtract(key.len(), &located);
        }
        let result = f(item);
        totals.add(item);
        self.longest_value = self.longest_value.max(item.value.len());
        if let Some(located) = item.value.located() {
            live.add(key.len(), &located);
        }
        let to = item.expires_at;
        self.digest = self.digest.wrapping_sub(before).wrapping_add(item_digest(item, to));
        self.expiry.change(key, from, to);
        Some(result)
    }

    /// What each entry does first in the shard it touches: removes some due keys.
    pub(crate) fn sweep_some(&mut self, clock: u64) {
        self.sweep(clock, SWEEP_KEYS_PER_ENTRY);
    }

    /// Removes up to `max` keys that are due.
    pub(crate) fn sweep(&mut self, clock: u64, max: usize) {
        for _ in 0..max {
            let Some(key) = self.expiry.first_due(clock) else { return };
            let key: Box<[u8]> = key.into();
            self.remove(&key);
            self.totals.expired += 1;
        }
    }

    /// Adds what `other` holds beyond this: only a planted bug does that.
    pub(crate) fn keep_keys_of(&mut self, other: &Self) {
        for item in other.items() {
            if self.peek(item.key.bytes()).is_none() {
                self.insert(item.clone());
            }
        }
    }

    pub(crate) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Bytes of the longest value that has ever been here: no look at a key is needed to know
    /// that its value is short.
    pub(crate) const fn longest_value(&self) -> usize {
        self.longest_value
    }

    pub(crate) const fn live(&self) -> &LiveBytes {
        &self.live
    }

    pub(crate) const fn expiry(&self) -> &ExpiryIndex {
        &self.expiry
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.slots.iter().filter(|table| !table.is_empty()).flat_map(SlotTable::iter)
    }

    /// The items of one of its slots.
    pub(crate) fn items_of(&self, slot: SlotId) -> impl Iterator<Item = &Item> {
        self.slot(slot).into_iter().flat_map(SlotTable::iter)
    }

    /// One of its slots.
    pub(crate) fn slot(&self, slot: SlotId) -> Option<&SlotTable> {
        let place = slot.get().checked_sub(self.first_slot).map(usize::from);
        place.and_then(|place| self.slots.get(place))
    }

    /// The item of this number, in any order that lasts until something changes.
    pub(crate) fn nth(&self, mut number: usize) -> Option<&Item> {
        for table in &self.slots {
            let count = table.len();
            if number < count {
                return table.nth(number);
            }
            number -= count;
        }
        None
    }

    /// Forgets every key, and leaves what held them in the graveyard.
    pub(crate) fn flush(&mut self, graveyard: &mut Graveyard) {
        let expiry = if planted(Bug::FlushForgetsExpiry) {
            ExpiryIndex::default()
        } else {
            mem::take(&mut self.expiry)
        };
        let Totals { memory, expired, .. } = self.totals;
        let filled = self.slots.iter_mut().filter(|table| !table.is_empty());
        graveyard.bury(filled.map(mem::take), expiry, memory);
        self.live = LiveBytes::default();
        self.digest = 0;
        self.totals = Totals { expired, ..Totals::default() };
    }

    pub(crate) fn keys_in(&self, slot: SlotId) -> usize {
        self.slot(slot).map_or(0, SlotTable::len)
    }

    /// Sum over all items of a hash of everything that replicas must agree on. It is kept up to
    /// date by every change.
    pub(crate) const fn digest(&self) -> u64 {
        self.digest
    }

    /// What [`Shard::digest`] must be, from every item.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn digest_of_items(&self) -> u64 {
        self.items().fold(0, |sum, item| sum.wrapping_add(item_digest(item, item.expires_at)))
    }

    fn place(&self, key: &[u8]) -> Option<usize> {
        SlotId::of_key(key).get().checked_sub(self.first_slot).map(usize::from)
    }
}
