//! What sockets do when nothing is torn down under them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use coracle_ring::{Chunk, Event, RingConfig, listener, local_addr, nodelay, peer_addr};

use crate::common::{ANY_PORT, Loop, connection, listening, owned, pattern};

/// Two rings on two threads: accept, connect, send, receive, close on both sides.
#[test]
fn echo_through_two_rings() {
    const ROUNDS: usize = 200;
    let (fd, addr) = listening(16);
    let server = thread::spawn(move || {
        let mut server = Loop::new();
        server.ring.listen(1, fd);
        let Event::Accepted { key: 1, fd } = server.next() else { panic!("no connection") };
        let socket = server.ring.add_socket(2, fd);
        server.ring.receive(socket);
        let mut backlog = Vec::new();
        loop {
            match server.next() {
                Event::Received { socket: id, key: 2, data } => {
                    assert_eq!(id, socket);
                    backlog.extend_from_slice(&data);
                }
                Event::Sent { key: 2, .. } => {}
                Event::ReceiveClosed { key: 2, result: Ok(()), .. } => break,
                other => panic!("{other:?}"),
            }
            if !backlog.is_empty() && !server.ring.is_sending(socket) {
                server.ring.send(socket, vec![Chunk::Owned(std::mem::take(&mut backlog))]);
            }
        }
        server.ring.close(socket);
        server.expect_closed(socket);
    });

    let mut client = Loop::new();
    let socket = client.ring.connect(7, addr);
    client.ring.receive(socket);
    let event = client.next();
    assert!(
        matches!(event, Event::Connected { key: 7, result: Ok(id) } if id == socket),
        "{event:?}"
    );
    let connected = client.ring.socket_fd(socket).expect("open");
    assert_eq!(peer_addr(connected).expect("connected"), addr);
    for round in 1..=ROUNDS {
        let bytes = pattern(round * 37);
        client.ring.send(socket, owned(&bytes));
        let (mut echoed, mut sent) = (Vec::new(), false);
        while echoed.len() < bytes.len() || !sent {
            match client.next() {
                Event::Received { key: 7, data, .. } => echoed.extend_from_slice(&data),
                Event::Sent { key: 7, bytes: count, .. } => {
                    assert_eq!(count, bytes.len());
                    sent = true;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(echoed, bytes, "round {round}");
    }
    client.ring.close(socket);
    client.expect_closed(socket);
    server.join().expect("the server is content");
}

/// More data than all receive buffers hold, while the application keeps them: the kernel runs out
/// (ENOBUFS), and receiving goes on when they come back.
#[test]
fn receiving_survives_the_lack_of_buffers() {
    let config = RingConfig { entries: 8, recv_buffer_count: 4, recv_buffer_bytes: 1024 };
    let mut server = Loop::with(config);
    let (socket, mut peer) = server.accepted(1);
    let bytes = pattern(1 << 20);
    let writer = thread::spawn({
        let bytes = bytes.clone();
        move || peer.write_all(&bytes)
    });
    server.ring.receive(socket);
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        // Keep all four, so that the fifth piece finds none.
        let mut held = Vec::new();
        while held.len() < 4
            && got.len() + held.iter().map(|d: &coracle_ring::RecvBuf| d.len()).sum::<usize>()
                < bytes.len()
        {
            match server.next() {
                Event::Received { data, .. } => held.push(data),
                other => panic!("{other:?}"),
            }
        }
        if held.len() == 4 {
            let more = server.settle();
            assert!(more.is_empty(), "there is no fifth buffer: {more:?}");
        }
        for data in held {
            got.extend_from_slice(&data);
        }
    }
    assert!(got == bytes, "bytes are lost or out of order");
    writer.join().expect("no panic").expect("all written");
}

/// Starving sockets are served in turn: none is forgotten while others go on.
#[test]
fn starving_sockets_take_turns() {
    let config = RingConfig { entries: 8, recv_buffer_count: 2, recv_buffer_bytes: 64 };
    let mut server = Loop::with(config);
    let mut peers = Vec::new();
    for key in 0..10 {
        let (socket, mut peer) = server.accepted(key);
        peer.write_all(&[key as u8; 1000]).expect("the socket buffers");
        server.ring.receive(socket);
        peers.push(peer);
    }
    let mut counts = [0; 10];
    while counts.iter().sum::<usize>() < 10_000 {
        match server.next() {
            Event::Received { key, data, .. } => {
                assert!(data.iter().all(|&byte| u64::from(byte) == key));
                counts[key as usize] += data.len();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts, [1000; 10]);
}

/// 3000 pieces are more than the kernel takes at once (1024), and 1 MiB more than it buffers.
#[test]
fn many_chunks_arrive_intact() {
    let mut sender = Loop::new();
    let (socket, mut peer) = sender.accepted(1);
    let bytes = pattern(1 << 20);
    let shared: Arc<[u8]> = bytes.as_slice().into();
    let mut chunks = Vec::new();
    for piece in 0..3000 {
        let (start, end) = (piece * bytes.len() / 3000, (piece + 1) * bytes.len() / 3000);
        chunks.push(match piece % 3 {
            0 => Chunk::Owned(bytes[start..end].to_vec()),
            _ => Chunk::Shared { bytes: Arc::clone(&shared), start, end },
        });
        if piece % 5 == 0 {
            chunks.push(Chunk::Owned(Vec::new()));
        }
    }
    let count = chunks.len();
    let reader = thread::spawn(move || {
        let mut got = vec![0; 1 << 20];
        peer.read_exact(&mut got).map(|()| got)
    });
    sender.ring.send(socket, chunks);
    match sender.next() {
        Event::Sent { bytes: sent, chunks, .. } => {
            assert_eq!((sent, chunks.len()), (bytes.len(), count));
        }
        other => panic!("{other:?}"),
    }
    assert!(reader.join().expect("no panic").expect("all read") == bytes);
    assert_eq!(Arc::strong_count(&shared), 1, "the event was dropped, so nobody holds it");
}

#[test]
fn chunks_come_back_for_reuse_and_sends_follow_each_other() {
    let mut sender = Loop::new();
    let (socket, mut peer) = sender.accepted(1);
    let mut buffer = Vec::with_capacity(100);
    let capacity_at = buffer.as_ptr();
    for round in 0..100u8 {
        buffer.clear();
        buffer.extend_from_slice(&[round; 10]);
        sender.ring.send(socket, vec![Chunk::Owned(buffer)]);
        assert!(sender.ring.is_sending(socket));
        let Event::Sent { bytes: 10, mut chunks, .. } = sender.next() else { panic!("not sent") };
        let Some(Chunk::Owned(back)) = chunks.pop() else { panic!("another chunk came back") };
        assert_eq!(back.as_ptr(), capacity_at);
        buffer = back;
        let mut got = [0; 10];
        peer.read_exact(&mut got).expect("sent");
        assert_eq!(got, [round; 10]);
    }
}

#[test]
fn an_empty_send_is_sent_at_once() {
    let mut sender = Loop::new();
    let (socket, _peer) = sender.accepted(1);
    for chunks in [vec![], owned(b"")] {
        sender.ring.send(socket, chunks);
        assert!(matches!(sender.next(), Event::Sent { bytes: 0, key: 1, .. }));
    }
    sender.ring.send(socket, vec![]);
    sender.ring.close(socket);
    sender.expect_closed(socket);
}

#[test]
#[should_panic(expected = "one send at a time")]
fn a_second_send_is_a_bug() {
    let mut sender = Loop::new();
    let (socket, _peer) = sender.accepted(1);
    sender.ring.send(socket, owned(b"one"));
    sender.ring.send(socket, owned(b"two"));
}

/// Back-pressure: paused again and again in the middle of the stream, nothing is lost, and while
/// paused the peer gets stuck.
#[test]
fn pause_and_resume_lose_nothing() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    let bytes = pattern(4 << 20);
    let writer = thread::spawn({
        let bytes = bytes.clone();
        move || peer.write_all(&bytes).map(|()| peer)
    });
    server.ring.receive(socket);
    let mut got = Vec::new();
    let mut pauses = 0;
    while got.len() < bytes.len() {
        match server.next() {
            Event::Received { data, .. } => got.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
        server.ring.pause_receive(socket);
        if pauses % 2 == 0 {
            // Resumed while the cancellation is on its way.
            server.ring.resume_receive(socket);
        } else {
            // Resumed when it is over: what still came belongs to the stream.
            for event in server.settle() {
                match event {
                    Event::Received { data, .. } => got.extend_from_slice(&data),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(server.ring.in_flight(), 1, "no receive is left while paused");
            assert!(server.settle().is_empty(), "paused");
            server.ring.resume_receive(socket);
        }
        pauses += 1;
    }
    assert!(got == bytes, "bytes are lost or out of order after {pauses} pauses");
    writer.join().expect("no panic").expect("all written");
}

/// Resumed before the cancellation is over: its end starts the next receive.
#[test]
fn a_quick_resume_goes_on_receiving() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    server.ring.receive(socket);
    assert!(server.settle().is_empty());
    server.ring.pause_receive(socket);
    server.ring.resume_receive(socket);
    assert!(server.settle().is_empty());
    peer.write_all(b"after all").expect("connected");
    assert_eq!(server.receive_exactly(9), b"after all");
}

/// O_NONBLOCK changes nothing: waiting is the ring's business.
#[test]
fn nonblocking_sockets_wait_all_the_same() {
    let mut server = Loop::new();
    let (fd, mut peer) = connection();
    fd.set_nonblocking(true).expect("a socket option");
    let socket = server.ring.add_socket(1, fd);
    server.ring.receive(socket);
    assert!(server.settle().is_empty());
    server.ring.send(socket, vec![Chunk::Owned(pattern(16 << 20))]);
    assert!(server.settle().is_empty(), "more than the kernel buffers");
    let mut got = vec![0; 16 << 20];
    let reader = thread::spawn(move || peer.read_exact(&mut got).map(|()| (got, peer)));
    assert!(matches!(server.next(), Event::Sent { .. }));
    let (got, mut peer) = reader.join().expect("no panic").expect("all read");
    assert!(got == pattern(16 << 20));
    peer.write_all(b"thanks").expect("connected");
    assert_eq!(server.receive_exactly(6), b"thanks");
}

/// The end of the peer's stream does not end ours.
#[test]
fn half_closed_connections_still_send() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    peer.write_all(b"question").expect("connected");
    peer.shutdown(Shutdown::Write).expect("connected");
    server.ring.receive(socket);
    assert_eq!(server.receive_exactly(8), b"question");
    assert!(matches!(server.next(), Event::ReceiveClosed { key: 1, result: Ok(()), .. }));
    server.ring.receive(socket);
    server.ring.send(socket, owned(b"answer"));
    assert!(matches!(server.next(), Event::Sent { bytes: 6, .. }));
    server.ring.close(socket);
    server.expect_closed(socket);
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).expect("connected");
    assert_eq!(answer, b"answer");
}

/// A peer that dies resets the connection: receiving ends with an error, and so does sending,
/// with the chunks back.
#[test]
fn a_reset_connection_reports_errors() {
    let mut server = Loop::new();
    let (socket, peer) = server.accepted(1);
    server.ring.send(socket, owned(b"never read"));
    assert!(matches!(server.next(), Event::Sent { .. }));
    // Closing with unread data sends a reset.
    drop(peer);
    server.ring.receive(socket);
    match server.next() {
        Event::ReceiveClosed { result: Err(error), .. } => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        other => panic!("{other:?}"),
    }
    server.ring.send(socket, owned(b"too late"));
    match server.next() {
        Event::SendFailed { key: 1, error, chunks, .. } => {
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            assert_eq!(chunks[0].bytes(), b"too late");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_connect_is_an_event_and_leaves_nothing() {
    let (fd, addr) = listening(1);
    drop(fd);
    let mut client = Loop::new();
    let socket = client.ring.connect(3, addr);
    match client.next() {
        Event::Connected { key: 3, result: Err(error) } => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        other => panic!("{other:?}"),
    }
    assert!(client.ring.socket_fd(socket).is_none());
    assert_eq!(client.ring.in_flight(), 1);
}

/// Many peers at once, more than the accept's queue entries and the ring's entries.
#[test]
fn one_accept_serves_many_peers() {
    let mut server = Loop::with(RingConfig { entries: 8, ..RingConfig::default() });
    let (fd, addr) = listening(256);
    let id = server.ring.listen(5, fd);
    let peers: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(addr).expect("listening")).collect();
    for _ in &peers {
        let Event::Accepted { key: 5, fd } = server.next() else { panic!("no connection") };
        let stream = TcpStream::from(fd);
        assert!(stream.nodelay().expect("a TCP socket"), "inherited from the listener");
    }
    server.ring.stop_listening(id);
    server.ring.stop_listening(id);
    assert!(server.settle().is_empty());
    assert_eq!(server.ring.in_flight(), 1);
    let refused = TcpStream::connect(addr).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// A listener in non-blocking mode waits all the same, and what is no listener is given up.
#[test]
fn odd_listeners_neither_spin_nor_hang() {
    let mut server = Loop::new();
    let nonblocking = std::net::TcpListener::bind(ANY_PORT).expect("loopback");
    nonblocking.set_nonblocking(true).expect("a socket option");
    let addr = nonblocking.local_addr().expect("bound");
    server.ring.listen(1, nonblocking);
    assert!(server.settle().is_empty());
    let _peer = TcpStream::connect(addr).expect("listening");
    assert!(matches!(server.next(), Event::Accepted { key: 1, .. }));

    let (unlistened, _peer) = connection();
    server.ring.listen(2, unlistened);
    let event = server.next();
    assert!(matches!(event, Event::AcceptFailed { key: 2, retrying: false, .. }), "{event:?}");
    let (pipe, _end) = std::io::pipe().expect("a pipe");
    server.ring.listen(3, OwnedFd::from(pipe));
    let event = server.next();
    assert!(matches!(event, Event::AcceptFailed { key: 3, retrying: false, .. }), "{event:?}");
    assert!(server.settle().is_empty());
}

#[test]
fn two_listeners_share_an_address_only_when_asked() {
    let first = listener(ANY_PORT, true, 4).expect("loopback");
    let addr = local_addr(&first).expect("bound");
    let second = listener(addr, true, 4).expect("shared");
    assert_eq!(local_addr(&second).expect("bound"), addr);
    let refused = listener(addr, false, 4).expect_err("not asked");
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
}

#[test]
fn addresses_of_both_families_work() {
    for addr in ["127.0.0.1:0", "[::1]:0"] {
        let fd = match listener(addr.parse().expect("an address"), false, 4) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => continue,
            other => other.expect("loopback"),
        };
        let addr = local_addr(&fd).expect("bound");
        let mut both = Loop::new();
        both.ring.listen(1, fd);
        both.ring.connect(2, addr);
        let (mut accepted, mut connected) = (false, false);
        while !(accepted && connected) {
            match both.next() {
                Event::Accepted { fd, .. } => {
                    nodelay(&fd).expect("TCP");
                    assert_eq!(local_addr(&fd).expect("connected"), addr);
                    accepted = true;
                }
                Event::Connected { result, .. } => {
                    let socket = result.expect("listening");
                    let fd = both.ring.socket_fd(socket).expect("open");
                    assert_eq!(peer_addr(fd).expect("connected"), addr);
                    connected = true;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_changed_key_comes_with_later_events() {
    let mut server = Loop::new();
    let (socket, mut peer) = server.accepted(1);
    server.ring.receive(socket);
    peer.write_all(b"a").expect("connected");
    assert!(matches!(server.next(), Event::Received { key: 1, .. }));
    server.ring.set_key(socket, 2);
    peer.write_all(b"b").expect("connected");
    assert!(matches!(server.next(), Event::Received { key: 2, .. }));
}
