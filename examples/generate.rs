use std::ops::ControlFlow;

use llama_rs::{
    Advise, Backend, Context, ContextParams, Model, ModelParams, Prefetch, Sampler, Utf8Stream,
    generate,
};

fn main() -> llama_rs::Result<()> {
    let path = std::env::args().nth(1).expect("usage: generate MODEL");
    let params = ModelParams {
        prefetch: Prefetch::Selective,
        ..Default::default()
    };
    let model = Model::load(&Backend::init(), path, &params)?;
    let mut context = Context::new(&model, &ContextParams::default())?;
    context.set_slice_provider(Advise::new(&model)?)?;
    let prompt = model
        .vocab()
        .tokenize("The capital of Germany is", true, true)?;
    let mut text = Utf8Stream::new();
    generate(&mut context, &prompt, &mut Sampler::greedy(), 16, |token| {
        print!("{}", text.push(&model.vocab().piece(token, false)));
        ControlFlow::Continue(())
    })?;
    Ok(())
}
