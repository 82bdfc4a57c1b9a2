//! Links between the cores of different nodes: real frames, really encoded and decoded.
//!
//! A link is one direction of a core pair, a connection that its sender dials. Its bytes arrive
//! in order or not at all. With datagrams on, consensus messages leave the stream and may be
//! lost, doubled or overtaken: raft has to stand that whatever carries it.

use std::collections::{BTreeMap, BTreeSet};

use coracle_engine::{CoreAddr, PeerMessage};
use coracle_net::frame::{self, Decoder, FrameBuf, Hello, Incoming};
use coracle_net::peers::Lineage;

use crate::plan::{MS, NetPlan};
use crate::queue::Micros;
use crate::rng::Rng;

/// Frames that a cut holds back before the connection breaks.
const HELD_MAX: usize = 2000;
/// Number of the simulated cluster.
pub(crate) const CLUSTER_ID: u128 = 0xC0_4A_C1_E5;

/// One direction of a pair of cores.
pub(crate) struct Link {
    pub(crate) from: CoreAddr,
    pub(crate) to: CoreAddr,
    /// Counts connections and their ends; frames of another one are nobody's.
    pub(crate) epoch: u64,
    /// A connection whose sender died, until its receiver learns that: what the sender had
    /// handed to its kernel still arrives.
    orphan: Option<u64>,
    state: State,
    decoder: Decoder,
    greeted: bool,
    /// Its receiver has to write this down before it takes anything else.
    pub(crate) hello: Option<Hello>,
    /// What arrived since.
    waiting: Vec<Frame>,
    due: Micros,
    held: Vec<Frame>,
    backoff: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down {
        until: Micros,
    },
    Up,
    /// Dead, and the sender does not know it yet.
    Broken,
}

/// Bytes on their way.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) link: usize,
    pub(crate) epoch: u64,
    bytes: Vec<u8>,
    datagram: bool,
    /// What it held before its bytes were changed.
    damaged: Option<Vec<PeerMessage>>,
}

/// What a frame turned out to be at its receiver.
pub(crate) enum Arrived {
    Messages(CoreAddr, Vec<PeerMessage>),
    /// A hello that is to be judged.
    Hello,
    Nothing,
    /// The bytes make no sense: the receiver closes the link.
    Refused,
    /// Changed bytes were taken for messages that nobody sent.
    Forged(String),
}

/// All links.
pub(crate) struct Network {
    pub(crate) links: Vec<Link>,
    plan: NetPlan,
    hosts: usize,
    /// Directions between nodes, by place, in which nothing passes, and how many faults see to
    /// that.
    cut: BTreeMap<(usize, usize), u32>,
    /// Nodes whose messages take this much longer.
    slow: Vec<Micros>,
    pub(crate) corrupting: bool,
    /// No faults at all between these nodes.
    pub(crate) spared: BTreeSet<usize>,
    rng: Rng,
    buffer: FrameBuf,
    cores: usize,
    pub(crate) frames: u64,
    pub(crate) frames_lost: u64,
}

impl Network {
    pub(crate) fn new(seed: u64, plan: NetPlan, addrs: &[CoreAddr], cores: usize) -> Self {
        let mut links = Vec::new();
        for &from in addrs {
            for &to in addrs {
                links.push(Link {
                    from,
                    to,
                    epoch: 0,
                    orphan: None,
                    state: State::Down { until: 0 },
                    decoder: Decoder::new(),
                    greeted: false,
                    hello: None,
                    waiting: Vec::new(),
                    due: 0,
                    held: Vec::new(),
                    backoff: 0,
                });
            }
        }
        Self {
            links,
            plan,
            hosts: addrs.len(),
            cut: BTreeMap::new(),
            slow: vec![0; addrs.len() / cores],
            corrupting: false,
            spared: BTreeSet::new(),
            rng: Rng::new(seed, "net"),
            buffer: FrameBuf::new(),
            cores,
            frames: 0,
            frames_lost: 0,
        }
    }

    /// The link between two hosts.
    pub(crate) const fn link(&self, from: usize, to: usize) -> usize {
        from * self.hosts + to
    }

