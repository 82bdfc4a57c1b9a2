//! Opening checkpoints: every byte is read and checked once before anybody sees it.

use std::fmt;

use coracle_raft::GroupId;
use coracle_ring::AlignedBuf;

use super::error::{CheckpointError, io};
use super::format::{BLOCK, Header, HeaderError, Section, Trailer, VERSION, decode_directory};
use super::{file_name, number_of};
use crate::format::BLOCK_BYTES;
use crate::{Disk, Identity};

/// Checkpoints that are kept, and opened.
const KEPT: usize = 2;

/// Sections are read in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// A checkpoint whose sections can be read. Those that are damaged are known and refused.
pub struct Checkpoint<D: Disk> {
    number: u64,
    file: String,
    /// Sorted by group and shard. A damaged one is never touched through the map.
    sections: Vec<(Section, Option<SectionDamage>)>,
    map: D::Map,
}

/// What is wrong with the checkpoints of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The newest number that a file has, damaged or not; 0 if there is none. The next checkpoint
    /// takes a higher one.
    pub newest_number: u64,
    /// Files of which nothing can be used. Older ones than those opened are not looked at.
    pub damaged_files: Vec<DamagedFile>,
    /// Sections of the opened checkpoints that cannot be used.
    pub damaged_sections: Vec<DamagedSection>,
}

/// A checkpoint file of which nothing can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} is damaged: {damage}")]
pub struct DamagedFile {
    /// The file.
    pub file: String,
    /// What is wrong.
    pub damage: FileDamage,
}

/// What makes a whole file useless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileDamage {
    /// Both copies of the header are damaged or cannot be read.
    #[error("no valid header")]
    Header,
    /// The header says that it is another checkpoint: the file was renamed, or holds the blocks
    /// of an older one.
    #[error("its header is of checkpoint {found}")]
    Misplaced {
        /// The number in the header.
        found: u64,
    },
    /// Both copies of the trailer are damaged or cannot be read, or the file is cut short.
    #[error("no valid trailer at its end, {file_bytes} bytes from its start")]
    Trailer {
        /// Length of the file.
        file_bytes: u64,
    },
    /// Both copies of the directory are damaged or cannot be read.
    #[error("no valid directory of sections")]
    Directory,
}

/// A section that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {group} shard {shard}, {len} bytes at {offset}, {damage}")]
pub struct DamagedSection {
    /// The file.
    pub file: String,
    /// The group it is of.
    pub group: GroupId,
    /// The shard it is of.
    pub shard: u16,
    /// Where it starts in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// What is wrong.
    pub damage: SectionDamage,
}

/// What makes a section useless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SectionDamage {
    /// The disk cannot read it.
    #[error("cannot be read: {error}")]
    Unreadable {
        /// What the system said.
        error: String,
    },
    /// The bytes are not what was written.
    #[error("fails its checksum")]
    Checksum,
}

/// Opens the two newest checkpoints that are not damaged as a whole, the newest one first. Reads
/// all of them, and changes nothing.
///
/// # Errors
/// See [`CheckpointError`]. Damage is not an error: see [`CheckpointReport`].
pub fn open_checkpoints<D: Disk>(
    disk: &D,
    identity: Identity,
) -> Result<(Vec<Checkpoint<D>>, CheckpointReport), CheckpointError> {
    let (found, mut report) = newest(disk, &mut |number| Checkpoint::open(disk, identity, number))?;
    for checkpoint in &found {
        report.damaged_sections.extend(checkpoint.sections().filter_map(|found| found.2.err()));
    }
    Ok((found, report))
}

/// Finds the newest checkpoints that `open` can open.
pub(super) fn newest<D: Disk, T>(
    disk: &D,
    open: &mut dyn FnMut(u64) -> Result<Result<T, FileDamage>, CheckpointError>,
) -> Result<(Vec<T>, CheckpointReport), CheckpointError> {
    let names = disk.list().map_err(io(disk, "", "list"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let newest_number = numbers.first().copied().unwrap_or(0);
    let mut report = CheckpointReport { newest_number, ..CheckpointReport::default() };
    let mut found = Vec::new();
    for number in numbers {
        if found.len() == KEPT {
            break;
        }
        match open(number)? {
            Ok(checkpoint) => found.push(checkpoint),
            Err(damage) => {
                let file = disk.display(&file_name(number));
                report.damaged_files.push(DamagedFile { file, damage });
            }
        }
    }
    Ok((found, report))
}

impl CheckpointReport {
    /// Whether nothing is wrong.
    pub const fn is_clean(&self) -> bool {
        self.damaged_files.is_empty() && self.damaged_sections.is_empty()
    }
}

impl<D: Disk> Checkpoint<D> {
    /// Its number.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// How errors name its file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All sections in the order of their groups and shards. Each starts at a multiple of 64
    /// bytes in memory.
    pub fn sections(&self) -> impl Iterator<Item = (GroupId, u16, Result<&[u8], DamagedSection>)> {
        self.sections.iter().map(|(section, damage)| {
            (section.group, section.shard, self.content(section, damage.as_ref()))
        })
    }

    /// One section; `None` if the checkpoint was made without it.
    pub fn section(&self, group: GroupId, shard: u16) -> Option<Result<&[u8], DamagedSection>> {
        let at = self.sections.binary_search_by_key(&(group, shard), |(section, _)| section.key());
        let (section, damage) = &self.sections[at.ok()?];
        Some(self.content(section, damage.as_ref()))
    }

    fn content(
        &self,
        section: &Section,
        damage: Option<&SectionDamage>,
    ) -> Result<&[u8], DamagedSection> {
        match damage {
            None => Ok(&self.map[section.offset as usize..][..section.len as usize]),
            Some(damage) => Err(DamagedSection {
                file: self.file.clone(),
                group: section.group,
                shard: section.shard,
                offset: section.offset,
                len: section.len,
                damage: damage.clone(),
            }),
        }
    }

    fn open(
        disk: &D,
        identity: Identity,
        number: u64,
    ) -> Result<Result<Self, FileDamage>, CheckpointError> {
        let name = file_name(number);
        let frame = match read_own_frame(disk, identity, number)? {
            Ok(frame) => frame,
            Err(damage) => return Ok(Err(damage)),
        };
        let damages = verify(disk, &frame, number);
        let map = disk.map(&name).map_err(io(disk, &name, "map"))?;
        if map.len() as u64 != frame.file_bytes {
            return Ok(Err(FileDamage::Trailer { file_bytes: map.len() as u64 }));
        }
        let sections = frame.sections.into_iter().zip(damages).collect();
        Ok(Ok(Self { number, file: disk.display(&name), sections, map }))
    }
}

impl<D: Disk> fmt::Debug for Checkpoint<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("number", &self.number)
            .field("sections", &self.sections.len())
            .finish_non_exhaustive()
    }
}

