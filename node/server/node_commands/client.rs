//! `CLIENT`: what connections say about themselves.

use coracle_engine::Reply;

use super::super::session::{Session, valid_name};
use super::{View, bad_client_name, bulk, help, number, unknown_sub, wrong_sub_arity};

const HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] ...]. Subcommands are:",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the id of the current connection.",
    "INFO",
    "    Return information about the current connection.",
    "LIST",
    "    Return information about the connections of the core that answers.",
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
        (b"info", []) => Reply::Verbatim(format!("{}\n", session.line(view.now))),
        (b"list", []) => list(session, view),
        (b"list", [option, kind]) if option.eq_ignore_ascii_case(b"type") => {
            if kind.eq_ignore_ascii_case(b"normal") {
                list(session, view)
            } else {
                Reply::Verbatim(String::new())
            }
        }
        (b"list", _) => Reply::error("ERR syntax error"),
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

fn list(session: &Session, view: &View<'_>) -> Reply {
    let mut lines = (view.other_clients)();
    lines.push(session.line(view.now));
    let mut text = lines.join("\n");
    text.push('\n');
    Reply::Verbatim(text)
}

fn switch(flag: &mut bool, state: &[u8]) -> Reply {
    if state.eq_ignore_ascii_case(b"on") {
        *flag = true;
    } else if state.eq_ignore_ascii_case(b"off") {
        *flag = false;
    } else {
        return Reply::error("ERR syntax error");
    }
    Reply::OK
}
