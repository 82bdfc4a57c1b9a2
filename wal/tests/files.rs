//! The log on real files.

mod common;

use common::{Models, entry, group, index, options, purge, vote};
use coracle_raft::{BatchSeq, Record};
use coracle_ring::AlignedBuf;
use coracle_wal::{Disk, OpenError, RealDisk, Wal, recover};

/// A directory on a file system that takes `O_DIRECT`: the temporary one may be in memory.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for the test")
}

/// Direct where the file system can do it; the fallback is part of the interface.
fn disk(dir: &std::path::Path) -> RealDisk {
    match RealDisk::open(dir, true) {
        Ok(disk) => disk,
        Err(OpenError::DirectRefused { filesystem, .. }) => {
            assert_ne!(filesystem, "ext4", "ext4 takes direct I/O");
            RealDisk::open(dir, false).expect("buffered I/O works everywhere")
        }
        Err(error) => panic!("{error}"),
    }
}

fn flush(wal: &mut Wal<RealDisk>) -> Option<BatchSeq> {
    let mut durable = None;
    loop {
        wal.prepare_segments().expect("room");
        let Some(op) = wal.next_write() else { return durable };
        let file = wal.file(op.segment).expect("open");
        let written = wal.disk().write_at(file, op.offset, &op.buffer[..op.len]).expect("written");
        wal.disk().sync_data(file).expect("synced");
        durable = wal.written(op.id, Ok(written), op.buffer).expect("no error").or(durable);
    }
}

/// Reading back right after the first write in an empty directory.
#[test]
fn write_and_read_back_on_a_fresh_empty_directory() {
    let dir = directory();
    let path = dir.path().join("not/yet/there");
    let disk = disk(&path);
    let mut seen = 0;
    let (mut wal, report) = recover(disk.clone(), options(), &mut |_, _| seen += 1).expect("opens");
    assert_eq!((seen, report.segments), (0, 0));
    let records = [vote(1, 1, 1), entry(1, 1, 1, 3000), entry(1, 1, 2, 9000)];
    wal.append(BatchSeq::new(1), &records, &mut Vec::new());
    assert_eq!(flush(&mut wal), Some(BatchSeq::new(1)));

    let ops = wal.locate(group(1), index(1), index(2), usize::MAX).expect("found");
    let buffers: Vec<AlignedBuf> = ops
        .iter()
        .map(|op| {
            let mut buffer = AlignedBuf::zeroed(op.len);
            let file = wal.file(op.segment).expect("open");
            assert_eq!(disk.read_at(file, op.offset, &mut buffer).expect("read"), op.len);
            buffer
        })
        .collect();
    let entries = wal.decode_entries(&ops, &buffers).expect("decoded");
    assert_eq!(entries, [common::bare(&records[1]), common::bare(&records[2])]);
    drop(wal);

    let mut recovered = Vec::new();
    let (_, report) =
        recover(disk, options(), &mut |_, record| recovered.push(record)).expect("opens");
    assert_eq!(recovered, records);
    assert!(report.is_clean() && report.torn.is_none(), "{report:?}");
}

#[test]
fn segments_are_recycled_and_restarts_go_on_on_real_files() {
    let dir = directory();
    let mut all = vec![vote(1, 3, 1)];
    let mut batch = 0;
    for boot in 0..3u64 {
        let mut recovered = Vec::new();
        let (mut wal, report) =
            recover(disk(dir.path()), options(), &mut |_, record| recovered.push(record))
                .expect("opens");
        assert!(report.is_clean(), "{report:?}");
        if boot > 0 {
            assert_eq!(Models::of(&recovered), Models::of(&all));
        } else {
            wal.append(BatchSeq::new(0), &all, &mut Vec::new());
        }
        for at in boot * 100 + 1..=boot * 100 + 60 {
            let records: Vec<Record> = if at == boot * 100 + 1 {
                vec![purge(1, 3, boot * 100), entry(1, 3, at, 4096)]
            } else {
                vec![entry(1, 3, at, 4096), purge(1, 3, at.saturating_sub(3).max(boot * 100))]
            };
            batch += 1;
            wal.append(BatchSeq::new(batch), &records, &mut Vec::new());
            all.extend(records);
            assert_eq!(flush(&mut wal), Some(BatchSeq::new(batch)));
            wal.release_values_before(u64::MAX);
        }
        assert!(wal.take_released().len() > 2, "segments are recycled");
        let on_disk: u64 = std::fs::read_dir(dir.path())
            .expect("list")
            .map(|item| item.expect("item").metadata().expect("metadata").len())
            .sum();
        assert_eq!(on_disk, wal.disk_bytes());
        assert!(on_disk < 6 * (64 << 10), "{on_disk}");
    }
}

#[test]
fn unfinished_files_are_removed_and_foreign_ones_left_alone() {
    let dir = directory();
    std::fs::write(dir.path().join("spare-9.tmp"), b"half").expect("write");
    std::fs::write(dir.path().join("README"), b"hands off").expect("write");
    let (_, report) = recover(disk(dir.path()), options(), &mut |_, _| {}).expect("opens");
    assert_eq!(report.cleared_files, ["spare-9.tmp"]);
    assert!(!dir.path().join("spare-9.tmp").exists());
    assert!(dir.path().join("README").exists());
}

#[test]
fn directory_that_cannot_be_made_is_named() {
    let dir = directory();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").expect("write");
    let error = RealDisk::open(&file.join("wal"), true).expect_err("it is a file");
    assert!(matches!(error, OpenError::Io { .. }));
    assert!(error.to_string().contains("file/wal"), "{error}");
}
