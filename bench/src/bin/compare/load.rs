//! Load on etcd: one thread per connection reads, in open loop a second one sends on schedule.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::grpc::{Connection, put_message};

/// Bytes of a key: a prefix and eight digits.
const KEY_BYTES: usize = 12;

/// Requests that may wait for their turn on one connection; more are counted as dropped.
const WAITING_MAX: usize = 100_000;

/// How long answers are waited for once the time is over.
const GRACE: Duration = Duration::from_secs(10);

/// What is to be done.
pub(crate) struct Load {
    pub(crate) endpoint: SocketAddr,
    pub(crate) connections: usize,
    /// In flight per connection.
    pub(crate) streams: usize,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) value_bytes: usize,
    pub(crate) keys: u32,
    /// Writes per second in total; 0 is closed loop.
    pub(crate) rate: u64,
}

/// What came of it, on one connection or on all.
struct Tally {
    latency_ns: Histogram<u64>,
    failed: u64,
    dropped: u64,
    error: Option<String>,
}

impl Tally {
    fn new() -> Self {
        let latency_ns = Histogram::new(3).expect("three digits are in range");
        Self { latency_ns, failed: 0, dropped: 0, error: None }
    }

    fn add(&mut self, other: Self) {
        self.latency_ns.add(other.latency_ns).expect("both histograms resize themselves");
        self.failed += other.failed;
        self.dropped += other.dropped;
        self.error = self.error.take().or(other.error);
    }
}

/// One connection's state, shared by its reader and its sender.
struct Lane {
    connection: Connection<Instant>,
    /// Intended times of requests that the window or the limit in flight holds back.
    waiting: VecDeque<Instant>,
    stream: TcpStream,
    message: Vec<u8>,
    key_at: usize,
    random: u64,
    tally: Tally,
}

impl Lane {
    /// Sends what waits, as far as limits allow.
    fn pump(&mut self, load: &Load) -> std::io::Result<()> {
        while self.connection.in_flight() < load.streams
            && self.connection.may_send(self.message.len())
            && let Some(intended) = self.waiting.pop_front()
        {
            let key = next_random(&mut self.random) % u64::from(load.keys);
            let digits = format!("key:{key:08}");
            self.message[self.key_at..self.key_at + KEY_BYTES].copy_from_slice(digits.as_bytes());
            self.connection.send(&self.message, intended);
        }
        let output = self.connection.take_output();
        if output.is_empty() { Ok(()) } else { self.stream.write_all(&output) }
    }

    fn enqueue(&mut self, intended: Instant) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(intended);
        } else {
            self.tally.dropped += 1;
        }
    }
}

/// SplitMix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().expect("the other thread of this connection does not panic")
}

/// From when to when requests are made, and answers counted. It is the answers' time that decides:
/// a server that falls behind ever further answers, in the end, nothing that was asked recently.
#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    measured_from: Instant,
    end: Instant,
}

impl Load {
    /// Runs it and returns the result in the shape of `loadgen --json`.
    pub(crate) fn run(&self) -> Result<Value> {
        let lanes = (0..self.connections).map(|i| self.connect(i)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let measured_from = start + self.warmup;
        let window = Window { start, measured_from, end: measured_from + self.measured };
        let mut total = Tally::new();
        thread::scope(|scope| {
            for (number, lane) in lanes.iter().enumerate() {
                scope.spawn(move || self.read(lane, window));
                if self.rate > 0 {
                    scope.spawn(move || self.send_on_schedule(lane, number, window));
                }
            }
        });
        for lane in lanes {
            let lane = lane.into_inner().expect("no thread of this connection panicked");
            total.dropped += lane.waiting.len() as u64 * u64::from(self.rate > 0);
            total.add(lane.tally);
        }
        if let Some(error) = total.error {
            bail!("a connection failed: {error}");
        }
        let percentile = |p: f64| total.latency_ns.value_at_quantile(p / 100.0) as f64 / 1e6;
        let seconds = self.measured.as_secs_f64();
        let load = json!({
            "seconds": seconds,
            "answers_per_second": total.latency_ns.len() as f64 / seconds,
            "latency": {
                "p50_ms": percentile(50.0),
                "p99_ms": percentile(99.0),
                "p99_9_ms": percentile(99.9),
                "max_ms": percentile(100.0),
            },
            "error_count": total.failed,
            "dropped": total.dropped,
        });
        Ok(json!({ "load": load }))
    }

    fn connect(&self, number: usize) -> Result<Mutex<Lane>> {
        let stream = TcpStream::connect_timeout(&self.endpoint, Duration::from_secs(10))
            .with_context(|| format!("cannot connect to {}", self.endpoint))?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let mut random = number as u64;
        let value = std::iter::repeat_with(|| next_random(&mut random) as u8);
        let value: Vec<u8> = value.take(self.value_bytes).collect();
        let (message, key_at) = put_message(KEY_BYTES, &value);
        Ok(Mutex::new(Lane {
            connection: Connection::new(&self.endpoint.to_string()),
            waiting: VecDeque::new(),
            stream,
            message,
            key_at,
            random,
            tally: Tally::new(),
        }))
    }

    /// Reads answers until everything asked in time is answered.
    fn read(&self, lane: &Mutex<Lane>, window: Window) {
        if let Err(error) = self.try_read(lane, window) {
            let mut lane = lock(lane);
            lane.tally.error = Some(format!("{error:#}"));
            // Wakes the sender out of a write that would block for ever.
            let _ = lane.stream.shutdown(Shutdown::Both);
        }
    }

    fn try_read(&self, lane: &Mutex<Lane>, window: Window) -> Result<()> {
        let mut stream = lock(lane).stream.try_clone().context("cannot share a socket")?;
        stream.set_read_timeout(Some(Duration::from_millis(100))).context("SO_RCVTIMEO")?;
        {
            let mut lane = lock(lane);
            for _ in 0..if self.rate == 0 { self.streams } else { 0 } {
                lane.enqueue(Instant::now());
            }
            lane.pump(self)?;
        }
        let mut piece = vec![0; 64 * 1024];
        let mut done = Vec::new();
        loop {
            let count = match stream.read(&mut piece) {
                Ok(0) => bail!("closed by the server"),
                Ok(count) => count,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock) => 0,
                Err(error) => return Err(error).context("cannot read"),
            };
            let now = Instant::now();
            let mut lane = lock(lane);
            lane.connection.receive(&piece[..count], &mut done).map_err(anyhow::Error::msg)?;
            for ended in done.drain(..) {
                if now >= window.measured_from && now < window.end {
                    if ended.succeeded {
                        let nanos = now.saturating_duration_since(ended.tag).as_nanos() as u64;
                        lane.tally.latency_ns.record(nanos.max(1)).expect("it resizes itself");
                    } else {
                        lane.tally.failed += 1;
                    }
                }
                if self.rate == 0 && now < window.end {
                    lane.enqueue(now);
                }
            }
            if now >= window.end {
                // What could not be sent in time is not sent late: it is counted as dropped.
                let unanswered = lane.connection.in_flight() as u64;
                if unanswered == 0 || now >= window.end + GRACE {
                    lane.tally.failed += unanswered;
                    return Ok(());
                }
            }
            lane.pump_until(self, now, window)?;
        }
    }

