//! Which writes were acknowledged: kept exactly, so that a later check can prove a loss.
//!
//! The file is a journal of lines while the run goes on and one line per key after it, so what a
//! killed generator leaves behind can be checked too:
//!
//! ```text
//! {"format":"coracle-acked","version":1,"key_prefix":"key:","keys":1000,"value_size":100}
//! [17,1700000000000000003,[1700000000000000001]]
//! ```
//!
//! A line says: the highest acknowledged sequence number of a key (0: none), then the sequence
//! numbers of writes whose outcome is unknown. For several lines of a key the highest and the
//! union count. Sequence numbers rise within a run and from run to run (they start at the wall
//! clock in nanoseconds), so a value tells by itself whether it is older than another.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::options::Options;

/// Most writes of unknown outcome that are remembered.
const UNKNOWN_MAX: usize = 1 << 20;

/// What a check run must know to find the values again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    format: String,
    version: u32,
    pub(crate) key_prefix: String,
    pub(crate) keys: u64,
    pub(crate) value_size: usize,
}

/// Records writes during a run.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    header: Header,
    journal: BufWriter<File>,
    failure: Option<io::Error>,
    next_sequence: u64,
    /// Per key: highest acknowledged sequence number.
    acked: Vec<u64>,
    /// One bit per key.
    in_flight: Vec<u64>,
    unknown: HashMap<u64, Vec<u64>>,
    totals: Totals,
}

/// What was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Acknowledged writes.
    pub acked: u64,
    /// Writes whose outcome is unknown.
    pub unknown: u64,
}

/// What a ledger file says of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    pub(crate) acked: u64,
    pub(crate) unknown: Vec<u64>,
}

impl Ledger {
    /// Starts a new file; `first_sequence` must be above every earlier run's.
    pub(crate) fn create(path: &Path, options: &Options, first_sequence: u64) -> io::Result<Self> {
        let header = Header {
            format: "coracle-acked".to_owned(),
            version: 1,
            key_prefix: options.key_prefix.clone(),
            keys: options.keys,
            value_size: options.value_size,
        };
        let mut journal = BufWriter::with_capacity(1 << 16, File::create(path)?);
        serde_json::to_writer(&mut journal, &header)?;
        journal.write_all(b"\n")?;
        let keys = usize::try_from(options.keys).expect("validated to be few");
        Ok(Self {
            path: path.to_owned(),
            header,
            journal,
            failure: None,
            next_sequence: first_sequence,
            acked: vec![0; keys],
            in_flight: vec![0; keys.div_ceil(64)],
            unknown: HashMap::new(),
            totals: Totals::default(),
        })
    }

    /// The sequence number of a new write of this key; `None` while another one is in flight.
    pub(crate) fn begin(&mut self, key: u64) -> Option<u64> {
        let (word, bit) = (&mut self.in_flight[(key / 64) as usize], 1 << (key % 64));
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        self.next_sequence += 1;
        Some(self.next_sequence)
    }

    /// The sequence number that a read sent now must find, or a later one; 0 if there is none.
    pub(crate) fn floor(&self, key: u64) -> u64 {
        self.acked[key as usize]
    }

    /// Whether a read that had to find `floor` may find `found` (0: nothing): an older write is
    /// right only if its outcome was unknown, because then it may have happened late.
    pub(crate) fn may_read(&self, key: u64, floor: u64, found: u64) -> bool {
        found >= floor || self.unknown.get(&key).is_some_and(|list| list.contains(&found))
    }

    /// The server acknowledged the write.
    pub(crate) fn acked(&mut self, key: u64, sequence: u64) {
        self.end(key);
        let acked = &mut self.acked[key as usize];
        assert!(*acked < sequence, "key {key}: write {sequence} after {acked}");
        *acked = sequence;
        self.totals.acked += 1;
        self.note(|file| writeln!(file, "[{key},{sequence},[]]"));
    }

    /// It cannot be known whether the write happened, or will.
    pub(crate) fn unknown(&mut self, key: u64, sequence: u64) {
        self.end(key);
        self.totals.unknown += 1;
        if self.totals.unknown as usize > UNKNOWN_MAX {
            let text = format!("more than {UNKNOWN_MAX} writes have an unknown outcome");
            self.failure.get_or_insert_with(|| io::Error::other(text));
            return;
        }
        self.unknown.entry(key).or_default().push(sequence);
        self.note(|file| writeln!(file, "[{key},0,[{sequence}]]"));
    }

    /// The server said that the write did not happen.
    pub(crate) fn refused(&mut self, key: u64) {
        self.end(key);
    }

