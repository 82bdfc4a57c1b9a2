//! Why a ring could not be set up, with the way out.

use std::io;

use thiserror::Error;

/// Why [`crate::Ring::new`] failed. None of these goes away by trying again at once, except
/// [`SetupError::OutOfMemory`] shortly after another ring of the same user was closed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A field of the configuration is out of range.
    #[error("ring configuration: {field} is {value}, but must be {must_be}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// What it was set to.
        value: u64,
        /// What is allowed.
        must_be: &'static str,
    },
    /// io_uring is there, but lacks what this crate builds on.
    #[error(
        "io_uring of kernel {running} lacks {missing}; Linux 6.1 or newer is needed, 6.6 or newer \
         is recommended"
    )]
    KernelTooOld {
        /// The running kernel's own name for its version.
        running: String,
        /// The missing part.
        missing: &'static str,
    },
    /// There is no io_uring at all.
    #[error(
        "kernel {running} offers no io_uring: it is older than 5.1, built without \
         CONFIG_IO_URING, or a container's seccomp filter hides it (docker and podman: run with a \
         profile that allows io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Unavailable {
        /// The running kernel's own name for its version.
        running: String,
    },
    /// The administrator or a sandbox forbids io_uring.
    #[error(
        "io_uring is forbidden here: `sysctl kernel.io_uring_disabled` is {sysctl} (0 allows it, \
         1 only for CAP_SYS_ADMIN and the group kernel.io_uring_group, 2 forbids it); if it is 0, \
         a seccomp filter is the cause (docker and podman: run with a profile that allows \
         io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Forbidden {
        /// The value of the sysctl, or `unreadable`.
        sysctl: String,
    },
    /// The kernel could not get, or may not lock, the memory of the queues.
    #[error(
        "not enough memory for a ring of {entries} entries and {buffers} receive buffers: the \
         limit of locked memory (`ulimit -l`, systemd LimitMEMLOCK=) is {limit}; raise it, or use \
         fewer entries; memory of a ring closed a moment ago is counted until the kernel has \
         cleaned up"
    )]
    OutOfMemory {
        /// Asked-for queue entries.
        entries: u32,
        /// Asked-for receive buffers.
        buffers: u16,
        /// The limit in bytes, or `unlimited`.
        limit: String,
    },
    /// No more file descriptors.
    #[error("no file descriptor is left for a ring (`ulimit -n`, systemd LimitNOFILE=): {source}")]
    TooManyFiles {
        /// EMFILE or ENFILE.
        source: io::Error,
    },
    /// Anything else.
    #[error("setting up io_uring, step {step}: {source}")]
    Other {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Turns the kernel's answer into advice.
pub(crate) fn explain(
    step: &'static str,
    source: io::Error,
    config: &crate::RingConfig,
) -> SetupError {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => SetupError::Unavailable { running: kernel_release() },
        Some(libc::EPERM | libc::EACCES) => SetupError::Forbidden { sysctl: disabled_sysctl() },
        Some(libc::EINVAL) => SetupError::KernelTooOld { running: kernel_release(), missing: step },
        Some(libc::ENOMEM) => SetupError::OutOfMemory {
            entries: config.entries,
            buffers: config.recv_buffer_count,
            limit: memlock_limit(),
        },
        Some(libc::EMFILE | libc::ENFILE) => SetupError::TooManyFiles { source },
        _ => SetupError::Other { step, source },
    }
}

fn kernel_release() -> String {
    read_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "(unknown)".to_owned())
}

fn disabled_sysctl() -> String {
    read_line("/proc/sys/kernel/io_uring_disabled").unwrap_or_else(|| "unreadable".to_owned())
}

/// The soft limit from the kernel's table for this process.
fn memlock_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => "unlimited".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
        None => "unknown".to_owned(),
    }
}

fn read_line(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_names_its_remedy() {
        let cases: &[(i32, &str)] = &[
            (libc::ENOSYS, "CONFIG_IO_URING"),
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::EINVAL, "Linux 6.1"),
            (libc::ENOMEM, "LimitMEMLOCK"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::EIO, "step queues"),
        ];
        for &(code, want) in cases {
            let source = io::Error::from_raw_os_error(code);
            let text = explain("queues", source, &crate::RingConfig::default()).to_string();
            assert!(text.contains(want), "errno {code}: {text}");
        }
    }

    #[test]
    fn facts_of_this_machine_are_readable() {
        assert_ne!(kernel_release(), "(unknown)");
        assert_ne!(memlock_limit(), "unknown");
    }
}
