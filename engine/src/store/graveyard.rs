//! What was flushed and not dropped yet. Dropping millions of keys takes a while, so that every
//! turn drops some of them; whoever asked was answered long before.

use std::collections::VecDeque;

use super::item::Item;
use super::shard::Totals;
use super::table::SlotTable;
use crate::expiry::ExpiryIndex;

/// Tables and indexes on their way out.
#[derive(Debug, Default)]
pub(crate) struct Graveyard {
    tables: VecDeque<SlotTable>,
    expiries: VecDeque<ExpiryIndex>,
    bytes: usize,
}

impl Graveyard {
    /// Takes what a shard held, none of it empty, which cost `bytes` of memory.
    pub(super) fn bury(
        &mut self,
        tables: impl Iterator<Item = SlotTable>,
        expiry: ExpiryIndex,
        bytes: usize,
    ) {
        self.tables.extend(tables);
        self.expiries.extend((!expiry.is_empty()).then_some(expiry));
        self.bytes += bytes;
    }

    /// Drops about `max` keys, each after `last` has seen it.
    pub(crate) fn drop_some(&mut self, max: usize, mut last: impl FnMut(&Item)) {
        let mut count = 0;
        while count < max
            && let Some(table) = self.tables.front_mut()
        {
            let Some(items) = table.take_some() else {
                self.tables.pop_front();
                continue;
            };
            for item in items {
                count += 1;
                self.bytes -= Totals::of(&item).memory;
                last(&item);
            }
        }
        while count < max
            && let Some(expiry) = self.expiries.front_mut()
        {
            count += expiry.drop_some(max - count);
            if expiry.is_empty() {
                self.expiries.pop_front();
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.expiries.is_empty()
    }

    /// Bytes of memory that are still held.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}
