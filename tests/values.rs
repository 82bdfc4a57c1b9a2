//! Values that are only in the log: read back from there, before and after every kind of end, and
//! the files that hold them.

mod common;

use std::path::PathBuf;

use common::client::bulk;
use common::stored::{check, files, flip, info, write};
use common::{Cluster, Options, alone, wait_until};
use coracle_engine::Reply;

/// Status of a process whose data is damaged beyond its own help.
const DATA_DAMAGED: i32 = 3;
/// Where the sections of a checkpoint file begin: after the header's block.
const FIRST_SECTION: u64 = 4096;

fn options(nodes: u32, flags: &str) -> Options {
    let flags = flags.split_whitespace().map(str::to_owned).collect();
    Options { nodes, flags, ..Options::default() }
}

/// Writes until the node has made its third checkpoint or a later one; the last version written.
fn write_until_checkpointed(cluster: &Cluster, keys: &[String], len: usize) -> u32 {
    let (mut client, mut version) = (cluster.nodes[0].client(), 0);
    wait_until("there are checkpoints", || {
        version += 1;
        write(&mut client, keys, version, len);
        cluster.nodes.iter().all(|node| {
            let files = files(node, ".ckp");
            files.len() == 2 && !files[0].ends_with("0000000001.ckp")
        })
    });
    version
}

/// More values than the cache holds are all there: before and after a node is killed, and after
/// all are.
#[test]
fn values_out_of_memory_are_read_from_the_log() {
    // Twice as much in all as consensus keeps of what was written last.
    const VALUE: usize = 16 << 10;
    let _alone = alone();
    let mut cluster = Cluster::start(&options(3, "--value-cache 1MiB"));
    let keys = Cluster::keys("cold", 4000);
    write(&mut cluster.nodes[0].client(), &keys, 1, VALUE);
    check(&cluster.nodes[1], &keys, 1, VALUE);
    let reads = |cluster: &Cluster| -> u64 {
        let running = cluster.nodes.iter();
        running.map(|node| info(&mut node.client(), "coracle_values_read")).sum()
    };
    assert!(reads(&cluster) > 1000, "{} values were read from disks", reads(&cluster));
    for node in &cluster.nodes {
        let cached = info(&mut node.client(), "coracle_value_cache_bytes");
        assert!(cached <= 1 << 20, "{cached} bytes are cached");
    }

    cluster.nodes[2].kill();
    let (first, second) = keys.split_at(2000);
    write(&mut cluster.nodes[0].client(), first, 2, VALUE);
    cluster.nodes[2].start();
    check(&cluster.nodes[1], second, 1, VALUE);
    cluster.wait_until_ready();
    check(&cluster.nodes[2], first, 2, VALUE);
    check(&cluster.nodes[2], second, 1, VALUE);

    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        check(node, first, 2, VALUE);
        check(node, second, 1, VALUE);
        let failed = info(&mut node.client(), "coracle_failed_reads");
        assert_eq!(failed, 0, "node {}", node.id);
    }
}

/// Commands that need the value they change, with no cache at all.
#[test]
fn commands_work_on_values_that_are_not_in_memory() {
    let mut cluster = Cluster::start(&options(1, "--value-cache 0"));
    let mut client = cluster.nodes[0].client();
    let long = "0123456789".repeat(400);
    let all = ["append", "setrange", "getdel", "getrange", "getset", "both", "{both}"];
    for key in all {
        client.call(&["SET", key, &long]).expect("a reply");
    }
    assert_eq!(client.run("APPEND append x"), Reply::Integer(4001));
    assert_eq!(client.run("APPEND append y"), Reply::Integer(4002));
    assert_eq!(client.run("SETRANGE setrange 3999 abc"), Reply::Integer(4002));
    assert_eq!(client.run("GETRANGE getrange 8 11"), bulk("8901"));
    assert_eq!(client.run("STRLEN getrange"), Reply::Integer(4000));
    assert_eq!(client.run("GETDEL getdel"), bulk(&long));
    assert_eq!(client.run("GETDEL getdel"), Reply::Null);
    assert_eq!(client.call(&["SET", "getset", "new", "GET"]).expect("a reply"), bulk(&long));
    let two = client.run("MGET both {both} {both}none");
    assert_eq!(two, Reply::Array(vec![bulk(&long), bulk(&long), Reply::Null]));
    // One after the other on one connection, without waiting.
    for command in ["APPEND both 1", "GETRANGE both -2 -1", "APPEND both 2", "GETRANGE both -2 -1"]
    {
        client.send(&command.split(' ').collect::<Vec<_>>()).expect("send");
    }
    let replies: Vec<_> = (0..4).map(|_| client.reply().expect("a reply")).collect();
    let numbers = [Reply::Integer(4001), bulk("91"), Reply::Integer(4002), bulk("12")];
    assert_eq!(replies, numbers);
    wait_until("reads are counted", || info(&mut client, "coracle_values_read") > 0);

    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].client();
    assert_eq!(client.run("GET append"), bulk(&format!("{long}xy")));
    assert_eq!(client.run("GETRANGE setrange 3998 -1"), bulk("8abc"));
    assert_eq!(client.run("EXISTS getdel"), Reply::Integer(0));
    assert_eq!(client.run("GETRANGE both 3999 -1"), bulk("912"));
}

