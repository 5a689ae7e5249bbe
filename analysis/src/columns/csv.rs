//! One line for each row, after one with the names.

use std::io::{self, Write};

use csv::ByteRecord;

use super::{Column, Kind, Value};
use crate::Result;
use crate::output::{Sink, csv_error};

/// Writes rows as CSV.
pub(crate) struct CsvWriter {
    csv: csv::Writer<Sink>,
    explain: Box<dyn Fn(io::Error) -> crate::Error>,
    columns: &'static [Column],
    fields: ByteRecord,
    number: Vec<u8>,
}

impl CsvWriter {
    pub(crate) fn create(sink: Sink, columns: &'static [Column]) -> Result<CsvWriter> {
        let explain = Box::new(sink.explain());
        // The sink is buffered already; what the csv crate adds is handed over at the end.
        let mut csv = csv::Writer::from_writer(sink);
        csv.write_record(columns.iter().map(|column| column.name))
            .map_err(|error| explain(csv_error(error)))?;
        Ok(CsvWriter {
            csv,
            explain,
            columns,
            fields: ByteRecord::new(),
            number: Vec::new(),
        })
    }

    /// Adds a row; values beyond the columns are left out.
    pub(crate) fn push<'a>(&mut self, row: impl IntoIterator<Item = Value<'a>>) -> Result<()> {
        self.fields.clear();
        for (column, value) in self.columns.iter().zip(row) {
            push(&mut self.fields, column.kind, &value, &mut self.number).map_err(&self.explain)?;
        }
        self.csv
            .write_byte_record(&self.fields)
            .map_err(|error| (self.explain)(csv_error(error)))
    }

    pub(crate) fn finish(self) -> Result<()> {
        let sink = self.csv.into_inner();
        sink.map_err(|error| (self.explain)(error.into_error()))?
            .finish()
    }
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
