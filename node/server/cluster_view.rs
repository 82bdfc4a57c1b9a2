//! The cluster as Redis Cluster clients see it: each core of each node is a node of its own, and
//! master of the slots whose leaders it hosts.
//!
//! All 16384 slots are always covered: where no leader is known, the preferred one stands in, so
//! that clients keep their map during elections. Endpoints are listed with their core ports on
//! every port that is asked, so all answers agree with each other.

use std::fmt::Write;

use coracle_engine::{ClusterMap, CoreAddr, Reply, SLOT_COUNT, SlotId};
use coracle_raft::GroupId;

use super::node_commands::View;

/// A run of slots, both ends inclusive, and the core that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u16,
    last: u16,
    owner: CoreAddr,
}

/// First and last slot of a group. Groups own contiguous slots in ascending order.
fn group_slots(map: &ClusterMap, group: GroupId) -> (u16, u16) {
    let first_at_or_after = |wanted: u32| {
        let (mut low, mut high) = (0, SLOT_COUNT);
        while low < high {
            let middle = low + (high - low) / 2;
            let slot = SlotId::new(middle).expect("below SLOT_COUNT");
            if map.group_of_slot(slot).get() < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    };
    (first_at_or_after(group.get()), first_at_or_after(group.get() + 1) - 1)
}

/// Who serves what now: all slots in ascending order, neighbours of one owner merged.
fn runs(view: &View<'_>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for group in (0..view.map.group_count()).map(GroupId::new) {
        let leader = (view.leader_of)(group).or_else(|| view.map.replicas(group).next());
        let node = leader.expect("a group has at least one replica");
        let owner = CoreAddr { node, core: view.map.core_of(group) };
        let (first, last) = group_slots(view.map, group);
        match runs.last_mut() {
            Some(run) if run.owner == owner => run.last = last,
            _ => runs.push(Run { first, last, owner }),
        }
    }
    runs
}

/// The id of an endpoint: 40 hexadecimal digits that never change.
pub(super) fn endpoint_id(view: &View<'_>, addr: CoreAddr) -> String {
    format!("{:032x}{:04x}0000", view.config.node_uuid(addr.node), addr.core.0)
}

/// The id of the "shard" in Redis' sense that an endpoint makes up alone.
pub(super) fn shard_id(view: &View<'_>, addr: CoreAddr) -> String {
    format!("{:032x}{:04x}0001", view.config.node_uuid(addr.node), addr.core.0)
}

/// The endpoint with this id, if there is one.
pub(super) fn find_endpoint(view: &View<'_>, id: &[u8]) -> Option<CoreAddr> {
    view.map.cores().find(|&addr| endpoint_id(view, addr).as_bytes().eq_ignore_ascii_case(id))
}

/// Host and client port of an endpoint.
fn address(map: &ClusterMap, addr: CoreAddr) -> (&str, u16) {
    let node = map.node(addr.node).expect("owners come from the map");
    (&node.host, node.core_port + addr.core.0)
}

/// `CLUSTER SLOTS`.
pub(super) fn slots(view: &View<'_>) -> Reply {
    let entry = |run: Run| {
        let (host, port) = address(view.map, run.owner);
        let node = Reply::Array(vec![
            bulk(host),
            Reply::Integer(i64::from(port)),
            bulk(&endpoint_id(view, run.owner)),
            Reply::Array(Vec::new()),
        ]);
        let (first, last) = (i64::from(run.first), i64::from(run.last));
        Reply::Array(vec![Reply::Integer(first), Reply::Integer(last), node])
    };
    Reply::Array(runs(view).into_iter().map(entry).collect())
}

/// `CLUSTER SHARDS`.
pub(super) fn shards(view: &View<'_>) -> Reply {
    let runs = runs(view);
    let shard = |addr: CoreAddr| {
        let own = runs.iter().filter(|run| run.owner == addr);
        let slots = own.flat_map(|run| [run.first, run.last]);
        let (host, port) = address(view.map, addr);
        let node = Reply::Map(vec![
            (bulk("id"), bulk(&endpoint_id(view, addr))),
            (bulk("port"), Reply::Integer(i64::from(port))),
            (bulk("ip"), bulk(host)),
            (bulk("endpoint"), bulk(host)),
            (bulk("role"), bulk("master")),
            (bulk("replication-offset"), Reply::Integer(0)),
            (bulk("health"), bulk("online")),
        ]);
        Reply::Map(vec![
            (bulk("slots"), Reply::Array(slots.map(|s| Reply::Integer(i64::from(s))).collect())),
            (bulk("nodes"), Reply::Array(vec![node])),
        ])
    };
    Reply::Array(view.map.cores().map(shard).collect())
}

