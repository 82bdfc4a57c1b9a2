//! Recording acknowledged writes and finding planted losses.

mod common;

use std::path::Path;
use std::process::{Command as Process, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Answer, Server, Store};
use coracle_engine::Reply;
use coracle_loadgen::{CheckReport, Options, Report, run};

fn options(server: &Server) -> Options {
    Options {
        endpoints: vec![server.addr.to_string()],
        seconds: 0.2,
        warmup: 0.0,
        connections: 4,
        pipeline: 4,
        keys: 100,
        value_size: 100,
        quiet: true,
        ..Options::default()
    }
}

fn go(options: Options) -> Report {
    run(options, Arc::new(AtomicBool::new(false))).expect("a report")
}

fn check(server: &Server, file: &Path) -> (CheckReport, u8) {
    let report = go(Options { check_acked: Some(file.to_owned()), ..options(server) });
    let code = report.exit_code();
    (report.check.expect("a check"), code)
}

#[test]
fn a_planted_loss_is_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("acked");
    let store = Store::default();
    let shared = store.clone();
    let server = Server::start(move |_, args| shared.answer(args));

    let verified = |seed| Options {
        verify_acked: Some(file.clone()),
        preload: true,
        read_ratio: 0.3,
        seed,
        ..options(&server)
    };
    let first = go(verified(1));
    let older = store.0.lock().expect("no panic").clone();
    let report = go(verified(2));
    let recorded = report.recorded.expect("recorded");
    let found = report.load.expect("a load");
    assert!(recorded.acked >= found.writes + 100, "{recorded:?}: the preload is recorded, too");
    assert_eq!((recorded.unknown, found.error_count, found.reads_stale), (0, 0, 0));
    assert_eq!(first.exit_code(), 0);

    let (clean, code) = check(&server, &file);
    assert_eq!((clean.keys, clean.exact, code), (100, 100, 0), "{clean:?}");

    let mut map = store.0.lock().expect("no panic");
    let older = older[&b"key:07"[..]].clone();
    map.insert(b"key:07".to_vec(), older);
    map.remove(&b"key:42"[..]);
    let neighbour = map[&b"key:12"[..]].clone();
    map.insert(b"key:11".to_vec(), neighbour);
    drop(map);
    let (found, code) = check(&server, &file);
    assert_eq!((found.exact, found.lost, found.damaged, code), (97, 2, 1, 1), "{found:?}");
    let text = found.examples.join("\n");
    for key in ["key:07", "key:42", "key:11"] {
        assert!(text.contains(key), "{key} is named in {text}");
    }
}

/// Writes that were applied though their connection broke are of unknown outcome, not lost; so
/// are those that were not applied.
#[test]
fn unknown_outcomes_are_not_losses() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("acked");
    let store = Store::default();
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, args| {
        if args[0] != b"SET" {
            return store.answer(args);
        }
        match count.fetch_add(1, Ordering::SeqCst) % 50 {
            7 => {
                store.answer(args);
                Answer::HangUp
            }
            23 => Reply::error("UNCERTAIN outcome unknown: leader lost").into(),
            31 => Reply::error("TRYAGAIN not now").into(),
            _ => store.answer(args),
        }
    });
    let report = go(Options { verify_acked: Some(file.clone()), ..options(&server) });
    let recorded = report.recorded.expect("recorded");
    assert!(recorded.unknown > 0 && recorded.acked > 0, "{recorded:?}");
    let load = report.load.expect("a load");
    assert!(load.retried["TRYAGAIN"] > 0, "{:?}", load.retried);
    for kind in ["UNCERTAIN", "connection lost (outcome unknown)"] {
        assert!(load.errors.contains_key(kind), "{kind}: {:?}", load.errors);
    }
    let (found, code) = check(&server, &file);
    assert!(found.is_clean() && code == 0, "{found:?}");
}

/// A server that answers reads from the past.
#[test]
fn stale_reads_are_found() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (store, old) = (Store::default(), Store::default());
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, args| match args[0] {
        b"SET" if count.fetch_add(1, Ordering::SeqCst) < 100 => {
            old.answer(args);
            store.answer(args)
        }
        b"SET" => store.answer(args),
        _ => old.answer(args),
    });
    let report = go(Options {
        verify_acked: Some(dir.path().join("acked")),
        preload: true,
        read_ratio: 0.5,
        ..options(&server)
    });
    assert_eq!(report.exit_code(), 1);
    let load = report.load.expect("a load");
    assert!(load.reads_stale > 0);
    assert!(load.warnings.iter().any(|text| text.contains("not linearizable")));
}

fn binary(args: &[&str]) -> Output {
    Process::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().expect("started")
}

/// The exit codes of the command line, and where its words go.
#[test]
fn exit_codes_are_the_documented_ones() {
    let store = Store::default();
    let server = Server::start(move |_, args| store.answer(args));
    let endpoint = server.addr.to_string();
    let common = ["--endpoints", &endpoint, "--seconds", "0.1", "--warmup", "0"];
    let with = |more: &[&str]| binary(&[&common[..], more].concat());

    let well = with(&[]);
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    let text = String::from_utf8_lossy(&well.stdout);
    for part in ["closed loop with 256", "99.99 %", "answers/s", "generator:"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(well.stderr, b"", "no progress off a terminal");

    assert_eq!(with(&["--read-ratio", "2"]).status.code(), Some(2));
    assert_eq!(with(&["--no-such-option"]).status.code(), Some(2));
    let refusing = Server::start(|_, _| Reply::error("OOM no memory").into());
    let refused = refusing.addr.to_string();
    let failing = ["--endpoints", &refused, "--seconds", "0.05", "--warmup", "0"];
    assert_eq!(binary(&failing).status.code(), Some(0), "errors are a result");
    let strict = binary(&[&failing[..], &["--fail-on-error"]].concat());
    assert_eq!(strict.status.code(), Some(1));
    let mut gone = server;
    gone.kill();
    let unreachable = with(&[]);
    assert_eq!(unreachable.status.code(), Some(3), "{unreachable:?}");
    assert!(String::from_utf8_lossy(&unreachable.stderr).contains("unreachable"));
}

/// A history has a line for everything that may have happened: unknown outcomes have no return,
/// what was refused has no line, and no value is written twice.
#[test]
fn a_history_tells_unknown_from_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("history");
    let store = Store::default();
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, args| match count.fetch_add(1, Ordering::SeqCst) % 50 {
        7 => Answer::HangUp,
        23 => Reply::error("UNCERTAIN outcome unknown: leader lost").into(),
        31 => Reply::error("OOM not now").into(),
        _ => store.answer(args),
    });
    let options = Options { history: Some(file.clone()), read_ratio: 0.5, ..options(&server) };
    let load = go(options).load.expect("a load");

    let text = std::fs::read_to_string(&file).expect("a history");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let known = lines.iter().filter(|line| !line["return_ns"].is_null()).count() as u64;
    let unknown = lines.len() as u64 - known;
    let refused = load.errors["OOM"].count;
    assert_eq!(known, load.reads + load.writes);
    assert_eq!(unknown, load.error_count - refused);
    assert!(unknown > 0 && refused > 0, "{unknown} unknown, {refused} refused");
    let mut values: Vec<&str> = lines.iter().filter_map(|line| line["arg"].as_str()).collect();
    let writes = values.len();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), writes, "every write has a value of its own");
}
