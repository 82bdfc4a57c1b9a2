//! Durable writes and reads.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coracle_ring::{AlignedBuf, Event};

use crate::common::{Loop, pattern};

/// Opened for direct I/O. The build's directory for temporary files is on a real disk, unlike
/// the system's, perhaps.
fn fresh_file(direct: bool) -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let file = open(&dir.path().join("file"), direct);
    (dir, file)
}

fn open(path: &Path, direct: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path).expect("the filesystem offers O_DIRECT")
}

fn filled(len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf[..len].copy_from_slice(&pattern(len));
    buf
}

#[test]
fn a_fresh_empty_file_reads_back_what_was_written() {
    for direct in [true, false] {
        let (_dir, file) = fresh_file(direct);
        let mut ring = Loop::new();
        let id = ring.ring.add_file(file);
        let address = {
            let buf = filled(16384);
            let address = buf.as_ptr();
            ring.ring.write_dsync(id, 1, 4096, buf, 16384);
            address
        };
        match ring.next() {
            Event::Written { key: 1, result, buf } => {
                assert_eq!(result.expect("disk space"), 16384);
                assert_eq!(buf.as_ptr(), address, "the same buffer comes back");
            }
            other => panic!("{other:?}"),
        }
        ring.ring.read(id, 2, 0, AlignedBuf::zeroed(32768), 32768);
        match ring.next() {
            Event::Read { key: 2, result, buf } => {
                assert_eq!(result.expect("readable"), 20480, "up to the end of the file");
                assert!(buf[..4096].iter().all(|&byte| byte == 0), "the hole");
                assert_eq!(buf[4096..20480], pattern(16384));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Only the asked-for part of a buffer is written.
#[test]
fn the_length_may_be_shorter_than_the_buffer() {
    let (dir, file) = fresh_file(true);
    let mut ring = Loop::new();
    let id = ring.ring.add_file(file);
    ring.ring.write_dsync(id, 1, 0, filled(65536), 4096);
    assert!(matches!(ring.next(), Event::Written { result: Ok(4096), .. }));
    assert_eq!(std::fs::read(dir.path().join("file")).expect("readable"), pattern(4096));
}

/// Several writes in flight; completions come in any order, and all of them.
#[test]
fn writes_in_flight_keep_their_keys_and_places() {
    let (dir, file) = fresh_file(true);
    let mut ring = Loop::new();
    let id = ring.ring.add_file(file);
    for block in 0..32u64 {
        let mut buf = AlignedBuf::zeroed(4096);
        buf.fill(block as u8 + 1);
        ring.ring.write_dsync(id, block, block * 4096, buf, 4096);
    }
    let mut seen = [false; 32];
    for _ in 0..32 {
        match ring.next() {
            Event::Written { key, result: Ok(4096), buf } => {
                assert_eq!(u64::from(buf[0]), key + 1);
                assert!(!std::mem::replace(&mut seen[key as usize], true));
            }
            other => panic!("{other:?}"),
        }
    }
    let bytes = std::fs::read(dir.path().join("file")).expect("readable");
    assert!(bytes.chunks(4096).zip(1u8..).all(|(block, want)| block.iter().all(|&b| b == want)));
}

/// Errors come back with the buffer: a file that is not writable, an odd place, a stale id.
#[test]
fn errors_come_with_the_buffer() {
    let (dir, file) = fresh_file(true);
    let mut ring = Loop::new();
    let id = ring.ring.add_file(file);
    let read_only = ring.ring.add_file(File::open(dir.path().join("file")).expect("exists"));
    let stale = ring.ring.add_file(open(&dir.path().join("other"), true));
    ring.ring.remove_file(stale);
    ring.ring.remove_file(stale);
    let cases = [(read_only, 0, libc::EBADF), (id, 100, libc::EINVAL), (stale, 0, libc::EBADF)];
    for (file, offset, want) in cases {
        ring.ring.write_dsync(file, 9, offset, AlignedBuf::zeroed(4096), 4096);
        match ring.next() {
            Event::Written { key: 9, result: Err(error), buf } => {
                assert_eq!((error.raw_os_error(), buf.len()), (Some(want), 4096));
            }
            other => panic!("{other:?}"),
        }
    }
    ring.ring.read(stale, 8, 0, AlignedBuf::zeroed(4096), 4096);
    assert!(matches!(ring.next(), Event::Read { key: 8, result: Err(_), .. }));
}

#[test]
#[should_panic(expected = "4097 bytes of a buffer of 4096")]
fn a_length_beyond_the_buffer_is_a_bug() {
    let (_dir, file) = fresh_file(true);
    let mut ring = Loop::new();
    let id = ring.ring.add_file(file);
    ring.ring.write_dsync(id, 1, 0, AlignedBuf::zeroed(4096), 4097);
}

/// A removed file still reports what is in flight, and is closed afterwards.
#[test]
fn a_removed_file_finishes_its_operations() {
    let (dir, file) = fresh_file(true);
    let mut ring = Loop::new();
    let id = ring.ring.add_file(file);
    ring.ring.write_dsync(id, 1, 0, filled(4096), 4096);
    ring.ring.remove_file(id);
    ring.ring.write_dsync(id, 2, 0, filled(4096), 4096);
    let mut results = Vec::new();
    for _ in 0..2 {
        let Event::Written { key, result, .. } = ring.next() else { panic!("not written") };
        results.push((key, result.is_ok()));
    }
    results.sort_unstable();
    assert_eq!(results, [(1, true), (2, false)]);
    assert_eq!(std::fs::read(dir.path().join("file")).expect("readable"), pattern(4096));
}
