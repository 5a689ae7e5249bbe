//! Columns with types, compressed, in groups of a bounded number of rows.

use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Encoding, LogicalType, Repetition, Type};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{ColumnPath, Type as SchemaType};

use super::{Column, Kind, Value};
use crate::Result;
use crate::output::Sink;

/// Rows of a group, which is in memory as a whole: about 80 MiB of accesses.
const GROUP_ROWS: usize = 1 << 18;

/// Writes rows as Parquet.
pub(crate) struct ParquetWriter {
    writer: SerializedFileWriter<Sink>,
    explain: Box<dyn Fn(ParquetError) -> crate::Error>,
    columns: &'static [Column],
    buffers: Vec<Buffer>,
    n_rows: usize,
}

impl ParquetWriter {
    /// `name` is the schema's, `about` the file's own metadata, and `growing` a column whose values only grow.
    pub(crate) fn create(
        sink: Sink,
        name: &str,
        columns: &'static [Column],
        about: Vec<(String, String)>,
        growing: Option<&str>,
    ) -> Result<ParquetWriter> {
        let explain = sink.explain();
        let explain = move |error: ParquetError| explain(into_io(error));
        let schema = Arc::new(schema(name, columns).map_err(&explain)?);
        let properties = Arc::new(properties(about, growing));
        Ok(ParquetWriter {
            writer: SerializedFileWriter::new(sink, schema, properties).map_err(&explain)?,
            explain: Box::new(explain),
            columns,
            buffers: columns.iter().map(|_| Buffer::default()).collect(),
            n_rows: 0,
        })
    }

    /// Adds a row; values beyond the columns are left out.
    pub(crate) fn push<'a>(&mut self, row: impl IntoIterator<Item = Value<'a>>) -> Result<()> {
        for (buffer, value) in self.buffers.iter_mut().zip(row) {
            buffer.push(&value);
        }
        self.n_rows += 1;
        if self.n_rows == GROUP_ROWS {
            self.write_group().map_err(&self.explain)?;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        if self.n_rows > 0 {
            self.write_group().map_err(&self.explain)?;
        }
        self.writer.into_inner().map_err(&self.explain)?.finish()
    }

    /// Writes what the buffers hold as one group of rows, and empties them.
    fn write_group(&mut self) -> std::result::Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for (column, buffer) in self.columns.iter().zip(&mut self.buffers) {
            let Some(mut output) = group.next_column()? else {
                return Err(ParquetError::General("fewer columns than declared".into()));
            };
            let levels = column.is_optional.then_some(buffer.levels.as_slice());
            buffer.write(column.kind, levels, &mut output)?;
            output.close()?;
            buffer.clear();
        }
        group.close()?;
        self.n_rows = 0;
        Ok(())
    }
}

fn schema(name: &str, columns: &[Column]) -> std::result::Result<SchemaType, ParquetError> {
    let fields: std::result::Result<Vec<_>, ParquetError> = columns
        .iter()
        .map(|column| {
            let integer = |bit_width, is_signed| LogicalType::integer(bit_width, is_signed);
            let (physical, logical) = match column.kind {
                Kind::U64 | Kind::Address => (Type::INT64, Some(integer(64, false))),
                Kind::U32 => (Type::INT32, Some(integer(32, false))),
                Kind::I32 => (Type::INT32, Some(integer(32, true))),
                Kind::Text => (Type::BYTE_ARRAY, Some(LogicalType::String)),
                Kind::Bool => (Type::BOOLEAN, None),
            };
            let repetition = if column.is_optional {
                Repetition::OPTIONAL
            } else {
                Repetition::REQUIRED
            };
            let field = SchemaType::primitive_type_builder(column.name, physical)
                .with_repetition(repetition)
                .with_logical_type(logical)
                .with_converted_type(ConvertedType::NONE)
                .build()?;
            Ok(Arc::new(field))
        })
        .collect();
    SchemaType::group_type_builder(name)
        .with_fields(fields?)
        .build()
}

fn properties(about: Vec<(String, String)>, growing: Option<&str>) -> WriterProperties {
    let about = about
        .into_iter()
        .map(|(key, value)| KeyValue::new(key, value));
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("faultline {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(about.collect()));
    if let Some(name) = growing {
        // A dictionary of values that never repeat would be as large as they are.
        let path = ColumnPath::from(name);
        properties = properties
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    properties.build()
}

/// The values of one column of a group. Only one of the lists of values is in use.
#[derive(Default)]
struct Buffer {
    /// 1 for a value, 0 for a missing one.
    levels: Vec<i16>,
    wide: Vec<i64>,
    narrow: Vec<i32>,
    texts: Vec<ByteArray>,
    bools: Vec<bool>,
    last_text: Option<ByteArray>,
}

impl Buffer {
    fn push(&mut self, value: &Value<'_>) {
        self.levels.push(i16::from(*value != Value::Missing));
        match value {
            Value::Missing => {}
            Value::U64(value) => self.wide.push(value.cast_signed()),
            Value::U32(value) => self.narrow.push(value.cast_signed()),
            Value::I32(value) => self.narrow.push(*value),
            Value::Bool(value) => self.bools.push(*value),
            Value::Text(text) => self.push_text(text.as_bytes()),
        }
    }

    /// Neighbours are often equal, and then share their bytes.
    fn push_text(&mut self, text: &[u8]) {
        let shared = match &self.last_text {
            Some(last) if last.data() == text => last.clone(),
            _ => ByteArray::from(text.to_vec()),
        };
        self.last_text = Some(shared.clone());
        self.texts.push(shared);
    }

    fn write(
        &self,
        kind: Kind,
        levels: Option<&[i16]>,
        column: &mut SerializedColumnWriter<'_>,
    ) -> std::result::Result<usize, ParquetError> {
        match kind {
            Kind::U64 | Kind::Address => column
                .typed::<Int64Type>()
                .write_batch(&self.wide, levels, None),
            Kind::U32 | Kind::I32 => {
                column
                    .typed::<Int32Type>()
                    .write_batch(&self.narrow, levels, None)
            }
            Kind::Text => column
                .typed::<ByteArrayType>()
                .write_batch(&self.texts, levels, None),
            Kind::Bool => column
                .typed::<BoolType>()
                .write_batch(&self.bools, levels, None),
        }
    }

    fn clear(&mut self) {
        self.levels.clear();
        self.wide.clear();
        self.narrow.clear();
        self.texts.clear();
        self.bools.clear();
    }
}

/// The system's answer inside, if that is what failed.
fn into_io(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
