//! The hot loop of one core: completions in, one engine turn, operations out. It is the whole
//! data path of the core; nothing here blocks but the wait for the ring.
//!
//! A turn: take what has arrived (bounded) → step the engine → one log batch for all groups →
//! submit log write, peer frames and client replies together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_engine::{Core, CoreAddr, Drain, Effects, Input, PeerMessage, Via, WallMillis};
use coracle_net::frame::Decoder;
use coracle_ring::{Event, ListenerId, Ring, SocketId};

use super::clients::{Clients, Context};
use super::digests;
use super::handshake::Handshakes;
use super::keys::{Kind, key, split};
use super::mailbox::Mailbox;
use super::peers::{InLink, LinkAction, OutLinks};
use super::session::Session;
use super::shared::Shared;
use super::stop::{Leaving, Phase};
use super::storage::Storage;
use super::wall;
use crate::fatal::{Exit, Fatal};

/// Completions taken before the engine's effects are handed out: the disk and the peers work on
/// the first part of a large turn while the second is decoded.
const EVENTS_TURN_MAX: usize = 16;
/// Messages taken from other cores of the node in one turn.
const MAILBOX_TURN_MAX: usize = 4096;
/// Ticks a peer has to say hello.
const HELLO_TICKS: u32 = 200;
/// Between turns in which nothing is to be done but to drop flushed keys: what shares the CPU gets
/// most of it.
const DROP_PAUSE: Duration = Duration::from_micros(400);
/// Connections of peers that may be open: every core of every node twice, for reconnects.
const PEERS_IN_SPARE: usize = 16;

/// One core's loop and everything it owns.
pub(super) struct HotLoop {
    pub(super) me: CoreAddr,
    pub(super) ring: Ring,
    pub(super) core: Core,
    pub(super) storage: Storage,
    pub(super) clients: Clients,
    pub(super) out_links: OutLinks,
    pub(super) in_links: Vec<Option<InLink>>,
    pub(super) handshakes: Handshakes,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) siblings: Siblings,
    pub(super) shared: Arc<Shared>,
    pub(super) tick: Duration,
    pub(super) effects: Effects,
    /// More work is known to wait than this turn took: do not sleep before the next.
    pub(super) again: bool,
    pub(super) listeners: Vec<ListenerId>,
    pub(super) leaving: Leaving,
}

/// The mailboxes of the node's other cores, and what did not fit into them yet.
pub(super) struct Siblings {
    boxes: Vec<Arc<Mailbox>>,
    overflow: Vec<Vec<PeerMessage>>,
    pushed: Vec<bool>,
}

impl Siblings {
    /// `boxes` by core number.
    pub(super) fn new(boxes: Vec<Arc<Mailbox>>) -> Self {
        let count = boxes.len();
        Self {
            boxes,
            overflow: (0..count).map(|_| Vec::new()).collect(),
            pushed: vec![false; count],
        }
    }

    fn push(&mut self, me: CoreAddr, to: CoreAddr, message: PeerMessage) {
        failpoint!("xcore_before_push");
        let index = usize::from(to.core.0);
        self.pushed[index] = true;
        if !self.overflow[index].is_empty() {
            self.overflow[index].push(message);
        } else if let Err((_, message)) = self.boxes[index].push(me, message) {
            self.overflow[index].push(message);
        }
    }

    /// Wakes the receivers of this turn's messages; `true` if some did not fit.
    fn flush(&mut self, me: CoreAddr) -> bool {
        let mut left = false;
        for (index, mailbox) in self.boxes.iter().enumerate() {
            let waiting = &mut self.overflow[index];
            let mut sent = 0;
            for message in waiting.iter() {
                if mailbox.push(me, message.clone()).is_err() {
                    break;
                }
                sent += 1;
            }
            waiting.drain(..sent);
            left |= !waiting.is_empty();
            if std::mem::take(&mut self.pushed[index]) || sent > 0 {
                mailbox.wake();
            }
        }
        left
    }
}

