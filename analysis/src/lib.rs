//! Answers from GGUF files, access logs and routing traces.
//!
//! Nothing here links llama.cpp, and logs are streamed: they may be larger than memory.
#![deny(missing_docs)]

pub mod routing;
pub mod simulate;
