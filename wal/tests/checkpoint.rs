//! Checkpoint files: what comes back, and what must not, after crashes, rot and errors.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use common::{Rig, entry, group, options};
use coracle_raft::{GroupId, NodeId};
use coracle_wal::{
    Checkpoint, CheckpointError, CheckpointReport, CheckpointWriter, DamagedFile, Disk, DiskOp,
    FileDamage, Finished, Identity, MemDisk, MemFile, MemMap, OpenError, RealDisk, SECTOR_BYTES,
    SectionDamage, SectionRead, Unsynced, open_checkpoints, read_checkpoints,
};

type Sections = BTreeMap<(GroupId, u16), Vec<u8>>;

const BLOCK: usize = 4096;

fn identity() -> Identity {
    options().identity
}

fn name(number: u64) -> String {
    format!("{number:010}.ckp")
}

/// Bytes that depend on everything that could be mixed up.
fn content(number: u64, of: u32, shard: u16, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(31).wrapping_add(u64::from(of) << 20 | u64::from(shard));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sections of these lengths.
fn sections(number: u64, lens: &[usize]) -> Sections {
    let one = |(at, &len): (usize, &usize)| {
        let (of, shard) = (1 + at as u32 % 3, 40 - at as u16);
        ((group(of), shard), content(number, of, shard, len))
    };
    lens.iter().enumerate().map(one).collect()
}

/// Three sections, one of them empty: a file of five blocks.
fn small(number: u64) -> Sections {
    sections(number, &[700, 0, 1500])
}

fn write<D: Disk>(disk: &D, number: u64, all: &Sections) -> Result<Finished, CheckpointError> {
    let mut writer = CheckpointWriter::create(disk.clone(), identity(), number)?;
    // Not in the order of the keys: the order in which they are added is the caller's matter.
    for ((of, shard), bytes) in all.iter().rev() {
        writer.add(*of, *shard, bytes)?;
    }
    writer.finish()
}

fn open<D: Disk>(disk: &D) -> (Vec<Checkpoint<D>>, CheckpointReport) {
    let (found, report) = open_checkpoints(disk, identity()).expect("damage never stops it");
    let mut read = Vec::new();
    let (numbers, sweep_report) = read_checkpoints(disk, identity(), &mut |section| {
        let SectionRead { checkpoint, group, shard, bytes } = section;
        assert!(bytes.as_ptr().addr().is_multiple_of(64), "rkyv wants them aligned");
        read.push((checkpoint, group, shard, bytes.to_vec()));
    })
    .expect("damage never stops it");
    let both = (found.iter().map(Checkpoint::number)).zip(numbers.iter().map(|read| read.number));
    assert!(found.len() == numbers.len() && both.into_iter().all(|(one, other)| one == other));
    for (checkpoint, numbers) in found.iter().zip(&numbers) {
        let mut here: Vec<_> = read.iter().filter(|read| read.0 == checkpoint.number()).collect();
        assert_eq!(here.iter().map(|read| read.3.len() as u64).sum::<u64>(), numbers.section_bytes);
        here.sort_by_key(|read| (read.1, read.2));
        let whole = checkpoint.sections().filter_map(|(of, at, bytes)| Some((of, at, bytes.ok()?)));
        assert!(whole.eq(here.iter().map(|read| (read.1, read.2, &read.3[..]))));
    }
    let by_place = |mut report: CheckpointReport| {
        report.damaged_sections.sort_by_key(|damaged| (damaged.file.clone(), damaged.offset));
        report
    };
    assert_eq!(by_place(sweep_report), by_place(report.clone()), "both ways find the same damage");
    (found, report)
}

/// Checks that each section is what was written or refused. Returns the keys of those refused.
fn check<D: Disk>(found: &Checkpoint<D>, want: &Sections, why: &str) -> Vec<(GroupId, u16)> {
    let keys: Vec<_> = found.sections().map(|(of, shard, _)| (of, shard)).collect();
    assert_eq!(keys, want.keys().copied().collect::<Vec<_>>(), "{why}");
    let mut refused = Vec::new();
    for (of, shard, bytes) in found.sections() {
        assert_eq!(found.section(of, shard), Some(bytes.clone()), "{why}: {of} {shard}");
        match bytes {
            Ok(bytes) => {
                assert!(bytes == want[&(of, shard)], "{why}: other bytes of {of} shard {shard}");
                assert!(bytes.as_ptr().addr().is_multiple_of(64), "{why}: rkyv wants them aligned");
            }
            Err(damaged) => {
                assert_eq!((damaged.group, damaged.shard), (of, shard), "{why}");
                refused.push((of, shard));
            }
        }
    }
    refused
}

fn checkpoint_names<D: Disk>(disk: &D) -> Vec<String> {
    let mut names = disk.list().expect("it lists");
    names.retain(|name| name.contains(".ckp"));
    names.sort();
    names
}

/// A disk in memory that dies after some operations or runs full, and wants writes as `O_DIRECT`
/// wants them.
#[derive(Clone)]
struct TestDisk {
    mem: MemDisk,
    state: Arc<Mutex<Limits>>,
}

#[derive(Default)]
struct Limits {
    /// Changes so far.
    changes: u32,
    /// The process dies with the change of this number.
    dies_at: Option<u32>,
    /// Bytes that may still be written.
    free: Option<usize>,
    /// Nothing can be read.
    unreadable: bool,
}

impl TestDisk {
    fn of(mem: MemDisk) -> Self {
        Self { mem, state: Arc::default() }
    }

    fn set(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.state.lock().expect("no test panics in here"));
    }

    fn changes(&self) -> u32 {
        self.state.lock().expect("no test panics in here").changes
    }

    fn change(&self) -> io::Result<()> {
        let mut state = self.state.lock().expect("no test panics in here");
        if state.dies_at.is_some_and(|at| state.changes >= at) {
            return Err(io::Error::other("the process is dead"));
        }
        state.changes += 1;
        Ok(())
    }
}

