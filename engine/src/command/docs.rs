//! Answers of `COMMAND` and its subcommands, made from the table.

use super::{SPECS, Spec, lookup, unknown_command, wrong_arity};
use crate::Reply;

/// Answers `COMMAND …`. `args[0]` is the name.
pub fn answer(args: &[&[u8]]) -> Reply {
    let Some(sub) = args.get(1) else { return Reply::Array(SPECS.iter().map(row).collect()) };
    let is = |name: &[u8]| sub.eq_ignore_ascii_case(name);
    let rest = &args[2..];
    if is(b"count") {
        Reply::Integer(i64::try_from(SPECS.len()).expect("a short table"))
    } else if is(b"list") {
        list(rest)
    } else if is(b"info") {
        if rest.is_empty() {
            return Reply::Array(SPECS.iter().map(row).collect());
        }
        Reply::Array(rest.iter().map(|name| lookup(name).map_or(Reply::Null, row)).collect())
    } else if is(b"docs") {
        let specs: Vec<&Spec> = if rest.is_empty() {
            SPECS.iter().collect()
        } else {
            rest.iter().filter_map(|name| lookup(name)).collect()
        };
        Reply::Map(specs.into_iter().map(|spec| (bulk(spec.name), docs(spec))).collect())
    } else if is(b"getkeys") {
        keys(rest)
    } else if is(b"help") {
        help()
    } else {
        let shown = String::from_utf8_lossy(&sub[..sub.len().min(128)]);
        let text = format!("ERR unknown subcommand '{shown}'. Try COMMAND HELP.");
        Reply::Error(text.replace(['\r', '\n'], " "))
    }
}

/// One row of `COMMAND`: ten elements, as every Redis since 7.0 sends.
pub fn row(spec: &'static Spec) -> Reply {
    let statuses = |names: &'static [&'static str]| names.iter().map(|name| Reply::Status(name));
    Reply::Array(vec![
        bulk(spec.name),
        Reply::Integer(i64::from(spec.arity)),
        Reply::Set(statuses(spec.flags).collect()),
        Reply::Integer(i64::from(spec.first_key)),
        Reply::Integer(i64::from(spec.last_key)),
        Reply::Integer(i64::from(spec.step)),
        Reply::Set(statuses(spec.acl).collect()),
        Reply::Array(spec.tips.iter().map(|tip| bulk(tip)).collect()),
        Reply::Array(key_specs(spec)),
        Reply::Array(Vec::new()),
    ])
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

fn list(rest: &[&[u8]]) -> Reply {
    let named = |specs: &mut dyn Iterator<Item = &'static Spec>| {
        Reply::Array(specs.map(|spec| bulk(spec.name)).collect())
    };
    match rest {
        [] => named(&mut SPECS.iter()),
        [filter, by, value] if filter.eq_ignore_ascii_case(b"filterby") => {
            if by.eq_ignore_ascii_case(b"aclcat") {
                named(&mut SPECS.iter().filter(|spec| {
                    spec.acl.iter().any(|cat| cat.as_bytes()[1..].eq_ignore_ascii_case(value))
                }))
            } else if by.eq_ignore_ascii_case(b"pattern") {
                named(&mut SPECS.iter().filter(|spec| matches(value, spec.name.as_bytes())))
            } else if by.eq_ignore_ascii_case(b"module") {
                Reply::Array(Vec::new())
            } else {
                Reply::error("ERR syntax error")
            }
        }
        _ => Reply::error("ERR syntax error"),
    }
}

/// Glob with `*` and `?`, ignoring case: enough for command names.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    (p, n) = (after_star, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

