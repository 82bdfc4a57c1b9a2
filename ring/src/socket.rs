//! Connections: receiving, sending, connecting, closing.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use crate::event::{Chunk, Event, Key, SocketId};
use crate::listen::{RawAddr, nodelay, stream_socket};
use crate::queue::Completion;
use crate::ring::{BUFFER_GROUP, Op, Ring};
use crate::slab::SlotId;

/// The kernel takes at most this many pieces at once (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;
/// Sent at once: a completion counts in 31 bits.
const WINDOW_BYTES_MAX: usize = 1 << 30;
/// Finished sends kept for their memory, at most 16 KiB each.
const SPARE_MAX: usize = 64;
/// MSG_WAITALL lets the kernel continue a short send by itself.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// Sockets in the order in which they found no receive buffer.
pub(crate) type Starving = VecDeque<SlotId>;

/// The slot lives until the socket is closed and its last operation has completed.
pub(crate) struct Socket {
    key: Key,
    fd: OwnedFd,
    receive: Receive,
    sending: Option<SlotId>,
    connecting: Option<SlotId>,
    closing: bool,
}

#[derive(Default)]
struct Receive {
    /// The caller wants data.
    wanted: bool,
    /// The multishot receive in flight.
    op: Option<SlotId>,
    /// `op` has been told to end.
    cancelled: bool,
    /// Waits in `Ring::starving`.
    starving: bool,
    /// End of stream or error.
    ended: bool,
}

impl Socket {
    fn new(key: Key, fd: OwnedFd) -> Self {
        let receive = Receive::default();
        Self { key, fd, receive, sending: None, connecting: None, closing: false }
    }

    fn is_idle(&self) -> bool {
        self.receive.op.is_none() && self.sending.is_none() && self.connecting.is_none()
    }
}

impl Ring {
    /// Takes a connected stream socket over, in blocking mode or not. It is idle until told.
    pub fn add_socket(&mut self, key: Key, fd: impl Into<OwnedFd>) -> SocketId {
        SocketId(self.sockets.insert(Socket::new(key, fd.into())))
    }

