//! Values whose bytes this replica does not know for a while.
//!
//! A command that changes a value needs its old bytes. If they cannot be read, the shard waits, and
//! other replicas are asked. By then those have mostly applied the command, and have its result or
//! that of a later one, not the old bytes. Then the shard goes on without them: the commands up to
//! that later version change length, version and checksum of the value as everywhere, and its bytes
//! are put in when the version is reached that they belong to.
//!
//! Nobody sees such a value: it is read from no replica, and its shard is in no checkpoint and no
//! snapshot. A process that ends meanwhile begins again with the old bytes, and asks again.

use coracle_raft::LogIndex;

use crate::group::{Group, Tally};
use crate::store::Value;

/// Values of one group that may be unknown at once; further shards wait.
pub(crate) const LOST_MAX: usize = 16;

/// A value whose bytes are unknown.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Place of the shard in its store.
    pub(crate) shard: usize,
    pub(crate) key: Box<[u8]>,
    /// Another replica has told what the entry at this index leaves of the key.
    pub(crate) known_at: LogIndex,
    /// The value that this entry makes; without one the key is removed by then.
    pub(crate) bytes: Option<Vec<u8>>,
}

impl Group {
    /// Whether a shard has values whose bytes are unknown.
    pub(crate) fn has_lost(&self, shard: usize) -> bool {
        self.lost.iter().any(|lost| lost.shard == shard)
    }

    /// Goes on without the bytes of a value that a shard waits for.
    pub(crate) fn lose(&mut self, lost: Lost) {
        self.store.change(lost.shard, |shard| {
            shard.update(&lost.key, |item| {
                let len = u32::try_from(item.value.len()).expect("values are bounded");
                item.value = Value::Lost(len);
            });
        });
        self.woken.push((lost.shard, None));
        self.lost.push(lost);
    }

    /// Something was applied in a shard: puts in the bytes that belong to what is there now.
    pub(crate) fn settle_lost(&mut self, shard: usize, tally: &mut Tally) {
        if self.lost.is_empty() {
            return;
        }
        let (store, dirty_keys) = (&mut self.store, &mut self.dirty_keys);
        self.lost.retain_mut(|lost| {
            if lost.shard != shard {
                return true;
            }
            let item = store.shards()[shard].peek(&lost.key);
            let Some(item) = item.filter(|item| item.value.is_lost()) else {
                // Removed, or replaced as a whole.
                tally.values_repaired += 1;
                return false;
            };
            let (reached, len) = (item.version == lost.known_at, item.value.len());
            let bytes = lost.bytes.take_if(|bytes| reached && bytes.len() == len);
            let Some(bytes) = bytes else { return true };
            store.change(shard, |shard| {
                shard.update(&lost.key, |item| item.value = Value::Memory(bytes));
            });
            dirty_keys.push_back((shard, std::mem::take(&mut lost.key)));
            tally.values_repaired += 1;
            false
        });
    }
}
