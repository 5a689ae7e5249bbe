//! The curve as text.

use std::fmt::Write as _;

use ::device_curve::{DeviceCurve, Point};
use serde_json::json;

use super::Setup;
use crate::output::Format;
use crate::size::format_bytes;

pub(super) fn render(format: Format, setup: &Setup, curve: &DeviceCurve) -> String {
    match format {
        Format::Md => markdown(setup, curve),
        Format::Csv => csv(curve),
        Format::Json => json(setup, curve),
        Format::Jsonl => lines(curve),
    }
}

/// The curve with the machine beside it: `DeviceCurve::from_json` passes that over.
fn json(setup: &Setup, curve: &DeviceCurve) -> String {
    let mut value = serde_json::to_value(curve).expect("plain values can be written as JSON");
    value["host"] = json!(setup.host);
    value["started"] = json!(setup.started);
    value["seconds_per_point"] = json!(setup.seconds);
    value["repetitions"] = json!(setup.repetitions);
    format!("{value:#}\n")
}

fn rows(curve: &DeviceCurve) -> impl Iterator<Item = (&'static str, &Point)> {
    let in_order = curve.sequential.iter().map(|row| ("in order", &row.point));
    let random = curve.points.iter().map(|point| ("random", point));
    random.chain(in_order)
}

fn lines(curve: &DeviceCurve) -> String {
    let mut text = String::new();
    for (order, point) in rows(curve) {
        let mut value = json!(point);
        value["order"] = json!(order);
        let _ = writeln!(text, "{value}");
    }
    text
}

fn csv(curve: &DeviceCurve) -> String {
    let mut text = String::from(
        "order,request_bytes,depth,bytes_per_s,bytes_per_s_min,bytes_per_s_max,latency_median_ns,latency_p99_ns,n_requests\n",
    );
    for (order, point) in rows(curve) {
        let _ = writeln!(
            text,
            "{order},{},{},{:.0},{:.0},{:.0},{},{},{}",
            point.request_bytes,
            point.depth,
            point.bytes_per_s,
            point.bytes_per_s_min,
            point.bytes_per_s_max,
            point.latency_median_ns,
            point.latency_p99_ns,
            point.n_requests
        );
    }
    text
}

fn markdown(setup: &Setup, curve: &DeviceCurve) -> String {
    let target = &curve.target;
    let mut text = format!(
        "- read: {}, {}, on {} ({}), {}, blocks of {} B\n- by: {}; {} s for each point in {} repetitions\n- machine: {}, {}, {}\n",
        target.file.as_deref().unwrap_or("a temporary file"),
        format_bytes(target.size_bytes),
        target.device.as_deref().unwrap_or("no block device"),
        target.file_system,
        if target.direct {
            "O_DIRECT"
        } else {
            "through the page cache"
        },
        target.block_bytes,
        target.engine,
        setup.seconds,
        setup.repetitions,
        setup.host.cpu,
        setup.host.kernel,
        setup.started
    );
    for note in &curve.notes {
        let _ = writeln!(text, "- note: {note}");
    }
    if let Some(row) = &curve.sequential {
        let once = row.once_bytes_per_s.map_or_else(String::new, |rate| {
            format!("; once through the file before: {}", megabytes(rate))
        });
        let _ = writeln!(
            text,
            "- in order, {} at depth {}, MB/s: {}{once}",
            format_bytes(row.point.request_bytes),
            row.point.depth,
            rate(&row.point)
        );
    }
    let mut depths: Vec<u32> = curve.points.iter().map(|point| point.depth).collect();
    depths.sort_unstable();
    depths.dedup();
    text.push_str("\nRandom reads, MB/s: median [slowest, fastest repetition]\n\n");
    table(&mut text, curve, &depths, rate);
    text.push_str("\nLatency of a request, ms: median / 99th percentile\n\n");
    table(&mut text, curve, &depths, |point| {
        let milliseconds = |ns: u64| format!("{:.2}", ns as f64 / 1e6);
        format!(
            "{} / {}",
            milliseconds(point.latency_median_ns),
            milliseconds(point.latency_p99_ns)
        )
    });
    text
}

fn rate(point: &Point) -> String {
    format!(
        "{} [{}, {}]",
        megabytes(point.bytes_per_s),
        megabytes(point.bytes_per_s_min),
        megabytes(point.bytes_per_s_max)
    )
}

fn megabytes(bytes_per_s: f64) -> String {
    let value = bytes_per_s / 1e6;
    if value < 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn table(text: &mut String, curve: &DeviceCurve, depths: &[u32], cell: impl Fn(&Point) -> String) {
    text.push_str("| request |");
    for depth in depths {
        let _ = write!(text, " depth {depth} |");
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(depths.len()));
    let by_size = curve
        .points
        .chunk_by(|left, right| left.request_bytes == right.request_bytes);
    for points in by_size {
        let _ = write!(text, "| {} |", format_bytes(points[0].request_bytes));
        for depth in depths {
            match points.iter().find(|point| point.depth == *depth) {
                Some(point) => {
                    let _ = write!(text, " {} |", cell(point));
                }
                None => text.push_str(" |"),
            }
        }
        text.push('\n');
    }
}
