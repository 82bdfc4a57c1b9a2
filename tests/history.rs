//! What clients see of a cluster whose nodes die is linearizable.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Cluster, Options, alone};
use coracle_loadgen::{Command, Report, run};
use coracle_sim::checker::{Failure, check, check_file};
use coracle_sim::history::{Bytes, Op, OpKind, Outcome, Reader, Reply};

/// A load on few keys, so that operations meet, through every node's plain port.
fn load(cluster: &Cluster, file: &Path, command: Command) -> coracle_loadgen::Options {
    let endpoints = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.plain));
    coracle_loadgen::Options {
        endpoints: endpoints.collect(),
        seconds: 3.0,
        warmup: 0.0,
        rate: Some(3000.0),
        connections: 12,
        pipeline: 4,
        keys: 50,
        key_prefix: format!("{command:?}:"),
        value_size: 40,
        read_ratio: 0.5,
        command,
        timeout_ms: 2000,
        history: Some(file.to_owned()),
        quiet: true,
        ..coracle_loadgen::Options::default()
    }
}

fn read(file: &Path) -> Vec<Op> {
    let file = std::io::BufReader::new(std::fs::File::open(file).expect("a history"));
    Reader::new(file).collect::<Result<_, _>>().expect("a history that can be read")
}

/// `kill -9` of a leader and its return, under reads and writes of each kind.
#[test]
fn a_history_with_a_killed_leader_is_linearizable() {
    let _alone = alone();
    let mut cluster = Cluster::start(&Options::default());
    let dir = tempfile::tempdir().expect("temporary directory");
    for command in [Command::Set, Command::Incr, Command::Append] {
        let file: PathBuf = dir.path().join(format!("{command:?}.ndjson"));
        let options = load(&cluster, &file, command);
        let report = run_while(options, || {
            std::thread::sleep(Duration::from_secs(1));
            let victim = cluster.leader_of("any", 0).expect("a leader is known");
            cluster.nodes[victim].kill();
            std::thread::sleep(Duration::from_millis(800));
            cluster.nodes[victim].start();
        });
        cluster.wait_until_ready();

        let found = report.load.expect("a load");
        let checked = check_file(&file).expect("a history that can be read");
        let summary = checked.unwrap_or_else(|failure| panic!("{command:?}: {failure}"));
        assert_eq!(summary.keys, 50, "{command:?}: {summary}");
        assert!(found.connections_lost > 0, "{command:?}: the fault was felt");
        assert!(summary.operations >= found.reads + found.writes, "{command:?}: {summary}");
        assert!(found.reads > 500 && found.writes > 500, "{command:?}: {summary}");
        assert!(summary.unknown < summary.operations / 2, "{command:?}: {summary}");
        planted_errors_are_found(&file);
    }
}

/// The same history with one wrong answer is refused: the check above can fail.
fn planted_errors_are_found(file: &Path) {
    let mut ops = read(file);
    let answered = |op: &&mut Op| {
        op.kind == OpKind::Get && matches!(op.outcome, Outcome::Reply(Reply::Value(Some(_))))
    };
    let read = ops.iter_mut().rfind(answered).expect("a read that found something");
    read.outcome = Outcome::Reply(Reply::Value(Some(Bytes::from(&b"never written"[..]))));
    let key = read.key.clone();
    match check(&ops) {
        Err(Failure::NotLinearizable(found)) => assert_eq!(found.key, key),
        other => panic!("a planted error is not found: {other:?}"),
    }
}

/// Runs a load on its own thread while something else happens.
fn run_while(options: coracle_loadgen::Options, happen: impl FnOnce()) -> Report {
    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || run(options, stop)
    });
    happen();
    let report = load.join().expect("the load does not panic").expect("a report");
    assert!(!stop.load(Ordering::SeqCst));
    report
}
