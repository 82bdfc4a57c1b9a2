//! The whole generator against servers that behave in known ways.

mod common;

use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Answer, Server, Store};
use coracle_engine::Reply;
use coracle_loadgen::{Command, LoadReport, Options, Unreachable, UsageError, run};

fn options(server: &Server) -> Options {
    Options {
        endpoints: vec![server.addr.to_string()],
        seconds: 0.5,
        warmup: 0.0,
        connections: 4,
        pipeline: 4,
        keys: 1000,
        value_size: 64,
        quiet: true,
        ..Options::default()
    }
}

fn load(options: Options) -> LoadReport {
    run(options, Arc::new(AtomicBool::new(false))).expect("a report").load.expect("a load")
}

fn ok(_: u64, _: &[&[u8]]) -> Answer {
    Reply::OK.into()
}

/// A server that stops for 200 ms in a second: a fifth of the scheduled requests suffers, and the
/// percentiles say so. Counting from the send hides all but the few that were in flight.
#[test]
fn a_stall_of_the_server_is_seen_by_every_request_that_was_due() {
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) == 300 {
            thread::sleep(Duration::from_millis(200));
        }
        Reply::OK.into()
    });
    let report =
        load(Options { rate: Some(1000.0), seconds: 1.0, connections: 1, ..options(&server) });
    assert_eq!((report.latency.count, report.error_count), (1000, 0));
    assert!(report.latency.p99_ms > 150.0, "{:?}", report.latency);
    assert!(report.latency.p90_ms > 60.0, "{:?}", report.latency);
    assert!(report.latency.max_ms >= 190.0, "{:?}", report.latency);
    assert!(report.service.p95_ms < report.latency.p95_ms / 2.0, "{:?}", report.service);
}

/// The server answers only when exactly N requests have come, and looks for an N+1st meanwhile.
#[test]
fn a_closed_loop_keeps_exactly_its_requests_in_flight() {
    const IN_FLIGHT: usize = 12;
    let (arrivals, inbox) = mpsc::channel::<mpsc::Sender<()>>();
    let too_many = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&too_many);
    thread::spawn(move || {
        loop {
            let mut waiting = Vec::new();
            while waiting.len() < IN_FLIGHT {
                match inbox.recv() {
                    Ok(answer) => waiting.push(answer),
                    Err(_) => return,
                }
            }
            if inbox.recv_timeout(Duration::from_millis(5)).is_ok() {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            for answer in waiting {
                let _ = answer.send(());
            }
        }
    });
    let arrivals = Mutex::new(arrivals);
    let server = Server::start(move |_, _| {
        let (answer, answered) = mpsc::channel();
        arrivals.lock().expect("no panic").send(answer).expect("the other thread runs");
        // Blocks this connection, so each must have depth 1.
        let _ = answered.recv_timeout(Duration::from_secs(5));
        Reply::OK.into()
    });
    let report = load(Options { connections: IN_FLIGHT, pipeline: 1, ..options(&server) });
    assert_eq!(too_many.load(Ordering::SeqCst), 0, "more than {IN_FLIGHT} in flight");
    assert!(report.writes >= 2 * IN_FLIGHT as u64, "{} writes", report.writes);
    assert_eq!(report.error_count, 0, "{:?}", report.errors);
}

#[test]
fn an_open_loop_keeps_its_rate_and_mix() {
    let store = Store::default();
    let server = Server::start(move |_, args| store.answer(args));
    let report =
        load(Options { rate: Some(4000.0), read_ratio: 0.5, preload: true, ..options(&server) });
    assert_eq!((report.latency.count, report.error_count, report.dropped), (2000, 0, 0));
    assert_eq!(report.reads_missing, 0, "all keys were written before");
    let share = report.reads as f64 / 2000.0;
    assert!((share - 0.5).abs() < 0.06, "{share} reads");
    assert!(report.received_bytes_per_second > 0.0 && report.sent_bytes_per_second > 0.0);
    assert!(report.generator.cpu_seconds > 0.0);
}

/// Values of every size, in pieces of every size, and all commands.
#[test]
fn all_commands_and_sizes_work() {
    for command in [Command::Set, Command::Append, Command::Incr, Command::Get] {
        for value_size in [0, 10, 5_000, 200_000] {
            if command == Command::Append && value_size > 5_000 {
                continue;
            }
            let store = Store::default();
            let server = Server::start(move |_, args| store.answer(args));
            let report = load(Options {
                command,
                value_size,
                keys: 10,
                preload: true,
                read_ratio: 0.3,
                seconds: 0.05,
                connections: 2,
                pipeline: 3,
                ..options(&server)
            });
            assert_eq!(report.error_count, 0, "{command:?} {value_size}: {:?}", report.errors);
            assert!(report.reads > 0, "{command:?} {value_size}");
            assert_eq!(report.writes == 0, command == Command::Get, "{command:?}");
            assert_eq!(report.reads_missing, 0, "{command:?} {value_size}");
        }
    }
}

