//! Tensors are only lent to a callback.

use std::sync::Mutex;

use llama_rs::{Begin, SliceProvider};

struct Keeping(Mutex<Vec<&'static str>>);

// SAFETY: reads where the file is mapped.
unsafe impl SliceProvider for Keeping {
    fn begin(&self, access: &mut Begin<'_>) {
        self.0.lock().unwrap().push(access.weight.name());
    }
}

fn main() {}
