//! Snapshots to followers and clients at the same time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use coracle_raft::{Body, LogIndex, Record};

use super::checkpoint::{base, cluster};
use crate::testing::{Cluster, Watch, addr};
use crate::{Core, CoreAddr, Effects, PeerMessage, Reply};

/// Bytes of pieces that each core has sent in each of its ticks.
type Sent = Rc<RefCell<BTreeMap<(CoreAddr, u64), usize>>>;

struct Pieces(Sent);

impl Watch for Pieces {
    fn started(&mut self, _: CoreAddr, _: &Core) {}
    fn stopped(&mut self, _: CoreAddr) {}
    fn durable(&mut self, _: CoreAddr, _: &[Record]) {}

    fn drained(&mut self, at: CoreAddr, core: &Core, effects: &Effects) {
        for (_, message) in &effects.sends {
            if let PeerMessage::Raft { message, .. } = message
                && let Body::Snapshot { payload, .. } = &message.body
            {
                *self.0.borrow_mut().entry((at, core.ticks)).or_default() += payload.len();
            }
        }
    }
}

/// Sends a snapshot of 12 MB while clients send `commands` of 60 KB in each tick. The most bytes in
/// one tick, and the ticks it took.
fn snapshot_with(commands: usize) -> (usize, usize) {
    let mut cluster = cluster(1, 7);
    let (victim, other) = (3, addr(1, 0));
    let value = vec![b'v'; 60_000];
    let set = |cluster: &mut Cluster, key: &str| {
        let token = cluster.submit(other, &[b"SET", key.as_bytes(), &value]);
        assert_eq!(cluster.wait(token), Reply::OK);
    };
    cluster.kill(victim);
    cluster.run(1500);
    (0..200).for_each(|number| set(&mut cluster, &format!("k{number}")));
    let live = [addr(1, 0), addr(2, 0)];
    assert!(
        (0..3000).any(|_| {
            cluster.checkpoint(1 << 20);
            cluster.run(1);
            live.iter().all(|&at| base(&cluster, at, 0) > LogIndex::new(100))
        }),
        "the logs were not cut"
    );
    let sent = Sent::default();
    cluster.watch(Box::new(Pieces(Rc::clone(&sent))));
    cluster.start(victim);
    let installed =
        |cluster: &Cluster| cluster.core(addr(victim, 0)).stats().snapshots_installed > 0;
    let done = (0..2000).any(|_| {
        for number in 0..commands {
            cluster.submit(other, &[b"SET", format!("k{number}").as_bytes(), &value]);
        }
        cluster.run(10);
        installed(&cluster)
    });
    assert!(done, "it never ends");
    cluster.assert_replicas_agree();
    let sent = sent.borrow();
    (sent.values().copied().max().unwrap_or(0), sent.len())
}

/// A snapshot takes what clients leave: a piece per tick while they want much.
#[test]
fn a_snapshot_gives_way_to_clients() {
    let (most_idle, ticks_idle) = snapshot_with(0);
    let (most_busy, ticks_busy) = snapshot_with(10);
    assert!(most_idle > 1 << 20, "{most_idle} bytes in a tick while nobody waits");
    assert!(most_busy <= 600_000, "{most_busy} bytes in a tick while clients wait");
    assert!(ticks_busy > 2 * ticks_idle, "{ticks_busy} ticks with clients, {ticks_idle} without");
}
