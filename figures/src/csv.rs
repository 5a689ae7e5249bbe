//! The values of a chart as CSV.

use std::fmt::Write as _;

use crate::{Chart, Layer, Panel, Series};

pub(crate) fn render(chart: &Chart) -> String {
    let layers = || {
        chart
            .panels
            .iter()
            .flat_map(|panel| &panel.series)
            .flat_map(|s| &s.layers)
    };
    if layers().any(|layer| matches!(layer, Layer::Cells(_))) {
        return render_cells(chart);
    }
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

/// For each panel a line with the lower ends of the columns, then a line for each row with its name or lower end.
fn render_cells(chart: &Chart) -> String {
    let mut text = String::new();
    for panel in &chart.panels {
        for layer in panel.series.iter().flat_map(|series| &series.layers) {
            let Layer::Cells(cells) = layer else {
                continue;
            };
            let n_rows = cells.values.len() / cells.n_columns.max(1);
            let place = |ends: (f64, f64), index: usize, n: usize| {
                ends.0 + (ends.1 - ends.0) * index as f64 / n as f64
            };
            text.push_str(&quoted(&format!("{}: {}", panel.title, cells.what)));
            for column in 0..cells.n_columns {
                let _ = write!(text, ",{}", place(cells.x, column, cells.n_columns));
            }
            text.push('\n');
            for (row, values) in cells
                .values
                .chunks_exact(cells.n_columns.max(1))
                .enumerate()
            {
                let low = place(cells.y, row, n_rows);
                match panel
                    .y
                    .ticks
                    .iter()
                    .find(|(at, _)| panel.y.named && *at == low + 0.5)
                {
                    Some((_, name)) => text.push_str(&quoted(name)),
                    None => {
                        let _ = write!(text, "{low}");
                    }
                }
                for value in values {
                    let _ = write!(text, ",{value}");
                }
                text.push('\n');
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
        Layer::Vertical { what, x, low, high }
        | Layer::Column {
            what, x, low, high, ..
        } => {
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
        // A chart with these has another form.
        Layer::Cells(_) => {}
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
