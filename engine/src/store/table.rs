//! The keys of one slot, in an order that never changes.
//!
//! Every key has a *position*, a hash that is the same on every node and in every build. A slot is
//! one hash table as long as it is small; a larger one is cut into tables of a range of positions
//! each. So no table is ever rehashed at a size that would be felt, a scan goes on from a position
//! whatever grew or shrank meanwhile and whoever leads by then, and what is thrown away can be
//! dropped table by table.

use std::collections::BTreeMap;

use ahash::RandomState;
use coracle_raft::{Bug, planted};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::digest::stable_hash;
use super::item::Item;

/// Bits of a position: with the 14 of a slot they fit into the 53 that the numbers of every
/// language hold exactly.
pub(crate) const POSITION_BITS: u32 = 39;
/// Keys at which a table is cut in two: what one of 256 places takes.
const TABLE_KEYS_MAX: usize = 224;
/// A table with fewer keys is joined with the one before it.
const TABLE_KEYS_FEW: usize = TABLE_KEYS_MAX / 8;

const POSITION_SEED: u64 = 0x8EBC_6AF0_9C88_C6E3;

/// Where a key stands in the order of its slot.
pub(crate) fn position(key: &[u8]) -> u64 {
    stable_hash(key, POSITION_SEED) >> (u64::BITS - POSITION_BITS)
}

pub(super) type Table = HashTable<Box<Item>>;

/// The keys of one slot.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    /// From position 0 on.
    first: Table,
    /// By their first position; each reaches to the next one.
    rest: Option<BTreeMap<u64, Table>>,
}

impl SlotTable {
    /// Makes room for as many more keys as one table takes, or fewer.
    pub(crate) fn reserve(&mut self, more: usize, hasher: &RandomState) {
        let more = more.min(TABLE_KEYS_MAX);
        self.first.reserve(more, |held| hasher.hash_one(held.key.bytes()));
    }

    /// The table that a key is in, if it is there.
    pub(super) fn table(&self, key: &[u8]) -> &Table {
        let rest = match &self.rest {
            None => return &self.first,
            Some(rest) => rest,
        };
        let before = rest.range(..=position(key)).next_back();
        before.map_or(&self.first, |(_, table)| table)
    }

    pub(crate) fn find(&self, hash: u64, key: &[u8]) -> Option<&Item> {
        let table = self.table(key);
        table.find(hash, |item| item.key.bytes() == key).map(|item| &**item)
    }

    pub(crate) fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Item> {
        let (_, table) = self.table_mut(key);
        table.find_mut(hash, |item| item.key.bytes() == key).map(|item| &mut **item)
    }

    /// Puts an item in the place of the one with the same key, which it returns.
    pub(crate) fn insert(&mut self, item: Item, hasher: &RandomState) -> Option<Item> {
        let key = item.key.bytes();
        let hash = hasher.hash_one(key);
        let (start, table) = self.table_mut(key);
        let entry = table.entry(
            hash,
            |held| held.key.bytes() == item.key.bytes(),
            |held| hasher.hash_one(held.key.bytes()),
        );
        match entry {
            Entry::Occupied(mut place) => Some(std::mem::replace(&mut **place.get_mut(), item)),
            Entry::Vacant(place) => {
                let count = place.insert(Box::new(item)).into_table().len();
                // Once more at each doubling, should all positions have been the same.
                if count % TABLE_KEYS_MAX == 0 && (count / TABLE_KEYS_MAX).is_power_of_two() {
                    self.split(start, hasher);
                }
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &[u8], hasher: &RandomState) -> Option<Box<Item>> {
        let hash = hasher.hash_one(key);
        let (start, table) = self.table_mut(key);
        let found = table.find_entry(hash, |item| item.key.bytes() == key).ok()?;
        let (item, _) = found.remove();
        if start > 0 && table.len() < TABLE_KEYS_FEW {
            self.join(start, hasher);
        }
        Some(item)
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.tables().map(HashTable::len).sum()
    }

    /// Without a look into any table: most slots of a shard with few keys are empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_none() && self.first.is_empty()
    }

    /// All items, in any order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.tables().flat_map(HashTable::iter).map(|item| &**item)
    }

    /// The items from a position on, in their order.
    pub(crate) fn walk(&self, from: u64) -> impl Iterator<Item = (u64, &Item)> {
        let rest = self.rest.iter().flat_map(move |rest| {
            let covers = rest.range(..=from).next_back().map_or(0, |(&start, _)| start);
            rest.range(covers.max(1)..).map(|(_, table)| table)
        });
        let in_first = self.rest.as_ref().and_then(|rest| rest.keys().next());
        let first = in_first.is_none_or(|&second| from < second).then_some(&self.first);
        first.into_iter().chain(rest).flat_map(move |table| in_order(table, from))
    }

