//! Reading a file as memory.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// The bytes of a file, mapped into memory for reading. Starts at a page, so offsets in the file
/// keep their alignment up to 4 KiB.
///
/// For files that are complete: what is appended later is not seen. The file may be renamed and
/// removed meanwhile; it must not be written or cut, by this process or by another one.
///
/// Not for bytes that may be unreadable on the medium: touching those ends the process with
/// SIGBUS. Read the file through once, with read calls, and leave alone what cannot be read.
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps the file as long as it is now.
    ///
    /// # Errors
    /// Whatever the system says: no regular file, no memory, a file system without maps.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes behind the returned slices must not change while they are borrowed.
        // A map made here is read-only, and the caller keeps the file as it is: the contract
        // above, which the owner of the directory can keep because each file there gets its final
        // name only when it is complete, is never opened for writing under that name, and goes
        // by removal, which leaves the pages of a map alone.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self { map })
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl fmt::Debug for FileMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileMap").field("len", &self.map.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_map_holds_the_bytes_of_its_file_and_outlives_its_name() {
        let dir = tempfile::tempdir().expect("a directory for the test");
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..10_000u32).map(|at| (at * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("written");
        let map = FileMap::of(&File::open(&path).expect("it opens")).expect("it can be mapped");
        assert_eq!(*map, *bytes);
        assert!(map.as_ptr().addr().is_multiple_of(4096));
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, b"another file of this name").expect("written");
        let moved = std::thread::spawn(move || map.to_vec()).join();
        assert_eq!(moved.expect("the thread does not panic"), bytes);
    }

    #[test]
    fn what_is_appended_later_is_not_seen() {
        let file = tempfile::tempfile().expect("a file for the test");
        assert!(FileMap::of(&file).expect("an empty file is no error").is_empty());
        file.write_all_at(b"whole", 0).expect("written");
        let map = FileMap::of(&file).expect("it can be mapped");
        file.write_all_at(b"more", 5).expect("written");
        assert_eq!(&*map, b"whole");
    }
}
