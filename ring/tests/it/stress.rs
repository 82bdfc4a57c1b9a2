//! Random operations in random order: late completions must find nothing to damage.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use coracle_ring::{Chunk, Event, Ring, RingConfig, SocketId};

use crate::common::{PATIENCE, connection, pattern};

/// xorshift64*, so that a seed is the whole scenario on our side of the kernel.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

/// Both ends of each connection live in one ring; each end sends the same endless pattern.
#[derive(Default)]
struct End {
    sent_bytes: usize,
    received_bytes: usize,
    /// The number of waits before its `close`: later ones bring nothing but `Closed`.
    closed_at: Option<usize>,
}

struct World {
    ring: Ring,
    dice: Dice,
    ends: BTreeMap<SocketId, End>,
    keys: BTreeMap<u64, SocketId>,
    stale: Vec<SocketId>,
    next_key: u64,
    waits: usize,
    pattern: Vec<u8>,
}

const PERIOD: usize = 1 << 16;

impl World {
    fn pair(&mut self) {
        let (one, two) = connection();
        for fd in [one, two] {
            let socket = self.ring.add_socket(self.next_key, fd);
            self.keys.insert(self.next_key, socket);
            self.next_key += 1;
            self.ring.receive(socket);
            assert!(self.ends.insert(socket, End::default()).is_none(), "ids are unique");
        }
    }

    fn act(&mut self) {
        if self.ends.len() < 20 {
            self.pair();
        }
        let at = self.dice.roll(self.ends.len());
        let Some((&socket, end)) = self.ends.iter_mut().nth(at) else { return };
        match self.dice.roll(12) {
            0 => {
                self.ring.close(socket);
                end.closed_at.get_or_insert(self.waits);
            }
            1 | 2 => self.ring.pause_receive(socket),
            3..=5 => self.ring.resume_receive(socket),
            6 => {
                if let Some(&old) = self.stale.last() {
                    self.ring.close(old);
                    self.ring.receive(old);
                    self.ring.send(old, vec![Chunk::Owned(vec![1])]);
                }
            }
            _ if end.closed_at.is_none() && !self.ring.is_sending(socket) => {
                let mut chunks = Vec::new();
                for _ in 0..self.dice.roll(4) {
                    let start = end.sent_bytes % PERIOD;
                    let len = self.dice.roll(200_000);
                    chunks.push(Chunk::Owned(self.pattern[start..start + len].to_vec()));
                    end.sent_bytes += len;
                }
                self.ring.send(socket, chunks);
            }
            _ => {}
        }
    }

    fn wait(&mut self, held: &mut VecDeque<(usize, Event)>, timeout: Duration) {
        let mut events = Vec::new();
        self.ring.wait(Some(timeout), &mut events).expect("the ring works");
        self.waits += 1;
        held.extend(events.into_iter().map(|event| (self.waits, event)));
    }

    fn close_all(&mut self) {
        for (&socket, end) in &mut self.ends {
            self.ring.close(socket);
            end.closed_at.get_or_insert(self.waits);
        }
    }

    /// `wait`: in which wait the event came.
    fn check(&mut self, wait: usize, event: Event) {
        match event {
            Event::Received { socket, key, data } => {
                assert_eq!(self.keys.get(&key), Some(&socket));
                let end = self.ends.get_mut(&socket).expect("no event after `Closed`");
                assert!(end.closed_at.is_none_or(|at| wait <= at), "data after `close`");
                let start = end.received_bytes % PERIOD;
                assert!(data[..] == self.pattern[start..start + data.len()], "foreign bytes");
                end.received_bytes += data.len();
            }
            Event::ReceiveClosed { socket, .. } | Event::SendFailed { socket, .. } => {
                let end = self.ends.get_mut(&socket).expect("no event after `Closed`");
                assert!(end.closed_at.is_none_or(|at| wait <= at), "an event after `close`");
                self.ring.close(socket);
                end.closed_at.get_or_insert(self.waits);
            }
            Event::Sent { socket, .. } => {
                let end = self.ends.get(&socket).expect("no event after `Closed`");
                assert!(end.closed_at.is_none_or(|at| wait <= at), "an event after `close`");
            }
            Event::Closed { socket, key } => {
                assert_eq!(self.keys.remove(&key), Some(socket));
                assert!(self.ends.remove(&socket).expect("closed once").closed_at.is_some());
                self.stale.push(socket);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn random_closes_pauses_and_sends_never_cross_sockets() {
    for seed in 1..=6 {
        let config = RingConfig { entries: 8, recv_buffer_count: 16, recv_buffer_bytes: 1024 };
        let mut pattern = pattern(PERIOD);
        pattern.extend_from_within(..);
        pattern.extend_from_within(..);
        pattern.extend_from_within(..);
        let mut world = World {
            ring: Ring::new(config).expect("io_uring works here"),
            dice: Dice(seed),
            ends: BTreeMap::new(),
            keys: BTreeMap::new(),
            stale: Vec::new(),
            next_key: 0,
            waits: 0,
            pattern,
        };
        let mut held = VecDeque::new();
        for _ in 0..2_000 {
            for _ in 0..world.dice.roll(4) {
                world.act();
            }
            // No events is normal when all is paused.
            world.wait(&mut held, Duration::from_micros(100));
            // Some are handled later, so that buffers run out and events are about the past.
            let handled = held.len().saturating_sub(world.dice.roll(3));
            for (wait, event) in held.drain(..handled) {
                world.check(wait, event);
            }
        }
        world.close_all();
        let deadline = Instant::now() + PATIENCE;
        while !world.ends.is_empty() {
            assert!(Instant::now() < deadline, "seed {seed}: {} ends stay", world.ends.len());
            world.wait(&mut held, PATIENCE);
            for (wait, event) in held.drain(..) {
                world.check(wait, event);
            }
        }
        assert_eq!(world.ring.in_flight(), 1, "seed {seed}: only the waker's poll is left");
    }
}
