//! The connections: where they lead, what is in flight on each, what waits for one.
//!
//! Not here: time (every call is told it), what replies mean (`driver`), the schedule (`source`).

use std::collections::VecDeque;
use std::net::SocketAddr;

use coracle_engine::{SLOT_COUNT, SlotId};
use coracle_ring::{Chunk, Ring, SocketId};

use crate::layout::Range;
use crate::meter::Meter;
use crate::options::Options;
use crate::request::{Encoder, Op, Outgoing, Pool};

/// Different owners of slots that are remembered.
const TARGETS_MAX: usize = 4096;

const RETRY_NS_MIN: u64 = 20_000_000;
const RETRY_NS_MAX: u64 = 1_000_000_000;

/// Where requests wait whose slot has no owner; has no address. Without `--cluster` the only
/// target, and it has all addresses.
const FIRST_TARGET: usize = 0;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) key: u64,
    /// Of a write: its own number. Of a read: the least number it must find.
    pub(crate) sequence: u64,
    pub(crate) intended_ns: u64,
    /// When it was sent; before that, when it was made.
    pub(crate) sent_ns: u64,
    pub(crate) op: Op,
    /// How often it was sent elsewhere.
    pub(crate) redirects: u8,
    /// The connection it was sent on; before that, 0.
    pub(crate) conn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Down { retry_at_ns: u64 },
    Connecting { since_ns: u64 },
    Open,
}

/// One connection. It always belongs to a target, also while it is down.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) target: usize,
    pub(crate) state: State,
    pub(crate) socket: Option<SocketId>,
    /// Sent or about to be, oldest first.
    pub(crate) window: VecDeque<Request>,
    /// How many of the last in `window` have not been given to the kernel.
    unsent: usize,
    out: Outgoing,
    pub(crate) sending: bool,
    /// The beginning of a reply whose rest has not arrived.
    pub(crate) partial: Vec<u8>,
    /// `partial` must be at least this long to be looked at again.
    pub(crate) partial_min: usize,
    /// Goes to this target when its window is empty; gets no new requests.
    moving_to: Option<usize>,
    /// Failures since the last success.
    failures: u32,
    /// Which of the target's addresses comes next.
    turn: usize,
    in_ready: bool,
}

/// An owner of slots, or everything.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) pending: VecDeque<Request>,
    conns: Vec<usize>,
    /// Connections that may have room, the next one first.
    ready: VecDeque<usize>,
    /// Where overfilling goes on.
    turn: usize,
    owned_slots: u32,
}

/// What was lost with a connection.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// Given to the kernel and not answered: the outcome is unknown.
    pub(crate) unknown: Vec<Request>,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) targets: Vec<Target>,
    pub(crate) conns: Vec<Conn>,
    /// Target of each slot; `None` without `--cluster`.
    owners: Option<Vec<u16>>,
    /// Connections with bytes to send.
    dirty: Vec<usize>,
    pool: Pool,
    pipeline: usize,
    /// A closed loop over several owners keeps the total exact, not the depth of each pipeline.
    overfill: bool,
    pub(crate) in_flight: usize,
    pub(crate) backlog: usize,
}

impl Fleet {
    /// Connections that all lead to any of `addrs`.
    pub(crate) fn plain(options: &Options, addrs: Vec<SocketAddr>) -> Self {
        let count = options.connections.max(addrs.len());
        let mut fleet = Self::empty(options, None);
        fleet.targets.push(Target::new(addrs));
        for turn in 0..count {
            fleet.add_conn(FIRST_TARGET, turn);
        }
        fleet
    }

    /// Connections to the owners of slots.
    pub(crate) fn cluster(options: &Options, ranges: &[Range]) -> Self {
        let owners = vec![FIRST_TARGET as u16; usize::from(SLOT_COUNT)];
        let mut fleet = Self::empty(options, Some(owners));
        fleet.overfill = options.rate.is_none();
        fleet.targets.push(Target::new(Vec::new()));
        fleet.own(ranges);
        let owning: Vec<usize> = fleet.owning().collect();
        for n in 0..options.connections.max(owning.len()) {
            if let Some(&target) = owning.get(n % owning.len().max(1)) {
                fleet.add_conn(target, 0);
            }
        }
        fleet
    }

    fn empty(options: &Options, owners: Option<Vec<u16>>) -> Self {
        Self {
            targets: Vec::new(),
            conns: Vec::new(),
            owners,
            dirty: Vec::new(),
            pool: Pool::default(),
            pipeline: options.pipeline,
            overfill: false,
            in_flight: 0,
            backlog: 0,
        }
    }

