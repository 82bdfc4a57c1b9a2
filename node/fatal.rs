//! Errors that end the process: what happened, why, what to do; and the exit codes.
//!
//! In: anything that makes going on impossible. Out: three lines on stderr and a status that
//! scripts and service managers can tell apart.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Status of a process that ended for a known reason. The numbers never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something in the environment is missing or in use, or a command was answered by an error.
    Failed,
    /// Wrong flags, environment or configuration file.
    Usage,
    /// The data directory holds damaged data that cannot be repaired from peers.
    DataDamaged,
    /// A read, write or sync failed; nothing more may be acknowledged.
    DiskError,
    /// The data directory belongs to another node, cluster or layout, or is in use.
    WrongIdentity,
    /// The data directory was written by a version this one does not know.
    UnknownFormat,
    /// A client command could not reach any node.
    Unreachable,
    /// A condition that the program's own logic excludes.
    Bug,
}

impl Exit {
    /// The status.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            // Servers and clients are told apart by the subcommand, as the tables in the
            // reference pages do.
            Self::DataDamaged | Self::Unreachable => 3,
            Self::DiskError => 4,
            Self::WrongIdentity => 5,
            Self::UnknownFormat => 6,
            Self::Bug => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error a person has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fatal {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// What could not be done.
    pub(crate) what: String,
    /// Why not.
    pub(crate) cause: String,
    /// What helps; empty if nothing is known.
    pub(crate) fix: String,
    /// There is no space on a disk: it may work later.
    pub(crate) is_full_disk: bool,
}

impl Fatal {
    /// An error from its three lines. `fix` may be empty.
    pub(crate) fn new(
        exit: Exit,
        what: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let (what, cause, fix) = (what.into(), cause.into(), fix.into());
        Self { exit, what, cause, fix, is_full_disk: false }
    }

    /// A mistake in flags, environment or configuration.
    pub(crate) fn usage(
        what: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Exit::Usage, what, cause, fix)
    }

    /// Something the environment does not give.
    pub(crate) fn failed(
        what: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(Exit::Failed, what, cause, fix)
    }

    /// The machine gives no io_uring; the error names the cause and the way out.
    pub(crate) fn setup(error: &coracle_ring::SetupError) -> Self {
        Self::failed("cannot create an io_uring", error.to_string(), "")
    }

    /// A ring that worked stopped working.
    pub(crate) fn ring(error: std::io::Error) -> Self {
        Self::failed(
            "the io_uring of a core failed",
            error.to_string(),
            "restart the node; if it comes back, look at the kernel log (dmesg)",
        )
    }

    /// An operation on the disk failed.
    pub(crate) fn disk(what: &str, error: &std::io::Error) -> Self {
        Self::new(Exit::DiskError, what, error.to_string(), "")
    }

    /// Writes the error to stderr and gives the status to end with.
    pub(crate) fn report(&self) -> ExitCode {
        // A closed stderr must not turn one error into another.
        let _ = writeln!(std::io::stderr(), "{self}");
        self.exit.into()
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.cause.is_empty() {
            write!(f, "\ncause: {}", self.cause)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\nfix: {}", self.fix)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fatal {}

/// Makes a panic on any thread end the whole process with status 70: a node of which one core is
/// gone is worse than no node. The message names the thread, and so the core.
pub(crate) fn install_panic_hook() {
    static FIRST: AtomicBool = AtomicBool::new(true);
    std::panic::set_hook(Box::new(|info| {
        if !FIRST.swap(false, Ordering::SeqCst) {
            // Another thread is already ending the process; two exits at once are not defined.
            loop {
                std::thread::park();
            }
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        let place = info.location().map_or_else(String::new, |at| format!(" at {at}"));
        let text = info.payload_as_str().unwrap_or("no message");
        let backtrace = std::backtrace::Backtrace::capture();
        let fatal = Fatal::new(
            Exit::Bug,
            format!("bug in coracle {}", env!("CARGO_PKG_VERSION")),
            format!("thread {name} panicked{place}: {text}"),
            "restart the node (what it acknowledged is on disk) and report these lines",
        );
        let _ = writeln!(std::io::stderr(), "{fatal}");
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            let _ = writeln!(std::io::stderr(), "{backtrace}");
        }
        std::process::exit(i32::from(Exit::Bug.code()));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three lines keep their order, and empty ones are left out.
    #[test]
    fn shows_what_cause_and_fix() {
        let full = Fatal::usage("a", "b", "c");
        assert_eq!(full.to_string(), "error: a\ncause: b\nfix: c");
        assert_eq!(Fatal::failed("a", "b", "").to_string(), "error: a\ncause: b");
    }

    /// Scripts depend on these numbers.
    #[test]
    fn exit_codes_are_fixed() {
        let cases = [
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::DataDamaged, 3),
            (Exit::Unreachable, 3),
            (Exit::DiskError, 4),
            (Exit::WrongIdentity, 5),
            (Exit::UnknownFormat, 6),
            (Exit::Bug, 70),
        ];
        for (exit, code) in cases {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }
}
