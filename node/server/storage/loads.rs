//! Entries on their way back from the disk, for consensus and for other replicas.

use std::collections::BTreeMap;
use std::io;

use coracle_engine::{Input, Load};
use coracle_ring::AlignedBuf;
use coracle_wal::{ReadAround, ReadOp};

use super::keys::{Read, key};
use super::open_file;
use super::values::Log;

/// Pieces of one load that a ring key can number.
const PIECE_BITS: u32 = 16;

/// Entries that are being read back; their pieces arrive one by one.
struct OpenLoad {
    load: Load,
    pieces: Vec<(ReadOp, ReadAround)>,
    /// Reads under way.
    missing: usize,
    /// Why the first of them that failed did.
    failed: Option<io::Error>,
}

/// All loads under way.
#[derive(Default)]
pub(super) struct Loads {
    open: BTreeMap<u64, OpenLoad>,
    next: u64,
}

impl Loads {
    /// Starts to read entries back; gives the answer at once if that is impossible.
    pub(super) fn start(&mut self, load: Load, log: &mut Log<'_>) -> Option<Input> {
        let ops = match log.wal.locate(load.group, load.first, load.last, load.bytes_max) {
            Ok(ops) => ops,
            Err(error) => return Some(answer(&load, Err(error.to_string()))),
        };
        let pieces = ops.into_iter().take((1 << PIECE_BITS) - 1);
        let pieces: Vec<_> = pieces
            .map(|op| {
                let around = ReadAround::new(op.offset, op.len);
                (op, around)
            })
            .collect();
        let mut open = OpenLoad { load, missing: 0, failed: None, pieces };
        for piece in 0..open.pieces.len() {
            open.read(self.next, piece, log);
            if open.failed.is_some() {
                break;
            }
        }
        if open.missing == 0 {
            return Some(open.finish(log));
        }
        self.open.insert(self.next, open);
        self.next += 1;
        None
    }

    /// A read has completed; gives the answer if that was all of it.
    pub(super) fn read_done(
        &mut self,
        key: u64,
        result: io::Result<usize>,
        buffer: AlignedBuf,
        log: &mut Log<'_>,
    ) -> Option<Input> {
        let number = key >> PIECE_BITS;
        let open = self.open.get_mut(&number)?;
        let piece = (key & ((1 << PIECE_BITS) - 1)) as usize;
        open.missing -= 1;
        let read = match result {
            Ok(_) => Some(buffer),
            Err(error) => {
                open.failed.get_or_insert(error);
                None
            }
        };
        open.pieces[piece].1.take(read);
        open.read(number, piece, log);
        if open.missing > 0 {
            return None;
        }
        let open = self.open.remove(&number)?;
        Some(open.finish(log))
    }
}

impl OpenLoad {
    /// Reads what is still wanted of a piece, if that can be read.
    fn read(&mut self, number: u64, piece: usize, log: &mut Log<'_>) {
        let (op, around) = &self.pieces[piece];
        let Some((offset, len)) = around.wanted() else { return };
        match open_file(log.files, log.wal, log.ring, op.segment) {
            Ok(file) => {
                let key = key(Read::Entries, (number << PIECE_BITS) | piece as u64);
                log.ring.read(file, key, offset, AlignedBuf::zeroed(len), len);
                self.missing += 1;
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn finish(self, log: &Log<'_>) -> Input {
        let (ops, buffers): (Vec<_>, Vec<_>) =
            self.pieces.into_iter().map(|(op, around)| (op, around.into_content())).unzip();
        let entries = log.wal.decode_entries(&ops, &buffers);
        let why =
            |error| self.failed.map_or_else(|| format!("{error}"), |failed| failed.to_string());
        answer(&self.load, entries.map_err(why))
    }
}

const fn answer(load: &Load, entries: Result<Vec<coracle_raft::Entry>, String>) -> Input {
    Input::EntriesLoaded { group: load.group, first: load.first, entries }
}