impl Disk for TestDisk {
    type File = MemFile;
    type Map = MemMap;

    fn list(&self) -> io::Result<Vec<String>> {
        self.mem.list()
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        self.mem.open(name)
    }

    fn create(&self, name: &str) -> io::Result<MemFile> {
        self.change()?;
        self.mem.create(name)
    }

    fn len(&self, file: &MemFile) -> io::Result<u64> {
        self.mem.len(file)
    }

    fn read_at(&self, file: &MemFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state.lock().expect("no test panics in here").unreadable {
            return Err(io::Error::other("the medium cannot be read"));
        }
        self.mem.read_at(file, offset, buffer)
    }

    /// A disk that runs full takes what fits first, as file systems do.
    fn write_at(&self, file: &MemFile, offset: u64, buffer: &[u8]) -> io::Result<usize> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(BLOCK));
        assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK) && !buffer.is_empty());
        self.change()?;
        let free = self.state.lock().expect("no test panics in here").free;
        let len = free.map_or(buffer.len(), |free| buffer.len().min(free / BLOCK * BLOCK));
        if len == 0 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.set(|limits| limits.free = free.map(|free| free - len));
        self.mem.write_at(file, offset, &buffer[..len])
    }

    fn sync_data(&self, file: &MemFile) -> io::Result<()> {
        self.change()?;
        self.mem.sync_data(file)
    }

    fn map(&self, name: &str) -> io::Result<MemMap> {
        self.mem.map(name)
    }

    fn truncate(&self, name: &str, _: u64) -> io::Result<()> {
        panic!("{name} is cut, which no checkpoint ever is")
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change()?;
        self.mem.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change()?;
        self.mem.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.change()?;
        self.mem.sync_dir()
    }

    fn display(&self, name: &str) -> String {
        name.to_owned()
    }
}

#[test]
fn every_shape_comes_back() {
    let odd = [0, 1, 63, 64, 65, 4031, 4095, 4096, 4097, (256 << 10) - 4096, 256 << 10, 300_001];
    let cases: [(&str, Vec<usize>); 6] = [
        ("none", vec![]),
        ("an empty one", vec![0]),
        ("one", vec![1]),
        ("longer than all buffers", vec![(3 << 20) + 77]),
        ("odd ones", odd.to_vec()),
        ("many", (0..41).map(|at| at * at * 7).collect()),
    ];
    for (why, lens) in cases {
        let disk = TestDisk::of(MemDisk::new());
        let all = sections(9, &lens);
        let done = write(&disk, 9, &all).expect("written");
        let bytes = disk.mem.contents(&name(9)).expect("it is there").len() as u64;
        assert_eq!(done, Finished { number: 9, bytes, sections: lens.len(), older: None }, "{why}");
        disk.mem.crash(&mut |_| false);
        let (found, report) = open(&disk);
        assert!(report.is_clean(), "{why}: {report:?}");
        assert_eq!(report.newest_number, 9);
        assert_eq!((found.len(), found[0].number()), (1, 9), "{why}");
        assert_eq!(check(&found[0], &all, why), [], "{why}");
        assert_eq!(found[0].section(group(77), 0), None, "{why}");
    }
}

