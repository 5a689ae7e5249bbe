//! The answers as pictures.

mod cells;
mod lines;

use figures::{Axis, Chart, Layer, Panel, Series};

use super::sequence::Sequences;
use super::times::Times;
use super::weights::Model;
use super::{Delivery, Report};

/// What there is to draw.
pub(crate) struct Drawn<'a, 'm> {
    pub(crate) report: &'a Report,
    pub(crate) model: &'m Model,
    pub(crate) times: &'a Times<'m>,
    pub(crate) sequences: &'a Sequences<'m>,
}

impl Drawn<'_, '_> {
    /// Every picture that the log has something for, those that people look at first in front.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let report = self.report;
        let experts = report.experts.as_ref();
        let again = report
            .reuse
            .as_ref()
            .and_then(|reuse| reuse.delivery.as_ref())
            .filter(|delivery: &&Delivery| delivery.again_bytes > 0);
        let charts = [
            cells::heat(self),
            cells::offsets(self),
            experts.and_then(cells::experts),
            experts.and_then(lines::hits),
            lines::load(self),
            lines::throughput(self),
            report.faults.as_ref().and_then(lines::memory),
            report.waste.as_ref().and_then(lines::coverage),
            again.map(lines::again),
            report.timeline.as_ref().and_then(lines::steps),
            report.components.as_ref().and_then(lines::components),
        ];
        charts.into_iter().flatten().collect()
    }
}

/// A chart of these panels.
fn chart(id: &str, title: &str, subtitle: &str, panels: Vec<Panel>) -> Chart {
    Chart {
        id: id.to_owned(),
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        panels,
    }
}

/// A panel without guides.
fn panel(title: &str, x: Axis, y: Axis, series: Vec<Series>, height: f64) -> Panel {
    Panel {
        title: title.to_owned(),
        x,
        y,
        guides: Vec::new(),
        legend: series.len() > 1,
        series,
        height,
    }
}

/// What has one colour.
fn series(label: &str, colour: usize, layers: Vec<Layer>) -> Series {
    Series {
        label: label.to_owned(),
        note: String::new(),
        colour,
        shift: 0.0,
        layers,
    }
}

/// The largest of some numbers, or 0.
fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

const NS_PER_MS: f64 = 1e6;