/// The first connection dies with requests on it; the others and its successor go on.
#[test]
fn a_lost_connection_is_counted_and_replaced() {
    let server = Server::start(|number, _| match number {
        0 => Answer::HangUp,
        _ => Reply::OK.into(),
    });
    let report = load(options(&server));
    let lost = &report.errors["connection lost (outcome unknown)"];
    assert!((1..=4).contains(&lost.count), "{lost:?}");
    assert_eq!(report.error_count, lost.count, "{:?}", report.errors);
    assert_eq!(report.connections_lost, 1);
    assert!(report.writes > 100, "{}", report.writes);
}

#[test]
fn connections_go_to_endpoints_that_survive() {
    let mut first = Server::start(|_, _| Answer::HangUp);
    let second = Server::start(ok);
    let mut both = options(&first);
    both.endpoints.push(second.addr.to_string());
    let handle = thread::spawn(move || load(both));
    // Dead before, during or after the start: the load must reach the second in every case.
    first.kill();
    let report = handle.join().expect("no panic");
    assert!(report.writes > 100, "{}", report.writes);
}

/// Errors are counted by their code, with an example.
#[test]
fn error_replies_are_counted_by_kind() {
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, _| match count.fetch_add(1, Ordering::SeqCst) % 4 {
        0 => Reply::error("OOM server is full").into(),
        1 => Reply::error("MOVED 1 127.0.0.1:1").into(),
        2 => Reply::Integer(7).into(),
        _ => Reply::OK.into(),
    });
    let report = load(Options { rate: Some(1000.0), ..options(&server) });
    let count = |kind: &str| report.errors.get(kind).map_or(0, |error| error.count);
    assert_eq!(count("OOM"), 125, "{:?}", report.errors);
    assert_eq!(count("MOVED"), 125, "without --cluster it is not followed");
    assert_eq!(count("unexpected reply"), 125);
    assert_eq!(report.errors["OOM"].example, "OOM server is full");
    assert_eq!((report.writes, report.moved), (125, 0));
}

/// "Not now" is no failure: the request is sent again a little later, and that is counted. Only
/// an endless "not now" fails, as what it is.
#[test]
fn not_now_is_tried_again() {
    let count = AtomicU64::new(0);
    let server = Server::start(move |_, _| match count.fetch_add(1, Ordering::SeqCst) % 5 {
        0 => Reply::error("TRYAGAIN the group has no leader").into(),
        _ => Reply::OK.into(),
    });
    let report = load(Options { rate: Some(1000.0), ..options(&server) });
    assert_eq!((report.writes, report.error_count), (500, 0), "{:?}", report.errors);
    let retried = report.retried["TRYAGAIN"];
    assert!((100..=150).contains(&retried), "a fifth of all sends, but {retried}");
    assert!(report.latency.max_ms >= 20.0, "the pause is part of the latency");

    let server = Server::start(|_, _| Reply::error("TRYAGAIN never").into());
    let report = load(Options { rate: Some(100.0), ..options(&server) });
    assert_eq!(report.writes, 0);
    assert_eq!(report.errors["TRYAGAIN"].count, 50, "{:?}", report.errors);
    assert_eq!(report.retried["TRYAGAIN"], 50 * 32);
}

/// Ctrl-C: the report of what was measured so far; a second one does not wait for anything.
#[test]
fn interrupts_end_the_run_with_a_report_and_then_at_once() {
    let start = |server: &Server| {
        let mut loadgen = Process::new(env!("CARGO_BIN_EXE_loadgen"));
        let line = "--seconds 600 --warmup 0 --rate 200 --keys 100 --quiet --timeout-ms 60000";
        loadgen.args(["--endpoints", &server.addr.to_string()]).args(line.split(' '));
        loadgen.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start loadgen")
    };
    let interrupt = |child: &Child| {
        let sent = Process::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    };
    let (answered, answers) = mpsc::channel();
    let answered = Mutex::new(answered);
    let server = Server::start(move |_, _| {
        let _ = answered.lock().expect("no panic").send(());
        Reply::OK.into()
    });
    let child = start(&server);
    for _ in 0..100 {
        answers.recv_timeout(Duration::from_secs(20)).expect("requests come");
    }
    interrupt(&child);
    let output = child.wait_with_output().expect("it ends");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let writes = shown.lines().find_map(|line| line.strip_prefix("writes")).expect("a report");
    let writes: u64 = writes.trim().parse().expect("a number");
    assert!((90..2000).contains(&writes), "{shown}");

    let (asked, requests) = mpsc::channel();
    let asked = Mutex::new(asked);
    let server = Server::start(move |_, _| {
        let _ = asked.lock().expect("no panic").send(());
        Answer::Silence
    });
    let mut child = start(&server);
    requests.recv_timeout(Duration::from_secs(20)).expect("a request");
    // Two signals at once may become one: go on until it has ended.
    let status = loop {
        interrupt(&child);
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
    };
    assert_eq!(status.code(), Some(130));
}