#[test]
fn writers_and_checkpoints_go_from_thread_to_thread() {
    let disk = MemDisk::new();
    let mut writer = CheckpointWriter::create(disk.clone(), identity(), 1).expect("created");
    for ((of, shard), bytes) in small(1) {
        let job = move || writer.add(of, shard, &bytes).map(|()| writer);
        writer = std::thread::spawn(job).join().expect("no panic").expect("added");
    }
    std::thread::spawn(move || writer.finish()).join().expect("no panic").expect("finished");
    let (mut found, _) = open(&disk);
    let found = found.pop().expect("one");
    std::thread::spawn(move || assert_eq!(check(&found, &small(1), "moved"), []))
        .join()
        .expect("no panic");
}

/// Header, directory and trailer stand there twice: one flip harms a section at most.
#[test]
fn every_flipped_byte_harms_only_its_section() {
    let disk = MemDisk::new();
    let all = small(3);
    let bytes = write(&disk, 3, &all).expect("written").bytes as usize;
    assert_eq!(bytes, 5 * BLOCK, "header, sections, two directories, trailer");
    let mut harmful = 0;
    for at in 0..bytes {
        let mask = 1 << (at % 8);
        disk.flip(&name(3), at, mask);
        let (found, report) = open(&disk);
        let why = format!("flip at {at}");
        assert_eq!(report.damaged_files, [], "{why}");
        let refused = check(&found[0], &all, &why);
        assert_eq!(report.damaged_sections.len(), refused.len(), "{why}");
        for damaged in &report.damaged_sections {
            let place = damaged.offset..damaged.offset + damaged.len;
            assert!(place.contains(&(at as u64)), "{why}: {damaged}");
            assert_eq!(damaged.damage, SectionDamage::Checksum);
        }
        harmful += refused.len();
        disk.flip(&name(3), at, mask);
    }
    assert_eq!(harmful, 2200, "each byte of each section counts, and no other");
}

