//! Indices can be read only before the operation: afterwards their memory may be in use for something else.

use llama_rs::{Indices, Pending};

fn keep(pending: &Pending<'_>) -> Option<Indices<'static>> {
    pending.indices(1)
}

fn main() {}
