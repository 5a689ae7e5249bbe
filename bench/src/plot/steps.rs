//! How even the single tokens were.

use figures::{Axis, Chart, Layer, Panel, Series, Shape, Unit};

use super::{Numbers, conditions, kind_label, model_words};
use crate::results::Report;
use crate::stats::nearest_rank;

/// A strip for each row: from the shortest to the longest token, with the median and the 99th percentile.
pub(super) fn strip(report: &Report, id: &str) -> Option<Chart> {
    let mut names = Vec::new();
    let mut series = Vec::new();
    let mut kinds = Numbers::default();
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for result in &report.rows {
        let steps_ms = result.steps_ms();
        let rank = |share: f64| nearest_rank(&steps_ms, share);
        let (Some(min), Some(median), Some(p99), Some(max)) =
            (rank(0.0), rank(0.5), rank(0.99), rank(1.0))
        else {
            continue;
        };
        let y = names.len() as f64;
        let label = kind_label(&result.row) + &conditions(report, &result.row, true);
        (low, high) = (low.min(min), high.max(max));
        let mark = |what, shape, at| Layer::Mark {
            what,
            shape,
            at: (at, y),
        };
        series.push(Series {
            label: label.clone(),
            note: String::new(),
            colour: kinds.of(kind_label(&result.row)),
            shift: 0.0,
            layers: vec![
                Layer::Horizontal {
                    what: "shortest and longest",
                    y,
                    low: min,
                    high: max,
                },
                mark("99th percentile", Shape::Tick, p99),
                mark("median", Shape::Dot, median),
            ],
        });
        names.push(label);
    }
    if names.is_empty() {
        return None;
    }
    let height = names.len() as f64 * 28.0 + 8.0;
    Some(Chart {
        id: id.to_string(),
        title: "Time of single tokens".to_string(),
        subtitle: format!(
            "{} · from the shortest to the longest, dot: median, stroke: 99th percentile",
            model_words(report)
        ),
        panels: vec![Panel {
            title: String::new(),
            x: Axis::logarithmic(
                "time of a token, logarithmic",
                Unit::Milliseconds,
                low,
                high,
            ),
            y: Axis::names("row", names),
            guides: Vec::new(),
            series,
            height,
            legend: false,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::report;

    #[test]
    fn a_strip_for_each_row_with_tokens() {
        let mut report = report();
        let run = report.rows[1].runs[0].as_mut().unwrap();
        run.outcome.as_mut().unwrap().step_ns = vec![1_000_000, 2_000_000, 9_000_000];
        let chart = strip(&report, "x").unwrap();
        let csv = chart.csv();
        for line in [
            ",selective,shortest and longest,,selective,1,9",
            ",selective,99th percentile,9,selective,,",
            ",selective,median,1,selective,,",
        ] {
            assert!(csv.lines().any(|found| found == line), "{line}: {csv}");
        }
        for result in &mut report.rows {
            result.runs.clear();
        }
        assert!(strip(&report, "x").is_none());
    }
}