/// What stands there twice can be lost twice: the checkpoint before is used.
#[test]
fn file_without_a_frame_falls_back_to_the_one_before() {
    let disk = MemDisk::new();
    write(&disk, 3, &small(3)).expect("written");
    write(&disk, 4, &small(4)).expect("written");
    let file_bytes = 5 * BLOCK as u64;
    let cases: [(&str, [usize; 2], FileDamage); 4] = [
        ("header", [100, 2048 + 20], FileDamage::Header),
        ("magic", [0, 2048], FileDamage::Header),
        ("directory", [2 * BLOCK, 3 * BLOCK + 95], FileDamage::Directory),
        ("trailer", [4 * BLOCK + 9, 4 * BLOCK + 2048], FileDamage::Trailer { file_bytes }),
    ];
    for (why, flips, damage) in cases {
        let disk = disk.fork();
        flips.iter().for_each(|&at| disk.flip(&name(4), at, 0x20));
        let (found, report) = open(&disk);
        assert_eq!(report.damaged_files, [DamagedFile { file: name(4), damage }], "{why}");
        assert!(report.damaged_files[0].to_string().contains("0000000004.ckp is damaged"));
        assert_eq!(report.newest_number, 4, "{why}: the next one does not take its place");
        assert_eq!(found.iter().map(Checkpoint::number).collect::<Vec<_>>(), [3], "{why}");
        assert_eq!(check(&found[0], &small(3), why), [], "{why}");
        // The next one keeps the one that can be read.
        let done = write(&disk, 5, &small(5)).expect("written");
        assert_eq!(done.older, Some(3), "{why}");
        assert_eq!(checkpoint_names(&disk), [name(3), name(5)], "{why}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let disk = MemDisk::new();
    write(&disk, 3, &small(3)).expect("written");
    let bytes = disk.contents(&name(3)).expect("it is there");
    for len in 0..bytes.len() {
        disk.set_contents(&name(3), bytes[..len].to_vec());
        let (found, report) = open(&disk);
        assert!(found.is_empty(), "{len} bytes are no checkpoint");
        let [damaged] = report.damaged_files.as_slice() else { panic!("{len}: {report:?}") };
        let file_bytes = len as u64;
        // The header's second copy is enough, and so is its first one.
        let damage =
            if len < 128 { FileDamage::Header } else { FileDamage::Trailer { file_bytes } };
        assert_eq!(damaged.damage, damage, "{len}");
    }
    for more in [1, 512, BLOCK] {
        let mut longer = bytes.clone();
        longer.resize(bytes.len() + more, 0);
        disk.set_contents(&name(3), longer);
        assert!(open(&disk).0.is_empty(), "{more} bytes too long");
    }
    let mut doubled = bytes[..4 * BLOCK].to_vec();
    doubled.extend_from_slice(&bytes);
    disk.set_contents(&name(3), doubled);
    assert!(open(&disk).0.is_empty(), "a trailer at another place");
}

/// What survives a crash besides what is synced.
fn keeps(pattern: u32) -> impl FnMut(Unsynced<'_>) -> bool {
    let mut asked = pattern.wrapping_mul(0x9E37_79B9);
    move |lost| match (pattern, lost) {
        (0, _) => false,
        (1, _) | (2, Unsynced::DirChange { .. }) | (3, Unsynced::Sector { .. }) => true,
        (2 | 3, _) => false,
        _ => {
            asked = asked.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            asked >> 31 == 1
        }
    }
}

const PATTERNS: u32 = 12;

/// A disk with so many durable checkpoints, from 1 on, that was shut down in order.
fn with_checkpoints(count: u64) -> MemDisk {
    let disk = MemDisk::new();
    for number in 1..=count {
        write(&disk, number, &small(number)).expect("written");
    }
    disk
}

/// Checks what is there after a crash in the middle of checkpoint `new`.
fn check_survivors(disk: &MemDisk, before: u64, acknowledged: bool, why: &str) {
    let new = before + 1;
    let (found, report) = open(disk);
    assert!(report.is_clean(), "{why}: {report:?}");
    let numbers: Vec<u64> = found.iter().map(Checkpoint::number).collect();
    let old: Vec<u64> = (1..=before).rev().take(2).collect();
    let with_new: Vec<u64> = (1..=new).rev().take(2).collect();
    assert!(numbers == with_new || numbers == old && !acknowledged, "{why}: {numbers:?}");
    assert!(numbers.len() >= old.len(), "{why}: fewer than before");
    for found in &found {
        let want = small(found.number());
        assert_eq!(check(found, &want, why), [], "{why}");
    }
    if acknowledged {
        let kept: Vec<String> = with_new.iter().rev().map(|&number| name(number)).collect();
        assert_eq!(checkpoint_names(disk), kept, "{why}: what was removed does not come back");
    }
    // It goes on, and nothing is left behind.
    let next = report.newest_number + 1;
    write(disk, next, &small(next)).expect("written");
    let mut kept: Vec<String> = numbers.first().map(|&number| name(number)).into_iter().collect();
    kept.push(name(next));
    assert_eq!(checkpoint_names(disk), kept, "{why}");
}

/// The process or the power dies at each file operation, and each sector and directory change
/// that is not synced may be lost or not.
#[test]
fn crash_at_every_operation_leaves_no_fewer_checkpoints() {
    let mut outcomes = BTreeMap::new();
    for before in 0..=3 {
        let whole = TestDisk::of(with_checkpoints(before));
        write(&whole, before + 1, &small(before + 1)).expect("nothing fails");
        for dies_at in 0..=whole.changes() {
            for pattern in 0..PATTERNS {
                let why = format!("{before} before, dies at {dies_at}, pattern {pattern}");
                let disk = TestDisk::of(with_checkpoints(before));
                disk.set(|limits| limits.dies_at = Some(dies_at));
                let done = write(&disk, before + 1, &small(before + 1));
                assert_eq!(done.is_ok(), dies_at == whole.changes(), "{why}");
                *outcomes.entry((dies_at, done.is_ok())).or_insert(0) += 1;
                disk.mem.crash(&mut keeps(pattern));
                check_survivors(&disk.mem, before, done.is_ok(), &why);
            }
        }
    }
    assert!(outcomes.len() > 7, "{outcomes:?}");
}

/// Each operation fails once while the process lives, then the power goes at some later time.
#[test]
fn failed_operation_costs_nothing_but_its_checkpoint() {
    let ops = [DiskOp::Open, DiskOp::Write, DiskOp::SyncData, DiskOp::Rename, DiskOp::SyncDir];
    let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull];
    let mut failures = BTreeMap::new();
    for op in ops {
        for (after, kind) in (0..3).flat_map(|after| kinds.map(|kind| (after, kind))) {
            for pattern in 0..PATTERNS {
                let why = format!("{op:?} after {after}, {kind}, pattern {pattern}");
                let disk = with_checkpoints(2);
                disk.fail(op, after, kind);
                let done = write(&disk, 3, &small(3));
                disk.heal();
                if let Err(error) = &done {
                    *failures.entry(op).or_insert(0) += 1;
                    let full = matches!(error, CheckpointError::NoSpace { .. });
                    assert_eq!(full, kind == io::ErrorKind::StorageFull, "{why}: {error}");
                    let left: Vec<String> = checkpoint_names(&disk);
                    assert!(left.iter().all(|name| !name.ends_with(".tmp")), "{why}: {left:?}");
                }
                if op == DiskOp::SyncDir && after == 0 {
                    // Nobody knows whether the name lasts: nobody may count on it.
                    assert_eq!(checkpoint_names(&disk), [name(1), name(2)], "{why}");
                }
                disk.crash(&mut keeps(pattern));
                check_survivors(&disk, 2, done.is_ok(), &why);
            }
        }
    }
    assert!(ops.iter().all(|op| failures.contains_key(op)), "{failures:?}");
}

/// An older one that cannot be read is no fallback: the one before it stays.
#[test]
fn older_checkpoint_that_cannot_be_read_is_not_counted_on() {
    let disk = with_checkpoints(2);
    disk.make_unreadable(&name(2), 0..1);
    let done = write(&disk, 3, &small(3)).expect("written");
    assert_eq!(done.older, Some(1));
    assert_eq!(checkpoint_names(&disk), [name(1), name(3)]);
    disk.make_unreadable(&name(1), 0..1);
    let done = write(&disk, 4, &small(4)).expect("written");
    assert_eq!(done.older, Some(3), "what cannot be read does not stand in the way");
    assert_eq!(checkpoint_names(&disk), [name(3), name(4)]);
}

/// While a disk gives nothing at all, what is on it may be as good as ever: nothing is removed, and
/// files do not pile up.
#[test]
fn disk_that_cannot_be_read_for_a_while_costs_no_checkpoint() {
    let disk = TestDisk::of(with_checkpoints(2));
    disk.set(|limits| limits.unreadable = true);
    for number in 3..6 {
        let error = write(&disk, number, &small(number)).expect_err("it cannot be read back");
        assert!(error.to_string().contains("read back 000000000"), "{error}");
        assert_eq!(checkpoint_names(&disk), [name(1), name(2)]);
    }
    disk.set(|limits| limits.unreadable = false);
    let done = write(&disk, 6, &small(6)).expect("written");
    assert_eq!(done.older, Some(2));
    assert_eq!(checkpoint_names(&disk), [name(2), name(6)]);
}

/// RB24 for checkpoints: an unreadable sector costs what lies in it, and is never touched.
#[test]
fn unreadable_sectors_harm_only_their_sections() {
    let disk = MemDisk::new();
    let all = small(4);
    write(&disk, 3, &small(3)).expect("written");
    write(&disk, 4, &all).expect("written");
    let blocks = ["header", "sections", "directory", "its copy", "trailer"];
    let mut refused_sections = 0;
    for at in (0..5 * BLOCK).step_by(SECTOR_BYTES) {
        let part = blocks[at / BLOCK];
        let why = format!("sector at {at} in the {part}");
        disk.make_unreadable(&name(4), at as u64..(at + SECTOR_BYTES) as u64);
        let (found, report) = open(&disk);
        disk.heal();
        if matches!(part, "header" | "trailer") {
            assert_eq!(report.damaged_files.len(), 1, "{why}");
            assert_eq!(found[0].number(), 3, "{why}");
            continue;
        }
        assert_eq!(report.damaged_files, [], "{why}");
        let refused = check(&found[0], &all, &why);
        for damaged in &report.damaged_sections {
            assert!(matches!(damaged.damage, SectionDamage::Unreadable { .. }), "{why}");
            let (start, end) = (damaged.offset as usize, (damaged.offset + damaged.len) as usize);
            assert!(start < at + SECTOR_BYTES && at < end, "{why}: {damaged}");
        }
        // What one file cannot give, the other one has.
        for key in &refused {
            let older = found[1].section(key.0, key.1).expect("it has the same shards");
            assert_eq!(older.expect("whole"), small(3)[key], "{why}");
        }
        refused_sections += refused.len();
    }
    // 1500 bytes at 4096, 0 at 5632, 700 at 5632.
    assert_eq!(refused_sections, 3 + 2);
}

#[test]
fn checkpoints_of_others_are_refused_with_both_names() {
    let disk = with_checkpoints(1);
    let own = identity();
    let others = [
        Identity { cluster: 8, ..own },
        Identity { node: NodeId::new(2), ..own },
        Identity { core: 1, ..own },
    ];
    for other in others {
        let error = open_checkpoints(&disk, other).expect_err("it is not of this core");
        let want = format!("0000000001.ckp belongs to {own}, this is {other}");
        assert_eq!(error.to_string(), want);
    }
}

#[test]
fn checkpoints_of_other_versions_are_refused_with_both_versions() {
    let disk = with_checkpoints(1);
    let mut bytes = disk.contents(&name(1)).expect("it is there");
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..124]);
    bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    disk.set_contents(&name(1), bytes);
    let error = open_checkpoints(&disk, identity()).expect_err("nobody knows that version");
    let want = "0000000001.ckp has checkpoint format version 2, this program reads version 1";
    assert_eq!(error.to_string(), want);
}