    /// The item of this number, in any order that lasts until something changes.
    pub(crate) fn nth(&self, mut number: usize) -> Option<&Item> {
        for table in self.tables() {
            if number < table.len() {
                return table.iter().nth(number).map(|item| &**item);
            }
            number -= table.len();
        }
        None
    }

    /// Takes out some items, at most as many as one table holds; `None` if it is empty.
    pub(crate) fn take_some(&mut self) -> Option<impl Iterator<Item = Box<Item>> + use<>> {
        if let Some(rest) = &mut self.rest {
            if let Some((_, table)) = rest.pop_last() {
                return Some(table.into_iter());
            }
            self.rest = None;
        }
        let table = std::mem::take(&mut self.first);
        (!table.is_empty()).then(|| table.into_iter())
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.first).chain(self.rest.iter().flat_map(BTreeMap::values))
    }

    /// The table of a key and its first position.
    fn table_mut(&mut self, key: &[u8]) -> (u64, &mut Table) {
        match &mut self.rest {
            None => (0, &mut self.first),
            Some(rest) => match rest.range_mut(..=position(key)).next_back() {
                Some((&start, table)) => (start, table),
                None => (0, &mut self.first),
            },
        }
    }

    /// The table that begins at a position.
    fn starting_mut(&mut self, start: u64) -> &mut Table {
        match &mut self.rest {
            Some(rest) if start > 0 => rest.get_mut(&start).expect("a table begins there"),
            _ => &mut self.first,
        }
    }

    /// Cuts a table at the median of its positions, unless they are all the same.
    fn split(&mut self, start: u64, hasher: &RandomState) {
        let table = self.starting_mut(start);
        let mut positions: Vec<u64> = table.iter().map(|i| position(i.key.bytes())).collect();
        positions.sort_unstable();
        let median = positions[positions.len() / 2];
        let cut = if median > positions[0] {
            median
        } else {
            match positions.iter().find(|&&position| position > median) {
                Some(&position) => position,
                None => return,
            }
        };
        let mut upper = Table::with_capacity(TABLE_KEYS_MAX / 2);
        for item in table.extract_if(|item| position(item.key.bytes()) >= cut) {
            let hash = hasher.hash_one(item.key.bytes());
            upper.insert_unique(hash, item, |held| hasher.hash_one(held.key.bytes()));
        }
        self.rest.get_or_insert_default().insert(cut, upper);
    }

    /// Moves the items of a table into the one before it, if that has room for as many again.
    fn join(&mut self, start: u64, hasher: &RandomState) {
        let Some(rest) = &mut self.rest else { return };
        let before = rest.range(..start).next_back().map_or(0, |(&before, _)| before);
        let count = rest[&start].len();
        if count > 0 && self.starting_mut(before).len() + count > TABLE_KEYS_MAX / 2 {
            return;
        }
        let Some(rest) = &mut self.rest else { return };
        let few = rest.remove(&start).expect("a table begins there");
        if rest.is_empty() {
            self.rest = None;
        }
        let table = self.starting_mut(before);
        for item in few {
            let hash = hasher.hash_one(item.key.bytes());
            table.insert_unique(hash, item, |held| hasher.hash_one(held.key.bytes()));
        }
    }
}

