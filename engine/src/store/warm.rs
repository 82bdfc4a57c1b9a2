//! Looks for keys before they are needed.
//!
//! A command finds its key by a chain of three or four reads of memory that is rarely in a near
//! cache, each of which needs the one before. Chains of different keys need not wait for each
//! other: step by step for many keys, most of that time is spent once.

use std::hint::black_box;

use super::Store;
use super::item::Item;
use super::table::Table;
use crate::SlotId;

/// Keys that are looked for at once: what they touch must still be near when they are needed.
pub(crate) const WARM_KEYS: usize = 32;

/// Where to look for a key, and what to look for there.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    pub(super) table: &'a Table,
    pub(super) hash: u64,
}

impl Store {
    /// Brings near what commands on these keys will touch. Takes the first [`WARM_KEYS`] of them.
    pub(crate) fn warm<'a>(&self, keys: impl Iterator<Item = (SlotId, &'a [u8])>) {
        let mut probes: [Option<Probe<'_>>; WARM_KEYS] = [None; WARM_KEYS];
        for (probe, (slot, key)) in probes.iter_mut().zip(keys) {
            let shard = self.place(slot).map(|place| &self.shards[place]);
            *probe = shard.and_then(|shard| shard.probe(slot, key));
        }
        let mut sum = 0;
        for probe in probes.iter().flatten() {
            sum += probe.table.len();
        }
        let mut items: [Option<&Item>; WARM_KEYS] = [None; WARM_KEYS];
        for (item, probe) in items.iter_mut().zip(&probes) {
            let found = probe.and_then(|probe| probe.table.iter_hash(probe.hash).next());
            *item = found.map(|item| &**item);
        }
        for item in items.iter().flatten() {
            sum += item.version.get() as usize + usize::from(item.sum as u8);
        }
        black_box(sum);
    }
}
