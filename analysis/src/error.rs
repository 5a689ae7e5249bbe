//! What can go wrong between an input and an answer.

use std::io;
use std::path::PathBuf;

/// Why there is no answer. Messages name the file and what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file cannot be read.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// A log, or the place of a file on its device, cannot be read.
    #[error(transparent)]
    Log(#[from] tracer::Error),
    /// The log was recorded with another model.
    #[error(
        "{}: a log of another model than {}: it was recorded with {recorded}, and {difference}; \
         name the model that was recorded",
        log.display(),
        model.display()
    )]
    OtherModel {
        /// The log.
        log: PathBuf,
        /// The model that was named beside it.
        model: PathBuf,
        /// The model that the log names.
        recorded: String,
        /// How the two differ.
        difference: String,
    },
    /// A file that is neither a log nor a report.
    #[error("{}: is no report of `faultline report -o json`: {problem}", path.display())]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The output would replace an input.
    #[error("{}: is the input; write to another file", path.display())]
    OutputIsInput {
        /// The file.
        path: PathBuf,
    },
    /// A change of the options of a prediction cannot be used.
    #[error("{problem}")]
    Change {
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The kernel's account of a process cannot be read.
    #[error("{path}: cannot read: {source}")]
    Process {
        /// The file in `/proc`.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// This format is not for a stream.
    #[error("parquet is written to a file: name one with -o FILE")]
    NeedsFile,
    /// The output cannot be made.
    #[error("{}: cannot {action}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The output cannot be written to.
    #[error("{output}: cannot write: {source}")]
    Write {
        /// The file, or `standard output`.
        output: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Whether another input or another place for the output would have helped.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Error::Write { .. } | Error::Process { .. })
    }

    /// Whether the reader of the output went away, which is no failure.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Write { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}
