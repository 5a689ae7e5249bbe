//! Resident memory over time while a model is loaded, up to the first token.
//!
//! One panel for each set of conditions (cold or warm, budget, readahead), one pair of lines for each row in it: file pages
//! solid, anonymous memory dashed. The run with the median load time stands for its row.

use std::fmt::Write as _;

use figures::{Axis, Chart, Layer, Panel, Series, Shape, Unit};

use super::{Numbers, kind_label, model_words};
use crate::protocol::Point;
use crate::record::RunRecord;
use crate::results::{Report, RowResult};
use crate::sample::Sample;
use crate::size::{MIB, format_bytes};
use crate::spec::Row;

const HEIGHT: f64 = 244.0;

/// The picture, `None` when no run was completed.
pub(crate) fn load_timeline(report: &Report, id: &str) -> Option<Chart> {
    let mut conditions: Vec<(&Row, Vec<Line<'_>>)> = Vec::new();
    let mut kinds = Numbers::default();
    for result in &report.rows {
        let Some(run) = median_run(result) else {
            continue;
        };
        let label = kind_label(&result.row);
        let line = Line {
            colour: kinds.of(label.clone()),
            label,
            run,
        };
        let same = conditions
            .iter_mut()
            .find(|(first, _)| first.same_conditions(&result.row));
        match same {
            Some((_, lines)) => lines.push(line),
            None => conditions.push((&result.row, vec![line])),
        }
    }
    let highest_bytes = conditions
        .iter()
        .flat_map(|(_, lines)| lines)
        .map(Line::highest_bytes)
        .max()?
        .max(MIB);
    Some(Chart {
        id: id.to_string(),
        title: "Resident memory while loading".to_string(),
        subtitle: format!(
            "{} · solid: file pages, dashed: anonymous memory · ring: loaded, dot: first token · median run of each row",
            model_words(report)
        ),
        panels: conditions
            .iter()
            .map(|(row, lines)| panel(report, row, lines, highest_bytes))
            .collect(),
    })
}

fn panel(report: &Report, row: &Row, lines: &[Line<'_>], highest_bytes: u64) -> Panel {
    let model = &report.setup.model;
    let end_ms = lines.iter().map(Line::end_ms).fold(1.0, f64::max);
    let guides = [("file", model.file_bytes), ("dense", model.dense_bytes)];
    Panel {
        title: panel_title(row),
        x: Axis::linear("time since process start", Unit::Milliseconds, end_ms),
        y: Axis::linear("resident", Unit::Bytes, highest_bytes as f64 * 1.03),
        guides: guides
            .into_iter()
            .map(|(name, bytes)| (bytes as f64, format!("{name} {}", format_bytes(bytes))))
            .collect(),
        series: lines.iter().map(Line::series).collect(),
        height: HEIGHT,
        legend: true,
    }
}

struct Line<'a> {
    label: String,
    colour: usize,
    run: &'a RunRecord,
}

impl Line<'_> {
    fn series(&self) -> Series {
        let line = |what, dashed, bytes: fn(&Sample) -> u64| Layer::Line {
            what,
            dashed,
            points: self
                .samples()
                .map(|sample| (sample.at_ms, bytes(&sample) as f64))
                .collect(),
        };
        let mut layers = vec![
            line("anonymous memory", true, |sample| sample.anon_bytes),
            line("file pages", false, |sample| sample.file_bytes),
        ];
        let points = [
            ("loaded", Shape::Ring, Point::Loaded),
            ("first token", Shape::Dot, Point::FirstToken),
        ];
        for (what, shape, point) in points {
            if let Some(at_ms) = self.at_ms(point) {
                let file_bytes = sample_at(&self.run.rss, at_ms).file_bytes;
                layers.push(Layer::Mark {
                    what,
                    shape,
                    at: (at_ms, file_bytes as f64),
                });
            }
        }
        let time = |point| {
            self.at_ms(point)
                .map_or("-".to_string(), |ms| Unit::Milliseconds.format(ms))
        };
        Series {
            label: self.label.clone(),
            note: format!(
                "load {}, token {}",
                time(Point::Loaded),
                time(Point::FirstToken)
            ),
            colour: self.colour,
            shift: 0.0,
            layers,
        }
    }

    fn end_ms(&self) -> f64 {
        let point = self
            .at_ms(Point::FirstToken)
            .or_else(|| self.at_ms(Point::Loaded));
        point
            .or(self.run.rss.last().map(|sample| sample.at_ms))
            .unwrap_or(1.0)
    }

    /// On the clock of the samples: with the time that the worker spent on looking at itself.
    fn at_ms(&self, point: Point) -> Option<f64> {
        let mark = self.run.marks.iter().find(|mark| mark.point == point)?;
        Some(mark.at_ns.saturating_sub(self.run.started_ns) as f64 / 1e6)
    }

    /// Within the time that is drawn. The last one is made up at its end: a plateau that goes on has no sample there.
    fn samples(&self) -> impl Iterator<Item = Sample> {
        let end_ms = self.end_ms() * 1.03;
        let inside = self
            .run
            .rss
            .iter()
            .copied()
            .filter(move |sample| sample.at_ms <= end_ms);
        let goes_on = self.run.rss.last().is_some_and(|last| last.at_ms > end_ms);
        inside.chain(goes_on.then(|| sample_at(&self.run.rss, end_ms)))
    }

    fn highest_bytes(&self) -> u64 {
        self.samples()
            .map(|sample| sample.file_bytes.max(sample.anon_bytes))
            .max()
            .unwrap_or(0)
    }
}

