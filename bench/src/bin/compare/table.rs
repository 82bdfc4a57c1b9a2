//! Two results side by side.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::number;

/// One load run, as `compare etcd` or `loadgen --json` described it.
pub(crate) struct Run {
    name: String,
    /// Rate, percentiles and counts in the order of [`ROWS`].
    values: Vec<f64>,
}

/// What is shown: its title, digits after the point, and where it stands in the JSON.
const ROWS: &[(&str, usize, &str)] = &[
    ("writes/s", 0, "/load/answers_per_second"),
    ("P50 ms", 2, "/load/latency/p50_ms"),
    ("P99 ms", 2, "/load/latency/p99_ms"),
    ("P99.9 ms", 2, "/load/latency/p99_9_ms"),
    ("max ms", 2, "/load/latency/max_ms"),
    ("failed", 0, "/load/error_count"),
    ("dropped", 0, "/load/dropped"),
];

impl Run {
    /// Reads a result. `server_cpu_share` is the CPU time that all servers took per second.
    pub(crate) fn read(name: &str, file: &str, server_cpu_share: &str) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let json = serde_json::from_str(&text).with_context(|| format!("{file} is not JSON"))?;
        Self::from_json(name, &json, number(server_cpu_share)?).with_context(|| file.to_owned())
    }

    fn from_json(name: &str, json: &Value, server_cpu_share: f64) -> Result<Self> {
        let value = |(_, _, place): &(&str, usize, &str)| {
            json.pointer(place).and_then(Value::as_f64).with_context(|| format!("no {place}"))
        };
        let mut values = ROWS.iter().map(value).collect::<Result<Vec<_>>>()?;
        ensure!(values[0] > 0.0, "{name} answered nothing");
        values.push(server_cpu_share * 1e6 / values[0]);
        Ok(Self { name: name.to_owned(), values })
    }
}

/// A table of both runs and, for rates and times, how many times better the second one is.
pub(crate) fn compare(one: &Run, two: &Run) -> String {
    let mut text = format!("{:<22} {:>14} {:>14} {:>9}\n", "", one.name, two.name, "ratio");
    let titles = ROWS.iter().map(|&(title, digits, _)| (title, digits));
    let titles = titles.chain([("servers' CPU us/write", 1)]);
    for ((title, digits), (a, b)) in titles.zip(one.values.iter().zip(&two.values)) {
        let ratio = match title {
            "failed" | "dropped" => String::new(),
            "writes/s" => format!("{:.1}", b / a),
            _ => format!("{:.1}", a / b),
        };
        writeln!(text, "{title:<22} {a:>14.digits$} {b:>14.digits$} {ratio:>9}")
            .expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, rate: f64, p50: f64) -> Run {
        let latency = json!({"p50_ms": p50, "p99_ms": 4.0, "p99_9_ms": 5.0, "max_ms": 6.0});
        let load = json!({
            "answers_per_second": rate, "latency": latency, "error_count": 0, "dropped": 0
        });
        Run::from_json(name, &json!({ "load": load }), 1.0).unwrap()
    }

    /// A ratio above 1 always means that the second one is better.
    #[test]
    fn ratios_say_how_much_better_the_second_one_is() {
        let text = compare(&run("a", 1000.0, 8.0), &run("b", 20_000.0, 2.0));
        let row = |title: &str| {
            let line = text.lines().find(|line| line.starts_with(title)).unwrap();
            line[title.len()..].split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(row("writes/s"), ["1000", "20000", "20.0"]);
        assert_eq!(row("P50 ms"), ["8.00", "2.00", "4.0"]);
        assert_eq!(row("failed"), ["0", "0"]);
        assert_eq!(row("servers' CPU us/write"), ["1000.0", "50.0", "20.0"]);
    }

    #[test]
    fn a_run_without_answers_is_an_error() {
        assert!(Run::from_json("a", &json!({}), 1.0).is_err());
    }
}