/// Blocks that the disk has not written, or has put elsewhere: they are valid ones of another
/// checkpoint, with the same shards and the same lengths.
#[test]
fn blocks_of_another_checkpoint_are_refused() {
    let old = with_checkpoints(1);
    let disk = MemDisk::new();
    write(&disk, 2, &small(2)).expect("written");
    let stale = old.contents(&name(1)).expect("it is there");
    let whole = disk.contents(&name(2)).expect("it is there");
    assert_eq!(stale.len(), whole.len());
    for mask in 0..1u32 << 5 {
        let mixed: Vec<u8> = (0..whole.len())
            .map(|at| if mask & 1 << (at / BLOCK) != 0 { stale[at] } else { whole[at] })
            .collect();
        disk.set_contents(&name(2), mixed);
        let (found, report) = open(&disk);
        let why = format!("stale blocks {mask:05b}");
        if mask & 1 != 0 {
            let damage = FileDamage::Misplaced { found: 1 };
            assert_eq!(report.damaged_files, [DamagedFile { file: name(2), damage }], "{why}");
        } else if mask & 0b10000 != 0 {
            assert!(found.is_empty(), "{why}: the trailer is of another file");
        } else if mask & 0b01100 == 0b01100 {
            assert_eq!(report.damaged_files[0].damage, FileDamage::Directory, "{why}");
        } else {
            let refused = check(&found[0], &small(2), &why).len();
            // The empty one is the same in both.
            assert_eq!(refused, if mask & 0b10 != 0 { 2 } else { 0 }, "{why}");
        }
    }
}

