//! A loop around one ring, and peers that are plain blocking sockets.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use coracle_ring::{Chunk, Event, Ring, RingConfig, SocketId, listener, local_addr};

/// Longer than anything takes, so that a hang is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) struct Loop {
    pub(crate) ring: Ring,
    events: VecDeque<Event>,
}

impl Loop {
    pub(crate) fn new() -> Self {
        Self::with(RingConfig { entries: 64, recv_buffer_count: 64, recv_buffer_bytes: 4096 })
    }

    pub(crate) fn with(config: RingConfig) -> Self {
        Self { ring: Ring::new(config).expect("io_uring works here"), events: VecDeque::new() }
    }

    /// The next event, whatever it is.
    pub(crate) fn next(&mut self) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            assert!(Instant::now() < deadline, "nothing happens");
            let mut events = Vec::new();
            self.ring.wait(Some(PATIENCE), &mut events).expect("the ring works");
            self.events.extend(events);
        }
    }

    /// All that is known without sleeping. Several looks, because a cancellation takes some.
    pub(crate) fn settle(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> = self.events.drain(..).collect();
        for _ in 0..8 {
            self.ring.poll(&mut events).expect("the ring works");
        }
        events
    }

    pub(crate) fn expect_closed(&mut self, socket: SocketId) {
        let event = self.next();
        assert!(matches!(event, Event::Closed { socket: id, .. } if id == socket), "{event:?}");
    }

    /// A connection between a socket of the ring and a blocking peer, made by an accept.
    pub(crate) fn accepted(&mut self, key: u64) -> (SocketId, TcpStream) {
        let (fd, peer) = connection();
        (self.ring.add_socket(key, fd), peer)
    }

    /// Receives until `len` bytes are there.
    pub(crate) fn receive_exactly(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.next() {
                Event::Received { data, .. } => bytes.extend_from_slice(&data),
                other => panic!("{} bytes of {len}, then {other:?}", bytes.len()),
            }
        }
        bytes
    }
}

/// Both ends of a loopback connection.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind(ANY_PORT).expect("loopback");
    let addr = listener.local_addr().expect("bound");
    let peer = TcpStream::connect(addr).expect("listening");
    peer.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    peer.set_write_timeout(Some(PATIENCE)).expect("a socket option");
    (listener.accept().expect("connected").0, peer)
}

/// A listener with a small backlog and its address.
pub(crate) fn listening(backlog: u32) -> (std::os::fd::OwnedFd, SocketAddr) {
    let fd = listener(ANY_PORT, false, backlog).expect("loopback");
    let addr = local_addr(&fd).expect("bound");
    (fd, addr)
}

/// Bytes in which every misplaced piece shows.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

pub(crate) fn owned(bytes: &[u8]) -> Vec<Chunk> {
    vec![Chunk::Owned(bytes.to_vec())]
}
