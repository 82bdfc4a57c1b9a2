//! `coracle ctl`: what it reads of the files that real nodes leave, what it finds in damaged ones,
//! and that it changes nothing.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::client::text;
use common::{CORACLE, Cluster, Node, Options, wait_until};
use coracle_engine::Reply;
use serde_json::Value;

/// Bytes of a record before its payload, see docs/wal-format.md.
const RECORD_HEADER_BYTES: u64 = 48;

/// What a run of `coracle ctl` gave.
struct Told {
    code: i32,
    out: String,
    err: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    fn lines(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).expect("a line is JSON");
        self.out.lines().map(line).collect()
    }
}

fn ctl(args: &[&str]) -> Told {
    let output = Command::new(CORACLE).arg("ctl").args(args).env_clear().output().expect("run");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it ends by itself");
    Told { code, out: text(output.stdout), err: text(output.stderr) }
}

fn at(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Every file below a directory: content, time of its last change, mode.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64, u32)> {
    let mut all = BTreeMap::new();
    for item in fs::read_dir(dir).expect("a directory") {
        let path = item.expect("an item").path();
        let meta = fs::metadata(&path).expect("it is there");
        let content = if meta.is_dir() { Vec::new() } else { fs::read(&path).expect("readable") };
        if meta.is_dir() {
            all.extend(everything(&path));
        }
        all.insert(path, (content, meta.mtime(), meta.mtime_nsec(), meta.mode()));
    }
    all
}

/// Runs `ctl` and sees that nothing below `dir` changed by it.
fn unchanged(dir: &Path, args: &[&str]) -> Told {
    let before = everything(dir);
    let told = ctl(args);
    assert!(before == everything(dir), "ctl {args:?} has changed something");
    told
}

fn single(flags: &str) -> Cluster {
    let flags = flags.split_whitespace().map(str::to_owned).collect();
    Cluster::start(&Options { flags, ..Options::single() })
}

/// Long values, so that they are only in the log.
fn value(n: u32) -> String {
    format!("value-{n}-{}", "x".repeat(200))
}

fn write(node: &Node, keys: std::ops::Range<u32>) {
    let mut client = node.client();
    for n in keys {
        let reply = client.call(&["SET", &format!("key-{n}"), &value(n)]).expect("a reply");
        assert_eq!(reply, Reply::OK, "key-{n}");
    }
}

fn flip(file: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).expect("the file is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("the byte is there");
    file.write_all_at(&[byte[0] ^ 0x40], offset).expect("write");
}

/// The entry of the dump that writes this key.
fn entry_of<'a>(lines: &'a [Value], key: &str) -> &'a Value {
    let writes = |line: &&Value| line["keys"][0] == key;
    lines.iter().find(writes).unwrap_or_else(|| panic!("no entry of {key}"))
}

fn place_of(node: &Node, line: &Value) -> (PathBuf, u64) {
    let segment = line["segment"].as_u64().expect("a number");
    let file = node.data_dir.join(format!("core-0/{segment:010}.seg"));
    (file, line["offset"].as_u64().expect("a number"))
}