/// The same bytes under another number, shard or core are not the same section.
#[test]
fn section_is_valid_in_its_place_only() {
    let same = vec![5; 4096];
    let files: Vec<Vec<u8>> = [(identity(), 1, 1), (identity(), 2, 1), (identity(), 1, 2)]
        .into_iter()
        .chain([(Identity { core: 1, ..identity() }, 1, 1)])
        .map(|(identity, number, shard)| {
            let disk = MemDisk::new();
            let mut writer =
                CheckpointWriter::create(disk.clone(), identity, number).expect("created");
            writer.add(group(1), shard, &same).expect("added");
            writer.finish().expect("finished");
            disk.contents(&name(number)).expect("it is there")
        })
        .collect();
    // Where the directory has the section's checksum.
    let crc = |file: &Vec<u8>| file[2 * BLOCK + 24..2 * BLOCK + 28].to_vec();
    for file in &files[1..] {
        assert_eq!(file[BLOCK..2 * BLOCK], files[0][BLOCK..2 * BLOCK]);
        assert_ne!(crc(file), crc(&files[0]));
    }
}

#[test]
fn two_are_kept_and_nothing_else_is_touched() {
    let disk = MemDisk::new();
    let foreign = ["0000000009.seg", "spare-9.tmp", "old-3.tmp", "1.ckp", "README"];
    foreign.iter().for_each(|name| disk.set_contents(name, vec![1; 9]));
    disk.set_contents("0000000002.ckp.tmp", vec![0; 4096]);
    for number in [3, 4, 7, 8, 20] {
        let (found, _) = open(&disk);
        let newest = found.first().map(Checkpoint::number);
        let done = write(&disk, number, &small(number)).expect("written");
        assert_eq!(done.older, newest);
        let mut names: Vec<String> = newest.map(name).into_iter().collect();
        names.extend([name(number), "1.ckp".to_owned()]);
        assert_eq!(checkpoint_names(&disk), names);
        assert!(foreign.iter().all(|name| disk.contents(name) == Some(vec![1; 9])));
    }
}

