//! Tools that the client tests use. What cannot be had on this machine is skipped, loudly.
//!
//! As root, Debian packages are installed. Python and Node packages go below the target
//! directory, pinned by `tests/clients/requirements.txt` and `tests/clients/package-lock.json`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process;
use crate::report::{Outcome, Tally};
use crate::steps::{Context, read};

/// Longest that fetching and installing one set of packages may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// File that says for which list of packages a directory was filled.
const STAMP: &str = "installed.txt";

/// The Python of the client tests, if it was set up.
pub(crate) fn python(context: &Context) -> PathBuf {
    context.target().join("venv/bin/python")
}

/// Whether that Python has everything it was to have.
pub(crate) fn python_is_ready(context: &Context) -> bool {
    context.target().join("venv").join(STAMP).is_file()
}

/// The Node modules of the client tests, if they were set up.
pub(crate) fn node_modules(context: &Context) -> PathBuf {
    context.target().join("node-clients/node_modules")
}

/// Says what this machine is, and sets up what is missing.
pub(crate) fn prepare(context: &Context) -> Result<Outcome> {
    describe(context);
    let mut outcome = Outcome { tally: Tally::PASSED, ..Outcome::default() };
    let mut part = |what: &str, result: Result<()>| match result {
        Ok(()) => outcome.tally += Tally::PASSED,
        Err(error) => outcome.skip(what, &format!("{error:#}")),
    };
    part("redis-cli and redis-benchmark", redis_tools(context));
    part("redis-py", python_packages(context));
    part("ioredis", node_packages(context));
    Ok(outcome)
}

fn describe(context: &Context) {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(|| "?".to_owned(), |rest| rest.trim_matches([' ', '\t', ':', '"']).into())
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("    system    {}", field(&file("/etc/os-release"), "PRETTY_NAME="));
    println!("    kernel    {}", file("/proc/sys/kernel/osrelease").trim());
    println!("    CPUs      {cpus}, {}", field(&file("/proc/cpuinfo"), "model name"));
    println!("    memory    {}", field(&file("/proc/meminfo"), "MemTotal"));
    println!("    memlock   {}", field(&file("/proc/self/limits"), "Max locked memory"));
    println!("    target    {}", context.target().display());
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|itself| itself.uid() == 0)
}

/// Installs Debian packages.
fn install(context: &Context, packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    anyhow::ensure!(process::exists("apt-get"), "missing, and this is not Debian: install {names}");
    anyhow::ensure!(is_root(), "missing, and only root may run `apt-get install {names}`");
    process::run(context.command("apt-get").args(["update", "-qq"]), INSTALL_LIMIT)?;
    let mut command = context.command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages);
    process::run(&mut command, INSTALL_LIMIT)
}

fn redis_tools(context: &Context) -> Result<()> {
    if process::exists("redis-cli") && process::exists("redis-benchmark") {
        return Ok(());
    }
    install(context, &["redis-tools"])
}

fn python_packages(context: &Context) -> Result<()> {
    let wanted = context.root().join("tests/clients/requirements.txt");
    let venv = context.target().join("venv");
    once(&venv, &[&wanted], || {
        if !process::exists("python3") {
            install(context, &["python3", "python3-venv"])?;
        }
        let make = || {
            let mut command = context.command("python3");
            process::run(command.args(["-m", "venv", "--clear"]).arg(&venv), INSTALL_LIMIT)
        };
        // Debian's python3 comes without the means to make one.
        if make().is_err() {
            install(context, &["python3-venv"])?;
            make()?;
        }
        let mut command = context.command(python(context));
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        process::run(command.arg("--requirement").arg(&wanted), INSTALL_LIMIT)
    })
}

fn node_packages(context: &Context) -> Result<()> {
    anyhow::ensure!(
        process::exists("node") && process::exists("npm"),
        "no Node.js here (20 or newer, with npm)"
    );
    let from = context.root().join("tests/clients");
    let (list, lock) = (from.join("package.json"), from.join("package-lock.json"));
    let dir = context.target().join("node-clients");
    once(&dir, &[&list, &lock], || {
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for file in [&list, &lock] {
            let name = file.file_name().expect("joined above");
            fs::copy(file, dir.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        let mut command = context.command("npm");
        command.current_dir(&dir).args(["ci", "--silent", "--no-audit", "--no-fund"]);
        process::run(command.arg("--ignore-scripts"), INSTALL_LIMIT)
    })
}

/// Does `work`, which fills `dir`, unless it was done before for the same content of `inputs`.
fn once(dir: &Path, inputs: &[&Path], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let wanted = inputs.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?.concat();
    let stamp = dir.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|done| done == wanted) {
        return Ok(());
    }
    work()?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_repeats_work_only_after_failure_or_change() {
        let dir = std::env::temp_dir().join(format!("xtask-once-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let input = dir.join("input");
        let mut done = 0;
        let mut step = |content: &str, fails: bool| {
            fs::write(&input, content).unwrap();
            let result = once(&dir, &[&input], || {
                done += 1;
                anyhow::ensure!(!fails, "planned");
                Ok(())
            });
            (done, result.is_ok())
        };
        assert_eq!(step("a", true), (1, false));
        assert_eq!(step("a", false), (2, true));
        assert_eq!(step("a", false), (2, true));
        assert_eq!(step("b", false), (3, true));
        fs::remove_dir_all(&dir).unwrap();
    }
}
