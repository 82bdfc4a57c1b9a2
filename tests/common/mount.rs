//! Small file systems for tests of full disks.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory at a path; unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, and a line that shows although the test passes, where mounting is not allowed.
    pub fn mount(test: &str, at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(at).expect("create the mount point");
        let size = format!("size={bytes},mode=700");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        // Not by a macro: test output is captured.
        let line = format!("!! SKIPPED {test}: cannot mount a tmpfs\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        None
    }

    /// Takes all space that is left.
    pub fn fill(&self) {
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).append(true).open(self.0.join("ballast"));
        let (mut file, piece) = (file.expect("open"), vec![1; 1 << 20]);
        while file.write_all(&piece).is_ok() {}
    }

    /// Gives it back.
    pub fn unfill(&self) {
        fs::remove_file(self.0.join("ballast")).expect("remove");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the node may still run.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
