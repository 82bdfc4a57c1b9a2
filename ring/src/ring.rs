//! The ring itself: its parts, the wait, and the way of a completion to its operation.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode, squeue};

use crate::aligned::AlignedBuf;
use crate::buffers::Pool;
use crate::error::{SetupError, explain};
use crate::event::{Event, Key};
use crate::file::FileSlot;
use crate::listen::{Listener, RawAddr, accepted_fd};
use crate::queue::{Completion, Queue};
use crate::slab::{Slab, SlotId};
use crate::socket::{Outgoing, Socket, Starving};
use crate::waker::Waker;

/// Marks the completion of a cancellation; the other bits name its target.
const CANCEL: u64 = 1 << 63;

/// The only group of receive buffers.
pub(crate) const BUFFER_GROUP: u16 = 0;

/// How long a dropped ring waits for the kernel to let go of its memory before it leaks it.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// Sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Operations handed to the kernel at once and completions taken per wait; the kernel rounds
    /// it up to a power of two. Not a limit of operations in flight.
    /// Default: 1024. Range: 8..=32768.
    pub entries: u32,
    /// Receive buffers shared by all sockets. The kernel takes them in turn: together they should
    /// fit into a CPU's second-level cache. Default: 64. A power of two in 1..=32768.
    pub recv_buffer_count: u16,
    /// Size of each. Default: 32768. Range: 64..=1048576.
    pub recv_buffer_bytes: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { entries: 1024, recv_buffer_count: 64, recv_buffer_bytes: 32768 }
    }
}

impl RingConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`SetupError::Config`] with the value and what is allowed.
    pub fn validate(&self) -> Result<(), SetupError> {
        let count = self.recv_buffer_count;
        let checks = [
            ("entries", self.entries, (8..=32768).contains(&self.entries), "in 8..=32768"),
            (
                "recv_buffer_count",
                count.into(),
                count.is_power_of_two() && count <= 32768,
                "a power of two in 1..=32768",
            ),
            (
                "recv_buffer_bytes",
                self.recv_buffer_bytes,
                (64..=1 << 20).contains(&self.recv_buffer_bytes),
                "in 64..=1048576",
            ),
        ];
        for (field, value, valid, must_be) in checks {
            if !valid {
                return Err(SetupError::Config { field, value: value.into(), must_be });
            }
        }
        Ok(())
    }
}

/// One io_uring with the sockets and files of one core. Stays on the thread that made it.
///
/// Calls queue operations; [`Ring::wait`] submits them and brings what has happened. Everything
/// an operation needs (buffers, addresses, descriptors) is owned by the ring from the call until
/// the kernel's last completion, also when the socket is closed in between or the ring dropped.
pub struct Ring {
    pub(crate) queue: Queue,
    /// What the kernel works on. An entry is removed at its last completion, never before.
    pub(crate) ops: Slab<Op>,
    pub(crate) sockets: Slab<Socket>,
    pub(crate) files: Slab<FileSlot>,
    pub(crate) listeners: Slab<Listener>,
    pub(crate) pool: Rc<Pool>,
    /// Sockets that found no receive buffer.
    pub(crate) starving: Starving,
    /// The earliest moment at which some listener wants to be tried again.
    pub(crate) accept_retry_at: Option<Instant>,
    /// Events that needed no kernel, for the next wait.
    pub(crate) ready: Vec<Event>,
    /// Finished sends, for their memory.
    #[expect(clippy::vec_box, reason = "the kernel knows the address of what is in the box")]
    pub(crate) spare_outgoing: Vec<Box<Outgoing>>,
    waker: Waker,
    completions: Vec<Completion>,
    completions_max: usize,
}

/// An operation in flight, with all memory the kernel may touch on its behalf.
pub(crate) enum Op {
    /// The multishot poll of the waker's eventfd.
    Wake,
    Accept {
        listener: SlotId,
    },
    Receive {
        socket: SlotId,
    },
    Send {
        socket: SlotId,
        outgoing: Box<Outgoing>,
    },
    Connect {
        socket: SlotId,
        _addr: Box<RawAddr>,
    },
    Write {
        file: SlotId,
        key: Key,
        buf: AlignedBuf,
    },
    Read {
        file: SlotId,
        key: Key,
        buf: AlignedBuf,
    },
}