/// A server that never answers: the windows fill, the backlog overflows, nothing is hidden.
#[test]
fn a_server_that_cannot_keep_the_rate_is_told_apart() {
    let server = Server::start(|_, _| Answer::Silence);
    let report = load(Options {
        rate: Some(1000.0),
        backlog: 100,
        timeout_ms: 200,
        seconds: 0.15,
        ..options(&server)
    });
    assert_eq!(report.dropped, 150 - 16 - 100, "16 in flight, 100 waiting");
    assert_eq!(report.error_count + report.dropped, 150, "{:?}", report.errors);
    assert!(report.warnings.iter().any(|text| text.contains("cannot keep the rate")));
}

/// A connection that is silent for too long is given up, though it does not break.
#[test]
fn a_silent_connection_times_out() {
    let server = Server::start(|number, _| match number {
        0 => Answer::Silence,
        _ => Reply::OK.into(),
    });
    // Long enough that a pause of the machine does not silence the other connections as well.
    let report = load(Options { timeout_ms: 1000, seconds: 1.5, ..options(&server) });
    assert_eq!(report.errors["timeout (outcome unknown)"].count, 4, "{:?}", report.errors);
    assert_eq!(report.connections_lost, 1);
}

#[test]
fn garbage_breaks_the_connection_not_the_run() {
    let server = Server::start(|number, _| match number {
        0 => Answer::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        _ => Reply::OK.into(),
    });
    let report = load(options(&server));
    assert_eq!(report.connections_lost, 1);
    let broken = &report.errors["broken protocol (outcome unknown)"];
    assert_eq!(broken.example, "Protocol error: unknown reply type 'H'");
    assert!(report.writes > 100, "{}", report.writes);
}

#[test]
fn stopping_ends_an_endless_run_and_files_are_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (json, hgrm) = (dir.path().join("run.json"), dir.path().join("run.hgrm"));
    let stop = Arc::new(AtomicBool::new(false));
    let (count, trigger) = (AtomicU64::new(0), Arc::clone(&stop));
    let server = Server::start(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) == 500 {
            trigger.store(true, Ordering::SeqCst);
        }
        Reply::OK.into()
    });
    let endless = Options {
        seconds: 0.0,
        json: Some(json.clone()),
        hgrm: Some(hgrm.clone()),
        ..options(&server)
    };
    let report = run(endless, stop).expect("a report");
    let measured = report.load.as_ref().expect("a load");
    assert!(measured.writes >= 500, "{}", measured.writes);
    assert_eq!(report.exit_code(), 0);
    let text = std::fs::read_to_string(json).expect("json");
    let value: serde_json::Value = serde_json::from_str(&text).expect("valid");
    assert_eq!(value["load"]["writes"].as_u64(), Some(measured.writes));
    assert_eq!(value["options"]["dist"], "uniform");
    assert!(value["host"]["cpus"].as_u64() > Some(0));
    let text = std::fs::read_to_string(hgrm).expect("hgrm");
    assert!(text.contains(&format!("Total count    = {:12}]", measured.writes)), "{text}");
}

#[test]
fn the_series_has_every_second() {
    let server = Server::start(ok);
    let report = load(Options { rate: Some(500.0), seconds: 1.0, warmup: 1.0, ..options(&server) });
    let warmup: Vec<bool> = report.series.iter().map(|second| second.warmup).collect();
    assert_eq!(warmup, [true, false]);
    assert!((report.series[0].t - 1.0).abs() < 1e-9);
    let ops = report.series[0].ops;
    assert!((400..=500).contains(&ops), "{ops} in the first second");
    assert_eq!(report.writes, 500, "the warm-up is not counted");
}

#[test]
fn nobody_there_and_wrong_options_are_told_apart() {
    let mut server = Server::start(ok);
    server.kill();
    let stop = || Arc::new(AtomicBool::new(false));
    let error = run(options(&server), stop()).expect_err("nobody");
    assert!(error.is::<Unreachable>(), "{error:#}");
    let cluster = Options { cluster: true, ..options(&server) };
    assert!(run(cluster, stop()).expect_err("nobody").is::<Unreachable>());
    let wrong = Options { connections: 0, ..options(&server) };
    assert!(run(wrong, stop()).expect_err("usage").is::<UsageError>());
}
