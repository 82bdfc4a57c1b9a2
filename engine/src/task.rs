//! A command on its way: who asked, until when, and the answers that stand for "not done".

use coracle_raft::{Bug, GroupId, NodeId, Payload, Place, planted};

use crate::command::Command;
use crate::{CoreAddr, ReadMode, Reply, Token, Via, WallMillis};

/// Who waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client of this core.
    Client(Token),
    /// Another core; `link` tells its links apart, so that no answer goes to its next life.
    Forwarded { from: CoreAddr, id: u64, link: u32 },
    /// A command of this core on the whole keyspace, of which this is one group's part.
    Part { id: u64, group: GroupId },
}

/// A command that has not been answered.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) origin: Origin,
    pub(crate) via: Via,
    pub(crate) read_mode: ReadMode,
    /// See [`crate::Request::follows`].
    pub(crate) follows: bool,
    pub(crate) at: WallMillis,
    pub(crate) command: Command,
    /// How often it was sent on or started again.
    pub(crate) hops: u8,
    /// Tick from which it is given up where that is certain to be harmless.
    pub(crate) deadline: u64,
    /// Records that were read from the disk for it.
    pub(crate) fetched: Vec<(Place, Payload)>,
}

impl Task {
    /// Bytes it holds while it waits.
    pub(crate) fn size_bytes(&self) -> usize {
        let fetched = self.fetched.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        size_of::<Self>() + self.command.payload.len() + fetched
    }
}

/// Answers collected while groups work; the core sends them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) replies: Vec<(Origin, Reply)>,
    /// Commands certainly not appended that must find another way.
    pub(crate) again: Vec<Task>,
}

impl Outbox {
    pub(crate) fn reply(&mut self, origin: Origin, reply: Reply) {
        self.replies.push((origin, reply));
    }
}

/// The command may have been applied, or may be later: never to be retried by itself.
pub(crate) fn uncertain(why: &str) -> Reply {
    if planted(Bug::UncertainCalledRetryable) {
        return try_again();
    }
    Reply::Error(format!("UNCERTAIN outcome unknown: {why}"))
}

/// The command was certainly not appended: this core has too much on its hands.
pub(crate) fn overloaded(what: &str, limit: usize) -> Reply {
    Reply::Error(format!("TRYAGAIN server is overloaded: {what} reached {limit}"))
}

/// The command was certainly not appended: nobody who could do it was found in time.
pub(crate) fn try_again() -> Reply {
    Reply::error("TRYAGAIN no leader answered in time, the command was not executed")
}

/// The command was certainly not appended: those before it in its pipeline lost their leader, and
/// where they end up it might overtake them.
pub(crate) fn out_of_order() -> Reply {
    Reply::error("TRYAGAIN the leader changed during the pipeline, the command was not executed")
}

/// The command was certainly not appended: the slot's group has no leader.
pub(crate) fn not_served() -> Reply {
    Reply::error("CLUSTERDOWN Hash slot not served")
}

/// A value that the command needs cannot be read from this node's disk. Nothing was executed.
pub(crate) fn unreadable(why: &str) -> Reply {
    Reply::Error(format!("UNREADABLE this replica cannot read the value: {why}"))
}

/// The command was certainly not appended: memory is used up.
pub(crate) fn out_of_memory() -> Reply {
    Reply::error("OOM command not allowed when used memory > 'maxmemory'.")
}

/// The command was certainly not appended: the disks have no space for it. Clients know the code:
/// it is definite, and the same command may pass later.
pub(crate) fn disk_full(adds_data: bool) -> Reply {
    Reply::error(if adds_data {
        "OOM command not allowed when the disk is full: delete something, or add space"
    } else {
        "OOM command not allowed when the disk is full: no write is taken until there is space"
    })
}

const REROUTE: &str = "REROUTE ";

/// What a core answers to a [`crate::Forward`] it cannot serve: certainly not appended, try
/// `leader`. Never shown to clients.
pub(crate) fn reroute(leader: Option<NodeId>) -> Reply {
    Reply::Error(format!("{REROUTE}{}", leader.map_or(0, NodeId::get)))
}

/// The answer a driver gives to a [`crate::Forward`] that never left this node: certainly not
/// appended, so the command waits and is sent again until its time is up.
pub fn not_sent() -> Reply {
    reroute(None)
}

/// Reads a [`reroute`] answer: `Some(hint)` if it is one.
pub(crate) fn parse_reroute(reply: &Reply) -> Option<Option<NodeId>> {
    let Reply::Error(text) = reply else { return None };
    let node = text.strip_prefix(REROUTE)?.parse::<u32>().unwrap_or(0);
    Some((node != 0).then(|| NodeId::new(node)))
}
