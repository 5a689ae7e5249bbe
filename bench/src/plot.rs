//! `load-rss.svg`: resident memory over time while a model is loaded, up to the first token.
//!
//! One panel for each set of conditions (cold or warm, budget, readahead), one pair of lines for each row in it: file pages
//! solid, anonymous memory dashed. The run with the median load time stands for its row.

use std::fmt::Write as _;

use crate::protocol::Point;
use crate::record::RunRecord;
use crate::results::{Report, RowResult};
use crate::sample::Sample;
use crate::size::{GIB, MIB, format_bytes};
use crate::spec::Row;

const WIDTH: f64 = 1000.0;
const PANEL_HEIGHT: f64 = 320.0;
const TOP: f64 = 64.0;
const LEFT: f64 = 84.0;
/// Room for the legend.
const RIGHT: f64 = 280.0;
/// Of a panel: its title above, its axis below.
const PANEL_TOP: f64 = 28.0;
const PANEL_BOTTOM: f64 = 48.0;

/// Colours that stay apart for colour-blind readers (after Okabe and Ito), for light and for dark surroundings.
const COLOURS: [(&str, &str); 6] = [
    ("#0060a0", "#6db8f2"),
    ("#c04a00", "#ff9a56"),
    ("#00785a", "#3fd2a8"),
    ("#a8478a", "#eb9fd3"),
    ("#7a6200", "#e8cc4a"),
    ("#4d4d4d", "#c4c4c4"),
];

/// The picture, `None` when no run was completed.
pub(crate) fn load_rss(report: &Report) -> Option<String> {
    let panels = panels(report);
    if panels.is_empty() {
        return None;
    }
    let y_max = panels
        .iter()
        .flat_map(|panel| &panel.lines)
        .map(Line::highest_bytes)
        .fold(0, u64::max)
        .max(MIB);
    let height = TOP + panels.len() as f64 * PANEL_HEIGHT + 12.0;
    let mut svg = String::new();
    open(&mut svg, report, height);
    for (index, panel) in panels.iter().enumerate() {
        let top = TOP + index as f64 * PANEL_HEIGHT + PANEL_TOP;
        draw_panel(&mut svg, report, panel, index, top, y_max as f64 * 1.06);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

struct Panel<'a> {
    title: String,
    lines: Vec<Line<'a>>,
}

struct Line<'a> {
    label: String,
    colour: usize,
    run: &'a RunRecord,
}

impl Line<'_> {
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

fn panels(report: &Report) -> Vec<Panel<'_>> {
    let mut panels: Vec<(&Row, Panel<'_>)> = Vec::new();
    let mut kinds: Vec<(String, bool, bool)> = Vec::new();
    for result in &report.rows {
        let row = &result.row;
        let Some(run) = median_run(result) else {
            continue;
        };
        let kind = (row.name(), row.repack, row.advise);
        let colour = kinds
            .iter()
            .position(|known| *known == kind)
            .unwrap_or_else(|| {
                kinds.push(kind);
                kinds.len() - 1
            });
        let mut label = row.name();
        if row.repack {
            label.push_str(", repacked");
        }
        if !row.default_advise() {
            label.push_str(if row.advise {
                ", advise"
            } else {
                ", no advise"
            });
        }
        let line = Line {
            label,
            colour: colour % COLOURS.len(),
            run,
        };
        match panels
            .iter_mut()
            .find(|(first, _)| first.same_conditions(row))
        {
            Some((_, panel)) => panel.lines.push(line),
            None => panels.push((
                row,
                Panel {
                    title: panel_title(row),
                    lines: vec![line],
                },
            )),
        }
    }
    panels.into_iter().map(|(_, panel)| panel).collect()
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

fn open(svg: &mut String, report: &Report, height: f64) {
    let name = report
        .facts()
        .map_or("", |(model, _)| model.description.as_str());
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <title>Resident memory while loading {file}</title>\n\
         <style>\n{style}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"17\" font-weight=\"600\">Resident memory while loading {file}</text>\n\
         <text x=\"{LEFT}\" y=\"46\" class=\"dim\">{name} · solid: file pages, dashed: anonymous memory · ring: loaded, \
         dot: first token · median run of each row</text>\n",
        style = style(),
        file = escape(&report.setup.model.filename),
        name = escape(name),
    );
}

