//! What load to make: the command line, its defaults and its limits.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::keys::Distribution;
use crate::request::STAMP_BYTES;

/// Everything that can be chosen. `Options::default()` is what an empty command line means.
#[derive(Clone, Debug, PartialEq, Serialize, clap::Args)]
pub struct Options {
    /// Where to connect; with --cluster these are the places to ask for the layout.
    #[arg(
        long,
        env = "CORACLE_ENDPOINTS",
        value_delimiter = ',',
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:6379"
    )]
    pub endpoints: Vec<String>,

    /// Ask CLUSTER SLOTS and send each key straight to the endpoint that owns it.
    #[arg(long)]
    pub cluster: bool,

    /// Open loop: requests per second, sent on schedule whatever the server does. Latency counts
    /// from the scheduled time. Without it: closed loop, connections x pipeline in flight.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,

    /// How an open loop spaces its requests.
    #[arg(long, value_enum, default_value_t = Arrival::Constant)]
    pub arrival: Arrival,

    /// Length of the measurement; 0 runs until stopped.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,

    /// Load before the measurement that is not counted.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub warmup: f64,

    /// Connections, at least one per endpoint.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,

    /// Most requests in flight per connection.
    #[arg(long, default_value_t = 16)]
    pub pipeline: usize,

    /// Number of different keys.
    #[arg(long, default_value_t = 100_000)]
    pub keys: u64,

    /// What every key starts with; its number follows.
    #[arg(long, default_value = "key:")]
    pub key_prefix: String,

    /// Bytes of a written value.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub value_size: usize,

    /// How requests spread over keys: uniform, zipf:EXPONENT, hotset or hotset:KEYS:REQUESTS
    /// (parts of 1).
    #[arg(long, default_value = "uniform")]
    pub dist: Distribution,

    /// Part of the requests that are GET, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub read_ratio: f64,

    /// What the other requests are.
    #[arg(long, value_enum, default_value_t = Command::Set)]
    pub command: Command,

    /// Write every key once before the warm-up.
    #[arg(long)]
    pub preload: bool,

    /// Seed of keys, mix and Poisson arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// A connection whose oldest request is unanswered this long is given up.
    #[arg(long, value_name = "MILLIS", default_value_t = 10_000)]
    pub timeout_ms: u64,

    /// Scheduled requests that may wait for a free connection; the ones beyond it are dropped
    /// and counted.
    #[arg(long, value_name = "REQUESTS", default_value_t = 1_000_000)]
    pub backlog: usize,

    /// Write the whole result as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the latency distribution (ms) in the text form that HdrHistogram's plotter reads.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,

    /// Record every acknowledged write in FILE, for --check-acked.
    #[arg(long, value_name = "FILE")]
    pub verify_acked: Option<PathBuf>,

    /// Record every operation of the whole run in FILE, one line of JSON each, for a check of
    /// linearizability. The keys must not exist before. FILE appears when the run is complete.
    #[arg(long, value_name = "FILE", conflicts_with = "check_acked")]
    pub history: Option<PathBuf>,

    /// No load: check that no write recorded in FILE is lost.
    #[arg(long, value_name = "FILE", conflicts_with = "verify_acked")]
    pub check_acked: Option<PathBuf>,

    /// Show the line of every second also when stderr is not a terminal.
    #[arg(long, conflicts_with = "quiet")]
    pub progress: bool,

    /// Show nothing while running.
    #[arg(long)]
    pub quiet: bool,

    /// Exit with 1 if any request failed.
    #[arg(long)]
    pub fail_on_error: bool,
}

/// How an open loop spaces its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// All gaps are equal.
    Constant,
    /// Independent arrivals: gaps are exponentially distributed.
    Poisson,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `SET key value`.
    Set,
    /// `GET key`: all requests are reads.
    Get,
    /// `INCR key`, on its own keys (`:n` is appended) because a stamped value is no number.
    Incr,
    /// `APPEND key value`.
    Append,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:6379".to_owned()],
            cluster: false,
            rate: None,
            arrival: Arrival::Constant,
            seconds: 10.0,
            warmup: 1.0,
            connections: 16,
            pipeline: 16,
            keys: 100_000,
            key_prefix: "key:".to_owned(),
            value_size: 1024,
            dist: Distribution::Uniform,
            read_ratio: 0.0,
            command: Command::Set,
            preload: false,
            seed: 1,
            timeout_ms: 10_000,
            backlog: 1_000_000,
            json: None,
            hgrm: None,
            verify_acked: None,
            history: None,
            check_acked: None,
            progress: false,
            quiet: false,
            fail_on_error: false,
        }
    }
}

