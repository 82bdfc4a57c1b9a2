use coracle_net::peers::{Lineage, PeerBook, Start};
use coracle_raft::NodeId;

use super::memory::STARTS;
use super::*;
use crate::config::test_config;

/// Counts a start; a node has made its logs by then.
fn count(dir: &DataDir) -> Lineage {
    (*dir.starts().count().expect("counted")).clone()
}

/// A configuration of node 1 of two on `dir`, changed by `flags`.
fn config(dir: &Path, flags: &str) -> Config {
    let nodes = "--node 1=h:1/2/9 --node 2=h2:1/2/9 --node 3=h3:1/2/9";
    test_config(&format!("--id 1 --cluster a --data-dir {} {nodes} {flags}", dir.display()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").permissions().mode() & 0o777
}

/// The first start makes everything, private; later starts count on.
#[test]
fn first_start_creates_and_later_starts_count() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let dir = tmp.path().join("a/b");
    let config = config(&dir, "--cores 0,0");
    let mut before: Option<Lineage> = None;
    for start in 1..=3 {
        drop(DataDir::open(&config).expect("own directory"));
        let opened = DataDir::open(&config).expect("own directory");
        let lineage = count(&opened);
        for core in 0..2 {
            fs::write(opened.core_dir(core).join("segment"), "").expect("write");
        }
        assert_eq!((lineage.count(), lineage.nonces().len()), (start, start as usize));
        assert_eq!(count(&opened), lineage, "once per process");
        if let Some(before) = before.replace(lineage.clone()) {
            assert_eq!(before.disk(), lineage.disk());
            assert!(lineage.nonces().starts_with(before.nonces()));
        }
        assert_eq!(opened.core_dir(1), dir.join("core-1"));
    }
    assert_eq!((mode(&dir), mode(&dir.join("core-1"))), (0o700, 0o700));
    for file in [LOCK, IDENTITY, STARTS] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
}

/// A directory that others could read is closed to them.
#[test]
fn an_open_directory_is_made_private() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let dir = tmp.path().join("d");
    fs::create_dir(&dir).expect("create");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    DataDir::open(&config(&dir, "")).expect("empty directory");
    assert_eq!(mode(&dir), 0o700);
}

/// Data of another owner or layout is never touched.
#[test]
fn another_identity_is_refused() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let dir = tmp.path();
    drop(DataDir::open(&config(dir, "--groups 4 --shards 64")).expect("first start"));
    let before = fs::read(dir.join(IDENTITY)).expect("identity");
    let same = "--groups 4 --shards 64";
    let cases: &[(&str, &str)] = &[
        ("--groups 5 --shards 64", "groups 4"),
        ("--groups 4 --shards 65", "shards 64"),
        ("--groups 4 --shards 64 --cores 0,0", "cores 1"),
        ("--groups 4 --shards 64 --node 4=h4:1/2/9", "[1, 2, 3]"),
    ];
    for &(flags, needle) in cases {
        let error = DataDir::open(&config(dir, flags)).expect_err(flags);
        assert_eq!(error.exit, Exit::WrongIdentity, "{flags}: {error}");
        assert!(error.cause.contains(needle), "{flags}: {error}");
    }
    let mut other = config(dir, same);
    other.id = coracle_raft::NodeId::new(2);
    let error = DataDir::open(&other).expect_err("other node");
    assert!(error.cause.contains("node 1") && error.cause.ends_with('2'), "{error}");
    let mut other = config(dir, same);
    other.cluster = "b".to_owned();
    let error = DataDir::open(&other).expect_err("other cluster");
    assert!(error.cause.contains("cluster a") && error.cause.ends_with('b'), "{error}");
    assert_eq!(fs::read(dir.join(IDENTITY)).expect("identity"), before);
    drop(DataDir::open(&config(dir, same)).expect("its owner"));
}

