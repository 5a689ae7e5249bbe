//! Continues a text: `cargo run --release -p llama-rs --example simple -- MODEL.gguf "The capital of Germany is"`.

use std::io::Write;
use std::ops::ControlFlow;

use llama_rs::{
    Backend, Context, ContextParams, Model, ModelParams, Prefetch, Sampler, Utf8Stream, generate,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: simple MODEL.gguf PROMPT".into());
    };
    let params = ModelParams {
        prefetch: Prefetch::Selective,
        ..Default::default()
    };
    let model = Model::load(&Backend::init(), path, &params)?;
    let vocab = model.vocab();
    let tokens = vocab.tokenize(&prompt, true, false)?;

    let mut context = Context::new(&model, &ContextParams::default())?;
    let mut text = Utf8Stream::new();
    print!("{prompt}");
    generate(&mut context, &tokens, &mut Sampler::greedy(), 32, |token| {
        print!("{}", text.push(&vocab.piece(token, false)));
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!("{}", text.finish());
    Ok(())
}