impl Ring {
    /// Sets up the queues and the receive buffers.
    ///
    /// # Errors
    /// See [`SetupError`]: each variant says what to do about it.
    pub fn new(config: RingConfig) -> Result<Self, SetupError> {
        config.validate()?;
        let explained = |step| move |source| explain(step, source, &config);
        let waker = Waker::new().map_err(explained("eventfd"))?;
        let queue = Queue::open(config.entries)
            .map_err(explained("queues with SINGLE_ISSUER and DEFER_TASKRUN"))?;
        let pool = Pool::new(config.recv_buffer_count, config.recv_buffer_bytes);
        // SAFETY: the table has as many entries as the pool's count and lives as long as the
        // pool, which this ring lets go only after the table is unregistered (or leaks).
        unsafe {
            queue.uring().submitter().register_buf_ring_with_flags(
                pool.table_address(),
                pool.count(),
                BUFFER_GROUP,
                0,
            )
        }
        .map_err(explained("a ring of receive buffers"))?;
        let mut ring = Self {
            queue,
            ops: Slab::new(),
            sockets: Slab::new(),
            files: Slab::new(),
            listeners: Slab::new(),
            pool,
            starving: Starving::new(),
            accept_retry_at: None,
            ready: Vec::new(),
            spare_outgoing: Vec::new(),
            waker,
            completions: Vec::new(),
            completions_max: config.entries as usize,
        };
        ring.watch_waker();
        Ok(ring)
    }

