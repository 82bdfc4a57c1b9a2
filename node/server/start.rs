//! Start and stop of a node: recovery, listeners, threads, signals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_engine::{CoreAddr, CoreConfig, CoreId, Effects};
use coracle_ring::{ListenerId, Ring, RingConfig};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use socket2::SockRef;
use tracing_appender::non_blocking::ErrorCounter;

use super::background::Background;
use super::clients::Clients;
use super::handshake::Handshakes;
use super::hot_loop::{HotLoop, Siblings};
use super::keys::{Kind, key};
use super::mailbox::Mailbox;
use super::peers::OutLinks;
use super::recover::recover;
use super::shared::Shared;
use super::stop::{Leaving, Phase, RESIGN_MAX};
use super::storage::{Room, Storage, Workers};
use crate::config::Config;
use crate::data_dir::{DataDir, PeersFile, Starts};
use crate::fatal::{Exit, Fatal};
use crate::preflight::{PORTS_MAX, explain_bind, retry_in_use};

/// Receive window of peer links. A window that closes while a core is in a long turn costs probe
/// timers of up to 200 ms.
const PEER_WINDOW_BYTES: usize = 4 << 20;
/// Connections the kernel may hold before they are accepted.
const BACKLOG: u32 = 1024;

/// Pause between two looks at how far the hand-over of leaderships is.
const RESIGN_PAUSE: Duration = Duration::from_millis(5);

/// Why the main thread is woken.
enum Ending {
    /// SIGTERM or SIGINT.
    Signal(i32),
    /// A hot loop has ended.
    Core(CoreId, Result<(), Fatal>),
}

/// What a core's thread is started with.
struct CoreStart {
    me: CoreAddr,
    cpu: usize,
    shared: Arc<Shared>,
    wal_dir: std::path::PathBuf,
    peers_file: PeersFile,
    starts: Arc<Starts>,
    mailbox: SyncSender<(CoreId, Arc<Mailbox>)>,
    mailboxes: Receiver<Vec<Arc<Mailbox>>>,
}

/// Runs a node until SIGTERM or SIGINT, or until one of its cores cannot go on.
pub(crate) fn run(
    config: Config,
    data_dir: &DataDir,
    log_drops: ErrorCounter,
) -> Result<(), Fatal> {
    let (ending, endings) = channel();
    watch_signals(ending.clone())?;
    let shared = Arc::new(Shared::new(config, data_dir.cluster_id(), log_drops));
    let threads = start_cores(&shared, data_dir, &ending)?;
    let core_ended = |core: CoreId, result: Result<(), Fatal>| {
        if let Err(fatal) = &result {
            tracing::error!(target: "node", core = core.0, "core ended: {fatal}");
        }
        shared.stop().enter(Phase::Stopping);
        // The other cores may wait for a disk that does not answer: do not wait for them.
        result
    };
    match endings.recv() {
        Ok(Ending::Signal(signal)) => {
            tracing::info!(target: "node", signal, "stopping: handing over leaderships");
        }
        Ok(Ending::Core(core, result)) => return core_ended(core, result),
        // Not while the watcher of signals lives.
        Err(_) => {}
    }
    shared.stop().enter(Phase::Resigning);
    let deadline = Instant::now() + RESIGN_MAX;
    while !shared.stop().all_resigned() && Instant::now() < deadline {
        if let Ok(Ending::Core(core, result)) = endings.recv_timeout(RESIGN_PAUSE) {
            return core_ended(core, result);
        }
    }
    let resigned = shared.stop().all_resigned();
    tracing::info!(target: "node", resigned, "stopping: no new clients");
    shared.stop().enter(Phase::Stopping);
    for thread in threads {
        if thread.join().is_err() {
            return Err(Fatal::new(Exit::Bug, "a core ended without a result", "", ""));
        }
    }
    // Every loop has put its result in before its thread ended.
    while let Ok(end) = endings.try_recv() {
        if let Ending::Core(_, Err(fatal)) = end {
            return Err(fatal);
        }
    }
    Ok(())
}

