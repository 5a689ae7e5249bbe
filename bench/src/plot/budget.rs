//! Speed, memory and the share of the bound against the budget.

use figures::{Axis, Chart, Layer, Panel, Series, Shape, Unit};

use super::{Numbers, conditions, kind_label, model_words};
use crate::record::Figures;
use crate::results::Report;
use crate::size::format_bytes;
use crate::stats::Summary;

const HEIGHT: f64 = 240.0;

/// Median tokens per second with intervals: a panel for each test, a line for each way of loading and readahead.
pub(super) fn speed(report: &Report, id: &str) -> Option<Chart> {
    let panels: Vec<Panel> = report
        .tests()
        .into_iter()
        .filter_map(|test| {
            let title = format!("{}, tokens/s", report.test_name(test));
            panel(report, &title, "tokens/s", Unit::Plain, |index| {
                report.rows[index].summary(report.tokens_per_s(test))
            })
        })
        .collect();
    chart(report, id, "Speed against budget", panels)
}

/// The highest memory of the process and of its group, and what was read from the device.
pub(super) fn memory(report: &Report, id: &str) -> Option<Chart> {
    type Figure = fn(&Figures) -> Option<f64>;
    let figures: [(&str, Figure); 3] = [
        (
            "highest memory of the process, file pages and anonymous",
            |f| Some(f.rss_file_peak_bytes? as f64 + f.rss_anon_peak_bytes? as f64),
        ),
        ("highest charge of the memory group", |f| {
            f.cgroup_peak_bytes.map(|n| n as f64)
        }),
        ("read from the device", |f| f.device_bytes.map(|n| n as f64)),
    ];
    let panels = figures
        .into_iter()
        .filter_map(|(title, figure)| {
            let mut panel = panel(report, title, "bytes", Unit::Bytes, |index| {
                report.rows[index].summary(figure)
            })?;
            let file_bytes = report.setup.model.file_bytes;
            panel.guides = vec![(
                file_bytes as f64,
                format!("file {}", format_bytes(file_bytes)),
            )];
            Some(panel)
        })
        .collect();
    chart(report, id, "Memory and device against budget", panels)
}

/// Decoding as a share of what the device and the processor allow at most, for rows that state it.
pub(super) fn share_of_bound(report: &Report, id: &str) -> Option<Chart> {
    let panel = panel(
        report,
        "share of the bound",
        "share",
        Unit::Percent,
        |index| report.share_of_bound(index),
    )?;
    chart(report, id, "Share of the bound", vec![panel])
}

fn chart(report: &Report, id: &str, title: &str, panels: Vec<Panel>) -> Option<Chart> {
    (!panels.is_empty()).then(|| Chart {
        id: id.to_string(),
        title: title.to_string(),
        subtitle: format!(
            "{} · dot: median, with an interval of at least 95 %",
            model_words(report)
        ),
        panels,
    })
}

fn panel(
    report: &Report,
    title: &str,
    y_name: &str,
    unit: Unit,
    summary: impl Fn(usize) -> Option<Summary>,
) -> Option<Panel> {
    let places = Places::of(report);
    let mut lines = Numbers::default();
    let mut series: Vec<Series> = Vec::new();
    let mut points: Vec<Vec<(f64, Summary)>> = Vec::new();
    let mut top = 0.0f64;
    for (index, result) in report.rows.iter().enumerate() {
        let Some(summary) = summary(index) else {
            continue;
        };
        let row = &result.row;
        let label = kind_label(row) + &conditions(report, row, false);
        let line = lines.of(label.clone());
        if line == series.len() {
            series.push(Series {
                label,
                note: String::new(),
                colour: line,
                shift: 0.0,
                layers: Vec::new(),
            });
            points.push(Vec::new());
        }
        top = top.max(summary.median);
        points[line].push((places.x(row.budget_bytes), summary));
    }
    if series.is_empty() {
        return None;
    }
    // An interval of very few runs may be far wider than what is measured: it is cut off at the edge.
    let highest = points
        .iter()
        .flatten()
        .map(|(_, summary)| summary.hi)
        .fold(0.0, f64::max);
    let count = series.len() as f64;
    let step = if places.ticks.len() > 1 { 5.0 } else { 28.0 };
    for (index, (series, mut points)) in series.iter_mut().zip(points).enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.shift = (index as f64 - (count - 1.0) / 2.0) * step;
        series.layers.push(Layer::Line {
            what: "median",
            dashed: false,
            points: points
                .iter()
                .map(|(x, summary)| (*x, summary.median))
                .collect(),
        });
        for (x, summary) in &points {
            if summary.n > 1 {
                series.layers.push(Layer::Vertical {
                    what: "interval",
                    x: *x,
                    low: summary.lo.max(0.0),
                    high: summary.hi,
                });
            }
            series.layers.push(Layer::Mark {
                what: "median",
                shape: Shape::Dot,
                at: (*x, summary.median),
            });
        }
    }
    Some(Panel {
        title: title.to_string(),
        x: Axis::at("budget, page cache included", Unit::Bytes, places.ticks),
        y: Axis::linear(y_name, unit, highest.min(top * 2.0)),
        guides: Vec::new(),
        series,
        height: HEIGHT,
        legend: true,
    })
}

