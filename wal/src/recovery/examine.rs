//! Reading a log offline, as it lies on the disk: every segment, batch and record of it, those kept
//! for their values only included, and values by their places.
//!
//! Nothing is changed, and nothing but one segment at a time is held in memory, beside a few dozen
//! bytes per batch.

use std::collections::BTreeMap;

use coracle_raft::{Place, Record};

use super::evidence::{self, each_piece};
use super::report::{Damage, DamageKind, RecoveryReport};
use super::salvage::Piece;
use super::scan::{Reader, Span, SpanKind, Survey, walk};
use super::{restore, start};
use crate::format::{RECORD_HEADER_BYTES, RecordKind, record_bytes};
use crate::options::RECOVERY_HEADERS_MAX;
use crate::value::self_located;
use crate::{Disk, Identity, LoadError, RecoverError};

/// Segment files held open for reading values.
const OPEN_MAX: usize = 64;

/// What stands in a log.
#[derive(Debug)]
pub enum Found {
    /// A segment begins.
    Segment {
        /// Its number.
        number: u64,
        /// Length of its file.
        file_bytes: u64,
        /// It is kept for its values only.
        values_only: bool,
    },
    /// A batch whose header is whole.
    Batch,
    /// A record that passed every check.
    Record {
        /// Where it stands.
        place: Place,
        /// What it is.
        record: Record,
        /// It is a purge that ends the old log: entries before it need not belong to the log.
        ends_log: bool,
    },
    /// Something that is not what was written.
    Damage(Damage),
}

/// Why a value cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The bytes there are not the record, or there is none.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The disk cannot read it.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The segment.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A log that is read offline.
pub struct Examination<'a, D: Disk> {
    reader: Reader<'a, D>,
    survey: Survey,
    report: RecoveryReport,
    files: BTreeMap<usize, D::File>,
}

impl<'a, D: Disk> Examination<'a, D> {
    /// Finds out what there is and what [`recover`](crate::recover) would say of it. With an
    /// identity it is compared.
    ///
    /// # Errors
    /// See [`RecoverError`].
    pub fn open(disk: &'a D, identity: Option<Identity>) -> Result<Self, RecoverError> {
        let mut report = RecoveryReport::default();
        let mut reader = Reader::new(disk, RECOVERY_HEADERS_MAX);
        let mut survey = start::survey(&mut reader, identity, &mut report)?;
        let restored = restore::restore(&mut reader, &mut survey)?;
        evidence::gather(&mut reader, &survey, restored, &mut report)?;
        report.unreadable_blocks = reader.unreadable_blocks();
        Ok(Self { reader, survey, report, files: BTreeMap::new() })
    }

    /// What [`recover`](crate::recover) would report.
    pub const fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Whose log it is, by the first segment that says so.
    pub fn identity(&self) -> Option<Identity> {
        let headers = self.survey.segments.iter().filter(|segment| !segment.told_by_batch);
        headers.filter_map(|segment| segment.header).map(|header| header.identity).next()
    }

    /// Length of all segment files.
    pub fn file_bytes(&self) -> u64 {
        self.survey.segments.iter().map(|segment| segment.file_bytes).sum()
    }

    /// Blocks of 4 KiB that the disk has refused to read so far.
    pub fn unreadable_blocks(&self) -> u64 {
        self.reader.unreadable_blocks()
    }

    /// Reads everything once, in the order of the log, up to its end.
    ///
    /// # Errors
    /// [`RecoverError::Io`] if a file cannot be opened. What cannot be read in it is damage.
    pub fn each(&mut self, visit: &mut dyn FnMut(Found)) -> Result<(), RecoverError> {
        let used = self.report.segments.max(self.survey.log_start);
        for at in 0..used {
            let segment = &self.survey.segments[at];
            let values_only = at < self.survey.log_start;
            let (number, file_bytes) = (segment.id.number(), segment.file_bytes);
            visit(Found::Segment { number, file_bytes, values_only });
            let spans: Vec<Span> = if values_only {
                let bytes = self.reader.load(&self.survey.segments, at)?;
                walk(at, &self.survey.segments[at], bytes).0
            } else {
                let spans = self.survey.spans.iter();
                spans.filter(|span| span.segment == at).cloned().collect()
            };
            for span in &spans {
                self.span(span, visit)?;
            }
        }
        Ok(())
    }

