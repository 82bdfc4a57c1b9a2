//! Requests as bytes: prepared once, patched per request.
//!
//! A large value is never copied: its constant part is one shared allocation that every request
//! refers to, and only its stamp (which key, which write) is made anew.

use std::sync::Arc;

use coracle_engine::SlotId;
use coracle_net::resp;
use coracle_ring::Chunk;

use crate::options::{Command, Options};
use crate::rng::Rng;

/// What stands at the start of every written value that has room for it: the key's number and
/// the write's sequence number, each as 16 hexadecimal digits.
pub(crate) const STAMP_BYTES: usize = 32;

/// Values from this size on are sent from the shared allocation; below it a copy costs less than
/// one more part of a gathered send.
const SHARE_BYTES_MIN: usize = 1024;

/// Digits of the largest key number, 10^12.
const DIGITS_MAX: usize = 13;

/// What a request does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
}

/// Makes request bytes.
#[derive(Debug)]
pub(crate) struct Encoder {
    read: Template,
    write: Template,
    /// A whole key with room for the digits.
    key: Vec<u8>,
    digits: std::ops::Range<usize>,
    /// What follows the stamp of a write, including the final line end.
    filler: Arc<[u8]>,
    stamped: bool,
}

#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    key_at: usize,
}

/// The bytes that wait for one connection's next send, and buffers to build them in.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    chunks: Vec<Chunk>,
    open: Vec<u8>,
    bytes: usize,
}

/// Empty buffers that came back from finished sends. Bounded by what was in flight at once.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    buffers: Vec<Vec<u8>>,
    lists: Vec<Vec<Chunk>>,
}

impl Encoder {
    pub(crate) fn new(options: &Options) -> Self {
        let digits = DIGITS_MAX.min(decimal_digits(options.keys.saturating_sub(1)));
        let mut key = options.key_prefix.clone().into_bytes();
        let digits = key.len()..key.len() + digits;
        key.resize(digits.end, b'0');
        if options.command == Command::Incr {
            key.extend_from_slice(b":n");
        }

        let value = filler(options.value_size);
        let args: &[&[u8]] = match options.command {
            // The only writes of a run of reads are those of its preload.
            Command::Set | Command::Get => &[b"SET", &key, &value],
            Command::Append => &[b"APPEND", &key, &value],
            Command::Incr => &[b"INCR", &key],
        };
        let read = Template::new(&[b"GET", &key]);
        let mut write = Template::new(args);
        let mut tail = Vec::new();
        let mut stamped = false;
        if args.len() == 3 {
            stamped = value.len() >= STAMP_BYTES;
            let value_at = write.bytes.len() - 2 - value.len();
            tail = write.bytes.split_off(value_at + if stamped { STAMP_BYTES } else { 0 });
            write.bytes.truncate(value_at);
        }
        let filler = Arc::from(tail);
        Self { read, write, key, digits, filler, stamped }
    }

    /// Chooses the key of the following calls.
    pub(crate) fn set_key(&mut self, mut number: u64) {
        for digit in self.key[self.digits.clone()].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }

    /// The chosen key.
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// Where the chosen key belongs.
    pub(crate) fn slot(&self) -> SlotId {
        SlotId::of_key(&self.key)
    }

    /// Appends a read of the chosen key.
    pub(crate) fn read(&self, out: &mut Outgoing) {
        out.copy(&self.read, &self.key);
    }

    /// The value of a write: what [`Self::write`] sends, with the stamp.
    pub(crate) fn value(&self, number: u64, sequence: u64) -> Vec<u8> {
        // The line end belongs to the protocol.
        let filler = self.filler.strip_suffix(b"\r\n").unwrap_or_default();
        let mut value = Vec::with_capacity(STAMP_BYTES + filler.len());
        if self.stamped {
            value.extend_from_slice(&stamp(number, sequence));
        }
        value.extend_from_slice(filler);
        value
    }

