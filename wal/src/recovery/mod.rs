//! Opening a log: what is in it, what is damaged, where to go on.
//!
//! The log proper is read once; of older segments, which are kept for their values, only the
//! headers are. The first step finds the batches, checks every byte, decides where the log ends
//! (`scan`, `start`) and keeps the headers of all records; the second finds out which groups lost
//! something (`evidence`), the third hands out the records (`deliver`). Both need the headers only,
//! but for the content that the visitor asks for; what is damaged, and what is behind more headers
//! than are kept, is read again. Then the files are put in order (`repair`).

mod deliver;
mod evidence;
mod examine;
mod repair;
mod report;
mod restore;
pub(crate) mod salvage;
mod scan;
mod start;
mod visit;

use coracle_raft::{Place, Record};

pub use examine::{Examination, Found, ValueError};
pub use report::{Damage, DamageKind, LostEntry, RecoveryReport, Torn};
pub use visit::{Brief, Visitor};

use crate::options::RECOVERY_HEADERS_MAX;
use crate::{Disk, Identity, Options, RecoverError, Wal};

/// Opens the log in a directory, an empty one included, and calls `visit` with the records of the
/// log proper, see [`Wal::log_start`], and where they stand.
///
/// What `visit` sees of one group: first a purge, if its log does not start at 1; then its hard
/// states, entries after the base, state records and values in the order they were appended. Of a
/// damaged group it sees only what was appended before the damage, and all later hard states. The
/// place of that first purge means nothing: what it says may stand in several.
///
/// Values may be needed that stand before the log proper. No segment is let go before
/// [`Wal::release_values_before`] tells which are not.
///
/// The log goes on in a fresh segment: run [`Wal::wanted_segments`] or [`Wal::prepare_segments`].
///
/// # Errors
/// See [`RecoverError`]. Damage is not an error: see [`RecoveryReport::is_damaged`].
pub fn recover<D: Disk>(
    disk: D,
    options: Options,
    visit: &mut dyn FnMut(Place, Record),
) -> Result<(Wal<D>, RecoveryReport), RecoverError> {
    recover_into(disk, options, &mut &mut *visit)
}

/// As [`recover`], for who does not need the content of all commands and values: see
/// [`Visitor::brief`].
///
/// # Errors
/// See [`RecoverError`].
pub fn recover_into<D: Disk>(
    disk: D,
    options: Options,
    visitor: &mut dyn Visitor,
) -> Result<(Wal<D>, RecoveryReport), RecoverError> {
    options.validate()?;
    let mut report = RecoveryReport::default();
    let mut reader = scan::Reader::new(&disk, options.recovery_headers_max);
    let mut survey = start::survey(&mut reader, Some(options.identity), &mut report)?;
    let restored = restore::restore(&mut reader, &mut survey)?;
    let evidence = evidence::gather(&mut reader, &survey, restored, &mut report)?;
    if evidence.groups.len() > options.groups_max {
        let (found, limit) = (evidence.groups.len(), options.groups_max);
        return Err(RecoverError::TooManyGroups { found, limit });
    }
    let groups = deliver::deliver(&mut reader, &survey, &evidence, visitor)?;
    report.unreadable_blocks = reader.unreadable_blocks();
    report.bytes_read = reader.bytes_read();
    let echoes = restore::last_batch(&mut reader, &survey, options.echo_parts_max())?;
    let mut wal = repair::open(disk.clone(), options, &survey, groups, &evidence, &mut report)?;
    wal.echoes = echoes;
    Ok((wal, report))
}

/// Reads a log without changing anything: for offline checks and dumps. Returns what
/// [`recover`] would report; with an identity it is compared.
///
/// # Errors
/// See [`RecoverError`].
pub fn inspect<D: Disk>(
    disk: &D,
    identity: Option<Identity>,
    visit: &mut dyn FnMut(Place, Record),
) -> Result<RecoveryReport, RecoverError> {
    inspect_into(disk, identity, &mut &mut *visit)
}

/// As [`inspect`], for who wants to know more: see [`Visitor`].
///
/// # Errors
/// See [`RecoverError`].
pub fn inspect_into<D: Disk>(
    disk: &D,
    identity: Option<Identity>,
    visitor: &mut dyn Visitor,
) -> Result<RecoveryReport, RecoverError> {
    let mut report = RecoveryReport::default();
    let mut reader = scan::Reader::new(disk, RECOVERY_HEADERS_MAX);
    let mut survey = start::survey(&mut reader, identity, &mut report)?;
    let restored = restore::restore(&mut reader, &mut survey)?;
    let evidence = evidence::gather(&mut reader, &survey, restored, &mut report)?;
    deliver::deliver(&mut reader, &survey, &evidence, visitor)?;
    report.unreadable_blocks = reader.unreadable_blocks();
    report.bytes_read = reader.bytes_read();
    Ok(report)
}
