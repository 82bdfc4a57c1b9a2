//! Messages on their way between cores: into mailboxes, onto links, off them.

use std::collections::BTreeMap;

use coracle_engine::{CoreAddr, Input, PeerMessage};

use crate::host::Arrival;
use crate::network::{Arrived, Frame};
use crate::plan::MS;
use crate::world::{Event, Step, World};

impl World {
    /// Hands messages to the mailboxes of the same node and to the links.
    pub(crate) fn send(
        &mut self,
        host: usize,
        sends: impl Iterator<Item = (CoreAddr, PeerMessage)>,
    ) {
        let from = self.hosts[host].addr;
        let mut remote: BTreeMap<usize, Vec<PeerMessage>> = BTreeMap::new();
        for (to, message) in sends {
            let target = self.host_at(to);
            if to.node == from.node {
                let life = self.hosts[target].life;
                let arrival = Arrival::Mail(from, message);
                self.queue.push(self.now + 1, Event::Arrive { host: target, life, arrival });
            } else {
                remote.entry(target).or_default().push(message);
            }
        }
        for (target, messages) in remote {
            self.send_remote(host, target, messages);
        }
    }

    fn send_remote(&mut self, host: usize, target: usize, messages: Vec<PeerMessage>) {
        let link = self.net.link(host, target);
        self.dial(host, target);
        if self.net.is_down(link) {
            // Forwarded commands were certainly not executed; the rest is repeated anyway.
            let (to, life) = (self.hosts[target].addr, self.hosts[host].life);
            for message in messages {
                if let PeerMessage::Forward(forward) = message {
                    let arrival = Arrival::NotSent { to, id: forward.id };
                    let event = Event::Arrive { host, life, arrival };
                    self.queue.push(self.now + self.plan.tick, event);
                }
            }
            return;
        }
        for frame in self.net.encode(link, messages) {
            self.travel(frame);
        }
    }

    /// Puts a frame on its way.
    pub(crate) fn travel(&mut self, frame: Frame) {
        let link = frame.link;
        let travel = self.net.travel(frame, self.now);
        for (at, frame) in travel.arrivals {
            let host = self.host_at(self.net.links[link].to);
            self.queue.push(at, Event::ArriveAny { host, arrival: Arrival::Frame(frame) });
        }
        if travel.broken {
            self.break_link(link);
        }
    }

    /// A connection ends; both ends learn it, at their own time.
    pub(crate) fn break_link(&mut self, link: usize) {
        if !self.net.break_link(link) {
            return;
        }
        let (epoch, from, to) = {
            let link = &self.net.links[link];
            (link.epoch, link.from, link.to)
        };
        let soon = self.now + self.rng.between(50, 5 * MS);
        let arrival = Arrival::LinkEnded { link, epoch };
        let (sender, receiver) = (self.host_at(from), self.host_at(to));
        self.queue.push(soon, Event::ArriveAny { host: sender, arrival });
        let later = self.now + self.rng.between(50, 5 * MS);
        let arrival = Arrival::PeerEnded { link, epoch };
        self.queue.push(later, Event::ArriveAny { host: receiver, arrival });
    }

    /// A frame has reached its host.
    pub(crate) fn take_frame(&mut self, host: usize, frame: Frame) -> Step {
        let link = frame.link;
        match self.net.arrive(frame) {
            Arrived::Messages(from, messages) => {
                self.net.works(link);
                if let Some(core) = &mut self.hosts[host].core {
                    for message in messages {
                        core.handle(Input::Peer { from, message });
                    }
                }
                Ok(())
            }
            Arrived::Hello => self.meet(link),
            Arrived::Nothing => Ok(()),
            Arrived::Refused => {
                self.break_link(link);
                Ok(())
            }
            Arrived::Forged(text) => Err(self.failure("codec", text)),
        }
    }

    /// Whoever waits for an answer of one of these nodes that went without a word is told: by the
    /// machine itself, which is up again.
    pub(crate) fn end_silence(&mut self, nodes: &[usize]) {
        for link in self.net.broken() {
            let (epoch, from, to) = {
                let link = &self.net.links[link];
                (link.epoch, self.host_at(link.from), self.host_at(link.to))
            };
            if nodes.contains(&self.node_of(to)) {
                let soon = self.now + self.rng.between(50, 5 * MS);
                let arrival = Arrival::LinkEnded { link, epoch };
                self.queue.push(soon, Event::ArriveAny { host: from, arrival });
            }
        }
    }
}
