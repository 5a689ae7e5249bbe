//! `faultline report`: answers from a log.

use std::path::Path;

use analysis::Target;
use analysis::log::Log;
use analysis::report::{self, Options, Question};

use crate::cli::{CommonArgs, Format, ReportArgs};
use crate::exit::{Outcome, answered};
use crate::output::note;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<Outcome> {
    let (question, log, common) = match (&args.question, &args.log) {
        (Some(ask), _) => {
            let (question, ask) = ask.question();
            (Some(question), ask.log.as_path(), &ask.common)
        }
        (None, Some(log)) => (None, log.as_path(), &args.common),
        (None, None) => unreachable!("clap asks for a log where there is no question"),
    };
    let (log, options) = open(log, question, common)?;
    if args.html.is_none() && args.figures.is_none() {
        let report = report::read(&log, &options)?;
        return answered(report.write(form(common.output), question, &Target::Stdout));
    }
    let (report, figures) = report::read_with_figures(&log, &options)?;
    if let Some(path) = &args.html {
        report.write_page(&figures, path)?;
    }
    if let Some(folder) = &args.figures {
        report::write_figures(&figures, folder)?;
    }
    answered(report.write(form(common.output), question, &Target::Stdout))
}

fn open(
    log: &Path,
    question: Option<Question>,
    common: &CommonArgs,
) -> anyhow::Result<(Log, Options)> {
    let log = Log::open(log, None)?;
    let layout = report::layout(&log, common.model.as_deref());
    // The report says that the layout is not known; why a model that was named is of no use is worth a line.
    if let (Err(reason), Some(_)) = (&layout, &common.model) {
        note(format_args!("{reason}"));
    }
    let options = Options {
        questions: question.into_iter().collect(),
        layout: layout.ok(),
    };
    Ok((log, options))
}

/// The form of an answer, as the library names it.
pub(crate) fn form(format: Format) -> report::Format {
    match format {
        Format::Md => report::Format::Markdown,
        Format::Csv => report::Format::Csv,
        Format::Json => report::Format::Json,
    }
}