    pub(crate) const fn is_cluster(&self) -> bool {
        self.owners.is_some()
    }

    pub(crate) fn open_count(&self) -> usize {
        self.conns.iter().filter(|conn| conn.state == State::Open).count()
    }

    /// Every known address, for asking who owns what.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.targets.iter().flat_map(|target| target.addrs.iter().copied())
    }

    /// Lets a request wait for a connection to the owner of its key.
    pub(crate) fn enqueue(&mut self, request: Request, encoder: &mut Encoder) {
        let target = match &self.owners {
            None => FIRST_TARGET,
            Some(owners) => {
                encoder.set_key(request.key);
                usize::from(owners[usize::from(encoder.slot().get())])
            }
        };
        self.targets[target].pending.push_back(request);
        self.backlog += 1;
    }

    /// Gives waiting requests to connections with room and starts the sends.
    pub(crate) fn dispatch(
        &mut self,
        ring: &mut Ring,
        encoder: &mut Encoder,
        meter: &mut Meter,
        now_ns: u64,
    ) {
        for target in 0..self.targets.len() {
            if !self.targets[target].pending.is_empty() {
                self.fill(target, encoder, meter, now_ns);
            }
        }
        while let Some(index) = self.dirty.pop() {
            let conn = &mut self.conns[index];
            if let Some(socket) = conn.socket
                && conn.state == State::Open
                && !conn.sending
                && conn.out.len() > 0
            {
                meter.sent(conn.out.len(), now_ns);
                ring.send(socket, conn.out.take(&mut self.pool));
                conn.sending = true;
                conn.unsent = 0;
            }
        }
    }

    /// Takes the oldest unanswered request of a connection: its reply has arrived.
    pub(crate) fn pop(&mut self, index: usize) -> Option<Request> {
        let conn = &mut self.conns[index];
        // A reply to something that was never sent is no reply.
        if conn.window.len() == conn.unsent {
            return None;
        }
        let request = conn.window.pop_front()?;
        self.in_flight -= 1;
        self.make_ready(index);
        Some(request)
    }

    /// A send of this connection is complete.
    pub(crate) fn sent(&mut self, index: usize, chunks: Vec<Chunk>) {
        self.pool.give_back(chunks);
        self.conns[index].sending = false;
        self.dirty.push(index);
    }

    /// Starts connecting everything that is due.
    pub(crate) fn connect_due(&mut self, ring: &mut Ring, now_ns: u64) {
        for index in 0..self.conns.len() {
            let State::Down { retry_at_ns } = self.conns[index].state else { continue };
            if retry_at_ns > now_ns {
                continue;
            }
            self.leave_ownerless(index);
            let conn = &mut self.conns[index];
            let addrs = &self.targets[conn.target].addrs;
            if !addrs.is_empty() {
                let addr = addrs[conn.turn % addrs.len()];
                conn.socket = Some(ring.connect(index as u64, addr));
                conn.state = State::Connecting { since_ns: now_ns };
            }
        }
    }

    /// A connect succeeded.
    pub(crate) fn opened(&mut self, index: usize, socket: SocketId) {
        let conn = &mut self.conns[index];
        conn.socket = Some(socket);
        conn.state = State::Open;
        conn.failures = 0;
        self.make_ready(index);
    }

    /// Gives a connection up. What was not sent waits for another one; what was sent and not
    /// answered is returned.
    pub(crate) fn lose(&mut self, index: usize, ring: &mut Ring, now_ns: u64) -> Lost {
        let conn = &mut self.conns[index];
        if let Some(socket) = conn.socket.take() {
            ring.close(socket);
        }
        let delay = (RETRY_NS_MIN << conn.failures.min(10)).min(RETRY_NS_MAX);
        conn.state = State::Down { retry_at_ns: now_ns + delay };
        conn.failures += 1;
        conn.turn += 1;
        conn.sending = false;
        conn.partial.clear();
        conn.partial_min = 0;
        conn.out.clear(&mut self.pool);
        self.in_flight -= conn.window.len();
        let sent = conn.window.len() - std::mem::take(&mut conn.unsent);
        let unknown = conn.window.drain(..sent).collect();
        let target = &mut self.targets[conn.target];
        while let Some(request) = conn.window.pop_back() {
            target.pending.push_front(request);
            self.backlog += 1;
        }
        self.finish_move(index, now_ns);
        Lost { unknown }
    }

    /// Requests that waited since before `before_ns` leave the queues.
    pub(crate) fn expire(&mut self, before_ns: u64) -> Vec<Request> {
        let mut expired = Vec::new();
        for target in &mut self.targets {
            while let Some(first) = target.pending.front()
                && first.intended_ns < before_ns
            {
                expired.extend(target.pending.pop_front());
            }
        }
        self.backlog -= expired.len();
        expired
    }

    /// A new owner of one slot, told by `MOVED`; `None` when it cannot be known yet.
    pub(crate) fn moved(&mut self, slot: SlotId, owner: Option<SocketAddr>, now_ns: u64) {
        let target = owner.and_then(|addr| self.target_of(addr)).unwrap_or(FIRST_TARGET);
        self.set_owner(slot, target);
        self.spread(now_ns);
    }

    /// A new layout: everything that waits is routed anew.
    pub(crate) fn relocate(&mut self, ranges: &[Range], encoder: &mut Encoder, now_ns: u64) {
        self.own(ranges);
        self.spread(now_ns);
        let waiting: Vec<Request> =
            self.targets.iter_mut().flat_map(|target| target.pending.drain(..)).collect();
        self.backlog -= waiting.len();
        for request in waiting {
            self.enqueue(request, encoder);
        }
    }

    /// Moves connections that only waited for their last answer.
    pub(crate) fn finish_moves(&mut self, ring: &mut Ring, now_ns: u64) {
        for index in 0..self.conns.len() {
            let conn = &self.conns[index];
            if conn.moving_to.is_some() && conn.window.is_empty() {
                let lost = self.lose(index, ring, now_ns);
                debug_assert!(lost.unknown.is_empty(), "the window was empty");
            }
        }
    }

    /// Everything that waits, taken out.
    pub(crate) fn take_pending(&mut self) -> Vec<Request> {
        self.backlog = 0;
        self.targets.iter_mut().flat_map(|target| target.pending.drain(..)).collect()
    }

    fn fill(&mut self, index: usize, encoder: &mut Encoder, meter: &mut Meter, now_ns: u64) {
        while !self.targets[index].pending.is_empty() {
            let Some(chosen) = self.pick(index) else { break };
            let conn = &mut self.conns[chosen];
            let Some(mut request) = self.targets[index].pending.pop_front() else { break };
            if request.sent_ns == now_ns {
                // Made in this turn and there is room: any delay is the generator's.
                meter.lagged(request.intended_ns, now_ns);
            }
            request.sent_ns = now_ns;
            request.conn = chosen as u32;
            encoder.set_key(request.key);
            match request.op {
                Op::Read => encoder.read(&mut conn.out),
                Op::Write => {
                    encoder.write(request.key, request.sequence, &mut conn.out, &mut self.pool);
                }
            }
            if conn.unsent == 0 && !conn.sending {
                self.dirty.push(chosen);
            }
            conn.window.push_back(request);
            conn.unsent += 1;
            self.backlog -= 1;
            self.in_flight += 1;
        }
        // The next turn begins with the next connection.
        if let Some(used) = self.targets[index].ready.pop_front() {
            self.targets[index].ready.push_back(used);
        }
    }

    fn pick(&mut self, index: usize) -> Option<usize> {
        let target = &mut self.targets[index];
        while let Some(&first) = target.ready.front() {
            let conn = &mut self.conns[first];
            if conn.is_usable() && conn.window.len() < self.pipeline {
                return Some(first);
            }
            conn.in_ready = false;
            target.ready.pop_front();
        }
        if !self.overfill {
            return None;
        }
        let count = target.conns.len();
        for _ in 0..count {
            target.turn = (target.turn + 1) % count;
            let chosen = target.conns[target.turn];
            if self.conns[chosen].is_usable() {
                return Some(chosen);
            }
        }
        None
    }

    fn make_ready(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if !conn.in_ready && conn.is_usable() && conn.window.len() < self.pipeline {
            conn.in_ready = true;
            self.targets[conn.target].ready.push_back(index);
        }
    }

    fn add_conn(&mut self, target: usize, turn: usize) {
        let index = self.conns.len();
        self.targets[target].conns.push(index);
        self.conns.push(Conn {
            target,
            state: State::Down { retry_at_ns: 0 },
            socket: None,
            window: VecDeque::new(),
            unsent: 0,
            out: Outgoing::default(),
            sending: false,
            partial: Vec::new(),
            partial_min: 0,
            moving_to: None,
            failures: 0,
            turn,
            in_ready: false,
        });
    }

    fn own(&mut self, ranges: &[Range]) {
        for range in ranges {
            let Some(target) = self.target_of(range.owner) else { continue };
            for raw in range.first.get()..=range.last.get() {
                if let Some(slot) = SlotId::new(raw) {
                    self.set_owner(slot, target);
                }
            }
        }
    }

    fn set_owner(&mut self, slot: SlotId, target: usize) {
        let Some(owners) = &mut self.owners else { return };
        let owner = &mut owners[usize::from(slot.get())];
        let before = usize::from(*owner);
        *owner = u16::try_from(target).expect("there are at most TARGETS_MAX");
        let slots = &mut self.targets[before].owned_slots;
        *slots = slots.saturating_sub(1);
        self.targets[target].owned_slots += 1;
    }

    /// The target of an address, made if it is new; `None` if there are too many.
    fn target_of(&mut self, addr: SocketAddr) -> Option<usize> {
        let known = self.targets.iter().position(|target| target.addrs.contains(&addr));
        if known.is_none() && self.targets.len() < TARGETS_MAX {
            self.targets.push(Target::new(vec![addr]));
            return Some(self.targets.len() - 1);
        }
        known
    }

    /// The targets that own slots and can be reached.
    fn owning(&self) -> impl Iterator<Item = usize> {
        let owns = |target: &Target| target.owned_slots > 0 && !target.addrs.is_empty();
        (0..self.targets.len()).filter(move |&index| owns(&self.targets[index]))
    }

    /// Gives every owner of slots a connection: one of an endpoint that owns nothing any more,
    /// else one of the endpoint with the most, else a new one.
    fn spread(&mut self, now_ns: u64) {
        let bare: Vec<usize> =
            self.owning().filter(|&target| self.future_conns(target).next().is_none()).collect();
        for target in bare {
            match self.spare_conn() {
                Some(index) => {
                    self.conns[index].moving_to = Some(target);
                    if self.conns[index].socket.is_none() {
                        self.finish_move(index, now_ns);
                    }
                }
                None => self.add_conn(target, 0),
            }
        }
    }

    fn future_conns(&self, target: usize) -> impl Iterator<Item = usize> {
        (0..self.conns.len()).filter(move |&index| {
            let conn = &self.conns[index];
            conn.moving_to.unwrap_or(conn.target) == target
        })
    }

    fn spare_conn(&self) -> Option<usize> {
        let settled = |target| {
            self.future_conns(target).filter(|&index| self.conns[index].moving_to.is_none())
        };
        let crowd = |target: &usize| {
            let owns = self.targets[*target].owned_slots > 0;
            let count = settled(*target).count();
            if owns { count.saturating_sub(1) } else { count * Options::CONNECTIONS_MAX }
        };
        let donor = (0..self.targets.len()).max_by_key(crowd)?;
        if crowd(&donor) == 0 { None } else { settled(donor).last() }
    }

    /// A connection that is down and whose target owns nothing goes where there is work.
    fn leave_ownerless(&mut self, index: usize) {
        let here = self.conns[index].target;
        if !self.is_cluster() || self.targets[here].owned_slots > 0 {
            return;
        }
        if let Some(target) = self.owning().min_by_key(|&target| self.future_conns(target).count())
        {
            self.conns[index].moving_to = Some(target);
            self.finish_move(index, 0);
        }
    }

    fn finish_move(&mut self, index: usize, retry_at_ns: u64) {
        let conn = &mut self.conns[index];
        let Some(target) = conn.moving_to.take() else { return };
        let before = std::mem::replace(&mut conn.target, target);
        conn.state = State::Down { retry_at_ns };
        conn.failures = 0;
        conn.in_ready = false;
        self.targets[before].ready.retain(|&other| other != index);
        self.targets[before].conns.retain(|&other| other != index);
        self.targets[target].conns.push(index);
    }
}

impl Conn {
    const fn is_usable(&self) -> bool {
        matches!(self.state, State::Open) && self.moving_to.is_none()
    }
}

impl Target {
    fn new(addrs: Vec<SocketAddr>) -> Self {
        Self {
            addrs,
            pending: VecDeque::new(),
            conns: Vec::new(),
            ready: VecDeque::new(),
            turn: 0,
            owned_slots: 0,
        }
    }
}
