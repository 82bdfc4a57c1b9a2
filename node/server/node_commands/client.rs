//! `CLIENT`: what connections say about themselves.

use coracle_engine::{Reply, command};

use super::super::session::{Session, valid_name};
use super::super::surveys::{Filter, Question};
use super::{View, bad_client_name, bulk, help, number, unknown_sub, wrong_sub_arity};

const HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] ...]. Subcommands are:",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the id of the current connection.",
    "INFO",
    "    Return information about the current connection.",
    "KILL <ip:port>",
    "    Close the connection from this address.",
    "KILL <option> <value> [<option> <value> ...]",
    "    Close connections; options are ADDR <ip:port>, LADDR <ip:port>, ID <client-id>,",
    "    TYPE normal, USER <username>, SKIPME (YES|NO).",
    "LIST [TYPE normal] [ID <client-id> [<client-id> ...]]",
    "    Return information about the connections of this node.",
    "NO-EVICT (ON|OFF)",
    "    Accepted; connections are never evicted.",
    "NO-TOUCH (ON|OFF)",
    "    Accepted; keys have no access times.",
    "SETINFO (LIB-NAME|LIB-VER) <value>",
    "    Set the name or version of the client library.",
    "SETNAME <name>",
    "    Set the name of the current connection.",
    "HELP",
    "    Print this help.",
];

/// Answers `CLIENT`; `args[0]` is the subcommand.
pub(super) fn answer(args: &[&[u8]], session: &mut Session, view: &View<'_>) -> Reply {
    let name = args[0].to_ascii_lowercase();
    match (&name[..], &args[1..]) {
        (b"id", []) => number(session.id),
        (b"getname", []) if session.name.is_empty() => Reply::Null,
        (b"getname", []) => bulk(&session.name),
        (b"setname", [name]) => match valid_name(name) {
            Some(name) => {
                session.name = name;
                Reply::OK
            }
            None => bad_client_name(),
        },
        (b"setinfo", [what, value]) => set_info(what, value, session),
        (b"info", []) => Reply::Verbatim(format!("{}\n", session.line(view.now, 0, 0))),
        (b"no-evict", [state]) => switch(&mut session.no_evict, state),
        (b"no-touch", [state]) => switch(&mut session.no_touch, state),
        (b"help", []) => help(HELP),
        (
            b"id" | b"getname" | b"setname" | b"setinfo" | b"info" | b"no-evict" | b"no-touch"
            | b"help",
            _,
        ) => wrong_sub_arity("client", &name),
        _ => unknown_sub("CLIENT", args[0]),
    }
}

/// What `CLIENT LIST` and `CLIENT KILL` ask all cores; `None` for other subcommands.
pub(super) fn question(args: &[&[u8]], session: &Session) -> Option<Result<Question, Reply>> {
    let is = |name: &str| args[0].eq_ignore_ascii_case(name.as_bytes());
    match &args[1..] {
        options if is("list") => Some(list(options).map(Question::List)),
        [] if is("kill") => Some(Err(wrong_sub_arity("client", b"kill"))),
        [addr] if is("kill") => {
            let addr = Some(String::from_utf8_lossy(addr).into_owned());
            Some(Ok(Question::KillOne(Filter { addr, ..Filter::default() })))
        }
        options if is("kill") => Some(kill(options, session.id).map(Question::Kill)),
        _ => None,
    }
}

fn list(options: &[&[u8]]) -> Result<Filter, Reply> {
    match options {
        [] => Ok(Filter::default()),
        [option, kind] if option.eq_ignore_ascii_case(b"type") => {
            Ok(Filter { nobody: !is_normal(kind)?, ..Filter::default() })
        }
        [option, ids @ ..] if option.eq_ignore_ascii_case(b"id") && !ids.is_empty() => {
            let ids = ids.iter().map(|id| client_id(id)).collect::<Result<_, _>>()?;
            Ok(Filter { ids: Some(ids), ..Filter::default() })
        }
        _ => Err(syntax()),
    }
}

fn kill(options: &[&[u8]], own: u64) -> Result<Filter, Reply> {
    let mut filter = Filter { skip: Some(own), ..Filter::default() };
    let (pairs, rest) = options.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(syntax());
    }
    for [option, value] in pairs {
        let text = || Some(String::from_utf8_lossy(value).into_owned());
        match &option.to_ascii_lowercase()[..] {
            b"id" => filter.ids = Some(vec![client_id(value)?]),
            b"addr" => filter.addr = text(),
            b"laddr" => filter.laddr = text(),
            b"type" => filter.nobody |= !is_normal(value)?,
            b"user" if *value == b"default" => {}
            b"user" => {
                let user = super::printable(value);
                return Err(Reply::error(format!("ERR No such user '{user}'")));
            }
            b"skipme" if value.eq_ignore_ascii_case(b"yes") => filter.skip = Some(own),
            b"skipme" if value.eq_ignore_ascii_case(b"no") => filter.skip = None,
            _ => return Err(syntax()),
        }
    }
    Ok(filter)
}

/// Whether a type of clients is the only one there is here.
fn is_normal(kind: &[u8]) -> Result<bool, Reply> {
    match &kind.to_ascii_lowercase()[..] {
        b"normal" => Ok(true),
        b"master" | b"primary" | b"replica" | b"slave" | b"pubsub" => Ok(false),
        _ => {
            let kind = super::printable(kind);
            Err(Reply::error(format!("ERR Unknown client type '{kind}'")))
        }
    }
}

fn client_id(text: &[u8]) -> Result<u64, Reply> {
    let id = command::parse_integer(text).and_then(|id| u64::try_from(id).ok());
    id.filter(|&id| id > 0).ok_or_else(|| Reply::error("ERR client-id should be greater than 0"))
}

fn syntax() -> Reply {
    Reply::error("ERR syntax error")
}

fn set_info(what: &[u8], value: &[u8], session: &mut Session) -> Reply {
    let (slot, shown) = if what.eq_ignore_ascii_case(b"lib-name") {
        (&mut session.lib_name, "lib-name")
    } else if what.eq_ignore_ascii_case(b"lib-ver") {
        (&mut session.lib_ver, "lib-ver")
    } else {
        return Reply::error(format!("ERR Unrecognized option '{}'", super::printable(what)));
    };
    match valid_name(value) {
        Some(valid) => {
            *slot = valid;
            Reply::OK
        }
        None => Reply::error(format!(
            "ERR {shown} cannot contain spaces, newlines or special characters."
        )),
    }
}

fn switch(flag: &mut bool, state: &[u8]) -> Reply {
    if state.eq_ignore_ascii_case(b"on") {
        *flag = true;
    } else if state.eq_ignore_ascii_case(b"off") {
        *flag = false;
    } else {
        return syntax();
    }
    Reply::OK
}
