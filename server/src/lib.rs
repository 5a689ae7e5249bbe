//! Models that load on demand, stay within a budget of memory, and leave when idle.
#![deny(missing_docs)]

pub mod config;
pub mod lifecycle;
