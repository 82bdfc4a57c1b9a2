//! What happened in a run: a hash of everything, the last events of every node, and a file of all
//! of them if one is wanted. Names of events follow the tracer of etcd-io/raft.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

use coracle_engine::CoreAddr;
use coracle_raft::{GroupId, Role, Term};
use serde::Serialize;

use crate::queue::Micros;

/// Events kept per node for the story of a failure.
const KEPT: usize = 40;

/// One event.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When.
    pub at_us: Micros,
    /// Where; none: the whole cluster.
    pub node: Option<u32>,
    /// On which core of it.
    pub core: u16,
    /// In which group, if in one.
    pub group: Option<u32>,
    /// What.
    pub event: &'static str,
    /// Its term, if it has one.
    pub term: u64,
    /// Its log index, if it has one.
    pub index: u64,
    /// What else there is to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} s  ", self.at_us as f64 / 1e6)?;
        match self.node {
            Some(node) => write!(f, "n{node}/c{}", self.core)?,
            None => write!(f, "all  ")?,
        }
        write!(f, "  {:<22}", self.event)?;
        if let Some(group) = self.group {
            write!(f, " g{group}")?;
        }
        if self.term > 0 {
            write!(f, " term {}", self.term)?;
        }
        if self.index > 0 {
            write!(f, " index {}", self.index)?;
        }
        if !self.detail.is_empty() {
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
}

/// Collects events.
pub struct Trace {
    hash: u64,
    events: u64,
    nodes: Vec<VecDeque<Event>>,
    file: Option<Box<dyn Write>>,
}

impl Trace {
    /// For a cluster of `nodes` nodes; all events go to `file` as well.
    pub fn new(nodes: u32, file: Option<Box<dyn Write>>) -> Self {
        let nodes = (0..=nodes).map(|_| VecDeque::with_capacity(KEPT)).collect();
        Self { hash: 0xCBF2_9CE4_8422_2325, events: 0, nodes, file }
    }

    /// Mixes a number into the hash.
    pub const fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.hash ^= self.hash >> 29;
    }

    /// Equal for two runs in which the same things happened at the same times.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Takes an event.
    pub fn push(&mut self, event: Event) {
        self.events += 1;
        self.mix(event.at_us);
        let place = u64::from(event.node.unwrap_or(0)) << 32 | u64::from(event.core) << 16;
        self.mix(place | u64::from(event.group.map_or(0xFFFF, |group| group)));
        self.mix(event.term ^ event.index.rotate_left(32));
        for byte in event.event.bytes().chain(event.detail.bytes()) {
            self.mix(u64::from(byte));
        }
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&event).unwrap_or_default();
            // A full disk must not change what the run shows.
            let _ = writeln!(file, "{line}");
        }
        let kept = &mut self.nodes[event.node.unwrap_or(0) as usize];
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    /// Something about the whole cluster.
    pub fn cluster(&mut self, at_us: Micros, event: &'static str, detail: String) {
        let (node, core, group, term, index) = (None, 0, None, 0, 0);
        self.push(Event { at_us, node, core, group, event, term, index, detail });
    }

    /// Something about a node.
    pub fn node(&mut self, at_us: Micros, addr: CoreAddr, event: &'static str, detail: String) {
        let (node, core) = (Some(addr.node.get()), addr.core.0);
        self.push(Event { at_us, node, core, group: None, event, term: 0, index: 0, detail });
    }

    /// Something about a replica.
    pub fn replica(
        &mut self,
        at_us: Micros,
        addr: CoreAddr,
        group: GroupId,
        event: &'static str,
        (term, index): (Term, u64),
    ) {
        let (node, core, group) = (Some(addr.node.get()), addr.core.0, Some(group.get()));
        let (term, detail) = (term.get(), String::new());
        self.push(Event { at_us, node, core, group, event, term, index, detail });
    }

    /// The last events of every node, oldest first.
    pub fn story(&self) -> String {
        let mut last: Vec<&Event> = self.nodes.iter().flatten().collect();
        last.sort_by_key(|event| event.at_us);
        let lines: Vec<String> = last.iter().map(|event| event.to_string()).collect();
        lines.join("\n")
    }

    /// Everything is in the file.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

/// What a change of role is called.
pub const fn role_event(role: Role) -> &'static str {
    match role {
        Role::Follower => "BecomeFollower",
        Role::PreCandidate => "BecomePreCandidate",
        Role::Candidate => "BecomeCandidate",
        Role::Leader => "BecomeLeader",
    }
}
