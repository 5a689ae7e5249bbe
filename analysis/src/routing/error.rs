//! What can be wrong with a routing trace.

use std::io;
use std::path::{Path, PathBuf};

/// Why a routing trace cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum RoutingError {
    /// A file cannot be opened or read.
    #[error("{}: cannot {action} it: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, such as `open`.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The trace or its description is a folder, a pipe or a device.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// The name does not end with `.u8` or `.json`.
    #[error("{}: a routing trace is a file NAME.u8 with its description NAME.json beside it", path.display())]
    Name {
        /// What was given.
        path: PathBuf,
    },
    /// The description is not JSON, or a field is missing or of another type.
    #[error("{}: not the description of a routing trace: {source}", path.display())]
    Json {
        /// The description.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A number of the description is impossible or contradicts another one.
    #[error("{}: {problem}", path.display())]
    Description {
        /// The description.
        path: PathBuf,
        /// Which field, its value, and what it may be.
        problem: String,
    },
    /// The trace has more or fewer bytes than its description says.
    #[error(
        "{}: {size_bytes} bytes, where {} tokens x {} layers x {} experts need {expected_bytes}; \
         its description does not belong to it, or it was cut short",
        path.display(), shape.n_tokens, shape.n_layers, shape.top_k
    )]
    Size {
        /// The trace.
        path: PathBuf,
        /// What it has.
        size_bytes: u64,
        /// What it should have.
        expected_bytes: u64,
        /// What the description says.
        shape: Shape,
    },
    /// An expert's number is too large, or one layer of a token has the same expert twice.
    #[error("{}: token {token}, layer {layer}, rank {rank}: {problem}", path.display())]
    Expert {
        /// The trace.
        path: PathBuf,
        /// The token, from 0.
        token: usize,
        /// The layer, from 0.
        layer: usize,
        /// The rank, from 0.
        rank: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// How many of what a routing trace has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens.
    pub n_tokens: usize,
    /// Layers with experts.
    pub n_layers: usize,
    /// Experts per layer, at most 256.
    pub n_experts: usize,
    /// Experts that a token uses in each layer.
    pub top_k: usize,
}

impl RoutingError {
    pub(super) fn io(path: &Path, action: &'static str, source: io::Error) -> RoutingError {
        RoutingError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    pub(super) fn description(path: &Path, problem: String) -> RoutingError {
        RoutingError::Description {
            path: path.to_owned(),
            problem,
        }
    }
}
