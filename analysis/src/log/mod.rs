//! A log as rows: each access with the names, the place and the token that its record only numbers.

mod dump;
mod info;
mod rows;
mod tokens;
mod weights;

use std::fs::File;
use std::path::{Path, PathBuf};

use tracer::{Error as LogError, LogReader, OnFull, State};

use crate::map::ModelMap;
use crate::text::hex;
use crate::{Error, Result};

pub use dump::Dump;
pub(crate) use dump::{op_name, phase};
pub use glob::Pattern;
pub use info::{Info, InfoFormat};
pub use rows::{Access, Entry};
pub use tokens::Token;
pub(crate) use tokens::Tracker;
pub use weights::{Bytes, FilePlace, Weight, Weights};

/// A log that can be read, perhaps not in full.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    reader: LogReader<File>,
}

impl Log {
    /// Opens a log, also one that was cut short, and checks that it belongs to `model` if one is
    /// named.
    ///
    /// # Errors
    ///
    /// [`Error::Log`] if it cannot be read at all, [`Error::Gguf`] if the model cannot, and
    /// [`Error::OtherModel`].
    pub fn open(path: &Path, model: Option<&Path>) -> Result<Log> {
        let log = Log {
            path: path.to_owned(),
            reader: LogReader::open_damaged(path)?,
        };
        if let Some(model) = model {
            log.check_model(model)?;
        }
        Ok(log)
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The reader beneath.
    pub fn reader(&self) -> &LogReader<File> {
        &self.reader
    }

    /// Records that are missing: for want of room, or because the file was cut short.
    pub fn n_missing(&self) -> u64 {
        let n_cut = match self.reader.damage() {
            Some(LogError::Truncated {
                readable, expected, ..
            }) => expected - readable,
            _ => 0,
        };
        self.reader.header().n_lost + n_cut
    }

    /// One line that says what is missing, if anything is.
    pub fn missing(&self) -> Option<String> {
        let header = self.reader.header();
        let mut parts = Vec::new();
        if header.n_lost > 0 {
            parts.push(match header.on_full {
                OnFull::Wrap => format!(
                    "the first {} of {} records are missing: the log was full and the oldest gave way \
                     (--log-size makes it larger)",
                    header.n_lost, header.n_written
                ),
                OnFull::Stop => format!(
                    "{} records after the last one are missing: the log was full (--log-size makes it larger)",
                    header.n_lost
                ),
            });
        }
        if let Some(LogError::Truncated {
            readable, expected, ..
        }) = self.reader.damage()
        {
            parts.push(format!(
                "{} of {expected} records are missing: the file was cut short",
                expected - readable
            ));
        }
        if header.state == State::Open {
            parts.push("it was not closed: its writer is at work or died".to_owned());
        }
        (!parts.is_empty()).then(|| format!("{}: {}", self.path.display(), parts.join("; ")))
    }

    /// The map of `model`, if the log was recorded with it.
    pub(crate) fn check_model(&self, model: &Path) -> Result<ModelMap> {
        let map = ModelMap::open(model)?;
        let digest = map.tables().digest();
        if digest == self.reader.header().model_digest {
            return Ok(map);
        }
        let (ours, theirs) = (self.reader.tables(), map.tables());
        let pairs = || ours.tensors.iter().zip(&theirs.tensors);
        let differs = |(a, b): &(&tracer::Tensor, &tracer::Tensor)| {
            let key = |tensor: &tracer::Tensor| {
                (
                    tensor.name.clone(),
                    tensor.file,
                    tensor.offset_bytes,
                    tensor.size_bytes,
                    tensor.ggml_type,
                )
            };
            key(a) != key(b)
        };
        let difference = match pairs().find(differs) {
            Some((a, b)) => format!(
                "has {} ({}, {} bytes at {} of file {}) where the model has {} ({}, {} bytes at {} of file {})",
                a.name,
                a.type_name,
                a.size_bytes,
                a.offset_bytes,
                a.file,
                b.name,
                b.type_name,
                b.size_bytes,
                b.offset_bytes,
                b.file
            ),
            None => format!(
                "has {} tensors where the model has {}",
                ours.tensors.len(),
                theirs.tensors.len()
            ),
        };
        let recorded = match ours.files.first() {
            Some(file) => file.path.clone(),
            None => format!(
                "the model of digest {}",
                hex(&self.reader.header().model_digest)
            ),
        };
        Err(Error::OtherModel {
            log: self.path.clone(),
            model: model.to_owned(),
            recorded,
            difference,
        })
    }
}
