//! Processes that may have only so much memory.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// A group of processes with a limit of memory between them; whoever asks for more is killed.
/// Removed when dropped, when its processes have ended.
pub struct MemoryLimit {
    dir: PathBuf,
    events: &'static str,
}

impl MemoryLimit {
    /// `None`, and a line that shows although the test passes, where that is not allowed.
    pub fn new(test: &str, name: &str, bytes: u64) -> Option<Self> {
        let kinds = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
            ("/sys/fs/cgroup", "memory.max", "memory.events"),
        ];
        let name = format!("coracle-test-{}-{name}", std::process::id());
        for (root, limit, events) in kinds {
            let dir = Path::new(root).join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self { dir, events };
            if group.exists(limit) && group.write(limit, &bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        // Not by a macro: test output is captured.
        let line = format!("!! SKIPPED {test}: cannot limit memory by a cgroup\n");
        let _ = io::stderr().write_all(line.as_bytes());
        None
    }

    /// Puts a process into it, with the memory that it takes from now on.
    pub fn add(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string()).expect("move a process into the cgroup");
    }

    /// How many of its processes were killed for their memory.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join(self.events)).expect("events of the cgroup");
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    fn exists(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(file), text)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}
