//! Where everything is: slot → shard → group → replicas. Made once at bootstrap.

use std::fmt;

use coracle_raft::{GroupId, NodeId};

use crate::{CoreAddr, CoreId, ShardId, SlotId};

/// A node as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number in the cluster.
    pub id: NodeId,
    /// Advertised host, an IP address or a name, shown to clients.
    pub host: String,
    /// Client port that forwards commands for other owners.
    pub plain_port: u16,
    /// Client port of core 0; core `i` listens on this plus `i`.
    pub core_port: u16,
    /// Peer port of core 0; core `i` listens on this plus `i`.
    pub peer_port: u16,
}

/// The static layout of a cluster. Every node has the same number of cores.
///
/// Shard `s` belongs to group `s * group_count / shard_count`, so a group's slots are contiguous.
/// Group `g` lives on core `g % core_count` of `replica_count` nodes, starting at the
/// `g % node_count`-th one in ascending order of ids; the first of them is its preferred leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    nodes: Vec<NodeInfo>,
    core_count: u16,
    shard_count: u16,
    group_count: u32,
    replica_count: u16,
}

/// Why a layout is impossible.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A count is outside its range.
    OutOfRange {
        /// Which count.
        what: &'static str,
        /// What was given.
        value: u64,
        /// Smallest legal value.
        min: u64,
        /// Largest legal value.
        max: u64,
    },
    /// Two nodes have the same number.
    DuplicateNode(NodeId),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { what, value, min, max } => {
                write!(f, "{what} is {value}, but must be from {min} to {max}")
            }
            Self::DuplicateNode(id) => write!(f, "two nodes have the number {}", id.get()),
        }
    }
}

impl std::error::Error for MapError {}

impl ClusterMap {
    /// Replicas per group when there are enough nodes.
    pub const REPLICAS: u16 = 3;

    /// Checks the counts and builds the layout. `nodes` may come in any order.
    pub fn new(
        mut nodes: Vec<NodeInfo>,
        core_count: u16,
        shard_count: u16,
        group_count: u32,
    ) -> Result<Self, MapError> {
        let range = |what, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(MapError::OutOfRange { what, value, min, max })
            }
        };
        range("the number of nodes", nodes.len() as u64, 1, 1024)?;
        range("the number of cores", u64::from(core_count), 1, 256)?;
        range("the number of shards", u64::from(shard_count), 1, 16384)?;
        range("the number of groups", u64::from(group_count), 1, u64::from(shard_count))?;
        nodes.sort_by_key(|node| node.id);
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(MapError::DuplicateNode(pair[0].id));
        }
        let replica_count = Self::REPLICAS.min(u16::try_from(nodes.len()).unwrap_or(u16::MAX));
        Ok(Self { nodes, core_count, shard_count, group_count, replica_count })
    }

    /// All nodes in ascending order of their numbers.
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// Cores per node.
    pub const fn core_count(&self) -> u16 {
        self.core_count
    }

    /// Shards of the cluster.
    pub const fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// Groups of the cluster.
    pub const fn group_count(&self) -> u32 {
        self.group_count
    }

    /// The shard of a slot.
    pub const fn shard_of(&self, slot: SlotId) -> ShardId {
        slot.shard(self.shard_count)
    }

    /// The group that owns a shard.
    pub const fn group_of(&self, shard: ShardId) -> GroupId {
        GroupId::new((shard.0 as u64 * self.group_count as u64 / self.shard_count as u64) as u32)
    }

    /// The group that owns a slot.
    pub const fn group_of_slot(&self, slot: SlotId) -> GroupId {
        self.group_of(self.shard_of(slot))
    }

    /// The slots of a group. Panics if there is no such group.
    pub fn slots_of(&self, group: GroupId) -> std::ops::Range<u16> {
        assert!(group.get() < self.group_count, "group {} of {}", group.get(), self.group_count);
        // The first shard with `shard * group_count / shard_count >= group`, and its first slot.
        let start = |group: u64| {
            let shard = (group * u64::from(self.shard_count)).div_ceil(self.group_count.into());
            let slot = (shard * u64::from(crate::SLOT_COUNT)).div_ceil(self.shard_count.into());
            u16::try_from(slot).expect("at most 16384")
        };
        start(group.get().into())..start(u64::from(group.get()) + 1)
    }

    /// The core that hosts a group, the same number on each of its nodes.
    pub fn core_of(&self, group: GroupId) -> CoreId {
        CoreId((group.get() % u32::from(self.core_count)) as u16)
    }

    /// The nodes that hold a group, preferred leader first.
    pub fn replicas(&self, group: GroupId) -> impl Iterator<Item = NodeId> {
        let first = group.get() as usize % self.nodes.len();
        (0..usize::from(self.replica_count))
            .map(move |i| self.nodes[(first + i) % self.nodes.len()].id)
    }

    /// The groups that live on one core.
    pub fn groups_on(&self, at: CoreAddr) -> impl Iterator<Item = GroupId> {
        (0..self.group_count)
            .map(GroupId::new)
            .filter(move |&g| self.core_of(g) == at.core && self.replicas(g).any(|n| n == at.node))
    }

    /// Every core of every node.
    pub fn cores(&self) -> impl Iterator<Item = CoreAddr> {
        self.nodes.iter().flat_map(|node| {
            (0..self.core_count).map(|core| CoreAddr { node: node.id, core: CoreId(core) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::map_of;

    /// Slots of groups are those of their shards, for even and odd counts.
    #[test]
    fn slots_of_groups_agree_with_the_groups_of_slots() {
        for (shards, groups) in [(1, 1), (16, 4), (10, 3), (1000, 7), (1024, 6), (16384, 1000)] {
            let map = map_of(3, 1, shards, groups);
            let mut next = 0;
            for group in (0..groups).map(GroupId::new) {
                let slots = map.slots_of(group);
                assert_eq!(slots.start, next, "{shards} shards, {groups} groups");
                next = slots.end;
                for slot in slots {
                    let slot = SlotId::new(slot).unwrap();
                    assert_eq!(map.group_of_slot(slot), group, "{shards} shards");
                }
            }
            assert_eq!(next, crate::SLOT_COUNT);
        }
    }
}
