//! Routing: layouts, redirections, endpoints that die.

mod common;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{Answer, Server, slots};
use coracle_engine::{Reply, SlotId};
use coracle_loadgen::{LoadReport, Options, run};

const MIDDLE: u16 = 8192;

fn options(seed: SocketAddr) -> Options {
    Options {
        endpoints: vec![seed.to_string()],
        cluster: true,
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

/// Two endpoints and who owns the upper half of the slots; the lower half is always the first's.
struct Pair {
    servers: [Server; 2],
    /// Number of the endpoint that owns the upper half.
    upper: Arc<AtomicU64>,
    /// Requests that each one served.
    served: Arc<[AtomicU64; 2]>,
    /// Requests that came to the wrong endpoint.
    strays: Arc<AtomicU64>,
}

impl Pair {
    /// `layout` gives the reply of `CLUSTER SLOTS` for the current owner of the upper half.
    fn start(layout: impl Fn([SocketAddr; 2], u64) -> Reply + Send + Sync + 'static) -> Self {
        let layout = Arc::new(layout);
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let addrs = [0, 1].map(|n: usize| listeners[n].local_addr().expect("bound"));
        let upper = Arc::new(AtomicU64::new(1));
        let served = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let strays = Arc::new(AtomicU64::new(0));
        let mut own_number = 0..;
        let servers = listeners.map(|listener| {
            let own: usize = own_number.next().expect("endless");
            let (upper, served) = (Arc::clone(&upper), Arc::clone(&served));
            let (strays, layout) = (Arc::clone(&strays), Arc::clone(&layout));
            Server::on(listener, move |_, args| {
                let upper = upper.load(Ordering::SeqCst);
                if args[0] == b"CLUSTER" {
                    return layout(addrs, upper).into();
                }
                let slot = SlotId::of_key(args[1]).get();
                let owner = if slot < MIDDLE { 0 } else { upper as usize };
                if owner != own {
                    strays.fetch_add(1, Ordering::SeqCst);
                    return Reply::error(format!("MOVED {slot} {}", addrs[owner])).into();
                }
                served[own].fetch_add(1, Ordering::SeqCst);
                Reply::OK.into()
            })
        });
        Self { servers, upper, served, strays }
    }

    fn served(&self, number: usize) -> u64 {
        self.served[number].load(Ordering::SeqCst)
    }
}

fn honest(addrs: [SocketAddr; 2], upper: u64) -> Reply {
    slots(&[(0, MIDDLE - 1, addrs[0]), (MIDDLE, 16383, addrs[upper as usize])])
}

#[test]
fn every_key_goes_straight_to_its_owner() {
    for rate in [None, Some(4000.0)] {
        let pair = Pair::start(honest);
        let report = load(Options { rate, ..options(pair.servers[0].addr) });
        assert_eq!((report.moved, report.error_count), (0, 0), "{:?}", report.errors);
        assert_eq!(pair.strays.load(Ordering::SeqCst), 0);
        let (lower, upper) = (pair.served(0), pair.served(1));
        assert!(lower > 300 && upper > 300, "{lower} and {upper}");
        let share = lower as f64 / (lower + upper) as f64;
        assert!((share - 0.5).abs() < 0.1, "{share} of the requests for half of the slots");
    }
}

/// The layout is wrong for good, so only `MOVED` teaches the truth: each slot is redirected once
/// per layout, and nothing fails.
#[test]
fn moved_is_followed() {
    let pair = Pair::start(|addrs, _| slots(&[(0, 16383, addrs[0])]));
    let report = load(Options { rate: Some(2000.0), ..options(pair.servers[0].addr) });
    assert_eq!((report.error_count, report.writes), (0, 1000), "{:?}", report.errors);
    assert!(report.moved > 100, "{}", report.moved);
    assert_eq!(report.moved, pair.strays.load(Ordering::SeqCst));
    assert!(pair.served(1) > 300, "{}", pair.served(1));
}

/// After one redirection the new layout is asked for; it stops the redirections of all slots.
#[test]
fn a_moved_half_is_learned_by_asking_again() {
    let pair = Pair::start(honest);
    pair.upper.store(0, Ordering::SeqCst);
    let (upper, served) = (Arc::clone(&pair.upper), Arc::clone(&pair.served));
    // Changes the owner while the load runs, after 400 requests.
    let seed = pair.servers[0].addr;
    let handle = std::thread::spawn(move || {
        load(Options { rate: Some(2000.0), seconds: 1.0, ..options(seed) })
    });
    while served[0].load(Ordering::SeqCst) < 400 {
        std::thread::yield_now();
    }
    upper.store(1, Ordering::SeqCst);
    let report = handle.join().expect("no panic");
    assert_eq!((report.error_count, report.writes), (0, 2000), "{:?}", report.errors);
    assert!((1..400).contains(&report.moved), "{} redirections", report.moved);
    assert!(pair.served(1) > 200, "{}", pair.served(1));
}

/// Endpoints that name each other: the request fails after a bounded number of hops.
#[test]
fn redirections_in_a_circle_end() {
    let other = Arc::new(Mutex::new(None::<SocketAddr>));
    let named = Arc::clone(&other);
    let second = Server::start(move |_, args| {
        let owner = named.lock().expect("no panic").expect("set");
        Reply::error(format!("MOVED {} {owner}", SlotId::of_key(args[1]).get())).into()
    });
    let there = second.addr;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let here = listener.local_addr().expect("bound");
    let first = Server::on(listener, move |_, args| match args[0] {
        b"CLUSTER" => slots(&[(0, 16383, here)]).into(),
        _ => Reply::error(format!("MOVED {} {there}", SlotId::of_key(args[1]).get())).into(),
    });
    *other.lock().expect("no panic") = Some(first.addr);
    let report = load(Options { rate: Some(100.0), seconds: 0.1, ..options(first.addr) });
    assert_eq!(report.errors["redirected too often"].count, 10, "{:?}", report.errors);
    assert_eq!((report.moved, report.writes), (320, 0));
}

/// The owner of the upper half dies; the first takes over; the load goes on there, and only what
/// was in flight has failed.
#[test]
fn a_dead_endpoint_is_left() {
    let Pair { servers: [first, mut second], upper, served, .. } = Pair::start(honest);
    let seed = first.addr;
    let handle = std::thread::spawn(move || {
        load(Options { rate: Some(2000.0), seconds: 1.0, ..options(seed) })
    });
    while served[1].load(Ordering::SeqCst) < 200 {
        std::thread::yield_now();
    }
    upper.store(0, Ordering::SeqCst);
    second.kill();
    let report = handle.join().expect("no panic");
    let lost = report.errors.get("connection lost (outcome unknown)").map_or(0, |e| e.count);
    assert_eq!(report.error_count, lost, "{:?}", report.errors);
    assert!(lost <= 8, "{lost} lost of at most 2 connections x 4");
    assert_eq!(report.writes, 2000 - lost);
}

/// A layout with more owners than connections: one connection each.
#[test]
fn every_owner_gets_a_connection() {
    let pair = Pair::start(honest);
    let report = load(Options { connections: 1, ..options(pair.servers[0].addr) });
    assert_eq!(report.error_count, 0, "{:?}", report.errors);
    assert!(pair.served(0) > 50 && pair.served(1) > 50);
}

#[test]
fn a_refused_layout_is_reported() {
    let server = Server::start(|_, _| {
        Answer::Reply(Reply::error("ERR This instance has cluster support disabled"))
    });
    let error = run(options(server.addr), Arc::new(AtomicBool::new(false))).expect_err("refused");
    assert!(format!("{error:#}").contains("cluster support disabled"), "{error:#}");
}
