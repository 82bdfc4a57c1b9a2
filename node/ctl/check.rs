//! `coracle ctl check` and `coracle ctl wal verify`: reads everything, changes nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;

use coracle_engine::offline::{self, StoredAt};
use coracle_raft::GroupId;
use coracle_wal::{
    Damage, DamageKind, Examination, Found, RealDisk, RecoveryReport, ValueError, open_checkpoints,
};
use indicatif::{BinaryBytes, ProgressBar};
use serde::Serialize;

use super::findings::{Finding, Findings, Severity};
use super::{Log, Logs, Target, print, progress, status};
use crate::data_dir::Offline;
use crate::fatal::Fatal;
use crate::server::storage_error;

/// Values between two steps of the progress bar.
const VALUES_STEP: u64 = 256;

/// What was read of one core.
#[derive(Debug, Default, Serialize)]
struct Facts {
    log: String,
    segments: u64,
    segments_for_values: u64,
    batches: u64,
    records: u64,
    bytes: u64,
    checkpoints: u64,
    sections: u64,
    keys: u64,
    values_in_log: u64,
}

impl Facts {
    fn text(&self, whole: bool) -> String {
        let mut text = format!(
            "{}: {} segments ({} of them for their values only), {} batches, {} records, {}",
            self.log,
            self.segments,
            self.segments_for_values,
            self.batches,
            self.records,
            BinaryBytes(self.bytes),
        );
        if whole {
            text += &format!(
                "; {} checkpoints with {} sections, {} keys, {} values found in the log",
                self.checkpoints, self.sections, self.keys, self.values_in_log,
            );
        }
        text + "\n"
    }
}

/// Runs `coracle ctl wal verify`.
pub(super) fn verify(target: &Target) -> Result<ExitCode, Fatal> {
    let Logs { dir: _locked, logs } = target.logs()?;
    let mut findings = Findings::default();
    let facts = logs.iter().map(|log| look(log, None, &mut findings)).collect();
    Ok(show(target, facts, &findings, false))
}

/// Runs `coracle ctl check`.
pub(super) fn run(target: &Target) -> Result<ExitCode, Fatal> {
    let Logs { dir, logs } = target.logs()?;
    let Some(dir) = dir else {
        let what = format!("{} is not a data directory", target.dir.display());
        let fix = "give the directory that the node has as --data-dir, or use `ctl wal verify`";
        return Err(Fatal::usage(what, "it has no identity.json", fix));
    };
    let mut findings = Findings::default();
    memory(&dir, &mut findings);
    let facts = logs.iter().map(|log| look(log, Some(&dir), &mut findings)).collect();
    if !target.json {
        print(&format!("node {} of cluster {}\n", dir.node, dir.cluster));
    }
    Ok(show(target, facts, &findings, true))
}

fn show(target: &Target, facts: Vec<Facts>, findings: &Findings, whole: bool) -> ExitCode {
    let text = if target.json {
        let facts = serde_json::to_value(facts).expect("plain fields become JSON");
        findings.json(&facts)
    } else {
        let cores: String = facts.iter().map(|facts| facts.text(whole)).collect();
        let summary = match findings.bad() {
            0 => "ok: nothing is damaged\n".to_owned(),
            bad => format!("NOT OK: {bad} findings\n"),
        };
        cores + &findings.text() + &summary
    };
    print(&text);
    status(findings.exit())
}

/// The files in which a node keeps what it knows of its own and other starts.
fn memory(dir: &Offline, findings: &mut Findings) {
    let peers = (0..dir.cores).map(|core| format!("peers-{core}.json"));
    for name in std::iter::once("starts.json".to_owned()).chain(peers) {
        let path = dir.path.join(name);
        let (severity, kind, detail) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<serde_json::Value>(&bytes) {
                Ok(_) => continue,
                Err(error) => (Severity::Damage, "damaged file", error.to_string()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (Severity::Note, "file not there", "none was written yet".to_owned())
            }
            Err(error) => (Severity::Disk, "unreadable file", error.to_string()),
        };
        let file = Some(path.display().to_string());
        findings.add(Finding { severity, kind: kind.to_owned(), file, offset: None, detail });
    }
}

