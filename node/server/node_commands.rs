//! Commands that a node answers by itself: handshake, connection state, documentation, and what
//! the cluster looks like.
//!
//! In: a command with its arguments, the connection's [`Session`], a [`View`] of the node. Out:
//! an [`Outcome`]. Nothing here touches a socket, a file or the store.

mod client;
mod settings;

use coracle_engine::command::{self, CommandId, Spec};
use coracle_engine::{ClusterMap, CoreAddr, ReadMode, Reply, SLOT_COUNT, SlotId, WallMillis};
use coracle_net::resp::Protocol;
use coracle_raft::{GroupId, NodeId};

use super::backoff::Backoff;
use super::cluster_view;
use super::digests;
use super::info::{self, NodeStats};
use super::session::{Session, valid_name};
use super::surveys::Question;
use crate::config::Config;

/// Version of Redis whose commands and replies are followed.
pub(crate) const REDIS_VERSION: &str = "7.2.4";
/// Keys in one answer of `CLUSTER GETKEYSINSLOT`.
const SLOT_KEYS_MAX: usize = 1000;

/// What the answers are made from.
pub(crate) struct View<'a> {
    /// The node's configuration.
    pub(crate) config: &'a Config,
    /// Where everything is.
    pub(crate) map: &'a ClusterMap,
    /// The core that took the command.
    pub(crate) me: CoreAddr,
    /// Failed attempts to give the password.
    pub(crate) backoff: &'a Backoff,
    /// Wall time.
    pub(crate) now: WallMillis,
    /// When the process started.
    pub(crate) started: WallMillis,
    /// The last known leader of a group.
    pub(crate) leader_of: &'a dyn Fn(GroupId) -> Option<NodeId>,
    /// Keys of a slot, if this core holds a replica of it; else 0.
    pub(crate) keys_in_slot: &'a dyn Fn(SlotId) -> u64,
    /// Up to so many keys of a slot, if this core holds a replica of it; else none.
    pub(crate) keys_of_slot: &'a dyn Fn(SlotId, usize) -> Vec<Vec<u8>>,
    /// Numbers of the whole node; called only by the commands that show them.
    pub(crate) stats: &'a dyn Fn() -> NodeStats,
}

/// What becomes of a connection after a command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It goes on.
    Reply(Reply),
    /// It is closed once the reply is sent.
    ReplyThenClose(Reply),
    /// All cores are asked; the reply is made from their answers.
    Survey(Question),
}

/// Whether a connection may use a command before it has given the password.
pub(crate) fn allowed_before_auth(spec: &Spec) -> bool {
    spec.has_flag("no_auth") || spec.id == CommandId::Ping
}

/// Answers a command of node scope. `args[0]` is its name, `spec` its row in the table.
pub(crate) fn execute(
    spec: &'static Spec,
    args: &[&[u8]],
    session: &mut Session,
    view: &View<'_>,
) -> Outcome {
    if !session.authenticated && !allowed_before_auth(spec) {
        return Outcome::Reply(Reply::error("NOAUTH Authentication required."));
    }
    if !spec.accepts(args.len()) {
        return Outcome::Reply(command::wrong_arity(spec));
    }
    if spec.id == CommandId::Quit {
        return Outcome::ReplyThenClose(Reply::OK);
    }
    if spec.id == CommandId::Client
        && let Some(asked) = client::question(&args[1..], session)
    {
        return asked.map_or_else(Outcome::Reply, Outcome::Survey);
    }
    if spec.id == CommandId::Cluster
        && let Some(asked) = digests::question(&args[1..])
    {
        return asked.map_or_else(Outcome::Reply, Outcome::Survey);
    }
    Outcome::Reply(answer(spec, args, session, view))
}

fn answer(spec: &'static Spec, args: &[&[u8]], session: &mut Session, view: &View<'_>) -> Reply {
    match spec.id {
        CommandId::Ping => match args {
            [_] => Reply::Status("PONG"),
            [_, message] => Reply::Bulk(message.to_vec()),
            _ => command::wrong_arity(spec),
        },
        CommandId::Echo => Reply::Bulk(args[1].to_vec()),
        CommandId::Hello => hello(&args[1..], session, view),
        CommandId::Auth => auth(&args[1..], session, view),
        CommandId::Reset => {
            session.reset(view.config);
            Reply::Status("RESET")
        }
        CommandId::Select => select(args[1]),
        CommandId::Client => client::answer(&args[1..], session, view),
        CommandId::Command => command::docs::answer(args),
        CommandId::Info => info::answer(&args[1..], session, view),
        CommandId::Config => settings::answer(&args[1..], view),
        CommandId::Cluster => cluster(&args[1..], view),
        CommandId::ReadOnly => {
            session.read_mode = ReadMode::AnyReplica;
            Reply::OK
        }
        CommandId::ReadWrite => {
            session.read_mode = ReadMode::Leader;
            Reply::OK
        }
        CommandId::Asking => Reply::OK,
        CommandId::Time => time(view.now),
        CommandId::Wait => wait(&args[1..], view),
        _ => Reply::error(format!("ERR '{}' is not answered by a node", spec.name)),
    }
}