    /// Appends a write of the chosen key, whose number is repeated in the value.
    pub(crate) fn write(&self, number: u64, sequence: u64, out: &mut Outgoing, pool: &mut Pool) {
        out.copy(&self.write, &self.key);
        if self.stamped {
            out.open.extend_from_slice(&stamp(number, sequence));
            out.bytes += STAMP_BYTES;
        }
        out.append_filler(&self.filler, pool);
    }
}

impl Template {
    fn new(args: &[&[u8]]) -> Self {
        let mut bytes = Vec::new();
        resp::encode_request(args, &mut bytes);
        let (key, value) = (args[1], args.get(2));
        // From the end, because the key's bytes may also occur in what precedes it.
        let after_key = value.map_or(0, |v| v.len() + 2 + bulk_header_bytes(v.len()));
        let key_at = bytes.len() - after_key - 2 - key.len();
        assert_eq!(&bytes[key_at..key_at + key.len()], key, "the key is where it was computed");
        Self { bytes, key_at }
    }
}

impl Outgoing {
    /// Bytes waiting.
    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// Takes everything, in order.
    pub(crate) fn take(&mut self, pool: &mut Pool) -> Vec<Chunk> {
        self.seal(pool);
        self.bytes = 0;
        std::mem::replace(&mut self.chunks, pool.lists.pop().unwrap_or_default())
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        let chunks = self.take(pool);
        pool.give_back(chunks);
    }

    fn copy(&mut self, template: &Template, key: &[u8]) {
        let at = self.open.len() + template.key_at;
        self.open.extend_from_slice(&template.bytes);
        self.open[at..at + key.len()].copy_from_slice(key);
        self.bytes += template.bytes.len();
    }

    fn append_filler(&mut self, filler: &Arc<[u8]>, pool: &mut Pool) {
        self.bytes += filler.len();
        if filler.len() < SHARE_BYTES_MIN {
            self.open.extend_from_slice(filler);
            return;
        }
        self.seal(pool);
        self.chunks.push(Chunk::Shared { bytes: Arc::clone(filler), start: 0, end: filler.len() });
    }

    fn seal(&mut self, pool: &mut Pool) {
        if !self.open.is_empty() {
            let next = pool.buffers.pop().unwrap_or_default();
            self.chunks.push(Chunk::Owned(std::mem::replace(&mut self.open, next)));
        }
    }
}

impl Pool {
    /// Takes the buffers of a finished send.
    pub(crate) fn give_back(&mut self, mut chunks: Vec<Chunk>) {
        for chunk in chunks.drain(..) {
            if let Chunk::Owned(mut buffer) = chunk {
                buffer.clear();
                self.buffers.push(buffer);
            }
        }
        self.lists.push(chunks);
    }
}

/// The stamp of one write.
pub(crate) fn stamp(number: u64, sequence: u64) -> [u8; STAMP_BYTES] {
    let mut stamp = [0; STAMP_BYTES];
    let (first, second) = stamp.split_at_mut(16);
    hex(number, first);
    hex(sequence, second);
    stamp
}

/// Key and sequence number of a stamped value.
pub(crate) fn read_stamp(value: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(value.get(..STAMP_BYTES)?).ok()?;
    let (number, sequence) = text.split_at_checked(16)?;
    Some((u64::from_str_radix(number, 16).ok()?, u64::from_str_radix(sequence, 16).ok()?))
}

/// The content of every value of this size; a stamp replaces its start. Printable, and not
/// compressible to nothing.
pub(crate) fn filler(size: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut rng = Rng::new(0x636f_7261_636c_6521);
    (0..size).map(|_| LETTERS[(rng.next_u64() >> 58) as usize]).collect()
}

fn hex(number: u64, out: &mut [u8]) {
    for (i, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * i)) as usize & 15];
    }
}