    /// Adds requests at their intended times: connection `number` takes every n-th.
    fn send_on_schedule(&self, lane: &Mutex<Lane>, number: usize, window: Window) {
        let spacing = Duration::from_secs(1).div_f64(self.rate as f64) * self.connections as u32;
        let first = spacing.mul_f64(number as f64 / self.connections as f64);
        let mut intended = window.start + first;
        while intended < window.end {
            let now = Instant::now();
            if intended > now {
                thread::sleep(intended - now);
            }
            let mut lane = lock(lane);
            while intended <= Instant::now() && intended < window.end {
                lane.enqueue(intended);
                intended += spacing;
            }
            if lane.tally.error.is_some() || lane.pump(self).is_err() {
                return; // The reader reports it.
            }
        }
    }
}

impl Lane {
    /// Sends what waits before the end, only acknowledgements after it.
    fn pump_until(&mut self, load: &Load, now: Instant, window: Window) -> std::io::Result<()> {
        if now < window.end {
            return self.pump(load);
        }
        let output = self.connection.take_output();
        if output.is_empty() { Ok(()) } else { self.stream.write_all(&output) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    /// A server that answers every data frame at once with headers, data and trailers.
    fn serve(listener: &TcpListener) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut input = Vec::new();
        let mut piece = [0; 65536];
        let mut skipped_preface = false;
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            input.extend_from_slice(&piece[..count]);
            if !skipped_preface && input.len() >= 24 {
                input.drain(..24);
                skipped_preface = true;
            }
            let mut output = Vec::new();
            while skipped_preface && input.len() >= 9 {
                let len = u32::from_be_bytes([0, input[0], input[1], input[2]]) as usize;
                if input.len() < 9 + len {
                    break;
                }
                if input[3] == 0 {
                    let id = &input[5..9];
                    output.extend_from_slice(&[[0, 0, 1, 1, 4].as_slice(), id, &[0x88]].concat());
                    output.extend_from_slice(&[[0, 0, 1, 0, 0].as_slice(), id, &[0]].concat());
                    output.extend_from_slice(&[[0, 0, 1, 1, 5].as_slice(), id, &[0x88]].concat());
                    let update = (len as u32).to_be_bytes();
                    output.extend_from_slice(&[0, 0, 4, 8, 0, 0, 0, 0, 0]);
                    output.extend_from_slice(&update);
                }
                input.drain(..9 + len);
            }
            if stream.write_all(&output).is_err() {
                return;
            }
        }
    }

    /// Closed loop and open loop count every answer; the open loop keeps the rate it was given.
    #[test]
    fn loads_a_server_that_answers_at_once() {
        for (rate, connections) in [(0, 2), (2000, 2)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let load = Load {
                endpoint: listener.local_addr().unwrap(),
                connections,
                streams: 8,
                warmup: Duration::ZERO,
                measured: Duration::from_millis(300),
                value_bytes: 4096,
                keys: 100,
                rate,
            };
            let result = thread::scope(|scope| {
                for _ in 0..connections {
                    scope.spawn(|| serve(&listener));
                }
                load.run().unwrap()
            });
            let result = &result["load"];
            let per_second = result["answers_per_second"].as_f64().unwrap();
            assert_eq!((&result["error_count"], &result["dropped"]), (&json!(0), &json!(0)));
            assert!(per_second > 0.0, "{result}");
            assert!(rate == 0 || per_second <= 2010.0, "{result}");
        }
    }
}
