//! What can be wrong with a file, or with writing one.

use std::io;
use std::path::{Path, PathBuf};

/// Why a GGUF file cannot be used or written.
///
/// Messages name the file and the number that is wrong. Text from the file (keys, tensor names) is
/// escaped and cut before it is shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operating system call on the file failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The path names a folder, a pipe or a device.
    #[error("{}: is {kind}, not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// The file has no bytes at all.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file does not start with the four letters GGUF.
    #[error("{}: not a GGUF file (it starts with \"{found}\", not \"GGUF\")", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first bytes, escaped.
        found: String,
    },
    /// The version is not 2 or 3.
    #[error("{}: GGUF version {version} is not supported (2 and 3 are)", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it states.
        version: u32,
    },
    /// The file was written for a machine of the other byte order.
    #[error(
        "{}: a big-endian GGUF file (version field {version:#010x}); \
         only little-endian files are supported",
        path.display()
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
        /// The version field as read.
        version: u32,
    },
    /// The file ends before something that its header announces.
    #[error(
        "{}: the file is cut short: {what} needs {needed} bytes at offset {offset}, \
         but the file has {file_size}",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        what: String,
        /// Where it starts, in bytes.
        offset: u64,
        /// How many bytes it needs.
        needed: u64,
        /// The file's size in bytes.
        file_size: u64,
    },
    /// A number in the header is beyond what this reader accepts.
    #[error("{}: {what} is {value}, at most {limit} is possible", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The quantity.
        what: String,
        /// Its value in the file.
        value: u64,
        /// The largest value that is accepted.
        limit: u64,
    },
    /// A metadata entry is wrong.
    #[error("{}: metadata key \"{key}\": {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, escaped.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry of the tensor table is wrong.
    #[error("{}: tensor \"{name}\": {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name, escaped.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file of a split set is not the part that it should be.
    #[error("{}: {problem}", path.display())]
    Split {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of a split set is not there.
    #[error("{}: part {part} of {count} of the split model is missing", path.display())]
    MissingPart {
        /// The file that should be there.
        path: PathBuf,
        /// Its number, from 1.
        part: u16,
        /// How many parts the model has.
        count: u16,
    },
    /// The disk cannot hold the file. Nothing is left of it.
    #[error(
        "{}: not enough disk space: {needed_bytes} bytes are needed, {free_bytes} are free",
        path.display()
    )]
    DiskFull {
        /// The file that was to be written.
        path: PathBuf,
        /// The file's size in bytes.
        needed_bytes: u64,
        /// Free bytes on its file system, seen when the error was made.
        free_bytes: u64,
    },
    /// The writer was asked for something that would not make a valid file.
    #[error("cannot lay out a GGUF file: {problem}")]
    Layout {
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// Wraps a system error.
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Error {
        Error::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    /// Wraps a complaint about one metadata key.
    pub(crate) fn key(path: &Path, key: &str, problem: impl Into<String>) -> Error {
        Error::Key {
            path: path.to_owned(),
            key: shown(key),
            problem: problem.into(),
        }
    }

    /// Wraps a complaint about one tensor.
    pub(crate) fn tensor(path: &Path, name: &str, problem: impl Into<String>) -> Error {
        Error::Tensor {
            path: path.to_owned(),
            name: shown(name),
            problem: problem.into(),
        }
    }

    /// Wraps a complaint about one part of a split set.
    pub(crate) fn split(path: &Path, problem: impl Into<String>) -> Error {
        Error::Split {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    /// Wraps a complaint about what the writer was asked for.
    pub(crate) fn layout(problem: impl Into<String>) -> Error {
        Error::Layout {
            problem: problem.into(),
        }
    }
}

/// Text from a file, safe to print: control characters escaped, at most 80 characters of it.
pub(crate) fn shown(text: &str) -> String {
    const MAX: usize = 80;
    let mut out: String = text
        .chars()
        .take(MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MAX).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_escapes_and_cuts() {
        assert_eq!(shown("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(shown(&"x".repeat(81)).len(), 83);
        assert_eq!(shown(&"x".repeat(80)).len(), 80);
    }
}
