//! Options of `faultline report` and `faultline diff`.

use std::path::{Path, PathBuf};

use analysis::report::Question;
use clap::Args;

use super::Format;
use crate::exit::BadInput;

const EXAMPLES: &str = "\
QUESTIONS:
  waste        Which bytes of the files are never read?
  reuse        Which bytes are read again, by operations and from the disk?
  order        In which order are the files read? Gaps, requests, latency.
  determinism  Does every token read the same?
  experts      How unevenly are experts used, and what would a cache of them reach?
  layers       What does each layer read, and how long does it take?
  components   What does each component (attn_q, ffn_down_exps, ..) read, and how long does it take?
  timeline     How long do tokens take, and what happens when?
  faults       What did the kernel do: page faults, reads from the disk, what was in memory.

EXAMPLES:
  What did the run read, and what not?
    faultline report run.ftrace
  The same as a page to share, with figures:
    faultline report run.ftrace --html report.html
  Which tensors are read from the disk again and again? (recorded with --block)
    faultline report reuse run.ftrace
  For programs:
    faultline report waste run.ftrace -o csv

EXIT CODES: 0 done (also when the reader of standard output went away), 1 the output cannot be written, 2 bad input";

/// Says in words what was found; with a question its tables, too. What the log cannot answer is said with the reason.
/// docs/report.md explains every answer.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "faultline report [OPTIONS] [QUESTION] <LOG>")]
#[group(skip)]
pub(crate) struct ReportArgs {
    /// The log that `faultline record` wrote; before it one question, without which all are answered.
    #[arg(value_name = "[QUESTION] LOG", required = true, num_args = 1..=2)]
    pub(crate) question_and_log: Vec<PathBuf>,

    /// The model, if it is not any more where it was recorded: says where its files are on the device.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,

    /// The form of the answer.
    #[arg(short, long, value_name = "md|csv|json", default_value = "md")]
    pub(crate) output: Format,

    /// Also write one web page with the answers, figures and tables; it needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Also write every figure as SVG, and its values as CSV, into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) figures: Option<PathBuf>,
}

impl ReportArgs {
    /// What is asked of which log.
    ///
    /// # Errors
    ///
    /// [`BadInput`] says what would be right.
    pub(crate) fn question_and_log(&self) -> Result<(Option<Question>, &Path), BadInput> {
        let named = |text: &PathBuf| {
            let mut all = Question::ALL.into_iter();
            all.find(|question| text.as_os_str() == question.name())
        };
        match self.question_and_log.as_slice() {
            [log] => match named(log) {
                Some(question) if !log.exists() => Err(BadInput(format!(
                    "{0} of which log? faultline report {0} LOG",
                    question.name()
                ))),
                _ => Ok((None, log)),
            },
            [question, log] => match (named(question), named(log)) {
                (Some(question), _) => Ok((Some(question), log)),
                (None, Some(behind)) => Err(BadInput(format!(
                    "the question comes before the log: faultline report {} {}",
                    behind.name(),
                    question.display()
                ))),
                (None, None) => Err(BadInput(format!(
                    "{}: no question; the questions are {}",
                    question.display(),
                    Question::ALL.map(Question::name).join(", ")
                ))),
            },
            _ => unreachable!("clap takes one or two"),
        }
    }
}

const DIFF_EXAMPLES: &str = "\
EXAMPLES:
  What did another prefetch mode change?
    faultline diff eager.ftrace selective.ftrace
  Against a report that was kept:
    faultline report before.ftrace -o json > before.json
    faultline diff before.json after.ftrace

EXIT CODES: those of `faultline report`";

/// Every number behind the sentences of `faultline report`, for both.
#[derive(Debug, Args)]
#[command(after_help = DIFF_EXAMPLES)]
pub(crate) struct DiffArgs {
    /// A log, or a report written with `-o json`.
    #[arg(value_name = "A")]
    pub(crate) a: PathBuf,

    /// What it is compared with, of the same kinds.
    #[arg(value_name = "B")]
    pub(crate) b: PathBuf,

    /// The form of the answer.
    #[arg(short, long, value_name = "md|csv|json", default_value = "md")]
    pub(crate) output: Format,
}
