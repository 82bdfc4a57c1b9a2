//! The bytes of checkpoint files, as described in `docs/checkpoint-format.md`.
//!
//! Everything is little-endian and written by hand: nothing here depends on a compiler's layout.
//! Decoders take any bytes and never panic.

use coracle_raft::{GroupId, NodeId};

use crate::Identity;
use crate::format::{BLOCK_BYTES, aligned, put_u32, put_u64, u32_at, u64_at};

/// Sections that one checkpoint may have.
pub const SECTIONS_MAX: usize = 1 << 20;

/// The version this code writes, and the only one it reads.
pub(super) const VERSION: u32 = 1;
/// What the starts of sections are multiples of.
pub(super) const SECTION_ALIGN: u64 = 64;
/// One section in the directory.
pub(super) const ENTRY_BYTES: usize = 32;

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

const HEADER_MAGIC: [u8; 8] = *b"CORACLEC";
const TRAILER_MAGIC: [u8; 8] = *b"CORACLET";
/// Header and trailer: what is used of their blocks, twice.
const COPY_BYTES: usize = 128;
/// Where the second copy stands in the block.
const TWIN_AT: usize = BLOCK_BYTES / 2;

const _: () = assert!(COPY_BYTES <= 512, "a copy must fit into one sector");

/// What a checkpoint file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) number: u64,
}

/// Why a file's first block is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Neither copy is whole.
    Damaged,
    /// Written by another version of this code.
    Version(u32),
}

impl Header {
    /// Writes both copies into the first block. Returns the start value of the checksums of all
    /// else in the file.
    pub(super) fn encode(&self, block: &mut [u8]) -> u32 {
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&HEADER_MAGIC);
        put_u32(&mut copy, 8, VERSION);
        copy[16..32].copy_from_slice(&self.identity.cluster.to_le_bytes());
        put_u32(&mut copy, 32, self.identity.node.get());
        put_u32(&mut copy, 36, self.identity.core);
        put_u64(&mut copy, 40, self.number);
        seal(&mut copy, 0, block)
    }

    /// Reads the first copy that is whole. Returns it with the start value of the checksums of
    /// all else in the file.
    pub(super) fn decode(block: &[u8]) -> Result<(Self, u32), HeaderError> {
        let copy = whole_copy(block, HEADER_MAGIC, 0).ok_or(HeaderError::Damaged)?;
        // The magic, the version and the checksum stand at these places in every version.
        let version = u32_at(copy, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&copy[16..32]);
        let identity = Identity {
            cluster: u128::from_le_bytes(cluster),
            node: NodeId::new(u32_at(copy, 32)),
            core: u32_at(copy, 36),
        };
        Ok((Self { identity, number: u64_at(copy, 40) }, u32_at(copy, COPY_BYTES - 4)))
    }
}

/// Where the directory is and whether it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Length of the file, this block included.
    pub(super) file_bytes: u64,
    /// Where the first copy of the directory starts; the second one starts at the next multiple
    /// of 4 KiB after its end.
    pub(super) directory: u64,
    pub(super) sections: u32,
    pub(super) directory_crc: u32,
}

impl Trailer {
    pub(super) fn new(directory: u64, sections: u32, directory_crc: u32) -> Self {
        let mut trailer = Self { file_bytes: 0, directory, sections, directory_crc };
        trailer.file_bytes = trailer.copy_at(2) + BLOCK;
        trailer
    }

    pub(super) const fn directory_bytes(&self) -> usize {
        self.sections as usize * ENTRY_BYTES
    }

    /// Where a copy of the directory starts: number 0 or 1. A third one would end the second.
    pub(super) const fn copy_at(&self, copy: u64) -> u64 {
        self.directory.saturating_add(copy * aligned(self.directory_bytes() as u64))
    }

    /// Writes both copies into the last block.
    pub(super) fn encode(&self, seed: u32, block: &mut [u8]) {
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&TRAILER_MAGIC);
        put_u64(&mut copy, 8, self.file_bytes);
        put_u64(&mut copy, 16, self.directory);
        put_u32(&mut copy, 24, self.sections);
        put_u32(&mut copy, 28, self.directory_crc);
        seal(&mut copy, seed, block);
    }

    /// Reads the first copy that is whole, at the end of a file of this length.
    pub(super) fn decode(block: &[u8], seed: u32, file_bytes: u64) -> Option<Self> {
        let copy = whole_copy(block, TRAILER_MAGIC, seed)?;
        let found = Self::new(u64_at(copy, 16), u32_at(copy, 24), u32_at(copy, 28));
        let fits = found.directory >= BLOCK
            && found.directory.is_multiple_of(BLOCK)
            && found.sections as usize <= SECTIONS_MAX
            && found.file_bytes == u64_at(copy, 8)
            && found.file_bytes == file_bytes;
        fits.then_some(found)
    }
}

/// One section, as the directory has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) group: GroupId,
    pub(super) shard: u16,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) crc: u32,
}

impl Section {
    /// What sections are sorted by in the directory; no two have the same.
    pub(super) const fn key(&self) -> (GroupId, u16) {
        (self.group, self.shard)
    }

    /// Start value of a section's checksum, to be continued with its bytes.
    pub(super) fn seed(seed: u32, number: u64, group: GroupId, shard: u16, len: u64) -> u32 {
        let mut place = [0; 24];
        put_u64(&mut place, 0, number);
        put_u32(&mut place, 8, group.get());
        put_u32(&mut place, 12, u32::from(shard));
        put_u64(&mut place, 16, len);
        crc32c::crc32c_append(seed, &place)
    }

    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        put_u32(&mut out, 0, self.group.get());
        put_u32(&mut out, 4, u32::from(self.shard));
        put_u64(&mut out, 8, self.offset);
        put_u64(&mut out, 16, self.len);
        put_u32(&mut out, 24, self.crc);
        out
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        Some(Self {
            group: GroupId::new(u32_at(bytes, 0)),
            shard: u16::try_from(u32_at(bytes, 4)).ok()?,
            offset: u64_at(bytes, 8),
            len: u64_at(bytes, 16),
            crc: u32_at(bytes, 24),
        })
    }
}

