//! `coracle ctl wal dump`: the entries of a log, in its order.
//!
//! A log does not say of each entry whether it is committed. It says where logs start and which
//! entry a checkpoint was taken at, which only happens to what is committed; and a later entry may
//! stand in the place of an earlier one. A first pass gathers that, a second one prints.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use coracle_engine::offline;
use coracle_raft::{Entry, EntryKind, GroupId, LogIndex, Place, Record};
use coracle_wal::{Examination, Found, RealDisk, open_checkpoints};
use serde_json::json;

use super::{Log, Target, print, readable, status};
use crate::fatal::{Exit, Fatal};
use crate::server::storage_error;

/// Bytes of a value that are shown.
const VALUE_SHOWN_BYTES_MAX: usize = 64;

/// Flags of `coracle ctl wal dump`.
#[derive(Args, Debug)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    target: Target,
    /// Only entries of this group
    #[arg(long, value_name = "G")]
    group: Option<u32>,
}

/// What becomes of an entry, as far as the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    /// Another entry took its place.
    Replaced,
    /// Nothing in the log says that it is committed. The newest entries are like that.
    Unknown,
}

impl Fate {
    const fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Replaced => "replaced",
            Self::Unknown => "unknown",
        }
    }
}

/// What a log says of one group.
#[derive(Debug, Default)]
struct Story {
    last: LogIndex,
    /// Entries that stand at or before the end of the log so far: what was there from this index
    /// on is gone. In log order.
    cuts: Vec<(Place, LogIndex)>,
    /// Stretches of the log that end where a snapshot took its place, and what is known to be
    /// committed in each. The last one has no end.
    stretches: Vec<(Place, LogIndex)>,
    committed: LogIndex,
}

impl Story {
    fn take(&mut self, place: Place, record: &Record, ends_log: bool) {
        match record {
            Record::Entry { entry, .. } => {
                if entry.index <= self.last {
                    self.cuts.push((place, entry.index));
                }
                self.last = entry.index;
            }
            Record::Purge { base, .. } => {
                if ends_log {
                    self.stretches.push((place, self.committed));
                    self.last = base.index;
                }
                self.committed = self.committed.max(base.index);
            }
            Record::State { payload, .. } => {
                if let Some(at) = offline::taken_at(payload.bytes()) {
                    self.committed = self.committed.max(at.index);
                }
            }
            Record::HardState { .. } | Record::Value { .. } => {}
        }
    }

    /// Makes each cut say what is gone at it or at any later one.
    fn finish(&mut self) {
        let mut lowest = None;
        for (_, index) in self.cuts.iter_mut().rev() {
            let low = lowest.map_or(*index, |low: LogIndex| low.min(*index));
            (*index, lowest) = (low, Some(low));
        }
    }

    fn fate(&self, place: Place, index: LogIndex) -> Fate {
        let later = self.cuts.partition_point(|(cut, _)| *cut <= place);
        if self.cuts.get(later).is_some_and(|&(_, from)| from <= index) {
            return Fate::Replaced;
        }
        let stretch = self.stretches.partition_point(|(end, _)| *end < place);
        let committed = self.stretches.get(stretch).map_or(self.committed, |&(_, index)| index);
        if index <= committed { Fate::Committed } else { Fate::Unknown }
    }
}

/// Runs `coracle ctl wal dump`.
pub(super) fn run(args: &DumpArgs) -> Result<ExitCode, Fatal> {
    let logs = args.target.logs()?;
    let mut damaged = 0;
    for log in &logs.logs {
        let mut examination = log.open()?;
        let stories = stories(log, &mut examination)?;
        let mut goes_on = true;
        let each = &mut |found| match found {
            Found::Record { place, record: Record::Entry { group, entry }, .. }
                if goes_on && args.group.is_none_or(|wanted| wanted == group.get()) =>
            {
                let story = stories.get(&group);
                let fate = story.map_or(Fate::Unknown, |story| story.fate(place, entry.index));
                let line = if args.target.json { json_line } else { text_line };
                goes_on = print(&line(log, group, &entry, place, fate));
            }
            Found::Damage(damage) => {
                damaged += 1;
                eprint_line(&format!("damaged, left out: {damage}"));
            }
            _ => {}
        };
        examination.each(each).map_err(storage_error)?;
    }
    Ok(status((damaged > 0).then_some(Exit::DataDamaged)))
}

fn stories(
    log: &Log,
    examination: &mut Examination<'_, RealDisk>,
) -> Result<BTreeMap<GroupId, Story>, Fatal> {
    let mut stories: BTreeMap<GroupId, Story> = BTreeMap::new();
    let each = &mut |found| {
        if let Found::Record { place, record, ends_log } = found {
            stories.entry(record.group()).or_default().take(place, &record, ends_log);
        }
    };
    examination.each(each).map_err(storage_error)?;
    if let Some(identity) = examination.identity() {
        let (checkpoints, _) = open_checkpoints(&log.disk, identity).map_err(storage_error)?;
        for checkpoint in &checkpoints {
            for (group, _, section) in checkpoint.sections() {
                // What is damaged tells nothing; `ctl check` reports it.
                let about = section.ok().and_then(offline::about);
                if let Some(about) = about {
                    let story = stories.entry(group).or_default();
                    story.committed = story.committed.max(about.index);
                }
            }
        }
    }
    stories.values_mut().for_each(Story::finish);
    Ok(stories)
}