/// `CLUSTER NODES`: one line per endpoint, exactly one of them `myself`.
pub(super) fn nodes(view: &View<'_>) -> Reply {
    let runs = runs(view);
    let mut text = String::new();
    for addr in view.map.cores() {
        let (host, port) = address(view.map, addr);
        let node = view.map.node(addr.node).expect("cores come from the map");
        let (flags, seen) =
            if addr == view.me { ("myself,master", 0) } else { ("master", view.now.0) };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{} {host}:{port}@{} {flags} - 0 {seen} {} connected",
            endpoint_id(view, addr),
            node.peer_port + addr.core.0,
            epoch(view.map, addr),
        );
        for run in runs.iter().filter(|run| run.owner == addr) {
            let _ = if run.first == run.last {
                write!(text, " {}", run.first)
            } else {
                write!(text, " {}-{}", run.first, run.last)
            };
        }
        text.push('\n');
    }
    Reply::Verbatim(text)
}

/// A different number for each endpoint, as config epochs are in Redis.
fn epoch(map: &ClusterMap, addr: CoreAddr) -> u32 {
    addr.node.get() * u32::from(map.core_count()) + u32::from(addr.core.0)
}

/// `CLUSTER INFO`. The state is always `ok`: clients take anything else for "use nothing here",
/// but groups fail one by one. How many have a leader, and the one the layout wants, stands at the
/// end.
pub(super) fn info(view: &View<'_>) -> Reply {
    let groups = view.map.group_count();
    let led = (0..groups).filter(|&g| (view.leader_of)(GroupId::new(g)).is_some()).count();
    let preferred = |g: &u32| {
        let group = GroupId::new(*g);
        let leader = (view.leader_of)(group);
        leader.is_some() && leader == view.map.replicas(group).next()
    };
    let placed = (0..groups).filter(preferred).count();
    let mut owners: Vec<_> = runs(view).into_iter().map(|run| run.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    let cores = view.map.cores().count();
    let newest = view.map.cores().map(|addr| epoch(view.map, addr)).max().unwrap_or(0);
    Reply::Verbatim(format!(
        "cluster_enabled:1\r\ncluster_state:ok\r\ncluster_slots_assigned:{SLOT_COUNT}\r\n\
         cluster_slots_ok:{SLOT_COUNT}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
         cluster_known_nodes:{cores}\r\ncluster_size:{}\r\ncluster_current_epoch:{newest}\r\n\
         cluster_my_epoch:{}\r\ncluster_stats_messages_sent:0\r\n\
         cluster_stats_messages_received:0\r\ntotal_cluster_links_buffer_limit_exceeded:0\r\n\
         coracle_groups:{groups}\r\ncoracle_groups_with_leader:{led}\r\n\
         coracle_groups_with_preferred_leader:{placed}\r\n",
        owners.len(),
        epoch(view.map, view.me),
    ))
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use coracle_raft::NodeId;

    use super::super::node_commands::tests::{Fixture, text};
    use super::*;

    /// The slots of the groups are those the map gives, for odd and even splits.
    #[test]
    fn groups_own_the_slots_of_the_map() {
        for flags in ["--shards 1024 --groups 8", "--shards 10 --groups 3", "--groups 1024"] {
            let fixture = Fixture::new(flags);
            let map = &fixture.config.map;
            let mut next = 0;
            for group in (0..map.group_count()).map(GroupId::new) {
                let (first, last) = group_slots(map, group);
                assert_eq!(first, next, "{flags} {group}");
                for raw in [first, last] {
                    let slot = SlotId::new(raw).expect("in range");
                    assert_eq!(map.group_of_slot(slot), group, "{flags} slot {raw}");
                }
                next = last + 1;
            }
            assert_eq!(next, SLOT_COUNT, "{flags}");
        }
    }

    /// Every slot has an owner with and without known leaders.
    #[test]
    fn all_slots_are_covered_whoever_leads() {
        let fixture = Fixture::new("--groups 5 --cores 0,0");
        let leaders: [&dyn Fn(GroupId) -> Option<NodeId>; 3] =
            [&|_| None, &|_| Some(NodeId::new(3)), &|group| {
                (group.get() % 2 == 0).then(|| NodeId::new(2))
            }];
        for leader_of in leaders {
            fixture.with_leaders(leader_of, |view| {
                let runs = runs(view);
                let mut next = 0;
                for run in &runs {
                    assert_eq!(run.first, next);
                    next = run.last + 1;
                }
                assert_eq!(next, SLOT_COUNT);
                let merged = runs.windows(2).all(|pair| pair[0].owner != pair[1].owner);
                assert!(merged, "neighbours of one owner are one run: {runs:?}");
            });
        }
    }

    /// Without a known leader the preferred one is listed.
    #[test]
    fn the_preferred_leader_stands_in() {
        let fixture = Fixture::new("--groups 3");
        fixture.with_leaders(&|_| None, |view| {
            let owners: Vec<_> = runs(view).iter().map(|run| run.owner.node.get()).collect();
            assert_eq!(owners, [1, 2, 3]);
        });
    }

    /// `CLUSTER NODES` names each endpoint once with a stable 40-digit id, exactly one as
    /// `myself`, and agrees with `CLUSTER SLOTS`.
    #[test]
    fn nodes_and_slots_agree() {
        let fixture = Fixture::new("--groups 4 --cores 0,0");
        fixture.with_leaders(&|_| Some(NodeId::new(2)), |view| {
            let listing = text(nodes(view));
            let mut by_id = HashMap::new();
            for line in listing.lines() {
                let fields: Vec<_> = line.split(' ').collect();
                assert_eq!(fields[0].len(), 40, "{line}");
                assert!(fields[0].bytes().all(|b| b.is_ascii_hexdigit()), "{line}");
                assert!(fields[2].ends_with("master") && fields[3] == "-", "{line}");
                assert_eq!(fields[7], "connected", "{line}");
                assert!(by_id.insert(fields[0].to_owned(), fields.clone()).is_none(), "{line}");
            }
            assert_eq!(by_id.len(), 6, "three nodes of two cores");
            let myself: Vec<_> = listing.lines().filter(|l| l.contains("myself")).collect();
            assert_eq!(myself.len(), 1, "{listing}");
            assert!(myself[0].contains("127.0.0.1:7102@"), "the asked core's own port: {myself:?}");
            assert!(listing.ends_with('\n'));
            let Reply::Array(entries) = slots(view) else { panic!("an array") };
            for entry in entries {
                let Reply::Array(entry) = entry else { panic!("an array") };
                let [Reply::Integer(first), Reply::Integer(last), Reply::Array(node)] = &entry[..]
                else {
                    panic!("first, last, node: {entry:?}")
                };
                let line = &by_id[&text(node[2].clone())];
                assert!(line.contains(&&*format!("{first}-{last}")), "{line:?}");
                let Reply::Integer(port) = node[1] else { panic!("a port") };
                assert!(line[1].starts_with(&format!("{}:{port}@", text(node[0].clone()))));
            }
        });
    }

    /// Ids survive everything but a change of the cluster's name or the node's number.
    #[test]
    fn endpoint_ids_are_golden() {
        let fixture = Fixture::new("");
        fixture.with_leaders(&|_| None, |view| {
            let id = endpoint_id(view, view.me);
            assert_eq!(id, "084ee663371f48b377efdecc319a13b600000000");
            assert_eq!(find_endpoint(view, id.to_uppercase().as_bytes()), Some(view.me));
            assert_eq!(find_endpoint(view, b"x"), None);
        });
    }

    /// The health lines clients read (ioredis, our own tools).
    #[test]
    fn cluster_info_counts_groups_with_a_leader() {
        let fixture = Fixture::new("--groups 4");
        fixture.with_leaders(&|g| (g.get() < 3).then(|| NodeId::new(1)), |view| {
            let info = text(info(view));
            for line in [
                "cluster_state:ok",
                "cluster_slots_assigned:16384",
                "coracle_groups:4",
                "coracle_groups_with_leader:3",
                "coracle_groups_with_preferred_leader:1",
            ] {
                assert!(info.lines().any(|l| l == line), "{line} in {info}");
            }
        });
    }
}