/// Entries in the order of the log, with what they do; a dump of one group has only its own.
#[test]
fn a_dump_shows_what_was_written() {
    let mut cluster = single("");
    let node = &mut cluster.nodes[0];
    write(node, 0..20);
    let mut client = node.client();
    for line in ["SET short abc", "INCR counter", "APPEND short de", "DEL key-3", "SET short f"] {
        assert!(!matches!(client.run(line), Reply::Error(_)), "{line}");
    }
    node.kill();
    let dir = node.data_dir.clone();
    let told = unchanged(&dir, &["wal", "dump", at(&dir), "--json"]);
    assert_eq!((told.code, &*told.err), (0, ""));
    let lines = told.lines();
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    let mut place = (0, 0);
    for line in &lines {
        let number = |field: &str| line[field].as_u64().unwrap_or_else(|| panic!("{field} {line}"));
        let (group, index) = (number("group"), number("index"));
        assert_eq!(last.insert(group, index).unwrap_or(0) + 1, index, "{line}");
        let here = (number("segment"), number("offset"));
        assert!(place < here, "{line}");
        place = here;
    }
    let commands: Vec<(&str, &str)> = lines
        .iter()
        .filter(|line| line["kind"] == "command" && line["keys"][0] == "short")
        .map(|line| (line["command"].as_str().unwrap(), line["value"].as_str().unwrap()))
        .collect();
    assert_eq!(commands, [("SET", "abc"), ("APPEND", "de"), ("SET", "f")]);
    let long = entry_of(&lines, "key-7");
    assert_eq!(long["value_bytes"], value(7).len());
    assert_eq!(long.get("value"), None, "long values are not shown");
    assert_eq!(entry_of(&lines, "counter")["command"], "INCRBY");

    let group = long["group"].to_string();
    let core_dir = dir.join("core-0");
    let args = ["wal", "dump", at(&core_dir), "--group", &group];
    let told = unchanged(&dir, &args);
    assert_eq!(told.code, 0, "{}", told.err);
    let count = lines.iter().filter(|line| line["group"] == long["group"]).count();
    assert_eq!(told.out.lines().count(), count);
    let wanted = format!("SET \"key-7\" {} bytes @", value(7).len());
    assert!(told.out.contains(&wanted), "{}", told.out);
}