/// `HELLO [protover [AUTH username password] [SETNAME clientname]]` (Redis, "HELLO").
fn hello(args: &[&[u8]], session: &mut Session, view: &View<'_>) -> Reply {
    let mut protocol = session.protocol;
    let mut rest = args;
    if let Some((version, options)) = args.split_first() {
        protocol = match command::parse_integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Reply::error("NOPROTO unsupported protocol version"),
            None => {
                return Reply::error("ERR Protocol version is not an integer or out of range");
            }
        };
        rest = options;
    }
    let mut name = None;
    let mut authenticated = session.authenticated;
    while let Some((option, values)) = rest.split_first() {
        rest = if option.eq_ignore_ascii_case(b"auth") && values.len() >= 2 {
            if let Err(refusal) = check_password(values[0], values[1], session, view) {
                return refusal;
            }
            authenticated = true;
            &values[2..]
        } else if option.eq_ignore_ascii_case(b"setname") && !values.is_empty() {
            match valid_name(values[0]) {
                Some(valid) => name = Some(valid),
                None => return bad_client_name(),
            }
            &values[1..]
        } else {
            let option = printable(option);
            return Reply::error(format!("ERR Syntax error in HELLO option '{option}'"));
        };
    }
    if !authenticated {
        return Reply::error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
             HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and \
             select the RESP protocol version at the same time",
        );
    }
    session.authenticated = true;
    session.protocol = protocol;
    if let Some(name) = name {
        session.name = name;
    }
    let version = match protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    Reply::Map(vec![
        (bulk("server"), bulk("redis")),
        (bulk("version"), bulk(REDIS_VERSION)),
        (bulk("proto"), Reply::Integer(version)),
        (bulk("id"), number(session.id)),
        (bulk("mode"), bulk("cluster")),
        (bulk("role"), bulk("master")),
        (bulk("modules"), Reply::Array(Vec::new())),
    ])
}

/// `AUTH [username] password`.
fn auth(args: &[&[u8]], session: &mut Session, view: &View<'_>) -> Reply {
    let checked = match args {
        [_] if view.config.password.is_none() => Err(Reply::error(
            "ERR AUTH <password> called without any password configured for the default user. \
             Are you sure your configuration is correct?",
        )),
        [password] => check_password(b"default", password, session, view),
        [user, password] => check_password(user, password, session, view),
        _ => Err(Reply::error("ERR syntax error")),
    };
    match checked {
        Ok(()) => {
            session.authenticated = true;
            Reply::OK
        }
        Err(refusal) => refusal,
    }
}

/// The one user is called `default`. An unknown user costs the same time and gets the same
/// answer as a wrong password. After some failures nothing is compared for a while.
fn check_password(
    user: &[u8],
    password: &[u8],
    session: &Session,
    view: &View<'_>,
) -> Result<(), Reply> {
    if let Some(left_ms) = view.backoff.refused_ms(session.ip, view.now) {
        return Err(Reply::error(format!(
            "ERR too many failed AUTH attempts from this address, try again in {left_ms} ms"
        )));
    }
    let right_password = view.config.password.as_ref().is_none_or(|kept| kept.matches(password));
    if right_password & (user == b"default") {
        view.backoff.succeeded(session.ip);
        return Ok(());
    }
    view.backoff.failed(session.ip, view.now);
    Err(Reply::error("WRONGPASS invalid username-password pair or user is disabled."))
}

fn select(index: &[u8]) -> Reply {
    match command::parse_integer(index) {
        Some(0) => Reply::OK,
        Some(_) => Reply::error("ERR SELECT is not allowed in cluster mode"),
        None => Reply::error("ERR value is not an integer or out of range"),
    }
}

fn time(now: WallMillis) -> Reply {
    let (seconds, millis) = (now.0 / 1000, now.0 % 1000);
    Reply::Array(vec![bulk(&seconds.to_string()), bulk(&(millis * 1000).to_string())])
}

/// `WAIT numreplicas timeout`. Every acknowledged write is on a majority already, so the answer
/// is immediate: the replicas beside the leader that surely have it.
fn wait(args: &[&[u8]], view: &View<'_>) -> Reply {
    let [Some(_), Some(timeout)] = [args[0], args[1]].map(command::parse_integer) else {
        return Reply::error("ERR value is not an integer or out of range");
    };
    if timeout < 0 {
        return Reply::error("ERR timeout is negative");
    }
    let replicas = view.map.replicas(GroupId::new(0)).count();
    number(replicas as u64 / 2)
}

