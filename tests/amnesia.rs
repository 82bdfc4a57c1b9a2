//! A node whose disk was wiped or replaced by an old copy may have forgotten votes and acknowledged
//! writes: the others refuse it, and it says why and ends.

mod common;

use std::fs;
use std::path::Path;

use common::client::bulk;
use common::{Cluster, Options, wait_until};
use coracle_engine::Reply;

/// Status of a process that has another identity than the one it needs.
const WRONG_IDENTITY: i32 = 5;
const VICTIM: usize = 2;

/// Every node has written down the newest start of every other node.
fn wait_until_all_have_met(cluster: &Cluster) {
    let nonces = |text: &str, key: &str| -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let all = value.as_object().expect("an object");
        match key {
            "nonces" => {
                let all = value["nonces"].as_array().expect("a list");
                all.last().and_then(|last| last.as_str()).into_iter().map(str::to_owned).collect()
            }
            _ => all.values().filter_map(|met| met[key].as_str()).map(str::to_owned).collect(),
        }
    };
    wait_until("all nodes have met", || {
        cluster.nodes.iter().all(|node| {
            let Ok(text) = fs::read_to_string(node.data_dir.join("starts.json")) else {
                return false;
            };
            let own = nonces(&text, "nonces");
            let mut others = cluster.nodes.iter().filter(|other| other.id != node.id);
            others.all(|other| {
                let book = fs::read_to_string(other.data_dir.join("peers-0.json"));
                book.is_ok_and(|book| {
                    own.iter().all(|nonce| nonces(&book, "nonce").contains(nonce))
                })
            })
        })
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("list");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copy");
        }
    }
}

/// The victim is refused each time it is started, and the other two go on.
fn expect_refusal(cluster: &mut Cluster, text: &str) {
    for attempt in 1..=3 {
        cluster.nodes[VICTIM].start();
        let status = cluster.nodes[VICTIM].wait_for_exit();
        let log = cluster.nodes[VICTIM].log();
        assert_eq!(status.code(), Some(WRONG_IDENTITY), "attempt {attempt}: {log}");
        let ending = "error: most other nodes refuse this one because of its data directory";
        let endings = log.lines().filter(|line| *line == ending).count();
        assert_eq!(endings, attempt, "{log}");
        assert!(log.contains(&format!("cause: {text}")), "{log}");
    }
    for node in 0..VICTIM {
        let log = cluster.nodes[node].log();
        assert_eq!(log.matches("peer link refused: node 3").count(), 1, "once per change: {log}");
        let mut client = cluster.nodes[node].client();
        for number in 0..8 {
            assert_eq!(client.run(&format!("GET k:{number}")), bulk("new"));
            assert_eq!(client.run(&format!("SET k:{number} new")), Reply::OK);
        }
    }
}

fn write(cluster: &Cluster, value: &str) {
    let mut client = cluster.nodes[0].client();
    for number in 0..8 {
        assert_eq!(client.run(&format!("SET k:{number} {value}")), Reply::OK);
    }
}

/// The directory is empty when the node comes back; with its own directory it is welcome again.
#[test]
fn a_node_with_a_wiped_disk_is_refused() {
    let mut cluster = Cluster::start(&Options::default());
    wait_until_all_have_met(&cluster);
    write(&cluster, "new");
    assert!(cluster.nodes[VICTIM].terminate().success());
    let data_dir = cluster.nodes[VICTIM].data_dir.clone();
    let kept = data_dir.with_extension("kept");
    fs::rename(&data_dir, &kept).expect("rename");
    cluster.wait_until_ready();

    expect_refusal(&mut cluster, "node 3's disk is not the one that this cluster knows");

    fs::remove_dir_all(&data_dir).expect("remove");
    fs::rename(&kept, &data_dir).expect("rename");
    cluster.nodes[VICTIM].start();
    cluster.wait_until_ready();
    assert_eq!(cluster.nodes[VICTIM].client().run("GET k:0"), bulk("new"));
}

/// A copy that is one start old reaches the number of the start that the others have met, and
/// then the one after it; neither helps.
#[test]
fn a_node_with_an_old_copy_of_its_disk_is_refused() {
    let mut cluster = Cluster::start(&Options::default());
    wait_until_all_have_met(&cluster);
    write(&cluster, "old");
    assert!(cluster.nodes[VICTIM].terminate().success());
    let data_dir = cluster.nodes[VICTIM].data_dir.clone();
    let backup = data_dir.with_extension("backup");
    copy(&data_dir, &backup);
    cluster.nodes[VICTIM].start();
    cluster.wait_until_ready();
    wait_until_all_have_met(&cluster);
    write(&cluster, "new");
    assert!(cluster.nodes[VICTIM].terminate().success());
    fs::remove_dir_all(&data_dir).expect("remove");
    fs::rename(&backup, &data_dir).expect("rename");
    cluster.wait_until_ready();

    expect_refusal(&mut cluster, "node 3's disk is an old copy of the one that this cluster knows");
}