/// Rules with the light colours, and the dark ones for readers who prefer them. Plain colours, not custom properties:
/// not every program that shows SVG knows those.
fn style() -> String {
    let mut style = String::from(
        ".file{fill:none;stroke-width:2.2;stroke-linejoin:round}.anon{fill:none;stroke-width:1.6;stroke-dasharray:5 4}\
         .loaded{stroke-width:2.2}.grid{stroke-width:1}.size{stroke-width:1;stroke-dasharray:2 3}\n",
    );
    style.push_str(&colours(
        "#ffffff",
        "#1a1a1a",
        "#5c5c5c",
        "#dddddd",
        |(light, _)| light,
    ));
    style.push_str("@media (prefers-color-scheme: dark){\n");
    style.push_str(&colours(
        "#14171a",
        "#ececec",
        "#a3a9ae",
        "#343a40",
        |(_, dark)| dark,
    ));
    style.push_str("}\n");
    style
}

fn colours(
    back: &str,
    text: &str,
    dim: &str,
    grid: &str,
    of: impl Fn((&'static str, &'static str)) -> &'static str,
) -> String {
    let mut rules = format!(
        ".back,.loaded{{fill:{back}}}text{{fill:{text}}}.dim{{fill:{dim}}}.size{{stroke:{dim}}}.grid{{stroke:{grid}}}\n"
    );
    for (index, pair) in COLOURS.iter().enumerate() {
        let colour = of(*pair);
        let _ = writeln!(
            rules,
            ".c{index} .file,.c{index} .anon,.c{index} .loaded{{stroke:{colour}}}.c{index} .token{{fill:{colour}}}"
        );
    }
    rules
}

fn draw_panel(
    svg: &mut String,
    report: &Report,
    panel: &Panel<'_>,
    index: usize,
    top: f64,
    y_max: f64,
) {
    let (width, height) = (
        WIDTH - LEFT - RIGHT,
        PANEL_HEIGHT - PANEL_TOP - PANEL_BOTTOM,
    );
    let x_max = panel.lines.iter().map(Line::end_ms).fold(1.0, f64::max) * 1.03;
    let bottom = top + height;
    let x = |ms: f64| LEFT + ms / x_max * width;
    let y = |bytes: f64| bottom - bytes / y_max * height;

    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\">{}</text>",
        top - 10.0,
        escape(&panel.title)
    );
    axes(svg, top, bottom, x_max, y_max, &x, &y);
    for (bytes, name) in [
        (report.setup.model.file_bytes, "file"),
        (report.setup.model.dense_bytes, "dense"),
    ] {
        if bytes as f64 <= y_max {
            let at = y(bytes as f64);
            let _ = writeln!(
                svg,
                "<line class=\"size\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"dim\" font-size=\"11\" x=\"{text:.1}\" y=\"{base:.1}\">{name} {size}</text>",
                right = LEFT + width,
                text = LEFT + width + 6.0,
                base = at + 4.0,
                size = format_bytes(bytes)
            );
        }
    }
    let _ = writeln!(
        svg,
        "<clipPath id=\"p{index}\"><rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/></clipPath>"
    );
    for (place, line) in panel.lines.iter().enumerate() {
        let _ = writeln!(
            svg,
            "<g class=\"c{}\"><g clip-path=\"url(#p{index})\">",
            line.colour
        );
        let tip = format!(
            "{}: loaded after {:.0} ms",
            line.label,
            line.at_ms(Point::Loaded).unwrap_or(0.0)
        );
        let _ = writeln!(svg, "<title>{}</title>", escape(&tip));
        for (class, value) in [
            ("anon", (|s: &Sample| s.anon_bytes) as fn(&Sample) -> u64),
            ("file", |s| s.file_bytes),
        ] {
            let points: Vec<_> = line
                .samples()
                .map(|s| format!("{:.1},{:.1}", x(s.at_ms), y(value(&s) as f64)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline class=\"{class}\" points=\"{}\"/>",
                points.join(" ")
            );
        }
        svg.push_str("</g>\n");
        for (class, point, radius) in [
            ("loaded", Point::Loaded, 5.0),
            ("token", Point::FirstToken, 5.0),
        ] {
            if let Some(at_ms) = line.at_ms(point) {
                let _ = writeln!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"/>",
                    x(at_ms),
                    y(sample_at(&line.run.rss, at_ms).file_bytes as f64)
                );
            }
        }
        legend(
            svg,
            line,
            LEFT + width + 96.0,
            top + 8.0 + place as f64 * 34.0,
        );
        svg.push_str("</g>\n");
    }
}

