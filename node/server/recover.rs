//! From the files of a core to a core that goes on: its checkpoints, then its log.
//!
//! What damage costs is logged here by file and place. Groups that lost no more than contents of
//! entries fetch them later; others take no part. Not here: what the bytes mean (`wal`, `engine`).

use std::path::Path;
use std::time::Instant;

use coracle_engine::{Core, CoreAddr, Recovery};
use coracle_raft::{GroupId, LogPosition, Place, Record};
use coracle_wal::{
    Brief, CheckpointReport, Identity, Options, RealDisk, RecoveryReport, Visitor, Wal,
};

use super::shared::Shared;
use super::start::core_config;
use super::storage::{Newest, storage_error};
use crate::fatal::{Exit, Fatal};

/// Log writes in flight per core: four instead of two gave 6 % more writes/s at saturation
/// (docs/benchmarks.md).
const WRITES_IN_FLIGHT: usize = 4;

/// Reads what a core left: the core, its log, and its newest checkpoint.
pub(super) fn recover(
    shared: &Shared,
    me: CoreAddr,
    dir: &Path,
) -> Result<(Core, Wal<RealDisk>, Option<Newest>), Fatal> {
    let config = shared.config();
    let disk = RealDisk::open(dir, config.wal.direct_io).map_err(storage_error)?;
    let identity =
        Identity { cluster: shared.cluster_id(), node: me.node, core: u32::from(me.core.0) };
    let options = Options { inflight_max: WRITES_IN_FLIGHT, ..config.wal.options(identity) };
    let mut recovery = Recovery::new(shared.map().clone(), me);
    let began = Instant::now();
    let newest = read_checkpoints(&disk, identity, me, &mut recovery)?;
    let log_began = Instant::now();
    let visitor = &mut Collect(&mut recovery);
    let (wal, report) = coracle_wal::recover_into(disk, options, visitor).map_err(storage_error)?;
    log_recovery(me, &report, seconds(log_began));
    for group in shared.map().groups_on(me) {
        if report.is_damaged(group) {
            recovery.mark_damaged(group, "its part of the log is damaged");
        }
    }
    refuse_damage(shared, me, &recovery, &report)?;
    let core = Core::new(core_config(shared, me), recovery);
    tracing::info!(
        target: "wal",
        core = me.core.0,
        keys = core.keys_hosted(),
        seconds = seconds(began),
        "recovered from checkpoint and log"
    );
    Ok((core, wal, newest))
}

/// Hands all sections that can be read to the recovery, those of the newest file first. Returns
/// the newest file.
fn read_checkpoints(
    disk: &RealDisk,
    identity: Identity,
    me: CoreAddr,
    recovery: &mut Recovery,
) -> Result<Option<Newest>, Fatal> {
    let began = Instant::now();
    let (checkpoints, report) = coracle_wal::read_checkpoints(disk, identity, &mut |section| {
        recovery.section(section.checkpoint, section.bytes);
    })
    .map_err(storage_error)?;
    let CheckpointReport { newest_number, damaged_files, damaged_sections } = report;
    for damaged in damaged_files {
        tracing::warn!(target: "wal", core = me.core.0, "checkpoint not used: {damaged}");
    }
    for damaged in damaged_sections {
        tracing::warn!(target: "wal", core = me.core.0, "part of a checkpoint not used: {damaged}");
    }
    recovery.taken_numbers(newest_number);
    let newest = checkpoints.first();
    tracing::info!(
        target: "wal",
        core = me.core.0,
        checkpoint = newest.map_or(0, |newest| newest.number),
        bytes = newest.map_or(0, |newest| newest.section_bytes),
        bytes_read = checkpoints.iter().map(|checkpoint| checkpoint.file_bytes).sum::<u64>(),
        seconds = seconds(began),
        "checkpoints read"
    );
    Ok(newest.map(|newest| Newest { number: newest.number, bytes: newest.section_bytes }))
}

/// The log goes to the recovery without the content that it does not want.
struct Collect<'a>(&'a mut Recovery);

impl Visitor for Collect<'_> {
    fn record(&mut self, place: Place, record: Record) {
        self.0.record(place, record);
    }

    fn brief(&mut self, brief: &Brief) -> bool {
        let Brief { place, group, position, bytes_behind, .. } = *brief;
        self.0.brief(place, group, position, bytes_behind)
    }

    fn lost(&mut self, place: Place, group: GroupId, position: LogPosition) {
        self.0.lost(place, group, position);
    }
}

/// Seconds since `began`, in whole milliseconds.
fn seconds(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1e3).round() / 1e3
}

/// Tells which groups take no part. Without other replicas that is the end.
fn refuse_damage(
    shared: &Shared,
    me: CoreAddr,
    recovery: &Recovery,
    report: &RecoveryReport,
) -> Result<(), Fatal> {
    let mut damaged = recovery.damaged();
    for (group, why) in &damaged {
        tracing::error!(
            target: "wal", core = me.core.0, %group, why,
            "this replica takes no part"
        );
    }
    damaged.extend(report.lost_entries.keys().map(|&group| (group, String::new())));
    if damaged.is_empty() || shared.map().nodes().len() > 1 {
        return Ok(());
    }
    Err(Fatal::new(
        Exit::DataDamaged,
        "the log is damaged, and no other replica has its content",
        format!("{} groups are affected; see the log lines for files and offsets", damaged.len()),
        "restore the data directory from a backup",
    ))
}

fn log_recovery(me: CoreAddr, report: &RecoveryReport, seconds: f64) {
    let RecoveryReport { segments, value_segments, batches, records, bytes, bytes_read, .. } =
        *report;
    tracing::info!(
        target: "wal",
        core = me.core.0,
        segments,
        value_segments,
        batches,
        records,
        bytes,
        bytes_read,
        healed = report.healed,
        unreadable_blocks = report.unreadable_blocks,
        restored_batches = report.restored,
        restored_headers = report.headers_restored,
        seconds,
        "log read"
    );
    if let Some(torn) = &report.torn {
        tracing::info!(target: "wal", core = me.core.0, "{torn}");
    }
    for damage in &report.unattributed {
        tracing::warn!(target: "wal", core = me.core.0, "damaged, of unknown groups: {damage}");
    }
    for damage in &report.values_damaged {
        tracing::warn!(target: "wal", core = me.core.0, "values lost: {damage}");
    }
    for (group, damages) in &report.damaged {
        for damage in damages {
            tracing::error!(target: "wal", core = me.core.0, %group, "damaged: {damage}");
        }
    }
    for (group, lost) in &report.lost_entries {
        let Some(first) = lost.first() else { continue };
        tracing::warn!(
            target: "wal",
            core = me.core.0,
            %group,
            entries = lost.len(),
            first_index = first.position.index.get(),
            first_term = first.position.term.get(),
            "contents of entries are lost: {}",
            first.damage
        );
    }
}