/// Turns SIGTERM and SIGINT into messages. The second one ends the process at once.
fn watch_signals(ending: Sender<Ending>) -> Result<(), Fatal> {
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| Fatal::failed("cannot handle signals", error.to_string(), ""))?;
    let watch = move || {
        let mut seen = false;
        for signal in signals.forever() {
            if std::mem::replace(&mut seen, true) {
                std::process::exit(128 + signal);
            }
            if ending.send(Ending::Signal(signal)).is_err() {
                return;
            }
        }
    };
    spawn("signals".to_owned(), watch).map(drop)
}

fn start_cores(
    shared: &Arc<Shared>,
    data_dir: &DataDir,
    ending: &Sender<Ending>,
) -> Result<Vec<JoinHandle<()>>, Fatal> {
    let count = shared.map().core_count();
    let (mailbox, arriving) = sync_channel(usize::from(count));
    let mut threads = Vec::new();
    let mut waiting = Vec::new();
    for core in 0..count {
        let (sender, mailboxes) = sync_channel(1);
        waiting.push(sender);
        let start = CoreStart {
            me: CoreAddr { node: shared.node(), core: CoreId(core) },
            cpu: usize::from(shared.config().cores[usize::from(core)]),
            shared: Arc::clone(shared),
            wal_dir: data_dir.core_dir(core),
            peers_file: data_dir.peers_file(core),
            starts: Arc::clone(data_dir.starts()),
            mailbox: mailbox.clone(),
            mailboxes,
        };
        let ending = ending.clone();
        threads.push(spawn(format!("core-{core}"), move || {
            let core = start.me.core;
            let result = start_core(start).and_then(HotLoop::run);
            // The receiver may be gone when the process is ending anyway.
            let _ = ending.send(Ending::Core(core, result));
        })?);
    }
    drop(mailbox);
    let mut mailboxes: Vec<_> = arriving.iter().collect();
    if mailboxes.len() < usize::from(count) {
        // A core could not set up its ring; its own error is on the way.
        return Ok(threads);
    }
    mailboxes.sort_by_key(|(core, _)| *core);
    let mailboxes: Vec<_> = mailboxes.into_iter().map(|(_, mailbox)| mailbox).collect();
    for sender in waiting {
        // A core that has failed meanwhile has sent its error.
        let _ = sender.send(mailboxes.clone());
    }
    Ok(threads)
}

/// Builds everything a core owns, on its own thread.
fn start_core(start: CoreStart) -> Result<HotLoop, Fatal> {
    let CoreStart { me, cpu, shared, wal_dir, peers_file, starts, mailbox: announce, mailboxes } =
        start;
    pin(cpu)?;
    let mut ring = Ring::new(RingConfig::default())
        .map_err(|error| Fatal::failed("cannot set up io_uring", error.to_string(), ""))?;
    let mailbox = Mailbox::new(ring.waker());
    let gone = || Fatal::failed("this core cannot start", "another core of the node failed", "");
    announce.send((me.core, Arc::clone(&mailbox))).map_err(|_| gone())?;
    drop(announce);
    let siblings = Siblings::new(mailboxes.recv().map_err(|_| gone())?);

    let config = shared.config();
    prefault(config.prefault_bytes / u64::from(shared.map().core_count()));
    let (core, wal, newest) = recover(&shared, me, &wal_dir)?;
    let no_workers =
        |error: anyhow::Error| Fatal::failed("cannot start background work", error.to_string(), "");
    let (first, second) = (ring.waker(), ring.waker());
    let workers = Workers {
        segments: Background::start(me.core.0, cpu, move || first.wake()).map_err(no_workers)?,
        checkpoints: Background::start(me.core.0, cpu, move || second.wake())
            .map_err(no_workers)?,
    };
    let (segment_bytes, cores) = (wal.options().segment_bytes, shared.map().core_count());
    let bytes_max = Some(config.maxdisk_bytes).filter(|&bytes| bytes > 0);
    let room = Room::new(segment_bytes, cores, bytes_max);
    let storage = Storage::new(wal, newest, workers, (config.wal, config.checkpoint), room)?;
    let out_links = OutLinks::new(me, shared.map(), shared.cluster_id()).map_err(|error| {
        let fix = "correct `host` of that node in [[nodes]] (--node), or the name service";
        Fatal::failed("cannot find the peers", format!("{error:#}"), fix)
    })?;
    let listeners = listen(&mut ring, &shared, me)?;
    // Nothing was sent so far, and nothing can go wrong any more.
    let handshakes = Handshakes::new(starts.count()?, peers_file, ring.waker())?;
    tracing::info!(target: "node", core = me.core.0, cpu, "core is up");
    Ok(HotLoop {
        me,
        ring,
        core,
        storage,
        clients: Clients::new(config.client_memory_per_core_bytes()),
        out_links,
        in_links: Vec::new(),
        handshakes,
        mailbox,
        siblings,
        tick: Duration::from_millis(u64::from(config.raft.tick_ms)),
        shared: Arc::clone(&shared),
        effects: Effects::default(),
        again: false,
        listeners,
        leaving: Leaving::default(),
    })
}

