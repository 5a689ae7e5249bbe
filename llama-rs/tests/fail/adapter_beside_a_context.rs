//! Loading an adapter changes the model: no context may use it meanwhile.

use llama_rs::{Backend, Context, ContextParams, LoraAdapter, Model, ModelParams};

fn main() {
    let mut model = Model::load(&Backend::init(), "m.gguf", &ModelParams::default()).unwrap();
    let context = Context::new(&model, &ContextParams::default()).unwrap();
    let adapter = LoraAdapter::load(&mut model, "a.gguf").unwrap();
    println!("{} {adapter:?}", context.n_ctx());
}
