//! Generates text with a model that may be larger than memory.
//!
//! ```text
//! cargo run --release -p pager --example generate_paged -- model.gguf 7GiB
//! ```

use std::ops::ControlFlow;

use llama_rs::{Backend, ContextParams, ModelParams, Sampler, Utf8Stream, generate};
use pager::{PagedModel, PagerOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (path, budget) = arguments
        .next()
        .zip(arguments.next())
        .ok_or("usage: generate MODEL BUDGET, with a budget such as 7GiB, 50% or auto")?;
    let options = PagerOptions::with_budget(budget.parse()?);
    let paged = PagedModel::load(&Backend::init(), path, &ModelParams::default(), options)?;
    let (mut context, pager) = paged.context(&ContextParams::default())?;
    eprintln!("{}{}", pager.plan(), pager.reads());

    let vocab = paged.model().vocab();
    let prompt = vocab.tokenize("The capital of Germany is", true, true)?;
    let mut text = Utf8Stream::new();
    generate(&mut context, &prompt, &mut Sampler::greedy(), 16, |token| {
        print!("{}", text.push(&vocab.piece(token, false)));
        ControlFlow::Continue(())
    })?;
    println!();
    let total = pager.counters().total;
    eprintln!("{:.1} % hits", 100.0 * total.hit_rate());
    Ok(())
}
