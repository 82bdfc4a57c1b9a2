//! The loop: one thread, one ring, all connections.
//!
//! A turn: make what is due, give it to connections, submit and wait, look at what arrived.
//! Answers carry the time at which the wait ended, so their own handling is not counted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use coracle_ring::{Event, Ring, RingConfig};
use indicatif::ProgressBar;

use crate::client::{Unreachable, resolve};
use crate::fleet::{Fleet, Request, State};
use crate::history::History;
use crate::host::ThreadTime;
use crate::layout::{self, Refresher};
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::options::Options;
use crate::progress::Progress;
use crate::request::{Encoder, Op};
use crate::source::{Load, Source};

/// How often connections and deadlines are looked after.
const CHORES_NS: u64 = 20_000_000;

/// Requests due within this time of each other leave together: at 200,000 a second a wait per
/// request would cost more than the request.
const COALESCE_NS: u64 = 50_000;

/// How long the first connections may take.
const CONNECT_NS_MAX: u64 = 3_000_000_000;

/// A stopped run does not wait longer than this for answers.
const STOPPED_DRAIN_NS: u64 = 1_000_000_000;

/// Least time between two questions for the layout.
const REFRESH_NS: u64 = 200_000_000;

const SECOND_NS: u64 = 1_000_000_000;

/// Everything a running load needs.
pub(crate) struct Driver<'a> {
    pub(crate) options: &'a Options,
    stop: &'a AtomicBool,
    ring: Ring,
    events: Vec<Event>,
    origin: Instant,
    pub(crate) fleet: Fleet,
    pub(crate) encoder: Encoder,
    pub(crate) meter: Meter,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) history: Option<History>,
    refresher: Option<Refresher>,
    refreshed_at_ns: u64,
    /// Whether something hinted that the layout has changed.
    pub(crate) refresh_wanted: bool,
    /// Redirected requests that must not go round in circles at full speed: due time, request.
    /// All wait equally long, so the queue is in order.
    pub(crate) delayed: std::collections::VecDeque<(u64, Request)>,
    chores_at_ns: u64,
    second_at_ns: u64,
    first_sequence: u64,
    connect_error: Option<String>,
    pub(crate) warnings: Vec<String>,
}

/// The generator's processor time in the measured window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnTime {
    before: Option<ThreadTime>,
    pub(crate) spent: ThreadTime,
}

impl<'a> Driver<'a> {
    /// Connects. Fails if nobody answers.
    pub(crate) fn connect(
        options: &'a Options,
        stop: &'a AtomicBool,
        ledger: Option<Ledger>,
        history: Option<History>,
        first_sequence: u64,
    ) -> anyhow::Result<Self> {
        let mut ring = Ring::new(RingConfig::default()).context("cannot set up io_uring")?;
        let (fleet, refresher) = if options.cluster {
            let ranges = layout::ask(&options.endpoints)?;
            let refresher = Refresher::start(ring.waker()).context("cannot start a thread")?;
            (Fleet::cluster(options, &ranges), Some(refresher))
        } else {
            let addrs: Result<Vec<SocketAddr>, Unreachable> =
                options.endpoints.iter().map(|endpoint| resolve(endpoint)).collect();
            (Fleet::plain(options, addrs?), None)
        };
        // The kernel's queues exist before the first connection is counted as slow.
        ring.poll(&mut Vec::new()).context("io_uring")?;
        let mut driver = Self {
            options,
            stop,
            ring,
            events: Vec::new(),
            origin: Instant::now(),
            fleet,
            encoder: Encoder::new(options),
            meter: Meter::new(u64::MAX..u64::MAX),
            ledger,
            history,
            refresher,
            refreshed_at_ns: 0,
            refresh_wanted: false,
            delayed: std::collections::VecDeque::new(),
            chores_at_ns: 0,
            second_at_ns: u64::MAX,
            first_sequence,
            connect_error: None,
            warnings: Vec::new(),
        };
        driver.wait_for_connections()?;
        Ok(driver)
    }

