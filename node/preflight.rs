//! Looks at the machine before the node starts and explains what is missing.
//!
//! In: a configuration. Out: the first thing that makes starting impossible, as a [`Fatal`];
//! what is merely unwise, as warnings.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle_ring::{Ring, RingConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::fatal::Fatal;

/// File descriptors a node needs beside its clients: logs, peers, listeners, rings.
const OWN_DESCRIPTORS: u64 = 512;
/// Nothing was written before this moment: 2024-01-01T00:00:00Z.
const CLOCK_MIN_SECONDS: u64 = 1_704_067_200;

/// Ports of a process that was just killed stay taken until the kernel has cleaned up its rings.
pub(crate) const PORTS_MAX: Duration = Duration::from_secs(3);
/// Pause before a taken port is tried again.
const PORTS_PAUSE: Duration = Duration::from_millis(20);

/// Checks the machine and gives the warnings. Raises the limit of open files on the way.
pub(crate) fn check(config: &Config) -> Result<Vec<String>, Fatal> {
    let mut warnings = Vec::new();
    cpus(config, &mut warnings)?;
    io_uring()?;
    clock(SystemTime::now())?;
    open_files(config, &mut warnings);
    locked_memory(&mut warnings);
    Ok(warnings)
}

/// Checks what the node is about to use: its directory, which must exist, and its ports.
pub(crate) fn check_places(config: &Config) -> Result<(), Fatal> {
    if config.wal.direct_io {
        direct_io(&config.data_dir)?;
    }
    ports(config, PORTS_MAX)
}

/// Whether a file in `dir` can be opened past the page cache; `dir` must exist.
pub(crate) fn direct_io(dir: &Path) -> Result<(), Fatal> {
    let probe = dir.join(".direct-io-probe");
    let result = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT)
        .open(&probe);
    // The file may not have been made at all.
    let _ = fs::remove_file(&probe);
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Fatal::failed(
            format!("the file system of {} has no direct I/O", dir.display()),
            "it refuses O_DIRECT, as tmpfs and some overlays do",
            "put the data directory on ext4 or XFS, or set wal.direct_io = false (slower)",
        )),
        Err(error) => Err(Fatal::new(
            crate::fatal::Exit::DiskError,
            format!("cannot write into {}", dir.display()),
            error.to_string(),
            "",
        )),
    }
}

/// Whether the wanted CPUs exist and may be used.
fn cpus(config: &Config, warnings: &mut Vec<String>) -> Result<(), Fatal> {
    let allowed = rustix::thread::sched_getaffinity(None).map_err(|error| {
        Fatal::failed("cannot ask which CPUs may be used", error.to_string(), "")
    })?;
    let usable: Vec<_> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .map(|cpu| cpu.to_string())
        .collect();
    for &cpu in &config.cores {
        let cpu = usize::from(cpu);
        if cpu >= rustix::thread::CpuSet::MAX_CPU || !allowed.is_set(cpu) {
            return Err(Fatal::usage(
                format!("CPU {cpu} cannot be used"),
                format!("this process may run on CPUs {}", usable.join(",")),
                "correct `cores` (--cores), or the CPU set of the container",
            ));
        }
    }
    let mut distinct = config.cores.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < config.cores.len() {
        warnings.push(format!(
            "{} cores share {} CPUs; latency suffers",
            config.cores.len(),
            distinct.len()
        ));
    }
    Ok(())
}

fn io_uring() -> Result<(), Fatal> {
    let small = RingConfig { entries: 8, recv_buffer_count: 2, recv_buffer_bytes: 4096 };
    Ring::new(small).map(drop).map_err(|error| Fatal::setup(&error))
}

fn clock(now: SystemTime) -> Result<(), Fatal> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    if since >= CLOCK_MIN_SECONDS {
        return Ok(());
    }
    Err(Fatal::failed(
        "the clock of this machine is not set",
        format!("it shows {since} seconds after 1970, which is before 2024"),
        "start a time service (chrony, systemd-timesyncd); keys expire by this clock",
    ))
}

fn open_files(config: &Config, warnings: &mut Vec<String>) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warnings.push(format!("cannot raise the limit of open files: {error}"));
        }
    }
    let needed = u64::from(config.maxclients) + OWN_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile).current;
    if let Some(limit) = limit.filter(|&limit| limit < needed) {
        warnings.push(format!(
            "only {limit} open files are allowed, but maxclients = {} needs {needed}; raise \
             LimitNOFILE or `ulimit -n`, or lower maxclients",
            config.maxclients
        ));
    }
}

