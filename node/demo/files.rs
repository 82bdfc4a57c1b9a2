//! Where a demo keeps its files: a temporary directory that is removed, or a named one that stays.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fatal::Fatal;

const PREFIX: &str = "coracle-demo-";
const LOCK: &str = "lock";
const LAYOUT: &str = "layout.json";
/// Directories younger than this may belong to a demo that is just starting.
const SWEEP_AGE: Duration = Duration::from_secs(60);

/// What the data of a cluster fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fixed {
    /// Number of nodes.
    pub(super) nodes: u32,
    /// Cores per node.
    pub(super) cores: u16,
    /// Groups.
    pub(super) groups: u32,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nodes of {} cores, {} groups", self.nodes, self.cores, self.groups)
    }
}

/// The directory of a running demo.
#[derive(Debug)]
pub(super) struct DemoDir {
    path: PathBuf,
    fixed: Fixed,
    is_kept: bool,
    /// Tells other demos that this one is alive.
    _lock: File,
}

impl DemoDir {
    /// A new temporary directory, or the kept one of this name.
    pub(super) fn open(keep: Option<&str>, wanted: Fixed) -> Result<Self, Fatal> {
        match keep {
            Some(name) => Self::open_in(&kept_root()?.join(valid_name(name)?), true, wanted),
            None => {
                let tmp = std::env::temp_dir();
                sweep(&tmp);
                let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&tmp);
                let path = made.map_err(unusable(&tmp))?.keep();
                Self::open_in(&path, false, wanted)
            }
        }
    }

    fn open_in(path: &Path, is_kept: bool, wanted: Fixed) -> Result<Self, Fatal> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable(path))?;
        let lock = lock(path).map_err(unusable(path))?.ok_or_else(|| {
            Fatal::failed(
                format!("the demo in {} is running", path.display()),
                "another process has locked it",
                "use that one, or another name with --keep",
            )
        })?;
        let layout = path.join(LAYOUT);
        let fixed = match fs::read_to_string(&layout) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| unusable(&layout)(io::Error::other(error)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = serde_json::to_string(&wanted).expect("plain numbers become JSON");
                fs::write(&layout, text).map_err(unusable(&layout))?;
                wanted
            }
            Err(error) => return Err(unusable(&layout)(error)),
        };
        Ok(Self { path: path.to_path_buf(), fixed, is_kept, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What its data fixes.
    pub(super) const fn fixed(&self) -> Fixed {
        self.fixed
    }

    /// Throws the data away, unless it is to be kept.
    pub(super) fn remove(&self) {
        if !self.is_kept {
            // What cannot be removed now, the next demo sweeps.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Takes the lock of a directory; `None` if another process has it.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what demos left behind that were killed.
fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let age = entry.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed());
        let is_old = age.is_ok_and(|age| age.is_ok_and(|age| age > SWEEP_AGE));
        if is_ours && is_old && matches!(lock(&entry.path()), Ok(Some(_))) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// `$XDG_DATA_HOME/coracle/demo`.
fn kept_root() -> Result<PathBuf, Fatal> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/share")))
        .map(|data| data.join("coracle/demo"))
        .ok_or_else(|| {
            Fatal::usage("there is no place to keep data", "HOME is not set", "set XDG_DATA_HOME")
        })
}

/// A name that is one plain directory.
fn valid_name(name: &str) -> Result<&str, Fatal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(Fatal::usage(
            format!("'{name}' is not a name for kept data"),
            "names are 1 to 64 letters, digits, '-' and '_'",
            "",
        ));
    }
    Ok(name)
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Fatal {
    let what = format!("cannot use {}", path.display());
    move |error| Fatal::failed(what, error.to_string(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: Fixed = Fixed { nodes: 3, cores: 2, groups: 8 };

    /// A kept directory remembers its layout, and only one demo uses it.
    #[test]
    fn kept_data_remembers_its_layout() {
        let tmp = tempfile::tempdir().expect("temp dir");
        let path = tmp.path().join("a");
        let first = DemoDir::open_in(&path, true, FIXED).expect("new");
        let error = DemoDir::open_in(&path, true, FIXED).expect_err("in use");
        assert!(error.what.contains("is running"), "{error}");
        first.remove();
        drop(first);
        let other = Fixed { groups: 4, ..FIXED };
        assert_eq!(DemoDir::open_in(&path, true, other).expect("kept").fixed(), FIXED);
    }

    /// Temporary data goes away.
    #[test]
    fn temporary_data_is_removed() {
        let tmp = tempfile::tempdir().expect("temp dir");
        let dir = DemoDir::open_in(&tmp.path().join("a"), false, FIXED).expect("new");
        fs::write(dir.path().join("x"), "x").expect("write");
        dir.remove();
        assert!(!dir.path().exists());
    }

    /// Only old directories of demos that are gone are swept.
    #[test]
    fn sweeping_spares_the_living_and_the_foreign() {
        let tmp = tempfile::tempdir().expect("temp dir");
        let age = |path: &Path| {
            let long_ago = std::time::SystemTime::now() - 2 * SWEEP_AGE;
            File::open(path).expect("directory").set_modified(long_ago).expect("set");
        };
        let names = ["coracle-demo-alive", "coracle-demo-dead", "coracle-demo-new", "foreign"];
        let [alive, dead, new, foreign] = names.map(|name| tmp.path().join(name));
        let living = DemoDir::open_in(&alive, false, FIXED).expect("new");
        drop(DemoDir::open_in(&dead, false, FIXED).expect("new"));
        drop(DemoDir::open_in(&new, false, FIXED).expect("new"));
        fs::create_dir(&foreign).expect("create");
        [&alive, &dead, &foreign].into_iter().for_each(|path| age(path));
        sweep(tmp.path());
        assert_eq!([&alive, &dead, &new, &foreign].map(|p| p.exists()), [true, false, true, true]);
        drop(living);
    }

    /// A name must not lead out of the place for kept data.
    #[test]
    fn names_are_plain() {
        valid_name("my-data_2").expect("plain");
        for bad in ["", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(valid_name(bad).is_err(), "{bad}");
        }
    }
}
