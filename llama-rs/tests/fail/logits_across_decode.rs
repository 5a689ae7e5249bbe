//! The next decode overwrites the logits.

use llama_rs::{Backend, Batch, Context, ContextParams, Model, ModelParams};

fn main() {
    let model = Model::load(&Backend::init(), "m.gguf", &ModelParams::default()).unwrap();
    let mut context = Context::new(&model, &ContextParams::default()).unwrap();
    let batch = Batch::new(1, 1);
    let logits = context.logits(0).unwrap();
    context.decode(&batch).unwrap();
    println!("{}", logits[0]);
}
