//! Processes that die or stop at the worst moment.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::client::{Client, bulk, text};
use common::ledger::{self, Writers, longest_gap};
use common::{Cluster, Options, alone, wait_until, wait_within};
use coracle_engine::Reply;

/// Writers per test: enough to keep every group busy.
const KEYS: usize = 8;
/// A leader is missed after half a second to a second, then a vote decides.
const FAILOVER_MAX: Duration = Duration::from_millis(2000);

/// A hand-over of leadership; less than the shortest time in which a lost leader is missed.
const HAND_OVER_GAP_MAX: Duration = Duration::from_millis(300);

/// Tries of what must be fast: a busy machine may be slow twice.
const TRIES: usize = 3;

/// Kills a leader under load and starts it again: the longest time without an acknowledgement, if
/// it was too long.
fn kill_a_leader(cluster: &mut Cluster, prefix: &str) -> Result<(), String> {
    let keys = Cluster::keys(prefix, KEYS);
    let writers = Writers::start(cluster, &keys);
    let victim = cluster.leader_of(&keys[0], 0).expect("a leader is known");
    let led: Vec<_> = keys.iter().filter(|key| cluster.leader_of(key, 0) == Some(victim)).collect();
    let led: Vec<String> = led.into_iter().cloned().collect();
    let mut probe = cluster.nodes[(victim + 1) % 3].client();
    wait_until("writes flow", || text(&probe.run(&format!("GET {}", keys[0]))).len() > 1);

    let killed = Instant::now();
    cluster.nodes[victim].kill();
    let survivor = (victim + 1) % 3;
    let took = wait_within(Duration::from_secs(10), "another node leads", || {
        let leader = cluster.leader_of(&keys[0], survivor);
        leader.is_some_and(|leader| leader != victim)
    });
    // Long enough that a second stall would show in the gaps.
    std::thread::sleep(Duration::from_secs(2));
    let end = Instant::now();
    cluster.nodes[victim].start();
    cluster.wait_until_ready();
    let ledger = writers.finish();
    ledger::check(cluster, &ledger);
    let gap = led.iter().map(|key| longest_gap(&ledger[key], killed, end)).max().expect("some");
    if gap >= FAILOVER_MAX {
        return Err(format!("nothing for {gap:?}; a new leader was seen after {took:?}"));
    }
    Ok(())
}

/// `kill -9` of a leader under load: its groups take writes again soon, and nothing that was
/// acknowledged is lost, neither before nor after the node is back.
#[test]
fn a_killed_leader_loses_nothing_and_writes_go_on() {
    let _alone = alone();
    let mut cluster = Cluster::start(&Options::default());
    fast_enough(|attempt| kill_a_leader(&mut cluster, &format!("kill{attempt}")));
}

/// Tries it until it was fast once.
fn fast_enough(mut attempt: impl FnMut(usize) -> Result<(), String>) {
    let mut slow = Vec::new();
    while let Err(how) = attempt(slow.len()) {
        slow.push(how);
        assert!(slow.len() < TRIES, "{slow:?}");
    }
}

/// `kill -9` of all nodes at once under load, several times: they come back by themselves with
/// everything that was acknowledged.
#[test]
fn all_nodes_killed_at_once_lose_nothing() {
    let _alone = alone();
    let mut cluster = Cluster::start(&Options::default());
    let keys = Cluster::keys("all", KEYS);
    for round in 0..3 {
        let writers = Writers::start(&cluster, &keys);
        let mut probe = cluster.nodes[0].client();
        let mut last = probe.run(&format!("GET {}", keys[0]));
        let mut moves = 0;
        wait_until("writes flow", || {
            let now = probe.run(&format!("GET {}", keys[0]));
            moves += u32::from(now != last);
            last = now;
            moves > 20
        });
        for node in &mut cluster.nodes {
            node.kill();
        }
        let ledger = writers.finish();
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_until_ready();
        assert!(ledger.values().all(|entry| entry.acked > 0), "round {round}: {ledger:?}");
        ledger::check(&mut cluster, &ledger);
        // The next round counts from 1 again.
        let mut client = cluster.nodes[0].client();
        for key in &keys {
            assert_eq!(client.run(&format!("DEL {key}")), Reply::Integer(1), "{key}");
        }
    }
}