fn legend(svg: &mut String, line: &Line<'_>, x: f64, y: f64) {
    let time = |point: Point| line.at_ms(point).map_or("-".to_string(), format_ms);
    let _ = writeln!(
        svg,
        "<line class=\"file\" x1=\"{x:.1}\" x2=\"{x2:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text x=\"{text:.1}\" y=\"{base:.1}\">{label}</text>\
         <text class=\"dim\" font-size=\"11\" x=\"{text:.1}\" y=\"{below:.1}\">load {loaded}, token {token}</text>",
        x2 = x + 18.0,
        text = x + 24.0,
        base = y + 4.0,
        below = y + 18.0,
        label = escape(&line.label),
        loaded = time(Point::Loaded),
        token = time(Point::FirstToken),
    );
}

fn axes(
    svg: &mut String,
    top: f64,
    bottom: f64,
    x_max: f64,
    y_max: f64,
    x: &impl Fn(f64) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    let (unit, unit_bytes) = if y_max >= 2.0 * GIB as f64 {
        ("GiB", GIB)
    } else {
        ("MiB", MIB)
    };
    for value in ticks(y_max / unit_bytes as f64, 5) {
        let at = y(value * unit_bytes as f64);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"dim\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{value} {unit}</text>",
            x(x_max),
            LEFT - 8.0,
            at + 4.0
        );
    }
    for ms in ticks(x_max, 6) {
        let at = x(ms);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"dim\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            format_ms(ms)
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"dim\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\">time since process start</text>",
        x(x_max),
        bottom + 34.0
    );
}

fn format_ms(ms: f64) -> String {
    if ms >= 1000.0 {
        format!("{} s", (ms / 10.0).round() / 100.0)
    } else {
        format!("{} ms", ms.round())
    }
}

/// Round values from 0 to `max`, about `count` of them.
fn ticks(max: f64, count: usize) -> Vec<f64> {
    let rough = max / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    // Multiplied, not added up: 3 * 0.1 is printed as 0.3 after rounding.
    (0..)
        .map(|i| (f64::from(i) * step * 1e6).round() / 1e6)
        .take_while(|tick| *tick <= max)
        .collect()
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{report, run};
    use crate::spec::CacheState;

    /// A minimal check of XML: tags nest, attributes are quoted, text has no bare `<` or `&`.
    fn assert_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(at) = rest.find('<') {
            assert_text(&rest[..at]);
            let end = at + rest[at..].find('>').expect("an open tag");
            let tag = &rest[at + 1..end];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "in {svg}");
            } else if !tag.ends_with('/') {
                open.push(tag.split([' ', '\n']).next().unwrap());
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    fn assert_text(text: &str) {
        assert!(!text.contains('>'), "{text}");
        for (at, _) in text.match_indices('&') {
            assert!(
                ["&amp;", "&lt;", "&gt;", "&quot;"]
                    .iter()
                    .any(|known| text[at..].starts_with(known)),
                "{text}"
            );
        }
    }

    #[test]
    fn well_formed_with_a_line_for_each_row() {
        let svg = load_rss(&report()).unwrap();
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<polyline class=\"file\"").count(), 2);
        assert_eq!(svg.matches("<circle class=\"loaded\"").count(), 2);
        assert_eq!(svg.matches("<circle class=\"token\"").count(), 2);
        assert!(svg.contains("prefers-color-scheme: dark"));
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
        let panels = panels(&report);
        assert_eq!(panels.len(), 2);
        assert_eq!(panels[0].lines[1].colour, panels[1].lines[0].colour);
        assert_well_formed(&load_rss(&report).unwrap());
    }

    #[test]
    fn nothing_to_draw() {
        let mut report = report();
        for result in &mut report.rows {
            result.runs.clear();
        }
        assert!(load_rss(&report).is_none());
    }

    #[test]
    fn round_ticks() {
        assert_eq!(ticks(10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.35, 5), [0.0, 0.1, 0.2, 0.3]);
        assert_eq!(ticks(1550.0, 6), [0.0, 500.0, 1000.0, 1500.0]);
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
