//! What can be wrong with a log, or with writing one.

use std::io;
use std::path::{Path, PathBuf};

/// Why a log cannot be written or read. Messages name the file, the number that is wrong, and what
/// to do where that is not plain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operating system call failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk has no room for the log.
    #[error(
        "{}: no room for a log of {needed_bytes} bytes: {source}; free some space or ask for a smaller log",
        path.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Size that was asked for.
        needed_bytes: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The process may not write files of this size.
    #[error(
        "{}: a log of {needed_bytes} bytes is over this process's limit of {limit_bytes} bytes a file; \
         raise it with `ulimit -f` or ask for a smaller log",
        path.display()
    )]
    FileSizeLimit {
        /// The file.
        path: PathBuf,
        /// Size that was asked for.
        needed_bytes: u64,
        /// The limit (`RLIMIT_FSIZE`).
        limit_bytes: u64,
    },
    /// Header and tables leave no room for a single record, or the size is past what a file can have.
    #[error(
        "{}: a log of {capacity_bytes} bytes is out of range: for this model at least {minimum_bytes} are needed",
        path.display()
    )]
    Capacity {
        /// The file.
        path: PathBuf,
        /// Size that was asked for.
        capacity_bytes: u64,
        /// Smallest size that works.
        minimum_bytes: u64,
    },
    /// A table is over its limit.
    #[error("{}: the table of {table} is {size_bytes} bytes, over the limit of {limit_bytes}", path.display())]
    TableSize {
        /// The file.
        path: PathBuf,
        /// Which table.
        table: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// All room for tensors that are met at run time is used.
    #[error(
        "{}: no room for \"{name}\": {capacity} tensors outside the model's files are already known",
        path.display()
    )]
    TooManyExtras {
        /// The log.
        path: PathBuf,
        /// The tensor that did not fit.
        name: String,
        /// How many fit.
        capacity: u32,
    },
    /// The path names a folder, a pipe or a device.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file does not begin as a log does.
    #[error("{}: not an access log (it begins with {found})", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
        /// Its first bytes, in hexadecimal.
        found: String,
    },
    /// The log was written by a newer or older program with another format.
    #[error(
        "{}: format version {found} is not supported (this program reads {supported}); \
         read it with the version of faultline that wrote it",
        path.display()
    )]
    Version {
        /// The log.
        path: PathBuf,
        /// Its version, `major.minor`.
        found: String,
        /// The version of this program.
        supported: String,
    },
    /// The byte-order mark is not that of a little-endian file.
    #[error(
        "{}: byte-order mark {mark:#010x}, where a little-endian log has 0x01020304; \
         the file is damaged or was converted",
        path.display()
    )]
    ByteOrder {
        /// The log.
        path: PathBuf,
        /// The mark as read.
        mark: u32,
    },
    /// A checksum does not match.
    #[error(
        "{}: the {section} is damaged: checksum {expected:#010x}, but the bytes give {found:#010x}; record again",
        path.display()
    )]
    Checksum {
        /// The log.
        path: PathBuf,
        /// Which section.
        section: &'static str,
        /// What the file states.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// A number contradicts another, or is out of its range.
    #[error("{}: the {section} is damaged: {problem}; record again", path.display())]
    Malformed {
        /// The log.
        path: PathBuf,
        /// Which section.
        section: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The file ends before its records do.
    #[error(
        "{}: cut short: {size_bytes} of {needed_bytes} bytes are there, and {readable} of {expected} records; \
         open it as damaged to read those",
        path.display()
    )]
    Truncated {
        /// The log.
        path: PathBuf,
        /// Size of the file.
        size_bytes: u64,
        /// Size that the header calls for.
        needed_bytes: u64,
        /// Records that can be read.
        readable: u64,
        /// Records that should be there.
        expected: u64,
    },
    /// The log is being written, and the writer was faster than the reader.
    #[error(
        "{}: record {sequence} was overwritten while it was read, the oldest is now {oldest}; \
         read the log when the recorder has ended",
        path.display()
    )]
    Overtaken {
        /// The log.
        path: PathBuf,
        /// Number of the record.
        sequence: u64,
        /// Number of the oldest record that is left.
        oldest: u64,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Io {
            path: path.to_owned(),
            action,
            source: source.into(),
        }
    }
}
