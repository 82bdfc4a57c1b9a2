//! What a leader knows of one follower, and how much it may send it.

use std::collections::VecDeque;

use crate::{LogIndex, LogPosition};

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendState {
    /// The agreement point is unknown: one message at a time.
    Probe,
    /// Entries are pipelined ahead of acknowledgements.
    Replicate,
    /// The follower needs a snapshot; the log waits.
    Snapshot {
        /// What the snapshot covers.
        base: LogPosition,
    },
}

/// What a leader knows of one follower.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Last entry known to be on the follower's disk and to agree.
    pub matched: LogIndex,
    /// Next entry to send.
    pub next: LogIndex,
    /// How it is sent to.
    pub state: SendState,
    /// The newest round it has echoed.
    pub echoed: u64,
    /// A probe is under way.
    pub(crate) paused: bool,
    /// A read of older entries is under way, for this index.
    pub(crate) loading: Option<LogIndex>,
    /// The follower has asked for the snapshot that it is sent, when this was the newest round.
    /// What it answers to earlier rounds does not show that it has it.
    pub(crate) asked_in: Option<u64>,
    /// No reads of older entries before this tick, after one failed.
    pub(crate) load_after: u64,
    /// Tick of the last sign of progress; a silent window or snapshot is started again.
    pub(crate) moved_at: u64,
    inflight: VecDeque<(LogIndex, usize)>,
    inflight_bytes: usize,
}

impl Progress {
    pub(crate) const fn new(next: LogIndex, now: u64) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next,
            state: SendState::Probe,
            echoed: 0,
            paused: false,
            loading: None,
            asked_in: None,
            load_after: 0,
            moved_at: now,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// Back to probing from `next`.
    pub(crate) fn probe(&mut self, next: LogIndex, now: u64) {
        self.state = SendState::Probe;
        self.next = next.max(self.matched.next());
        self.paused = false;
        self.loading = None;
        self.asked_in = None;
        self.moved_at = now;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }

    /// The follower agrees up to `matched`, it says in answer to `round`; returns whether that is
    /// news.
    pub(crate) fn accept(&mut self, matched: LogIndex, round: u64, now: u64) -> bool {
        self.moved_at = now;
        while self.inflight.front().is_some_and(|&(last, _)| last <= matched) {
            let (_, bytes) = self.inflight.pop_front().expect("just seen");
            self.inflight_bytes -= bytes;
        }
        let news = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        match self.state {
            SendState::Probe => {
                self.state = SendState::Replicate;
                self.paused = false;
                self.next = self.matched.next();
            }
            SendState::Snapshot { base }
                if self.matched >= base.index
                    && self.asked_in.is_none_or(|asked| round > asked) =>
            {
                self.probe(self.matched.next(), now);
                self.state = SendState::Replicate;
            }
            _ => {}
        }
        news
    }

    /// Notes a message under way that ends with `last`.
    pub(crate) fn sent(&mut self, last: LogIndex, bytes: usize, now: u64) {
        match self.state {
            SendState::Probe => self.paused = true,
            _ => {
                if self.inflight.is_empty() {
                    self.moved_at = now;
                }
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
                self.next = last.next();
            }
        }
    }

    /// Whether another message may be sent.
    pub(crate) fn has_room(&self, messages_max: usize, bytes_max: usize) -> bool {
        match self.state {
            SendState::Probe => !self.paused,
            SendState::Replicate => {
                self.inflight.len() < messages_max && self.inflight_bytes < bytes_max
            }
            SendState::Snapshot { .. } => false,
        }
    }

    /// Whether acknowledgements are awaited.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.inflight.is_empty()
    }
}
