//! Models that load on demand, stay within a budget of memory, and leave when idle.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the TOML file |
//! | [`lifecycle`] | which model is loaded when: decisions only |
//! | [`host`] | the threads that load and serve models, as the lifecycle decides |
//! | [`engine`], [`llama`] | what a model's thread does: load, and compute |
//! | [`generate`] | several requests in one batch, stop strings, text |
//! | [`http`] | the API: OpenAI's, llama-server's, and a page |
//! | [`memory`] | what the kernel says about this process's memory |
//! | [`check`] | measurements against thresholds |
//! | [`start`] | a server from a configuration, until a signal |
//! | [`client`], [`listing`] | the other side, for the command line |
//!
//! llama.cpp runs in one thread for each loaded model, and never in those that serve connections.
#![deny(missing_docs)]

pub mod check;
pub mod client;
pub mod config;
pub mod counters;
pub mod engine;
pub mod generate;
pub mod host;
pub mod http;
pub mod lifecycle;
pub mod listing;
pub mod llama;
pub mod memory;
pub mod start;
mod states;
#[cfg(test)]
mod testing;
