//! Nodes and their cores as a run keeps them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coracle_engine::command::{Command, decode};
use coracle_engine::{
    Core, CoreAddr, Effects, Input, Order, PeerMessage, ReadMode, Reply, Request, Token,
    Unanswered, Via, WallMillis,
};
use coracle_net::peers::{Lineage, Start};
use coracle_net::resp::{self, Limits, Parsed, Protocol, RequestParser};
use coracle_raft::{GroupId, LogIndex, NodeId, Role, Term};

use crate::disk::SimDisk;
use crate::handshake::Acquaintances;
use crate::io::Death;
use crate::network::Frame;
use crate::queue::Micros;
use crate::storage::{Job, Storage};

/// Ticks of a core after which it must have answered a command: the time until it gives up finding
/// a leader, that until it gives up waiting for the leader's answer, and a little more.
const ANSWER_TICKS_MAX: u64 = 220;

/// How many times as long a command on the whole keyspace may take.
const ANSWER_PARTS: u64 = 10;

/// Something that waits for a core's next turn.
#[derive(Debug)]
pub(crate) enum Arrival {
    Tick,
    Commands(Commands),
    Forget(Vec<Token>),
    Frame(Frame),
    Mail(CoreAddr, PeerMessage),
    /// The connection this core dialled has ended.
    LinkEnded {
        link: usize,
        epoch: u64,
    },
    /// A connection that another core dialled has ended.
    PeerEnded {
        link: usize,
        epoch: u64,
    },
    /// A forwarded command never left.
    NotSent {
        to: CoreAddr,
        id: u64,
    },
    WriteDone(Job),
    LoadDone(Job),
    ReadDone(Job),
    ScanDone,
    CheckpointDone,
    TaskDone,
    /// A version of the book of peers is durable.
    BookSaved {
        version: u64,
        starts: Vec<(NodeId, Start)>,
    },
    /// A node refuses this one because of its disk.
    PeerRefused {
        by: usize,
        text: String,
    },
}

/// Commands of one connection, as they are on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    pub(crate) client: usize,
    pub(crate) serial: u64,
    pub(crate) via: Via,
    pub(crate) read_mode: ReadMode,
    pub(crate) protocol: Protocol,
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: usize,
}

/// A client's connection as its node keeps it.
#[derive(Debug)]
pub(crate) struct Connection {
    serial: u64,
    via: Via,
    read_mode: ReadMode,
    protocol: Protocol,
    /// Commands that must not overtake those before them, with their numbers in the pipeline.
    waiting: VecDeque<(usize, Command)>,
    unanswered: BTreeMap<Token, Unanswered>,
}

/// Who waits for the answer to a token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) client: usize,
    pub(crate) serial: u64,
    pub(crate) step: usize,
    pub(crate) protocol: Protocol,
    /// The tick of its core by which it must have been answered.
    pub(crate) due: u64,
}

/// A replica as the trace saw it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) group: GroupId,
    pub(crate) role: Role,
    pub(crate) term: Term,
    pub(crate) commit: LogIndex,
}

/// How a disk deceives its next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It lands elsewhere in its segment.
    Misdirect,
    /// A block of it keeps what it held.
    Stale,
}

/// One core of one node.
pub(crate) struct Host {
    pub(crate) addr: CoreAddr,
    pub(crate) disk: SimDisk,
    pub(crate) acquaintances: Acquaintances,
    pub(crate) core: Option<Core>,
    pub(crate) storage: Option<Storage>,
    /// Counts processes; what an earlier one began is nobody's.
    pub(crate) life: u64,
    pub(crate) inbox: VecDeque<Arrival>,
    pub(crate) turn_planned: bool,
    /// A turn is planned for when the next batch may be made.
    pub(crate) seal_planned: bool,
    pub(crate) effects: Effects,
    pub(crate) askers: BTreeMap<Token, Asker>,
    /// By client.
    pub(crate) connections: BTreeMap<usize, Connection>,
    pub(crate) next_token: u64,
    /// Ticks that its cores have seen.
    pub(crate) ticks: u64,
    pub(crate) seen: Vec<Seen>,
    /// Nothing that the disk does completes; what would have done so waits.
    pub(crate) stuck: bool,
    pub(crate) held: Vec<Arrival>,
    pub(crate) disk_slowness: u64,
    pub(crate) write_fails: bool,
    /// Something in its log was damaged on purpose.
    pub(crate) damaged: bool,
    /// Values in its old segments were, which other replicas have.
    pub(crate) values_damaged: bool,
    /// What was damaged is one checkpoint, once, and no more: recovery takes the one before.
    pub(crate) only_checkpoint: bool,
    /// A checkpoint that was damaged, of which nothing may be missed.
    pub(crate) bad_checkpoint: Option<String>,
}

impl Host {
    pub(crate) fn new(addr: CoreAddr) -> Self {
        Self {
            addr,
            disk: SimDisk::new(),
            acquaintances: Acquaintances::default(),
            core: None,
            storage: None,
            life: 0,
            inbox: VecDeque::new(),
            turn_planned: false,
            seal_planned: false,
            effects: Effects::default(),
            askers: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_token: 0,
            ticks: 0,
            seen: Vec::new(),
            stuck: false,
            held: Vec::new(),
            disk_slowness: 1,
            write_fails: false,
            damaged: false,
            values_damaged: false,
            only_checkpoint: false,
            bad_checkpoint: None,
        }
    }

