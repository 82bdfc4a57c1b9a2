//! The bytes of a file in memory; pages of zeros take none.
//!
//! Segments are filled with zeros before they are used, and most of them are never full: simulated
//! clusters would spend a fifth of their time on that.

use std::ops::Range;

const PAGE_BYTES: usize = 4096;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Bytes from 0 to a length.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// As many as the length needs; what they hold after it is zero. `None`: zeros.
    pages: Vec<Option<Box<[u8; PAGE_BYTES]>>>,
    len: usize,
}

impl Content {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Fills `buffer` from `offset` on. Returns how many bytes there were.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(offset).min(buffer.len());
        for (page, inside, part) in parts(offset, len) {
            let source = self.pages[page].as_ref().map_or(&ZEROS, |page| &**page);
            buffer[part].copy_from_slice(&source[inside]);
        }
        len
    }

    /// Puts `bytes` at `offset`; zeros fill what may be missing before it.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.len < end {
            self.len = end;
            self.pages.resize(end.div_ceil(PAGE_BYTES), None);
        }
        for (page, inside, part) in parts(offset, bytes.len()) {
            let (page, bytes) = (&mut self.pages[page], &bytes[part]);
            match page {
                Some(page) => page[inside].copy_from_slice(bytes),
                None if *bytes == ZEROS[..bytes.len()] => {}
                None => page.insert(Box::new(ZEROS))[inside].copy_from_slice(bytes),
            }
        }
    }

    /// Forgets what comes after `len` bytes, or fills up to there with zeros.
    pub(super) fn resize(&mut self, len: usize) {
        if len < self.len
            && let Some(Some(page)) = self.pages.get_mut(len / PAGE_BYTES)
        {
            page[len % PAGE_BYTES..].fill(0);
        }
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE_BYTES), None);
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }
}

/// Cuts a range of a file at the ends of pages: page, where in it, where in the range.
fn parts(offset: usize, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (page, inside) = ((offset + done) / PAGE_BYTES, (offset + done) % PAGE_BYTES);
        let now = (len - done).min(PAGE_BYTES - inside);
        let part = done..done + now;
        done += now;
        (now > 0).then_some((page, inside..inside + now, part))
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize, usize, u8),
        Resize(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let write = (0..20_000usize, 0..10_000usize, 0..2u8);
        prop_oneof![
            write.prop_map(|(offset, len, byte)| Step::Write(offset, len, byte)),
            (0..30_000usize).prop_map(Step::Resize),
        ]
    }

    proptest! {
        /// It holds what a vector holds.
        #[test]
        fn as_a_vector(steps in vec(any_step(), 1..20), at in 0..30_000usize) {
            let (mut content, mut vector) = (Content::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Write(offset, len, byte) => {
                        vector.resize(vector.len().max(offset + len), 0);
                        vector[offset..offset + len].fill(byte);
                        content.write(offset, &[byte].repeat(len));
                    }
                    Step::Resize(len) => {
                        vector.resize(len, 0);
                        content.resize(len);
                    }
                }
                prop_assert_eq!(content.len(), vector.len());
                prop_assert!(content.to_vec() == vector);
            }
            let mut buffer = [7; 5000];
            let rest = &vector[at.min(vector.len())..];
            let len = content.read(at, &mut buffer);
            prop_assert_eq!(&buffer[..len], &rest[..rest.len().min(5000)]);
        }
    }
}
