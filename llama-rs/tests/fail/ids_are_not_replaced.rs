//! The slices of an operation can be reordered, not replaced.

use llama_rs::{Begin, SliceProvider};

struct Replacing;

// SAFETY: reads where the file is mapped.
unsafe impl SliceProvider for Replacing {
    fn begin(&self, access: &mut Begin<'_>) {
        access.ids[0] = 7;
    }
}

fn main() {}
