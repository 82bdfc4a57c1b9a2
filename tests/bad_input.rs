//! What clients, strangers and operators get wrong: a clear error each, nothing lost, other
//! clients unaffected, the process alive.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::client::{Client, bulk, text};
use common::{CORACLE, Cluster, Options, wait_until};
use coracle_engine::Reply;
use coracle_engine::command::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// A single node and a client that must not notice anything.
struct Scene {
    cluster: Cluster,
    witness: Client,
    count: i64,
}

impl Scene {
    fn new(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let cluster = Cluster::start(&Options { flags, ..Options::single() });
        let mut witness = cluster.nodes[0].client();
        assert_eq!(witness.run("SET witness here"), Reply::OK);
        Self { cluster, witness, count: 0 }
    }

    fn client(&self) -> Client {
        self.cluster.nodes[0].client()
    }

    /// The witness' connection still works, its data is there, the process lives.
    fn check(&mut self, after: &str) {
        self.count += 1;
        assert_eq!(self.witness.run("GET witness"), bulk("here"), "after {after}");
        assert_eq!(self.witness.run("INCR count"), Reply::Integer(self.count), "after {after}");
        assert!(self.cluster.nodes[0].is_running(), "after {after}");
    }
}

/// Bytes that are no commands: Redis' own words, then the connection is closed.
#[test]
fn malformed_requests_are_refused_with_the_words_of_redis() {
    let mut scene = Scene::new(&[]);
    let cases: &[(&[u8], &str)] = &[
        (b"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*2000000\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n+PING\r\n", "-ERR Protocol error: expected '$', got '+'\r\n"),
        (b"*1\r\n$x\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*2\r\n$3\r\nGET\r\n$536870912\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"SET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
    ];
    for (bytes, want) in cases {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        let mut client = scene.client();
        client.send_raw(bytes).expect("sent");
        let got = client.read_to_close().expect("the server closes");
        assert_eq!(String::from_utf8_lossy(&got), *want, "{shown:?}");
        scene.check(&shown);
    }
    let mut client = scene.client();
    // The server may refuse before it has read all.
    let _ = client.send_raw(&vec![b'a'; 70 * 1024]);
    let got = client.read_to_close().expect("the server closes");
    assert!(got.is_empty() || got.starts_with(b"-ERR Protocol error: too big inline request"));
    scene.check("an endless line");
}

/// What was sent before the mistake is answered before it.
#[test]
fn commands_before_a_protocol_error_are_answered() {
    let mut scene = Scene::new(&[]);
    let mut client = scene.client();
    client.send_raw(b"SET a 1\r\nGET a\r\n*x\r\n").expect("sent");
    let got = client.read_to_close().expect("the server closes");
    let want = "+OK\r\n$1\r\n1\r\n-ERR Protocol error: invalid multibulk length\r\n";
    assert_eq!(String::from_utf8_lossy(&got), want);
    scene.check("a late mistake");
}

/// Commands that cannot be executed: an error, and the connection goes on.
#[test]
fn wrong_commands_leave_the_connection_usable() {
    let mut scene = Scene::new(&[]);
    let mut client = scene.client();
    assert_eq!(client.run("SET word hello"), Reply::OK);
    let cases = [
        ("NOSUCH a b", "ERR unknown command 'NOSUCH', with args beginning with: 'a' 'b' "),
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("GET a b", "ERR wrong number of arguments for 'get' command"),
        ("SET a", "ERR wrong number of arguments for 'set' command"),
        ("SET a b EX", "ERR syntax error"),
        ("SET a b EX x", "ERR value is not an integer or out of range"),
        ("SET a b EX 0", "ERR invalid expire time in 'set' command"),
        ("SET a b NX XX", "ERR syntax error"),
        ("INCR word", "ERR value is not an integer or out of range"),
        ("INCRBY n x", "ERR value is not an integer or out of range"),
        ("SETRANGE a -1 x", "ERR offset is out of range"),
        ("EXPIRE word x", "ERR value is not an integer or out of range"),
        ("MSET a b c", "ERR wrong number of arguments for 'mset' command"),
        ("MGET a b c d e f", "CROSSSLOT Keys in request don't hash to the same slot"),
        ("SELECT 1", "ERR SELECT is not allowed in cluster mode"),
        ("CLUSTER FORGET x", "ERR unknown subcommand 'FORGET'. Try CLUSTER HELP."),
        ("LPUSH l x", "ERR unknown command 'LPUSH', with args beginning with: 'l' 'x' "),
    ];
    for (line, want) in cases {
        assert_eq!(client.run(line), Reply::error(want), "{line}");
        assert_eq!(client.run("PING"), Reply::Status("PONG"), "after {line}");
    }
    scene.check("wrong commands");
}

/// Keys and values at their limits, and one byte beyond.
#[test]
fn limits_hold_to_the_byte() {
    let mut scene = Scene::new(&[]);
    let mut client = scene.client();
    let too_long = |reply: Reply| {
        let text = text(&reply);
        assert!(
            text.starts_with("ERR ") && text.contains("65536") || text.contains("maximum"),
            "{text}"
        );
    };
    for (length, fits) in
        [(KEY_BYTES_MAX - 1, true), (KEY_BYTES_MAX, true), (KEY_BYTES_MAX + 1, false)]
    {
        let key = vec![b'k'; length];
        let reply = client.call(&[b"SET", &key[..], b"v"]).expect("an answer");
        if fits {
            assert_eq!(reply, Reply::OK, "key of {length}");
            assert_eq!(client.call(&[b"GET", &key[..]]).expect("an answer"), bulk("v"));
        } else {
            too_long(reply);
        }
    }
    for (length, fits) in [(VALUE_BYTES_MAX, true), (VALUE_BYTES_MAX + 1, false)] {
        let value = vec![b'v'; length];
        let reply = client.call(&[&b"SET"[..], b"big", &value]).expect("an answer");
        if fits {
            assert_eq!(reply, Reply::OK, "value of {length}");
            assert_eq!(client.run("STRLEN big"), Reply::Integer(length as i64));
            assert_eq!(client.run("GET big"), Reply::Bulk(value));
        } else {
            too_long(reply);
        }
    }
    too_long(client.call(&["APPEND", "big", "x"]).expect("an answer"));
    assert_eq!(client.run("STRLEN big"), Reply::Integer(VALUE_BYTES_MAX as i64));
    scene.check("large things");
}

/// Strangers on the peer port get nothing but the end of their connection.
#[test]
fn the_peer_port_refuses_strangers() {
    let mut scene = Scene::new(&[]);
    let port = scene.cluster.nodes[0].ports.peer;
    let garbage: Vec<u8> =
        (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: &[(&str, &[u8])] = &[
        ("RESP", b"*1\r\n$4\r\nPING\r\n"),
        ("inline", b"PING\r\n"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("garbage", &garbage),
        ("zeros", &[0; 64 << 10]),
        ("ones", &[0xff; 64 << 10]),
    ];
    for (name, bytes) in cases {
        let mut client = Client::connect(port).expect("it listens");
        // It may have hung up already.
        let _ = client.send_raw(bytes);
        let _ = client.finish();
        let got = client.read_to_close().expect("the server closes");
        assert!(got.len() < 1024, "{name}: {} bytes", got.len());
        scene.check(name);
    }
    // Nothing at all, and hang-ups, must not use up the places of real peers.
    for _ in 0..200 {
        drop(Client::connect(port).expect("it listens"));
    }
    scene.check("many hang-ups");
}

/// Garbage on the client ports is refused like any mistake; TLS and HTTP are such garbage.
#[test]
fn garbage_on_client_ports_harms_nobody() {
    let mut scene = Scene::new(&[]);
    let ports = scene.cluster.nodes[0].ports;
    let garbage: Vec<u8> =
        (0..200_000u32).map(|n| (n.wrapping_mul(2_246_822_519) >> 24) as u8).collect();
    let cases: &[(&str, &[u8])] = &[
        ("HTTP", b"POST / HTTP/1.1\r\nHost: a\r\n\r\nx"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("garbage", &garbage),
        ("zeros", &[0; 128 << 10]),
    ];
    for port in [ports.plain, ports.core] {
        for (name, bytes) in cases {
            let mut client = Client::connect(port).expect("it listens");
            let _ = client.send_raw(bytes);
            let _ = client.finish();
            client.read_to_close().expect("the server closes");
            scene.check(name);
        }
    }
}

/// A command that arrives byte by byte, and one that never ends, hold up nobody.
#[test]
fn slow_and_half_commands_hold_up_nobody() {
    let mut scene = Scene::new(&[]);
    let mut slow = scene.client();
    for byte in b"*3\r\n$3\r\nSET\r\n$4\r\nslow\r\n$2\r\nok\r\n" {
        slow.send_raw(&[*byte]).expect("sent");
        if *byte == b'\n' {
            scene.check("one more piece");
        }
    }
    assert_eq!(slow.reply().expect("an answer"), Reply::OK);
    assert_eq!(slow.run("GET slow"), bulk("ok"));
    let mut half = scene.client();
    half.send_raw(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$8000000\r\nabc").expect("sent");
    drop(half);
    scene.check("half a command");
    assert_eq!(scene.client().run("GET half"), Reply::Null);
}

/// A node whose password is `canary-pass`, and the directory that holds it.
fn with_password() -> (Cluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("password");
    fs::write(&file, "canary-pass\n").expect("write");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&file, private).expect("chmod");
    let path = file.display().to_string();
    let mut cluster = Cluster::prepare(&Options {
        flags: vec!["--requirepass-file".to_owned(), path],
        ..Options::single()
    });
    cluster.nodes[0].start();
    wait_until("the node takes the password", || {
        let port = cluster.nodes[0].ports.plain;
        Client::connect(port).is_ok_and(|mut c| c.run("AUTH canary-pass") == Reply::OK)
    });
    (cluster, dir)
}

/// Before the password is given only the handshake works, within small limits.
#[test]
fn without_the_password_little_is_allowed() {
    let (cluster, _dir) = with_password();
    let mut client = cluster.nodes[0].client();
    let refused = Reply::error("NOAUTH Authentication required.");
    for line in ["GET a", "SET a b", "CLUSTER SLOTS", "INFO", "COMMAND COUNT"] {
        assert_eq!(client.run(line), refused, "{line}");
    }
    let wrong = client.run("AUTH wrong");
    assert!(text(&wrong).starts_with("WRONGPASS "), "{wrong:?}");
    assert_eq!(client.run("AUTH canary-pass"), Reply::OK);
    wait_until("groups have leaders", || client.run("SET a b") == Reply::OK);
    assert_eq!(client.run("GET a"), bulk("b"));
    let mut many = cluster.nodes[0].client();
    many.send_raw(b"*11\r\n").expect("sent");
    let got = many.read_to_close().expect("the server closes");
    assert!(got.starts_with(b"-ERR Protocol error: unauthenticated multibulk length"), "{got:?}");
    let mut long = cluster.nodes[0].client();
    long.send_raw(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n").expect("sent");
    let got = long.read_to_close().expect("the server closes");
    assert!(got.starts_with(b"-ERR Protocol error: unauthenticated bulk length"), "{got:?}");
    let log = cluster.nodes[0].log();
    assert!(!log.contains("canary-pass"), "the password is in the log:\n{log}");
}

/// Without the password a connection lives ten seconds, whatever it says meanwhile.
#[test]
fn the_password_has_a_deadline() {
    let (cluster, _dir) = with_password();
    let mut known = cluster.nodes[0].client();
    assert_eq!(known.run("AUTH canary-pass"), Reply::OK);
    let mut silent = cluster.nodes[0].client();
    let mut chatty = cluster.nodes[0].client();
    let start = Instant::now();
    wait_until("the chatty stranger is closed", || chatty.call(&["PING"]).is_err());
    assert!(silent.read_to_close().expect("the server closes").is_empty());
    let took = start.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(25)).contains(&took), "{took:?}");
    assert_eq!(known.run("PING"), Reply::Status("PONG"));
}

/// Who guesses waits longer and longer; the text tells nothing about the user.
#[test]
fn guesses_of_the_password_are_slowed_down() {
    let (cluster, _dir) = with_password();
    let wrong = Reply::error("WRONGPASS invalid username-password pair or user is disabled.");
    let mut guesser = cluster.nodes[0].client();
    for n in 0..6 {
        let line = if n % 2 == 0 { "AUTH guess" } else { "AUTH nobody canary-pass" };
        assert_eq!(guesser.run(line), wrong, "{n}");
    }
    let refused = |reply: &Reply| text(reply).starts_with("ERR too many failed AUTH attempts");
    let reply = cluster.nodes[0].client().run("AUTH canary-pass");
    assert!(refused(&reply), "another connection from the same address: {reply:?}");
    wait_until("the refusal ends", || match guesser.run("AUTH canary-pass") {
        Reply::Status("OK") => true,
        reply => {
            assert!(refused(&reply), "{reply:?}");
            false
        }
    });
}

/// The idle timeout closes who says nothing and nobody else.
#[test]
fn idle_clients_are_closed_if_configured() {
    let mut scene = Scene::new(&["--timeout", "1"]);
    let mut idle = scene.client();
    idle.reply_within(Duration::from_millis(1));
    wait_until("the idle client is closed", || {
        scene.check("a moment");
        idle.reply().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof)
    });
}

/// Starts `coracle` with these arguments and waits for its end.
fn run(args: &[String]) -> Output {
    let command = Command::new(CORACLE).args(args).env_clear().stdin(Stdio::null()).output();
    command.expect("start coracle")
}

/// The arguments of a node that ends by itself, with one flag's value replaced.
fn changed(args: &[String], flag: &str, value: &str) -> Vec<String> {
    let mut args: Vec<String> =
        args.iter().filter(|arg| *arg != "--exit-with-parent").cloned().collect();
    let at = args.iter().position(|arg| arg == flag).expect(flag);
    args[at + 1] = value.to_owned();
    args
}

/// A data directory belongs to one node of one cluster with one layout, and to one process.
#[test]
fn data_directories_are_not_mixed_up() {
    let mut scene = Scene::new(&[]);
    let args = scene.cluster.nodes[0].args().to_vec();
    let pid = scene.cluster.nodes[0].pid().to_string();
    let ports = scene.cluster.nodes[0].ports;
    // Other ports, so that only the directory is in the way.
    let spare = Cluster::prepare(&Options::single());
    let other = spare.nodes[0].ports;
    let node = format!("1=127.0.0.1:{}/{}/{}", other.plain, other.core, other.peer);
    let elsewhere = changed(&args, "--node", &node);
    let output = run(&elsewhere);
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{shown}");
    assert!(shown.contains("is in use") && shown.contains(&pid), "{shown}");
    scene.check("a second process");

    let output = run(&changed(
        &args,
        "--data-dir",
        &format!("{}-b", scene.cluster.nodes[0].data_dir.display()),
    ));
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("cannot listen") && shown.contains(&ports.plain.to_string()), "{shown}");
    scene.check("used ports");

    scene.cluster.nodes[0].kill();
    let cases = [
        ("--cluster", "other", "another cluster"),
        ("--groups", "5", "another number of groups"),
        ("--shards", "65", "another number of shards"),
        ("--cores", "0,0", "another number of cores"),
    ];
    let spread = format!("1=127.0.0.1:{}/{}/{}", other.plain, other.core, other.core + 2);
    for (flag, value, needle) in cases {
        let base = if flag == "--cores" { changed(&args, "--node", &spread) } else { args.clone() };
        let output = run(&changed(&base, flag, value));
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(5), "{flag} {value}: {shown}");
        assert!(shown.contains(needle) && shown.contains("fix: "), "{flag} {value}: {shown}");
    }
    scene.cluster.nodes[0].start();
    scene.cluster.wait_until_ready();
    scene.witness = scene.client();
    scene.check("all of that");
}

