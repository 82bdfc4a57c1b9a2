//! `CONFIG`: settings under the names Redis clients ask for. Read-only: a running node is changed
//! by its configuration file and a restart.

use coracle_engine::Reply;

use super::{View, bulk, help, printable, unknown_sub, wrong_sub_arity};

const HELP: &[&str] = &[
    "CONFIG <subcommand> [<arg> [value] ...]. Subcommands are:",
    "GET <pattern> [<pattern> ...]",
    "    Return settings whose names match.",
    "SET <name> <value> [<name> <value> ...]",
    "    Always an error: settings are changed in the configuration file.",
    "HELP",
    "    Print this help.",
];

/// Longest pattern that is matched; the time it takes grows with its length.
const PATTERN_BYTES_MAX: usize = 256;

/// Answers `CONFIG`; `args[0]` is the subcommand.
pub(super) fn answer(args: &[&[u8]], view: &View<'_>) -> Reply {
    let name = args[0].to_ascii_lowercase();
    match (&name[..], &args[1..]) {
        (b"get", patterns @ [_, ..]) => get(patterns, view),
        (b"set", pairs @ [_, _, ..]) if pairs.len().is_multiple_of(2) => set(pairs, view),
        (b"help", []) => help(HELP),
        (b"get" | b"set" | b"help", _) => wrong_sub_arity("config", &name),
        _ => unknown_sub("CONFIG", args[0]),
    }
}

/// All settings, in ascending order of their names. The password is not among them.
fn settings(view: &View<'_>) -> Vec<(&'static str, String)> {
    let config = view.config;
    let bind: Vec<_> = config.bind.iter().map(|ip| ip.to_string()).collect();
    let cores = usize::from(config.map.core_count());
    let client_memory = config.client_memory_per_core_bytes() * cores;
    vec![
        ("appendfsync", "always".to_owned()),
        ("appendonly", "yes".to_owned()),
        ("bind", bind.join(" ")),
        ("cluster-enabled", "yes".to_owned()),
        ("databases", "1".to_owned()),
        ("dir", config.data_dir.display().to_string()),
        ("maxclients", config.maxclients.to_string()),
        ("maxmemory", config.maxmemory_bytes.to_string()),
        ("maxmemory-clients", client_memory.to_string()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("port", config.me().plain_port.to_string()),
        ("proto-max-bulk-len", coracle_engine::command::VALUE_BYTES_MAX.to_string()),
        ("save", String::new()),
        ("timeout", config.timeout_seconds.to_string()),
    ]
}

fn get(patterns: &[&[u8]], view: &View<'_>) -> Reply {
    let wanted = |name: &str| {
        patterns
            .iter()
            .filter(|pattern| pattern.len() <= PATTERN_BYTES_MAX)
            .any(|pattern| glob(pattern, name.as_bytes()))
    };
    let found = settings(view).into_iter().filter(|(name, _)| wanted(name));
    Reply::Map(found.map(|(name, value)| (bulk(name), bulk(&value))).collect())
}

fn set(pairs: &[&[u8]], view: &View<'_>) -> Reply {
    let name = pairs[0].to_ascii_lowercase();
    let known = settings(view).iter().any(|(setting, _)| setting.as_bytes() == name);
    let name = printable(&name);
    Reply::error(if known {
        format!(
            "ERR CONFIG SET failed (possibly related to argument '{name}') - can't set immutable \
             config; change the configuration file and restart"
        )
    } else {
        format!("ERR Unknown option or number of arguments for CONFIG SET - '{name}'")
    })
}

/// Glob of Redis (`*`, `?`, `[a-c]`, `[^x]`, `\x`), ignoring case, without recursion: a star that
/// fails is moved on by one, and only the last star matters.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if let Some(next) = one(pattern, p, text[t]) {
            p = next;
            t += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Matches one byte against the pattern's element at `at`; where the next element begins.
fn one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    let byte = byte.to_ascii_lowercase();
    match *pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => class(&pattern[at + 1..], byte).map(|length| at + 1 + length),
        b'\\' if at + 1 < pattern.len() => {
            (pattern[at + 1].to_ascii_lowercase() == byte).then_some(at + 2)
        }
        plain => (plain.to_ascii_lowercase() == byte).then_some(at + 1),
    }
}

/// Matches a byte against a class whose `[` has been taken; its length with the `]`. A class
/// without end reaches to the end of the pattern, as in Redis.
fn class(inner: &[u8], byte: u8) -> Option<usize> {
    let negated = inner.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    while at < inner.len() && inner[at] != b']' {
        let low = inner[at].to_ascii_lowercase();
        let is_range = inner.get(at + 1) == Some(&b'-') && at + 2 < inner.len();
        if is_range {
            let high = inner[at + 2].to_ascii_lowercase();
            found |= (low.min(high)..=low.max(high)).contains(&byte);
            at += 3;
        } else {
            found |= low == byte;
            at += 1;
        }
    }
    (found != negated).then_some((at + 1).min(inner.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns as in Redis' `stringmatchlen`.
    #[test]
    fn globs_match_like_redis() {
        let cases: &[(&str, &str, bool)] = &[
            ("*", "save", true),
            ("save", "save", true),
            ("SAVE", "save", true),
            ("max*", "maxmemory", true),
            ("max*", "save", false),
            ("*memory*", "maxmemory-policy", true),
            ("s?ve", "save", true),
            ("s?ve", "sve", false),
            ("[st]ave", "save", true),
            ("[^s]ave", "save", false),
            ("[a-t]ave", "save", true),
            ("sav\\e", "save", true),
            ("[", "save", false),
            ("sav[e", "save", true),
            ("", "save", false),
            ("*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for &(pattern, text, want) in cases {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        }
    }
}
