//! The values of a chart as CSV.

use std::fmt::Write as _;

use crate::{Chart, Layer, Panel, Series};

pub(crate) fn render(chart: &Chart) -> String {
    let (x, y) = chart.panels.first().map_or(("x", "y"), |panel| {
        (panel.x.name.as_str(), panel.y.name.as_str())
    });
    let mut text = format!("panel,series,what,{},{},low,high\n", quoted(x), quoted(y));
    for panel in &chart.panels {
        for series in &panel.series {
            for layer in &series.layers {
                add(&mut text, panel, series, layer);
            }
        }
    }
    text
}

fn add(text: &mut String, panel: &Panel, series: &Series, layer: &Layer) {
    let y_name = |y: f64| {
        let tick = panel.y.ticks.iter().find(|(at, _)| *at == y);
        match tick {
            Some((_, name)) if panel.y.named => quoted(name),
            _ => y.to_string(),
        }
    };
    let mut line = |what: &str, cells: [String; 4]| {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{},{},{},{}",
            quoted(&panel.title),
            quoted(&series.label),
            quoted(what),
            cells.join(",")
        );
    };
    let none = String::new;
    match layer {
        Layer::Line { what, points, .. } => {
            for (x, y) in points {
                line(what, [x.to_string(), y_name(*y), none(), none()]);
            }
        }
        Layer::Vertical { what, x, low, high } => {
            line(
                what,
                [x.to_string(), none(), low.to_string(), high.to_string()],
            );
        }
        Layer::Horizontal { what, y, low, high } => {
            line(
                what,
                [none(), y_name(*y), low.to_string(), high.to_string()],
            );
        }
        Layer::Bar { what, y, to } => line(what, [to.to_string(), y_name(*y), none(), none()]),
        Layer::Mark { what, at, .. } => {
            line(what, [at.0.to_string(), y_name(at.1), none(), none()])
        }
    }
}

pub(crate) fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