    /// Hands everything to the operating system; fails if any record could not be written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => self.journal.flush(),
        }
    }

    /// Replaces the journal by one line per key.
    pub(crate) fn finish(mut self) -> io::Result<Totals> {
        self.flush()?;
        let mut compact = self.path.clone().into_os_string();
        compact.push(".tmp");
        let mut file = BufWriter::new(File::create(&compact)?);
        serde_json::to_writer(&mut file, &self.header)?;
        file.write_all(b"\n")?;
        for (key, acked) in (0u64..).zip(&self.acked) {
            let unknown = self.unknown.get(&key).map_or(&[][..], Vec::as_slice);
            if *acked != 0 || !unknown.is_empty() {
                write!(file, "[{key},{acked},")?;
                serde_json::to_writer(&mut file, unknown)?;
                file.write_all(b"]\n")?;
            }
        }
        file.into_inner()?.sync_all()?;
        std::fs::rename(&compact, &self.path)?;
        Ok(self.totals)
    }

    fn end(&mut self, key: u64) {
        let (word, bit) = (&mut self.in_flight[(key / 64) as usize], 1 << (key % 64));
        assert!(*word & bit != 0, "key {key} has no write in flight");
        *word &= !bit;
    }

    fn note(&mut self, line: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        if let Err(failure) = line(&mut self.journal) {
            self.failure.get_or_insert(failure);
        }
    }
}

/// Reads a ledger file, also one that was cut off in its last line.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Header, BTreeMap<u64, KeyRecord>)> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut file = BufReader::new(file);
    let mut line = String::new();
    file.read_line(&mut line)?;
    let header: Header = serde_json::from_str(&line)
        .with_context(|| format!("{name} does not start like a file of --verify-acked"))?;
    anyhow::ensure!(
        header.format == "coracle-acked" && header.version == 1,
        "{name} has format {} version {}, but coracle-acked version 1 is needed",
        header.format,
        header.version
    );
    let mut records: BTreeMap<u64, KeyRecord> = BTreeMap::new();
    for number in 2u64.. {
        line.clear();
        file.read_line(&mut line)?;
        if !line.ends_with('\n') {
            break; // the end, or a line that a killed run did not finish
        }
        let (key, acked, mut unknown): (u64, u64, Vec<u64>) = serde_json::from_str(&line)
            .with_context(|| format!("line {number} of {name} is damaged"))?;
        anyhow::ensure!(
            key < header.keys,
            "line {number} of {name}: key {key}, but there are only {}",
            header.keys
        );
        let record = records.entry(key).or_default();
        record.acked = record.acked.max(acked);
        record.unknown.append(&mut unknown);
    }
    for record in records.values_mut() {
        record.unknown.sort_unstable();
        record.unknown.dedup();
    }
    Ok((header, records))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { keys: 100, value_size: 50, ..Options::default() }
    }

    fn filled(path: &Path) -> Ledger {
        let mut ledger = Ledger::create(path, &options(), 1000).expect("created");
        let first = ledger.begin(70).expect("free");
        assert_eq!(ledger.begin(70), None, "a key is never in flight twice");
        assert_eq!(ledger.begin(6), Some(first + 1), "its neighbour in the next word is free");
        ledger.acked(70, first);
        ledger.refused(6);
        let lost = ledger.begin(70).expect("free again");
        ledger.unknown(70, lost);
        assert_eq!(ledger.floor(70), first);
        assert!(ledger.may_read(70, first, first) && ledger.may_read(70, first, lost));
        assert!(!ledger.may_read(70, lost + 1, first) && !ledger.may_read(70, first, 0));
        assert!(ledger.may_read(70, lost + 1, lost), "its outcome is unknown: it may come late");
        let last = ledger.begin(70).expect("free after an unknown outcome");
        ledger.acked(70, last);
        ledger
    }

    fn expected() -> BTreeMap<u64, KeyRecord> {
        BTreeMap::from([(70, KeyRecord { acked: 1004, unknown: vec![1003] })])
    }

    /// The journal of a killed run says the same as the file of a finished one.
    #[test]
    fn journal_and_finished_file_agree() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("acked");
        let mut ledger = filled(&path);
        ledger.flush().expect("flushed");
        let (header, journal) = read(&path).expect("journal");
        assert_eq!((header.keys, header.value_size), (100, 50));
        assert_eq!(journal, expected());

        assert_eq!(ledger.finish().expect("finished"), Totals { acked: 2, unknown: 1 });
        assert_eq!(read(&path).expect("finished file"), (header, expected()));
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(text.lines().nth(1), Some("[70,1004,[1003]]"));
    }

    #[test]
    fn a_cut_off_line_is_ignored_and_a_damaged_one_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("acked");
        filled(&path).finish().expect("finished");
        let whole = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, format!("{whole}[3,99")).expect("written");
        assert_eq!(read(&path).expect("cut").1, expected());
        std::fs::write(&path, format!("{whole}[3,99\n")).expect("written");
        assert!(read(&path).expect_err("damaged").to_string().contains("line 3"));
        std::fs::write(&path, format!("{whole}[100,99,[]]\n")).expect("written");
        assert!(read(&path).expect_err("range").to_string().contains("only 100"));
        std::fs::write(&path, "hello\n").expect("written");
        assert!(read(&path).is_err());
    }
}
