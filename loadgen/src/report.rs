//! The result: for people as aligned text, for programs as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::check::CheckReport;
use crate::hgrm;
use crate::host::Host;
use crate::ledger::Totals;
use crate::meter::{ErrorCount, Second, millis};
use crate::options::Options;

/// Above this share of time the generator cannot be trusted to keep its schedule.
const BUSY_SHARE_MAX: f64 = 0.9;

/// A schedule kept worse than this says more about the generator than about the server.
const LAG_P99_MS_MAX: f64 = 1.0;

/// What a run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of the generator.
    pub version: &'static str,
    /// When the run started, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// Where the generator ran.
    pub host: Host,
    /// What was asked for.
    pub options: Options,
    /// The load, unless this was a check.
    pub load: Option<LoadReport>,
    /// What `--verify-acked` recorded.
    pub recorded: Option<Totals>,
    /// What `--check-acked` found.
    pub check: Option<CheckReport>,
}

/// What a load found. Counts are of requests scheduled inside the measured window.
#[derive(Debug, Serialize)]
pub struct LoadReport {
    /// Length of the measured window.
    pub seconds: f64,
    /// Answered reads.
    pub reads: u64,
    /// Answered reads that found no value.
    pub reads_missing: u64,
    /// Reads that found less than was acknowledged before they were sent (only looked for with
    /// `--verify-acked`, in the whole run): each is a violation of linearizability.
    pub reads_stale: u64,
    /// Answered writes.
    pub writes: u64,
    /// Answers per second of the window.
    pub answers_per_second: f64,
    /// Bytes sent per second, with the protocol's.
    pub sent_bytes_per_second: f64,
    /// Bytes received per second, with the protocol's.
    pub received_bytes_per_second: f64,
    /// From the intended send time to the answer.
    pub latency: Latency,
    /// From the actual send to the answer.
    pub service: Latency,
    /// Failed requests by kind.
    pub errors: BTreeMap<String, ErrorCount>,
    /// Their sum.
    pub error_count: u64,
    /// Redirections followed.
    pub moved: u64,
    /// Refusals that said "not now", by their code; the requests were sent again.
    pub retried: BTreeMap<&'static str, u64>,
    /// Scheduled requests dropped because `--backlog` were waiting.
    pub dropped: u64,
    /// Connections that broke, also outside the window.
    pub connections_lost: u64,
    /// Attempts to connect that failed, also outside the window.
    pub connects_failed: u64,
    /// The generator's own part.
    pub generator: Generator,
    /// What makes the numbers doubtful, in sentences.
    pub warnings: Vec<String>,
    /// Every second from the start of the load.
    pub series: Vec<Second>,
    /// All latencies in nanoseconds.
    #[serde(skip)]
    pub histogram: Histogram<u64>,
}

/// A latency distribution in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Standard deviation.
    pub stdev_ms: f64,
    /// Percentiles.
    pub p50_ms: f64,
    /// 75th.
    pub p75_ms: f64,
    /// 90th.
    pub p90_ms: f64,
    /// 95th.
    pub p95_ms: f64,
    /// 99th.
    pub p99_ms: f64,
    /// 99.9th.
    pub p99_9_ms: f64,
    /// 99.99th.
    pub p99_99_ms: f64,
    /// Longest.
    pub max_ms: f64,
}

/// What the generator itself cost and how well it kept its schedule.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Generator {
    /// Processor seconds of its thread in the window.
    pub cpu_seconds: f64,
    /// The same per answer.
    pub cpu_micros_per_answer: f64,
    /// Share of the window on a processor.
    pub running_share: f64,
    /// Share of the window in which it was ready but other threads had the processors.
    pub waiting_share: f64,
    /// How late requests left that nothing but the generator held up (open loop).
    pub lag_p50_ms: f64,
    /// 99th percentile of that.
    pub lag_p99_ms: f64,
    /// Longest of that.
    pub lag_max_ms: f64,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let quantile = |q| millis(histogram.value_at_quantile(q));
        Self {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1e6,
            stdev_ms: histogram.stdev() / 1e6,
            p50_ms: quantile(0.5),
            p75_ms: quantile(0.75),
            p90_ms: quantile(0.9),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            p99_9_ms: quantile(0.999),
            p99_99_ms: quantile(0.9999),
            max_ms: millis(histogram.max()),
        }
    }

    fn rows(&self) -> [(&'static str, f64); 9] {
        [
            ("50 %", self.p50_ms),
            ("75 %", self.p75_ms),
            ("90 %", self.p90_ms),
            ("95 %", self.p95_ms),
            ("99 %", self.p99_ms),
            ("99.9 %", self.p99_9_ms),
            ("99.99 %", self.p99_99_ms),
            ("max", self.max_ms),
            ("mean", self.mean_ms),
        ]
    }
}