fn decimal_digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Bytes of `$<len>\r\n`.
fn bulk_header_bytes(len: usize) -> usize {
    3 + decimal_digits(len as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(out: &mut Outgoing, pool: &mut Pool) -> Vec<u8> {
        let len = out.len();
        let chunks = out.take(pool);
        let mut bytes = Vec::new();
        for chunk in &chunks {
            match chunk {
                Chunk::Owned(owned) => bytes.extend_from_slice(owned),
                Chunk::Shared { bytes: shared, start, end } => {
                    bytes.extend_from_slice(&shared[*start..*end]);
                }
            }
        }
        pool.give_back(chunks);
        assert_eq!(bytes.len(), len, "the byte count is what is sent");
        bytes
    }

    fn encoded(args: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        resp::encode_request(args, &mut bytes);
        bytes
    }

    /// Patched templates are what encoding each request anew gives, for values that are
    /// unstamped, stamped, copied and shared.
    #[test]
    fn templates_equal_full_encoding() {
        for value_size in [0, 31, 32, 33, 100, SHARE_BYTES_MIN + 100] {
            for (command, name) in [(Command::Set, &b"SET"[..]), (Command::Append, b"APPEND")] {
                let options = Options {
                    value_size,
                    command,
                    keys: 1000,
                    key_prefix: "$3\r\nSET".to_owned(),
                    ..Options::default()
                };
                let mut encoder = Encoder::new(&options);
                let (mut out, mut pool) = (Outgoing::default(), Pool::default());
                let mut want = Vec::new();
                for (number, sequence) in [(7, 1), (999, u64::MAX), (0, 0xabc)] {
                    encoder.set_key(number);
                    encoder.write(number, sequence, &mut out, &mut pool);
                    encoder.read(&mut out);
                    let key = format!("$3\r\nSET{number:03}");
                    let mut value = filler(value_size);
                    if value_size >= STAMP_BYTES {
                        value[..STAMP_BYTES].copy_from_slice(&stamp(number, sequence));
                        assert_eq!(read_stamp(&value), Some((number, sequence)));
                    }
                    assert_eq!(encoder.value(number, sequence), value);
                    want.extend(encoded(&[name, key.as_bytes(), &value]));
                    want.extend(encoded(&[b"GET", key.as_bytes()]));
                }
                assert_eq!(flat(&mut out, &mut pool), want, "{value_size} {command:?}");
                assert_eq!(out.len(), 0);
            }
        }
    }

    #[test]
    fn large_values_are_shared_and_buffers_come_back() {
        let options = Options { value_size: 4096, ..Options::default() };
        let mut encoder = Encoder::new(&options);
        let (mut out, mut pool) = (Outgoing::default(), Pool::default());
        encoder.set_key(5);
        encoder.write(5, 1, &mut out, &mut pool);
        encoder.write(5, 2, &mut out, &mut pool);
        let chunks = out.take(&mut pool);
        let shared: Vec<_> = chunks
            .iter()
            .filter_map(|c| match c {
                Chunk::Shared { bytes, .. } => Some(Arc::as_ptr(bytes)),
                Chunk::Owned(_) => None,
            })
            .collect();
        assert_eq!((chunks.len(), shared.len()), (4, 2));
        assert_eq!(shared[0], shared[1], "both requests refer to one allocation");
        pool.give_back(chunks);
        assert_eq!((pool.buffers.len(), pool.lists.len()), (2, 1));
    }

    #[test]
    fn incr_has_its_own_keys() {
        let options = Options { command: Command::Incr, keys: 10, ..Options::default() };
        let mut encoder = Encoder::new(&options);
        encoder.set_key(3);
        let (mut out, mut pool) = (Outgoing::default(), Pool::default());
        encoder.write(3, 1, &mut out, &mut pool);
        assert_eq!(flat(&mut out, &mut pool), encoded(&[b"INCR", b"key:3:n"]));
        assert_eq!(encoder.slot(), SlotId::of_key(b"key:3:n"));
    }

    #[test]
    fn foreign_values_have_no_stamp() {
        assert_eq!(read_stamp(b""), None);
        assert_eq!(read_stamp(&filler(31)), None);
        assert_eq!(read_stamp(&filler(64)), None);
        assert_eq!(read_stamp(&[0xff; 40]), None);
    }
}
