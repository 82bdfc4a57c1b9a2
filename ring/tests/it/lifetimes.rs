//! Memory and descriptors belong to the kernel until it says otherwise.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_ring::{AlignedBuf, Chunk, Event};

use crate::common::{Loop, PATIENCE, connection, listening, owned, pattern};

/// More than the kernel buffers for a peer that does not read.
fn too_much() -> (Arc<[u8]>, Vec<Chunk>) {
    let bytes: Arc<[u8]> = pattern(32 << 20).into();
    let half = bytes.len() / 2;
    let chunks = vec![
        Chunk::Shared { bytes: Arc::clone(&bytes), start: 0, end: half },
        Chunk::Shared { bytes: Arc::clone(&bytes), start: half, end: bytes.len() },
    ];
    (bytes, chunks)
}

#[test]
fn closing_while_sending_keeps_the_chunks_until_the_end() {
    let mut sender = Loop::new();
    let (socket, mut peer) = sender.accepted(1);
    let (bytes, chunks) = too_much();
    sender.ring.send(socket, chunks);
    sender.ring.receive(socket);
    assert!(sender.settle().is_empty(), "the peer does not read");
    assert_eq!(sender.ring.in_flight(), 3, "the waker's poll, the send, the receive");
    sender.ring.close(socket);
    assert_eq!(Arc::strong_count(&bytes), 3, "the kernel may still read them");
    sender.ring.send(socket, owned(b"ignored"));
    sender.ring.receive(socket);
    sender.ring.close(socket);
    sender.expect_closed(socket);
    assert_eq!(Arc::strong_count(&bytes), 1);
    assert_eq!(sender.ring.in_flight(), 1);
    assert!(sender.settle().is_empty(), "`Closed` is the last event");
    // What the peer gets is a beginning of what was sent.
    let mut got = Vec::new();
    match peer.read_to_end(&mut got) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert!(got.len() < bytes.len() && bytes.starts_with(&got));
}

#[test]
fn closing_while_receiving_drops_what_arrives() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    server.ring.receive(socket);
    assert!(server.settle().is_empty());
    peer.write_all(b"too late").expect("connected");
    server.ring.close(socket);
    server.expect_closed(socket);
    assert!(server.settle().is_empty());
    assert_eq!(server.ring.in_flight(), 1);
}

/// Ids of closed sockets are harmless, also when the slot serves another socket.
#[test]
fn stale_ids_do_nothing() {
    let mut server = Loop::new();
    let (old, _old_peer) = server.accepted(1);
    server.ring.close(old);
    server.expect_closed(old);
    let (new, mut peer) = server.accepted(2);
    assert_eq!(new.slot(), old.slot(), "the slot is reused");
    server.ring.receive(new);
    server.ring.pause_receive(old);
    server.ring.send(old, owned(b"to nobody"));
    server.ring.set_key(old, 3);
    server.ring.close(old);
    assert!(server.ring.socket_fd(old).is_none());
    assert!(!server.ring.is_sending(old));
    peer.write_all(b"hello").expect("connected");
    assert!(matches!(server.next(), Event::Received { key: 2, .. }));
    assert!(server.settle().is_empty());
}

/// A connect that gets no answer, because the listener's backlog is full, can be given up.
#[test]
fn closing_while_connecting_gives_up() {
    let (_listener, addr) = listening(0);
    let mut client = Loop::new();
    // The backlog takes one or two; the others wait.
    let sockets: Vec<_> = (0..5).map(|key| client.ring.connect(key, addr)).collect();
    let connected = client.settle();
    assert!(connected.len() < sockets.len(), "the backlog is not full: {connected:?}");
    assert!(connected.iter().all(|event| matches!(event, Event::Connected { result: Ok(_), .. })));
    for socket in &sockets {
        client.ring.close(*socket);
    }
    let mut closed: Vec<_> = (0..5)
        .map(|_| match client.next() {
            Event::Closed { socket, .. } => socket,
            other => panic!("{other:?}"),
        })
        .collect();
    closed.sort_unstable();
    assert_eq!(closed, sockets);
    assert_eq!(client.ring.in_flight(), 1);
}

