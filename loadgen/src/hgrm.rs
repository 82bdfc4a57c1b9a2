//! The text form of a histogram that HdrHistogram's plotter and its relatives read (`.hgrm`).

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Steps per halving of the distance to 100 %: what wrk2 and memtier use.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

const NANOS_PER_MILLI: f64 = 1e6;

/// Writes a histogram of nanoseconds as a table of milliseconds.
pub(crate) fn write(histogram: &Histogram<u64>, out: &mut dyn Write) -> io::Result<()> {
    let heading = ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"];
    writeln!(out, "{:>12} {:>12} {:>12} {:>12}\n", heading[0], heading[1], heading[2], heading[3])?;
    let mut count = 0;
    if !histogram.is_empty() {
        for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
            count += step.count_since_last_iteration();
            let value = step.value_iterated_to() as f64 / NANOS_PER_MILLI;
            let quantile = step.quantile_iterated_to();
            write!(out, "{value:12.3} {quantile:12.6} {count:12} ")?;
            if quantile < 1.0 {
                writeln!(out, "{:12.2}", 1.0 / (1.0 - quantile))?;
            } else {
                writeln!(out, "{:>12}", "inf")?;
            }
        }
    }
    let sub_buckets = (2 * 10u32.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        histogram.mean() / NANOS_PER_MILLI,
        histogram.stdev() / NANOS_PER_MILLI
    )?;
    writeln!(
        out,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        histogram.max() as f64 / NANOS_PER_MILLI,
        histogram.len()
    )?;
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {sub_buckets:12}]", histogram.buckets())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::latency_histogram;

    fn text(values: impl IntoIterator<Item = u64>) -> String {
        let mut histogram = latency_histogram();
        for value in values {
            histogram.record(value).expect("in range");
        }
        let mut out = Vec::new();
        write(&histogram, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    /// Byte for byte: columns, the line of 100 %, and the three trailing lines.
    #[test]
    fn layout_is_the_known_one() {
        let got = text((1..=7).map(|ms| ms * 1_000_000));
        let want = include_str!("../testdata/seven.hgrm.txt");
        assert_eq!(got, want, "\n{got}");
    }

    /// The counts are cumulative, the values never fall, the last line is everything.
    #[test]
    fn lines_are_monotone() {
        let got = text((1..5000).map(|n| n * n * 37));
        let rows: Vec<Vec<f64>> = got
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|n| n.parse().expect("number")).collect())
            .collect();
        assert!(rows.len() > 40, "{} rows", rows.len());
        for pair in rows.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(a, b)| a <= b), "{pair:?}");
        }
        let last = rows.last().expect("rows");
        assert_eq!((last[1], last[2], last[3]), (1.0, 4999.0, f64::INFINITY));
    }

    #[test]
    fn an_empty_histogram_has_no_rows() {
        assert_eq!(text([]).lines().filter(|line| !line.starts_with('#')).count(), 2);
    }
}
