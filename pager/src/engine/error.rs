//! What can go wrong with a read and with an engine.

use std::io;
use std::path::PathBuf;

/// Why an engine cannot be opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file of the model cannot be opened or asked about.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file is no longer what was opened.
    #[error(
        "{}: the file changed while it was in use ({what}); load the model again",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// A read that cannot be: a file that is not there, a range that is not aligned or begins past the end of the file.
    #[error("read {key} of file {file} at byte {offset_bytes}, {size_bytes} bytes: {reason}")]
    BadRead {
        /// The read's key.
        key: u64,
        /// Index of the file.
        file: u32,
        /// Where it begins.
        offset_bytes: u64,
        /// Its size.
        size_bytes: u32,
        /// Which rule it breaks.
        reason: String,
    },
    /// A preference out of its range.
    #[error("{0}")]
    BadPreference(String),
    /// The kernel refuses the engine as a whole.
    #[error("{what}: {source}")]
    Refused {
        /// What was refused.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The engine stopped working.
    #[error("{call} failed: {source}; no further read is possible, load the model again")]
    Device {
        /// The call that failed.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a read did not bring its bytes.
#[derive(Debug, thiserror::Error)]
#[error("{}: {size_bytes} bytes at byte {offset_bytes} (file {file} of the model): {cause}", path.display())]
pub struct ReadError {
    /// Index of the file.
    pub file: u32,
    /// The file.
    pub path: PathBuf,
    /// Where the read begins.
    pub offset_bytes: u64,
    /// The read's size.
    pub size_bytes: u32,
    /// The cause.
    pub cause: Cause,
}

impl ReadError {
    /// Whether the read only was not needed any more.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.cause, Cause::Cancelled)
    }
}

/// The cause of a [`ReadError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// [`Engine::cancel`](super::Engine::cancel) was called.
    #[error("cancelled")]
    Cancelled,
    /// The file ends before the range does.
    #[error(
        "the file was truncated to {size_now_bytes} bytes, {size_opened_bytes} when it was opened"
    )]
    Truncated {
        /// Its size when it was opened.
        size_opened_bytes: u64,
        /// Its size now.
        size_now_bytes: u64,
    },
    /// The kernel keeps returning fewer bytes than the file has.
    #[error("{got_bytes} bytes arrived in {n_attempts} attempts, though the file has its size")]
    Short {
        /// Bytes that arrived.
        got_bytes: u32,
        /// Attempts without progress.
        n_attempts: u32,
    },
    /// The kernel's error, after the attempts that it is worth.
    #[error("{source} ({n_attempts} attempts)")]
    Os {
        /// The last error.
        source: io::Error,
        /// How often it was tried.
        n_attempts: u32,
    },
}
