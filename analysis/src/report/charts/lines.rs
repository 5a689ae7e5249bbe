//! Pictures with lines and bars.

use figures::{Axis, Chart, Layer, Panel, Unit};
use tracer::WeightClass;

use super::{Drawn, NS_PER_MS, chart, largest, panel, series};
use crate::report::grid::Grid;
use crate::report::times::OverTime;
use crate::report::{Delivery, Experts, Faults, Parts, Timeline, Waste};
use crate::text::plural;

/// Bars of one picture, at most.
const BARS_MAX: usize = 24;

/// Hits over the size of a cache of experts.
pub(super) fn hits(experts: &Experts) -> Option<Chart> {
    let names = [
        ("belady", "Belady (none is better)", 0),
        ("lfu-decay:0.95", "LFU with decay", 1),
        ("lru", "LRU", 2),
        ("pinned", "the most used, pinned before", 3),
    ];
    let series: Vec<_> = names
        .iter()
        .filter_map(|(policy, label, colour)| {
            let curve = experts
                .curves
                .iter()
                .find(|curve| curve.policy == *policy)?;
            let points = curve.points.iter();
            let points: Vec<_> = points.map(|p| (p.capacity_share, p.hit_share)).collect();
            let line = Layer::Line {
                what: "hits",
                dashed: *policy == "pinned",
                points,
            };
            Some(series(label, *colour, vec![line]))
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let subtitle = format!(
        "Share of the uses that a cache for all layers answers; {}. First uses miss, but for experts that were pinned before.",
        plural(experts.n_kept_tokens, "generated token")
    );
    let panels = vec![panel(
        "",
        Axis::linear(
            "share of the experts that the cache holds",
            Unit::Percent,
            1.0,
        ),
        Axis::linear("hits", Unit::Percent, 1.0),
        series,
        300.0,
    )];
    Some(chart(
        "hits",
        "What a cache of experts would reach",
        &subtitle,
        panels,
    ))
}

/// The time until the first token.
pub(super) fn load(drawn: &Drawn<'_, '_>) -> Option<Chart> {
    let grid = &drawn.times.until_first;
    if grid.n_used() == 0 || drawn.report.about.lost_beginning {
        return None;
    }
    let subtitle = match drawn.times.first_step_ns {
        Some(ns) => format!(
            "Loading ends, and the first step begins, after {}.",
            crate::text::duration(ns)
        ),
        None => String::new(),
    };
    Some(chart(
        "load",
        "Until the first token",
        &subtitle,
        rates(grid),
    ))
}

/// The whole run.
pub(super) fn throughput(drawn: &Drawn<'_, '_>) -> Option<Chart> {
    let grid = &drawn.times.over_time;
    let subtitle = format!(
        "Means of {}; an operation's bytes count where it begins.",
        crate::text::duration(grid.width())
    );
    (grid.n_used() > 1).then(|| chart("throughput", "How fast it reads", &subtitle, rates(grid)))
}

/// Bytes per second, and page faults where there are any.
fn rates(grid: &Grid) -> Vec<Panel> {
    let to_ms = grid.n_used() as f64 * grid.width() as f64 / NS_PER_MS;
    let x = || Axis::linear("time since the log's beginning", Unit::Milliseconds, to_ms);
    let of = |row| rate(grid, row).map(|(_, value)| value);
    let most_bytes = largest(of(OverTime::ConsumedBytes).chain(of(OverTime::DeliveredBytes)));
    let mut lines = vec![step_line(
        "read by operations",
        0,
        rate(grid, OverTime::ConsumedBytes),
    )];
    if of(OverTime::DeliveredBytes).any(|bytes| bytes > 0.0) {
        let delivered = rate(grid, OverTime::DeliveredBytes);
        lines.push(step_line("delivered by the device", 1, delivered));
    }
    let mut panels = vec![panel(
        "Bytes per second",
        x(),
        Axis::linear("bytes per second", Unit::Bytes, most_bytes),
        lines,
        220.0,
    )];
    let most = largest(of(OverTime::MinorFaults).chain(of(OverTime::MajorFaults)));
    if most > 0.0 {
        panels.push(panel(
            "Page faults per second",
            x(),
            Axis::linear("faults per second", Unit::Plain, most),
            vec![
                step_line("minor", 2, rate(grid, OverTime::MinorFaults)),
                step_line("major", 7, rate(grid, OverTime::MajorFaults)),
            ],
            160.0,
        ));
    }
    panels
}

/// Values per second: where each column begins, and its rate.
fn rate(grid: &Grid, row: OverTime) -> impl Iterator<Item = (f64, f64)> {
    let width_ns = grid.width() as f64;
    let values = grid.row(row as usize).iter().enumerate();
    values.map(move |(column, value)| {
        (
            column as f64 * width_ns / NS_PER_MS,
            *value as f64 * 1e9 / width_ns,
        )
    })
}

fn step_line(
    label: &str,
    colour: usize,
    points: impl Iterator<Item = (f64, f64)>,
) -> figures::Series {
    let line = Layer::Line {
        what: "per second",
        dashed: false,
        points: points.collect(),
    };
    series(label, colour, vec![line])
}

/// What was in the page cache.
pub(super) fn memory(faults: &Faults) -> Option<Chart> {
    let snapshots = &faults.residency;
    if snapshots.is_empty() {
        return None;
    }
    let n = snapshots.len() as f64;
    let mut kinds = [
        ("dense", 0, Vec::new()),
        ("experts", 1, Vec::new()),
        ("embedding", 2, Vec::new()),
    ];
    for (index, snapshot) in snapshots.iter().enumerate() {
        let resident = &snapshot.resident_bytes;
        let mut low = 0.0;
        let sizes = [resident.dense, resident.experts, resident.embedding];
        for ((name, _, boxes), size_bytes) in kinds.iter_mut().zip(sizes) {
            let high = low + size_bytes as f64;
            boxes.push(Layer::Column {
                what: name,
                x: index as f64 + 0.5,
                width: 0.8,
                low,
                high,
            });
            low = high;
        }
    }
    let most = largest(snapshots.iter().map(|s| s.resident_bytes.total() as f64));
    let n_load = snapshots.iter().filter(|snapshot| snapshot.is_load).count();
    let subtitle = format!(
        "One bar for each snapshot of --residency; the first {} are of loading.",
        plural(n_load as u64, "bar")
    );
    let series = kinds
        .into_iter()
        .map(|(name, colour, boxes)| series(name, colour, boxes))
        .collect();
    let panels = vec![panel(
        "",
        Axis::linear("snapshot", Unit::Plain, n),
        Axis::linear("in the page cache", Unit::Bytes, most),
        series,
        260.0,
    )];
    Some(chart(
        "memory",
        "What of the model is in memory",
        &subtitle,
        panels,
    ))
}

/// Which share of the weights tokens have read so far.
pub(super) fn coverage(waste: &Waste) -> Option<Chart> {
    let kinds = [
        (WeightClass::Experts, 1),
        (WeightClass::Embedding, 2),
        (WeightClass::Dense, 0),
    ];
    let last = waste.coverage.last().filter(|_| waste.coverage.len() > 1)?;
    let series = kinds
        .iter()
        .filter(|(class, _)| waste.container_bytes.of(*class) > 0)
        .map(|(class, colour)| {
            let all = waste.container_bytes.of(*class) as f64;
            let points = waste.coverage.iter();
            let points =
                points.map(|at| (at.n_tokens as f64, at.touched_bytes.of(*class) as f64 / all));
            let line = Layer::Line {
                what: "read at least once",
                dashed: false,
                points: points.collect(),
            };
            series(class.name(), *colour, vec![line])
        })
        .collect();
    let panels = vec![panel(
        "",
        Axis::logarithmic("generated tokens", Unit::Plain, 1.0, last.n_tokens as f64),
        Axis::linear("share of the bytes", Unit::Percent, 1.0),
        series,
        260.0,
    )];
    Some(chart(
        "coverage",
        "How much of the weights tokens have read",
        "Share of the bytes that at least one generated token has read by then.",
        panels,
    ))
}

/// Whose bytes the device delivered more than once.
pub(super) fn again(delivery: &Delivery) -> Chart {
    let rows: Vec<_> = delivery
        .tensors
        .iter()
        .filter(|row| row.again_bytes > 0)
        .take(BARS_MAX)
        .map(|row| (row.name.clone(), row.again_bytes as f64))
        .collect();
    bars(
        "again",
        "What the device delivers again",
        "Bytes of pages that had been delivered before, by tensor.",
        "delivered again",
        Unit::Bytes,
        rows,
    )
}

/// Time and bytes of each step.
pub(super) fn steps(timeline: &Timeline) -> Option<Chart> {
    let groups: Vec<_> = timeline
        .steps
        .iter()
        .filter(|group| group.n_steps > 0)
        .collect();
    let last = groups.last().filter(|_| groups.len() > 1)?;
    let to = last.first_step as f64 + 1.0;
    let each = |of: fn(&crate::report::StepGroup) -> u64| -> Vec<(f64, f64)> {
        let point = |group: &&crate::report::StepGroup| {
            (
                group.first_step as f64,
                of(group) as f64 / group.n_steps as f64,
            )
        };
        groups.iter().map(point).collect()
    };
    let times: Vec<_> = each(|group| group.time_ns)
        .into_iter()
        .map(|(x, y)| (x, y / NS_PER_MS))
        .collect();
    let bytes = each(|group| group.consumed_bytes);
    let draw = |title: &str, unit, points: Vec<(f64, f64)>, colour| {
        let most = largest(points.iter().map(|(_, y)| *y));
        let line = Layer::Line {
            what: "each",
            dashed: false,
            points,
        };
        let drawn = vec![series(title, colour, vec![line])];
        panel(
            title,
            Axis::linear("step", Unit::Plain, to),
            Axis::linear(title, unit, most),
            drawn,
            180.0,
        )
    };
    let panels = vec![
        draw("Time of a step", Unit::Milliseconds, times, 0),
        draw("Bytes read by a step", Unit::Bytes, bytes, 1),
    ];
    Some(chart(
        "steps",
        "Step by step",
        "A prompt is one step, a generated token is one; where there are many, means of neighbours.",
        panels,
    ))
}

/// Time by component.
pub(super) fn components(parts: &Parts) -> Option<Chart> {
    let rows: Vec<_> = parts
        .parts
        .iter()
        .filter(|part| part.time_ns > 0)
        .take(BARS_MAX)
        .map(|part| (part.name.clone(), part.time_ns as f64 / NS_PER_MS))
        .collect();
    (!rows.is_empty()).then(|| {
        bars(
            "components",
            "Where the time goes",
            "Time of operations that read weights, by component, over the whole log.",
            "time",
            Unit::Milliseconds,
            rows,
        )
    })
}

fn bars(
    id: &str,
    title: &str,
    subtitle: &str,
    what: &'static str,
    unit: Unit,
    rows: Vec<(String, f64)>,
) -> Chart {
    let most = largest(rows.iter().map(|(_, value)| *value));
    let height = rows.len() as f64 * 20.0 + 10.0;
    let bars = rows
        .iter()
        .enumerate()
        .map(|(index, (_, value))| Layer::Bar {
            what,
            y: index as f64,
            to: *value,
        });
    let drawn = vec![series(what, 0, bars.collect())];
    let names = rows.into_iter().map(|(name, _)| name).collect();
    let panels = vec![panel(
        "",
        Axis::linear(what, unit, most),
        Axis::names("", names),
        drawn,
        height,
    )];
    chart(id, title, subtitle, panels)
}