/// Touches memory and gives it back to the allocator of this thread, whose pages then have
/// frames. A fault costs up to some milliseconds where a hypervisor has to find memory for it.
fn prefault(bytes: u64) {
    const BLOCK_BYTES: usize = 1 << 20;
    let count = usize::try_from(bytes).unwrap_or(usize::MAX) / BLOCK_BYTES;
    let blocks: Vec<_> = (0..count).map(|_| vec![1_u8; BLOCK_BYTES]).collect();
    // Nobody reads them: without this they need not exist.
    drop(std::hint::black_box(blocks));
}

pub(super) fn core_config(shared: &Shared, me: CoreAddr) -> CoreConfig {
    let config = shared.config();
    CoreConfig {
        election_timeout_ticks: config.raft.election_ticks,
        heartbeat_ticks: config.raft.heartbeat_ticks,
        check_interval_ticks: config.raft.check_ticks(),
        memory_budget_bytes: usize::try_from(config.memory_per_core_bytes()).unwrap_or(usize::MAX),
        value_cache_bytes_max: usize::try_from(config.value_cache_per_core_bytes())
            .unwrap_or(usize::MAX),
        seed: seed(),
        ..CoreConfig::new(me, shared.map().clone())
    }
}

/// Randomness for election timeouts and hash seeds, from the operating system.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn listen(ring: &mut Ring, shared: &Shared, me: CoreAddr) -> Result<Vec<ListenerId>, Fatal> {
    let mut listeners = Vec::new();
    let deadline = Instant::now() + PORTS_MAX;
    let node = shared.map().node(me.node).expect("the node is in its own map");
    let ports = [
        (Kind::PlainListener, "clients (plain)", node.plain_port, true),
        (Kind::CoreListener, "clients of one core", node.core_port + me.core.0, false),
        (Kind::PeerListener, "peers", node.peer_port + me.core.0, false),
    ];
    for (kind, what, port, shared_port) in ports {
        for &ip in &shared.config().bind {
            let address = SocketAddr::new(ip, port);
            let bind = || coracle_ring::listener(address, shared_port, BACKLOG);
            let listener = retry_in_use(deadline, bind)
                .map_err(|error| explain_bind(&address.to_string(), what, &error))?;
            let window_bytes = if kind == Kind::PeerListener { PEER_WINDOW_BYTES } else { 1 << 20 };
            // Accepted connections inherit it; the system's limit may make it smaller.
            if let Err(error) = SockRef::from(&listener).set_recv_buffer_size(window_bytes) {
                tracing::warn!(target: "net", %error, "cannot set the receive buffer");
            }
            listeners.push(ring.listen(key(kind, 0), listener));
        }
    }
    Ok(listeners)
}

/// Pins the calling thread to a CPU.
fn pin(cpu: usize) -> Result<(), Fatal> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| {
        Fatal::failed(
            format!("cannot pin a core to CPU {cpu}"),
            error.to_string(),
            "name CPUs of this machine with --cores",
        )
    })
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fatal> {
    let label = name.clone();
    std::thread::Builder::new().name(name).spawn(run).map_err(|error| {
        Fatal::failed(format!("cannot start the thread {label}"), error.to_string(), "")
    })
}
