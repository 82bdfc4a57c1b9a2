//! Log lines: levels per component, text or JSON, written by a thread of their own.
//!
//! A log sink that blocks never blocks the data path: lines that find the queue full are dropped
//! and counted.

use std::fmt;
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, LogFormat, closest};
use crate::fatal::Fatal;

/// The components whose levels can be set, used as `target` of every log line.
pub(crate) const COMPONENTS: [&str; 6] = ["raft", "engine", "wal", "net", "ring", "node"];

/// Lines that wait for the writer before more of them are dropped.
const QUEUED_LINES_MAX: usize = 16_384;

/// Keeps the writer alive; dropping it writes what is queued.
pub(crate) struct Logging {
    dropped: ErrorCounter,
    _guard: WorkerGuard,
}

impl Logging {
    /// Counts the lines dropped because the sink was too slow.
    pub(crate) fn drop_counter(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// Starts logging to stderr. At most once per process.
pub(crate) fn start(config: &Config) -> Result<Logging, Fatal> {
    let filter = filter(&config.log)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUED_LINES_MAX)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match config.log_format {
        LogFormat::Text => {
            let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(color).try_init()
        }
        LogFormat::Json => builder.event_format(JsonLines { node: config.id.get() }).try_init(),
    };
    started.map_err(|error| Fatal::failed("cannot start logging", error.to_string(), ""))?;
    Ok(Logging { dropped, _guard: guard })
}

/// Levels such as `info,raft=debug`; a component nobody logs as is a mistake.
fn filter(levels: &str) -> Result<EnvFilter, Fatal> {
    let wrong = |cause: String, fix: String| {
        Fatal::usage(format!("log levels '{levels}' are not valid"), cause, fix)
    };
    for directive in levels.split(',') {
        let Some((component, _)) = directive.split_once('=') else { continue };
        let component = component.trim();
        if !COMPONENTS.contains(&component) {
            let fix = closest(component, COMPONENTS.into_iter()).map_or_else(
                || format!("components are {}", COMPONENTS.join(", ")),
                |name| format!("did you mean `{name}`?"),
            );
            return Err(wrong(format!("there is no component '{component}'"), fix));
        }
    }
    EnvFilter::builder().parse(levels).map_err(|error| {
        wrong(error.to_string(), "levels are error, warn, info, debug, trace and off".to_owned())
    })
}

/// One JSON object per line: time, level, component, thread, node, message and fields.
struct JsonLines {
    node: u32,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut object = serde_json::Map::new();
        let meta = event.metadata();
        object.insert("time".to_owned(), time.into());
        object.insert("level".to_owned(), meta.level().as_str().into());
        object.insert("component".to_owned(), meta.target().into());
        if let Some(thread) = std::thread::current().name() {
            object.insert("thread".to_owned(), thread.into());
        }
        object.insert("node".to_owned(), self.node.into());
        event.record(&mut JsonFields(&mut object));
        writeln!(writer, "{}", serde_json::Value::Object(object))
    }
}

struct JsonFields<'a>(&'a mut serde_json::Map<String, serde_json::Value>);

impl JsonFields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for JsonFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(levels: &str, log: impl FnOnce()) -> Vec<serde_json::Value> {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(levels).expect("valid"))
            .with_writer(move || writer.clone())
            .event_format(JsonLines { node: 3 })
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = sink.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Each component has its own level.
    #[test]
    fn levels_apply_per_component() {
        let seen = lines("warn,raft=debug", || {
            tracing::debug!(target: "raft", "a");
            tracing::debug!(target: "wal", "b");
            tracing::warn!(target: "wal", "c");
        });
        let components: Vec<_> = seen.iter().map(|line| line["message"].as_str()).collect();
        assert_eq!(components, [Some("a"), Some("c")]);
    }

    /// A JSON line keeps numbers as numbers and quotes text.
    #[test]
    fn json_lines_keep_their_fields() {
        let seen = lines("info", || {
            tracing::info!(target: "node", core = 1u64, name = "a\"b\n", "started {}", 5);
        });
        let line = &seen[0];
        assert_eq!(line["core"], 1);
        assert_eq!(line["name"], "a\"b\n");
        assert_eq!(line["message"], "started 5");
        assert_eq!(
            (line["component"].as_str(), line["level"].as_str()),
            (Some("node"), Some("INFO"))
        );
        assert_eq!(line["node"], 3);
    }

    /// Mistakes in levels are explained.
    #[test]
    fn wrong_levels_are_refused() {
        assert_eq!(filter("rafft=debug").expect_err("typo").fix, "did you mean `raft`?");
        let error = filter("info,raft=loud").expect_err("no such level");
        assert!(error.fix.contains("levels are"), "{error}");
        filter("off").expect("valid");
    }
}