/// Where the budgets are on the axis. Rows without a limit stand to the right of all others.
struct Places {
    unlimited_at: f64,
    ticks: Vec<(f64, String)>,
}

impl Places {
    fn of(report: &Report) -> Places {
        let mut budgets: Vec<u64> = report
            .rows
            .iter()
            .filter_map(|result| result.row.budget_bytes)
            .collect();
        budgets.sort_unstable();
        budgets.dedup();
        let last = budgets.last().copied().unwrap_or(0);
        let gap = budgets
            .first()
            .map_or(1.0, |first| (last - first) as f64 * 0.25)
            .max(last as f64 * 0.1)
            .max(1.0);
        let unlimited_at = last as f64 + gap;
        let mut ticks: Vec<_> = budgets
            .into_iter()
            .map(|bytes| (bytes as f64, format_bytes(bytes)))
            .collect();
        if report
            .rows
            .iter()
            .any(|result| result.row.budget_bytes.is_none())
        {
            ticks.push((unlimited_at, "no limit".into()));
        }
        Places {
            unlimited_at,
            ticks,
        }
    }

    fn x(&self, budget_bytes: Option<u64>) -> f64 {
        budget_bytes.map_or(self.unlimited_at, |bytes| bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::RowResult;
    use crate::results::tests::{report, run};
    use crate::spec::Row;

    /// The two rows of the report in two budgets and without a limit.
    fn in_budgets() -> Report {
        let mut report = report();
        for budget_bytes in [2000, 1000] {
            for index in 0..2 {
                let row = Row {
                    budget_bytes: Some(budget_bytes),
                    ..report.rows[index].row.clone()
                };
                let mut result = RowResult::new(row.clone(), 0);
                result.runs = (0..5)
                    .map(|repetition| Some(run(index, repetition, &row, 10)))
                    .collect();
                report.rows.push(result);
            }
        }
        report
    }

    #[test]
    fn a_line_for_each_way_of_loading_through_its_budgets() {
        let chart = speed(&in_budgets(), "x").unwrap();
        assert_eq!(chart.panels.len(), 2);
        let series = &chart.panels[1].series;
        assert_eq!(series.len(), 2);
        assert_eq!(series[1].label, "selective");
        // Budgets of 1000 and 2000 bytes, and without a limit a quarter of their distance behind them.
        let Layer::Line { points, .. } = &series[1].layers[0] else {
            panic!("{:?}", series[1].layers);
        };
        assert_eq!(
            points,
            &[(1000.0, 1000.0), (2000.0, 1000.0), (2250.0, 1000.0)]
        );
        let intervals = series[1]
            .layers
            .iter()
            .filter(|layer| matches!(layer, Layer::Vertical { .. }));
        assert_eq!(intervals.count(), 3);
        assert_ne!(series[0].colour, series[1].colour);
    }

    #[test]
    fn memory_has_a_panel_for_each_figure_that_was_measured() {
        // No group: no peak of it.
        assert_eq!(memory(&in_budgets(), "x").unwrap().panels.len(), 2);
        let mut empty = report();
        for result in &mut empty.rows {
            result.runs.clear();
        }
        assert!(memory(&empty, "x").is_none() && speed(&empty, "x").is_none());
    }

    #[test]
    fn the_bound_is_drawn_where_rows_state_it() {
        let mut report = in_budgets();
        assert!(share_of_bound(&report, "x").is_none());
        for run in report.rows[3].runs.iter_mut().flatten() {
            run.bound_ts = Some(4000.0);
        }
        let chart = share_of_bound(&report, "x").unwrap();
        assert_eq!(chart.panels[0].series.len(), 1);
        assert!(
            chart.csv().contains("selective,median,2000,0.25"),
            "{}",
            chart.csv()
        );
    }
}
