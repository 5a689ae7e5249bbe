//! GGUF files: a reader and a writer in plain Rust.
//!
//! [`Gguf::open`] reads the header, the metadata and the tensor table of one file and checks all of
//! it against the file's size, so that whoever holds a [`Gguf`] may use offsets and sizes without
//! further checks. Tensor data is never read. [`ModelFiles::open`] does the same for a model as a
//! user names it: one file, or the first part of a split set.
//!
//! [`GgufWriter`] writes a file piece by piece: declare keys and tensors in a [`Layout`], then
//! write the tensors' data. The file gets its name only when it is complete.
//!
//! Nothing here links llama.cpp. The table of tensor types in [`GgmlType`] covers every type id of
//! the pinned ggml.
//!
//! # Example
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use gguf::{Gguf, GgmlType, GgufWriter, Layout};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("small.gguf");
//!
//! let mut layout = Layout::new();
//! layout.kv("general.architecture", "llama")?;
//! layout.tensor("token_embd.weight", GgmlType::F32, &[4, 2])?;
//! let mut writer = GgufWriter::create(&path, layout)?;
//! writer.write_tensor(&mut [0u8; 32].as_slice())?;
//! writer.finish()?;
//!
//! let file = Gguf::open(&path)?;
//! assert_eq!(file.architecture(), Some("llama"));
//! assert_eq!(file.tensors()[0].size_bytes, 32);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cursor;
mod error;
mod model;
mod pending;
mod reader;
mod split;
mod types;
mod value;
mod writer;

pub use error::Error;
pub use model::{Footprint, ModelFiles, is_expert_name};
pub use reader::{Gguf, MAX_ARRAY_DEPTH, MAX_METADATA_BYTES, MAX_NAME_BYTES, TensorInfo};
pub use split::{part_path, split_model};
pub use types::GgmlType;
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, Layout};