/// Reads a log, and the checkpoints of a core if it is one of `dir`.
fn look(log: &Log, dir: Option<&Offline>, findings: &mut Findings) -> Facts {
    let mut facts = Facts { log: log.name(), ..Facts::default() };
    let looked = log.open().and_then(|mut examination| {
        read_log(&mut examination, &mut facts, findings)?;
        match dir {
            Some(dir) => read_checkpoints(log, dir, &mut examination, &mut facts, findings),
            None => Ok(()),
        }
    });
    if dir.is_some() && facts.segments == 0 {
        findings.add(no_log(log));
    }
    if let Err(fatal) = looked {
        findings.add(Finding {
            severity: Severity::of(fatal.exit),
            kind: fatal.what,
            file: None,
            offset: None,
            detail: fatal.cause,
        });
    }
    facts
}

/// A log without segments: a node that was ever started has something in its directory.
fn no_log(log: &Log) -> Finding {
    let path = log.disk.dir();
    let is_empty = std::fs::read_dir(path).is_ok_and(|mut items| items.next().is_none());
    let (severity, detail) = if is_empty {
        (Severity::Damage, "the directory is empty: what was in it is gone")
    } else {
        (Severity::Note, "the node was stopped before it wrote anything, or its log is gone")
    };
    let (kind, file) = ("no log".to_owned(), Some(path.display().to_string()));
    Finding { severity, kind, file, offset: None, detail: detail.to_owned() }
}

fn read_log(
    examination: &mut Examination<'_, RealDisk>,
    facts: &mut Facts,
    findings: &mut Findings,
) -> Result<(), Fatal> {
    let bar = progress(examination.file_bytes()).with_message(facts.log.clone());
    let report = examination.report().clone();
    let mut last_bytes = 0;
    let each = &mut |found| match found {
        Found::Segment { file_bytes, values_only, .. } => {
            bar.inc(std::mem::replace(&mut last_bytes, file_bytes));
            facts.segments += 1;
            facts.segments_for_values += u64::from(values_only);
            facts.bytes += file_bytes;
        }
        Found::Batch => facts.batches += 1,
        Found::Record { .. } => facts.records += 1,
        Found::Damage(damage) => findings.add(damage_finding(&damage, &report)),
    };
    let read = examination.each(each);
    bar.finish_and_clear();
    read.map_err(storage_error)?;
    if let Some(torn) = &report.torn {
        findings.add(Finding {
            severity: Severity::Note,
            kind: "unfinished write".to_owned(),
            file: Some(torn.file.clone()),
            offset: Some(torn.offset),
            detail: format!(
                "it was cut short by a crash and never acknowledged, as were {} whole batches \
                 behind it; the next start removes it",
                torn.batches_dropped
            ),
        });
    }
    for (group, damages) in &report.damaged {
        findings.add(Finding {
            severity: Severity::Damage,
            kind: format!("{group} lost records"),
            file: damages.first().map(|damage| damage.file.clone()),
            offset: damages.first().map(|damage| damage.offset),
            detail: "nobody can tell which; this replica takes no part".to_owned(),
        });
    }
    for (group, lost) in &report.lost_entries {
        let Some(first) = lost.first() else { continue };
        findings.add(Finding {
            severity: Severity::Damage,
            kind: format!("{group} lost the contents of entries"),
            file: Some(first.damage.file.clone()),
            offset: Some(first.damage.offset),
            detail: format!(
                "{} of them, the first at index {} of term {}; the node starts all the same, and \
                 fetches them from other replicas",
                lost.len(),
                first.position.index.get(),
                first.position.term.get()
            ),
        });
    }
    let unreadable = examination.unreadable_blocks();
    if unreadable > 0 {
        findings.add(Finding {
            severity: Severity::Disk,
            kind: "unreadable blocks".to_owned(),
            file: None,
            offset: None,
            detail: format!("the disk refused to read {unreadable} blocks of 4 KiB"),
        });
    }
    Ok(())
}