/// Options that contradict each other or their limits. The text names the option and the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl Options {
    /// Most connections.
    pub const CONNECTIONS_MAX: usize = 10_000;
    /// Deepest pipeline.
    pub const PIPELINE_MAX: usize = 10_000;
    /// Most keys when writes are recorded: each needs a few bytes of memory.
    pub const VERIFIED_KEYS_MAX: u64 = 1 << 24;
    /// Longest run.
    pub const SECONDS_MAX: f64 = 7.0 * 86_400.0;

    /// Checks every limit; the first broken one is the error.
    pub fn validate(&self) -> Result<(), UsageError> {
        let range = |name: &str, value: f64, min: f64, max: f64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(UsageError(format!("--{name} is {value}, but must be from {min} to {max}")))
            }
        };
        if self.endpoints.is_empty() {
            return Err(UsageError("--endpoints needs at least one HOST:PORT".to_owned()));
        }
        range("rate", self.rate.unwrap_or(1.0), 0.001, 1e8)?;
        range("seconds", self.seconds, 0.0, Self::SECONDS_MAX)?;
        range("warmup", self.warmup, 0.0, Self::SECONDS_MAX)?;
        range("connections", self.connections as f64, 1.0, Self::CONNECTIONS_MAX as f64)?;
        range("pipeline", self.pipeline as f64, 1.0, Self::PIPELINE_MAX as f64)?;
        range("in-flight", (self.connections * self.pipeline) as f64, 1.0, 1e6)
            .map_err(|_| UsageError("--connections x --pipeline is above 1000000".to_owned()))?;
        range("keys", self.keys as f64, 1.0, 1e12)?;
        range("key-prefix length", self.key_prefix.len() as f64, 0.0, 1024.0)?;
        range("value-size", self.value_size as f64, 0.0, f64::from(8 << 20))?;
        range("read-ratio", self.read_ratio, 0.0, 1.0)?;
        range("timeout-ms", self.timeout_ms as f64, 1.0, 3_600_000.0)?;
        range("backlog", self.backlog as f64, 1.0, 1e8)?;
        self.validate_history()?;
        self.validate_verify()
    }

    fn validate_history(&self) -> Result<(), UsageError> {
        if self.history.is_none() {
            return Ok(());
        }
        if self.check_acked.is_some() {
            return Err(UsageError("--check-acked and --history exclude each other".to_owned()));
        }
        if self.command != Command::Incr && self.value_size < STAMP_BYTES {
            return Err(UsageError(format!(
                "--history needs a value of its own for every write: --value-size is {}, but must \
                 be at least {STAMP_BYTES}",
                self.value_size
            )));
        }
        Ok(())
    }

    fn validate_verify(&self) -> Result<(), UsageError> {
        let wrong = |text: String| Err(UsageError(text));
        if self.check_acked.is_some() && self.verify_acked.is_some() {
            return wrong("--check-acked and --verify-acked exclude each other".to_owned());
        }
        if self.verify_acked.is_none() {
            return Ok(());
        }
        if self.command != Command::Set {
            return wrong("--verify-acked needs --command set".to_owned());
        }
        if self.value_size < STAMP_BYTES {
            return wrong(format!(
                "--verify-acked marks every value: --value-size is {}, but must be at least \
                 {STAMP_BYTES}",
                self.value_size
            ));
        }
        if self.keys > Self::VERIFIED_KEYS_MAX {
            return wrong(format!(
                "--verify-acked remembers every key: --keys is {}, but must be at most {}",
                self.keys,
                Self::VERIFIED_KEYS_MAX
            ));
        }
        // Connections are never fewer than endpoints; a key is never written twice at a time.
        let in_flight = (self.connections * self.pipeline) as u64;
        if self.keys < in_flight.saturating_mul(2) {
            return wrong(format!(
                "--verify-acked never has a key in flight twice: --keys is {}, but must be at \
                 least twice the {in_flight} requests in flight",
                self.keys
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Options {
        let words = std::iter::once("loadgen").chain(line.split_whitespace());
        Line::try_parse_from(words).expect(line).options
    }

    #[test]
    fn an_empty_command_line_means_the_defaults() {
        assert_eq!(parse(""), Options::default());
        Options::default().validate().expect("defaults are valid");
    }

    #[test]
    fn a_full_command_line_is_understood() {
        let options = parse(
            "--endpoints a:1,b:2 --cluster --rate 5e4 --arrival poisson --dist zipf:0.8 \
             --read-ratio 0.5 --command incr --hgrm x.hgrm",
        );
        assert_eq!(options.endpoints, ["a:1", "b:2"]);
        assert_eq!(options.rate, Some(50_000.0));
        assert_eq!(options.dist, Distribution::Zipf { exponent: 0.8 });
        assert_eq!((options.arrival, options.command), (Arrival::Poisson, Command::Incr));
        options.validate().expect("valid");
    }

    #[test]
    fn limits_are_named() {
        let cases: &[(&str, &str)] = &[
            ("--rate 0", "--rate is 0"),
            ("--read-ratio 1.5", "--read-ratio is 1.5, but must be from 0 to 1"),
            ("--keys 0", "--keys is 0"),
            ("--connections 0", "--connections is 0"),
            ("--pipeline 20000", "--pipeline is 20000"),
            ("--connections 10000 --pipeline 1000", "--connections x --pipeline"),
            ("--value-size 9000000", "--value-size is 9000000"),
            ("--history f --value-size 31", "--history needs a value of its own"),
            ("--verify-acked f --command incr", "--command set"),
            ("--verify-acked f --value-size 8", "must be at least 32"),
            ("--verify-acked f --keys 300", "at least twice the 256"),
        ];
        for (line, want) in cases {
            let error = parse(line).validate().expect_err(line).to_string();
            assert!(error.contains(want), "{line}: {error}");
        }
    }
}
