//! Builds the pinned llama.cpp: locate, copy, patch, verify, cmake, bind.
//!
//! Each stage is a function that returns a [`Result`]; errors name the object and the command that helps. The build
//! script of `llama-sys` runs all of them (`script::run`); [`tools`] and [`reference()`] build programs for
//! comparisons, also from the unpatched tree.
//!
//! # Environment
//!
//! | variable | meaning |
//! |---|---|
//! | `LLAMA_SYS_SOURCE` | a llama.cpp tree to use instead of the pinned one; the series is applied to a copy of it |
//! | `LLAMA_SYS_ASSUME_PATCHED` | `1`: the tree of `LLAMA_SYS_SOURCE` carries the series already; the ABI marker is still required |
//! | `LLAMA_SYS_PATCHES` | another folder with a series, instead of `patches` |
//! | `LLAMA_SYS_BUILD_DIR` | the folder under which the C++ is built, instead of `llama.cpp` in the target folder |
//! | `LLAMA_SYS_NATIVE` | `on` (default): for this machine's CPU; `off`: for every x86-64-v3 CPU (AVX2, BMI2, FMA, F16C) |
//! | `CC`, `CXX`, `CFLAGS`, `CXXFLAGS` | compilers and flags, as cmake reads them |
//! | `CARGO_NET_OFFLINE` | `true`: never download the pinned source |

#![deny(missing_docs)]

#[cfg(feature = "bindings")]
pub mod bindings;
pub mod cmake;
mod command;
pub mod config;
pub mod digest;
pub mod error;
pub mod patch;
pub mod programs;
#[cfg(feature = "bindings")]
pub mod script;
pub mod source;
pub mod sync;
#[cfg(test)]
mod test_files;
pub mod tree;
pub mod upstream;
pub mod workdir;

pub use config::{Config, Patching};
pub use error::{Error, Result};
pub use programs::{reference, tools};
pub use tree::{Prepared, prepare};
