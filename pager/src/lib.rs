//! Weights of a model within a memory budget.
#![deny(missing_docs)]

pub mod engine;
