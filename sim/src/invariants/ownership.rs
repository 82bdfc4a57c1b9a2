//! Every shard is served by one group, on the cores that the layout gives to it (Redis Cluster
//! spec, "Key distribution model"). Today the layout never changes, so all cores must have the
//! same one.

use coracle_engine::{ClusterMap, CoreAddr, ShardId};
use coracle_raft::GroupId;

use super::seen::{Rule, Violation};

pub(crate) const RULE: Rule =
    Rule { name: "one owner per shard", source: "Redis Cluster spec, \"Key distribution model\"" };

/// A core serves shards by the layout it has, `theirs`.
pub(crate) fn check(map: &ClusterMap, theirs: &ClusterMap, at: CoreAddr) -> Result<(), Violation> {
    let broken =
        |text| Err(Violation { invariant: RULE.name, source: RULE.source, at, group: None, text });
    if map.shard_count() != theirs.shard_count() {
        let (want, found) = (map.shard_count(), theirs.shard_count());
        return broken(format!("it has {found} shards, others have {want}"));
    }
    for shard in (0..map.shard_count()).map(ShardId) {
        let (want, found) = (map.group_of(shard), theirs.group_of(shard));
        if want != found {
            let shard = shard.0;
            return broken(format!("shard {shard} is of {found} there, of {want} elsewhere"));
        }
    }
    Ok(())
}

/// A core has a replica of a group.
pub(crate) fn check_replica(
    map: &ClusterMap,
    at: CoreAddr,
    group: GroupId,
) -> Result<(), Violation> {
    let known = group.get() < map.group_count()
        && map.core_of(group) == at.core
        && map.replicas(group).any(|node| node == at.node);
    if known {
        return Ok(());
    }
    Err(RULE.broken(at, group, "the layout gives it no replica".to_owned()))
}

#[cfg(test)]
mod tests {
    use coracle_engine::testing::{addr, map_of};

    use super::super::seen::tests::assert_breaks;
    use super::*;

    #[test]
    fn one_layout_for_all_is_legal() {
        let map = map_of(4, 2, 8, 4);
        for at in map.cores() {
            assert_eq!(check(&map, &map.clone(), at), Ok(()));
            for group in map.groups_on(at) {
                assert_eq!(check_replica(&map, at, group), Ok(()));
            }
        }
    }

    #[test]
    fn another_layout_is_found() {
        let map = map_of(3, 1, 8, 4);
        for theirs in [map_of(3, 1, 8, 2), map_of(3, 1, 4, 4)] {
            assert_breaks(&RULE, check(&map, &theirs, addr(1, 0)));
        }
    }

    #[test]
    fn a_replica_out_of_place_is_found() {
        let map = map_of(4, 2, 8, 4);
        for (at, group) in [(addr(1, 1), 0), (addr(4, 0), 0), (addr(1, 0), 4)] {
            assert_breaks(&RULE, check_replica(&map, at, GroupId::new(group)));
        }
    }
}