    fn span(&mut self, span: &Span, visit: &mut dyn FnMut(Found)) -> Result<(), RecoverError> {
        let segment = &self.survey.segments[span.segment];
        let (number, file) = (segment.id.number(), self.reader.disk.display(&segment.name));
        let damage = |offset, kind| Found::Damage(Damage { file: file.clone(), offset, kind });
        match span.kind {
            SpanKind::Blind => {
                visit(damage(0, DamageKind::Segment));
                return Ok(());
            }
            SpanKind::Hole => visit(damage(span.offset, DamageKind::Batch)),
            SpanKind::Whole(_) | SpanKind::Broken(_) => visit(Found::Batch),
        }
        let mut told = !matches!(span.kind, SpanKind::Broken(_));
        each_piece(&mut self.reader, &self.survey, span, &mut |piece| match piece {
            Piece::Record { header, payload, payload_ok: true } => {
                let place = Place::new(number, span.offset + u64::from(header.offset));
                let ends_log = matches!(header.kind, RecordKind::Purge { restart: true, .. });
                if let Some(record) = header.to_record(payload) {
                    visit(Found::Record { place, record, ends_log });
                }
            }
            Piece::Record { header, .. } => {
                told = true;
                visit(damage(span.offset + u64::from(header.offset), DamageKind::Payload));
            }
            Piece::Lost(range) if span.batch().is_some() => {
                told = true;
                visit(damage(span.offset + range.start as u64, DamageKind::Records));
            }
            // In a hole that was told already.
            Piece::Lost(_) => {}
        })?;
        if !told {
            visit(damage(span.offset, DamageKind::Batch));
        }
        Ok(())
    }

    /// The record in a place, after every check that recovery makes.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn value(&mut self, place: Place, payload_len: usize) -> Result<Record, ValueError> {
        let first = self.survey.segments.first().map_or(0, |segment| segment.id.number());
        let at = place.segment().checked_sub(first).and_then(|at| usize::try_from(at).ok());
        let at = at.filter(|&at| at < self.survey.segments.len());
        let at = at.ok_or(LoadError::NoRecord { place })?;
        let segment = &self.survey.segments[at];
        let file = || self.reader.disk.display(&segment.name);
        let damaged = || LoadError::Damaged { file: file(), offset: place.offset() };
        let header = segment.header.ok_or_else(damaged)?;
        if header.first_lsn.plus(place.offset()) >= self.report.end {
            return Err(LoadError::NoRecord { place }.into());
        }
        let io = |source| ValueError::Io { file: file(), source };
        if !self.files.contains_key(&at) {
            if self.files.len() >= OPEN_MAX {
                self.files.clear();
            }
            self.files.insert(at, self.reader.disk.open_for_scan(&segment.name).map_err(io)?);
        }
        let end = segment.file_bytes.min(segment.segment_bytes);
        let room = usize::try_from(end.saturating_sub(place.offset())).unwrap_or(usize::MAX);
        let mut bytes = vec![0; record_bytes(payload_len).min(room)];
        let read = |bytes: &mut [u8]| {
            self.reader.disk.read_at(&self.files[&at], place.offset(), bytes).map_err(io)
        };
        read(&mut bytes)?;
        let found = self_located(&header, place.offset(), &bytes).ok_or_else(damaged)?;
        let needed = RECORD_HEADER_BYTES + found.payload_len as usize;
        if needed > bytes.len() {
            if needed > room {
                return Err(damaged().into());
            }
            bytes.resize(needed, 0);
            read(&mut bytes)?;
        }
        let payload = &bytes[RECORD_HEADER_BYTES..needed];
        if crc32c::crc32c(payload) != found.payload_crc {
            return Err(damaged().into());
        }
        Ok(found.to_record(payload).ok_or_else(damaged)?)
    }
}