/// The items of a table from a position on, sorted.
fn in_order(table: &Table, from: u64) -> impl Iterator<Item = (u64, &Item)> {
    let mut items: Vec<(u64, &Item)> =
        table.iter().map(|item| (position(item.key.bytes()), &**item)).collect();
    if planted(Bug::ScanInTableOrder) {
        // The number in the table's own order, which another size of the table changes.
        for (number, item) in items.iter_mut().enumerate() {
            item.0 = number as u64;
        }
    }
    items.retain(|(position, _)| *position >= from);
    items.sort_unstable_by_key(|(position, _)| *position);
    items.into_iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use coracle_raft::LogIndex;
    use proptest::prelude::*;

    use super::super::item::{Key, Value};
    use super::*;

    fn hasher() -> RandomState {
        RandomState::with_seeds(1, 2, 3, 4)
    }

    fn item(key: &[u8]) -> Item {
        let value = Value::Memory(key.to_vec());
        Item { key: Key::new(key), value, version: LogIndex::new(1), expires_at: 0, sum: 0 }
    }

    fn key(n: u32) -> Vec<u8> {
        format!("{{t}}{n}").into_bytes()
    }

    /// Every table holds the positions from its own to the next one's.
    fn check_order(table: &SlotTable) {
        let starts: Vec<u64> =
            std::iter::once(0).chain(table.rest.iter().flat_map(|r| r.keys().copied())).collect();
        for (n, part) in table.tables().enumerate() {
            let end = starts.get(n + 1).copied().unwrap_or(1 << POSITION_BITS);
            assert!(n == 0 || !part.is_empty(), "an empty table is kept");
            for item in part {
                let at = position(item.key.bytes());
                assert!((starts[n]..end).contains(&at), "{at} is outside {}..{end}", starts[n]);
            }
        }
    }

    proptest! {
        /// A scan in small parts finds whatever stays, once, while other keys come and go between
        /// its parts (Redis, "SCAN guarantees").
        #[test]
        fn a_scan_finds_what_stays(
            staying in prop::collection::btree_set(0..4000u32, 1..600),
            parts in prop::collection::vec((any::<bool>(), 4000..9000u32, 0..900u32), 1..60),
            part in 1..300usize,
        ) {
            let (mut table, hasher) = (SlotTable::default(), hasher());
            for &n in &staying {
                table.insert(item(&key(n)), &hasher);
            }
            let (mut seen, mut from, mut changes) = (Vec::new(), 0, parts.iter().cycle());
            loop {
                let items: Vec<_> = table.walk(from).take(part).collect();
                seen.extend(items.iter().map(|(_, item)| item.key.bytes().to_vec()));
                let Some((last, _)) = items.last() else { break };
                from = last + 1;
                let &(adds, start, count) = changes.next().unwrap();
                for n in start..start + count {
                    if adds {
                        table.insert(item(&key(n)), &hasher);
                    } else {
                        table.remove(&key(n), &hasher);
                    }
                }
            }
            check_order(&table);
            for &n in &staying {
                let times = seen.iter().filter(|seen| **seen == key(n)).count();
                prop_assert_eq!(times, 1, "key {}", n);
            }
        }
    }

    /// Finding, replacing, counting and removing, through many splits and joins.
    #[test]
    fn tables_split_and_join() {
        let (mut table, hasher) = (SlotTable::default(), hasher());
        let mut keys = BTreeSet::new();
        for n in 0..20_000u32 {
            assert!(table.insert(item(&key(n)), &hasher).is_none());
            keys.insert(key(n));
        }
        check_order(&table);
        assert!(table.tables().all(|part| part.len() < TABLE_KEYS_MAX));
        assert!(table.tables().count() < 20_000 / TABLE_KEYS_MAX * 3);
        assert_eq!(table.len(), keys.len());
        assert_eq!(table.iter().count(), keys.len());
        let numbered = (0..keys.len()).map(|n| table.nth(n).unwrap().key.bytes().to_vec());
        assert_eq!(numbered.collect::<BTreeSet<_>>(), keys);
        assert!(table.nth(keys.len()).is_none());
        for n in (0..20_000).filter(|n| n % 50 != 0) {
            assert!(table.insert(item(&key(n)), &hasher).is_some(), "replaced");
            let removed = table.remove(&key(n), &hasher).unwrap();
            assert_eq!(removed.key.bytes(), key(n));
            assert!(table.remove(&key(n), &hasher).is_none());
            assert!(table.find(hasher.hash_one(&key(n)[..]), &key(n)).is_none());
            keys.remove(&key(n));
        }
        check_order(&table);
        assert!(table.tables().count() < 20, "{} tables of few keys", table.tables().count());
        for key in &keys {
            assert!(table.find(hasher.hash_one(&key[..]), key).is_some());
            assert!(table.find_mut(hasher.hash_one(&key[..]), key).is_some());
        }
        let walked = table.walk(0).map(|(_, item)| item.key.bytes().to_vec());
        assert_eq!(walked.collect::<BTreeSet<_>>(), keys);
        let mut taken = BTreeSet::new();
        while let Some(some) = table.take_some() {
            let some: Vec<_> = some.collect();
            assert!((1..TABLE_KEYS_MAX).contains(&some.len()));
            taken.extend(some.iter().map(|item| item.key.bytes().to_vec()));
        }
        assert_eq!((taken, table.len()), (keys, 0));
    }

    /// Positions are part of cursors that clients hold across upgrades.
    #[test]
    fn positions_never_change() {
        let got = [&b""[..], b"a", b"{t}1", b"a-key-of-more-than-sixteen-bytes"].map(position);
        assert_eq!(got, [282408352652, 419184903387, 428903044063, 168573526138]);
        assert!(got.iter().all(|&at| at < 1 << POSITION_BITS));
    }
}