fn locked_memory(warnings: &mut Vec<String>) {
    const ENOUGH: u64 = 1 << 20;
    if let Some(limit) = getrlimit(Resource::Memlock).current.filter(|&limit| limit < ENOUGH) {
        warnings.push(format!(
            "only {limit} bytes of memory may be locked; older kernels count io_uring there: \
             raise LimitMEMLOCK or `ulimit -l` if starting fails with \"out of memory\""
        ));
    }
}

/// Whether every port is free, or becomes so within `patience`. Another process could still be
/// faster before the node listens.
fn ports(config: &Config, patience: Duration) -> Result<(), Fatal> {
    let deadline = Instant::now() + patience;
    for (address, what) in config.listen_addresses() {
        retry_in_use(deadline, || TcpListener::bind(address))
            .map_err(|error| explain_bind(&address.to_string(), what, &error))?;
    }
    Ok(())
}

/// Tries to take a port until `deadline` as long as somebody else has it.
pub(crate) fn retry_in_use<T>(
    deadline: Instant,
    bind: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(PORTS_PAUSE);
            }
            result => return result,
        }
    }
}

/// Why a node cannot listen somewhere.
pub(crate) fn explain_bind(address: &str, what: &str, error: &io::Error) -> Fatal {
    let fix = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "stop the process that listens there (ss -ltnp), or choose \
                                     other ports"
        }
        io::ErrorKind::AddrNotAvailable => "`bind` must name an address of this machine",
        io::ErrorKind::PermissionDenied => "choose ports above 1023",
        _ => "",
    };
    Fatal::failed(format!("cannot listen on {address} for {what}"), error.to_string(), fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::test_config;

    fn config(flags: &str) -> Config {
        test_config(&format!("--id 1 --cluster a --data-dir /nowhere {flags}"))
    }

    /// A port somebody listens on is named, also if that one listens with SO_REUSEPORT.
    #[test]
    fn a_used_port_is_named() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket
            .bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().expect("address").into())
            .expect("bind");
        socket.listen(1).expect("listen");
        let address = socket.local_addr().expect("address").as_socket().expect("IPv4");
        let port = address.port();
        let free = if port > 60_000 { port - 100 } else { port + 100 };
        let config = config(&format!("--node 1=h:{port}/{free}/{}", free + 1));
        let error = ports(&config, Duration::ZERO).expect_err("in use");
        assert!(error.what.contains(&address.to_string()), "{error}");
        assert!(error.fix.contains("ss -ltnp"), "{error}");
    }

    /// A port that becomes free in time is taken; other errors are not waited for.
    #[test]
    fn only_a_port_in_use_is_waited_for() {
        let later = Instant::now() + Duration::from_secs(60);
        let count = std::cell::Cell::new(0);
        let fail_twice = |kind: io::ErrorKind| {
            count.set(count.get() + 1);
            if count.get() <= 2 { Err(io::Error::from(kind)) } else { Ok(count.get()) }
        };
        let taken = retry_in_use(later, || fail_twice(io::ErrorKind::AddrInUse));
        assert_eq!(taken.expect("free in the end"), 3);
        count.set(0);
        let refused = retry_in_use(later, || fail_twice(io::ErrorKind::PermissionDenied));
        assert_eq!(refused.expect_err("at once").kind(), io::ErrorKind::PermissionDenied);
        count.set(0);
        let now = Instant::now();
        retry_in_use(now, || fail_twice(io::ErrorKind::AddrInUse)).expect_err("too late");
        assert_eq!(count.get(), 1);
    }

    /// A CPU this machine does not have is refused with those it has.
    #[test]
    fn missing_cpus_are_refused() {
        let mut warnings = Vec::new();
        let error =
            cpus(&config("--cores 1023 --node 1=h:1/2/3"), &mut warnings).expect_err("none");
        assert!(error.what.contains("1023") && error.cause.contains("CPUs 0"), "{error}");
        cpus(&config("--cores 0,0 --node 1=h:1/2/9"), &mut warnings).expect("exists");
        assert_eq!(warnings, ["2 cores share 1 CPUs; latency suffers"]);
    }

    /// A machine that lost its clock must not stamp requests.
    #[test]
    fn an_unset_clock_is_refused() {
        clock(UNIX_EPOCH + Duration::from_secs(CLOCK_MIN_SECONDS)).expect("the first second");
        let error = clock(UNIX_EPOCH + Duration::from_secs(100)).expect_err("1970");
        assert!(error.cause.contains("100"), "{error}");
    }

    /// This machine passes (what it lacks shows here first).
    #[test]
    fn the_ring_and_direct_io_work_here() {
        io_uring().expect("tests need io_uring");
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temp dir");
        direct_io(dir.path()).expect("the source tree is on a real disk");
    }
}
