//! Options of `faultline report` and `faultline diff`.

use std::path::PathBuf;

use analysis::report::Question;
use clap::{Args, Subcommand};

use super::Format;

const EXAMPLES: &str = "\
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

/// Says in words what was found; a question as a verb shows its tables, too. What the log cannot answer is said with the reason.
/// docs/report.md explains every answer.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[group(skip)]
pub(crate) struct ReportArgs {
    #[command(subcommand)]
    pub(crate) question: Option<AskArgs>,

    /// The log that `faultline record` wrote.
    #[arg(value_name = "LOG", required = true)]
    pub(crate) log: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) common: CommonArgs,

    /// Also write one web page with all answers, figures and tables; it needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Also write every figure as SVG, and its values as CSV, into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) figures: Option<PathBuf>,
}

/// What all questions have in common.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// The model, if it is not any more where it was recorded: says where its files are on the device.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,

    /// The form of the answer.
    #[arg(short, long, value_name = "md|csv|json", default_value = "md")]
    pub(crate) output: Format,
}

/// One question.
#[derive(Debug, Subcommand)]
pub(crate) enum AskArgs {
    /// Which bytes of the files are never read?
    Waste(AskLogArgs),
    /// Which bytes are read again, by operations and from the disk?
    Reuse(AskLogArgs),
    /// In which order are the files read? Gaps, requests, latency.
    Order(AskLogArgs),
    /// Does every token read the same?
    Determinism(AskLogArgs),
    /// How unevenly are experts used, and what would a cache of them reach?
    Experts(AskLogArgs),
    /// What does each layer read, and how long does it take?
    Layers(AskLogArgs),
    /// What does each component (attn_q, ffn_down_exps, ..) read, and how long does it take?
    Components(AskLogArgs),
    /// How long do tokens take, and what happens when?
    Timeline(AskLogArgs),
    /// What did the kernel do: page faults, reads from the disk, what was in memory.
    Faults(AskLogArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AskLogArgs {
    /// The log that `faultline record` wrote.
    #[arg(value_name = "LOG")]
    pub(crate) log: PathBuf,

    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

impl AskArgs {
    /// The question and what it is asked of.
    pub(crate) fn question(&self) -> (Question, &AskLogArgs) {
        match self {
            AskArgs::Waste(args) => (Question::Waste, args),
            AskArgs::Reuse(args) => (Question::Reuse, args),
            AskArgs::Order(args) => (Question::Order, args),
            AskArgs::Determinism(args) => (Question::Determinism, args),
            AskArgs::Experts(args) => (Question::Experts, args),
            AskArgs::Layers(args) => (Question::Layers, args),
            AskArgs::Components(args) => (Question::Components, args),
            AskArgs::Timeline(args) => (Question::Timeline, args),
            AskArgs::Faults(args) => (Question::Faults, args),
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