    /// The descriptor of an open socket, for socket options and addresses.
    pub fn socket_fd(&self, socket: SocketId) -> Option<BorrowedFd<'_>> {
        Some(self.sockets.get(socket.0).filter(|socket| !socket.closing)?.fd.as_fd())
    }

    /// Changes the key that comes with later events of this socket.
    pub fn set_key(&mut self, socket: SocketId, key: Key) {
        if let Some(socket) = self.sockets.get_mut(socket.0) {
            socket.key = key;
        }
    }

    /// Receives until [`Ring::pause_receive`], [`Ring::close`] or the end of the stream: any
    /// number of [`Event::Received`], then at most one [`Event::ReceiveClosed`].
    pub fn receive(&mut self, socket: SocketId) {
        if let Some(slot) = self.sockets.get_mut(socket.0) {
            slot.receive.wanted = true;
            self.arm_receive(socket.0);
        }
    }

    /// Stops receiving, so that the peer is slowed down. What the kernel has already taken out of
    /// the socket is still delivered.
    pub fn pause_receive(&mut self, socket: SocketId) {
        let Some(slot) = self.sockets.get_mut(socket.0) else { return };
        slot.receive.wanted = false;
        if let Some(op) = slot.receive.op
            && !slot.receive.cancelled
        {
            slot.receive.cancelled = true;
            self.cancel(op);
        }
    }

    /// The reverse of [`Ring::pause_receive`]; the same as [`Ring::receive`].
    pub fn resume_receive(&mut self, socket: SocketId) {
        self.receive(socket);
    }

    /// Whether a [`Ring::send`] of this socket has not reported yet.
    pub fn is_sending(&self, socket: SocketId) -> bool {
        self.sockets.get(socket.0).is_some_and(|socket| socket.sending.is_some())
    }

    /// Sends all chunks, in order and completely: one [`Event::Sent`] or [`Event::SendFailed`].
    ///
    /// # Panics
    /// If the previous send of this socket has not reported yet, or a chunk's range is invalid.
    pub fn send(&mut self, socket: SocketId, chunks: Vec<Chunk>) {
        let Some(slot) = self.sockets.get(socket.0).filter(|socket| !socket.closing) else {
            return;
        };
        assert!(slot.sending.is_none(), "one send at a time: {socket:?} waits for its `Sent`");
        let key = slot.key;
        let mut outgoing = self.spare_outgoing.pop().unwrap_or_default();
        outgoing.start(chunks);
        if outgoing.is_done() {
            let (bytes, chunks) = self.recycle(outgoing);
            self.ready.push(Event::Sent { socket, key, bytes, chunks });
        } else {
            self.arm_send(socket.0, outgoing);
        }
    }

    /// Connects to `addr` with TCP_NODELAY: [`Event::Connected`] with `key`, which becomes the
    /// socket's key.
    ///
    /// The returned id allows to give up: after [`Ring::close`] there is only [`Event::Closed`].
    pub fn connect(&mut self, key: Key, addr: SocketAddr) -> SocketId {
        let fd = match stream_socket(&addr).and_then(|fd| nodelay(&fd).map(|()| fd)) {
            Ok(fd) => fd,
            Err(error) => {
                self.ready.push(Event::Connected { key, result: Err(error) });
                return SocketId(self.sockets.retired());
            }
        };
        let raw_fd = fd.as_raw_fd();
        let socket = self.sockets.insert(Socket::new(key, fd));
        let addr = Box::new(RawAddr::from(addr));
        let entry = opcode::Connect::new(Fd(raw_fd), addr.as_ptr(), addr.len()).build();
        let op = self.ops.insert(Op::Connect { socket, _addr: addr });
        self.sockets.get_mut(socket).expect("just inserted").connecting = Some(op);
        // SAFETY: the operation owns the address in its box, and the socket's slot keeps the
        // descriptor open, both until the completion.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
        SocketId(socket)
    }

    /// Ends what is in flight and closes the socket. [`Event::Closed`] is its last event; until
    /// then it has no others.
    pub fn close(&mut self, socket: SocketId) {
        let Some(slot) = self.sockets.get_mut(socket.0).filter(|socket| !socket.closing) else {
            return;
        };
        slot.closing = true;
        self.ready
            .retain(|event| !matches!(event, Event::Sent { socket: id, .. } if *id == socket));
        if slot.is_idle() {
            let key = slot.key;
            self.sockets.remove(socket.0);
            self.ready.push(Event::Closed { socket, key });
            return;
        }
        // Ends the operations by itself even where a cancellation comes too late. It fails on
        // sockets that are not connected (any more), which have nothing to shut down.
        // SAFETY: no memory is involved.
        let _ = unsafe { libc::shutdown(slot.fd.as_raw_fd(), libc::SHUT_RDWR) };
        let receive = slot.receive.op.filter(|_| !slot.receive.cancelled);
        let ops = [receive, slot.sending, slot.connecting];
        for op in ops.into_iter().flatten() {
            self.cancel(op);
        }
    }

    /// Gives sockets that found no receive buffer another try, as far as buffers are back.
    pub(crate) fn feed_starving(&mut self) {
        let meals = self.pool.in_kernel().min(self.starving.len());
        for _ in 0..meals {
            let Some(socket) = self.starving.pop_front() else { return };
            if let Some(slot) = self.sockets.get_mut(socket) {
                slot.receive.starving = false;
                self.arm_receive(socket);
            }
        }
    }

    pub(crate) fn received(
        &mut self,
        op: SlotId,
        socket: SlotId,
        completion: Completion,
        events: &mut Vec<Event>,
    ) {
        let more = cqueue::more(completion.flags);
        let len = completion.result.max(0).cast_unsigned();
        let data = cqueue::buffer_select(completion.flags).map(|id| {
            // SAFETY: the kernel names the buffer in this completion, which is handled once.
            unsafe { self.pool.take(id, len) }
        });
        let slot = self.sockets.get_mut(socket).expect("a receive keeps its socket's slot");
        if !more {
            slot.receive.op = None;
            slot.receive.cancelled = false;
            self.ops.remove(op);
        }
        if slot.closing {
            drop(data);
            self.finish_close(socket, events);
            return;
        }
        let (id, key) = (SocketId(socket), slot.key);
        match completion.result {
            1.. => {
                let data = data.expect("received bytes are in a buffer");
                events.push(Event::Received { socket: id, key, data });
            }
            0 => {
                slot.receive.ended = true;
                events.push(Event::ReceiveClosed { socket: id, key, result: Ok(()) });
            }
            code => match -code {
                libc::ENOBUFS => {
                    slot.receive.starving = true;
                    self.starving.push_back(socket);
                }
                libc::ECANCELED | libc::EINTR => {}
                errno => {
                    slot.receive.ended = true;
                    let result = Err(io::Error::from_raw_os_error(errno));
                    events.push(Event::ReceiveClosed { socket: id, key, result });
                }
            },
        }
        if !more {
            self.arm_receive(socket);
        }
    }

    pub(crate) fn sent(
        &mut self,
        socket: SlotId,
        mut outgoing: Box<Outgoing>,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let slot = self.sockets.get_mut(socket).expect("a send keeps its socket's slot");
        slot.sending = None;
        if slot.closing {
            self.recycle(outgoing);
            self.finish_close(socket, events);
            return;
        }
        let (id, key) = (SocketId(socket), slot.key);
        match result {
            Ok(bytes @ 1..) => outgoing.advance(bytes),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            other => {
                let error = other.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                let (_, chunks) = self.recycle(outgoing);
                events.push(Event::SendFailed { socket: id, key, error, chunks });
                return;
            }
        }
        if outgoing.is_done() {
            let (bytes, chunks) = self.recycle(outgoing);
            events.push(Event::Sent { socket: id, key, bytes, chunks });
        } else {
            self.arm_send(socket, outgoing);
        }
    }

    pub(crate) fn connected(
        &mut self,
        socket: SlotId,
        result: io::Result<()>,
        events: &mut Vec<Event>,
    ) {
        let slot = self.sockets.get_mut(socket).expect("a connect keeps its socket's slot");
        slot.connecting = None;
        if slot.closing {
            self.finish_close(socket, events);
            return;
        }
        let key = slot.key;
        if result.is_err() {
            self.sockets.remove(socket);
        } else {
            self.arm_receive(socket);
        }
        events.push(Event::Connected { key, result: result.map(|()| SocketId(socket)) });
    }

    fn arm_receive(&mut self, socket: SlotId) {
        let Some(slot) = self.sockets.get_mut(socket) else { return };
        let receive = &mut slot.receive;
        let blocked = receive.op.is_some() || receive.starving || receive.ended;
        if !receive.wanted || blocked || slot.closing || slot.connecting.is_some() {
            return;
        }
        let op = self.ops.insert(Op::Receive { socket });
        receive.op = Some(op);
        let entry = opcode::RecvMulti::new(Fd(slot.fd.as_raw_fd()), BUFFER_GROUP).build();
        // SAFETY: the socket's slot keeps the descriptor open until the last completion. The
        // memory is picked by the kernel from the pool, which lives until all receives are done.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }

    fn arm_send(&mut self, socket: SlotId, mut outgoing: Box<Outgoing>) {
        let slot = self.sockets.get_mut(socket).expect("only called with a socket in place");
        let entry = outgoing.entry(Fd(slot.fd.as_raw_fd()));
        let op = self.ops.insert(Op::Send { socket, outgoing });
        slot.sending = Some(op);
        // SAFETY: the operation owns the chunks, the list of pieces and, in a box, the header, and
        // the socket's slot keeps the descriptor open, all until the completion. Nothing gives
        // mutable access to them before.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }

    fn finish_close(&mut self, socket: SlotId, events: &mut Vec<Event>) {
        if self.sockets.get(socket).is_some_and(|slot| slot.closing && slot.is_idle()) {
            let slot = self.sockets.remove(socket).expect("it was there a moment ago");
            events.push(Event::Closed { socket: SocketId(socket), key: slot.key });
        }
    }

    /// Takes the result out of a finished send and keeps its memory.
    fn recycle(&mut self, mut outgoing: Box<Outgoing>) -> (usize, Vec<Chunk>) {
        let result = (outgoing.sent_bytes, std::mem::take(&mut outgoing.chunks));
        if self.spare_outgoing.len() < SPARE_MAX {
            self.spare_outgoing.push(outgoing);
        }
        result
    }
}

/// A send: all chunks, and the window of them that the kernel works on.
pub(crate) struct Outgoing {
    chunks: Vec<Chunk>,
    /// The first chunk that is not completely sent, and how much of it is.
    next: usize,
    next_sent_bytes: usize,
    sent_bytes: usize,
    total_bytes: usize,
    pieces: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            next: 0,
            next_sent_bytes: 0,
            sent_bytes: 0,
            total_bytes: 0,
            pieces: Vec::new(),
            // SAFETY: all fields are integers and pointers, for which zero is a value; it means
            // no address, no pieces, no control data.
            header: unsafe { std::mem::zeroed() },
        }
    }
}

