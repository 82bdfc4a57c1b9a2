//! Reading checkpoints through once, section by section, past the page cache.

use coracle_raft::GroupId;
use coracle_ring::AlignedBuf;

use super::error::{CheckpointError, io};
use super::file_name;
use super::format::{BLOCK, Section};
use super::reader::{
    CheckpointReport, DamagedSection, FileDamage, Frame, SectionDamage, newest, read_own_frame,
};
use crate::{Disk, Identity};

/// Bytes of one read, or one section if that is longer.
const WINDOW_BYTES: u64 = 4 << 20;

/// A section that passed its checks.
#[derive(Clone, Copy, Debug)]
pub struct SectionRead<'a> {
    /// The number of its checkpoint.
    pub checkpoint: u64,
    /// The group it is of.
    pub group: GroupId,
    /// The shard it is of.
    pub shard: u16,
    /// What was written. Starts at a multiple of 64 bytes in memory.
    pub bytes: &'a [u8],
}

/// A checkpoint that was read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointRead {
    /// Its number.
    pub number: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// Bytes of those of its sections that passed their checks.
    pub section_bytes: u64,
}

/// Reads the two newest checkpoints that are not damaged as a whole, the newest one first, and
/// hands every section that passes its checks to `visit`. Returns which ones they are, in the same
/// order. Changes nothing, and keeps nothing in memory but a few MiB or the longest section.
///
/// # Errors
/// See [`CheckpointError`]. Damage is not an error: see [`CheckpointReport`].
pub fn read_checkpoints<D: Disk>(
    disk: &D,
    identity: Identity,
    visit: &mut dyn FnMut(SectionRead<'_>),
) -> Result<(Vec<CheckpointRead>, CheckpointReport), CheckpointError> {
    let mut window = Window::default();
    let mut damaged = Vec::new();
    let (found, mut report) = newest(disk, &mut |number| {
        let frame = match read_own_frame(disk, identity, number)? {
            Ok(frame) => frame,
            Err(damage) => return Ok(Err(damage)),
        };
        read_sections(disk, &frame, number, &mut window, &mut damaged, visit)
    })?;
    report.damaged_sections = damaged;
    Ok((found, report))
}

fn read_sections<D: Disk>(
    disk: &D,
    frame: &Frame<D::File>,
    number: u64,
    window: &mut Window,
    damaged: &mut Vec<DamagedSection>,
    visit: &mut dyn FnMut(SectionRead<'_>),
) -> Result<Result<CheckpointRead, FileDamage>, CheckpointError> {
    let name = file_name(number);
    let file = disk.open_for_bulk(&name).map_err(io(disk, &name, "open"))?;
    let mut read = CheckpointRead { number, file_bytes: frame.file_bytes, section_bytes: 0 };
    window.len = 0;
    let mut order: Vec<&Section> = frame.sections.iter().collect();
    order.sort_unstable_by_key(|section| section.offset);
    for section in order {
        let &Section { group, shard, offset, len, crc } = section;
        let seed = Section::seed(frame.seed, number, group, shard, len);
        let damage = match window.get(disk, (&file, &frame.file), section, frame.file_bytes) {
            Ok(bytes) if bytes.len() as u64 == len && crc32c::crc32c_append(seed, bytes) == crc => {
                read.section_bytes += len;
                visit(SectionRead { checkpoint: number, group, shard, bytes });
                continue;
            }
            Ok(_) => SectionDamage::Checksum,
            Err(error) => SectionDamage::Unreadable { error: error.to_string() },
        };
        let file = disk.display(&name);
        damaged.push(DamagedSection { file, group, shard, offset, len, damage });
    }
    Ok(Ok(read))
}

/// A part of a file.
struct Window {
    buffer: AlignedBuf,
    offset: u64,
    len: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { buffer: AlignedBuf::zeroed(0), offset: 0, len: 0 }
    }
}

impl Window {
    /// The bytes of a section, fewer if the file ends in it. The second handle reads without
    /// regard to blocks: a section does not suffer from an unreadable sector of its neighbour.
    fn get<D: Disk>(
        &mut self,
        disk: &D,
        (bulk, exact): (&D::File, &D::File),
        section: &Section,
        file_bytes: u64,
    ) -> std::io::Result<&[u8]> {
        let (start, end) = (section.offset, section.offset + section.len);
        if start < self.offset || end > self.offset + self.len {
            let from = start & !(BLOCK - 1);
            let needed = (end - from).next_multiple_of(BLOCK);
            let left = file_bytes.saturating_sub(from).next_multiple_of(BLOCK);
            self.resize(needed.max(WINDOW_BYTES.min(left)));
            let len = self.len as usize;
            match disk.read_at(bulk, from, &mut self.buffer[..len]) {
                Ok(read) => (self.offset, self.len) = (from, read as u64),
                Err(_) => {
                    self.len = 0;
                    let part = &mut self.buffer[..section.len as usize];
                    let read = disk.read_at(exact, start, part)?;
                    return Ok(&self.buffer[..read]);
                }
            }
        }
        let bytes = &self.buffer[..self.len as usize];
        let start = ((start - self.offset) as usize).min(bytes.len());
        let end = ((end - self.offset) as usize).min(bytes.len());
        Ok(&bytes[start..end])
    }

    fn resize(&mut self, len: u64) {
        if (self.buffer.len() as u64) < len {
            self.buffer = AlignedBuf::zeroed(len as usize);
        }
        self.len = len;
    }
}