/// Mistakes in flags, environment and files are explained, with status 2.
#[test]
fn wrong_configurations_are_explained() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir");
    let file = dir.path().join("c.toml");
    let good = "id = 1\ncluster = \"t\"\ndata_dir = \"d\"\n[[nodes]]\nid = 1\n\
                host = \"127.0.0.1\"\nport = 7001\ncore_port = 7101\npeer_port = 7201\n";
    let config = ["node".to_owned(), "--config".to_owned(), file.display().to_string()];
    let cases: &[(String, &[&str], &[&str])] = &[
        (format!("grups = 3\n{good}"), &[], &["line 1", "did you mean `groups`?"]),
        (good.replace("id = 1\ncluster", "cluster"), &[], &["`id` is not set", "CORACLE_ID"]),
        (good.to_owned(), &["--cores", "4000"], &["CPU 4000"]),
        (good.to_owned(), &["--wal-segment-size", "1MiB"], &["it is 1MiB", "from 10MiB", "fix: "]),
        (
            good.to_owned(),
            &["--raft-heartbeat-ticks", "50"],
            &["1 to 9", "half of raft.election_ticks", "fix: "],
        ),
        (good.to_owned(), &["--requirepass-file", "/nowhere"], &["/nowhere", "fix: make a file"]),
        (good.to_owned(), &["--groups", "2000"], &["groups is 2000", "1 to 1024"]),
        (good.to_owned(), &["--bind", "0.0.0.0"], &["without a password", "requirepass_file"]),
        (good.to_owned(), &["--log", "raftt=debug"], &["did you mean `raft`?"]),
        (good.to_owned(), &["--maxmemory", "much"], &["'much' is not a size"]),
        (good.to_owned(), &["--id", "2"], &["not in the list of nodes"]),
    ];
    for (text, flags, needles) in cases {
        fs::write(&file, text).expect("write");
        let flags = flags.iter().map(|flag| (*flag).to_owned());
        let output = run(&config.iter().cloned().chain(flags).collect::<Vec<_>>());
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}: {shown}");
        for needle in *needles {
            assert!(shown.contains(needle), "'{needle}' is not in: {shown}");
        }
    }
}