/// A leader that sleeps through its deposition must not answer from what it knew before:
/// a read that waits in its socket when it wakes is the hardest case.
#[test]
fn a_leader_that_was_stopped_never_reads_stale_values() {
    let _alone = alone();
    let cluster = Cluster::start(&Options::default());
    let key = "stale";
    let mut first = cluster.nodes[0].client();
    assert_eq!(first.run(&format!("SET {key} old")), Reply::OK);
    let victim = cluster.leader_of(key, 0).expect("a leader is known");
    let survivor = (victim + 1) % 3;
    // Connections from before, in all ways a client can ask.
    let mut sleeping = [
        cluster.nodes[victim].core_client(),
        cluster.nodes[victim].client(),
        cluster.nodes[victim].core_client(),
    ];
    assert_eq!(sleeping[2].run("READONLY"), Reply::OK);
    for client in &mut sleeping {
        assert_eq!(client.run(&format!("GET {key}")), bulk("old"));
    }

    let stopped = Instant::now();
    cluster.nodes[victim].pause();
    wait_until("another node leads and takes a write", || {
        let Ok(mut client) = Client::connect(cluster.nodes[survivor].ports.plain) else {
            return false;
        };
        client.reply_within(Duration::from_secs(3));
        matches!(client.call(&["SET", key, "new"]), Ok(Reply::Status("OK")))
    });
    // Sent after "new" was acknowledged, so "old" would be a stale answer.
    for client in &mut sleeping {
        client.send(&["GET", key]).expect("the kernel takes it");
    }
    std::thread::sleep(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    cluster.nodes[victim].resume();
    for (way, client) in sleeping.iter_mut().enumerate() {
        let reply = client.reply().expect("an answer");
        let codes = ["MOVED ", "TRYAGAIN ", "CLUSTERDOWN "];
        let refused = matches!(&reply, Reply::Error(e)
            if codes.iter().any(|code| e.starts_with(code)));
        assert!(refused || reply == bulk("new"), "way {way}: {reply:?}");
    }
    // And it serves the new value again, as a follower that forwards.
    wait_until("the woken node serves", || {
        let reply = cluster.nodes[victim].client().run(&format!("GET {key}"));
        assert_ne!(reply, bulk("old"));
        reply == bulk("new")
    });
}

/// SIGTERM stops a node in order, with status 0, and it starts again from what it wrote.
#[test]
fn a_node_that_is_told_to_stop_ends_with_status_0() {
    let _alone = alone();
    let mut cluster = Cluster::start(&Options::single());
    assert_eq!(cluster.nodes[0].client().run("SET a 1"), Reply::OK);
    for round in 1..=3 {
        assert_eq!(cluster.nodes[0].terminate().code(), Some(0), "round {round}");
        cluster.nodes[0].start();
        cluster.wait_until_ready();
        let mut client = cluster.nodes[0].client();
        assert_eq!(client.run("INCR a"), Reply::Integer(1 + round), "round {round}");
    }
}

/// Ends the threads of a scope, also when the test fails within it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A client that counts keys up through one node until told to stop, and never tries twice: the
/// rounds and the longest time between two replies, or the error that it got. A wrong number is
/// never excused.
fn count_up(port: u16, keys: &[String], stop: &AtomicBool) -> Result<(i64, Duration), String> {
    // Without this one the others need not go on.
    let _stopping = SetOnDrop(stop);
    let mut client = Client::connect(port).expect("the node serves");
    let (mut count, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
    while !stop.load(Ordering::SeqCst) {
        count += 1;
        for key in keys {
            let reply = client.call(&["INCR", key]).expect("a reply");
            if let Reply::Error(why) = reply {
                return Err(format!("{key} through {port}: {why}"));
            }
            assert_eq!(reply, Reply::Integer(count), "{key} through {port}");
            gap = gap.max(last.elapsed());
            last = Instant::now();
        }
    }
    Ok((count, gap))
}

/// Tells a node to stop while clients of the other nodes write, and starts it again: what they have
/// noticed, if anything.
fn stop_under_load(cluster: &mut Cluster, victim: usize, prefix: &str) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.ports.plain).collect();
    let others = (0..ports.len()).filter(|&index| index != victim);
    let gaps: Vec<_> = std::thread::scope(|scope| {
        let stopping = SetOnDrop(&stop);
        let clients: Vec<_> = others
            .flat_map(|index| [(index, 0), (index, 1)])
            .map(|(index, n)| {
                let keys = Cluster::keys(&format!("{prefix}-{index}-{n}"), KEYS);
                let (port, stop) = (ports[index], &stop);
                scope.spawn(move || count_up(port, &keys, stop))
            })
            .collect();
        let seen_from = (victim + 1) % ports.len();
        let probe = format!("{prefix}-{seen_from}-0:0");
        let mut client = cluster.nodes[seen_from].client();
        let mut flows = |least: i64| {
            let mut count = 0;
            wait_until("traffic flows", || {
                count = text(&client.run(&format!("GET {probe}"))).parse().unwrap_or(count);
                count > least || stop.load(Ordering::SeqCst)
            });
            count
        };
        let before = flows(10);
        assert_eq!(cluster.nodes[victim].terminate().code(), Some(0), "node {victim}");
        flows(before + 100);
        drop(stopping);
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    cluster.nodes[victim].start();
    cluster.wait_until_ready();
    for gap in gaps {
        let (count, gap) = gap?;
        assert!(count > 10, "node {victim}: {count} rounds");
        if gap >= HAND_OVER_GAP_MAX {
            return Err(format!("nothing for {gap:?}"));
        }
    }
    Ok(())
}

/// A node that is told to stop hands its leaderships over first: clients of the other nodes see
/// neither an error nor the gap of an election time-out.
#[test]
fn a_clean_stop_is_not_noticed_at_the_other_nodes() {
    let _alone = alone();
    let mut cluster = Cluster::start(&Options::default());
    for victim in 0..cluster.nodes.len() {
        let groups_led = |cluster: &Cluster| {
            let info = text(&cluster.nodes[victim].client().run("INFO cluster"));
            let line = info.lines().find_map(|line| line.strip_prefix("coracle_groups_led:"));
            line.and_then(|led| led.parse::<u64>().ok()).expect("a number")
        };
        fast_enough(|attempt| {
            wait_until("the node leads something", || groups_led(&cluster) > 0);
            stop_under_load(&mut cluster, victim, &format!("stop{victim}-{attempt}"))
        });
    }
}
