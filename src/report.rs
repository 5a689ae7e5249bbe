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
            (Some(question), &ask.log, &ask.common)
        }
        (None, Some(log)) => (None, log, &args.common),
        (None, None) => unreachable!("clap asks for a log where there is no question"),
    };
    let report = read(log, question, common)?;
    answered(report.write(form(common.output), question, &Target::Stdout))
}

fn read(
    log: &Path,
    question: Option<Question>,
    common: &CommonArgs,
) -> anyhow::Result<report::Report> {
    let log = Log::open(log, None)?;
    let layout = report::layout(&log, common.model.as_deref());
    let mut options = Options {
        questions: question.into_iter().collect(),
        layout: None,
    };
    match layout {
        Ok(layout) => options.layout = Some(layout),
        // The report says that it is not known; that a model was named and cannot be used is worth a line.
        Err(reason) if common.model.is_some() => note(format_args!("{reason}")),
        Err(_) => {}
    }
    Ok(report::read(&log, &options)?)
}

/// The form of an answer, as the library names it.
pub(crate) fn form(format: Format) -> report::Format {
    match format {
        Format::Md => report::Format::Markdown,
        Format::Csv => report::Format::Csv,
        Format::Json => report::Format::Json,
    }
}