/// A changed byte in the middle of the log is damage of that place; nothing else is.
#[test]
fn verify_finds_a_changed_byte_where_it_is() {
    let mut cluster = single("");
    let node = &mut cluster.nodes[0];
    write(node, 0..50);
    node.kill();
    let dir = node.data_dir.clone();
    let told = unchanged(&dir, &["wal", "verify", at(&dir)]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    assert!(told.out.contains("ok: nothing is damaged"), "{}", told.out);

    let lines = ctl(&["wal", "dump", at(&dir), "--json"]).lines();
    let hit = entry_of(&lines, "key-20");
    let (file, offset) = place_of(node, hit);
    flip(&file, offset + RECORD_HEADER_BYTES + 40);
    let told = unchanged(&dir, &["wal", "verify", at(&dir)]);
    assert_eq!(told.code, 3, "{}{}", told.out, told.err);
    let wanted = format!("DAMAGE damaged record content at {offset} of {}", file.display());
    assert!(told.out.contains(&wanted), "{wanted} in {}", told.out);
    let told = unchanged(&dir, &["wal", "verify", at(&dir), "--json"]);
    let json = told.json();
    assert_eq!((told.code, &json["ok"], &json["exit_code"]), (3, &false.into(), &3.into()));
    assert_eq!(json["findings"][0]["offset"], offset);
    let group = format!("g{}", hit["group"]);
    let detail = json["findings"][0]["detail"].as_str().unwrap();
    assert!(detail.contains(&group), "{group} in {detail}");
    // A dump shows all the rest, and says what it lacks.
    let told = unchanged(&dir, &["wal", "dump", at(&dir), "--json"]);
    assert_eq!((told.code, told.lines().len()), (3, lines.len() - 1));
    assert!(told.err.contains(&offset.to_string()), "{}", told.err);

    flip(&file, offset + RECORD_HEADER_BYTES + 40);
    flip(&file, offset + 20);
    let told = unchanged(&dir, &["wal", "verify", at(&dir)]);
    let wanted = format!("DAMAGE damaged record headers at {offset} of {}", file.display());
    assert_eq!(told.code, 3);
    assert!(told.out.contains(&wanted), "{wanted} in {}", told.out);
}

/// A write that was cut short at the end of the log is no damage.
#[test]
fn a_torn_tail_is_no_damage() {
    let mut cluster = single("");
    let node = &mut cluster.nodes[0];
    write(node, 0..30);
    node.kill();
    let dir = node.data_dir.clone();
    let lines = ctl(&["wal", "dump", at(&dir), "--json"]).lines();
    let (file, offset) = place_of(node, entry_of(&lines, "key-29"));
    // The header of the batch and of the record stay; the value and all behind it never came.
    let len = fs::metadata(&file).expect("it is there").len();
    let zeros = vec![0; usize::try_from(len - offset - 100).expect("short")];
    let open = OpenOptions::new().write(true).open(&file).expect("open");
    open.write_all_at(&zeros, offset + 100).expect("write");
    let told = unchanged(&dir, &["wal", "verify", at(&dir)]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    assert!(told.out.contains("note unfinished write at "), "{}", told.out);
    assert!(told.out.contains("ok: nothing is damaged"), "{}", told.out);
    let told = unchanged(&dir, &["check", at(&dir)]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    assert_eq!(ctl(&["wal", "dump", at(&dir)]).out.matches("key-29").count(), 0);
}

/// A node that runs changes its files all the time: the tools refuse to look.
#[test]
fn a_directory_in_use_is_refused() {
    let cluster = single("");
    let node = &cluster.nodes[0];
    let core_dir = node.data_dir.join("core-0");
    for args in [
        ["check", at(&node.data_dir)].as_slice(),
        &["wal", "verify", at(&node.data_dir)],
        &["wal", "dump", at(&core_dir)],
    ] {
        let told = ctl(args);
        assert_eq!((told.code, &*told.out), (5, ""), "{args:?} {}", told.err);
        let wanted = format!("process {} runs on it", node.pid());
        assert!(told.err.contains("is in use") && told.err.contains(&wanted), "{}", told.err);
        assert!(told.err.contains("fix: stop that node first"), "{}", told.err);
    }
    write(node, 0..5);
}

/// Checkpoints, and values that they refer to: all found where nothing is wrong, each loss told.
#[test]
fn check_finds_lost_values_and_damaged_checkpoints() {
    let mut cluster = single("--checkpoint-period 1");
    let node = &mut cluster.nodes[0];
    write(node, 0..300);
    let mut client = node.client();
    let checkpoints = |client: &mut common::client::Client| {
        let info = text(&client.run("INFO"));
        let line = info.lines().find_map(|line| line.strip_prefix("coracle_checkpoints:"));
        line.expect("a counter").parse::<u64>().expect("a number")
    };
    let before = checkpoints(&mut client);
    let mut n = 0;
    wait_until("two checkpoints are begun after the last key", || {
        // Something must be written between two checkpoints.
        n += 1;
        client.call(&["SET", "again", &n.to_string()]).expect("a reply");
        // Files of 64 shards; one was perhaps begun before.
        checkpoints(&mut client) > before + 3 * 64
    });
    node.kill();
    let dir = node.data_dir.clone();
    let told = unchanged(&dir, &["check", at(&dir), "--json"]);
    let json = told.json();
    assert_eq!(told.code, 0, "{json}");
    let core = &json["cores"][0];
    assert_eq!((core["checkpoints"].as_u64(), core["sections"].as_u64()), (Some(2), Some(128)));
    assert_eq!(core["keys"].as_u64(), Some(301), "{core}");
    assert_eq!(core["values_in_log"].as_u64(), Some(2 * 300), "{core}");

    let lines = ctl(&["wal", "dump", at(&dir), "--json"]).lines();
    let (file, offset) = place_of(node, entry_of(&lines, "key-100"));
    flip(&file, offset + RECORD_HEADER_BYTES + 60);
    let told = unchanged(&dir, &["check", at(&dir)]);
    assert_eq!(told.code, 3);
    let wanted = format!("segment {} at {offset}", 1);
    for text in ["value not there: key key-100 of g", &wanted, "NOT OK: "] {
        assert!(told.out.contains(text), "{text} in {}", told.out);
    }
    flip(&file, offset + RECORD_HEADER_BYTES + 60);

    let mut files: Vec<PathBuf> = everything(&dir).into_keys().collect();
    files.retain(|path| path.extension().is_some_and(|suffix| suffix == "ckp"));
    let newest = files.last().expect("two checkpoints");
    flip(newest, 4096 + 8);
    let told = unchanged(&dir, &["check", at(&dir)]);
    assert_eq!(told.code, 3);
    let wanted = format!("fails its checksum at 4096 of {}", newest.display());
    for text in [&*wanted, "the one before has it whole", "NOT OK: 1 findings"] {
        assert!(told.out.contains(text), "{text} in {}", told.out);
    }
}

/// What is not a data directory of this version, node or cluster has a status of its own.
#[test]
fn foreign_and_unknown_directories_have_their_own_status() {
    let mut cluster = single("");
    let node = &mut cluster.nodes[0];
    write(node, 0..5);
    node.kill();
    let dir = node.data_dir.clone();
    let identity = dir.join("identity.json");
    let written = fs::read_to_string(&identity).expect("it is there");
    for (from, to, code) in [
        ("\"format\": 1", "\"format\": 99", 6),
        ("\"node\": 1", "\"node\": 2", 5),
        ("\"cluster_id\": \"", "\"cluster_id\": \"x", 3),
        ("{", "[", 3),
    ] {
        assert!(written.contains(from), "{from} in {written}");
        fs::write(&identity, written.replacen(from, to, 1)).expect("write");
        let told = unchanged(&dir, &["check", at(&dir)]);
        assert_eq!(told.code, code, "{to}: {}{}", told.out, told.err);
    }
    fs::write(&identity, written).expect("write");
    assert_eq!(ctl(&["check", at(&dir)]).code, 0);
    let nowhere = dir.join("nowhere");
    assert_eq!(ctl(&["wal", "verify", at(&nowhere)]).code, 4);
    assert_eq!(ctl(&["check", at(&dir), "--core", "7"]).code, 2);
    let log = dir.join("core-0");
    fs::remove_file(log.join("0000000001.seg")).expect("remove");
    assert!(ctl(&["check", at(&dir)]).out.contains("note no log in "));
    fs::remove_dir_all(&log).expect("remove");
    assert_eq!(ctl(&["check", at(&dir)]).code, 4, "nothing to read");
    fs::create_dir(&log).expect("create");
    assert_eq!(ctl(&["check", at(&dir)]).code, 3, "an empty directory");
}

/// All replicas of a cluster that runs tell the same at the same entry.
#[test]
fn replicas_of_a_live_cluster_have_equal_digests() {
    let mut cluster = Cluster::start(&Options { cores: 2, ..Options::default() });
    write(&cluster.nodes[0], 0..100);
    let addr = format!("127.0.0.1:{}", cluster.nodes[1].ports.plain);
    let told = ctl(&["digest", "--addr", &addr, "--timeout", "30", "--json"]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    let json = told.json();
    let rows = json["replicas"].as_array().expect("rows");
    assert_eq!(rows.len(), 4 * 3);
    for row in rows {
        assert_eq!((&row["verdict"], &row["standing"]), (&"same".into(), &"agreed".into()));
        assert!(row["index"].as_u64() > Some(1), "{row}");
    }
    let digest = |group: u64| {
        let of = |row: &&Value| row["group"] == group;
        let digests: std::collections::BTreeSet<_> =
            rows.iter().filter(of).map(|row| row["digest"].as_str().expect("hex")).collect();
        assert_eq!(digests.len(), 1, "group {group}");
        digests.into_iter().next().expect("one").to_owned()
    };
    let before: Vec<_> = (0..4).map(digest).collect();
    let info = text(&cluster.nodes[0].client().run("INFO"));
    assert!(info.contains("coracle_groups_diverged:0"), "{info}");
    assert!(!info.contains("coracle_checks:0"), "{info}");

    write(&cluster.nodes[2], 100..200);
    let told = ctl(&["digest", "--addr", &addr, "--timeout", "30"]);
    assert_eq!(told.code, 0, "{}{}", told.out, told.err);
    assert!(before.iter().all(|digest| !told.out.contains(digest)), "{}", told.out);
    assert!(told.out.contains("4 groups, 0 with different replicas, 0 replicas without an answer"));

    cluster.nodes[2].kill();
    let told = ctl(&["digest", "--addr", &addr, "--timeout", "1"]);
    assert_eq!(told.code, 1, "one replica of each group is silent: {}{}", told.out, told.err);
    assert!(told.out.contains("no answer"), "{}", told.out);
    let nobody = ctl(&["digest", "--addr", "127.0.0.1:1"]);
    assert_eq!(nobody.code, 3, "{}", nobody.err);
}