/// Overwritten values give their room back, also from segments that hold others which are never
/// written again, and nothing is lost when all nodes are killed.
#[test]
fn the_log_stays_small_under_overwrites_and_loses_nothing() {
    let _alone = alone();
    let flags = "--value-cache 1MiB --wal-max-size 64MiB --checkpoint-bytes 4MiB";
    let mut cluster = Cluster::start(&options(3, flags));
    let (once, often) = (Cluster::keys("once", 500), Cluster::keys("often", 320));
    write(&mut cluster.nodes[0].client(), &once, 1, 8192);
    let first: Vec<_> = cluster.nodes.iter().map(|node| files(node, ".seg")[0].clone()).collect();
    // 10 MiB each: 320 MiB are 20 segments.
    let mut versions = 0;
    while versions < 32 {
        versions += 1;
        write(&mut cluster.nodes[versions as usize % 3].client(), &often, versions, 32 << 10);
    }
    let mut client = cluster.nodes[0].client();
    wait_until("the first segments are gone", || {
        versions += 1;
        write(&mut client, &often[..32], versions, 32 << 10);
        write(&mut client, &often[32..], versions, 32 << 10);
        first.iter().all(|path| !path.exists())
    });
    for node in &cluster.nodes {
        // Each begins after 4 MiB at least, of 10 MiB in a round.
        let newest = files(node, ".ckp").pop().expect("checkpoints");
        let number: u64 =
            newest.file_stem().expect("a name").to_string_lossy().parse().expect("a number");
        let most = 3 * u64::from(versions);
        assert!(number <= most, "node {}: {number} checkpoints in {versions} rounds", node.id);
        // Four of the bound, those that wait for a checkpoint, and two made ahead.
        let segments = files(node, ".seg").len();
        assert!(segments <= 12, "node {}: {segments} segments after {versions} rounds", node.id);
        let mut client = node.client();
        assert!(info(&mut client, "coracle_log_moved_bytes") >= 500 * 8192, "node {}", node.id);
        assert_eq!(info(&mut client, "coracle_checkpoints_failed"), 0, "node {}", node.id);
    }
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        check(node, &once, 1, 8192);
        check(node, &often, versions, 32 << 10);
    }
}

/// The checkpoint before takes the place of one that is damaged; of both being damaged, with no
/// other replica, the node says so and does not serve.
#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let mut cluster = Cluster::start(&options(1, "--value-cache 1MiB --checkpoint-bytes 1MiB"));
    let keys = Cluster::keys("k", 200);
    let version = write_until_checkpointed(&cluster, &keys, 4096);
    cluster.nodes[0].kill();
    let newest = files(&cluster.nodes[0], ".ckp").pop().expect("two files");
    flip(&newest, FIRST_SECTION + 20);
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let log = cluster.nodes[0].log();
    let name = newest.file_name().expect("a name").to_string_lossy().into_owned();
    let told = log.lines().any(|line| line.contains("not used") && line.contains(&name));
    assert!(told, "{name} in {log}");
    check(&cluster.nodes[0], &keys, version, 4096);

    let version = version + write_until_newer(&cluster, &keys, version, &newest);
    check(&cluster.nodes[0], &keys, version, 4096);
    cluster.nodes[0].kill();
    for file in files(&cluster.nodes[0], ".ckp") {
        flip(&file, FIRST_SECTION + 20);
    }
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].wait_for_exit().code(), Some(DATA_DAMAGED));
    let log = cluster.nodes[0].log();
    assert!(log.contains("has no snapshot at or after"), "{log}");
}

/// Writes until two checkpoints newer than this one are there; how many rounds that took.
fn write_until_newer(cluster: &Cluster, keys: &[String], version: u32, than: &PathBuf) -> u32 {
    let (mut client, mut rounds) = (cluster.nodes[0].client(), 0);
    wait_until("there are newer checkpoints", || {
        rounds += 1;
        write(&mut client, keys, version + rounds, 4096);
        let files = files(&cluster.nodes[0], ".ckp");
        files.len() == 2 && files.iter().all(|file| file > than)
    });
    rounds
}

/// A replica that has lost its checkpoints takes no part in the groups concerned; the others serve
/// them, also through this node.
#[test]
fn a_node_without_valid_checkpoints_serves_no_wrong_data() {
    let mut cluster = Cluster::start(&options(3, "--value-cache 1MiB --checkpoint-bytes 1MiB"));
    let keys = Cluster::keys("k", 200);
    let version = write_until_checkpointed(&cluster, &keys, 4096);
    cluster.nodes[2].kill();
    for file in files(&cluster.nodes[2], ".ckp") {
        flip(&file, FIRST_SECTION + 20);
    }
    write(&mut cluster.nodes[0].client(), &keys, version + 1, 4096);
    cluster.nodes[2].start();
    cluster.wait_until_ready();
    let log = cluster.nodes[2].log();
    assert_eq!(log.matches("this replica takes no part").count(), 1, "{log}");
    for node in &cluster.nodes {
        check(node, &keys, version + 1, 4096);
    }
    assert_eq!(info(&mut cluster.nodes[2].client(), "coracle_groups_hosted"), 3);
    assert_eq!(info(&mut cluster.nodes[1].client(), "coracle_groups_hosted"), 4);
}
