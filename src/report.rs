//! `faultline report`: answers from a log.

use std::path::Path;

use analysis::Target;
use analysis::log::Log;
use analysis::report::{self, Options, Question, Report};

use crate::cli::{Format, ReportArgs};
use crate::exit::{Outcome, answered};
use crate::output::note;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<Outcome> {
    let (question, log) = args.question_and_log()?;
    let (log, options) = open(log, question, args.model.as_deref())?;
    let report = if args.html.is_none() && args.figures.is_none() {
        report::read(&log, &options)?
    } else {
        let (report, figures) = report::read_with_figures(&log, &options)?;
        if let Some(path) = &args.html {
            report.write_page(&figures, path)?;
        }
        if let Some(folder) = &args.figures {
            report::write_figures(&figures, folder)?;
        }
        report
    };
    // Numbers have no room for words.
    if args.output != Format::Md {
        for line in missing(&report, question) {
            note(format_args!("{line}"));
        }
    }
    answered(report.write(form(args.output), question, &Target::Stdout))
}

/// What is missing of the log, and with one question what cannot be answered.
fn missing(report: &Report, question: Option<Question>) -> Vec<String> {
    let mut lines = report.about.remarks.clone();
    if question.is_some() {
        let sections = report.sections();
        let cannot = sections.iter().flat_map(|section| &section.cannot);
        lines.extend(cannot.map(|reason| format!("no answer: {reason}")));
        if sections.is_empty() {
            lines.push("no answer: the model has no experts".to_owned());
        }
    }
    lines
}

fn open(
    log: &Path,
    question: Option<Question>,
    model: Option<&Path>,
) -> anyhow::Result<(Log, Options)> {
    let log = Log::open(log, None)?;
    let layout = report::layout(&log, model);
    // The report says that the layout is not known; why a model that was named is of no use is worth a line.
    if let (Err(reason), Some(_)) = (&layout, model) {
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
