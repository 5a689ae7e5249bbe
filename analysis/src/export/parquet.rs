//! The columns of the CSV with types, compressed, in groups of a bounded number of rows.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, Encoding, LogicalType, Repetition, Type};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::{ColumnPath, Type as SchemaType};

use super::columns::{COLUMNS, Kind, Value, row};
use crate::Result;
use crate::log::{Entry, Log, Weights};
use crate::output::Sink;
use crate::text::hex;

/// Rows of a group, which is in memory as a whole: about 80 MiB.
const GROUP_ROWS: usize = 1 << 18;

pub(super) fn write(log: &Log, sink: Sink) -> Result<()> {
    let explain = sink.explain();
    let explain = |error: ParquetError| explain(into_io(error));
    let weights = Weights::of(log.reader());
    let schema = Arc::new(schema().map_err(explain)?);
    let mut writer =
        SerializedFileWriter::new(sink, schema, Arc::new(properties(log))).map_err(explain)?;
    let mut columns: Vec<Buffer> = COLUMNS.iter().map(|_| Buffer::default()).collect();
    let mut n_rows = 0;
    log.for_each(&weights, |entry| {
        if let Entry::Access(access) = entry {
            for (column, value) in columns.iter_mut().zip(row(&access)) {
                column.push(&value);
            }
            n_rows += 1;
            if n_rows == GROUP_ROWS {
                write_group(&mut writer, &mut columns).map_err(explain)?;
                n_rows = 0;
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if n_rows > 0 {
        write_group(&mut writer, &mut columns).map_err(explain)?;
    }
    writer.into_inner().map_err(explain)?.finish()
}

fn schema() -> std::result::Result<SchemaType, ParquetError> {
    let fields: std::result::Result<Vec<_>, ParquetError> = COLUMNS
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
    SchemaType::group_type_builder("accesses")
        .with_fields(fields?)
        .build()
}

fn properties(log: &Log) -> WriterProperties {
    let header = log.reader().header();
    let mut about = vec![
        (
            "faultline.model_digest".to_owned(),
            hex(&header.model_digest),
        ),
        (
            "faultline.epoch_unix_ns".to_owned(),
            header.epoch_realtime_ns.to_string(),
        ),
        (
            "faultline.lost_records".to_owned(),
            header.n_lost.to_string(),
        ),
    ];
    let files = log.reader().tables().files.iter().enumerate();
    about.extend(files.map(|(index, file)| (format!("faultline.file.{index}"), file.path.clone())));
    let about = about
        .into_iter()
        .map(|(key, value)| KeyValue::new(key, value));
    // Times only grow; a dictionary of them would be as large as they are.
    let timestamp = ColumnPath::from("timestamp");
    WriterProperties::builder()
        .set_created_by(format!("faultline {}", env!("CARGO_PKG_VERSION")))
        .set_compression(Compression::SNAPPY)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_dictionary_enabled(timestamp.clone(), false)
        .set_column_encoding(timestamp, Encoding::DELTA_BINARY_PACKED)
        .set_key_value_metadata(Some(about.collect()))
        .build()
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

/// Writes what the buffers hold as one group of rows, and empties them.
fn write_group(
    writer: &mut SerializedFileWriter<Sink>,
    columns: &mut [Buffer],
) -> std::result::Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    for (column, buffer) in COLUMNS.iter().zip(columns.iter_mut()) {
        let Some(mut output) = group.next_column()? else {
            return Err(ParquetError::General("fewer columns than declared".into()));
        };
        let levels = column.is_optional.then_some(buffer.levels.as_slice());
        buffer.write(column.kind, levels, &mut output)?;
        output.close()?;
        buffer.clear();
    }
    group.close()?;
    Ok(())
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
