//! Runs the scripts of `tests/clients` against three nodes made of the optimized binary.
//!
//! A script finds the ports in `CORACLE_PLAIN_PORTS` and `CORACLE_CORE_PORTS`, separated by
//! spaces, and prints one line per case: `ok NAME`, `FAIL NAME: why` or `skip NAME: why`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cluster::Cluster;
use crate::report::{Outcome, Tally};
use crate::steps::Context;
use crate::{environment, process};

/// Longest that one script may take; the longest takes some ten seconds.
const SCRIPT_LIMIT: Duration = Duration::from_secs(5 * 60);

pub(crate) fn run(context: &Context) -> Result<Outcome> {
    let cluster = Cluster::start(context)?;
    println!("    plain ports {:?}, core ports {:?}", cluster.plain_ports(), cluster.core_ports());
    let dir = cluster.dir().to_owned();
    let mut outcome = Outcome::default();
    for script in scripts(context) {
        match script.missing {
            Some(why) => outcome.skip(script.name, why),
            None => {
                println!("    -- {}", script.name);
                outcome.absorb(run_script(context, &cluster, &script)?);
            }
        }
    }
    println!("    -- clean stop");
    match cluster.stop() {
        Ok(()) => outcome.tally += Tally::PASSED,
        Err(error) => outcome.failure = outcome.failure.or(Some(format!("{error:#}"))),
    }
    if outcome.failure.is_some() {
        println!("    logs and data are kept in {}", dir.display());
    } else {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(outcome)
}

struct Script {
    name: &'static str,
    program: std::path::PathBuf,
    /// Why it cannot run here.
    missing: Option<&'static str>,
}

fn scripts(context: &Context) -> Vec<Script> {
    let unless = |there: bool, why| if there { None } else { Some(why) };
    let tools = process::exists("redis-cli") && process::exists("redis-benchmark");
    let no_tools = unless(tools, "redis-tools is not installed, see step environment");
    let python = environment::python(context);
    let redis_py = environment::python_is_ready(context);
    let no_python = unless(redis_py, "redis-py is not installed, see step environment");
    let ioredis = environment::node_modules(context).join("ioredis").is_dir();
    let no_node = unless(ioredis, "ioredis is not installed, see step environment");
    vec![
        Script { name: "redis_cli.sh", program: "bash".into(), missing: no_tools },
        Script { name: "redis_benchmark.sh", program: "bash".into(), missing: no_tools },
        Script { name: "redis_py.py", program: python.clone(), missing: no_python },
        Script { name: "redis_py_cluster.py", program: python, missing: no_python },
        Script { name: "ioredis_cluster.js", program: "node".into(), missing: no_node },
    ]
}

fn run_script(context: &Context, cluster: &Cluster, script: &Script) -> Result<Outcome> {
    let words = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
    let mut command: Command = context.command(&script.program);
    command
        .arg(context.root().join("tests/clients").join(script.name))
        .env("CORACLE_PLAIN_PORTS", words(&cluster.plain_ports()))
        .env("CORACLE_CORE_PORTS", words(cluster.core_ports()))
        .env("NODE_PATH", environment::node_modules(context))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    process::run_counted(&mut command, SCRIPT_LIMIT)
}
