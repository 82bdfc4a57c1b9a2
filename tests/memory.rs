//! Clients that want more memory than there is (fault matrix, row 40): back-pressure, then clear
//! refusals, and never a node that is killed for its memory.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cgroup::MemoryLimit;
use common::client::{Client, text};
use common::{Cluster, Options, PATIENCE, alone, wait_until};
use coracle_engine::Reply;
use coracle_net::resp::encode_request;

/// What a node may have in all.
const LIMIT_BYTES: u64 = 400 << 20;
const VALUE_BYTES: usize = 1 << 20;
const KEYS: usize = 24;

fn key(number: usize) -> String {
    format!("big:{}", number % KEYS)
}

fn value(number: usize) -> Vec<u8> {
    vec![b'a' + (number % 26) as u8; VALUE_BYTES]
}

fn pressed(name: &str, press: impl FnOnce(&Cluster, &AtomicBool) + Send) {
    let _alone = alone();
    let flags = ["--maxmemory", "64MiB"].map(str::to_owned).to_vec();
    // Dropped after the cluster: they go when their processes have ended.
    let mut limits = Vec::new();
    let mut cluster = Cluster::prepare(&Options { flags, ..Options::default() });
    for node in &mut cluster.nodes {
        let test = format!("{name}-{}", node.id);
        let Some(limit) = MemoryLimit::new(name, &test, LIMIT_BYTES) else { return };
        node.start();
        limit.add(node.pid());
        limits.push(limit);
    }
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    for number in 0..KEYS {
        let set = client.call(&[&b"SET"[..], key(number).as_bytes(), &value(number)]);
        assert_eq!(set.expect("an answer"), Reply::OK);
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (cluster, over) = (&cluster, &over);
        let pressing = End(over);
        let pressure = scope.spawn(move || press(cluster, over));
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end && !pressure.is_finished() {
            for node in &cluster.nodes {
                // What others want much of costs them, not those who want little.
                wait_until(&format!("node {} takes a small value", node.id), || {
                    node.client().run("SET small v") == Reply::OK
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        drop(pressing);
        pressure.join().expect("the clients that press");
    });
    for (node, limit) in cluster.nodes.iter_mut().zip(&limits) {
        assert_eq!(limit.kills(), 0, "node {} was killed", node.id);
        assert!(node.is_running(), "node {} ended", node.id);
    }
}

/// Ends the pressure, also when a check fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn port(cluster: &Cluster, number: usize) -> u16 {
    cluster.nodes[number % cluster.nodes.len()].ports.plain
}

/// Clients that ask for more than they read.
#[test]
fn replies_that_nobody_reads() {
    pressed("replies_that_nobody_reads", |cluster, over| {
        let mut requests = Vec::new();
        for number in 0..1000 {
            encode_request(&[b"GET", key(number).as_bytes()], &mut requests);
        }
        let mut clients = Vec::new();
        while !over.load(Ordering::Relaxed) {
            if clients.len() < 96
                && let Ok(mut client) = Client::connect(port(cluster, clients.len()))
            {
                client.reply_within(Duration::from_millis(100));
                let _ = client.send_raw(&requests);
                clients.push(client);
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
}

/// Clients that begin commands of megabytes and do not end them.
#[test]
fn commands_that_nobody_ends() {
    pressed("commands_that_nobody_ends", |cluster, over| {
        let mut request = Vec::new();
        encode_request(&[b"SET", b"half", &vec![b'h'; 8 << 20]], &mut request);
        request.truncate(request.len() - 1000);
        let mut clients = Vec::new();
        while !over.load(Ordering::Relaxed) {
            if clients.len() < 300
                && let Ok(mut client) = Client::connect(port(cluster, clients.len()))
            {
                client.reply_within(Duration::from_millis(100));
                let _ = client.send_raw(&request);
                clients.push(client);
            }
        }
    });
}

/// Clients that write megabytes as fast as they can, in long pipelines.
#[test]
fn writes_faster_than_disks() {
    pressed("writes_faster_than_disks", |cluster, over| {
        thread::scope(|scope| {
            for writer in 0..48 {
                scope.spawn(move || {
                    let mut client = Client::connect(port(cluster, writer)).expect("it listens");
                    while !over.load(Ordering::Relaxed) {
                        for number in 0..16 {
                            let (key, value) = (key(writer + number), value(number));
                            let sent = client.send(&[&b"SET"[..], key.as_bytes(), &value]);
                            sent.expect("it is never closed");
                        }
                        for _ in 0..16 {
                            let reply = client.reply().expect("it is never closed");
                            assert!(reply == Reply::OK || is_overload(&reply), "{reply:?}");
                        }
                    }
                });
            }
        });
    });
}

/// What a cluster says that has more to do than it can.
fn is_overload(reply: &Reply) -> bool {
    const CODES: [&str; 4] = ["OOM ", "TRYAGAIN ", "UNCERTAIN ", "CLUSTERDOWN "];
    matches!(reply, Reply::Error(text) if CODES.iter().any(|code| text.starts_with(code)))
}

/// Clients that ask for much at once and read it get all of it, however much it is.
#[test]
fn long_pipelines_of_long_values() {
    let flags = ["--maxmemory", "64MiB"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(&Options { flags, ..Options::default() });
    let mut client = cluster.nodes[0].client();
    for (key, bytes) in [("{k}8", 8 << 20), ("{k}1", 1 << 20), ("{k}0", 10)] {
        let set = client.call(&[&b"SET"[..], key.as_bytes(), &vec![b'v'; bytes]]);
        assert_eq!(set.expect("an answer"), Reply::OK);
    }
    let ports = cluster.nodes.iter().map(|node| node.ports.plain);
    for port in ports {
        let mut client = Client::connect(port).expect("it listens");
        for _ in 0..8 {
            client.send_raw(&b"GET {k}1\r\n".repeat(20)).expect("sent");
            client.send_raw(&b"GET {k}8\r\nGET {k}0\r\n".repeat(4)).expect("sent");
            client.send_raw(b"MGET {k}8 {k}1\r\n").expect("sent");
        }
        client.send_raw(b"MGET {k}8 {k}1 {k}8\r\n").expect("sent");
        let mut expect = |bytes: &[usize]| match client.reply().expect("it is not closed") {
            Reply::Bulk(value) => assert_eq!([value.len()], bytes),
            Reply::Array(values) => assert_eq!(values.len(), bytes.len()),
            other => panic!("{other:?}"),
        };
        for _ in 0..8 {
            (0..20).for_each(|_| expect(&[1 << 20]));
            (0..4).for_each(|_| {
                expect(&[8 << 20]);
                expect(&[10]);
            });
            expect(&[8 << 20, 1 << 20]);
        }
        let refused = client.reply().expect("it is not closed");
        assert!(matches!(&refused, Reply::Error(text) if text.contains("15728640")), "{refused:?}");
    }
}

/// More long commands at once than there is memory for are all executed, one after the other.
#[test]
fn long_commands_take_turns() {
    let _alone = alone();
    let flags = ["--maxmemory", "64MiB"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(&Options { flags, ..Options::single() });
    let port = cluster.nodes[0].ports.plain;
    thread::scope(|scope| {
        for number in 0..24 {
            scope.spawn(move || {
                let mut client = Client::connect(port).expect("it listens");
                client.reply_within(PATIENCE);
                let mut request = Vec::new();
                let key = format!("long:{}", number % 8);
                encode_request(&[b"SET", key.as_bytes(), &vec![b'l'; 8 << 20]], &mut request);
                // All begin before any ends. What the disk does not keep up with is refused.
                wait_until("a long command is executed", || {
                    for part in request.chunks(1 << 20) {
                        client.send_raw(part).expect("it is not closed");
                        thread::sleep(Duration::from_millis(20));
                    }
                    let reply = client.reply().expect("it is not closed");
                    assert!(reply == Reply::OK || is_overload(&reply), "{reply:?}");
                    reply == Reply::OK
                });
            });
        }
    });
    let mut client = cluster.nodes[0].client();
    assert!(text(&client.run("INFO")).contains("evicted_clients:0\r\n"));
}
