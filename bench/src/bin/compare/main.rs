//! What `bench/compare/etcd.sh` needs beside a shell: free ports, a load client that speaks
//! etcd's gRPC, and a table of two results.
//!
//! Not here: the load generator for Redis endpoints (`loadgen`).

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod grpc;
mod load;
mod table;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::load::Load;

const USAGE: &str = "\
compare ports COUNT
    prints COUNT free TCP ports of this machine
compare etcd ENDPOINT CONNECTIONS STREAMS SECONDS WARMUP VALUE_BYTES KEYS RATE FILE
    writes to etcd at ENDPOINT (host:port) with CONNECTIONS x STREAMS in flight; with RATE above 0
    at that many writes per second (open loop, latency from the intended time); result as JSON
compare table NAME FILE CPU NAME FILE CPU
    prints two results of `compare etcd` or `loadgen --json`, and their ratio; CPU is the CPU time
    that all servers together took per second";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ports", count] => free_ports(number(count)?),
        ["etcd", endpoint, connections, streams, seconds, warmup, value, keys, rate, file] => {
            let load = Load {
                endpoint: endpoint.parse::<SocketAddr>().context("ENDPOINT is host:port")?,
                connections: number(connections)?,
                streams: number(streams)?,
                measured: Duration::from_secs(number(seconds)?),
                warmup: Duration::from_secs(number(warmup)?),
                value_bytes: number(value)?,
                keys: number(keys)?,
                rate: number(rate)?,
            };
            let json = load.run()?;
            std::fs::write(file, format!("{json:#}\n"))
                .with_context(|| format!("cannot write {file}"))
        }
        ["table", first @ .., name, file, cpu] if first.len() == 3 => {
            let one = table::Run::read(first[0], first[1], first[2])?;
            let two = table::Run::read(name, file, cpu)?;
            println!("{}", table::compare(&one, &two));
            Ok(())
        }
        _ => bail!("usage:\n{USAGE}"),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{text:?} is not a number in range\nusage:\n{USAGE}"))
}

/// Prints ports that were free a moment ago, all distinct.
fn free_ports(count: usize) -> Result<()> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port");
    let held = (0..count).map(bind).collect::<Result<Vec<_>>>()?;
    for listener in &held {
        println!("{}", listener.local_addr().context("a bound socket has an address")?.port());
    }
    Ok(())
}
