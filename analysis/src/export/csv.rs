//! One line for each access.

use std::ops::ControlFlow;

use super::accesses::{COLUMNS, row};
use crate::Result;
use crate::columns::CsvWriter;
use crate::log::{Entry, Log, Weights};
use crate::output::Sink;

pub(super) fn write(log: &Log, sink: Sink) -> Result<()> {
    let weights = Weights::of(log.reader());
    let mut csv = CsvWriter::create(sink, &COLUMNS)?;
    log.for_each(&weights, |entry| {
        if let Entry::Access(access) = entry {
            csv.push(row(&access))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    csv.finish()
}
