use super::file::FileNode;
use super::*;

const NODES: &str = "[[nodes]]\nid = 1\nhost = \"127.0.0.1\"\nport = 7001\ncore_port = 7101\n\
                     peer_port = 7201\n";

fn from(text: &str, flags: Flags, environment: &[&'static str]) -> Result<Config, Fatal> {
    let file = file::parse(text, "test.toml")?;
    resolve(flags, file, &|name| environment.contains(&name), &|_| None)
}

fn minimal(extra: &str) -> Result<Config, Fatal> {
    let text = format!("id = 1\ncluster = \"t\"\ndata_dir = \"/d\"\n{extra}\n{NODES}");
    from(&text, Flags::default(), &[])
}

fn origin(config: &Config, key: &str) -> Origin {
    config.settings.iter().find(|s| s.key == key).expect(key).origin
}

/// Flags win over the environment, that over the file, that over the default.
#[test]
fn the_nearest_source_wins() {
    let config = minimal("maxclients = 5").expect("valid");
    assert_eq!((config.maxclients, origin(&config, "maxclients")), (5, Origin::File));
    assert_eq!(origin(&config, "groups"), Origin::Default);
    let flags = Flags { maxclients: Some(7), groups: Some(2), ..Flags::default() };
    let text = format!("id = 1\ncluster = \"t\"\ndata_dir = \"/d\"\nmaxclients = 5\n{NODES}");
    let config = from(&text, flags, &["groups"]).expect("valid");
    assert_eq!((config.maxclients, origin(&config, "maxclients")), (7, Origin::Flag));
    assert_eq!((config.map.group_count(), origin(&config, "groups")), (2, Origin::Environment));
    let shown = config.describe();
    assert!(shown.contains("maxclients") && shown.contains("= 7  # flag"), "{shown}");
}

/// Every setting has a default but the four that cannot have one.
#[test]
fn what_must_be_given_is_named() {
    let lines = ["id = 1\n", "cluster = \"t\"\n", "data_dir = \"/d\"\n", NODES];
    for (missing, key) in ["`id`", "`cluster`", "`data_dir`", "`nodes`"].iter().enumerate() {
        let text: String =
            lines.iter().enumerate().filter(|&(i, _)| i != missing).map(|(_, l)| *l).collect();
        let error = from(&text, Flags::default(), &[]).expect_err("incomplete");
        assert!(error.what.contains(key), "{key}: {error}");
        assert_eq!(error.exit, crate::fatal::Exit::Usage);
    }
    minimal("").expect("nothing else is needed");
}

/// Impossible values are refused with both numbers.
#[test]
fn validation_names_the_value_and_the_limits() {
    let cases: &[(&str, &[&str])] = &[
        ("id = 2", &["duplicate key"]),
        ("maxclients = 0", &["0", "1 to 1000000"]),
        ("timeout = 31536001", &["31536001", "0 to 31536000"]),
        ("maxmemory = \"1MiB\"", &["1048576", "67108864"]),
        ("shards = 4\ngroups = 5", &["groups is 5", "1 to 4"]),
        ("[wal]\nsegment_size = 67108865", &["67108865B", "4096"]),
        ("[wal]\nsegment_size = \"2GiB\"", &["it is 2GiB", "10MiB to 1GiB"]),
        ("[wal]\nsegment_size = \"64MiB\"\nmax_size = \"128MiB\"", &["134217728", "268435456"]),
        ("maxmemory = \"1GiB\"\nvalue_cache = \"513MiB\"", &["537919488", "0 to 536870912"]),
        ("maxdisk = \"767MiB\"", &["804257792", "805306368 to"]),
        ("[checkpoint]\nbytes = 1000", &["1000", "1048576"]),
        ("[checkpoint]\nperiod = 0", &["it is 0", "1 to 86400"]),
        ("[raft]\nelection_ticks = 10\nheartbeat_ticks = 5", &["it is 5", "1 to 4"]),
        ("[raft]\ntick_ms = 1", &["it is 1", "5 to 1000"]),
    ];
    for &(extra, needles) in cases {
        let text = minimal(extra).expect_err(extra).to_string();
        for needle in needles {
            assert!(text.contains(needle), "{extra}: {text}");
        }
    }
}

/// A quarter of the budget, unless it is said otherwise.
#[test]
fn the_value_cache_is_a_part_of_the_budget() {
    let cases = [
        ("", 256),
        ("cores = [0, 1]", 512),
        ("maxmemory = \"100MiB\"", 25),
        ("value_cache = 0", 0),
        ("maxmemory = \"100MiB\"\nvalue_cache = \"50MiB\"", 50),
    ];
    for (extra, mebibytes) in cases {
        let config = minimal(extra).expect(extra);
        assert_eq!(config.value_cache_bytes, mebibytes << 20, "{extra}");
        let cores = u64::from(config.map.core_count());
        assert_eq!(config.value_cache_per_core_bytes() * cores, mebibytes << 20, "{extra}");
    }
}

/// A segment that the largest command does not fit into made the log panic at run time.
#[test]
fn segments_take_the_largest_command() {
    for (mebibytes, fits) in [(1, false), (9, false), (10, true), (1024, true), (1025, false)] {
        let extra = format!("[wal]\nmax_size = \"8GiB\"\nsegment_size = \"{mebibytes}MiB\"");
        let result = minimal(&extra);
        assert_eq!(result.is_ok(), fits, "{mebibytes} MiB: {result:?}");
        if let Err(error) = result {
            let text = error.to_string();
            assert!(text.contains("the largest command, which is 9MiB"), "{text}");
            assert!(text.contains("from 10MiB to 1GiB"), "{text}");
        }
    }
    let smallest = minimal("[wal]\nsegment_size = \"10MiB\"").expect("valid").wal;
    let options = smallest.options(Identity::default());
    assert!(options.payload_bytes_max() >= COMMAND_BYTES_MAX, "{options:?}");
}

/// Blocks of ports must not overlap on one host or leave the range.
#[test]
fn ports_are_checked() {
    let node = |id: u32, port: u16, core: u16, peer: u16| FileNode {
        id,
        host: "h".to_owned(),
        port,
        core_port: core,
        peer_port: peer,
    };
    let check = |nodes: Vec<FileNode>| {
        let text = "id = 1\ncluster = \"t\"\ndata_dir = \"/d\"\ncores = [0, 0]\n";
        let mut file = file::parse(text, "t").expect("valid");
        file.nodes = Some(nodes);
        resolve(Flags::default(), file, &|_| false, &|_| None)
    };
    check(vec![node(1, 10, 11, 13), node(2, 20, 21, 23)]).expect("apart");
    let cases = [
        (vec![node(1, 10, 11, 12)], "overlap"),
        (vec![node(1, 10, 11, 13), node(2, 14, 21, 23)], "overlap"),
        (vec![node(1, 0, 11, 13)], "1 to 65535"),
        (vec![node(1, 10, 65535, 13)], "65535 to 65536"),
        (vec![node(2, 10, 11, 13)], "not in the list"),
        (vec![node(1, 10, 11, 13), node(1, 20, 21, 23)], "two nodes"),
        (vec![node(0, 10, 11, 13)], "number 0"),
        (vec![], "number of nodes is 0"),
    ];
    for (nodes, needle) in cases {
        let text = check(nodes).expect_err(needle).to_string();
        assert!(text.contains(needle), "{needle}: {text}");
    }
}

/// An address that others reach needs a password or an explicit "insecure".
#[test]
fn open_addresses_need_a_password() {
    let open = "bind = [\"127.0.0.1\", \"0.0.0.0\"]";
    let error = minimal(open).expect_err("unprotected");
    assert!(error.fix.contains("requirepass_file"), "{error}");
    minimal(&format!("{open}\nallow_insecure = true")).expect("explicit");
    minimal("bind = [\"::1\"]").expect("loopback");
}

/// A password file must be private; its first line counts; nothing shows the text.
#[test]
fn the_password_comes_from_a_private_file_and_stays_hidden() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("pass");
    std::fs::write(&path, "canary-1 x\nsecond line\n").expect("write");
    let extra = format!("requirepass_file = {:?}", path.display().to_string());
    let set_mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    set_mode(0o640);
    let error = minimal(&extra).expect_err("readable by the group");
    assert!(error.fix.contains("chmod 600"), "{error}");
    set_mode(0o600);
    let config = minimal(&extra).expect("private");
    assert!(config.password.as_ref().is_some_and(|p| p.matches(b"canary-1 x")));
    assert!(!format!("{config:?}{}", config.describe()).contains("canary"));
    std::fs::write(&path, "").expect("write");
    assert!(minimal(&extra).expect_err("empty").to_string().contains("1 to 512"));
}

/// Ids that clients remember must never change (golden values).
#[test]
fn cluster_and_node_ids_are_stable() {
    let config = minimal("").expect("valid");
    assert_eq!(stable_hash(&[]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, "FNV offset basis");
    assert_eq!(format!("{:032x}", config.cluster_id()), GOLDEN_CLUSTER);
    assert_eq!(format!("{:032x}", config.node_uuid(NodeId::new(1))), GOLDEN_NODE);
    assert_ne!(config.node_uuid(NodeId::new(1)), config.node_uuid(NodeId::new(2)));
}

const GOLDEN_CLUSTER: &str = "426d56755903ad9adb79f299c730ffa8";
const GOLDEN_NODE: &str = "084ee663371f48b377efdecc319a13b6";