    /// Something that ends this ring's sleep from any thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Submits all queued operations and sleeps until something happens, at most for `timeout`;
    /// appends what has happened to `events`. Submitting and sleeping are one system call.
    ///
    /// May return without events: at the timeout, on a signal, or when the kernel had something
    /// to say that concerns only the ring. Handles a bounded number of completions; when more are
    /// there the next call does not sleep.
    ///
    /// # Errors
    /// Only when the ring is unusable.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = self.prepare(timeout);
        let nothing_ready = self.ready.is_empty();
        events.append(&mut self.ready);
        let have_completions = self.queue.has_completions();
        let sleeps = nothing_ready
            && !have_completions
            && timeout != Some(Duration::ZERO)
            && self.waker.fall_asleep();
        let entered = if sleeps {
            self.queue.enter(1, timeout)
        } else if !have_completions || self.queue.has_unsubmitted() {
            self.queue.enter(0, None)
        } else {
            Ok(())
        };
        if self.waker.wake_up() {
            events.push(Event::Woken);
        }
        entered?;
        self.complete(events);
        Ok(())
    }

    /// Submits all queued operations and appends what has happened, without sleeping.
    ///
    /// # Errors
    /// As [`Ring::wait`].
    pub fn poll(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        self.wait(Some(Duration::ZERO), events)
    }

    /// Operations the kernel works on, the ring's own ones included.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Asks the kernel to end an operation early. It still has its completion.
    pub(crate) fn cancel(&mut self, op: SlotId) {
        let entry = opcode::AsyncCancel::new(op.to_bits())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(op.to_bits() | CANCEL);
        // SAFETY: a cancellation refers to no memory, only to a number.
        unsafe { self.queue.push(entry) };
    }

    /// Takes up what had to pause. Returns how long to sleep at most.
    fn prepare(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        self.feed_starving();
        let Some(at) = self.accept_retry_at else { return timeout };
        let now = Instant::now();
        if at <= now {
            self.retry_accepts(now);
        }
        let Some(at) = self.accept_retry_at else { return timeout };
        let until_retry = at.saturating_duration_since(now);
        Some(timeout.map_or(until_retry, |timeout| timeout.min(until_retry)))
    }

    fn complete(&mut self, events: &mut Vec<Event>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.take_completions(self.completions_max, &mut completions);
        for completion in completions.drain(..) {
            self.dispatch(completion, events);
        }
        self.completions = completions;
    }

    fn dispatch(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let id = SlotId::from_bits(completion.user_data);
        if completion.user_data & CANCEL != 0 {
            // Not found although not complete: it was on its way between two states.
            if completion.result == -libc::ENOENT && self.ops.get(id).is_some() {
                self.cancel(id);
            }
            return;
        }
        let Some(op) = self.ops.get(id) else {
            panic!("a completion for {id:?}, which is not in flight: {completion:?}");
        };
        match *op {
            Op::Wake => {
                if !cqueue::more(completion.flags) {
                    self.ops.remove(id);
                    self.watch_waker();
                }
            }
            Op::Accept { listener } => self.accepted(id, listener, completion, events),
            Op::Receive { socket } => self.received(id, socket, completion, events),
            Op::Send { .. } | Op::Connect { .. } | Op::Write { .. } | Op::Read { .. } => {
                let op = self.ops.remove(id).expect("it was there a moment ago");
                self.finish(op, id, result_of(completion), events);
            }
        }
    }

    /// An operation with a single completion has had it.
    fn finish(&mut self, op: Op, id: SlotId, result: io::Result<usize>, events: &mut Vec<Event>) {
        match op {
            Op::Send { socket, outgoing } => self.sent(socket, outgoing, result, events),
            Op::Connect { socket, .. } => self.connected(socket, result.map(drop), events),
            Op::Write { file, key, buf } => {
                events.push(Event::Written { key, result, buf });
                self.file_done(file);
            }
            Op::Read { file, key, buf } => {
                events.push(Event::Read { key, result, buf });
                self.file_done(file);
            }
            Op::Wake | Op::Accept { .. } | Op::Receive { .. } => {
                unreachable!("{id:?} has many completions")
            }
        }
    }

    fn watch_waker(&mut self) {
        let op = self.ops.insert(Op::Wake);
        let fd = Fd(self.waker.raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        // SAFETY: no memory is involved; this ring's waker keeps the descriptor open.
        unsafe { self.queue.push(entry.user_data(op.to_bits())) };
    }

    /// Ends all operations. `false`: some would not end in time.
    fn reap_all(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.ops.len() > 0 {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any())
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(CANCEL);
            // SAFETY: a cancellation refers to no memory.
            unsafe { self.queue.push(entry) };
            // Repeated, because a cancellation misses what is between two states.
            let entered = self.queue.enter(1, Some(Duration::from_millis(20)));
            self.queue.take_completions(usize::MAX, &mut self.completions);
            for completion in std::mem::take(&mut self.completions) {
                self.discard(completion);
            }
            if entered.is_err() || Instant::now() > deadline {
                return self.ops.len() == 0;
            }
        }
        true
    }

    fn discard(&mut self, completion: Completion) {
        let id = SlotId::from_bits(completion.user_data);
        if completion.user_data & CANCEL != 0 {
            return;
        }
        if matches!(self.ops.get(id), Some(Op::Accept { .. })) {
            drop(accepted_fd(completion));
        }
        if !cqueue::more(completion.flags) {
            self.ops.remove(id);
        }
    }
}

impl Drop for Ring {
    /// Cancels what is in flight and waits for it: the kernel must be done with the memory first.
    fn drop(&mut self) {
        let done = self.reap_all(DROP_PATIENCE);
        let unregistered = self.queue.uring().submitter().unregister_buf_ring(BUFFER_GROUP);
        if !done || unregistered.is_err() {
            // The kernel may still write to these: lost memory is better than foreign memory.
            std::mem::forget(std::mem::take(&mut self.ops));
            std::mem::forget(Rc::clone(&self.pool));
        }
    }
}

