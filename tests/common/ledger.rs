//! Writers that keep a ledger of what was acknowledged, and the check against it.
//!
//! Each key is written by one thread with ascending numbers. After any fault, the number read
//! must be at least the highest acknowledged one and at most the highest sent one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_engine::Reply;

use super::client::{Client, text};
use super::{Cluster, wait_until};

/// How long a writer waits for a reply before it asks another node.
const REPLY_MAX: Duration = Duration::from_secs(2);
/// Pause of a writer that finds no node.
const PAUSE: Duration = Duration::from_millis(5);

/// What is known of one key.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Highest number acknowledged.
    pub acked: u64,
    /// Highest number sent.
    pub sent: u64,
    /// When each acknowledgement came.
    pub acks: Vec<Instant>,
}

/// What is known of all keys.
pub type Ledger = BTreeMap<String, Entry>;

/// Writers in the background.
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<BTreeMap<String, Entry>>>,
}

impl Writers {
    /// Starts one thread per key, each writing through the plain ports of all nodes in turn.
    pub fn start(cluster: &Cluster, keys: &[String]) -> Self {
        let ports: Vec<_> = cluster.nodes.iter().map(|node| node.ports.plain).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = keys.iter().enumerate().map(|(first, key)| {
            let (key, ports, stop) = (key.clone(), ports.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                BTreeMap::from([(key.clone(), write(&key, &ports, first, &stop))])
            })
        });
        Self { threads: threads.collect(), stop }
    }

    /// Stops the writers; what they know.
    pub fn finish(self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.threads.into_iter().map(|thread| thread.join().expect("a writer panicked"));
        all.flatten().collect()
    }
}

fn write(key: &str, ports: &[u16], first: usize, stop: &AtomicBool) -> Entry {
    let mut entry = Entry::default();
    let mut node = first;
    let mut client = None;
    while !stop.load(Ordering::SeqCst) {
        let Some(connected) = client.as_mut() else {
            node += 1;
            client = Client::connect(ports[node % ports.len()]).ok();
            match &mut client {
                Some(client) => client.reply_within(REPLY_MAX),
                None => std::thread::sleep(PAUSE),
            }
            continue;
        };
        entry.sent += 1;
        match connected.call(&["SET", key, &entry.sent.to_string()]) {
            Ok(Reply::Status("OK")) => {
                entry.acked = entry.sent;
                entry.acks.push(Instant::now());
            }
            Ok(Reply::Error(error)) => {
                let known = ["UNCERTAIN ", "TRYAGAIN ", "CLUSTERDOWN "];
                assert!(known.iter().any(|code| error.starts_with(code)), "{key}: {error}");
                std::thread::sleep(PAUSE);
            }
            Ok(other) => panic!("{key}: SET answered {other:?}"),
            // The outcome is unknown; so is the connection's state.
            Err(_) => client = None,
        }
    }
    entry
}

/// Reads every key through every running node and compares.
pub fn check(cluster: &mut Cluster, ledger: &BTreeMap<String, Entry>) {
    for index in cluster.running() {
        for (key, entry) in ledger {
            let number = read(cluster, index, key);
            assert!(
                number >= entry.acked,
                "{key} read from node {}: {number}, but {} was acknowledged",
                index + 1,
                entry.acked
            );
            assert!(number <= entry.sent, "{key}: {number}, but only {} was sent", entry.sent);
        }
    }
}

/// Reads a number through a node, waiting for the cluster to serve.
fn read(cluster: &Cluster, index: usize, key: &str) -> u64 {
    let mut value = None;
    wait_until("the key can be read", || {
        let Ok(mut client) = Client::connect(cluster.nodes[index].ports.plain) else {
            return false;
        };
        match client.call(&["GET", key]) {
            Ok(Reply::Null) => value = Some(0),
            Ok(reply @ Reply::Bulk(_)) => value = Some(text(&reply).parse().expect("a number")),
            _ => {}
        }
        value.is_some()
    });
    value.expect("just seen")
}

/// The longest time without an acknowledgement between `from` and `to`.
pub fn longest_gap(entry: &Entry, from: Instant, to: Instant) -> Duration {
    let inside = entry.acks.iter().copied().filter(|&at| at > from && at < to);
    let mut longest = Duration::ZERO;
    let mut last = from;
    for at in inside.chain([to]) {
        longest = longest.max(at.duration_since(last));
        last = at;
    }
    longest
}