fn damage_finding(damage: &Damage, report: &RecoveryReport) -> Finding {
    let hit = report.damaged.iter().filter(|(_, places)| places.contains(damage));
    // Of a lost entry no more may be known than where its batch starts.
    let here = |at: &Damage| at.file == damage.file;
    let all = report.lost_entries.values().flatten().map(|lost| &lost.damage);
    let batches = all.filter(|at| here(at) && at.kind == DamageKind::Batch);
    let batch = batches.map(|at| at.offset).filter(|&start| start <= damage.offset).max();
    let meant = |at: &Damage| here(at) && (at.offset == damage.offset || Some(at.offset) == batch);
    let lost = report.lost_entries.iter();
    let lost = lost.filter(|(_, lost)| lost.iter().any(|lost| meant(&lost.damage)));
    let groups: BTreeSet<_> = hit.map(|(group, _)| group).chain(lost.map(|(g, _)| g)).collect();
    let groups: Vec<String> = groups.into_iter().map(ToString::to_string).collect();
    let detail = if groups.is_empty() {
        "no group lost what it needs to start; values in it may be lost".to_owned()
    } else {
        format!("records of {} are lost", groups.join(", "))
    };
    Finding {
        severity: Severity::Damage,
        kind: damage.kind.to_string(),
        file: Some(damage.file.clone()),
        offset: Some(damage.offset),
        detail,
    }
}

/// Checks both checkpoints of a core, and that every value they refer to is there.
fn read_checkpoints(
    log: &Log,
    dir: &Offline,
    examination: &mut Examination<'_, RealDisk>,
    facts: &mut Facts,
    findings: &mut Findings,
) -> Result<(), Fatal> {
    let Some(identity) = log.identity else { return Ok(()) };
    let (checkpoints, report) = open_checkpoints(&log.disk, identity).map_err(storage_error)?;
    let bad = |kind: String, file: &str, offset, detail: &str| Finding {
        severity: Severity::Damage,
        kind,
        file: Some(file.to_owned()),
        offset,
        detail: detail.to_owned(),
    };
    let before = if checkpoints.is_empty() { "no checkpoint is left" } else { "another is used" };
    for damaged in report.damaged_files {
        findings.add(bad(damaged.damage.to_string(), &damaged.file, None, before));
    }
    let count = checkpoints.iter().flat_map(|checkpoint| checkpoint.sections()).count();
    let bar = progress(count as u64).with_message(format!("{} checkpoints", facts.log));
    for (at, checkpoint) in checkpoints.iter().enumerate() {
        facts.checkpoints += 1;
        for (group, shard, section) in checkpoint.sections() {
            bar.inc(1);
            facts.sections += 1;
            let bytes = match section {
                Ok(bytes) => bytes,
                Err(damaged) => {
                    let falls_back = checkpoints[at + 1..]
                        .iter()
                        .any(|older| matches!(older.section(group, shard), Some(Ok(_))));
                    let detail = if falls_back {
                        "the one before has it whole, and the log reaches back to that"
                    } else {
                        "no older checkpoint has it"
                    };
                    let kind = format!("{group} shard {shard}, {}", damaged.damage);
                    findings.add(bad(kind, &damaged.file, Some(damaged.offset), detail));
                    continue;
                }
            };
            let mut values = Values { examination, facts, findings, group, bar: &bar };
            let read = offline::section(bytes, dir.shards, &mut |key, at| values.check(key, at));
            match read {
                Some(section) if section.group == group && section.shard.0 == shard => {
                    facts.keys += if at == 0 { section.items } else { 0 };
                }
                _ => {
                    let kind = format!("{group} shard {shard} is no index of that shard");
                    findings.add(bad(kind, checkpoint.file(), None, "its checksum is right"));
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Values that a checkpoint refers to.
struct Values<'a, 'b> {
    examination: &'a mut Examination<'b, RealDisk>,
    facts: &'a mut Facts,
    findings: &'a mut Findings,
    group: GroupId,
    bar: &'a ProgressBar,
}

impl Values<'_, '_> {
    fn check(&mut self, key: &[u8], at: StoredAt) {
        self.facts.values_in_log += 1;
        if self.facts.values_in_log.is_multiple_of(VALUES_STEP) {
            self.bar.tick();
        }
        let (severity, why) = match self.examination.value(at.place, at.payload_len) {
            Ok(record) if at.matches(self.group, key, &record) => return,
            Ok(_) => (Severity::Damage, "the record there is of another key or length".to_owned()),
            Err(error @ ValueError::Io { .. }) => (Severity::Disk, error.to_string()),
            Err(error) => (Severity::Damage, error.to_string()),
        };
        self.findings.add(Finding {
            severity,
            kind: "value not there".to_owned(),
            file: None,
            offset: None,
            detail: format!(
                "key {} of {}, in {}: {why}",
                super::readable(key),
                self.group,
                at.place
            ),
        });
    }
}
