//! The border of a core: what goes in, what comes out.

use coracle_raft::{
    BatchSeq, Entry, GroupId, LogIndex, LogPosition, Message, Payload, Place, Record, Term,
};

use crate::command::Command;
use crate::{CoreAddr, DiskSpace, Divergence, Reply, WallMillis};

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

/// A request for the value of a key, which this replica's own disk does not give any more. A value
/// is known by its group, its key and the index of the entry that changed it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueWanted {
    /// The sender's number for it, echoed in the [`ValueAnswer`].
    pub id: u64,
    /// Whose.
    pub group: GroupId,
    /// Index of the entry that made the value; a later one of the same key will do as well.
    pub version: LogIndex,
    /// The key.
    pub key: Payload,
}

/// The answer to a [`ValueWanted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueAnswer {
    /// Number given by the asker.
    pub id: u64,
    /// Without a value: there is none for this key after the entry at this index; 0 if the replica
    /// cannot tell.
    pub at: LogIndex,
    /// The value with its key and version, as a [`Record::Value`] holds it.
    pub value: Option<Payload>,
}

/// A request for entries of a group's log that this replica's own disk does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntriesWanted {
    /// The sender's number for it, echoed in the [`EntriesAnswer`].
    pub id: u64,
    /// Whose log.
    pub group: GroupId,
    /// The first one wanted: index and term name one entry, whoever has it (Raft paper §5.3).
    pub first: LogPosition,
    /// The last one wanted (inclusive).
    pub last: LogIndex,
}

/// The answer to an [`EntriesWanted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntriesAnswer {
    /// Number given by the asker.
    pub id: u64,
    /// The log of the replica that answers starts after this entry.
    pub base: LogIndex,
    /// Contiguous entries from the first one wanted; none if it cannot give that.
    pub entries: Vec<Entry>,
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
    /// What a replica of the sender holds at one index, in this crate's encoding.
    Digests(Payload),
    /// Send me a value that I cannot read.
    ValueWanted(ValueWanted),
    /// The answer to a [`ValueWanted`].
    ValueAnswer(ValueAnswer),
    /// Send me entries that I cannot read.
    EntriesWanted(EntriesWanted),
    /// The answer to an [`EntriesWanted`].
    EntriesAnswer(EntriesAnswer),
    /// How full the disk of the sending core is. Said when it changes, and again and again while
    /// it is not [`DiskSpace::Ample`].
    Space(DiskSpace),
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
    /// The records of this batch stand here in the log, in their order; comes once for each batch,
    /// in the order of batches, before its [`Input::Persisted`].
    Placed {
        /// Which batch.
        batch: BatchSeq,
        /// One place for each record.
        places: Vec<Place>,
    },
    /// How full the disk is; told when it changes. At the start it is [`DiskSpace::Ample`].
    Space(DiskSpace),
    /// Everything up to and including this batch is on disk.
    Persisted(BatchSeq),
    /// Answer to a [`ReadValue`].
    ValueRead {
        /// Number given by the core.
        id: u64,
        /// The record there, or why it cannot be read.
        record: Result<Record, String>,
    },
    /// Answer to a [`ScanSegment`].
    Scanned {
        /// What was asked for.
        scan: ScanSegment,
        /// Commands and values found from there on, in their order; those that the index does
        /// not refer to ([`Core::refers_to`](crate::Core::refers_to)) may be left out.
        records: Vec<(Place, Record)>,
        /// Where to go on in this segment; `None` at its end.
        next: Option<u64>,
    },
    /// A checkpoint is complete and safe, or was given up.
    Checkpointed {
        /// Its number.
        number: u64,
        /// Why it was given up, if it was.
        result: Result<(), String>,
    },
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

/// A request for one record of the core's own log; answered by [`Input::ValueRead`]. A record that
/// is not on the disk yet is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadValue {
    /// The core's number for it.
    pub id: u64,
    /// Where the record stands.
    pub place: Place,
    /// Bytes that its payload has at least, and in most cases exactly.
    pub payload_len: usize,
}

/// A request for the next commands and values of a segment to which nothing is added any more;
/// answered by [`Input::Scanned`]. At most one is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanSegment {
    /// The segment's number.
    pub segment: u64,
    /// Where to start: 0, or where the part before ended.
    pub from: u64,
    /// About how many bytes of the file to read.
    pub bytes: usize,
}

/// A part of the work on a checkpoint file; to be done in order. Answered by
/// [`Input::Checkpointed`] after [`CheckpointWork::Finish`], or as soon as anything fails: then the
/// file is removed and further parts of the same number are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointWork {
    /// Begin a file; one that was not finished is given up.
    Begin {
        /// Its number, larger than those before it.
        number: u64,
    },
    /// Add a section.
    Section {
        /// Number of the file.
        number: u64,
        /// Whose.
        group: GroupId,
        /// Which of the group's shards.
        shard: u16,
        /// The content, in the engine's encoding.
        bytes: Vec<u8>,
    },
    /// Make the file durable under its name. The two newest ones are kept.
    Finish {
        /// Number of the file.
        number: u64,
    },
}

/// What there is to tell about values and entries that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairNews {
    /// The record cannot be read, and other replicas will be asked for the value.
    Damaged {
        /// Whose.
        group: GroupId,
        /// Where the record stands.
        place: Place,
        /// Why it cannot be read.
        why: String,
    },
    /// The value stands in the log once more, as another replica had it; or it was replaced by a
    /// later one meanwhile, or could be read after all.
    Repaired {
        /// Whose.
        group: GroupId,
        /// Where the damaged record stands.
        place: Place,
    },
    /// Entries cannot be read, and other replicas will be asked for them.
    EntriesLost {
        /// Whose.
        group: GroupId,
        /// The first one that cannot be read.
        first: LogIndex,
        /// Why it cannot be read.
        why: String,
    },
    /// Another replica has given entries that cannot be read here.
    EntriesFetched {
        /// Whose.
        group: GroupId,
        /// The first one.
        first: LogIndex,
        /// The last one.
        last: LogIndex,
    },
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
    /// Differences between replicas that were found, to be told to people.
    pub divergences: Vec<Divergence>,
    /// Values to read.
    pub reads: Vec<ReadValue>,
    /// A part of an old segment to read, for moving what is still needed out of it.
    pub scan: Option<ScanSegment>,
    /// Checkpoint work, in its order.
    pub checkpoint: Vec<CheckpointWork>,
    /// No value is needed any more in segments before this one.
    pub values_from: Option<u64>,
    /// Values and entries found damaged, and had again: to be told, nothing is to be done.
    pub repairs: Vec<RepairNews>,
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
            && self.divergences.is_empty()
            && self.reads.is_empty()
            && self.scan.is_none()
            && self.checkpoint.is_empty()
            && self.values_from.is_none()
            && self.repairs.is_empty()
            && self.released.is_empty()
    }
}
