//! Running programs: with a deadline, and with their output counted while it is shown.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::report::{Outcome, Tally};

/// How often a running child is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long a finished program's remaining output is waited for. It ends at once, unless a
/// grandchild still holds the pipe.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Runs a program to its end; an error if it cannot start, fails, or takes longer than `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let shown = show(command);
    println!("    $ {shown}");
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let status = wait(&mut child, limit)?;
    check(status, &shown, limit)
}

/// Runs a program that reports tests on its standard output, shows that output and counts it.
pub(crate) fn run_counted(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let shown = show(command);
    println!("    $ {shown}");
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = child.stdout.take().expect("asked for above");
    let (sender, tallies) = mpsc::channel();
    // Not joined: a grandchild that survives the deadline may hold the pipe for ever.
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if sender.send((Tally::of_line(&line), skip_of(&line))).is_err() {
                return;
            }
        }
    });
    let status = wait(&mut child, limit)?;
    let mut outcome = Outcome::default();
    let drained_by = Instant::now() + DRAIN_MAX;
    while let Ok((tally, skip)) =
        tallies.recv_timeout(drained_by.saturating_duration_since(Instant::now()))
    {
        outcome.tally += tally;
        outcome.skips.extend(skip);
    }
    outcome.failure = check(status, &shown, limit).err().map(|error| format!("{error:#}"));
    if outcome.failure.is_none() && outcome.tally.failed > 0 {
        outcome.failure = Some(format!("`{shown}` reported failures but ended with success"));
    }
    if outcome.failure.is_none() && outcome.tally == Tally::default() {
        outcome.failure = Some(format!("`{shown}` reported not a single test"));
    }
    Ok(outcome)
}

/// The text behind a client script's `skip`.
fn skip_of(line: &str) -> Option<String> {
    line.strip_prefix("skip ").map(str::to_owned)
}

/// Whether a program can be found on the path.
pub(crate) fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Waits until the child ends; kills it and its descendants at the deadline (`None`).
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            kill_tree(child.id());
            child.wait().context("cannot wait for a killed child")?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

fn check(status: Option<ExitStatus>, shown: &str, limit: Duration) -> Result<()> {
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{shown}` ended with {status}"),
        None => bail!("`{shown}` was killed after {} s", limit.as_secs()),
    }
}

/// Sends SIGKILL to a process and to everything it started that still descends from it.
fn kill_tree(root: u32) {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut doomed = vec![root];
    let mut next = 0;
    while let Some(pid) = doomed.get(next) {
        doomed.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    let pids = doomed.iter().map(u32::to_string);
    // One that has ended by itself makes `kill` complain; that is no news.
    let _ = Command::new("kill").arg("-KILL").args(pids).stderr(Stdio::null()).status();
}

/// The parent's id: second field after the parenthesised name in `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The command as one would type it.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn counted_run_adds_up_lines_and_believes_the_exit_status() {
        let limit = Duration::from_secs(60);
        let good = run_counted(&mut shell("echo ok a; echo skip b: why; echo x"), limit).unwrap();
        assert_eq!(good.tally, Tally { passed: 1, failed: 0, skipped: 1 });
        assert_eq!((good.failure, good.skips), (None, vec!["b: why".to_owned()]));
        let bad: &[(&str, &str)] = &[
            ("echo ok a; exit 3", "ended with exit status: 3"),
            ("echo FAIL a: b", "ended with success"),
            ("true", "not a single test"),
        ];
        for &(script, want) in bad {
            let failure = run_counted(&mut shell(script), limit).unwrap().failure.unwrap();
            assert!(failure.contains(want), "{script}: {failure}");
        }
    }

    #[test]
    fn deadline_kills_grandchildren_too() {
        let mut child = shell("sleep 1000 & echo $!; wait").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        assert_eq!(parent_of(grandchild), Some(child.id()));
        assert!(wait(&mut child, Duration::ZERO).unwrap().is_none());
        // The signal is delivered when the kernel gets to it; a zombie waits for its new parent.
        let deadline = Instant::now() + Duration::from_secs(30);
        let alive = || {
            fs::read_to_string(format!("/proc/{grandchild}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        while alive() {
            assert!(Instant::now() < deadline, "the grandchild outlives its deadline");
            thread::yield_now();
        }
    }
}
