//! Hellos: who is met, who is refused, and what is kept of it on disk. The same judgement as in
//! the node (`coracle_net::peers`), and the same order: a start that is new is written down
//! durably before anything else is taken from its link.

use coracle_engine::CoreAddr;
use coracle_net::peers::{Lineage, Meeting, PeerBook, Start};
use coracle_raft::NodeId;

use crate::host::Arrival;
use crate::plan::MS;
use crate::report::Failure;
use crate::world::{Event, Step, World};

/// How often a supervisor starts a node that is refused because of its disk.
const REFUSED_STARTS: u32 = 3;

/// What one core knows of the other nodes.
#[derive(Debug, Default)]
pub(crate) struct Acquaintances {
    pub(crate) book: PeerBook,
    /// What is durable of it.
    pub(crate) durable: Vec<(NodeId, Start)>,
    /// A version of the book is being written.
    saving: bool,
}

impl Acquaintances {
    /// Those of a new process on the same disk.
    pub(crate) fn restart(&mut self) {
        self.book = PeerBook::new(self.durable.iter().copied());
        self.saving = false;
    }

    /// The start of a node that is durably known.
    pub(crate) fn durably_known(&self, node: NodeId) -> Option<Start> {
        self.durable.iter().find(|(known, _)| *known == node).map(|(_, start)| *start)
    }
}

impl World {
    /// Whether a core belongs to a node that may have forgotten what it promised. Nothing holds
    /// for its replicas: leaders that count on what it had may make it commit anything. It must
    /// only not be listened to.
    pub(crate) fn is_amnesiac(&self, addr: CoreAddr) -> bool {
        self.nodes[self.node_of_addr(addr)].amnesiac
    }

    /// A node is about to talk to others.
    pub(crate) fn count_start(&mut self, node: usize) {
        let nonce = self.rng.next();
        match &mut self.nodes[node].lineage {
            Some(lineage) => lineage.start(nonce),
            none => *none = Some(Lineage::new(self.rng.next(), nonce)),
        }
    }

    /// Dials if the link is down and may be dialled.
    pub(crate) fn dial(&mut self, host: usize, target: usize) {
        let link = self.net.link(host, target);
        let peer_is_up = self.nodes[self.node_of(target)].up;
        let node = self.node_of(host);
        let Some(lineage) = &self.nodes[node].lineage else { return };
        if let Some(hello) = self.net.connect(link, self.now, peer_is_up, lineage) {
            self.travel(hello);
        }
    }

    /// Dials whoever can be reached, even if nothing is to be said: peers that have never met a
    /// node cannot tell that its disk is another one.
    pub(crate) fn dial_all(&mut self, host: usize) {
        let own = self.hosts_of(self.node_of(host));
        for target in (0..self.hosts.len()).filter(|target| !own.contains(target)) {
            self.dial(host, target);
        }
    }

    /// Judges the hello that waits on a link.
    pub(crate) fn meet(&mut self, link: usize) -> Step {
        let (from, to) = (self.net.links[link].from, self.net.links[link].to);
        let (sender, host) = (self.host_at(from), self.host_at(to));
        let Some(hello) = &self.net.links[link].hello else { return Ok(()) };
        match self.hosts[host].acquaintances.book.meet(from.node, &hello.lineage) {
            Ok(Meeting::Known) => {
                for frame in self.net.greet(link) {
                    self.take_frame(host, frame)?;
                }
            }
            Ok(Meeting::News) => self.save_book(host),
            Err(amnesia) => {
                let text = amnesia.to_string();
                self.trace.node(self.now, to, "Refuse", text.clone());
                self.break_link(link);
                let (life, by) = (self.hosts[sender].life, self.node_of(host));
                let arrival = Arrival::PeerRefused { by, text };
                let soon = self.now + self.rng.between(50, 5 * MS);
                self.queue.push(soon, Event::Arrive { host: sender, life, arrival });
            }
        }
        Ok(())
    }

    fn save_book(&mut self, host: usize) {
        let state = &mut self.hosts[host].acquaintances;
        if !state.saving && !state.book.is_saved() {
            state.saving = true;
            let (version, starts) = (state.book.version(), state.book.starts().collect());
            self.plan_disk(host, Arrival::BookSaved { version, starts });
        }
    }

    /// A version of a core's book has become durable.
    pub(crate) fn book_saved(
        &mut self,
        host: usize,
        version: u64,
        starts: Vec<(NodeId, Start)>,
    ) -> Step {
        let state = &mut self.hosts[host].acquaintances;
        state.durable = starts;
        state.saving = false;
        state.book.saved(version);
        self.save_book(host);
        for other in 0..self.hosts.len() {
            self.meet(self.net.link(other, host))?;
        }
        Ok(())
    }

    /// Another node refuses this one because of its disk. The error ends the process.
    pub(crate) fn peer_refused(
        &mut self,
        host: usize,
        by: usize,
        text: String,
    ) -> Result<Result<(), String>, Failure> {
        let node = self.node_of(host);
        let peers = self.nodes.len() - 1;
        let state = &mut self.nodes[node];
        if !state.amnesiac {
            return Err(self.failure("refusal", format!("a node with its own disk: {text}")));
        }
        state.refused_by.insert(by);
        if 2 * state.refused_by.len() <= peers {
            return Ok(Ok(()));
        }
        state.refused_starts += 1;
        if state.refused_starts >= REFUSED_STARTS {
            self.counters.refusals += 1;
            state.refused = Some(text.clone());
        }
        Ok(Err(text))
    }
}