impl HotLoop {
    /// Runs until the node stops or the core cannot go on.
    pub(super) fn run(mut self) -> Result<(), Fatal> {
        let mut events = Vec::new();
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let timeout = self.timeout(next_tick);
            self.ring.wait(Some(timeout), &mut events).map_err(Fatal::ring)?;
            let now = wall();
            for (count, event) in events.drain(..).enumerate() {
                if count > 0 && count % EVENTS_TURN_MAX == 0 {
                    self.act(now);
                }
                self.event(event, now)?;
            }
            self.take_mail();
            self.storage.background_done(&mut self.ring, &mut self.core)?;
            self.book_saved()?;
            let instant = Instant::now();
            if instant >= next_tick {
                // Ticks that were slept through are not made up for: time did not pass for us.
                next_tick = instant + self.tick;
                self.on_tick(now);
            }
            self.act(now);
            if self.shared.stop().phase() == Phase::Stopping && self.finish_clients() {
                return self.storage.stop(&mut self.ring);
            }
            if self.storage.is_latched() {
                return Err(Fatal::new(Exit::DiskError, "the log failed", "see the log lines", ""));
            }
        }
    }

    fn timeout(&self, next_tick: Instant) -> Duration {
        if self.again || self.core.has_pending(Drain::Urgent) {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut deadline = next_tick;
        if self.core.has_pending(Drain::All)
            && let Some(seal) = self.storage.may_seal_at()
        {
            deadline = deadline.min(seal);
        }
        if self.core.is_dropping() {
            deadline = deadline.min(now + DROP_PAUSE);
        }
        deadline.saturating_duration_since(now)
    }

    fn event(&mut self, event: Event, now: WallMillis) -> Result<(), Fatal> {
        match event {
            Event::Accepted { key, fd } => self.accepted(split(key).0, fd, now),
            Event::AcceptFailed { key, error, .. } => {
                let kind = split(key).0;
                let core = self.me.core.0;
                tracing::warn!(target: "net", core, ?kind, %error, "accept failed");
            }
            Event::Received { socket, key, data } => self.received(socket, key, &data, now)?,
            Event::ReceiveClosed { socket, key, .. } | Event::SendFailed { socket, key, .. } => {
                self.socket_ended(socket, key);
            }
            Event::Sent { socket, key, chunks, bytes } => match split(key) {
                (Kind::Client, index) => self.clients.sent(index, chunks),
                (Kind::PeerOut, index) if self.out_links.socket(index) == Some(socket) => {
                    self.out_links.sent(index, bytes, chunks);
                }
                // Only a refusal is ever sent there.
                (Kind::PeerIn, _) => self.ring.close(socket),
                _ => {}
            },
            Event::Connected { key, result } => self.connected(split(key).1, result),
            Event::Written { key, result, buf } => {
                if let Some(batch) = self.storage.written(key, result, buf)? {
                    self.core.handle(Input::Persisted(batch));
                }
                self.storage.retry_reads(&mut self.ring, &mut self.core);
            }
            Event::Read { key, result, buf } => {
                let input = self.storage.read_done(key, result, buf, &mut self.ring, &self.core);
                if let Some(input) = input {
                    self.core.handle(input);
                }
            }
            Event::Closed { key, .. } => {
                if let (Kind::Client, index) = split(key) {
                    self.clients.closed(index);
                }
            }
            Event::Woken => {}
        }
        Ok(())
    }

    /// Executes what the engine wants done.
    fn act(&mut self, now: WallMillis) {
        let drain = if self.storage.may_seal(Instant::now()) { Drain::All } else { Drain::Urgent };
        let mut effects = std::mem::take(&mut self.effects);
        failpoint!("apply_before_batch");
        self.core.drain(drain, &mut effects);
        failpoint!("apply_after_batch");
        self.storage.execute(&mut effects, &mut self.core);
        self.storage.submit(&mut self.ring);
        for (to, message) in effects.sends.drain(..) {
            #[cfg(feature = "failpoints")]
            crate::failpoints::sending(&message);
            if to.node == self.me.node {
                self.siblings.push(self.me, to, message);
            } else {
                self.out_links.push(to, message);
            }
        }
        for found in effects.divergences.drain(..) {
            digests::log(self.me.core.0, &found);
        }
        for (token, reply) in effects.replies.drain(..) {
            failpoint!("reply_before_send");
            self.clients.reply(token, reply);
        }
        self.storage.read(&mut effects, &mut self.ring, &mut self.core);
        self.effects = effects;
        self.storage.upkeep(&mut self.core);
        self.flush_links();
        self.with_clients(now, |clients, ring, context| clients.flush(ring, context));
        self.again |= self.siblings.flush(self.me);
    }

    /// Does something with the client connections and what their commands need.
    fn with_clients(
        &mut self,
        now: WallMillis,
        act: impl FnOnce(&mut Clients, &mut Ring, &mut Context<'_>),
    ) {
        let (core, shared) = (&mut self.core, &*self.shared);
        let mut context = Context { core, me: self.me, shared, now };
        act(&mut self.clients, &mut self.ring, &mut context);
    }

    fn flush_links(&mut self) {
        for index in 0..self.out_links.len() {
            match self.out_links.flush(index) {
                Some(LinkAction::Send(socket, chunks)) => self.ring.send(socket, chunks),
                Some(LinkAction::Dial(address)) => {
                    let socket = self.ring.connect(key(Kind::PeerOut, index), address);
                    self.out_links.dialling(index, socket);
                }
                None => {}
            }
        }
    }

    fn take_mail(&mut self) {
        self.again = false;
        for _ in 0..MAILBOX_TURN_MAX {
            let Some((from, message)) = self.mailbox.pop() else { return };
            self.core.handle(Input::Peer { from, message });
        }
        self.again = true;
    }

    fn on_tick(&mut self, now: WallMillis) {
        self.core.handle(Input::Tick { at: now });
        for (index, socket) in self.out_links.overdue() {
            self.ring.close(socket);
            self.lost_out(index);
        }
        for (from, message) in self.out_links.tick() {
            self.core.handle(Input::Peer { from, message });
        }
        for index in 0..self.in_links.len() {
            let Some(link) = &mut self.in_links[index] else { continue };
            if link.from.is_none() {
                link.deadline_ticks = link.deadline_ticks.saturating_sub(1);
                if link.deadline_ticks == 0 {
                    self.close_in(index);
                }
            }
        }
        self.storage.tick(&mut self.ring, &mut self.core);
        self.with_clients(now, |clients, ring, context| clients.tick(ring, context));
        if self.shared.stop().phase() == Phase::Resigning {
            self.resign();
        }
        let (clients, disk) = (self.clients.usage(), self.storage.disk_use());
        self.shared.publish(self.me.core, &self.core, self.clients.open(), clients, disk);
    }

    fn accepted(&mut self, kind: Kind, fd: std::os::fd::OwnedFd, now: WallMillis) {
        if self.shared.stop().phase() == Phase::Stopping {
            return;
        }
        let via = match kind {
            Kind::PlainListener => Via::Plain,
            Kind::CoreListener => Via::Core,
            _ => return self.accepted_peer(fd),
        };
        if !self.shared.admits_client(self.me.core, self.clients.open()) {
            // Like Redis: say why, then close. A fresh socket's buffer takes the line at once.
            let text = b"-ERR max number of clients reached\r\n";
            let _ = rustix::net::send(&fd, text, rustix::net::SendFlags::DONTWAIT);
            return;
        }
        let index = self.clients.reserve();
        let session =
            Session::new(self.shared.next_client_id(), via, &fd, now, self.shared.config());
        let socket = self.ring.add_socket(key(Kind::Client, index), fd);
        self.clients.insert(index, socket, session);
        self.ring.receive(socket);
    }

    fn accepted_peer(&mut self, fd: std::os::fd::OwnedFd) {
        let free = self.in_links.iter().position(Option::is_none);
        let most = 2 * self.out_links.len() + PEERS_IN_SPARE;
        let index = match free {
            Some(index) => index,
            None if self.in_links.len() < most => {
                self.in_links.push(None);
                self.in_links.len() - 1
            }
            None => {
                tracing::warn!(target: "net", core = self.me.core.0, most, "too many peer links");
                return;
            }
        };
        let socket = self.ring.add_socket(key(Kind::PeerIn, index), fd);
        self.in_links[index] = Some(InLink {
            socket,
            decoder: Decoder::new(),
            from: None,
            hello: None,
            deadline_ticks: HELLO_TICKS,
        });
        self.ring.receive(socket);
    }

    fn received(
        &mut self,
        socket: SocketId,
        key: u64,
        data: &[u8],
        now: WallMillis,
    ) -> Result<(), Fatal> {
        match split(key) {
            (Kind::Client, index) => {
                self.with_clients(now, |clients, _, context| {
                    clients.received(index, data, context);
                });
            }
            (Kind::PeerIn, index) if self.is_in_link(index, socket) => {
                self.received_peer(index, data)?;
            }
            (Kind::PeerOut, index) => self.received_refusal(index, data)?,
            _ => {}
        }
        Ok(())
    }

    fn is_in_link(&self, index: usize, socket: SocketId) -> bool {
        self.in_links[index].as_ref().is_some_and(|link| link.socket == socket)
    }

    fn connected(&mut self, index: usize, result: std::io::Result<SocketId>) {
        let to = self.out_links.target(index);
        match result {
            Ok(socket) => {
                tracing::info!(target: "net", core = self.me.core.0, %to, "peer link up");
                self.ring.receive(socket);
                let lineage = self.handshakes.lineage().clone();
                self.out_links.connected(index, socket, lineage);
            }
            Err(error) => {
                let core = self.me.core.0;
                tracing::debug!(target: "net", core, %to, %error, "peer unreachable");
                self.lost_out(index);
            }
        }
    }

    fn socket_ended(&mut self, socket: SocketId, key: u64) {
        match split(key) {
            (Kind::Client, index) => self.clients.ended(index, &mut self.ring, &mut self.core),
            (Kind::PeerIn, index) if self.is_in_link(index, socket) => self.close_in(index),
            (Kind::PeerIn, _) => self.ring.close(socket),
            (Kind::PeerOut, index) if self.out_links.socket(index) == Some(socket) => {
                self.ring.close(socket);
                let to = self.out_links.target(index);
                tracing::warn!(target: "net", core = self.me.core.0, %to, "peer link lost");
                self.lost_out(index);
                self.core.handle(Input::PeerLost(to));
            }
            _ => {}
        }
    }

    fn lost_out(&mut self, index: usize) {
        for (from, message) in self.out_links.lost(index) {
            self.core.handle(Input::Peer { from, message });
        }
    }

    fn close_in(&mut self, index: usize) {
        self.lost_in(index);
        if let Some(link) = self.in_links[index].take() {
            self.ring.close(link.socket);
        }
    }

    /// What the other end was to answer may have been on its way.
    pub(super) fn lost_in(&mut self, index: usize) {
        if let Some(from) = self.in_links[index].as_mut().and_then(|link| link.from.take()) {
            self.core.handle(Input::PeerLost(from));
        }
    }
}