/// `CLUSTER …`.
fn cluster(args: &[&[u8]], view: &View<'_>) -> Reply {
    let name = args[0].to_ascii_lowercase();
    match (&name[..], &args[1..]) {
        (b"slots", []) => cluster_view::slots(view),
        (b"shards", []) => cluster_view::shards(view),
        (b"nodes", []) => cluster_view::nodes(view),
        (b"info", []) => cluster_view::info(view),
        (b"myid", []) => bulk(&cluster_view::endpoint_id(view, view.me)),
        (b"myshardid", []) => bulk(&cluster_view::shard_id(view, view.me)),
        (b"keyslot", [key]) => number(u64::from(SlotId::of_key(key).get())),
        (b"countkeysinslot", [slot]) => match parse_slot(slot) {
            Ok(slot) => number((view.keys_in_slot)(slot)),
            Err(refusal) => refusal,
        },
        (b"getkeysinslot", [slot, count]) => match parse_slot(slot) {
            Ok(slot) => keys_of_slot(slot, count, view),
            Err(refusal) => refusal,
        },
        (b"replicas" | b"slaves", [id]) => {
            known_endpoint(id, view).unwrap_or_else(|| Reply::Array(Vec::new()))
        }
        (b"count-failure-reports", [id]) => known_endpoint(id, view).unwrap_or(Reply::Integer(0)),
        (b"help", []) => help(CLUSTER_HELP),
        (
            b"slots"
            | b"shards"
            | b"nodes"
            | b"info"
            | b"myid"
            | b"myshardid"
            | b"keyslot"
            | b"countkeysinslot"
            | b"getkeysinslot"
            | b"replicas"
            | b"slaves"
            | b"count-failure-reports"
            | b"help",
            _,
        ) => wrong_sub_arity("cluster", &name),
        _ => unknown_sub("CLUSTER", args[0]),
    }
}

const CLUSTER_HELP: &[&str] = &[
    "CLUSTER <subcommand> [<arg> [value] ...]. Subcommands are:",
    "COUNT-FAILURE-REPORTS <node-id>",
    "    Return 0: failures are detected per Raft group.",
    "COUNTKEYSINSLOT <slot>",
    "    Return the number of keys in <slot>, as this core's replica has them.",
    "DIGESTS [NOW]",
    "    Return what the replicas of this node told of their content at the last checks; with NOW,",
    "    groups led here check again.",
    "GETKEYSINSLOT <slot> <count>",
    "    Return up to <count> keys (at most 1000) in <slot>, as this core's replica has them.",
    "INFO",
    "    Return information about the cluster.",
    "KEYSLOT <key>",
    "    Return the hash slot for <key>.",
    "MYID",
    "    Return the id of the endpoint that answers.",
    "MYSHARDID",
    "    Return the shard id of the endpoint that answers.",
    "NODES",
    "    Return all endpoints and the slots they lead.",
    "REPLICAS <node-id>",
    "    Return an empty list: every endpoint is a master.",
    "SHARDS",
    "    Return the endpoints with their slots as maps.",
    "SLOTS",
    "    Return the slot ranges with their endpoints.",
    "HELP",
    "    Print this help.",
];

/// The refusal of an endpoint id that is none.
fn known_endpoint(id: &[u8], view: &View<'_>) -> Option<Reply> {
    let known = cluster_view::find_endpoint(view, id).is_some();
    (!known).then(|| Reply::error(format!("ERR Unknown node {}", printable(id))))
}

/// `CLUSTER GETKEYSINSLOT slot count`.
fn keys_of_slot(slot: SlotId, count: &[u8], view: &View<'_>) -> Reply {
    let Some(count) = command::parse_integer(count).and_then(|count| usize::try_from(count).ok())
    else {
        return Reply::error("ERR Invalid slot or number of keys");
    };
    let keys = (view.keys_of_slot)(slot, count.min(SLOT_KEYS_MAX));
    Reply::Array(keys.into_iter().map(Reply::Bulk).collect())
}

fn parse_slot(text: &[u8]) -> Result<SlotId, Reply> {
    let invalid = || Reply::error("ERR Invalid or out of range slot");
    let raw = command::parse_integer(text).ok_or_else(invalid)?;
    let raw = u16::try_from(raw).ok().filter(|&raw| raw < SLOT_COUNT).ok_or_else(invalid)?;
    SlotId::new(raw).ok_or_else(invalid)
}

fn bad_client_name() -> Reply {
    Reply::error("ERR Client names cannot contain spaces, newlines or special characters.")
}

pub(super) fn wrong_sub_arity(command: &str, sub: &[u8]) -> Reply {
    let sub = printable(sub);
    Reply::error(format!("ERR wrong number of arguments for '{command}|{sub}' command"))
}

fn unknown_sub(command: &str, sub: &[u8]) -> Reply {
    let sub = printable(sub);
    Reply::error(format!("ERR unknown subcommand '{sub}'. Try {command} HELP."))
}

pub(super) fn unknown_argument(word: &[u8]) -> Reply {
    Reply::error(format!("ERR unknown argument '{}'", printable(word)))
}

fn help(lines: &'static [&'static str]) -> Reply {
    Reply::Array(lines.iter().map(|line| Reply::Status(line)).collect())
}

/// Text of a client for an error message: short, and one line.
fn printable(text: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 128;
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES_MAX)])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
pub(super) mod tests;
