//! The steps of `cargo xtask test`, in the order that finds cheap mistakes first.
//!
//! Cargo is asked for as few different builds as the checks allow: one `check` build (clippy),
//! one dev build (tests), one optimized build (binaries; benches add only the pure crates).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::report::{Outcome, Tally};
use crate::{clients, environment, process};

/// Longest that one cargo command may take: a cold build on two slow CPUs, and then some.
const CARGO_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Longest that one run of the simulator may take.
const SIM_LIMIT: Duration = Duration::from_secs(15 * 60);

/// One line of the final table.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Context) -> Result<Outcome>,
}

/// Every step, in order.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "environment", what: "tools the later steps use", run: environment::prepare },
    Step { name: "fmt", what: "formatting", run: fmt },
    Step { name: "clippy", what: "lints, warnings denied", run: clippy },
    Step { name: "doc", what: "API documentation, warnings denied", run: doc },
    Step { name: "test", what: "unit, integration and documentation tests", run: test },
    Step { name: "failpoints", what: "a node ends at every named place", run: failpoints },
    Step { name: "build", what: "optimized binaries", run: build },
    Step { name: "sim", what: "simulated clusters under faults, old seeds and new ones", run: sim },
    Step { name: "bench", what: "every bench once, without measuring", run: bench },
    Step { name: "clients", what: "Redis clients against three real nodes", run: clients::run },
    Step { name: "deny", what: "licences and advisories of dependencies", run: deny },
];

/// Where things are.
pub(crate) struct Context {
    root: PathBuf,
    target: PathBuf,
    cargo: PathBuf,
}

impl Context {
    /// The repository this program was built from.
    pub(crate) fn new() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the crate lies below the repository's root")?;
        anyhow::ensure!(
            root.join("Cargo.lock").is_file(),
            "{} is not the repository any more; build xtask again",
            root.display()
        );
        Ok(Self::at(root))
    }

    /// A context with this root.
    pub(crate) fn at(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref().to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self { target: root.join(target), cargo: cargo.into(), root }
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where this program may put files.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// An optimized binary made by the `build` step.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// A program to be run in the repository's root, without what `cargo run` put into this
    /// program's environment: build scripts that watch those variables would run again.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let known = name.to_str().is_some_and(|name| {
                name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
            });
            if known {
                command.env_remove(name);
            }
        }
        command
    }

    fn cargo(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.cargo);
        command.args(args);
        command
    }

    /// Runs cargo as one check.
    fn cargo_check(&self, args: &[&str]) -> Result<Outcome> {
        process::run(&mut self.cargo(args), CARGO_LIMIT)?;
        Ok(Outcome { tally: Tally::PASSED, ..Outcome::default() })
    }

    /// Runs cargo and counts the tests it reports.
    fn cargo_tests(&self, args: &[&str]) -> Result<Outcome> {
        process::run_counted(&mut self.cargo(args), CARGO_LIMIT)
    }
}

fn fmt(context: &Context) -> Result<Outcome> {
    context.cargo_check(&["fmt", "--all", "--check"])
}

fn clippy(context: &Context) -> Result<Outcome> {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    context.cargo_check(&args)
}

fn doc(context: &Context) -> Result<Outcome> {
    let mut command = context.cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    process::run(command.env("RUSTDOCFLAGS", "-D warnings"), CARGO_LIMIT)?;
    Ok(Outcome { tally: Tally::PASSED, ..Outcome::default() })
}

fn test(context: &Context) -> Result<Outcome> {
    context.cargo_tests(&["test", "--workspace", "--locked", "--no-fail-fast"])
}

/// A build of its own: nothing else may have the feature.
fn failpoints(context: &Context) -> Result<Outcome> {
    context.cargo_tests(&["test", "--features", "failpoints", "--test", "failpoints", "--locked"])
}

fn build(context: &Context) -> Result<Outcome> {
    let mut args = vec!["build", "--release", "--locked"];
    args.extend(["--package", "coracle", "--package", "coracle-loadgen"]);
    context.cargo_check(&args)
}

/// Seeds that no run before this commit has tried.
const FRESH_SEEDS: u64 = 2000;
/// Seeds that are run twice in each profile, to see that nothing but the seed decides.
const TWICE_SEEDS: u64 = 30;

fn sim(context: &Context) -> Result<Outcome> {
    let fresh = fresh_seed(context);
    let seeds = format!("{fresh}..{}", fresh + FRESH_SEEDS);
    let twice = format!("{fresh}..{}", fresh + TWICE_SEEDS);
    context.cargo_check(&["build", "--release", "--package", "sim", "--locked"])?;
    let runs: [&[&str]; 3] =
        [&["regressions"], &["--seeds", &seeds], &["--seeds", &twice, "--doublecheck"]];
    let mut outcome = Outcome::default();
    for args in runs {
        let mut command = context.command(context.binary("sim"));
        process::run(command.args(args), SIM_LIMIT)?;
        outcome.tally.passed += 1;
    }
    Ok(outcome)
}

/// The same for everyone who tests the same commit, so that a failure can be repeated.
fn fresh_seed(context: &Context) -> u64 {
    let head = context.command("git").args(["rev-parse", "HEAD"]).output();
    let digits = head.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    let seed = digits.and_then(|digits| u64::from_str_radix(digits.get(..10)?, 16).ok());
    // Not a repository: any number does.
    seed.unwrap_or_else(|| u64::from(std::process::id()))
}

fn bench(context: &Context) -> Result<Outcome> {
    context.cargo_tests(&["bench", "--package", "coracle-bench", "--locked", "--", "--test"])
}

fn deny(context: &Context) -> Result<Outcome> {
    let asked = context.cargo(&["deny", "--version"]).output();
    if asked.is_ok_and(|output| output.status.success()) {
        return context.cargo_check(&["deny", "--locked", "check"]);
    }
    let mut outcome = Outcome::default();
    outcome.skip("cargo-deny", "not installed (`cargo install cargo-deny`, then again)");
    Ok(outcome)
}

/// Reads a file of the repository, naming it in the error.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
