//! Where commands go: local, forwarded, redirected, parked; and reads on followers.

use coracle_raft::{GroupId, NodeId, Term};

use super::show;
use crate::testing::{Cluster, ClusterOptions, addr};
use crate::{CoreAddr, Input, PeerMessage, ReadMode, Reply, SlotId, Via};

fn cluster(options: ClusterOptions) -> Cluster {
    let mut cluster = Cluster::new(options);
    cluster.wait_for_leaders();
    cluster
}

fn wide() -> ClusterOptions {
    ClusterOptions { nodes: 5, cores: 2, shards: 64, groups: 10, ..ClusterOptions::default() }
}

/// Writes and reads work through every core of every node, hosting the group or not.
#[test]
fn every_core_serves_every_key() {
    let mut cluster = cluster(wide());
    let cores: Vec<CoreAddr> = cluster.map().cores().collect();
    for (i, &at) in cores.iter().enumerate() {
        for k in 0..20 {
            let reply = cluster.call(at, &format!("SET key-{k} from-{i}"));
            assert_eq!(reply, Reply::OK, "{at}");
            let reader = cores[(i * 7 + k) % cores.len()];
            let got = show(&cluster.call(reader, &format!("GET key-{k}")));
            assert_eq!(got, format!("$from-{i}"), "{reader}");
        }
    }
    cluster.assert_replicas_agree();
    let forwarded: u64 = cores.iter().map(|&at| cluster.core(at).stats().forwarded).sum();
    assert!(forwarded > 100, "most of these went to another core: {forwarded}");
}

/// Leaders start where the layout wants them, spread over the nodes.
#[test]
fn preferred_leaders_win_the_first_election() {
    let mut cluster = cluster(wide());
    cluster.run(10);
    for group in 0..10 {
        let id = GroupId::new(group);
        let preferred = cluster.map().replicas(id).next();
        assert_eq!(cluster.leader(group).map(|at| at.node), preferred, "group {group}");
        for at in cluster.map().cores() {
            assert_eq!(cluster.core(at).leader_of(id), preferred, "as {at} sees it");
        }
    }
}

/// On a core's own port a command for another owner is answered with the owner's core port.
#[test]
fn core_ports_answer_moved() {
    let mut cluster = cluster(wide());
    let slot = SlotId::of_key(b"some-key");
    let group = cluster.map().group_of_slot(slot);
    let owner = cluster.leader(group.get()).unwrap();
    for at in cluster.map().cores().collect::<Vec<_>>() {
        let args: &[&[u8]] = &[b"SET", b"some-key", b"v"];
        let token = cluster.submit_as(at, Via::Core, ReadMode::Leader, false, args);
        let port = 7100 + u32::from(owner.core.0);
        let want = match at == owner {
            true => "+OK".to_owned(),
            false => format!("-MOVED {} h{}:{port}", slot.get(), owner.node.get()),
        };
        assert_eq!(show(&cluster.wait(token)), want, "{at}");
    }
}

/// Keys of different shards in one command are refused; keys of one shard are not.
#[test]
fn commands_across_shards_are_refused() {
    let mut cluster = cluster(wide());
    for command in ["MGET a b c d", "MSET a 1 b 2 c 3", "DEL a b c", "EXISTS a b c"] {
        let got = show(&cluster.call(addr(1, 0), command));
        assert_eq!(got, "-CROSSSLOT Keys in request don't hash to the same slot", "{command}");
    }
    assert_eq!(show(&cluster.call(addr(1, 0), "MSET {t}a 1 {t}b 2")), "+OK");
    assert_eq!(show(&cluster.call(addr(2, 1), "MGET {t}a {t}b")), "[$1 $2]");
}

/// Followers answer reads themselves when asked to, and always with the newest value.
#[test]
fn follower_reads_are_linearizable() {
    let mut cluster = cluster(ClusterOptions { groups: 1, ..ClusterOptions::default() });
    let leader = cluster.leader(0).unwrap();
    let followers: Vec<_> = (1..=3).map(|n| addr(n, 0)).filter(|&at| at != leader).collect();
    for i in 0..50 {
        let reply = cluster.call(leader, &format!("SET k {i}"));
        assert_eq!(reply, Reply::OK);
        for &at in &followers {
            let args: &[&[u8]] = &[b"GET", b"k"];
            let token = cluster.submit_as(at, Via::Core, ReadMode::AnyReplica, false, args);
            assert_eq!(show(&cluster.wait(token)), format!("${i}"), "{at}");
        }
    }
    for at in followers {
        let stats = cluster.core(at).stats();
        assert_eq!((stats.reads_served, stats.forwarded, stats.moved), (50, 0, 0), "{at}");
    }
}

