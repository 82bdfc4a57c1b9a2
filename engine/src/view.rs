//! What a core tells about itself: leaders, keys, sizes, digests.

use coracle_raft::{GroupId, NodeId};

use crate::SlotId;
use crate::command::Command;
use crate::command::encoding::View;
use crate::config::CoreConfig;
use crate::core::Core;

impl Core {
    /// The last known leader of a group, also of one without a replica here.
    pub fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let known = self.place(group).and_then(|place| self.groups[place].raft.leader());
        known.or_else(|| self.hints.get(group.get() as usize)?.last)
    }

    /// Keys in a slot, 0 if its group has no replica here.
    pub fn keys_in_slot(&self, slot: SlotId) -> u64 {
        let group = self.config.map.group_of_slot(slot);
        self.place(group).map_or(0, |place| self.groups[place].store.keys_in_slot(slot))
    }

    /// Up to `max` keys of a slot as this replica has them, in any order; none if the slot's group
    /// has no replica here. Takes time in proportion to the keys of the slot's shard.
    pub fn keys_of_slot(&self, slot: SlotId, max: usize) -> Vec<Vec<u8>> {
        let group = self.config.map.group_of_slot(slot);
        let place = self.place(group);
        place.map_or_else(Vec::new, |place| self.groups[place].store.keys_of_slot(slot, max))
    }

    /// Keys of the groups led here.
    pub fn keys_led(&self) -> u64 {
        self.groups.iter().filter(|group| group.leads()).map(|group| group.store.keys()).sum()
    }

    /// Keys of all groups with a replica here.
    pub fn keys_hosted(&self) -> u64 {
        self.groups.iter().map(|group| group.store.keys()).sum()
    }

    /// Bytes of the indexes of all groups, of the values in them, and of the value cache.
    pub const fn memory_bytes(&self) -> u64 {
        (self.totals.memory + self.graveyard.bytes() + self.cache.bytes()) as u64
    }

    /// Bytes of the indexes of all groups and of the values in them.
    pub const fn index_bytes(&self) -> u64 {
        self.totals.memory as u64
    }

    /// About how many bytes of values the reply to a command will have, by what this replica holds:
    /// 0 if it has no replica of the group, or all values are short.
    pub fn reply_bytes(&self, command: &Command) -> usize {
        /// So many bytes are in the noise.
        const SHORT: usize = 8 << 10;
        let group = self.config.map.group_of_slot(command.slot);
        let Some(place) = self.place(group) else { return 0 };
        let shard = self.groups[place].store.shard(command.slot);
        let Some(shard) = shard.filter(|shard| shard.longest_value() > SHORT) else { return 0 };
        let Some(view) = View::parse(command.payload.bytes()) else { return 0 };
        if !view.shows_values() {
            return 0;
        }
        view.keys().filter_map(|key| Some(shard.peek(key)?.value.len())).sum()
    }

    /// Settings of this core.
    pub const fn config(&self) -> &CoreConfig {
        &self.config
    }

    /// Groups with a replica here, in ascending order.
    pub fn groups_hosted(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().map(|group| group.id)
    }

    /// Digest of everything a group's replica here holds: equal on all replicas that have
    /// applied the same entries. Long values count by the checksums of the commands that made
    /// them, which the log checks on every read.
    pub fn digest(&self, group: GroupId) -> Option<u64> {
        Some(self.groups[self.place(group)?].store.digest())
    }
}