/// Places that a node cannot use are explained as well.
#[test]
fn unusable_places_are_explained() {
    let cluster = Cluster::prepare(&Options::single());
    let args = cluster.nodes[0].args();
    let ports = cluster.nodes[0].ports;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir");
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").expect("write");
    let full = dir.path().to_path_buf();
    let at = |path: &Path| changed(args, "--data-dir", &path.display().to_string());
    let here = format!("1=127.0.0.1:{}/{}/{}", ports.plain, ports.core, ports.peer);
    let pair = format!("{here},2=no-such-host.invalid:1/2/3");
    let fresh = dir.path().join("fresh");
    let peers = changed(&at(&fresh), "--node", &pair);
    let cases = [
        (at(&file), 4, ["cannot create", "fix: a file is in the way"]),
        (at(Path::new("/proc/nowhere")), 4, ["cannot create", "fix: choose a place"]),
        (at(&full), 5, ["is not a data directory", "it holds 'file'"]),
        (peers, 1, ["no-such-host.invalid", "fix: correct `host`"]),
    ];
    for (args, code, needles) in cases {
        let output = run(&args);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {shown}");
        for needle in needles {
            assert!(shown.contains(needle), "'{needle}' is not in: {shown}");
        }
    }
}

/// Clients that connect beyond `maxclients` are told so; those inside are served.
#[test]
fn clients_beyond_the_limit_are_told() {
    let mut scene = Scene::new(&["--maxclients", "8"]);
    let mut inside: Vec<Client> = (0..7).map(|_| scene.client()).collect();
    for client in &mut inside {
        assert_eq!(client.run("PING"), Reply::Status("PONG"));
    }
    let mut outside = scene.client();
    outside.reply_within(Duration::from_secs(5));
    let got = outside.read_to_close().expect("the server closes");
    let shown = String::from_utf8_lossy(&got);
    assert!(shown.is_empty() || shown.starts_with("-ERR max number of clients reached"), "{shown}");
    scene.check("one client too many");
    drop(inside);
    wait_until("there is room again", || {
        scene.client().call(&["PING"]).is_ok_and(|reply| reply == Reply::Status("PONG"))
    });
}
