//! A context uses its model: the model cannot go first.

use llama_rs::{Backend, Context, ContextParams, Model, ModelParams};

fn main() {
    let model = Model::load(&Backend::init(), "m.gguf", &ModelParams::default()).unwrap();
    let context = Context::new(&model, &ContextParams::default()).unwrap();
    drop(model);
    println!("{}", context.n_ctx());
}