/// Reads one copy of the directory; `None` if anything in it is not as the writer makes it.
pub(super) fn decode_directory(bytes: &[u8], seed: u32, trailer: &Trailer) -> Option<Vec<Section>> {
    if bytes.len() != trailer.directory_bytes()
        || crc32c::crc32c_append(seed, bytes) != trailer.directory_crc
    {
        return None;
    }
    let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
    let sections: Vec<Section> = entries.iter().map(Section::decode).collect::<Option<_>>()?;
    let lies_inside = |section: &Section| {
        section.offset >= BLOCK
            && section.offset.is_multiple_of(SECTION_ALIGN)
            && section.offset.checked_add(section.len).is_some_and(|end| end <= trailer.directory)
    };
    let sorted = sections.windows(2).all(|pair| pair[0].key() < pair[1].key());
    (sorted && sections.iter().all(lies_inside)).then_some(sections)
}

/// Adds the checksum and puts both copies into their block. Returns the checksum.
fn seal(copy: &mut [u8; COPY_BYTES], seed: u32, block: &mut [u8]) -> u32 {
    let crc = crc32c::crc32c_append(seed, &copy[..COPY_BYTES - 4]);
    put_u32(copy, COPY_BYTES - 4, crc);
    block[..COPY_BYTES].copy_from_slice(copy);
    block[TWIN_AT..][..COPY_BYTES].copy_from_slice(copy);
    crc
}

fn whole_copy(block: &[u8], magic: [u8; 8], seed: u32) -> Option<&[u8; COPY_BYTES]> {
    [0, TWIN_AT].into_iter().find_map(|at| {
        let copy = block.get(at..)?.first_chunk::<COPY_BYTES>()?;
        let crc = crc32c::crc32c_append(seed, &copy[..COPY_BYTES - 4]);
        (copy[..8] == magic && crc == u32_at(copy, COPY_BYTES - 4)).then_some(copy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of version 1, byte by byte: a change needs a new version.
    #[test]
    fn version_one_stays_as_it_is() {
        let header = Header {
            identity: Identity { cluster: 0x0102, node: NodeId::new(3), core: 4 },
            number: 5,
        };
        let mut block = [0; BLOCK_BYTES];
        let seed = header.encode(&mut block);
        assert_eq!(block[..16], *b"CORACLEC\x01\0\0\0\0\0\0\0");
        assert_eq!(
            block[16..48],
            *b"\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0\x05\0\0\0\0\0\0\0"
        );
        assert_eq!(block[..COPY_BYTES], block[TWIN_AT..][..COPY_BYTES]);
        assert_eq!(Header::decode(&block), Ok((header, seed)));

        let section =
            Section { group: GroupId::new(1), shard: 2, offset: 4096, len: 3, crc: 0x0405_0607 };
        let entry = section.encode();
        assert_eq!(entry[..16], *b"\x01\0\0\0\x02\0\0\0\0\x10\0\0\0\0\0\0");
        assert_eq!(entry[16..], *b"\x03\0\0\0\0\0\0\0\x07\x06\x05\x04\0\0\0\0");

        let trailer = Trailer::new(8192, 1, crc32c::crc32c_append(seed, &entry));
        assert_eq!(trailer.file_bytes, 8192 + 3 * 4096);
        trailer.encode(seed, &mut block);
        assert_eq!(block[..16], *b"CORACLET\0\x50\0\0\0\0\0\0");
        assert_eq!(block[16..28], *b"\0\x20\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(Trailer::decode(&block, seed, 20480), Some(trailer));
        assert_eq!(Trailer::decode(&block, seed, 24576), None, "another length");
        assert_eq!(Trailer::decode(&block, seed ^ 1, 20480), None, "another file");
        assert_eq!(decode_directory(&entry, seed, &trailer), Some(vec![section]));
    }

    #[test]
    fn directories_that_no_writer_makes_are_refused() {
        let section = |group, shard, offset, len| Section {
            group: GroupId::new(group),
            shard,
            offset,
            len,
            crc: 0,
        };
        let cases: [(&str, Vec<Section>, bool); 7] = [
            ("as it is written", vec![section(1, 2, 4096, 64), section(2, 1, 4160, 0)], true),
            ("unsorted", vec![section(2, 1, 4096, 64), section(1, 2, 4160, 0)], false),
            ("twice", vec![section(1, 2, 4096, 64), section(1, 2, 4160, 0)], false),
            ("in the header", vec![section(1, 2, 0, 64)], false),
            ("at an odd place", vec![section(1, 2, 4100, 4)], false),
            ("in the directory", vec![section(1, 2, 8128, 65)], false),
            ("beyond all numbers", vec![section(1, 2, u64::MAX - 63, 64)], false),
        ];
        for (name, sections, want) in cases {
            let bytes: Vec<u8> = sections.iter().flat_map(Section::encode).collect();
            let crc = crc32c::crc32c_append(7, &bytes);
            let trailer = Trailer::new(8192, sections.len() as u32, crc);
            assert_eq!(decode_directory(&bytes, 7, &trailer).is_some(), want, "{name}");
            assert_eq!(decode_directory(&bytes, 8, &trailer), None, "{name}");
        }
    }
}
