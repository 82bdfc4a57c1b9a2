//! Reading around what a disk does not give: an error says nothing of where in a read it was, and
//! the entries before and behind that place are wanted all the same.

use std::ops::Range;

use coracle_ring::AlignedBuf;

use crate::format::BLOCK_BYTES;

/// What one [`ReadOp`](crate::ReadOp) has given so far. While [`ReadAround::wanted`] names a part,
/// the driver reads it and gives it to [`ReadAround::take`]. All is read at once; a part that
/// cannot be read is read by halves, down to single blocks, which then count as zeros.
#[derive(Debug)]
pub struct ReadAround {
    offset: u64,
    len: usize,
    content: AlignedBuf,
    /// Parts that have not been read, the next one last.
    left: Vec<Range<usize>>,
}

impl ReadAround {
    /// Nothing has been read of the `len` bytes at `offset`, both multiples of 4 KiB.
    pub fn new(offset: u64, len: usize) -> Self {
        let all = 0..len;
        Self { offset, len, content: AlignedBuf::zeroed(0), left: vec![all] }
    }

    /// Where to read in the file, and how many bytes; none: that was all there is.
    pub fn wanted(&self) -> Option<(u64, usize)> {
        self.left.last().map(|part| (self.offset + part.start as u64, part.len()))
    }

    /// What was [`wanted`](Self::wanted) has been read, or could not be. A file that ends early
    /// gives fewer bytes; zeros may follow them.
    pub fn take(&mut self, read: Option<AlignedBuf>) {
        let Some(part) = self.left.pop() else { return };
        match read {
            None => {
                let middle = part.start + part.len().div_ceil(2).next_multiple_of(BLOCK_BYTES);
                if middle < part.end {
                    self.left.extend([middle..part.end, part.start..middle]);
                }
            }
            Some(read) if part.len() == self.len => self.content = read,
            Some(read) => {
                if self.content.is_empty() {
                    self.content = AlignedBuf::zeroed(self.len);
                }
                let read = &read[..read.len().min(part.len())];
                self.content[part.start..][..read.len()].copy_from_slice(read);
            }
        }
    }

    /// What the disk gave, for [`Wal::decode_entries`]; nothing, if it gave nothing.
    ///
    /// [`Wal::decode_entries`]: crate::Wal::decode_entries
    pub fn into_content(self) -> AlignedBuf {
        self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_BYTES;
    const OFFSET: u64 = 8192;

    /// Reads `blocks` blocks of ones, of which some cannot be read. Returns what came, and how
    /// many reads it took.
    fn read_around(blocks: usize, bad: &[usize]) -> (Vec<u8>, usize) {
        let (mut around, mut reads) = (ReadAround::new(OFFSET, blocks * BLOCK), 0);
        while let Some((offset, len)) = around.wanted() {
            assert!(offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK));
            reads += 1;
            let first = (offset - OFFSET) as usize / BLOCK;
            let fails = bad.iter().any(|bad| (first..first + len / BLOCK).contains(bad));
            let mut buffer = AlignedBuf::zeroed(len);
            buffer.fill(1);
            around.take((!fails).then_some(buffer));
        }
        (around.into_content().to_vec(), reads)
    }

    #[test]
    fn all_but_the_bad_blocks_comes() {
        assert_eq!(read_around(7, &[]), (vec![1; 7 * BLOCK], 1));
        assert_eq!(read_around(1, &[0]), (Vec::new(), 1));
        for blocks in 2..=33 {
            for first in 0..blocks {
                let (content, reads) = read_around(blocks, &[first]);
                assert!(reads <= 13, "{reads} reads for block {first} of {blocks}");
                check(&content, blocks, &[first]);
                for second in first + 1..blocks {
                    check(&read_around(blocks, &[first, second]).0, blocks, &[first, second]);
                }
            }
        }
    }

    fn check(content: &[u8], blocks: usize, bad: &[usize]) {
        if bad.len() == blocks {
            return assert!(content.is_empty());
        }
        assert_eq!(content.len(), blocks * BLOCK);
        for (at, block) in content.chunks(BLOCK).enumerate() {
            let expected = u8::from(!bad.contains(&at));
            assert!(block.iter().all(|&byte| byte == expected), "block {at}, {bad:?} are bad");
        }
    }

    #[test]
    fn a_file_that_ends_early_gives_less() {
        let mut around = ReadAround::new(0, 2 * BLOCK);
        around.take(None);
        around.take(Some(AlignedBuf::zeroed(512)));
        assert_eq!(around.wanted(), Some((BLOCK as u64, BLOCK)));
        around.take(None);
        assert_eq!((around.wanted(), around.into_content().len()), (None, 2 * BLOCK));
    }
}