    /// Writes every key once.
    pub(crate) fn preload(&mut self, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut source = Source::sweep(self.options, self.first_sequence);
        self.first_sequence += self.options.keys;
        self.meter = Meter::new(0..u64::MAX);
        self.second_at_ns = u64::MAX;
        loop {
            let now_ns = self.now_ns();
            if self.stop.load(Ordering::Relaxed) {
                source.end_ns = now_ns;
            }
            if source.is_finished(now_ns) && self.outstanding() == 0 {
                break;
            }
            self.turn(&mut source, now_ns, None)?;
            bar.set_position(self.options.keys - source.keys_left());
        }
        let failed = self.meter.error_count();
        if failed > 0 {
            let first = self.meter.errors.iter().next().map_or("", |(kind, _)| kind);
            self.warnings.push(format!(
                "{failed} of {} keys could not be written before the load ({first}).",
                self.options.keys
            ));
        }
        Ok(())
    }

    /// Makes the load. The meter holds the result; also returns what the thread cost meanwhile.
    pub(crate) fn load(&mut self, progress: &mut Progress) -> anyhow::Result<OwnTime> {
        let start_ns = self.now_ns();
        let nanos = |seconds: f64| (seconds * 1e9) as u64;
        let from_ns = start_ns + nanos(self.options.warmup);
        let end_ns = match self.options.seconds {
            0.0 => u64::MAX,
            seconds => from_ns + nanos(seconds),
        };
        self.meter = Meter::new(from_ns..end_ns);
        self.second_at_ns = start_ns + SECOND_NS;
        let mut source = Source::load(self.options, start_ns, end_ns, self.first_sequence);
        let mut own = OwnTime::default();
        let mut drain_until_ns = u64::MAX;
        loop {
            let now_ns = self.now_ns();
            own.update(&self.meter, now_ns);
            if self.stop.load(Ordering::Relaxed) && now_ns < source.end_ns {
                self.meter.window.start = from_ns.min(now_ns);
                self.meter.window.end = now_ns;
                source.end_ns = now_ns;
                drain_until_ns = now_ns + STOPPED_DRAIN_NS;
                own.update(&self.meter, now_ns);
            }
            if now_ns >= self.second_at_ns {
                self.end_second(start_ns, progress, &source)?;
            }
            if source.is_finished(now_ns) {
                drain_until_ns = drain_until_ns.min(now_ns + self.options.timeout_ms * 1_000_000);
                if self.outstanding() == 0 || now_ns >= drain_until_ns {
                    break;
                }
            }
            let wake_at_ns = source.next_due_ns();
            self.turn(&mut source, now_ns, wake_at_ns)?;
        }
        self.abandon_rest();
        Ok(own)
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Asks for the layout soon; the connections go on meanwhile.
    pub(crate) fn wish_refresh(&mut self) {
        if !self.refresh_wanted {
            self.refresh_wanted = true;
            self.chores_at_ns = 0;
        }
    }

    /// Gives a connection up and accounts for what was in flight on it.
    pub(crate) fn lose(&mut self, index: usize, kind: &str, text: &str, now_ns: u64) {
        if self.fleet.conns[index].state == State::Open {
            self.meter.connections_lost += 1;
        } else {
            self.meter.connects_failed += 1;
            self.connect_error = Some(text.to_owned());
        }
        for request in self.fleet.lose(index, &mut self.ring, now_ns).unknown {
            self.fail(request, kind, text, false);
        }
        self.wish_refresh();
    }

    /// Counts a failed request. `refused`: it certainly did not and will not happen.
    pub(crate) fn fail(&mut self, request: Request, kind: &str, text: &str, refused: bool) {
        self.meter.failed(kind, text, request.intended_ns);
        match (&mut self.ledger, request.op) {
            (Some(ledger), Op::Write) if refused => ledger.refused(request.key),
            (Some(ledger), Op::Write) => ledger.unknown(request.key, request.sequence),
            (Some(_), Op::Read) | (None, _) => {}
        }
        if let Some(history) = &mut self.history
            && !refused
        {
            history.unknown(&request);
        }
    }

    fn outstanding(&self) -> usize {
        self.fleet.in_flight + self.fleet.backlog + self.delayed.len()
    }

    fn wait_for_connections(&mut self) -> Result<(), anyhow::Error> {
        loop {
            let now_ns = self.now_ns();
            self.chores(now_ns);
            let open = self.fleet.open_count();
            let undecided =
                self.fleet.conns.iter().any(|conn| matches!(conn.state, State::Connecting { .. }));
            let late = now_ns >= CONNECT_NS_MAX;
            if open == self.fleet.conns.len() || (open > 0 && (late || !undecided)) {
                return Ok(());
            }
            if open == 0 && (late || (!undecided && self.meter.connects_failed > 0)) {
                let why = self.connect_error.take().unwrap_or_else(|| "no answer".to_owned());
                let endpoints = self.options.endpoints.join(", ");
                return Err(Unreachable(format!("{endpoints}: {why}")).into());
            }
            self.wait(CHORES_NS)?;
        }
    }

    fn turn(
        &mut self,
        source: &mut Source,
        now_ns: u64,
        wake_at_ns: Option<u64>,
    ) -> anyhow::Result<()> {
        if now_ns >= self.chores_at_ns {
            self.chores(now_ns);
        }
        while let Some(&(due_ns, request)) = self.delayed.front()
            && due_ns <= now_ns
        {
            self.delayed.pop_front();
            self.fleet.enqueue(request, &mut self.encoder);
        }
        let load = Load {
            in_flight: self.fleet.in_flight,
            backlog: self.fleet.backlog + self.delayed.len(),
        };
        let (fleet, encoder) = (&mut self.fleet, &mut self.encoder);
        source.make(now_ns, load, &mut self.ledger, &mut self.meter, |request| {
            fleet.enqueue(request, encoder);
        });
        self.fleet.dispatch(&mut self.ring, &mut self.encoder, &mut self.meter, now_ns);

        let mut wake_at_ns = wake_at_ns.map_or(u64::MAX, |due| due.max(now_ns + COALESCE_NS));
        if let Some((due_ns, _)) = self.delayed.front() {
            wake_at_ns = wake_at_ns.min(*due_ns);
        }
        wake_at_ns = wake_at_ns.min(self.chores_at_ns).min(self.second_at_ns);
        self.wait(wake_at_ns.saturating_sub(self.now_ns()))
    }

    fn wait(&mut self, nanos: u64) -> anyhow::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        self.ring.wait(Some(Duration::from_nanos(nanos)), &mut events).context("io_uring")?;
        let now_ns = self.now_ns();
        for event in events.drain(..) {
            self.handle(event, now_ns);
        }
        self.events = events;
        Ok(())
    }

