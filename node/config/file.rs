//! The configuration file: TOML, every key known, mistakes explained.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::LogFormat;
use super::size::ByteSize;
use crate::fatal::Fatal;

/// What a file may say. Everything is optional here; `super::resolve` knows what must be there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) id: Option<u32>,
    pub(super) cluster: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) cores: Option<Vec<u16>>,
    pub(super) shards: Option<u16>,
    pub(super) groups: Option<u32>,
    pub(super) bind: Option<Vec<std::net::IpAddr>>,
    pub(super) requirepass_file: Option<PathBuf>,
    pub(super) allow_insecure: Option<bool>,
    pub(super) maxclients: Option<u32>,
    pub(super) timeout: Option<u32>,
    pub(super) maxmemory: Option<ByteSize>,
    pub(super) value_cache: Option<ByteSize>,
    pub(super) prefault: Option<ByteSize>,
    pub(super) maxdisk: Option<ByteSize>,
    pub(super) log: Option<String>,
    pub(super) log_format: Option<LogFormat>,
    #[serde(default)]
    pub(super) wal: FileWal,
    #[serde(default)]
    pub(super) checkpoint: FileCheckpoint,
    #[serde(default)]
    pub(super) raft: FileRaft,
    pub(super) nodes: Option<Vec<FileNode>>,
}

/// Table `[wal]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileWal {
    pub(super) segment_size: Option<ByteSize>,
    pub(super) direct_io: Option<bool>,
    pub(super) max_size: Option<ByteSize>,
}

/// Table `[checkpoint]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileCheckpoint {
    pub(super) bytes: Option<ByteSize>,
    pub(super) period: Option<u32>,
}

/// Table `[raft]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRaft {
    pub(super) tick_ms: Option<u32>,
    pub(super) election_ticks: Option<u32>,
    pub(super) heartbeat_ticks: Option<u32>,
    pub(super) check_interval: Option<u32>,
}

/// One `[[nodes]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileNode {
    pub(super) id: u32,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) core_port: u16,
    pub(super) peer_port: u16,
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<File, Fatal> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Fatal::usage(
            format!("cannot read the configuration file {}", path.display()),
            error.to_string(),
            "give an existing file with --config",
        )
    })?;
    parse(&text, &path.display().to_string())
}

/// Parses the text of a file; `name` is for messages.
pub(super) fn parse(text: &str, name: &str) -> Result<File, Fatal> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| 1 + before.matches('\n').count());
        let message = error.message().trim_end().to_owned();
        let fix = did_you_mean(&message).map_or_else(
            || "`coracle node check-config --config FILE` shows every setting".to_owned(),
            |name| format!("did you mean `{name}`?"),
        );
        Fatal::usage(format!("{name}, line {line} is not a valid configuration"), message, fix)
    })
}

/// The closest of the expected names in serde's "unknown field" message, if one is close.
fn did_you_mean(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut names = rest.split('`').step_by(2);
    let unknown = names.next()?;
    closest(unknown, names)
}

/// The candidate that needs the fewest edits, if that is at most a third of the longer name.
pub(crate) fn closest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (edits(name, candidate), candidate))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, best)| distance <= 1 + name.len().max(best.len()) / 3)
        .map(|(_, best)| best.to_owned())
}

/// Levenshtein distance over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong key names its line and the key that was probably meant.
    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let cases: &[(&str, &str, &str)] = &[
            ("id = 1\ndat_dir = \"x\"\n", "line 2", "did you mean `data_dir`?"),
            ("[wal]\nsegmentsize = 1\n", "line 2", "did you mean `segment_size`?"),
            ("[checkpoint]\nperiods = 9\n", "line 2", "did you mean `period`?"),
            ("[raft]\ntick = 25\n", "line 2", "did you mean `tick_ms`?"),
        ];
        for &(text, line, fix) in cases {
            let error = parse(text, "c.toml").expect_err(text);
            assert!(error.what.contains(line), "{text}: {error}");
            assert_eq!(error.fix, fix, "{text}: {error}");
        }
        let far = parse("zzzzzzzzzzzz = 1\n", "c.toml").expect_err("unknown");
        assert!(!far.fix.contains("did you mean"), "{far}");
    }

    /// Values of the wrong kind say what was expected.
    #[test]
    fn wrong_values_are_explained() {
        let cases: &[(&str, &str)] = &[
            ("maxmemory = \"lots\"", "is not a size"),
            ("id = \"one\"", "expected u32"),
            ("bind = [\"localhost\"]", "invalid IP address"),
            ("log_format = \"xml\"", "unknown variant"),
        ];
        for &(text, needle) in cases {
            let error = parse(text, "c.toml").expect_err(text);
            assert!(error.cause.contains(needle), "{text}: {error}");
        }
    }
}