pub(crate) fn result_of(completion: Completion) -> io::Result<usize> {
    usize::try_from(completion.result)
        .map_err(|_| io::Error::from_raw_os_error(completion.result.wrapping_neg()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn small() -> RingConfig {
        RingConfig { entries: 8, recv_buffer_count: 4, recv_buffer_bytes: 64 }
    }

    fn turn(ring: &mut Ring) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..4 {
            ring.poll(&mut events).expect("the ring works");
        }
        events
    }

    #[test]
    fn configurations_out_of_range_are_refused_by_name() {
        let cases = [
            ("entries", RingConfig { entries: 7, ..small() }),
            ("entries", RingConfig { entries: 32769, ..small() }),
            ("recv_buffer_count", RingConfig { recv_buffer_count: 0, ..small() }),
            ("recv_buffer_count", RingConfig { recv_buffer_count: 48, ..small() }),
            ("recv_buffer_bytes", RingConfig { recv_buffer_bytes: 63, ..small() }),
            ("recv_buffer_bytes", RingConfig { recv_buffer_bytes: (1 << 20) + 1, ..small() }),
        ];
        for (want, config) in cases {
            match Ring::new(config) {
                Err(SetupError::Config { field, .. }) => assert_eq!(field, want),
                other => panic!("{want}: {:?}", other.err()),
            }
        }
        assert!(RingConfig::default().validate().is_ok());
        assert!(Ring::new(small()).is_ok());
    }

    /// Reaping ends what would wait for ever, submitted or not, and says so truthfully.
    #[test]
    fn reaping_waits_for_the_kernel() {
        let mut ring = Ring::new(small()).expect("io_uring works here");
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let socket = ring.add_socket(1, ours);
        ring.receive(socket);
        let (pipe, _end) = io::pipe().expect("a pipe");
        let file = ring.add_file(OwnedFd::from(pipe));
        ring.read(file, 2, 0, AlignedBuf::zeroed(4096), 4096);
        assert!(turn(&mut ring).is_empty());
        ring.read(file, 3, 0, AlignedBuf::zeroed(4096), 4096);
        assert_eq!(ring.in_flight(), 4);
        assert!(ring.reap_all(DROP_PATIENCE));
        assert_eq!(ring.in_flight(), 0);
    }

    /// An operation with more completions to come is still the kernel's.
    #[test]
    fn reaping_waits_for_the_last_completion() {
        let mut ring = Ring::new(small()).expect("io_uring works here");
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let socket = ring.add_socket(1, ours);
        ring.receive(socket);
        let (op, _) = ring.ops.iter_mut().last().expect("the receive");
        const MORE: u32 = 1 << 1;
        assert!(cqueue::more(MORE));
        ring.discard(Completion { user_data: op.to_bits(), result: 1, flags: MORE });
        assert_eq!(ring.in_flight(), 2);
        assert!(ring.reap_all(DROP_PATIENCE));
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn reaping_does_not_wait_for_ever() {
        let mut ring = Ring::new(small()).expect("io_uring works here");
        // Never handed to the kernel, so its completion never comes.
        let op = ring.ops.insert(Op::Wake);
        assert!(!ring.reap_all(Duration::from_millis(1)));
        assert_eq!(ring.in_flight(), 1, "what the kernel has is kept");
        ring.ops.remove(op);
    }

    /// A cancellation that found nothing although its target is in flight is sent again; one
    /// whose target is gone is over.
    #[test]
    fn a_cancellation_that_missed_its_target_is_repeated() {
        let mut ring = Ring::new(small()).expect("io_uring works here");
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let socket = ring.add_socket(1, ours);
        ring.receive(socket);
        assert!(turn(&mut ring).is_empty());
        let (target, _) = ring.ops.iter_mut().last().expect("the receive");
        let missed =
            Completion { user_data: target.to_bits() | CANCEL, result: -libc::ENOENT, flags: 0 };
        let mut events = Vec::new();
        ring.dispatch(missed, &mut events);
        assert!(ring.queue.has_unsubmitted());
        ring.pause_receive(socket);
        assert!(turn(&mut ring).is_empty());
        assert_eq!(ring.in_flight(), 1, "the receive is gone");
        ring.dispatch(missed, &mut events);
        assert!(!ring.queue.has_unsubmitted() && events.is_empty());
    }
}