#[test]
fn number_that_is_taken_is_refused() {
    let disk = with_checkpoints(2);
    disk.set_contents(&name(5), vec![0; 100]);
    for (number, free) in [(0, false), (1, false), (4, false), (5, false), (6, true)] {
        let made = CheckpointWriter::create(disk.clone(), identity(), number);
        match made {
            Ok(writer) => assert!(free && writer.number() == number),
            Err(CheckpointError::NumberTaken { newest: 5, .. }) => assert!(!free, "{number}"),
            Err(error) => panic!("{number}: {error}"),
        }
    }
    assert_eq!(checkpoint_names(&disk), [name(1), name(2), name(5)]);
}

#[test]
fn unfinished_checkpoint_leaves_nothing() {
    let disk = with_checkpoints(2);
    type End = fn(CheckpointWriter<MemDisk>);
    let ends: [(&str, End); 2] = [("dropped", drop), ("abandoned", CheckpointWriter::abandon)];
    for (why, end) in ends {
        let mut writer = CheckpointWriter::create(disk.clone(), identity(), 3).expect("created");
        writer.add(group(1), 1, &vec![7; 1 << 20]).expect("added");
        assert!(writer.bytes() > 1 << 20);
        assert_eq!(checkpoint_names(&disk)[2], "0000000003.ckp.tmp", "{why}");
        end(writer);
        assert_eq!(checkpoint_names(&disk), [name(1), name(2)], "{why}");
    }
}

/// What a failed write covered may be half on disk: it is not written again.
#[test]
fn writer_that_failed_once_fails_for_good() {
    let disk = with_checkpoints(2);
    let mut writer = CheckpointWriter::create(disk.clone(), identity(), 3).expect("created");
    disk.fail(DiskOp::Write, 0, io::ErrorKind::Other);
    let error = writer.add(group(1), 1, &vec![7; 1 << 20]).expect_err("the first write fails");
    assert_eq!(error.to_string(), "cannot write 0000000003.ckp.tmp: injected failure of Write");
    // The disk is well again.
    for shard in 2..4 {
        let error = writer.add(group(1), shard, b"more").expect_err("too late");
        assert_eq!(error.to_string(), "checkpoint 3 has failed before");
    }
    let error = writer.finish().expect_err("too late");
    assert!(matches!(error, CheckpointError::Failed { number: 3 }), "{error}");
    assert_eq!(checkpoint_names(&disk), [name(1), name(2)]);
}

#[test]
fn section_is_added_once() {
    let disk = MemDisk::new();
    let twice = disk.clone();
    let panicked = std::thread::spawn(move || {
        let mut writer = CheckpointWriter::create(twice, identity(), 1).expect("created");
        writer.add(group(1), 1, b"one").expect("added");
        let _ = writer.add(group(1), 1, b"two");
    });
    assert!(panicked.join().is_err(), "one of them would be lost");
    assert_eq!(checkpoint_names(&disk), [""; 0]);
}

