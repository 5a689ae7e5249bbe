//! Verbs that answer from a model file or a log.

use std::path::PathBuf;

use analysis::log::Pattern;
use clap::{Args, ValueEnum};

const MAP_EXAMPLES: &str = "\
EXAMPLES:
  Which tensors are read by slices, and how large is each kind?
    faultline map model.gguf
  The largest tensors, with where they are on the device:
    faultline map model.gguf -o csv --extents | sort -t, -k3 -nr | head
  For DuckDB, pandas and others:
    faultline map model.gguf -o parquet > map.parquet

EXIT CODES: 0 done, 1 the output cannot be written, 2 bad input";

/// The map goes to standard output. Offsets count from the beginning of the file.
#[derive(Debug, Args)]
#[command(after_help = MAP_EXAMPLES)]
pub(crate) struct MapArgs {
    /// The model: a GGUF file, or any file of a split one.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,

    /// Aligned columns with totals, one line a tensor, the same as Parquet, or one JSON object.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: MapFormat,

    /// Also ask the file system where the tensors are on the device (FIEMAP): their number of extents, and with JSON a list.
    #[arg(long)]
    pub(crate) extents: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MapFormat {
    Text,
    Csv,
    Parquet,
    Json,
}

const EXPORT_EXAMPLES: &str = "\
EXAMPLES:
  For DuckDB, pandas and others:
    faultline export run.ftrace --to parquet -o run.parquet
  Through a pipe:
    faultline export run.ftrace --to csv | head
  A timeline; open it at https://ui.perfetto.dev:
    faultline export run.ftrace --to chrome -o run.json

EXIT CODES: 0 done (also when the reader of standard output went away), 1 the output cannot be written, 2 bad input";

/// One row or event for each access; docs/export.md describes columns and events.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// What the log is turned into.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: ExportFormat,

    /// The file to write; it gets its name when it is complete. `-` is standard output, which Parquet cannot use.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    Csv,
    Parquet,
    Chrome,
}

const DUMP_EXAMPLES: &str = "\
EXAMPLES:
  The beginning of a log:
    faultline dump run.ftrace --limit 100
  Which experts the first generated token used in layer 7:
    faultline dump run.ftrace --step 1 --tensor 'blk.7.*_exps.weight'

EXIT CODES: those of `faultline export`";

/// One line for each record, on standard output.
#[derive(Debug, Args)]
#[command(after_help = DUMP_EXAMPLES)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// Only records of this step: of the Nth decode call, counted from 0.
    #[arg(long, value_name = "N")]
    pub(crate) step: Option<u32>,

    /// Only accesses of tensors with such a name; * and ? stand for any characters, [..] for one of a set.
    #[arg(long, value_name = "GLOB")]
    pub(crate) tensor: Option<Pattern>,

    /// At most this many records.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

const INFO_EXAMPLES: &str = "\
EXAMPLES:
  faultline info run.ftrace
  faultline info run.ftrace -o json --model model.gguf

EXIT CODES: those of `faultline export`";

/// Header, model, counts and state of a log, on standard output.
#[derive(Debug, Args)]
#[command(after_help = INFO_EXAMPLES)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// Lines for people or one JSON object.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: InfoFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InfoFormat {
    Text,
    Json,
}

/// A log to read.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The log that `faultline record` wrote.
    #[arg(value_name = "LOG")]
    pub(crate) log: PathBuf,

    /// Fail if the log was not recorded with this model (any file of a split one).
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
}
