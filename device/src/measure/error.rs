//! What can go wrong with a measurement.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no curve.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file or folder that cannot be used.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A path that is not what the measurement needs.
    #[error("{path}: {problem}", path = path.display())]
    Path {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what it must be.
        problem: String,
    },
    /// Options that make no sense.
    #[error("{0}")]
    Options(String),
    /// Direct reads that gave other bytes than the file has: no figure of such a device is of use.
    #[error(
        "{path}: a read of {request_bytes} bytes at {offset} by {engine} gave other bytes than the file has", path = path.display()
    )]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How much.
        request_bytes: u64,
        /// How it was read.
        engine: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl MeasureError {
    pub(super) fn io(path: &Path, action: &'static str, source: io::Error) -> MeasureError {
        MeasureError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    pub(super) fn path(path: &Path, problem: impl Into<String>) -> MeasureError {
        MeasureError::Path {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// A read that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) offset: u64,
    pub(super) source: io::Error,
}

impl Failure {
    pub(super) fn new(offset: u64, source: io::Error) -> Failure {
        Failure { offset, source }
    }

    pub(super) fn short(offset: u64, len: usize, expected: usize) -> Failure {
        let text = format!("{len} bytes came of {expected}; did the file shrink?");
        Failure::new(offset, io::Error::new(io::ErrorKind::UnexpectedEof, text))
    }

    pub(super) fn of(self, path: &Path) -> MeasureError {
        MeasureError::Io {
            path: path.to_owned(),
            action: "read",
            source: io::Error::new(
                self.source.kind(),
                format!("at offset {}: {}", self.offset, self.source),
            ),
        }
    }
}
