//! Routing traces: which experts a model's routers chose, token by token.
//!
//! A trace is two files. `NAME.u8` has one byte per choice, the expert's number, as
//! `[token][layer][rank]` in C order, with the most probable expert at rank 0. `NAME.json` says how
//! many of each there are and how long the sequences are that follow each other in the trace:
//!
//! ```json
//! { "n_layer": 24, "n_expert": 32, "n_expert_used": 4, "tokens": 12186, "sequence_lengths": [434, 11752] }
//! ```
//!
//! Other fields are for people, except `model`, which [`RoutingTrace::model`] returns.

mod description;
mod error;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use description::Description;

pub use error::{RoutingError, Shape};

/// The largest trace that is read: it is kept in memory.
const SIZE_MAX_BYTES: u64 = 1 << 30;

/// A routing trace, checked and in memory: one byte per choice.
///
/// ```no_run
/// # fn main() -> Result<(), analysis::routing::RoutingError> {
/// let trace = analysis::routing::RoutingTrace::open("gpt-oss-20b.gpqa_main.routes.u8")?;
/// for sequence in trace.sequences() {
///     for token in sequence {
///         let experts: &[u8] = trace.token(token).layer(0);
///         println!("token {token} uses experts {experts:?} of layer 0");
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RoutingTrace {
    path: PathBuf,
    shape: Shape,
    model: Option<String>,
    sequence_lengths: Vec<usize>,
    experts: Vec<u8>,
}

impl RoutingTrace {
    /// Reads and checks a trace. `path` is either of its two files; the other one is beside it.
    ///
    /// # Errors
    ///
    /// Every variant of [`RoutingError`]; the trace is at most 1 GiB.
    pub fn open(path: impl AsRef<Path>) -> Result<RoutingTrace, RoutingError> {
        let (data_path, description_path) = both_paths(path.as_ref())?;
        let description = Description::read(&description_path)?;
        let shape = description.shape;
        let expected_bytes = description.size_bytes;

        let (mut file, size_bytes) = open_file(&data_path)?;
        if size_bytes != expected_bytes {
            return Err(RoutingError::Size {
                path: data_path,
                size_bytes,
                expected_bytes,
                shape,
            });
        }
        let mut experts = vec![0; expected_bytes as usize];
        file.read_exact(&mut experts)
            .map_err(|source| RoutingError::io(&data_path, "read", source))?;
        check_experts(&data_path, &shape, &experts)?;
        Ok(RoutingTrace {
            path: data_path,
            shape,
            model: description.model,
            sequence_lengths: description.sequence_lengths,
            experts,
        })
    }

    /// A trace from memory; `name` stands for it in errors.
    ///
    /// # Errors
    ///
    /// As [`RoutingTrace::open`], except those of files.
    pub fn from_parts(
        name: impl AsRef<Path>,
        shape: Shape,
        sequence_lengths: Vec<usize>,
        experts: Vec<u8>,
    ) -> Result<RoutingTrace, RoutingError> {
        let path = name.as_ref();
        let expected_bytes = description::check(path, &shape, &sequence_lengths)?;
        if experts.len() as u64 != expected_bytes {
            return Err(RoutingError::Size {
                path: path.to_owned(),
                size_bytes: experts.len() as u64,
                expected_bytes,
                shape,
            });
        }
        check_experts(path, &shape, &experts)?;
        Ok(RoutingTrace {
            path: path.to_owned(),
            shape,
            model: None,
            sequence_lengths,
            experts,
        })
    }

    /// The file with the experts.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model that the trace is of, if the description names it.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// All four sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Layers with experts.
    pub fn n_layers(&self) -> usize {
        self.shape.n_layers
    }

    /// Experts per layer, at most 256.
    pub fn n_experts(&self) -> usize {
        self.shape.n_experts
    }

    /// Experts that a token uses in each layer.
    pub fn top_k(&self) -> usize {
        self.shape.top_k
    }

    /// Tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.shape.n_tokens
    }

    /// The tokens of each sequence, as ranges that follow each other without gaps.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        let mut begin = 0;
        self.sequence_lengths.iter().map(move |length| {
            let range = begin..begin + length;
            begin = range.end;
            range
        })
    }

    /// The choices of one token.
    ///
    /// # Panics
    ///
    /// If there are no more than `token` tokens.
    pub fn token(&self, token: usize) -> Token<'_> {
        let stride = self.shape.n_layers * self.shape.top_k;
        Token {
            experts: &self.experts[token * stride..][..stride],
            top_k: self.shape.top_k,
        }
    }
}

/// The choices of one token, from [`RoutingTrace::token`].
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    experts: &'a [u8],
    top_k: usize,
}

impl<'a> Token<'a> {
    /// The experts of one layer by rank, the most probable first. No expert is there twice.
    ///
    /// # Panics
    ///
    /// If there are no more than `layer` layers.
    pub fn layer(&self, layer: usize) -> &'a [u8] {
        &self.experts[layer * self.top_k..][..self.top_k]
    }

    /// The experts of every layer, from the first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        self.experts.chunks_exact(self.top_k)
    }
}

/// The file of experts and the description, whichever was given.
fn both_paths(path: &Path) -> Result<(PathBuf, PathBuf), RoutingError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("u8" | "json") => Ok((path.with_extension("u8"), path.with_extension("json"))),
        _ => Err(RoutingError::Name {
            path: path.to_owned(),
        }),
    }
}

/// Opens a regular file and says how large it is.
fn open_file(path: &Path) -> Result<(File, u64), RoutingError> {
    let kind = |metadata: std::fs::Metadata| {
        if metadata.is_file() {
            Ok(metadata.len())
        } else {
            Err(RoutingError::NotAFile {
                path: path.to_owned(),
            })
        }
    };
    let error = |source: io::Error| RoutingError::io(path, "open", source);
    // Asked first: opening a pipe would wait for somebody to write into it.
    kind(path.metadata().map_err(error)?)?;
    let file = File::open(path).map_err(error)?;
    let size_bytes = kind(file.metadata().map_err(error)?)?;
    Ok((file, size_bytes))
}

fn check_experts(path: &Path, shape: &Shape, experts: &[u8]) -> Result<(), RoutingError> {
    for (index, choices) in experts.chunks_exact(shape.top_k).enumerate() {
        let mut seen = [0u64; 4];
        for (rank, &expert) in choices.iter().enumerate() {
            let (word, bit) = (usize::from(expert >> 6), 1 << (expert & 63));
            let problem = if usize::from(expert) >= shape.n_experts {
                format!("expert {expert}, where there are {}", shape.n_experts)
            } else if seen[word] & bit != 0 {
                format!("expert {expert} a second time")
            } else {
                seen[word] |= bit;
                continue;
            };
            return Err(RoutingError::Expert {
                path: path.to_owned(),
                token: index / shape.n_layers,
                layer: index % shape.n_layers,
                rank,
                problem,
            });
        }
    }
    Ok(())
}
