//! The vocabulary is a part of the model.

use llama_rs::{Backend, Model, ModelParams, Vocab};

fn vocab() -> Vocab<'static> {
    let model = Model::load(&Backend::init(), "m.gguf", &ModelParams::default()).unwrap();
    model.vocab()
}

fn main() {
    println!("{}", vocab().n_tokens());
}
