//! Models with random weights in the shapes of real ones.
//!
//! No package ships a trained mixture-of-experts model, so benchmarks and tests make their own:
//! files that llama.cpp loads like any other, with a real model's tensors, types and sizes. The
//! weights are random but well scaled, so that hidden states stay finite through all layers and
//! generated text varies with its input; it has no meaning. The tokenizer has one token for each
//! byte, so any text works. End-of-text tokens are practically never generated.
//!
//! A file depends on its [`Shape`] and seed alone: not on the machine, nor on the number of threads
//! that wrote it.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter;
mod arch;
mod fill;
mod generate;
pub mod local;
mod plan;
mod rng;
mod routing;
mod shape;
mod tokenizer;
mod topics;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

pub use adapter::{ADAPTER_RANK, generate_adapter};
pub use shape::{ExpertType, Shape};

/// Why a model was not generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no shape of this name.
    #[error("unknown model shape \"{name}\" (known: {known})")]
    UnknownShape {
        /// The name that was given.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A model has no tensor of this name.
    #[error("the model has no tensor {name}")]
    NoTensor {
        /// The name that was given.
        name: String,
    },
    /// Rows of this tensor type cannot be made.
    #[error("cannot generate tensors of type {ggml_type}")]
    Type {
        /// The type's name.
        ggml_type: String,
    },
    /// The folder of the file cannot be made.
    #[error("{}: cannot create the folder: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file cannot be written, for example because the disk is full.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
}

/// The seed of the demo model.
pub const DEMO_SEED: u64 = 20_240_817;

/// Generates a model as `path`. `progress` is called on this thread with the bytes written so far
/// and in total.
///
/// Memory use is a few MiB for each processor. The file appears under its name only when it is
/// complete.
///
/// # Errors
/// [`Error::Gguf`] if the file cannot be written; a full disk is noticed before the first byte of
/// data.
pub fn generate(
    shape: &Shape,
    path: &Path,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Error> {
    let threads = thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(16);
    generate::write(shape.plan(), path, seed, threads, progress)
}

/// Writes a model without weights as `path`: metadata and tensor table, and holes that read as zeros where the tensors are. It
/// takes no more disk than its header, and as much memory as a full one.
///
/// # Errors
/// [`Error::Gguf`] if the file cannot be written.
pub fn generate_hollow(shape: &Shape, path: &Path) -> Result<(), Error> {
    Ok(shape.plan().layout.clone().write_hollow(path)?)
}

/// The demo model in `cache_dir`: generated if it is not there yet, or if the file there is not the
/// whole of it.
///
/// # Errors
/// As [`generate`]; [`Error::Folder`] if `cache_dir` cannot be made.
pub fn ensure_demo(cache_dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, Error> {
    let shape = Shape::by_name("demo")?;
    let path = cache_dir.join(shape.demo_file_name());
    let whole = gguf::Gguf::open(&path).is_ok_and(|file| file.file_size() == shape.total_bytes());
    if !whole {
        fs::create_dir_all(cache_dir).map_err(|source| Error::Folder {
            path: cache_dir.to_owned(),
            source,
        })?;
        generate(&shape, &path, DEMO_SEED, progress)?;
    }
    Ok(path)
}