/// A full disk is told apart, whatever is written when it runs full, and harms nothing.
#[test]
fn full_disk_costs_nothing_but_its_checkpoint() {
    let lens = [100_000, 300_000, 5, 200_000];
    let whole = {
        let disk = TestDisk::of(MemDisk::new());
        write(&disk, 1, &sections(1, &lens)).expect("written").bytes as usize
    };
    let mut failed_late = 0;
    for free in (0..=whole).step_by(BLOCK) {
        let disk = TestDisk::of(with_checkpoints(2));
        disk.set(|limits| limits.free = Some(free));
        let mut writer = CheckpointWriter::create(disk.clone(), identity(), 3).expect("created");
        let mut refused = None;
        for ((of, shard), bytes) in sections(3, &lens) {
            match writer.add(of, shard, &bytes) {
                Ok(()) => assert!(refused.is_none(), "{free}: fails for good"),
                Err(CheckpointError::NoSpace { .. }) => refused = Some(shard),
                Err(error) => {
                    assert!(matches!(error, CheckpointError::Failed { number: 3 }), "{error}");
                    assert!(refused.is_some(), "{free}");
                }
            }
        }
        match writer.finish() {
            Ok(_) => assert_eq!(free, whole, "{free}: it fits"),
            Err(CheckpointError::NoSpace { .. }) => failed_late += 1,
            Err(error) => {
                assert!(matches!(error, CheckpointError::Failed { number: 3 }), "{error}");
                assert!(refused.is_some(), "{free}");
            }
        }
        if free == whole {
            continue;
        }
        assert_eq!(checkpoint_names(&disk), [name(1), name(2)], "{free}");
        disk.set(|limits| limits.free = None);
        disk.mem.crash(&mut |_| false);
        check_survivors(&disk.mem, 2, false, &format!("{free} bytes free"));
    }
    assert!(failed_late > 0);
}

/// The log's recovery clears what was left unfinished and does not look at the others.
#[test]
fn recovery_of_the_log_passes_over_checkpoints() {
    let mut rig = Rig::new();
    let first = [entry(1, 1, 1, 100)];
    rig.commit(&first);
    for number in 1..=2 {
        write(&rig.disk, number, &small(number)).expect("written");
    }
    rig.disk.set_contents("0000000003.ckp.tmp", vec![3; 4096]);
    rig.disk.sync_dir().expect("synced");
    let again = Rig::reopen(&rig.disk);
    assert_eq!(again.recovered, first);
    assert!(again.report.is_clean(), "{:?}", again.report);
    assert!(again.report.cleared_files.contains(&"0000000003.ckp.tmp".to_owned()));
    assert_eq!(checkpoint_names(&again.disk), [name(1), name(2)]);
    let (found, _) = open(&again.disk);
    assert_eq!(check(&found[0], &small(2), "after recovery"), []);
}

#[test]
fn checkpoints_on_real_files() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for the test");
    let disk = match RealDisk::open(dir.path(), true) {
        Err(OpenError::DirectRefused { .. }) => RealDisk::open(dir.path(), false),
        result => result,
    };
    let disk = disk.expect("a directory can be used");
    let lens = [0, 1, 5000, 1_500_003, 64];
    for number in 1..=3 {
        write(&disk, number, &sections(number, &lens)).expect("written");
    }
    assert_eq!(checkpoint_names(&disk), [name(2), name(3)]);
    // One byte of the long section, which is neither the first nor the last in the file.
    let path = dir.path().join(name(3));
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[900_000] ^= 4;
    std::fs::write(&path, bytes).expect("written");
    let (found, report) = open(&disk);
    assert_eq!(found.iter().map(Checkpoint::number).collect::<Vec<_>>(), [3, 2]);
    let refused = check(&found[0], &sections(3, &lens), "rotten");
    assert_eq!(refused.len(), 1);
    assert_eq!(report.damaged_sections.len(), 1, "{report:?}");
    assert_eq!(check(&found[1], &sections(2, &lens), "the one before"), []);
    assert_eq!(
        found[1].section(refused[0].0, refused[0].1).expect("there").expect("whole").len(),
        1_500_003
    );
}