fn panel_title(row: &Row) -> String {
    let mut title = format!("page cache {}", row.cache.as_str());
    if let Some(bytes) = row.budget_bytes {
        let _ = write!(title, ", budget {}", format_bytes(bytes));
    }
    if let Some(bytes) = row.readahead_bytes {
        let _ = write!(title, ", readahead {}", format_bytes(bytes));
    }
    title
}

fn median_run(result: &RowResult) -> Option<&RunRecord> {
    let mut runs: Vec<(f64, &RunRecord)> = result
        .good()
        .filter_map(|run| Some((run.figures.as_ref()?.load_ms?, run)))
        .collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs.get((runs.len().max(1) - 1) / 2).map(|(_, run)| *run)
}

/// The memory at a time, linear between the samples around it.
fn sample_at(samples: &[Sample], at_ms: f64) -> Sample {
    let after = samples.partition_point(|sample| sample.at_ms < at_ms);
    let before = after.checked_sub(1).and_then(|index| samples.get(index));
    match (before, samples.get(after)) {
        (Some(a), Some(b)) => {
            let share = (at_ms - a.at_ms) / (b.at_ms - a.at_ms);
            let between =
                |a: u64, b: u64| (a as f64 + share * (b as f64 - a as f64)).round() as u64;
            Sample {
                at_ms,
                file_bytes: between(a.file_bytes, b.file_bytes),
                anon_bytes: between(a.anon_bytes, b.anon_bytes),
            }
        }
        (Some(nearest), None) | (None, Some(nearest)) => Sample { at_ms, ..*nearest },
        (None, None) => Sample {
            at_ms,
            file_bytes: 0,
            anon_bytes: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{report, run};
    use crate::spec::CacheState;

    #[test]
    fn a_pair_of_lines_for_each_row() {
        let svg = load_timeline(&report(), "x").unwrap().svg();
        assert_eq!(svg.matches("<polyline class=\"line\"").count(), 2);
        assert_eq!(svg.matches("<polyline class=\"dashed\"").count(), 2);
        assert_eq!(svg.matches("<circle class=\"ring\"").count(), 2);
        assert_eq!(svg.matches("<circle class=\"dot\"").count(), 2);
        assert!(svg.contains("demo &quot;a&quot;,b.gguf"));
    }

    #[test]
    fn conditions_get_panels_and_modes_keep_their_colours() {
        let mut report = report();
        let warm = Row {
            cache: CacheState::Warm,
            ..report.rows[1].row.clone()
        };
        let mut result = RowResult::new(warm.clone(), 2);
        result.runs.push(Some(run(2, 0, &warm, 3)));
        report.rows.push(result);
        let panels = load_timeline(&report, "x").unwrap().panels;
        assert_eq!(panels.len(), 2);
        assert_eq!(panels[0].series[1].colour, panels[1].series[0].colour);
    }

    #[test]
    fn nothing_to_draw() {
        let mut report = report();
        for result in &mut report.rows {
            result.runs.clear();
        }
        assert!(load_timeline(&report, "x").is_none());
    }

    #[test]
    fn marks_lie_on_the_line() {
        let samples: Vec<Sample> = [(0.0, 0, 0), (10.0, 100, 0)].map(Sample::from).to_vec();
        assert_eq!(sample_at(&samples, 5.0).file_bytes, 50);
        assert_eq!(
            sample_at(&samples, 20.0),
            Sample {
                at_ms: 20.0,
                file_bytes: 100,
                anon_bytes: 0
            }
        );
        assert_eq!(sample_at(&[], 1.0).file_bytes, 0);
    }
}
