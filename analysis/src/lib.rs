//! Answers from GGUF files, access logs and routing traces.
//!
//! [`map`] is the structure of a model's files; [`log`] reads an access log as rows that name tensor, slice,
//! place and token; [`export`] writes those rows as CSV, Parquet or a Chrome trace. [`simulate`] plays what was used
//! through caches, [`memory`] says what a model takes in memory before it is loaded, and [`roofline`] says which speed a budget permits at most.
//!
//! Nothing here links llama.cpp, and logs are streamed: they may be larger than memory.
#![deny(missing_docs)]

mod columns;
mod error;
pub mod export;
pub mod log;
pub mod map;
pub mod memory;
mod output;
pub mod report;
pub mod roofline;
pub mod routing;
pub mod simulate;
mod text;

pub use error::Error;
pub use output::Target;

/// What most functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;