    fn handle(&mut self, event: Event, now_ns: u64) {
        match event {
            Event::Received { socket, key, data } => {
                if let Some(index) = self.current(key, Some(socket)) {
                    self.meter.received(data.len(), now_ns);
                    if let Err(error) = self.received(index, &data, now_ns) {
                        let text = error.to_string();
                        self.lose(index, "broken protocol (outcome unknown)", &text, now_ns);
                    }
                }
            }
            Event::Sent { socket, key, chunks, .. } => {
                if let Some(index) = self.current(key, Some(socket)) {
                    self.fleet.sent(index, chunks);
                }
            }
            Event::Connected { key, result: Ok(socket) } => match self.current(key, Some(socket)) {
                Some(index) => {
                    self.fleet.opened(index, socket);
                    self.ring.receive(socket);
                }
                None => self.ring.close(socket),
            },
            Event::Connected { key, result: Err(error) } => {
                if let Some(index) = self.current(key, None)
                    && matches!(self.fleet.conns[index].state, State::Connecting { .. })
                {
                    self.fleet.conns[index].socket = None;
                    self.lose(index, "", &format!("cannot connect: {error}"), now_ns);
                }
            }
            Event::ReceiveClosed { socket, key, result } => {
                if let Some(index) = self.current(key, Some(socket)) {
                    let text = match result {
                        Ok(()) => "the server closed the connection".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    self.lose(index, CONNECTION_LOST, &text, now_ns);
                }
            }
            Event::SendFailed { socket, key, error, .. } => {
                if let Some(index) = self.current(key, Some(socket)) {
                    self.lose(index, CONNECTION_LOST, &error.to_string(), now_ns);
                }
            }
            Event::Woken => self.chores_at_ns = 0,
            Event::Closed { .. }
            | Event::Accepted { .. }
            | Event::AcceptFailed { .. }
            | Event::Written { .. }
            | Event::Read { .. } => {}
        }
    }

    /// The connection an event is about, unless it has another socket by now.
    fn current(&self, key: u64, socket: Option<coracle_ring::SocketId>) -> Option<usize> {
        let index = usize::try_from(key).ok()?;
        let conn = self.fleet.conns.get(index)?;
        (socket.is_none() || conn.socket == socket).then_some(index)
    }

    /// What need not happen in every turn.
    fn chores(&mut self, now_ns: u64) {
        self.chores_at_ns = now_ns + CHORES_NS;
        let timeout_ns = self.options.timeout_ms * 1_000_000;
        for index in 0..self.fleet.conns.len() {
            let conn = &self.fleet.conns[index];
            let oldest_ns = match conn.state {
                State::Down { .. } => continue,
                State::Connecting { since_ns } => Some(since_ns),
                State::Open => conn.window.front().map(|request| request.sent_ns),
            };
            if oldest_ns.is_some_and(|oldest_ns| oldest_ns + timeout_ns < now_ns) {
                let text = format!("no answer for {} ms", self.options.timeout_ms);
                self.lose(index, "timeout (outcome unknown)", &text, now_ns);
            }
        }
        for request in self.fleet.expire(now_ns.saturating_sub(timeout_ns)) {
            let text = format!("waited {} ms for a connection", self.options.timeout_ms);
            self.fail(request, "not sent in time", &text, true);
        }
        self.refresh(now_ns);
        self.fleet.finish_moves(&mut self.ring, now_ns);
        self.fleet.connect_due(&mut self.ring, now_ns);
    }

    fn refresh(&mut self, now_ns: u64) {
        let Some(refresher) = &mut self.refresher else { return };
        match refresher.answer() {
            Some(Ok(ranges)) => self.fleet.relocate(&ranges, &mut self.encoder, now_ns),
            Some(Err(_)) => self.refresh_wanted = true,
            None => {}
        }
        let due = now_ns >= self.refreshed_at_ns + REFRESH_NS || self.refreshed_at_ns == 0;
        if self.refresh_wanted && due {
            let known = self.fleet.addresses().map(|addr| addr.to_string());
            let endpoints = || self.options.endpoints.iter().cloned().chain(known).collect();
            if refresher.ask(endpoints) {
                self.refresh_wanted = false;
                self.refreshed_at_ns = now_ns;
            }
        }
    }

    fn end_second(
        &mut self,
        start_ns: u64,
        progress: &mut Progress,
        source: &Source,
    ) -> anyhow::Result<()> {
        let in_flight = self.fleet.in_flight as u64;
        let backlog = (self.fleet.backlog + self.delayed.len() + source.keyless_count()) as u64;
        let second = self.meter.end_second(start_ns, self.second_at_ns, in_flight, backlog);
        self.second_at_ns += SECOND_NS;
        progress.second(&second);
        if let Some(ledger) = &mut self.ledger {
            ledger.flush().context("cannot record acknowledged writes")?;
        }
        if let Some(history) = &mut self.history {
            history.flush()?;
        }
        Ok(())
    }

    /// The load is over; what is still open has failed.
    fn abandon_rest(&mut self) {
        let now_ns = self.now_ns();
        for index in 0..self.fleet.conns.len() {
            for request in self.fleet.lose(index, &mut self.ring, now_ns).unknown {
                let kind = "unanswered at the end (outcome unknown)";
                self.fail(request, kind, "the load ended", false);
            }
        }
        let mut waiting = self.fleet.take_pending();
        waiting.extend(self.delayed.drain(..).map(|(_, request)| request));
        for request in waiting {
            self.fail(request, "not sent before the end", "the load ended", true);
        }
    }
}

const CONNECTION_LOST: &str = "connection lost (outcome unknown)";

impl OwnTime {
    fn update(&mut self, meter: &Meter, now_ns: u64) {
        if self.before.is_none() && now_ns >= meter.window.start {
            self.before = ThreadTime::now();
        }
        if now_ns >= meter.window.end
            && self.spent == ThreadTime::default()
            && let (Some(before), Some(now)) = (self.before, ThreadTime::now())
        {
            self.spent = now.since(before);
        }
    }
}
