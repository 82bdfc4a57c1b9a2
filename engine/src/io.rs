//! The border of a core: what goes in, what comes out.

use coracle_raft::{BatchSeq, Entry, GroupId, LogIndex, Message, Record, Term};

use crate::command::Command;
use crate::{CoreAddr, Reply, WallMillis};

/// The driver's name for one client command on this core; echoed with its reply exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Which kind of port a command came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The plain port: commands for other owners are forwarded.
    Plain,
    /// A core's own port: commands for other owners are answered with `MOVED`.
    Core,
}

/// How a client wants its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// From the leader.
    Leader,
    /// From any replica, still linearizable (`READONLY` was sent on the connection).
    AnyReplica,
}

/// A client's command.
#[derive(Clone, Debug)]
pub struct Request {
    /// The driver's name for it.
    pub token: Token,
    /// How it came in.
    pub via: Via,
    /// What its connection asked for.
    pub read_mode: ReadMode,
    /// Whether commands before it are under way, see [`crate::Order::Follows`]. It is executed
    /// behind them here, or answered with `TRYAGAIN`.
    pub follows: bool,
    /// When it arrived.
    pub at: WallMillis,
    /// What it asks for.
    pub command: Command,
}

/// A command passed on to the core that owns its slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The sender's number for it, echoed in the [`PeerMessage::ForwardReply`].
    pub id: u64,
    /// When it arrived at the first node.
    pub at: WallMillis,
    /// What it asks for.
    pub command: Command,
}

/// What one core says to another: over a peer link, or by a queue to a core of the same node.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    /// Consensus traffic of one group.
    Raft {
        /// Which group.
        group: GroupId,
        /// The message.
        message: Message,
    },
    /// Execute this for me.
    Forward(Forward),
    /// The answer to a [`Forward`].
    ForwardReply {
        /// Number given by the asker.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// The sending node leads these groups; tells routes to cores without a replica.
    Leads(Vec<(GroupId, Term)>),
}

/// One event for a core.
#[derive(Debug)]
pub enum Input {
    /// A tick of the clock has passed; `at` is the wall time now.
    Tick {
        /// Wall time, for expiry only.
        at: WallMillis,
    },
    /// A client's command.
    Request(Request),
    /// The client of these tokens is gone; replies to them need not be made.
    Forget(Token),
    /// A message of another core.
    Peer {
        /// Who sent it.
        from: CoreAddr,
        /// The message.
        message: PeerMessage,
    },
    /// The link to a core broke: what was forwarded there has an unknown outcome.
    PeerLost(CoreAddr),
    /// Everything up to and including this batch is on disk.
    Persisted(BatchSeq),
    /// Answer to a [`Load`].
    EntriesLoaded {
        /// Whose log.
        group: GroupId,
        /// First index asked for.
        first: LogIndex,
        /// Contiguous entries from `first` (at least one), or why they cannot be read.
        entries: Result<Vec<Entry>, String>,
    },
}

/// A request for log entries that are no longer in memory; answered by
/// [`Input::EntriesLoaded`] with the same group and first index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Whose log.
    pub group: GroupId,
    /// First entry wanted.
    pub first: LogIndex,
    /// Last entry wanted (inclusive).
    pub last: LogIndex,
    /// Stop after the entry that reaches this many bytes; at least one entry is returned.
    pub bytes_max: usize,
}

/// What a core wants done. All of it may be done at once and in any order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Number of the disk batch made of `records`; set whenever `records` is not empty.
    pub batch: BatchSeq,
    /// Records to make durable; then [`Input::Persisted`] with `batch`.
    pub records: Vec<Record>,
    /// Messages by receiver. Order between messages to one receiver is kept.
    pub sends: Vec<(CoreAddr, PeerMessage)>,
    /// Answers to clients.
    pub replies: Vec<(Token, Reply)>,
    /// Entries to read back.
    pub loads: Vec<Load>,
    /// State records of a group in batches before this one are superseded by durable later
    /// ones: their place in the log may be used again. Only batches of this process count;
    /// those of earlier ones come before all of them.
    pub released: Vec<(GroupId, BatchSeq)>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.sends.is_empty()
            && self.replies.is_empty()
            && self.loads.is_empty()
            && self.released.is_empty()
    }
}
