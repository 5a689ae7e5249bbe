//! `bench report`: the raw samples of one or more runs as Markdown or as one web page.

mod bounds;
mod page;
mod raw;
mod twins;

use std::fs;

use anyhow::{Context as _, Result};

use crate::cli::{ReportArgs, ReportFormat};
use crate::output::{self, Format, Table};
use crate::results::Report;
use crate::size::format_bytes;

/// A run that was read back.
#[derive(Debug)]
struct Run {
    /// The folder's name, with what stands before `raw` in the file's.
    name: String,
    report: Report,
    /// What the files do not have, because of their age or because a run was stopped.
    remarks: Vec<String>,
}

/// Reads what `args` name and writes it in the format that is asked for.
pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let mut runs = raw::files(&args.files)?
        .iter()
        .map(|path| raw::read(path))
        .collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.bounds {
        bounds::add(path, &mut runs)?;
    }
    let by_name = || {
        let extension = args.output.as_ref()?.extension()?.to_str()?;
        ["html", "htm"]
            .contains(&extension)
            .then_some(ReportFormat::Html)
    };
    let text = match args.format.or_else(by_name).unwrap_or(ReportFormat::Md) {
        ReportFormat::Md => markdown(&runs),
        ReportFormat::Html => page::render(&runs),
    };
    match &args.output {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("{}: cannot be written", path.display()))
        }
        None => output::print(&text),
    }
}

fn markdown(runs: &[Run]) -> String {
    let mut text = String::from("# Bench report\n\n");
    text.push_str(&setups(runs).markdown());
    for line in twins::lines(runs) {
        text.push_str(&format!("\n{line}\n"));
    }
    for run in runs {
        text.push_str(&format!("\n## {}\n\n", run.name));
        text.push_str(&Format::Md.render(&run.report));
        for remark in &run.remarks {
            text.push_str(&format!("{remark}\n"));
        }
    }
    text
}

/// A row for each run: what must be equal where runs are compared.
fn setups(runs: &[Run]) -> Table {
    let mut table = Table::default();
    for name in [
        "run",
        "machine",
        "kernel",
        "storage",
        "readahead",
        "model",
        "repacking",
        "budgets",
        "threads",
        "routing",
        "bench",
        "started",
    ] {
        table.column(name, false);
    }
    for run in runs {
        let setup = &run.report.setup;
        let host = &setup.host;
        table.row(vec![
            run.name.clone(),
            format!(
                "{}, {} cores, {}",
                host.cpu,
                host.cores,
                format_bytes(host.memory_bytes)
            ),
            host.kernel.clone(),
            format!(
                "{}, {}",
                host.file_system,
                host.device.as_deref().unwrap_or("no block device")
            ),
            output::readaheads(&run.report),
            format!(
                "{} ({})",
                setup.model.filename,
                format_bytes(setup.model.file_bytes)
            ),
            output::distinct(&run.report, |row| {
                if row.repack { "on" } else { "off" }.to_string()
            }),
            output::distinct(&run.report, |row| {
                row.budget_bytes.map_or("none".into(), format_bytes)
            }),
            setup.n_threads.to_string(),
            setup
                .routing
                .as_ref()
                .map_or("the model's own".into(), |routing| routing.name.clone()),
            setup.bench_version.to_string(),
            setup.started.clone(),
        ]);
    }
    table
}
