//! The accesses of a log as tables and as a trace for viewers; `docs/export.md` describes them.

mod accesses;
mod chrome;
mod csv;
mod parquet;

use crate::log::Log;
use crate::output::Sink;
use crate::{Error, Result, Target};

pub use crate::columns::{Column, Kind};
pub use accesses::COLUMNS;

/// What a log is turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line for each access.
    Csv,
    /// The same columns, with types, compressed.
    Parquet,
    /// Trace events for Perfetto and other viewers: one track for each component.
    Chrome,
}

/// Writes all accesses of a log. The log is streamed; a file gets its name only when it is complete.
///
/// # Errors
///
/// [`Error::Log`] from the log, [`Error::NeedsFile`], [`Error::OutputIsInput`], [`Error::Output`] and
/// [`Error::Write`].
pub fn export(log: &Log, format: Format, target: &Target) -> Result<()> {
    if format == Format::Parquet && *target == Target::Stdout {
        return Err(Error::NeedsFile);
    }
    let sink = Sink::create(target, &[log.path()])?;
    match format {
        Format::Csv => csv::write(log, sink),
        Format::Parquet => parquet::write(log, sink),
        Format::Chrome => chrome::write(log, sink),
    }
}
