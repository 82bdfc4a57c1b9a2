//! Messages between the cores of one node: a bounded queue per receiver and a wake-up.

use std::sync::Arc;

use coracle_engine::{CoreAddr, PeerMessage};
use coracle_ring::Waker;
use crossbeam::queue::ArrayQueue;

/// Messages one core can have waiting; beyond it senders keep theirs and try again next turn.
const CAPACITY: usize = 16 * 1024;

/// The receiving end's queue; senders hold it in an `Arc`.
pub(super) struct Mailbox {
    queue: ArrayQueue<(CoreAddr, PeerMessage)>,
    waker: Waker,
}

impl Mailbox {
    /// An empty mailbox whose owner is woken by `waker`.
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self { queue: ArrayQueue::new(CAPACITY), waker })
    }

    /// Puts a message in, or gives it back when the box is full.
    pub(super) fn push(
        &self,
        from: CoreAddr,
        message: PeerMessage,
    ) -> Result<(), (CoreAddr, PeerMessage)> {
        self.queue.push((from, message))
    }

    /// The oldest message.
    pub(super) fn pop(&self) -> Option<(CoreAddr, PeerMessage)> {
        self.queue.pop()
    }

    /// Wakes the owner; once per turn of the sender, after its last push.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}
