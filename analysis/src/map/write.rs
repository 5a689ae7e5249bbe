//! A map as text, CSV, Parquet and JSON.

use std::io::{self, Write};

use serde::Serialize;
use tracer::{Extent, Tensor};

use super::{Component, ModelMap, slice_kind};
use crate::columns::{Column, CsvWriter, Kind, ParquetWriter, Value, always, maybe};
use crate::output::Sink;
use crate::text::{Table, hex, size};
use crate::{Result, Target};

/// How a map is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns and totals, for people.
    Text,
    /// One line for each tensor.
    Csv,
    /// The same columns, with types, compressed.
    Parquet,
    /// One object with the model, its files, tensors and totals.
    Json,
}

/// Columns of CSV and Parquet, and the keys of a tensor in JSON. The last one is there if the file system was asked.
const COLUMNS: [Column; 12] = [
    always("tensor_name", Kind::Text),
    always("offset_bytes", Kind::U64),
    always("size_bytes", Kind::U64),
    always("type", Kind::Text),
    maybe("layer", Kind::I32),
    always("component", Kind::Text),
    always("file", Kind::U32),
    always("shape", Kind::Text),
    always("n_slices", Kind::U32),
    always("slice_stride_bytes", Kind::U64),
    always("kind", Kind::Text),
    always("n_extents", Kind::U64),
];

#[derive(Serialize)]
struct Json<'a> {
    architecture: Option<&'a str>,
    model_digest: String,
    files: Vec<JsonFile<'a>>,
    dense_bytes: u64,
    sparse_bytes: u64,
    other_bytes: u64,
    components: Vec<Component>,
    tensors: Vec<JsonTensor<'a>>,
}

#[derive(Serialize)]
struct JsonFile<'a> {
    path: &'a str,
    size_bytes: u64,
}

#[derive(Serialize)]
struct JsonTensor<'a> {
    tensor_name: &'a str,
    offset_bytes: u64,
    size_bytes: u64,
    r#type: &'a str,
    layer: Option<i32>,
    component: &'a str,
    file: u32,
    shape: &'a [u64],
    n_slices: u32,
    slice_stride_bytes: u64,
    kind: &'static str,
    slice_kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_extents: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<JsonExtent>>,
}

#[derive(Serialize)]
struct JsonExtent {
    file_offset_bytes: u64,
    /// `null` where the file system cannot say.
    device_offset_bytes: Option<u64>,
    size_bytes: u64,
    flags: u32,
}

impl From<Extent> for JsonExtent {
    fn from(extent: Extent) -> JsonExtent {
        JsonExtent {
            file_offset_bytes: extent.file_offset_bytes,
            device_offset_bytes: extent
                .flags
                .has_place()
                .then_some(extent.device_offset_bytes),
            size_bytes: extent.size_bytes,
            flags: extent.flags.0,
        }
    }
}

fn layer(tensor: &Tensor) -> Option<i32> {
    (tensor.layer >= 0).then_some(tensor.layer)
}

impl ModelMap {
    /// Writes the map to standard output or a file.
    ///
    /// # Errors
    ///
    /// [`Error::Write`](crate::Error::Write) and [`Error::Output`](crate::Error::Output).
    pub fn write(&self, format: Format, target: &Target) -> Result<()> {
        let inputs: Vec<&std::path::Path> =
            self.files.parts.iter().map(|part| part.path()).collect();
        let mut sink = Sink::create(target, &inputs)?;
        let explain = sink.explain();
        match format {
            Format::Text => self.write_text(&mut sink).map_err(explain)?,
            Format::Json => self.write_json(&mut sink).map_err(explain)?,
            Format::Csv => return self.write_csv(sink),
            Format::Parquet => return self.write_parquet(sink),
        }
        sink.finish()
    }