/// Two users of one directory would destroy it; the second is told who the first is.
#[test]
fn a_second_user_is_refused_with_the_pid_of_the_first() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let config = config(tmp.path(), "");
    let first = DataDir::open(&config).expect("first");
    let error = DataDir::open(&config).expect_err("second");
    assert_eq!(error.exit, Exit::WrongIdentity);
    assert!(error.cause.contains(&std::process::id().to_string()), "{error}");
    drop(first);
    DataDir::open(&config).expect("free again");
}

/// Somebody else's files are not mixed with ours.
#[test]
fn a_foreign_directory_is_refused() {
    let tmp = tempfile::tempdir().expect("temp dir");
    fs::write(tmp.path().join("photo.jpg"), "x").expect("write");
    let error = DataDir::open(&config(tmp.path(), "")).expect_err("foreign");
    assert_eq!(error.exit, Exit::WrongIdentity);
    assert!(error.cause.contains("photo.jpg"), "{error}");
    assert!(!tmp.path().join(LOCK).exists(), "nothing is written into it");
}

/// A crash between any two steps of the first start leaves a directory that starts.
#[test]
fn a_first_start_that_was_cut_short_is_repeated() {
    let tmp = tempfile::tempdir().expect("temp dir");
    fs::write(tmp.path().join(LOCK), "1\n").expect("write");
    fs::write(tmp.path().join("identity.json.tmp"), "{\"for").expect("write");
    let config = config(tmp.path(), "");
    drop(DataDir::open(&config).expect("opens"));
    fs::write(tmp.path().join("starts.json.tmp"), "{\"di").expect("write");
    assert_eq!(count(&DataDir::open(&config).expect("opens")).count(), 1);
}

/// What cannot be understood is never overwritten.
#[test]
fn damage_and_unknown_formats_are_refused() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let config = config(tmp.path(), "");
    drop(DataDir::open(&config).expect("first start"));
    let identity = tmp.path().join(IDENTITY);
    let good = fs::read_to_string(&identity).expect("identity");
    let cases = [
        (good[..20].to_owned(), Exit::DataDamaged),
        (good.replace("\"format\": 1", "\"format\": 9"), Exit::UnknownFormat),
        ("{\"format\": 9, \"new\": true}".to_owned(), Exit::UnknownFormat),
    ];
    for (text, exit) in cases {
        fs::write(&identity, &text).expect("write");
        let error = DataDir::open(&config).expect_err(&text);
        assert_eq!(error.exit, exit, "{error}");
    }
    fs::write(&identity, &good).expect("write");
    for text in ["x", "{}", r#"{"disk": "1", "starts": 1, "nonces": []}"#] {
        fs::write(tmp.path().join(STARTS), text).expect("write");
        assert_eq!(DataDir::open(&config).expect_err(text).exit, Exit::DataDamaged);
    }
}

/// Removing only the log must not make the node forget in silence.
#[test]
fn a_log_that_is_gone_is_missed() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let config = config(tmp.path(), "");
    let log = tmp.path().join("core-0");
    count(&DataDir::open(&config).expect("first start"));
    for _ in 0..2 {
        let error = DataDir::open(&config).expect_err("empty, then missing");
        assert_eq!(error.exit, Exit::DataDamaged, "{error}");
        if log.exists() {
            fs::remove_dir(&log).expect("it is empty");
        }
    }
}

/// The book of peers is there again after a restart, and cannot be read past damage.
#[test]
fn a_book_of_peers_is_kept() {
    let tmp = tempfile::tempdir().expect("temp dir");
    let file = DataDir::open(&config(tmp.path(), "")).expect("first start").peers_file(1);
    assert_eq!(file.read().expect("nothing yet"), PeerBook::default());
    let start = Start { disk: u64::MAX, count: 3, nonce: 1 };
    let starts = [(NodeId::new(2), start), (NodeId::new(3), Start { nonce: 0, ..start })];
    file.write(&starts).expect("written");
    assert_eq!(file.read().expect("there").starts().collect::<Vec<_>>(), starts);
    assert_eq!(mode(&tmp.path().join("peers-1.json")), 0o600);
    fs::write(tmp.path().join("peers-1.json"), "{").expect("write");
    assert_eq!(file.read().expect_err("damaged").exit, Exit::DataDamaged);
}