/// A dropped ring ends and waits for everything: sends, receives, connects, accepts, reads.
#[test]
fn dropping_the_ring_reaps_what_is_in_flight() {
    let mut ring = Loop::new();
    let (sending, mut send_peer) = ring.accepted(1);
    let (bytes, chunks) = too_much();
    ring.ring.send(sending, chunks);
    let (receiving, mut receive_peer) = ring.accepted(2);
    ring.ring.receive(receiving);
    let (full, full_addr) = listening(0);
    for key in 0..4 {
        ring.ring.connect(key, full_addr);
    }
    let (listener, addr) = listening(4);
    ring.ring.listen(3, listener);
    let (pipe, mut pipe_end) = std::io::pipe().expect("a pipe");
    let file = ring.ring.add_file(OwnedFd::from(pipe));
    ring.ring.read(file, 4, 0, AlignedBuf::zeroed(4096), 4096);
    let connected = ring.settle();
    assert!(connected.iter().all(|event| matches!(event, Event::Connected { .. })));
    // Accepted by the kernel for the ring, but not seen by it any more.
    let mut unseen = TcpStream::connect(addr).expect("listening");
    // Queued, but not even submitted.
    let (late, _late_peer) = ring.accepted(5);
    ring.ring.receive(late);
    assert!(Arc::strong_count(&bytes) > 1);
    drop(ring);

    assert_eq!(Arc::strong_count(&bytes), 1, "the operation is gone, not leaked");
    assert_eq!(receive_peer.read(&mut [0]).expect("closed in order"), 0);
    let mut got = Vec::new();
    send_peer.read_to_end(&mut got).expect("closed in order");
    assert!(got.len() < bytes.len() && bytes.starts_with(&got));
    let broken = pipe_end.write(b"x").expect_err("the reader is gone");
    assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    unseen.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    match unseen.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    drop(full);
}

/// A read from a pipe stays pending; removing the file does not end it, data does.
#[test]
fn a_pending_read_keeps_its_buffer_and_descriptor() {
    let mut ring = Loop::new();
    let (pipe, mut end) = std::io::pipe().expect("a pipe");
    let file = ring.ring.add_file(OwnedFd::from(pipe));
    ring.ring.read(file, 1, 0, AlignedBuf::zeroed(4096), 4096);
    ring.ring.remove_file(file);
    assert!(ring.settle().is_empty());
    end.write_all(b"through the pipe").expect("a reader");
    match ring.next() {
        Event::Read { key: 1, result: Ok(16), buf } => assert_eq!(&buf[..16], b"through the pipe"),
        other => panic!("{other:?}"),
    }
    let broken = end.write(b"x").expect_err("closed after its last operation");
    assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn received_bytes_outlive_their_ring() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    server.ring.receive(socket);
    peer.write_all(b"keep me").expect("connected");
    let Event::Received { data, .. } = server.next() else { panic!("nothing received") };
    drop(server);
    assert_eq!(&data[..], b"keep me");
    drop(data);
}

/// A socket of another kind than expected is an error of its operations, nothing worse.
#[test]
fn a_descriptor_that_is_no_socket_reports_errors() {
    let mut ring = Loop::new();
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    let socket = ring.ring.add_socket(1, OwnedFd::from(pipe));
    ring.ring.receive(socket);
    let event = ring.next();
    assert!(matches!(event, Event::ReceiveClosed { result: Err(_), .. }), "{event:?}");
    ring.ring.send(socket, owned(b"x"));
    assert!(matches!(ring.next(), Event::SendFailed { .. }));
    ring.ring.close(socket);
    ring.expect_closed(socket);
}

/// Unread data, unsent data and a reset by the peer at the same time.
#[test]
fn closing_after_a_reset_works() {
    let mut server = Loop::new();
    let (fd, peer) = connection();
    let socket = server.ring.add_socket(1, fd);
    let (bytes, chunks) = too_much();
    server.ring.send(socket, chunks);
    server.ring.receive(socket);
    assert!(server.settle().is_empty());
    drop(peer);
    let (mut failed, mut ended) = (false, false);
    while !(failed && ended) {
        match server.next() {
            Event::SendFailed { chunks, .. } => {
                assert_eq!(chunks.len(), 2);
                failed = true;
            }
            Event::ReceiveClosed { .. } => ended = true,
            other => panic!("{other:?}"),
        }
    }
    server.ring.close(socket);
    server.expect_closed(socket);
    assert_eq!(Arc::strong_count(&bytes), 1);
}
