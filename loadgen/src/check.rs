//! Whether every recorded write is still there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use coracle_engine::{Reply, SLOT_COUNT, SlotId};
use coracle_net::resp;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::client::{Client, Unreachable, resolve};
use crate::layout::{self, parse_moved};
use crate::ledger::{self, Header, KeyRecord};
use crate::options::Options;
use crate::request::{Encoder, STAMP_BYTES, filler, read_stamp};

/// Keys asked for at once.
const BATCH: usize = 128;

/// Losses described in the report; all are counted.
const EXAMPLES_MAX: usize = 20;

/// How long a key may be unavailable before the check gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of the recorded writes. Counts are of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Keys with a record.
    pub keys: u64,
    /// The value is the last acknowledged one.
    pub exact: u64,
    /// The value is newer than it: a write of unknown outcome, or of a later run.
    pub newer: u64,
    /// The value is older, but its write had an unknown outcome: it may have happened later.
    pub late: u64,
    /// Nothing was acknowledged and nothing is there.
    pub empty: u64,
    /// The last acknowledged value is gone: the key is missing or has an older value.
    pub lost: u64,
    /// The value is not what this generator wrote to this key.
    pub damaged: u64,
    /// The first lost and damaged ones.
    pub examples: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is lost or damaged.
    pub const fn is_clean(&self) -> bool {
        self.lost == 0 && self.damaged == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text);
        }
    }

    /// Counts one key.
    fn judge(&mut self, key: &str, number: u64, record: &KeyRecord, value: Value<'_>) {
        self.keys += 1;
        let acked = record.acked;
        let sequence = match value {
            Value::Missing if acked == 0 => {
                self.empty += 1;
                return;
            }
            Value::Missing => {
                self.lost += 1;
                self.example(format!("{key} is missing; write {acked} was acknowledged"));
                return;
            }
            Value::Here { bytes, tail } => match read_stamp(bytes) {
                Some((stamped, sequence))
                    if stamped == number && bytes.get(STAMP_BYTES..) == Some(tail) =>
                {
                    sequence
                }
                _ => {
                    self.damaged += 1;
                    self.example(format!(
                        "{key} has {} bytes that were not written to it: {}…",
                        bytes.len(),
                        bytes[..bytes.len().min(STAMP_BYTES)].escape_ascii()
                    ));
                    return;
                }
            },
        };
        if sequence == acked {
            self.exact += 1;
        } else if sequence > acked {
            self.newer += 1;
        } else if record.unknown.binary_search(&sequence).is_ok() {
            self.late += 1;
        } else {
            self.lost += 1;
            self.example(format!("{key} has write {sequence}; write {acked} was acknowledged"));
        }
    }
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Missing,
    /// `tail` is what must follow the stamp.
    Here {
        bytes: &'a [u8],
        tail: &'a [u8],
    },
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "checked {} keys with recorded writes", self.keys)?;
        let rows = [
            ("last acknowledged", self.exact),
            ("newer", self.newer),
            ("late unknown outcome", self.late),
            ("never acknowledged", self.empty),
            ("LOST", self.lost),
            ("DAMAGED", self.damaged),
        ];
        for (name, count) in rows {
            writeln!(f, "{name:<22}{count:>16}")?;
        }
        for example in &self.examples {
            writeln!(f, "  {example}")?;
        }
        if self.is_clean() {
            writeln!(f, "No acknowledged write is lost.")
        } else {
            writeln!(f, "Acknowledged writes are lost or damaged.")
        }
    }
}