/// All of a file but the content of its sections.
pub(super) struct Frame<F> {
    pub(super) file: F,
    pub(super) file_bytes: u64,
    identity: Identity,
    pub(super) seed: u32,
    pub(super) sections: Vec<Section>,
}

/// As [`read_frame`]; the file must be of this core.
pub(super) fn read_own_frame<D: Disk>(
    disk: &D,
    identity: Identity,
    number: u64,
) -> Result<Result<Frame<D::File>, FileDamage>, CheckpointError> {
    match read_frame(disk, number)? {
        Ok(frame) if frame.identity != identity => {
            let (file, found) = (disk.display(&file_name(number)), frame.identity);
            Err(CheckpointError::Identity { file, found, wanted: identity })
        }
        read => Ok(read),
    }
}

/// Reads header, trailer and directory. The inner error is damage, of which nothing but the file
/// itself suffers.
pub(super) fn read_frame<D: Disk>(
    disk: &D,
    number: u64,
) -> Result<Result<Frame<D::File>, FileDamage>, CheckpointError> {
    let name = file_name(number);
    let file = disk.open_for_scan(&name).map_err(io(disk, &name, "open"))?;
    let file_bytes = disk.len(&file).map_err(io(disk, &name, "measure"))?;
    let mut block = [0; BLOCK_BYTES];
    let (header, seed) = match Header::decode(read(disk, &file, 0, &mut block)) {
        Ok(found) => found,
        Err(HeaderError::Damaged) => return Ok(Err(FileDamage::Header)),
        Err(HeaderError::Version(found)) => {
            let file = disk.display(&name);
            return Err(CheckpointError::Version { file, found, known: VERSION });
        }
    };
    if header.number != number {
        return Ok(Err(FileDamage::Misplaced { found: header.number }));
    }
    let last = file_bytes.saturating_sub(BLOCK);
    let trailer = Trailer::decode(read(disk, &file, last, &mut block), seed, file_bytes);
    let Some(trailer) = trailer else { return Ok(Err(FileDamage::Trailer { file_bytes })) };
    let mut bytes = vec![0; trailer.directory_bytes()];
    let sections = (0..2).find_map(|copy| {
        let found = read(disk, &file, trailer.copy_at(copy), &mut bytes);
        decode_directory(found, seed, &trailer)
    });
    let Some(sections) = sections else { return Ok(Err(FileDamage::Directory)) };
    Ok(Ok(Frame { file, file_bytes, identity: header.identity, seed, sections }))
}

/// What can be read: bytes that cannot be read are as good as damaged ones.
fn read<'a, D: Disk>(disk: &D, file: &D::File, offset: u64, buffer: &'a mut [u8]) -> &'a [u8] {
    let len = disk.read_at(file, offset, buffer).unwrap_or(0);
    &buffer[..len]
}

/// Reads every section, in the order in which they lie in the file. Returns what is wrong with
/// each, in the order of the directory.
fn verify<D: Disk>(disk: &D, frame: &Frame<D::File>, number: u64) -> Vec<Option<SectionDamage>> {
    let mut order: Vec<usize> = (0..frame.sections.len()).collect();
    order.sort_unstable_by_key(|&at| frame.sections[at].offset);
    let mut damages = vec![None; order.len()];
    let longest = frame.sections.iter().map(|section| section.len).max().unwrap_or(0);
    let mut buffer = AlignedBuf::zeroed(longest.min(PIECE_BYTES as u64) as usize);
    for at in order {
        let section = &frame.sections[at];
        damages[at] = match checksum(disk, frame, number, section, &mut buffer) {
            Ok(Some(crc)) if crc == section.crc => None,
            Ok(_) => Some(SectionDamage::Checksum),
            Err(error) => Some(SectionDamage::Unreadable { error: error.to_string() }),
        };
    }
    damages
}

/// The checksum of a section as it is on disk; `None` if the file ends in it.
fn checksum<D: Disk>(
    disk: &D,
    frame: &Frame<D::File>,
    number: u64,
    section: &Section,
    buffer: &mut [u8],
) -> std::io::Result<Option<u32>> {
    let mut crc = Section::seed(frame.seed, number, section.group, section.shard, section.len);
    let mut done = 0;
    while done < section.len {
        let len = (section.len - done).min(buffer.len() as u64) as usize;
        let piece = &mut buffer[..len];
        if disk.read_at(&frame.file, section.offset + done, piece)? < len {
            return Ok(None);
        }
        crc = crc32c::crc32c_append(crc, piece);
        done += len as u64;
    }
    Ok(Some(crc))
}
