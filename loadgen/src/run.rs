//! One run from options to report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use crate::check;
use crate::driver::{Driver, OwnTime};
use crate::history::History;
use crate::host::Host;
use crate::ledger::Ledger;
use crate::meter::{Meter, millis};
use crate::options::Options;
use crate::progress::Progress;
use crate::report::{Generator, Latency, LoadReport, Report};

/// Makes the load, or the check, that the options ask for, and writes the files they name.
///
/// Returns soon after `stop` is set, with what was measured until then.
///
/// # Errors
/// [`UsageError`](crate::UsageError) for options outside their limits,
/// [`Unreachable`](crate::Unreachable) when nobody answers, else the operating system's reasons.
/// Failed requests are no error here: they are counted in the report.
pub fn run(options: Options, stop: Arc<AtomicBool>) -> anyhow::Result<Report> {
    options.validate()?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        started_unix_ms: since_epoch.as_millis() as u64,
        host: Host::here(),
        options,
        load: None,
        recorded: None,
        check: None,
    };
    let mut progress = Progress::new(&report.options);
    if let Some(path) = &report.options.check_acked {
        let bar = progress.bar("checking", 0);
        let checked = check::run(path, &report.options, &stop, &bar);
        bar.finish_and_clear();
        report.check = Some(checked?);
    } else {
        // Later runs begin with higher numbers, so values tell which of two is older.
        let first_sequence = since_epoch.as_nanos() as u64;
        load(&mut report, &stop, &mut progress, first_sequence)?;
    }
    report.write_files()?;
    Ok(report)
}

fn load(
    report: &mut Report,
    stop: &AtomicBool,
    progress: &mut Progress,
    first_sequence: u64,
) -> anyhow::Result<()> {
    let options = &report.options;
    let ledger = match &options.verify_acked {
        Some(path) => {
            let created = Ledger::create(path, options, first_sequence);
            Some(created.with_context(|| format!("cannot create {}", path.display()))?)
        }
        None => None,
    };
    let history = options.history.as_deref().map(|path| History::create(path, options));
    let history = history.transpose()?;
    let mut driver = Driver::connect(options, stop, ledger, history, first_sequence)?;
    if options.preload && !stop.load(Ordering::Relaxed) {
        let bar = progress.bar("writing", options.keys);
        let preloaded = driver.preload(&bar);
        bar.finish_and_clear();
        preloaded?;
    }
    let own = driver.load(progress)?;
    let recorded = match driver.ledger.take() {
        Some(ledger) => Some(ledger.finish().context("cannot record acknowledged writes")?),
        None => None,
    };
    if let Some(history) = driver.history.take() {
        history.finish()?;
    }
    let warnings = std::mem::take(&mut driver.warnings);
    let mut found = summary(&driver.meter, own, warnings);
    found.judge(options);
    report.recorded = recorded;
    report.load = Some(found);
    Ok(())
}

fn summary(meter: &Meter, own: OwnTime, warnings: Vec<String>) -> LoadReport {
    let seconds = (meter.window.end - meter.window.start) as f64 / 1e9;
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let share = |nanos: u64| per_second(nanos) / 1e9;
    let answers = meter.answers_in_window.max(1) as f64;
    let lag = |q| millis(meter.lag.value_at_quantile(q));
    LoadReport {
        seconds,
        reads: meter.reads,
        reads_missing: meter.missing,
        reads_stale: meter.stale,
        writes: meter.writes,
        answers_per_second: per_second(meter.answers_in_window),
        sent_bytes_per_second: per_second(meter.sent_bytes),
        received_bytes_per_second: per_second(meter.received_bytes),
        latency: Latency::of(&meter.latency),
        service: Latency::of(&meter.service),
        errors: meter.errors.clone(),
        error_count: meter.error_count(),
        moved: meter.moved,
        retried: meter.retried.clone(),
        dropped: meter.dropped,
        connections_lost: meter.connections_lost,
        connects_failed: meter.connects_failed,
        generator: Generator {
            cpu_seconds: own.spent.running_ns as f64 / 1e9,
            cpu_micros_per_answer: own.spent.running_ns as f64 / 1e3 / answers,
            running_share: share(own.spent.running_ns),
            waiting_share: share(own.spent.waiting_ns),
            lag_p50_ms: lag(0.5),
            lag_p99_ms: lag(0.99),
            lag_max_ms: millis(meter.lag.max()),
        },
        warnings,
        series: meter.series.clone(),
        histogram: meter.latency.clone(),
    }
}
