//! `faultline simulate`: cache policies on what a model really read.

use std::path::Path;

use analysis::routing::RoutingTrace;
use analysis::simulate::{Report, Sharing, Size, Window, Workload};
use anyhow::Context as _;
use tracer::LogReader;

use crate::cli::{Format, Pool, SimulateArgs};
use crate::exit::{BadInput, Outcome};
use crate::output::Output;

pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<Outcome> {
    let workload = workload(args)?;
    let sharing = match args.pool {
        Pool::Layer => Sharing::PerLayer,
        Pool::Global => Sharing::Global,
    };
    let sizes = sizes(args, &workload)?;
    let report = Report::run(
        args.trace.display().to_string(),
        &workload,
        sharing,
        &sizes,
        &args.policy,
        args.by_layer,
    )
    .with_context(|| args.trace.display().to_string())?;
    let text = match args.output {
        Format::Md => report.to_markdown(),
        Format::Csv => report.to_csv(),
        Format::Json => report.to_json()?,
    };
    let _ = Output::new().write(text.as_bytes())?;
    Ok(Outcome::Done)
}

fn workload(args: &SimulateArgs) -> anyhow::Result<Workload> {
    let window = Window {
        skip: args.skip,
        warmup: args.warmup,
        n_tokens: args.tokens,
    };
    let name = args.trace.display().to_string();
    if is_log(&args.trace) {
        if args.slot_bytes.is_some() {
            return Err(bad_input(format!(
                "{name}: --slot-bytes is for routing traces; an access log has the sizes of its slices"
            )));
        }
        let log = LogReader::open(&args.trace)?;
        return Workload::from_log(&log, &name, window).context(name);
    }
    let trace = RoutingTrace::open(&args.trace)?;
    Workload::from_routing(&trace, window, args.slot_bytes).context(name)
}

/// Everything that does not have the name of a routing trace is taken for a log, whose reader says what is wrong with it.
fn is_log(path: &Path) -> bool {
    !path
        .extension()
        .is_some_and(|extension| extension == "u8" || extension == "json")
}

fn sizes(args: &SimulateArgs, workload: &Workload) -> anyhow::Result<Vec<Size>> {
    if args.budget.is_empty() {
        return Ok(args.slots.clone());
    }
    if args.pool != Pool::Global {
        return Err(bad_input(
            "--budget is the size of a cache that all layers share; add --pool global".to_owned(),
        ));
    }
    if !workload.has_sizes() {
        return Err(bad_input(
            "--budget needs the size of an expert; add --slot-bytes".to_owned(),
        ));
    }
    Ok(args.budget.iter().copied().map(Size::Bytes).collect())
}

fn bad_input(text: String) -> anyhow::Error {
    BadInput(text).into()
}
