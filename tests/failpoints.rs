//! A node ends at every named place of its work on the disk, under load, and comes back with
//! everything that was acknowledged (fault matrix, rows 1 and 12). Needs the feature `failpoints`:
//! `cargo test --features failpoints --test failpoints`.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::client::{Client, text};
use common::ledger::{self, Writers};
use common::{Cluster, Options, wait_until};
use coracle_engine::Reply;

/// Status of a process that a failpoint has ended: the place panics.
const ENDED: i32 = 70;
/// Writers per case.
const KEYS: usize = 4;
/// The node that ends.
const VICTIM: usize = 2;

/// When a place is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// All the time, under load.
    Busy,
    /// At every start.
    Start,
    /// By a node that was away for so long that it needs a snapshot.
    Behind,
}

/// Each place, how many times it is passed first, and when it is reached.
const PLACES: &[(&str, u32, Reached)] = &[
    // First: a node that has ended often must wait longer and longer until it leads again.
    ("send_before_persist", 20, Reached::Busy),
    ("wal_before_submit", 300, Reached::Busy),
    ("wal_after_write", 300, Reached::Busy),
    ("wal_after_sync", 300, Reached::Busy),
    ("wal_segment_created", 2, Reached::Busy),
    ("wal_segment_renamed", 2, Reached::Busy),
    ("wal_dir_synced", 2, Reached::Busy),
    ("wal_truncate_suffix", 0, Reached::Start),
    ("hardstate_before_sync", 0, Reached::Busy),
    ("hardstate_after_sync", 0, Reached::Busy),
    ("ack_before_send", 300, Reached::Busy),
    ("reply_before_send", 100, Reached::Busy),
    ("apply_before_batch", 500, Reached::Busy),
    ("apply_after_batch", 500, Reached::Busy),
    ("snap_tmp_written", 1, Reached::Busy),
    ("snap_synced", 1, Reached::Busy),
    ("snap_renamed", 1, Reached::Busy),
    ("snap_manifest_switched", 1, Reached::Busy),
    ("loggc_before_recycle", 1, Reached::Busy),
    ("loggc_before_unlink", 0, Reached::Busy),
    ("snap_install_before_swap", 2, Reached::Behind),
    ("snap_install_before_log_reset", 0, Reached::Behind),
];

fn options() -> Options {
    // Checkpoints, and with them the reuse of segments, all the time.
    let flags = "--wal-max-size 64MiB --checkpoint-bytes 4MiB --checkpoint-period 1";
    Options { flags: flags.split_whitespace().map(str::to_owned).collect(), ..Options::default() }
}

/// Ends the threads of a scope, also when the test fails within it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Fills the logs through one node until told to stop.
fn fill(port: u16, stop: &AtomicBool) {
    let (mut client, mut number) = (None, 0_u32);
    let value = vec![b'v'; 64 << 10];
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let key = format!("fill{}", number % 97);
        let Some(open) = &mut client else {
            client = Client::connect(port).ok();
            if client.is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
            continue;
        };
        if Client::call(open, &[&b"SET"[..], key.as_bytes(), &value]).is_err() {
            client = None;
        }
    }
}

/// A number of `INFO`.
fn info(client: &mut Client, name: &str) -> u64 {
    let info = text(&client.run("INFO"));
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {info}")).parse().expect("a number")
}

/// The number of the newest checkpoint of core 0.
fn newest_checkpoint(data_dir: &Path) -> u64 {
    let names = std::fs::read_dir(data_dir.join("core-0")).expect("list").filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(".ckp")?.parse().ok()
    });
    names.max().unwrap_or(0)
}

/// The node's own replicas hold what was acknowledged, too: reads of a replica wait until it has
/// applied everything.
fn check_replica(cluster: &Cluster, keys: &[String], ledger: &ledger::Ledger) {
    let mut client = cluster.nodes[VICTIM].core_client();
    assert_eq!(client.run("READONLY"), Reply::OK);
    for key in keys {
        let mut number = None;
        wait_until("the replica answers", || {
            match client.call(&["GET", key]).expect("an answer") {
                Reply::Null => number = Some(0),
                reply @ Reply::Bulk(_) => number = Some(text(&reply).parse().expect("a number")),
                _ => {}
            }
            number.is_some()
        });
        let (number, entry) = (number.expect("just seen"), &ledger[key]);
        assert!(
            (entry.acked..=entry.sent).contains(&number),
            "{key}: {number} at the replica, {} acknowledged, {} sent",
            entry.acked,
            entry.sent
        );
    }
}

/// Ends the node at one place while all are busy, and looks at what is left.
fn end_at(cluster: &mut Cluster, (name, passed, reached): (&str, u32, Reached)) {
    let keys = Cluster::keys(name, KEYS);
    let writers = Writers::start(cluster, &keys);
    let stop = AtomicBool::new(false);
    let ports = [0, VICTIM].map(|node| cluster.nodes[node].ports.plain);
    std::thread::scope(|scope| {
        // Also when the case fails.
        let stopping = SetOnDrop(&stop);
        for port in ports {
            let stop = &stop;
            scope.spawn(move || fill(port, stop));
        }
        cluster.nodes[VICTIM].kill();
        if reached == Reached::Behind {
            let newest = |cluster: &Cluster| newest_checkpoint(&cluster.nodes[0].data_dir);
            let before = newest(cluster);
            wait_until("the others forget their logs", || newest(cluster) >= before + 4);
        }
        let points = format!("{name}={passed}*off->panic");
        cluster.nodes[VICTIM].start_with(&[("FAILPOINTS", &points)]);
        let status = cluster.nodes[VICTIM].wait_for_exit();
        drop(stopping);
        assert_eq!(status.code(), Some(ENDED), "{name}: {status}");
        let log = cluster.nodes[VICTIM].log();
        assert!(log.contains(&format!("failpoint {name} panic")), "{name}: ended elsewhere");
    });
    cluster.nodes[VICTIM].start();
    cluster.wait_until_ready();
    let ledger = writers.finish();
    assert!(ledger.values().all(|entry| entry.acked > 0), "{name}: {ledger:?}");
    ledger::check(cluster, &ledger);
    check_replica(cluster, &keys, &ledger);
    let snapshots = info(&mut cluster.nodes[VICTIM].client(), "coracle_snapshots_installed");
    assert!(reached != Reached::Behind || snapshots > 0, "{name}: it was not far enough behind");
}

#[test]
fn nothing_acknowledged_is_lost_wherever_a_node_ends() {
    let mut cluster = Cluster::start(&options());
    for &place in PLACES {
        end_at(&mut cluster, place);
    }
    let log = cluster.nodes[VICTIM].log();
    let damage = log.lines().find(|line| line.contains("damaged") && !line.contains("damaged: {}"));
    assert_eq!(damage, None, "a process that ends leaves no damage");
}
