//! `faultline export`: a log as tables or as a trace.

use analysis::Target;
use analysis::export::{Format, export};
use analysis::log::Log;

use crate::cli::{ExportArgs, ExportFormat, LogArgs};
use crate::exit::{Outcome, answered};
use crate::output::note;

pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<Outcome> {
    let log = open(&args.log)?;
    let format = match args.to {
        ExportFormat::Csv => Format::Csv,
        ExportFormat::Parquet => Format::Parquet,
        ExportFormat::Chrome => Format::Chrome,
    };
    answered(export(&log, format, &Target::from_path(&args.output)))
}

/// Opens a log and says what is missing of it.
pub(crate) fn open(args: &LogArgs) -> anyhow::Result<Log> {
    let log = Log::open(&args.log, args.model.as_deref())?;
    if let Some(missing) = log.missing() {
        note(format_args!("{missing}"));
    }
    Ok(log)
}