impl LoadReport {
    /// Finds what makes the numbers doubtful.
    pub(crate) fn judge(&mut self, options: &Options) {
        let generator = &self.generator;
        let busy = generator.running_share + generator.waiting_share;
        if busy > BUSY_SHARE_MAX {
            self.warnings.push(format!(
                "The generator was the bottleneck: its thread was running for {:.0} % of the time \
                 and waiting for a free processor for {:.0} %. The server may be faster than this.",
                generator.running_share * 100.0,
                generator.waiting_share * 100.0
            ));
        }
        if self.reads_stale > 0 {
            self.warnings.push(format!(
                "{} reads found an older value than was acknowledged before they were sent: the \
                 server is not linearizable.",
                self.reads_stale
            ));
        }
        if generator.lag_p99_ms > LAG_P99_MS_MAX {
            self.warnings.push(format!(
                "The generator did not keep its own schedule: 1 % of the requests left more than \
                 {:.1} ms late though no window was full. Latencies include that delay.",
                generator.lag_p99_ms
            ));
        }
        if self.dropped > 0 {
            self.warnings.push(format!(
                "The server cannot keep the rate: {} scheduled requests were dropped because {} \
                 were already waiting. Latencies are those of the others, so they are too good.",
                self.dropped, options.backlog
            ));
        } else if let Some(rate) = options.rate
            && self.answers_per_second < rate * 0.98
            && self.seconds >= 0.5
        {
            self.warnings.push(format!(
                "The rate was not reached: {:.0} answers/s of {rate:.0} asked for.",
                self.answers_per_second
            ));
        }
    }
}

impl Report {
    /// 0 when everything was well, 1 when acknowledged writes are lost or damaged, a read was
    /// stale, or requests failed and `--fail-on-error` asks to say so.
    pub fn exit_code(&self) -> u8 {
        let lost = self.check.as_ref().is_some_and(|check| !check.is_clean());
        let failed =
            self.load.as_ref().is_some_and(|load| load.error_count > 0 || load.dropped > 0);
        let stale = self.load.as_ref().is_some_and(|load| load.reads_stale > 0);
        u8::from(lost || stale || (self.options.fail_on_error && failed))
    }

    /// Writes the files that were asked for.
    pub(crate) fn write_files(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.options.json {
            write_file(path, |out| Ok(serde_json::to_writer_pretty(out, self)?))?;
        }
        if let (Some(path), Some(load)) = (&self.options.hgrm, &self.load) {
            write_file(path, |mut out| Ok(hgrm::write(&load.histogram, &mut out)?))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(load) = &self.load {
            write_load(f, &self.options, load)?;
        }
        if let (Some(recorded), Some(path)) = (&self.recorded, &self.options.verify_acked) {
            writeln!(
                f,
                "\nRecorded {} acknowledged writes and {} of unknown outcome in {}.",
                recorded.acked,
                recorded.unknown,
                path.display()
            )?;
        }
        if let Some(check) = &self.check {
            write!(f, "{check}")?;
        }
        Ok(())
    }
}

fn write_load(f: &mut fmt::Formatter<'_>, options: &Options, load: &LoadReport) -> fmt::Result {
    let mode = match options.rate {
        Some(rate) => format!("open loop at {rate} requests/s"),
        None => format!(
            "closed loop with {} requests in flight",
            options.connections * options.pipeline
        ),
    };
    writeln!(f, "{mode}, measured for {:.1} s", load.seconds)?;
    writeln!(f, "\nlatency (ms)   from intended      from actual send")?;
    for ((name, latency), (_, service)) in load.latency.rows().iter().zip(load.service.rows()) {
        writeln!(f, "{name:>12} {latency:15.3} {service:21.3}")?;
    }
    writeln!(f)?;
    let mut row = |name: &str, value: String| writeln!(f, "{name:<22}{value:>16}");
    row("answers/s", format!("{:.0}", load.answers_per_second))?;
    row("reads", load.reads.to_string())?;
    if load.reads_missing > 0 {
        row("  without a value", load.reads_missing.to_string())?;
    }
    if load.reads_stale > 0 {
        row("  STALE", load.reads_stale.to_string())?;
    }
    row("writes", load.writes.to_string())?;
    row("sent MB/s", format!("{:.1}", load.sent_bytes_per_second / 1e6))?;
    row("received MB/s", format!("{:.1}", load.received_bytes_per_second / 1e6))?;
    row("redirected", load.moved.to_string())?;
    for (code, count) in &load.retried {
        row(&format!("retried after {code}"), count.to_string())?;
    }
    row("dropped", load.dropped.to_string())?;
    row("connections lost", load.connections_lost.to_string())?;
    row("errors", load.error_count.to_string())?;
    for (kind, error) in &load.errors {
        writeln!(f, "  {:>12}  {kind}: {}", error.count, error.example)?;
    }
    let own = &load.generator;
    writeln!(
        f,
        "\ngenerator: {:.2} CPU s ({:.2} us per answer), {:.0} % running, {:.0} % waiting \
         for a CPU",
        own.cpu_seconds,
        own.cpu_micros_per_answer,
        own.running_share * 100.0,
        own.waiting_share * 100.0
    )?;
    if options.rate.is_some() {
        writeln!(
            f,
            "generator's own lag (ms): 50 % {:.3}, 99 % {:.3}, max {:.3}",
            own.lag_p50_ms, own.lag_p99_ms, own.lag_max_ms
        )?;
    }
    for warning in &load.warnings {
        writeln!(f, "\nwarning: {warning}")?;
    }
    Ok(())
}

fn write_file(
    path: &Path,
    content: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = path.display();
    let mut bytes = Vec::new();
    content(&mut bytes)?;
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot create {name}"))?;
    file.write_all(&bytes).with_context(|| format!("cannot write {name}"))
}
