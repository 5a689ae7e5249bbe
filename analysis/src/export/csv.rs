//! One line for each access.

use std::io::{self, Write};
use std::ops::ControlFlow;

use csv::ByteRecord;

use super::columns::{COLUMNS, Kind, Value, row};
use crate::Result;
use crate::log::{Entry, Log, Weights};
use crate::output::{Sink, csv_error};

pub(super) fn write(log: &Log, sink: Sink) -> Result<()> {
    let explain = sink.explain();
    let weights = Weights::of(log.reader());
    // The sink is buffered already; what the csv crate adds is handed over at the end.
    let mut csv = csv::Writer::from_writer(sink);
    csv.write_record(COLUMNS.map(|column| column.name))
        .map_err(|error| explain(csv_error(error)))?;
    let mut fields = ByteRecord::new();
    let mut number = Vec::new();
    log.for_each(&weights, |entry| {
        if let Entry::Access(access) = entry {
            fields.clear();
            for (column, value) in COLUMNS.iter().zip(row(&access)) {
                push(&mut fields, column.kind, &value, &mut number).map_err(&explain)?;
            }
            csv.write_byte_record(&fields)
                .map_err(|error| explain(csv_error(error)))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let sink = csv
        .into_inner()
        .map_err(|error| explain(error.into_error()))?;
    sink.finish()
}

fn push(
    fields: &mut ByteRecord,
    kind: Kind,
    value: &Value<'_>,
    number: &mut Vec<u8>,
) -> io::Result<()> {
    number.clear();
    match value {
        Value::Missing => {}
        Value::Text(text) => {
            fields.push_field(text.as_bytes());
            return Ok(());
        }
        Value::U64(value) if kind == Kind::Address => write!(number, "{value:#x}")?,
        Value::U64(value) => write!(number, "{value}")?,
        Value::U32(value) => write!(number, "{value}")?,
        Value::I32(value) => write!(number, "{value}")?,
        Value::Bool(value) => write!(number, "{value}")?,
    }
    fields.push_field(number);
    Ok(())
}