    fn kind(&self, tensor: &Tensor) -> &'static str {
        if self.is_sparse(tensor) {
            "sparse"
        } else {
            "dense"
        }
    }

    fn shape(&self, tensor: &Tensor) -> String {
        let dims: Vec<String> = self.dims(tensor).iter().map(u64::to_string).collect();
        dims.join("x")
    }

    fn columns(&self) -> &'static [Column] {
        if self.has_extents() {
            &COLUMNS
        } else {
            &COLUMNS[..COLUMNS.len() - 1]
        }
    }

    /// The values of a tensor, in the order of [`COLUMNS`].
    fn row<'a>(&self, tensor: &'a Tensor) -> [Value<'a>; COLUMNS.len()] {
        [
            Value::text(Some(&tensor.name)),
            Value::U64(tensor.offset_bytes),
            Value::U64(tensor.size_bytes),
            Value::text(Some(&tensor.type_name)),
            Value::i32(layer(tensor)),
            Value::text(Some(&tensor.component)),
            Value::U32(tensor.file),
            Value::Text(self.shape(tensor).into()),
            Value::U32(tensor.n_slices),
            Value::U64(tensor.slice_stride_bytes),
            Value::text(Some(self.kind(tensor))),
            Value::U64(self.extents(tensor).len() as u64),
        ]
    }

    fn write_csv(&self, sink: Sink) -> Result<()> {
        let mut csv = CsvWriter::create(sink, self.columns())?;
        for tensor in &self.tables.tensors {
            csv.push(self.row(tensor))?;
        }
        csv.finish()
    }

    fn write_parquet(&self, sink: Sink) -> Result<()> {
        let mut about = vec![(
            "faultline.model_digest".to_owned(),
            hex(&self.tables.digest()),
        )];
        if let Some(architecture) = &self.architecture {
            about.push(("faultline.architecture".to_owned(), architecture.clone()));
        }
        let files = self.tables.files.iter().enumerate();
        about.extend(
            files.map(|(index, file)| (format!("faultline.file.{index}"), file.path.clone())),
        );
        let mut parquet = ParquetWriter::create(sink, "tensors", self.columns(), about, None)?;
        for tensor in &self.tables.tensors {
            parquet.push(self.row(tensor))?;
        }
        parquet.finish()
    }

    fn write_json(&self, sink: &mut impl Write) -> io::Result<()> {
        let footprint = self.files.dense_sparse();
        let tensor = |tensor| {
            let extents = self.has_extents().then(|| self.extents(tensor));
            JsonTensor {
                tensor_name: &tensor.name,
                offset_bytes: tensor.offset_bytes,
                size_bytes: tensor.size_bytes,
                r#type: &tensor.type_name,
                layer: layer(tensor),
                component: &tensor.component,
                file: tensor.file,
                shape: self.dims(tensor),
                n_slices: tensor.n_slices,
                slice_stride_bytes: tensor.slice_stride_bytes,
                kind: self.kind(tensor),
                slice_kind: slice_kind(tensor),
                n_extents: extents.as_ref().map(Vec::len),
                extents: extents.map(|list| list.into_iter().map(JsonExtent::from).collect()),
            }
        };
        let json = Json {
            architecture: self.architecture.as_deref(),
            model_digest: hex(&self.tables.digest()),
            files: (self.tables.files.iter())
                .map(|file| JsonFile {
                    path: &file.path,
                    size_bytes: file.size_bytes,
                })
                .collect(),
            dense_bytes: footprint.dense_bytes,
            sparse_bytes: footprint.sparse_bytes,
            other_bytes: footprint.other_bytes,
            components: self.components(),
            tensors: self.tables.tensors.iter().map(tensor).collect(),
        };
        serde_json::to_writer_pretty(&mut *sink, &json)?;
        writeln!(sink)
    }

    fn write_text(&self, sink: &mut impl Write) -> io::Result<()> {
        let split = self.tables.files.len() > 1;
        let mut heading = vec![
            "tensor", "offset", "size", "type", "layer", "shape", "slices", "kind",
        ];
        heading.extend(split.then_some("file"));
        heading.extend(self.has_extents().then_some("extents"));
        let mut table = Table::new(&heading, &[0, 3, 5, 7]);
        for tensor in &self.tables.tensors {
            let mut row = vec![
                tensor.name.clone(),
                tensor.offset_bytes.to_string(),
                size(tensor.size_bytes),
                tensor.type_name.clone(),
                layer(tensor).map_or("-".to_owned(), |layer| layer.to_string()),
                self.shape(tensor),
                tensor.n_slices.to_string(),
                self.kind(tensor).to_owned(),
            ];
            row.extend(split.then(|| tensor.file.to_string()));
            row.extend(
                self.has_extents()
                    .then(|| self.extents(tensor).len().to_string()),
            );
            table.push(row);
        }
        writeln!(sink, "{table}")?;

        let total_bytes: u64 = self.tables.tensors.iter().map(|t| t.size_bytes).sum();
        let mut totals = Table::new(&["component", "tensors", "size", "share", "kind"], &[0, 4]);
        for component in self.components() {
            totals.push(vec![
                component.component,
                component.n_tensors.to_string(),
                size(component.size_bytes),
                percent(component.size_bytes, total_bytes),
                if component.sparse_bytes > 0 {
                    "sparse"
                } else {
                    "dense"
                }
                .to_owned(),
            ]);
        }
        writeln!(sink, "{totals}")?;

        for (index, file) in self.tables.files.iter().enumerate() {
            let n_extents = self.extents.get(index).map_or(String::new(), |extents| {
                format!(", {} extents on the device", extents.len())
            });
            writeln!(sink, "{}: {}{n_extents}", file.path, size(file.size_bytes))?;
        }
        let footprint = self.files.dense_sparse();
        writeln!(
            sink,
            "{}: {} tensors; dense {} ({}), sparse {} ({}), headers and padding {}",
            self.architecture.as_deref().unwrap_or("no architecture"),
            self.tables.tensors.len(),
            size(footprint.dense_bytes),
            percent(footprint.dense_bytes, total_bytes),
            size(footprint.sparse_bytes),
            percent(footprint.sparse_bytes, total_bytes),
            size(footprint.other_bytes),
        )
    }
}

fn percent(part: u64, total: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / total.max(1) as f64)
}
