//! From the files of a core to a core that goes on: its checkpoints, then its log.
//!
//! Damage ends here: what it costs is logged by file and place, and groups that lost something take
//! no part. Not here: what the bytes mean (`wal`, `engine`).

use std::path::Path;
use std::time::Instant;

use coracle_engine::{Core, CoreAddr, Recovery};
use coracle_wal::{CheckpointReport, Identity, Options, RealDisk, RecoveryReport, Wal};

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
    let from_checkpoints = began.elapsed();
    let visit = &mut |place, record| recovery.record(place, record);
    let (wal, report) = coracle_wal::recover(disk, options, visit).map_err(storage_error)?;
    let from_log = began.elapsed() - from_checkpoints;
    log_recovery(me, &report);
    for group in shared.map().groups_on(me) {
        if report.is_damaged(group) {
            recovery.mark_damaged(group, "its part of the log is damaged");
        }
    }
    refuse_damage(shared, me, &recovery)?;
    let core = Core::new(core_config(shared, me), recovery);
    tracing::info!(
        target: "wal",
        core = me.core.0,
        keys = core.keys_hosted(),
        checkpoint = newest.map_or(0, |newest| newest.number),
        checkpoint_bytes = newest.map_or(0, |newest| newest.bytes),
        log_bytes = report.bytes,
        checkpoint_seconds = from_checkpoints.as_secs_f64(),
        log_seconds = from_log.as_secs_f64(),
        seconds = began.elapsed().as_secs_f64(),
        "recovered from checkpoint and log"
    );
    Ok((core, wal, newest))
}

/// Hands all sections that can be read to the recovery, those of the older file first. Returns the
/// newest file.
fn read_checkpoints(
    disk: &RealDisk,
    identity: Identity,
    me: CoreAddr,
    recovery: &mut Recovery,
) -> Result<Option<Newest>, Fatal> {
    let (checkpoints, report) =
        coracle_wal::open_checkpoints(disk, identity).map_err(storage_error)?;
    let CheckpointReport { newest_number, damaged_files, damaged_sections } = report;
    for damaged in damaged_files {
        tracing::warn!(target: "wal", core = me.core.0, "checkpoint not used: {damaged}");
    }
    for damaged in damaged_sections {
        tracing::warn!(target: "wal", core = me.core.0, "part of a checkpoint not used: {damaged}");
    }
    let mut newest = None;
    for checkpoint in checkpoints.iter().rev() {
        let (number, mut bytes) = (checkpoint.number(), 0);
        for (_, _, section) in checkpoint.sections() {
            // Those that cannot be read were reported.
            if let Ok(section) = section {
                recovery.section(number, section);
                bytes += section.len() as u64;
            }
        }
        newest = Some(Newest { number, bytes });
    }
    recovery.taken_numbers(newest_number);
    Ok(newest)
}

/// Tells which groups take no part. Without other replicas that is the end.
fn refuse_damage(shared: &Shared, me: CoreAddr, recovery: &Recovery) -> Result<(), Fatal> {
    let damaged = recovery.damaged();
    for (group, why) in &damaged {
        tracing::error!(
            target: "wal", core = me.core.0, %group, why,
            "this replica takes no part until it is repaired"
        );
    }
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

fn log_recovery(me: CoreAddr, report: &RecoveryReport) {
    tracing::info!(target: "wal", core = me.core.0, "recovered: {report:?}");
    for damage in &report.values_damaged {
        tracing::warn!(target: "wal", core = me.core.0, "values lost: {damage}");
    }
    for (group, damages) in &report.damaged {
        for damage in damages {
            tracing::error!(target: "wal", core = me.core.0, %group, "damaged: {damage}");
        }
    }
}