    /// Takes commands of a connection; those that may go now go to the engine. An error is the
    /// text of what went wrong.
    pub(crate) fn take(&mut self, commands: &Commands, at: WallMillis) -> Result<(), String> {
        let mut parser = RequestParser::new(Limits::DEFAULT);
        let mut ranges = Vec::new();
        let mut input = commands.bytes.as_slice();
        let mut waiting = VecDeque::new();
        for step in 0..commands.count {
            let consumed = match parser.parse(input, &mut ranges) {
                Ok(Parsed::Complete { consumed }) => consumed,
                other => return Err(format!("a client's command is parsed as {other:?}")),
            };
            let args: Vec<&[u8]> = ranges.iter().map(|range| &input[range.clone()]).collect();
            let command = decode(&args, at).map_err(|reply| format!("refused: {reply:?}"))?;
            waiting.push_back((step, command));
            input = &input[consumed..];
        }
        let Commands { serial, via, read_mode, protocol, .. } = *commands;
        let connection =
            Connection { serial, via, read_mode, protocol, waiting, unanswered: BTreeMap::new() };
        self.connections.insert(commands.client, connection);
        self.go_on(commands.client, at);
        Ok(())
    }

    /// Hands over the commands of a connection that need not wait.
    pub(crate) fn go_on(&mut self, client: usize, at: WallMillis) {
        let (Some(core), Some(connection)) =
            (self.core.as_mut(), self.connections.get_mut(&client))
        else {
            return;
        };
        while let Some((_, command)) = connection.waiting.front() {
            let order = core.order(command, connection.unanswered.values());
            if order == Order::Waits {
                return;
            }
            let Some((step, command)) = connection.waiting.pop_front() else { return };
            self.next_token += 1;
            let token = Token(self.life << 40 | self.next_token);
            let (serial, protocol) = (connection.serial, connection.protocol);
            // What asks many groups, one after the other, asks each with a deadline of its own.
            let parts = if command.spans_groups() { ANSWER_PARTS } else { 1 };
            let due = self.ticks + parts * ANSWER_TICKS_MAX;
            self.askers.insert(token, Asker { client, serial, step, protocol, due });
            connection.unanswered.insert(token, core.unanswered(&command));
            let (via, read_mode) = (connection.via, connection.read_mode);
            let follows = order == Order::Follows;
            let request = Request { token, via, read_mode, follows, at, command };
            core.handle(Input::Request(request));
        }
    }

    /// A tick has passed. Returns a command that should have been answered long ago, whatever
    /// became of it.
    pub(crate) fn tick(&mut self) -> Option<Asker> {
        self.ticks += 1;
        self.askers.values().find(|asker| self.ticks > asker.due).copied()
    }

    /// An answer as bytes, and who gets it.
    pub(crate) fn answer(&mut self, token: Token, reply: &Reply) -> Option<(Asker, Vec<u8>)> {
        let asker = self.askers.remove(&token)?;
        let connection = self.connections.get_mut(&asker.client);
        if let Some(connection) = connection.filter(|open| open.serial == asker.serial) {
            connection.unanswered.remove(&token);
        }
        let mut bytes = Vec::new();
        resp::encode_reply(reply, asker.protocol, &mut bytes);
        Some((asker, bytes))
    }
}

/// A copy of everything a node has on disk.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) lineage: Option<Lineage>,
    /// Of each core: its log, and what it knows of other nodes.
    pub(crate) cores: Vec<(SimDisk, Vec<(NodeId, Start)>)>,
}

/// One node.
pub(crate) struct Node {
    pub(crate) up: bool,
    /// Counts what was planned for it, so that an old plan to start it is ignored.
    pub(crate) generation: u64,
    pub(crate) paused_until: Micros,
    /// How many times slower than usual its cores are.
    pub(crate) slowness: u64,
    /// When each executor is free. Fewer than cores: one runs several.
    pub(crate) busy: Vec<Micros>,
    /// Wall clock minus true time, and how its length of a second differs.
    pub(crate) clock_ms: i64,
    pub(crate) drift_ppm: i64,
    /// What its disk remembers of its starts; nothing before the first.
    pub(crate) lineage: Option<Lineage>,
    /// An older state of its disk.
    pub(crate) copy: Option<Copy>,
    /// Something on its disk was damaged on purpose: in the log of one of its cores, or all of it.
    pub(crate) damaged: bool,
    /// It has another disk than before, or an old copy of it.
    pub(crate) amnesiac: bool,
    /// Nodes that refuse the running process, and how often a process gave up because of it.
    pub(crate) refused_by: BTreeSet<usize>,
    pub(crate) refused_starts: u32,
    /// Why it does not start again.
    pub(crate) refused: Option<String>,
    pub(crate) crash_loops: u32,
    /// When it dies next.
    pub(crate) death: Option<Death>,
}

impl Node {
    pub(crate) fn new(cores: usize, drift_ppm: i64) -> Self {
        Self {
            up: false,
            generation: 0,
            paused_until: 0,
            slowness: 1,
            busy: vec![0; cores],
            clock_ms: 0,
            drift_ppm,
            lineage: None,
            copy: None,
            damaged: false,
            amnesiac: false,
            refused_by: BTreeSet::new(),
            refused_starts: 0,
            refused: None,
            crash_loops: 0,
            death: None,
        }
    }

    /// What its wall clock shows.
    pub(crate) fn wall(&self, now: Micros) -> WallMillis {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let drifted = now + now / 1_000_000 * self.drift_ppm;
        let ms = 1_700_000_000_000 + drifted / 1000 + self.clock_ms;
        WallMillis(u64::try_from(ms).unwrap_or(0))
    }

    /// The length of one of its ticks.
    pub(crate) fn tick(&self, tick: Micros) -> Micros {
        let longer = i64::try_from(tick).unwrap_or(0) * self.drift_ppm / 1_000_000;
        tick.saturating_add_signed(-longer).max(1)
    }
}