    const fn ends(&self, link: usize) -> (usize, usize) {
        (link / self.hosts, link % self.hosts)
    }

    /// The hosts at the ends of all links between two nodes, both directions.
    pub(crate) fn links_between(&self, a: usize, b: usize) -> Vec<usize> {
        let node = |host: usize| host / self.cores;
        (0..self.links.len())
            .filter(|&link| {
                let (from, to) = self.ends(link);
                (node(from), node(to)) == (a, b) || (node(from), node(to)) == (b, a)
            })
            .collect()
    }

    /// Lets nothing pass from one node to another, until [`Network::heal`] has been called as
    /// often.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            *self.cut.entry((from, to)).or_default() += 1;
        }
    }

    /// Ends one cut. If it was the last one of this direction, messages pass again: returns links
    /// that broke, and frames that were held back.
    pub(crate) fn heal(&mut self, from: usize, to: usize) -> (Vec<usize>, Vec<Frame>) {
        let (mut broken, mut late) = (Vec::new(), Vec::new());
        match self.cut.get_mut(&(from, to)) {
            Some(cuts) if *cuts > 1 => {
                *cuts -= 1;
                return (broken, late);
            }
            Some(_) => drop(self.cut.remove(&(from, to))),
            None => return (broken, late),
        }
        for link in self.links_between(from, to) {
            let (a, b) = self.ends(link);
            if (a / self.cores, b / self.cores) != (from, to) || self.links[link].held.is_empty() {
                continue;
            }
            let held = std::mem::take(&mut self.links[link].held);
            if self.rng.chance(0.5) {
                broken.push(link);
            } else {
                late.extend(held);
            }
        }
        (broken, late)
    }

    /// Whether messages pass between two nodes, both ways.
    pub(crate) fn is_joined(&self, a: usize, b: usize) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// All cuts; a direction that is cut several times is there several times.
    pub(crate) fn cuts(&self) -> Vec<(usize, usize)> {
        let cuts = self.cut.iter();
        cuts.flat_map(|(&pair, &count)| std::iter::repeat_n(pair, count as usize)).collect()
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains_key(&(from, to))
    }

    pub(crate) fn set_slow(&mut self, node: usize, more: Micros) {
        self.slow[node] = more;
    }

    /// Whether a connection can be made now.
    fn reachable(&self, link: usize) -> bool {
        let (from, to) = self.ends(link);
        self.is_joined(from / self.cores, to / self.cores)
    }

    /// Dials if needed; whether messages can be handed to the link.
    pub(crate) fn connect(
        &mut self,
        link: usize,
        now: Micros,
        peer_is_up: bool,
        lineage: &Lineage,
    ) -> Option<Frame> {
        let State::Down { until } = self.links[link].state else { return None };
        if now < until || !peer_is_up || !self.reachable(link) {
            return None;
        }
        let (from, to) = (self.links[link].from, self.links[link].to);
        let (version, lineage) = (frame::VERSION, lineage.clone());
        let hello = Hello { version, cluster_id: CLUSTER_ID, from, to, lineage };
        frame::encode_hello(&hello, &mut self.buffer);
        let bytes = self.take_bytes();
        let state = &mut self.links[link];
        state.epoch += 1;
        state.state = State::Up;
        state.decoder = Decoder::new();
        state.greeted = false;
        state.end_handshake();
        state.due = now;
        state.held.clear();
        Some(Frame { link, epoch: state.epoch, bytes, datagram: false, damaged: None })
    }

    /// Whether the link is down and its sender knows it.
    pub(crate) fn is_down(&self, link: usize) -> bool {
        matches!(self.links[link].state, State::Down { .. })
    }

    /// The connections that ended without their senders knowing it yet.
    pub(crate) fn broken(&self) -> Vec<usize> {
        let broken = |&link: &usize| self.links[link].state == State::Broken;
        (0..self.links.len()).filter(broken).collect()
    }

    /// Encodes messages for a link that is not down.
    pub(crate) fn encode(&mut self, link: usize, messages: Vec<PeerMessage>) -> Vec<Frame> {
        if self.links[link].state != State::Up {
            self.frames_lost += 1;
            return Vec::new();
        }
        let mut frames = Vec::new();
        if self.plan.datagrams {
            let is_raft = |m: &PeerMessage| matches!(m, PeerMessage::Raft { .. });
            let (single, stream): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_raft);
            for message in single {
                frames.push(self.frame(link, vec![message], true));
            }
            if !stream.is_empty() {
                frames.push(self.frame(link, stream, false));
            }
        } else {
            frames.push(self.frame(link, messages, false));
        }
        frames
    }

    fn frame(&mut self, link: usize, messages: Vec<PeerMessage>, datagram: bool) -> Frame {
        frame::encode(&messages, &mut self.buffer).expect("simulated messages are small");
        let mut bytes = self.take_bytes();
        self.frames += 1;
        let mut damaged = None;
        let corrupt = self.corrupting && !self.is_spared(link);
        if corrupt && self.rng.chance(self.plan.corrupt) {
            let at = self.rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= (self.rng.next() as u8).max(1);
            damaged = Some(messages);
        }
        Frame { link, epoch: self.links[link].epoch, bytes, datagram, damaged }
    }

    fn take_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.buffer.total_len());
        for part in self.buffer.take_parts() {
            bytes.extend_from_slice(part.bytes());
        }
        bytes
    }

    fn is_spared(&self, link: usize) -> bool {
        let (from, to) = self.ends(link);
        let spared = |host: usize| self.spared.contains(&(host / self.cores));
        spared(from) && spared(to)
    }

    /// When a frame arrives: never, once, or twice. Broken: the connection gives up.
    pub(crate) fn travel(&mut self, frame: Frame, now: Micros) -> Travel {
        let link = frame.link;
        let (from, to) = self.ends(link);
        let (from, to) = (from / self.cores, to / self.cores);
        if self.is_cut(from, to) {
            self.frames_lost += 1;
            if frame.datagram {
                return Travel::default();
            }
            self.links[link].held.push(frame);
            let broken = self.links[link].held.len() > HELD_MAX;
            return Travel { arrivals: Vec::new(), broken };
        }
        let spared = self.is_spared(link);
        let (shortest, longest) = self.plan.delay;
        let mut way = self.rng.between(shortest, longest);
        if !spared {
            if self.rng.chance(self.plan.spikes) {
                way *= self.rng.between(2, 100);
            }
            way += self.slow[from] + self.slow[to];
        }
        // In peace nothing is overtaken either.
        if !frame.datagram || spared {
            let state = &mut self.links[link];
            state.due = state.due.max(now + way);
            return Travel { arrivals: vec![(state.due, frame)], broken: false };
        }
        if !spared && self.rng.chance(self.plan.loss) {
            self.frames_lost += 1;
            return Travel::default();
        }
        if !spared && self.rng.chance(self.plan.reorder) {
            way += self.rng.between(0, 20 * MS);
        }
        let mut arrivals = Vec::with_capacity(1);
        if !spared && self.rng.chance(self.plan.duplicates) {
            let longest = if self.rng.chance(0.1) { 3000 * MS } else { 300 * MS };
            let later = way + self.rng.between(0, longest);
            arrivals.push((now + later, frame.copy()));
        }
        arrivals.push((now + way, frame));
        Travel { arrivals, broken: false }
    }

    /// Decodes a frame at its receiver.
    pub(crate) fn arrive(&mut self, frame: Frame) -> Arrived {
        let link = &mut self.links[frame.link];
        if link.orphan == Some(frame.epoch) {
            return last_words(link.from, frame);
        }
        if frame.epoch != link.epoch || link.state != State::Up {
            return Arrived::Nothing;
        }
        if frame.datagram && !link.greeted {
            self.frames_lost += 1;
            return Arrived::Nothing;
        }
        if link.hello.is_some() {
            link.waiting.push(frame);
            return Arrived::Nothing;
        }
        let mut own = Decoder::new();
        let decoder = if frame.datagram { &mut own } else { &mut link.decoder };
        decoder.push(&frame.bytes);
        // Large messages make several frames on the wire.
        let mut received = Vec::new();
        let ended = loop {
            match decoder.next() {
                Ok(Some(Incoming::Messages(messages))) if link.greeted => {
                    received.extend(messages);
                }
                Ok(Some(Incoming::Hello(hello))) if !link.greeted && received.is_empty() => {
                    let fits = (hello.cluster_id, hello.from, hello.to)
                        == (CLUSTER_ID, link.from, link.to);
                    link.hello = fits.then_some(hello);
                    return if fits { Arrived::Hello } else { Arrived::Refused };
                }
                other => break other,
            }
        };
        match (ended, frame.damaged) {
            (Ok(None), None) if !received.is_empty() => Arrived::Messages(link.from, received),
            (Ok(None), Some(sent)) if sent == received => Arrived::Messages(link.from, received),
            // What came whole before the damage may be used or not.
            (_, Some(sent)) if sent.starts_with(&received) => Arrived::Refused,
            (_, Some(sent)) => Arrived::Forged(format!("sent {sent:?}, received {received:?}")),
            (got, None) => Arrived::Forged(format!("an intact frame decodes to {got:?}")),
        }
    }

    /// The hello of a link was accepted. Returns what has arrived meanwhile.
    pub(crate) fn greet(&mut self, link: usize) -> Vec<Frame> {
        let link = &mut self.links[link];
        link.greeted = true;
        link.hello = None;
        std::mem::take(&mut link.waiting)
    }

    /// The connection of a link ends. Whether there was one.
    pub(crate) fn break_link(&mut self, link: usize) -> bool {
        let state = &mut self.links[link];
        state.orphan = None;
        if state.state != State::Up {
            return false;
        }
        state.epoch += 1;
        state.state = State::Broken;
        state.end_handshake();
        state.held.clear();
        true
    }

    /// The sender has learned that its connection ended. Whether that was news.
    pub(crate) fn sender_knows(&mut self, link: usize, epoch: u64, now: Micros) -> bool {
        let state = &mut self.links[link];
        if state.state != State::Broken || state.epoch != epoch {
            return false;
        }
        state.backoff = (state.backoff * 2).clamp(50 * MS, 1000 * MS);
        state.state = State::Down { until: now + state.backoff };
        true
    }

    /// The sender is gone, and its next process knows nothing of old connections. What is on the
    /// way arrives until [`Network::receiver_knows`]. Returns the connection that is over, and
    /// when the last of its bytes arrive.
    pub(crate) fn forget(&mut self, link: usize) -> (u64, Micros) {
        let state = &mut self.links[link];
        let over = state.epoch;
        state.orphan = (state.state == State::Up && state.greeted).then_some(over);
        state.epoch += 1;
        state.state = State::Down { until: 0 };
        state.backoff = 0;
        state.end_handshake();
        state.held.clear();
        (over, state.due)
    }

    /// The receiver has learned that the connection of a dead sender is over.
    pub(crate) fn receiver_knows(&mut self, link: usize, epoch: u64) {
        let state = &mut self.links[link];
        if state.orphan == Some(epoch) {
            state.orphan = None;
        }
    }

    /// A message came through: the next attempt after a loss is made soon.
    pub(crate) fn works(&mut self, link: usize) {
        self.links[link].backoff = 0;
    }
}

impl Link {
    fn end_handshake(&mut self) {
        self.hello = None;
        self.waiting.clear();
    }
}

/// A frame of a sender that has died since. Damage to it is nothing that a dead link could show.
fn last_words(from: CoreAddr, frame: Frame) -> Arrived {
    let mut decoder = Decoder::new();
    decoder.push(&frame.bytes);
    let mut received = Vec::new();
    while let Ok(Some(Incoming::Messages(messages))) = decoder.next() {
        received.extend(messages);
    }
    match frame.damaged {
        None if !received.is_empty() => Arrived::Messages(from, received),
        _ => Arrived::Nothing,
    }
}

/// Where a frame goes.
#[derive(Default)]
pub(crate) struct Travel {
    pub(crate) arrivals: Vec<(Micros, Frame)>,
    pub(crate) broken: bool,
}

impl Frame {
    fn copy(&self) -> Self {
        Self {
            link: self.link,
            epoch: self.epoch,
            bytes: self.bytes.clone(),
            datagram: self.datagram,
            damaged: self.damaged.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
