//! Addresses given to C are promised to be readable: implementing the trait is unsafe.

use llama_rs::{Begin, SliceProvider};

struct Careless;

impl SliceProvider for Careless {
    fn begin(&self, _access: &mut Begin<'_>) {}
}

fn main() {}
