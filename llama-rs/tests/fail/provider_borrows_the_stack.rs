//! The context owns its provider, so that it lives as long as llama.cpp may call it.

use std::sync::atomic::{AtomicU32, Ordering};

use llama_rs::{Backend, Begin, Context, ContextParams, Model, ModelParams, SliceProvider};

struct Counting<'a>(&'a AtomicU32);

// SAFETY: reads where the file is mapped.
unsafe impl SliceProvider for Counting<'_> {
    fn begin(&self, _access: &mut Begin<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    let model = Model::load(&Backend::init(), "m.gguf", &ModelParams::default()).unwrap();
    let mut context = Context::new(&model, &ContextParams::default()).unwrap();
    let count = AtomicU32::new(0);
    context.set_slice_provider(Counting(&count)).unwrap();
}