/// The parts of an entry that are shown.
struct Shown {
    kind: &'static str,
    command: String,
    keys: Vec<String>,
    /// Length, and the value if it is short.
    value: Option<(usize, Option<String>)>,
}

fn shown(entry: &Entry) -> Shown {
    let mut shown = Shown { kind: "empty", command: String::new(), keys: Vec::new(), value: None };
    match entry.kind {
        EntryKind::Empty => {}
        EntryKind::Membership => shown.kind = "membership",
        EntryKind::Command => {
            shown.kind = "command";
            match offline::command(entry.payload.bytes()) {
                Some(described) => {
                    shown.command = described.name;
                    shown.keys = described.keys.into_iter().map(readable).collect();
                    shown.value = described.value.map(|value| {
                        let short = value.len() <= VALUE_SHOWN_BYTES_MAX;
                        (value.len(), short.then(|| readable(value)))
                    });
                }
                None => shown.command = "?".to_owned(),
            }
        }
    }
    shown
}

fn text_line(log: &Log, group: GroupId, entry: &Entry, place: Place, fate: Fate) -> String {
    let Shown { kind, command, keys, value } = shown(entry);
    let what = if command.is_empty() { kind } else { &command };
    let keys: String = keys.iter().map(|key| format!(" \"{key}\"")).collect();
    let value = match value {
        None => String::new(),
        Some((len, None)) => format!(" {len} bytes"),
        Some((len, Some(text))) => format!(" {len} bytes \"{text}\""),
    };
    let (name, term, index) = (log.name(), entry.term.get(), entry.index.get());
    format!(
        "{name} {group} {term}.{index} {what}{keys}{value} @{}:{} {}\n",
        place.segment(),
        place.offset(),
        fate.name()
    )
}

fn json_line(log: &Log, group: GroupId, entry: &Entry, place: Place, fate: Fate) -> String {
    let Shown { kind, command, keys, value } = shown(entry);
    let mut line = json!({
        "log": log.name(),
        "group": group.get(),
        "term": entry.term.get(),
        "index": entry.index.get(),
        "kind": kind,
        "segment": place.segment(),
        "offset": place.offset(),
        "fate": fate.name(),
    });
    if kind == "command" {
        line["command"] = json!(command);
        line["keys"] = json!(keys);
    }
    if let Some((len, text)) = value {
        line["value_bytes"] = json!(len);
        if let Some(text) = text {
            line["value"] = json!(text);
        }
    }
    format!("{line}\n")
}

fn eprint_line(text: &str) {
    use std::io::Write as _;
    // A closed stderr must not end a dump.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use coracle_raft::{LogPosition, Payload, Term};

    use super::*;

    fn entry(term: u64, index: u64) -> Record {
        let (term, index) = (Term::new(term), LogIndex::new(index));
        let entry = Entry { term, index, kind: EntryKind::Empty, payload: Payload::empty() };
        Record::Entry { group: GroupId::new(0), entry }
    }

    fn purge(term: u64, index: u64) -> Record {
        let base = LogPosition { term: Term::new(term), index: LogIndex::new(index) };
        Record::Purge { group: GroupId::new(0), base }
    }

    /// Fates of the entries of a log, in its order.
    fn fates(records: &[(Record, bool)]) -> Vec<Fate> {
        let place = |at: usize| Place::new(1, 4096 + 8 * at as u64);
        let mut story = Story::default();
        for (at, (record, ends_log)) in records.iter().enumerate() {
            story.take(place(at), record, *ends_log);
        }
        story.finish();
        let fate = |(at, (record, _)): (usize, &(Record, bool))| match record {
            Record::Entry { entry, .. } => Some(story.fate(place(at), entry.index)),
            _ => None,
        };
        records.iter().enumerate().filter_map(fate).collect()
    }

    /// Overwritten, committed by a purge, and the tail of which nothing is said.
    #[test]
    fn the_log_tells_what_became_of_entries() {
        use Fate::{Committed, Replaced, Unknown};
        let plain = |record| (record, false);
        let log = [entry(1, 1), entry(1, 2), entry(1, 3), entry(2, 2), purge(1, 1), entry(2, 3)];
        let log = log.map(plain);
        assert_eq!(fates(&log), [Committed, Replaced, Replaced, Unknown, Unknown]);
        let twice = [entry(1, 1), entry(2, 1), entry(3, 1), purge(3, 1)].map(plain);
        assert_eq!(fates(&twice), [Replaced, Replaced, Committed]);
        let log = [
            plain(entry(1, 1)),
            plain(purge(1, 1)),
            plain(entry(1, 2)),
            (purge(5, 9), true),
            plain(entry(5, 10)),
            plain(purge(5, 10)),
        ];
        assert_eq!(fates(&log), [Committed, Unknown, Committed], "a snapshot came between");
    }
}
