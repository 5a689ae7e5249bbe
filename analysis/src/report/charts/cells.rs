//! Pictures with many cells: what is read when, and which experts are used.

use figures::{Axis, Cells, Chart, Layer, Panel, Unit};

use super::{Drawn, NS_PER_MS, chart, largest, panel, series};
use crate::report::Experts;
use crate::report::sequence::OffsetGrid;
use crate::text::count;

/// Names beside a heat map, at most.
const NAMES_MAX: usize = 40;
const HEAT_HEIGHT: f64 = 620.0;

/// Bytes by tensor and step.
pub(super) fn heat(drawn: &Drawn<'_, '_>) -> Option<Chart> {
    let grid = &drawn.times.heat;
    if grid.n_used() == 0 {
        return None;
    }
    let per_row = drawn.times.tensors_per_row;
    let n_rows = grid.n_rows();
    let steps = grid.n_used() as f64 * grid.width() as f64;
    let sizes = drawn.model.weights.chunks(per_row);
    let sizes = sizes.map(|weights| weights.iter().map(|weight| weight.size_bytes).sum::<u64>());
    let share = |(row, size_bytes): (&[u64], u64)| -> Vec<f64> {
        // Five digits: the values are in the page, too.
        let whole = size_bytes.max(1) as f64 * grid.width() as f64;
        let digits = |sum: &u64| (*sum as f64 / whole * 1e5).ceil() / 1e5;
        row.iter().map(digits).collect()
    };
    let cells = Cells {
        what: "share read per step",
        x: (0.0, steps),
        y: (-0.5, n_rows as f64 - 0.5),
        n_columns: grid.n_used(),
        values: grid.rows().zip(sizes).flat_map(share).collect(),
        logarithmic: false,
    };
    let subtitle = format!(
        "Tensors in the order of the file, from top to bottom; {} a column. The stronger the colour, the larger the share that is read.",
        match grid.width() {
            1 => "one step (prompt or token)".to_owned(),
            n => format!("{} steps", count(n)),
        }
    );
    let panels = vec![panel(
        "",
        Axis::linear("step", Unit::Plain, steps / 1.03),
        Axis::places("tensor", n_rows, layer_names(drawn, n_rows)),
        vec![series("share read", 0, vec![Layer::Cells(cells)])],
        HEAT_HEIGHT,
    )];
    Some(chart("heat", "What is read when", &subtitle, panels))
}

/// Where each layer begins, and tensors of no layer, as far as there is room for the words.
fn layer_names(drawn: &Drawn<'_, '_>, n_rows: usize) -> Vec<(f64, String)> {
    let first = |row: usize| &drawn.model.weights[row * drawn.times.tensors_per_row];
    let between = n_rows as f64 / NAMES_MAX as f64;
    let mut names: Vec<(f64, String)> = Vec::new();
    for row in 0..n_rows {
        let weight = first(row);
        let is_new = row == 0 || weight.layer.is_none() || weight.layer != first(row - 1).layer;
        let has_room = names
            .last()
            .is_none_or(|(last, _)| row as f64 - last >= between);
        if is_new && has_room {
            let name = match weight.layer {
                Some(layer) => format!("layer {layer}"),
                None => weight.name.trim_end_matches(".weight").to_owned(),
            };
            names.push((row as f64, name));
        }
    }
    names
}

/// Offsets over time, by operations, faults and requests.
pub(super) fn offsets(drawn: &Drawn<'_, '_>) -> Option<Chart> {
    let sequences = drawn.sequences;
    let grids = [
        ("Operations", "bytes read", Some(&sequences.access_grid)),
        (
            "Page faults",
            "bytes of pages",
            sequences.fault_grid.as_ref(),
        ),
        (
            "Reads from the device",
            "bytes read",
            sequences.block_grid.as_ref(),
        ),
    ];
    let file_bytes = drawn.model.file_bytes() as f64;
    let grids: Vec<(&str, &'static str, &OffsetGrid)> = grids
        .into_iter()
        .filter_map(|(title, what, grid)| Some((title, what, grid?)))
        .filter(|(_, _, offsets)| offsets.grid.n_used() > 0)
        .collect();
    let end = |(_, _, offsets): &(_, _, &OffsetGrid)| end_ms(offsets);
    let to_ms = largest(grids.iter().map(end));
    let panels: Vec<Panel> = grids
        .into_iter()
        .map(|(title, what, offsets)| offset_panel(title, what, offsets, file_bytes, to_ms))
        .collect();
    if panels.is_empty() {
        return None;
    }
    Some(chart(
        "offsets",
        "Where the files are read over time",
        "The stronger the colour, the more bytes of that place were asked for at that time (logarithmic). A slope is a file that is read in its order.",
        panels,
    ))
}

/// The end of the last column.
fn end_ms(offsets: &OffsetGrid) -> f64 {
    offsets.grid.n_used() as f64 * offsets.grid.width() as f64 / NS_PER_MS
}

fn offset_panel(
    title: &str,
    what: &'static str,
    offsets: &OffsetGrid,
    file_bytes: f64,
    to_ms: f64,
) -> Panel {
    let grid = &offsets.grid;
    let cells = Cells {
        what,
        x: (0.0, end_ms(offsets)),
        y: (
            0.0,
            (grid.n_rows() as u64) as f64 * (1u64 << offsets.shift) as f64,
        ),
        n_columns: grid.n_used(),
        values: grid.rows().flatten().map(|sum| *sum as f64).collect(),
        logarithmic: true,
    };
    panel(
        title,
        Axis::linear(
            "time since the log's beginning",
            Unit::Milliseconds,
            to_ms / 1.03,
        ),
        Axis::linear("offset in the files", Unit::Bytes, file_bytes),
        vec![series(what, 0, vec![Layer::Cells(cells)])],
        260.0,
    )
}

/// Uses by layer and expert.
pub(super) fn experts(experts: &Experts) -> Option<Chart> {
    let n_columns = experts.layers.iter().map(|layer| layer.uses.len()).max()?;
    let n_rows = experts.layers.len();
    let mut values = Vec::with_capacity(n_rows * n_columns);
    for layer in &experts.layers {
        let total: u64 = layer.uses.iter().sum();
        let fair = total as f64 / layer.uses.len() as f64;
        values.extend(layer.uses.iter().map(|uses| *uses as f64 / fair.max(1e-9)));
        values.resize(values.len().div_ceil(n_columns) * n_columns, 0.0);
    }
    if values.iter().all(|value| *value == 0.0) {
        return None;
    }
    let every = n_rows.div_ceil(NAMES_MAX).max(1);
    let names = experts.layers.iter().enumerate().step_by(every);
    let names = names.map(|(row, layer)| (row as f64, format!("layer {}", layer.layer)));
    let cells = Cells {
        what: "uses, as a multiple of an equal share",
        x: (0.0, n_columns as f64),
        y: (-0.5, n_rows as f64 - 0.5),
        n_columns,
        values,
        logarithmic: false,
    };
    let panels = vec![panel(
        "",
        Axis::linear("expert", Unit::Plain, n_columns as f64 / 1.03),
        Axis::places("layer", n_rows, names.collect()),
        vec![series("uses", 0, vec![Layer::Cells(cells)])],
        (n_rows as f64 * 14.0).clamp(120.0, 700.0),
    )];
    Some(chart(
        "experts",
        "Which experts are used",
        "The stronger the colour, the more often; blank: never. Each layer's uses are compared with an equal share.",
        panels,
    ))
}