/// Commands that come before any leader is known wait for one, in order.
#[test]
fn commands_wait_for_the_first_leader() {
    let mut cluster = Cluster::new(ClusterOptions::default());
    let tokens: Vec<_> =
        (0..50).map(|i: u32| cluster.submit(addr(1 + i % 3, 0), &[b"INCR", b"n"])).collect();
    let mut seen: Vec<_> = tokens.into_iter().map(|token| cluster.wait(token)).collect();
    seen.sort_by_key(|reply| match reply {
        Reply::Integer(n) => *n,
        other => panic!("{other:?}"),
    });
    assert_eq!(seen, (1..=50).map(Reply::Integer).collect::<Vec<_>>(), "each was done once");
}

/// Messages that make no sense are counted and change nothing.
#[test]
fn senseless_messages_are_ignored() {
    let mut cluster = cluster(wide());
    let at = addr(1, 0);
    let before = cluster.core(at).stats().ignored_messages;
    let raft = |group: u32, from: u32, to: u32| PeerMessage::Raft {
        group: GroupId::new(group),
        message: coracle_raft::Message {
            from: NodeId::new(from),
            to: NodeId::new(to),
            term: Term::new(99),
            body: coracle_raft::Body::TimeoutNow,
        },
    };
    // Groups on this core's number and node: 0, 6, 8. Group 0 lives on nodes 1, 2, 3.
    let cases = [
        (addr(2, 0), raft(99, 2, 1)),
        (addr(2, 0), raft(u32::MAX, 2, 1)),
        (addr(5, 0), raft(0, 5, 1)),
        (addr(2, 0), raft(0, 3, 1)),
        (addr(2, 0), raft(0, 2, 3)),
        (addr(2, 1), raft(0, 2, 1)),
        (addr(77, 0), raft(0, 2, 1)),
        (addr(1, 0), raft(0, 1, 1)),
        (addr(2, 0), PeerMessage::ForwardReply { id: 5, reply: Reply::OK }),
        (addr(5, 0), PeerMessage::Leads(vec![(GroupId::new(0), Term::new(9))])),
        (addr(2, 0), PeerMessage::Leads(vec![(GroupId::new(u32::MAX), Term::new(9))])),
    ];
    let count = cases.len() as u64;
    for (from, message) in cases {
        cluster.core_mut(at).handle(Input::Peer { from, message });
    }
    assert_eq!(cluster.core(at).stats().ignored_messages, before + count);
    cluster.run(100);
    assert_eq!(cluster.leader(0), Some(addr(1, 0)), "nobody was disturbed");
}

/// A forward whose command is not what it claims to be is refused, not executed.
#[test]
fn dishonest_forwards_are_refused() {
    let mut cluster = cluster(ClusterOptions { groups: 1, ..ClusterOptions::default() });
    let leader = cluster.leader(0).unwrap();
    let from = addr(leader.node.get() % 3 + 1, 0);
    let now = cluster.wall();
    let good = crate::command::decode(&[b"SET", b"k", b"v"], now).unwrap();
    let mut write_as_read = good.clone();
    write_as_read.access = crate::command::Access::Read;
    let mut wrong_slot = good.clone();
    wrong_slot.slot = SlotId::new(good.slot.get() ^ 1).unwrap();
    let mut cut = good.clone();
    cut.payload = coracle_raft::Payload::new(good.payload.bytes()[..30].to_vec(), 0);
    let before = cluster.core(leader).stats().proposals;
    for command in [write_as_read, wrong_slot, cut] {
        let forward = crate::Forward { id: 1, at: now, command };
        let message = PeerMessage::Forward(forward);
        cluster.core_mut(leader).handle(Input::Peer { from, message });
        cluster.run(50);
    }
    assert_eq!(cluster.core(leader).stats().proposals, before);
    assert_eq!(cluster.call(from, "GET k"), Reply::Null);
}

/// The answer to a forward from before a link broke is not sent over the next link: its number
/// may mean something else there.
#[test]
fn answers_do_not_cross_links() {
    for lost in [false, true] {
        let mut cluster = cluster(ClusterOptions { groups: 1, ..ClusterOptions::default() });
        let leader = cluster.leader(0).unwrap();
        let from = addr(leader.node.get() % 3 + 1, 0);
        let at = cluster.wall();
        let command = crate::command::decode(&[b"INCR", b"n"], at).unwrap();
        let forward = crate::Forward { id: 7, at, command };
        let message = PeerMessage::Forward(forward);
        let before = cluster.core(from).stats().ignored_messages;
        cluster.core_mut(leader).handle(Input::Peer { from, message });
        if lost {
            cluster.core_mut(leader).handle(Input::PeerLost(from));
        }
        cluster.run(100);
        assert_eq!(show(&cluster.call(from, "GET n")), "$1", "it was executed");
        // The asker knows no number 7 and counts what comes.
        let came = cluster.core(from).stats().ignored_messages - before;
        assert_eq!(came, u64::from(!lost));
    }
}