/// Reads back every key of the file.
pub(crate) fn run(
    path: &Path,
    options: &Options,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> anyhow::Result<CheckReport> {
    let (header, records) = ledger::read(path)?;
    bar.set_length(records.len() as u64);
    let mut reader = Reader::new(&header, options)?;
    let tail = filler(header.value_size).split_off(STAMP_BYTES.min(header.value_size));
    let mut report = CheckReport::default();
    let numbers: Vec<u64> = records.keys().copied().collect();
    for batch in numbers.chunks(BATCH) {
        if stop.load(Ordering::Relaxed) {
            bail!("stopped after {} of {} keys", report.keys, records.len());
        }
        for (number, reply) in reader.read(batch)? {
            let key = String::from_utf8_lossy(reader.key(number)).into_owned();
            let value = match &reply {
                Reply::Null => Value::Missing,
                Reply::Bulk(bytes) => Value::Here { bytes, tail: &tail },
                other => bail!("GET {key} was answered with {other:?}"),
            };
            report.judge(&key, number, &records[&number], value);
        }
        bar.inc(batch.len() as u64);
    }
    Ok(report)
}

/// Reads keys in batches, following redirections and waiting out elections.
struct Reader {
    encoder: Encoder,
    endpoints: Vec<String>,
    cluster: bool,
    timeout: Duration,
    owners: Vec<SocketAddr>,
    clients: HashMap<SocketAddr, Client>,
}

impl Reader {
    fn new(header: &Header, options: &Options) -> anyhow::Result<Self> {
        let writer = Options {
            keys: header.keys,
            key_prefix: header.key_prefix.clone(),
            value_size: header.value_size,
            ..Options::default()
        };
        let mut reader = Self {
            encoder: Encoder::new(&writer),
            endpoints: options.endpoints.clone(),
            cluster: options.cluster,
            timeout: Duration::from_millis(options.timeout_ms),
            owners: Vec::new(),
            clients: HashMap::new(),
        };
        reader.locate(0)?;
        Ok(reader)
    }

    fn key(&mut self, number: u64) -> &[u8] {
        self.encoder.set_key(number);
        self.encoder.key()
    }

    /// Learns who owns what. Without `--cluster` one endpoint that answers owns everything;
    /// `attempt` rotates through them.
    fn locate(&mut self, attempt: usize) -> Result<(), Unreachable> {
        if self.cluster {
            let ranges = layout::ask(&self.endpoints)?;
            self.owners.resize(usize::from(SLOT_COUNT), ranges[0].owner);
            for range in ranges {
                self.owners[usize::from(range.first.get())..=usize::from(range.last.get())]
                    .fill(range.owner);
            }
            return Ok(());
        }
        let mut failures = Vec::new();
        for offset in 0..self.endpoints.len() {
            let endpoint = &self.endpoints[(attempt + offset) % self.endpoints.len()];
            let connected = resolve(endpoint).and_then(|addr| {
                Client::connect(addr, self.timeout)
                    .map(|client| (addr, client))
                    .map_err(|error| Unreachable(format!("{endpoint}: {error}")))
            });
            match connected {
                Ok((addr, client)) => {
                    self.owners = vec![addr; usize::from(SLOT_COUNT)];
                    self.clients.insert(addr, client);
                    return Ok(());
                }
                Err(error) => failures.push(error.0),
            }
        }
        Err(Unreachable(failures.join("; ")))
    }

    /// The values of these keys, in any order.
    fn read(&mut self, numbers: &[u64]) -> anyhow::Result<Vec<(u64, Reply)>> {
        let mut done = Vec::with_capacity(numbers.len());
        let mut open = numbers.to_vec();
        let started = Instant::now();
        let mut pause = Duration::from_millis(20);
        for attempt in 0.. {
            let (mut trouble, mut redirected) = (String::new(), false);
            let mut parts: BTreeMap<SocketAddr, Vec<u64>> = BTreeMap::new();
            for number in open.drain(..) {
                let slot = SlotId::of_key(self.key(number));
                parts.entry(self.owners[usize::from(slot.get())]).or_default().push(number);
            }
            for (owner, part) in parts {
                let mut replies = match self.exchange(owner, &part) {
                    Ok(replies) => replies,
                    Err(error) => {
                        trouble = format!("{owner}: {error}");
                        self.clients.remove(&owner);
                        Vec::new()
                    }
                };
                // What was not answered is asked again.
                open.extend(&part[replies.len()..]);
                for (number, reply) in part.into_iter().zip(replies.drain(..)) {
                    match reply {
                        Reply::Error(text) => {
                            redirected |= self.redirect(&text, owner);
                            trouble = text;
                            open.push(number);
                        }
                        reply => done.push((number, reply)),
                    }
                }
            }
            if open.is_empty() {
                return Ok(done);
            }
            if started.elapsed() > PATIENCE {
                return Err(Unreachable(format!("{} keys: {trouble}", open.len())).into());
            }
            // Two endpoints that name each other are waited for, too.
            if !redirected || attempt > 8 {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_secs(1));
                // Nobody answering now is what the patience is for.
                let _ = self.locate(attempt + 1);
            }
        }
        Ok(done)
    }

    fn exchange(&mut self, owner: SocketAddr, numbers: &[u64]) -> io::Result<Vec<Reply>> {
        let mut requests = Vec::new();
        for &number in numbers {
            self.encoder.set_key(number);
            resp::encode_request(&[b"GET", self.encoder.key()], &mut requests);
        }
        let timeout = self.timeout;
        let client = match self.clients.entry(owner) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Client::connect(owner, timeout)?)
            }
        };
        client.send(&requests)?;
        numbers.iter().map(|_| client.receive()).collect()
    }

    /// Follows a `MOVED`; whether the error was one.
    fn redirect(&mut self, error: &str, asked: SocketAddr) -> bool {
        match parse_moved(error, asked.ip()) {
            Some((slot, Some(owner))) if owner != asked => {
                self.owners[usize::from(slot.get())] = owner;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::stamp;

    /// Every possible value of a key against its record.
    #[test]
    fn judgement_is_exact() {
        let tail = filler(40).split_off(STAMP_BYTES);
        let value = |number, sequence, tail: &[u8]| [&stamp(number, sequence)[..], tail].concat();
        let record = KeyRecord { acked: 10, unknown: vec![8, 11] };
        let nothing = KeyRecord { acked: 0, unknown: vec![8] };
        let stamped = |number, sequence| Some(value(number, sequence, &tail));
        let long = [&tail[..], b"x"].concat();
        type Count = fn(&mut CheckReport) -> &mut u64;
        let cases: &[(&str, &KeyRecord, Option<Vec<u8>>, Count)] = &[
            ("the last", &record, stamped(3, 10), |report| &mut report.exact),
            ("unknown, newer", &record, stamped(3, 11), |report| &mut report.newer),
            ("unknown, older", &record, stamped(3, 8), |report| &mut report.late),
            ("older", &record, stamped(3, 9), |report| &mut report.lost),
            ("missing", &record, None, |report| &mut report.lost),
            ("missing, no ack", &nothing, None, |report| &mut report.empty),
            ("unknown only", &nothing, stamped(3, 8), |report| &mut report.newer),
            ("other key", &record, stamped(4, 10), |report| &mut report.damaged),
            ("short", &record, Some(value(3, 10, b"")), |report| &mut report.damaged),
            ("long", &record, Some(value(3, 10, &long)), |report| &mut report.damaged),
            ("foreign", &record, Some(b"hi".to_vec()), |report| &mut report.damaged),
        ];
        for (name, record, bytes, count) in cases {
            let mut report = CheckReport::default();
            let value = match bytes {
                Some(bytes) => Value::Here { bytes, tail: &tail },
                None => Value::Missing,
            };
            report.judge("key:3", 3, record, value);
            assert_eq!(report.is_clean(), report.examples.is_empty(), "{name}");
            report.examples.clear();
            let mut want = CheckReport { keys: 1, ..CheckReport::default() };
            *count(&mut want) = 1;
            assert_eq!(report, want, "{name}");
        }
    }
}
