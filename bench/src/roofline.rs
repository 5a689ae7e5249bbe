//! `bench roofline`: the speed that no engine exceeds within a budget.

use std::fmt::Write as _;
use std::fs;

use ::device_curve::DeviceCurve;
use analysis::roofline::{
    Bound, Conditions, ExpertSizes, Limit, Roofline, RowInputs, Share, share_of_bound,
};
use analysis::routing::RoutingTrace;
use analysis::simulate::{Window, Workload};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tracer::LogReader;

use crate::cli::RooflineArgs;
use crate::output::{self, Format};
use crate::size::format_bytes;

/// A budget with its bound, and the share that a measured speed has of it.
struct Row {
    bound: Bound,
    measured: Option<f64>,
    share: Option<Share>,
}

/// Computes and prints.
pub(crate) fn run(args: &RooflineArgs) -> Result<()> {
    if !args.measured.is_empty() && args.measured.len() != args.budget.len() {
        bail!(
            "{} measured speeds for {} budgets: --measured has one for each",
            args.measured.len(),
            args.budget.len()
        );
    }
    let curve_name = args.device_curve.display();
    let text = fs::read_to_string(&args.device_curve).with_context(|| curve_name.to_string())?;
    let curve = DeviceCurve::from_json(&text).with_context(|| curve_name.to_string())?;
    let model = gguf::ModelFiles::open(&args.model)?;
    let sizes = ExpertSizes::of(&model).with_context(|| args.model.display().to_string())?;
    let workload = workload(args, &sizes)?;
    let other_bytes = args
        .other_bytes
        .unwrap_or_else(|| model.dense_sparse().dense_bytes);
    let conditions = Conditions {
        other_bytes,
        request_bytes: sizes.slice_bytes_max,
        in_ram_step_ms: args.step_ms,
    };
    let roofline = Roofline::new(&workload, &curve, conditions)?;
    let mut rows = Vec::new();
    for (index, budget) in args.budget.iter().enumerate() {
        let budget_bytes = budget.resolve(model.total_bytes())?;
        let measured = args.measured.get(index).copied();
        let bound = roofline.bound(budget_bytes)?;
        let row = RowInputs {
            budget_bytes,
            tokens_per_s: measured,
        };
        rows.push(Row {
            bound,
            measured,
            share: share_of_bound(&roofline, &row),
        });
    }
    if args.output != Format::Md {
        curve
            .notes
            .iter()
            .for_each(|note| eprintln!("note: {note}"));
    }
    output::print(&match args.output {
        Format::Md => markdown(args, &roofline, &curve, &workload, other_bytes, &rows),
        Format::Csv => csv(&rows),
        Format::Json => {
            let rows: Vec<Value> = rows.iter().map(value).collect();
            format!("{:#}\n", Value::from(rows))
        }
        Format::Jsonl => rows.iter().map(|row| format!("{}\n", value(row))).collect(),
    })
}

fn workload(args: &RooflineArgs, sizes: &ExpertSizes) -> Result<Workload> {
    let window = Window {
        skip: args.skip,
        warmup: args.warmup,
        n_tokens: args.tokens,
    };
    if let Some(path) = &args.routing {
        let trace = RoutingTrace::open(path)?;
        return sizes
            .workload(&trace, window)
            .with_context(|| path.display().to_string());
    }
    let path = args.log.as_ref().context("--routing or --log is missing")?;
    let name = path.display().to_string();
    let log = LogReader::open(path)?;
    Workload::from_log(&log, &name, window).context(name)
}

fn value(row: &Row) -> Value {
    let mut value = json!(row.bound);
    value["measured_tokens_per_s"] = json!(row.measured);
    value["share_of_bound"] = json!(row.share.map(|share| share.share));
    value
}

fn csv(rows: &[Row]) -> String {
    let names = [
        "budget_bytes",
        "slot_bytes",
        "miss_bytes_per_token",
        "hit_percent",
        "device_bytes_per_s",
        "device_ms",
        "in_ram_step_ms",
        "tokens_per_s",
        "tokens_per_s_serial",
        "limit",
        "measured_tokens_per_s",
        "share_of_bound",
    ];
    let mut text = format!("{}\n", names.join(","));
    for row in rows {
        let value = value(row);
        let fields = names.map(|name| match &value[name] {
            Value::Null => String::new(),
            Value::String(word) => word.clone(),
            other => other.to_string(),
        });
        let _ = writeln!(text, "{}", fields.join(","));
    }
    text
}

fn markdown(
    args: &RooflineArgs,
    roofline: &Roofline<'_>,
    curve: &DeviceCurve,
    workload: &Workload,
    other_bytes: u64,
    rows: &[Row],
) -> String {
    let device = roofline.device();
    let mut text = format!(
        "- step in memory: {} ms; device: {:.0} MB/s with requests of {} at depth {}\n\
         - {} tokens counted after {} of warm-up; experts have {}; {} of a budget are not for slots\n",
        args.step_ms,
        device.bytes_per_s / 1e6,
        format_bytes(device.request_bytes),
        device.depth,
        workload.n_tokens() - workload.n_warmup(),
        workload.n_warmup(),
        format_bytes(workload.size_bytes()),
        format_bytes(other_bytes)
    );
    for note in &curve.notes {
        let _ = writeln!(text, "- device: {note}");
    }
    text.push_str(
        "\n| budget | slots | hits | missed / token | device ms | bound t/s | without overlap | limit | measured | share |\n\
         |--:|--:|--:|--:|--:|--:|--:|---|--:|--:|\n",
    );
    let bytes = |size: Option<u64>| size.map_or_else(|| "none".to_owned(), format_bytes);
    for row in rows {
        let bound = &row.bound;
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} % | {} | {:.1} | {:.2} | {:.2} | {} | {} | {} |",
            bytes(bound.budget_bytes),
            bound
                .slot_bytes
                .map_or_else(|| "all".to_owned(), format_bytes),
            bound.hit_percent,
            format_bytes(bound.miss_bytes_per_token.round() as u64),
            bound.device_ms,
            bound.tokens_per_s,
            bound.tokens_per_s_serial,
            match bound.limit {
                Limit::Compute => "compute",
                Limit::Device => "device",
            },
            row.measured
                .map_or_else(String::new, |speed| format!("{speed:.2}")),
            row.share
                .map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share.share)),
        );
    }
    text
}