impl Outgoing {
    fn start(&mut self, chunks: Vec<Chunk>) {
        self.total_bytes = chunks.iter().map(|chunk| chunk.bytes().len()).sum();
        self.chunks = chunks;
        (self.next, self.next_sent_bytes, self.sent_bytes) = (0, 0, 0);
    }

    const fn is_done(&self) -> bool {
        self.sent_bytes == self.total_bytes
    }

    /// The entry that sends the next window. It refers to memory of `self` and of the chunks.
    fn entry(&mut self, fd: Fd) -> squeue::Entry {
        self.fill_window();
        let flags = SEND_FLAGS;
        if let [piece] = self.pieces[..] {
            let len = u32::try_from(piece.iov_len).expect("a window is below 2^31 bytes");
            return opcode::Send::new(fd, piece.iov_base.cast(), len).flags(flags).build();
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len() as _;
        opcode::SendMsg::new(fd, &raw const self.header).flags(flags.cast_unsigned()).build()
    }

    fn fill_window(&mut self) {
        self.pieces.clear();
        let mut skip = self.next_sent_bytes;
        let mut room = WINDOW_BYTES_MAX;
        for chunk in &self.chunks[self.next..] {
            let rest = &chunk.bytes()[skip..];
            skip = 0;
            let piece = &rest[..rest.len().min(room)];
            if piece.is_empty() {
                continue;
            }
            room -= piece.len();
            let iov_base = piece.as_ptr().cast_mut().cast();
            self.pieces.push(libc::iovec { iov_base, iov_len: piece.len() });
            if self.pieces.len() == PIECES_MAX || room == 0 {
                return;
            }
        }
    }

    fn advance(&mut self, mut bytes: usize) {
        self.sent_bytes += bytes;
        assert!(
            self.sent_bytes <= self.total_bytes,
            "sent {} bytes of {}",
            self.sent_bytes,
            self.total_bytes
        );
        while bytes > 0 {
            let rest = self.chunks[self.next].bytes().len() - self.next_sent_bytes;
            if bytes < rest {
                self.next_sent_bytes += bytes;
                return;
            }
            bytes -= rest;
            self.next += 1;
            self.next_sent_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::ring::RingConfig;

    fn small() -> Ring {
        let config = RingConfig { entries: 8, recv_buffer_count: 4, recv_buffer_bytes: 64 };
        Ring::new(config).expect("io_uring works here")
    }

    fn turn(ring: &mut Ring) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..4 {
            ring.poll(&mut events).expect("the ring works");
        }
        events
    }

    /// What is received between `close` and its completion goes back to the pool.
    #[test]
    fn buffers_of_closed_sockets_are_not_lost() {
        let mut ring = small();
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let socket = ring.add_socket(1, ours);
        ring.receive(socket);
        assert!(turn(&mut ring).is_empty());
        theirs.write_all(&[1; 200]).expect("connected");
        ring.queue.enter(1, None).expect("the ring works");
        assert!(ring.queue.has_completions(), "the kernel has filled buffers");
        ring.close(socket);
        let events = turn(&mut ring);
        assert!(matches!(events[..], [Event::Closed { key: 1, .. }]), "{events:?}");
        assert_eq!(ring.pool.in_kernel(), 4);
    }

    /// A connection accepted by the kernel, but not yet seen, is closed with the ring.
    #[test]
    fn unseen_connections_are_closed_with_the_ring() {
        let mut ring = small();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let addr = listener.local_addr().expect("bound");
        ring.listen(1, listener);
        assert!(turn(&mut ring).is_empty());
        let mut peer = TcpStream::connect(addr).expect("listening");
        ring.queue.enter(1, None).expect("the ring works");
        assert!(ring.queue.has_completions(), "the kernel has accepted");
        drop(ring);
        peer.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("an option");
        assert_eq!(peer.read(&mut [0]).expect("closed in order"), 0);
    }

    /// However short the kernel's sends are, each window starts where the last one ended.
    #[test]
    fn windows_continue_short_sends() {
        for step in [1, 7, 100, 1023, 5000, usize::MAX] {
            let sizes = [0, 1, 2, 0, 1000, 3, 0].into_iter().chain([2; 1500]);
            let chunks: Vec<_> =
                sizes.enumerate().map(|(at, size)| Chunk::Owned(vec![at as u8; size])).collect();
            let whole: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
            let mut outgoing = Outgoing::default();
            outgoing.start(chunks);
            let mut sent = 0;
            while !outgoing.is_done() {
                outgoing.fill_window();
                assert!(outgoing.pieces.len() <= PIECES_MAX);
                let mut window = Vec::new();
                for piece in &outgoing.pieces {
                    // SAFETY: pieces point into the chunks, which `outgoing` still owns.
                    let bytes = unsafe {
                        std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
                    };
                    assert!(!bytes.is_empty(), "nothing to send is not sent");
                    window.extend_from_slice(bytes);
                }
                assert!(whole[sent..].starts_with(&window), "step {step}, at {sent}");
                let taken = window.len().min(step);
                outgoing.advance(taken);
                sent += taken;
            }
            assert_eq!(sent, whole.len(), "step {step}");
        }
    }
}