fn key_specs(spec: &Spec) -> Vec<Reply> {
    if spec.first_key == 0 {
        return Vec::new();
    }
    let last = if spec.last_key < 0 { spec.last_key } else { spec.last_key - spec.first_key };
    let number = |n: i32| Reply::Integer(i64::from(n));
    let search = |kind: &str, fields: Vec<(Reply, Reply)>| {
        Reply::Map(vec![(bulk("type"), bulk(kind)), (bulk("spec"), Reply::Map(fields))])
    };
    let access = if spec.has_flag("write") { "RW" } else { "RO" };
    vec![Reply::Map(vec![
        (bulk("flags"), Reply::Set(vec![Reply::Status(access)])),
        (bulk("begin_search"), search("index", vec![(bulk("index"), number(spec.first_key))])),
        (
            bulk("find_keys"),
            search(
                "range",
                vec![
                    (bulk("lastkey"), number(last)),
                    (bulk("keystep"), number(spec.step)),
                    (bulk("limit"), number(0)),
                ],
            ),
        ),
    ])]
}

fn docs(spec: &Spec) -> Reply {
    Reply::Map(vec![
        (bulk("summary"), bulk(spec.summary)),
        (bulk("since"), bulk(spec.since)),
        (bulk("group"), bulk(spec.group)),
        (bulk("arguments"), Reply::Array(arguments(spec))),
    ])
}

/// The syntax line as arguments that `redis-cli` can show as a hint.
fn arguments(spec: &Spec) -> Vec<Reply> {
    if spec.syntax.is_empty() {
        return Vec::new();
    }
    vec![Reply::Map(vec![
        (bulk("name"), bulk(spec.syntax)),
        (bulk("type"), bulk("string")),
        (bulk("display_text"), bulk(spec.syntax)),
    ])]
}

fn keys(call: &[&[u8]]) -> Reply {
    let Some(name) = call.first() else {
        return Reply::error("ERR wrong number of arguments for 'command|getkeys' command");
    };
    let Some(spec) = lookup(name) else {
        return match call {
            [_] => Reply::error("ERR Invalid command specified"),
            _ => unknown_command(call),
        };
    };
    if !spec.accepts(call.len()) {
        return wrong_arity(spec);
    }
    if spec.first_key == 0 {
        return Reply::error("ERR The command has no key arguments");
    }
    Reply::Array(spec.key_positions(call.len()).map(|i| Reply::Bulk(call[i].to_vec())).collect())
}

fn help() -> Reply {
    const LINES: &[&str] = &[
        "COMMAND <subcommand> [<arg> ...]. Subcommands are:",
        "(no subcommand)",
        "    Return details about all commands.",
        "COUNT",
        "    Return the number of commands.",
        "DOCS [<name> ...]",
        "    Return documentation of commands.",
        "GETKEYS <full-command>",
        "    Return the keys of a full command.",
        "INFO [<name> ...]",
        "    Return details about commands.",
        "LIST [FILTERBY ACLCAT <category> | PATTERN <pattern>]",
        "    Return the names of commands.",
        "HELP",
        "    Print this help.",
    ];
    Reply::Array(LINES.iter().map(|line| Reply::Status(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(text: &str) -> Reply {
        answer(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>())
    }

    /// go-redis refuses rows that do not have 6, 7 or 10 elements.
    #[test]
    fn command_rows_have_ten_elements() {
        let Reply::Array(rows) = call("COMMAND") else { panic!("not an array") };
        assert_eq!(rows.len(), SPECS.len());
        for row in rows {
            let Reply::Array(fields) = row else { panic!("not a row") };
            assert_eq!(fields.len(), 10);
        }
        assert_eq!(call("COMMAND COUNT"), Reply::Integer(SPECS.len() as i64));
    }

    #[test]
    fn subcommands_answer_from_the_table() {
        assert_eq!(call("COMMAND GETKEYS mset a 1 b 2"), Reply::Array(vec![bulk("a"), bulk("b")]));
        assert_eq!(call("COMMAND INFO nope"), Reply::Array(vec![Reply::Null]));
        assert_eq!(
            call("command list filterby pattern *getr?nge"),
            Reply::Array(vec![bulk("getrange")])
        );
        assert_eq!(
            call("COMMAND GETKEYS ping"),
            Reply::error("ERR The command has no key arguments")
        );
        let Reply::Map(docs) = call("COMMAND DOCS get nope") else { panic!("not a map") };
        assert_eq!(docs.len(), 1, "unknown names are left out");
    }
}
