//! `coracle demo` and `coracle cli` as people use them: one command, a pipe, a load.

mod common;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{CORACLE, Cluster, Options, wait_until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A directory on a real disk for temporary and kept data.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temp dir")
}

/// `coracle` with nothing of this environment but where to put files.
fn coracle(dir: &Path) -> Command {
    let mut command = Command::new(CORACLE);
    command.env_clear().env("TMPDIR", dir).env("XDG_DATA_HOME", dir).env("XDG_STATE_HOME", dir);
    command
}

fn with_input(mut command: Command, input: &str) -> Output {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("start coracle");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn shown(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Process numbers in the table of a demo.
fn pids(table: &str) -> Vec<i32> {
    let rows = table.lines().filter(|line| line.contains("node-") && line.contains(".log"));
    rows.map(|row| row.split_whitespace().nth(3).expect("a pid").parse().expect("a number"))
        .collect()
}

fn is_alive(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).expect("not zero")).is_ok()
}

/// A load on a fresh cluster: a report, status 0, and nothing left behind.
#[test]
fn a_demo_load_reports_and_leaves_nothing() {
    let dir = scratch();
    let mut command = coracle(dir.path());
    command.args(["demo", "--load", "2000", "--seconds", "2"]);
    let output = with_input(command, "");
    let (out, err) = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    for part in ["redis-cli -p ", "redis-cli -c -p ", "export CORACLE_ENDPOINTS=", "99.9 %"] {
        assert!(out.contains(part), "'{part}' is not in\n{out}");
    }
    let pids = pids(&out);
    assert_eq!(pids.len(), 3, "{out}");
    assert!(!pids.iter().any(|&pid| is_alive(pid)), "nodes are left");
    assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0, "data is left");
}

/// The prompt over a pipe, and data that is kept under a name.
#[test]
fn the_prompt_works_over_a_pipe_and_data_can_be_kept() {
    let dir = scratch();
    let demo = || {
        let mut command = coracle(dir.path());
        command.args(["demo", "--nodes", "3", "--cores", "0", "--groups", "3", "--keep", "mine"]);
        command
    };
    let input = "PUT name coracle\nget name\nGet missing\nAPPEND name ' boat'\nget name\n\
                 SET n 1\nincr n\ndel n\nget n\nexit\nget name\n";
    let output = with_input(demo(), input);
    let (out, err) = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let (_, answers) = out.split_once("coracle cli\n\n").expect("the table ends so");
    assert_eq!(answers, "ok\ncoracle\n\nok\ncoracle boat\nok\n2\n1\n\n");

    let output = with_input(demo(), "get name\nnosuch\n");
    let (out, err) = shown(&output);
    assert!(out.ends_with("\ncoracle boat\n"), "{out}\n{err}");
    assert!(err.contains("error: ERR unknown command 'nosuch'"), "{err}");
    assert_eq!(output.status.code(), Some(1), "an error in a pipe shows in the status");
}

/// A demo that is killed takes its nodes with it.
#[test]
fn a_killed_demo_takes_its_nodes_with_it() {
    let dir = scratch();
    let mut command = coracle(dir.path());
    command.args(["demo", "--cores", "0", "--groups", "3"]);
    let out = std::fs::File::create(dir.path().join("out")).expect("create");
    let pipes = command.stdin(Stdio::piped()).stdout(out).stderr(Stdio::null());
    let mut child = pipes.spawn().expect("start coracle");
    let mut nodes = Vec::new();
    wait_until("the table is shown", || {
        let text = std::fs::read_to_string(dir.path().join("out")).expect("readable");
        nodes = pids(&text);
        text.contains("coracle cli")
    });
    assert_eq!(nodes.len(), 3);
    assert!(nodes.iter().all(|&pid| is_alive(pid)));
    child.kill().expect("kill a child");
    child.wait().expect("wait for a child");
    wait_until("the nodes end", || !nodes.iter().any(|&pid| is_alive(pid)));
}

/// Ctrl-C and SIGTERM end a demo in order.
#[test]
fn a_signal_ends_a_demo_in_order() {
    let dir = scratch();
    let mut command = coracle(dir.path());
    command.args(["demo", "--nodes", "1", "--cores", "0", "--groups", "1"]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = pipes.spawn().expect("start coracle");
    // Open until the end, so that it is the signal that ends the prompt.
    let _stdin = child.stdin.take();
    let mut table = String::new();
    let mut reader = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    while !table.contains("coracle cli") {
        assert!(std::io::BufRead::read_line(&mut reader, &mut table).expect("readable") > 0);
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not zero");
    kill_process(pid, Signal::TERM).expect("signal a child");
    let status = child.wait().expect("wait for a child");
    assert_eq!(status.code(), Some(128 + 15));
    assert!(!pids(&table).iter().any(|&pid| is_alive(pid)), "the node is left");
    assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0, "data is left");
}

/// One command per call: results on stdout, errors on stderr, a status for each.
#[test]
fn one_shot_commands_have_their_statuses() {
    let dir = scratch();
    let cluster = Cluster::start(&Options::default());
    let endpoints: Vec<String> =
        cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.core)).collect();
    let port = cluster.nodes[0].ports.plain.to_string();
    let cases: &[(&[&str], &str, &str, i32)] = &[
        (&["set", "k", "v w"], "ok\n", "", 0),
        (&["GET", "k"], "v w\n", "", 0),
        (&["get", "missing"], "\n", "", 0),
        (&["append", "k", "-x"], "ok\n", "", 0),
        (&["get", "k"], "v w-x\n", "", 0),
        (&["incr", "k"], "", "error: ERR value is not an integer or out of range\n", 1),
    ];
    for &(args, out, err, code) in cases {
        // Once through the plain port, once through core ports with redirects.
        for through_cores in [false, true] {
            if through_cores && args[0].eq_ignore_ascii_case("append") {
                continue;
            }
            let mut command = coracle(dir.path());
            command.arg("cli");
            if through_cores {
                command.env("CORACLE_ENDPOINTS", endpoints.join(","));
            } else {
                command.args(["-h", "127.0.0.1", "-p", &port, "-c"]);
            }
            let output = with_input(
                {
                    command.args(args);
                    command
                },
                "",
            );
            let got = shown(&output);
            assert_eq!(got, (out.to_owned(), err.to_owned()), "{args:?} {through_cores}");
            assert_eq!(output.status.code(), Some(code), "{args:?} {through_cores}");
        }
    }
    let nobody = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = nobody.local_addr().expect("address").port().to_string();
    drop(nobody);
    let mut command = coracle(dir.path());
    command.args(["cli", "-p", &port, "get", "k"]);
    let output = with_input(command, "");
    let (_, err) = shown(&output);
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.starts_with("error: cannot connect to any node\ncause: "), "{err}");
    assert!(err.contains(&format!("127.0.0.1:{port}: nobody listens there")), "{err}");
}
