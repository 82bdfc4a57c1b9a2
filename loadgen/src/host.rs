//! The machine the generator runs on, and what the generator's own thread costs it.

use std::fs;

use serde::Serialize;

/// Where a result was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Processors this process may use.
    pub cpus: usize,
    /// Their model, as the kernel names it.
    pub cpu_model: String,
    /// Kernel release.
    pub kernel: String,
}

impl Host {
    /// Looks at this machine. What cannot be found out is empty.
    pub fn here() -> Self {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("", |(_, model)| model.trim());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: model.to_owned(),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// Processor time of the calling thread so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadTime {
    /// Time on a processor.
    pub(crate) running_ns: u64,
    /// Time ready to run while other threads had the processors.
    pub(crate) waiting_ns: u64,
}

impl ThreadTime {
    /// `None` where the kernel keeps no such statistics.
    pub(crate) fn now() -> Option<Self> {
        parse_schedstat(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
    }

    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self {
            running_ns: self.running_ns.saturating_sub(earlier.running_ns),
            waiting_ns: self.waiting_ns.saturating_sub(earlier.waiting_ns),
        }
    }
}

fn parse_schedstat(text: &str) -> Option<ThreadTime> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(ThreadTime { running_ns: numbers.next()?.ok()?, waiting_ns: numbers.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_has_running_then_waiting() {
        let want = ThreadTime { running_ns: 1450, waiting_ns: 77 };
        assert_eq!(parse_schedstat("1450 77 3\n"), Some(want));
        assert_eq!(parse_schedstat("x 77 3"), None);
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn this_machine_has_processors() {
        assert!(Host::here().cpus > 0);
    }
}
