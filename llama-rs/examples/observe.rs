//! Counts the bytes of weights that each token consumes: `cargo run --release -p llama-rs --example observe -- MODEL.gguf`.

use std::ops::ControlFlow;

use llama_rs::{
    AccessReader, Backend, Context, ContextParams, Model, ModelParams, NodeObserver, Pending,
    Sampler, Step, generate,
};

/// Bytes of weights that were read, by step.
#[derive(Default)]
struct Consumed {
    reader: AccessReader,
    bytes: Vec<u64>,
}

impl NodeObserver for Consumed {
    fn step_begin(&mut self, _: &Step<'_>) {
        self.bytes.push(0);
    }

    fn before(&mut self, pending: &Pending<'_>) {
        if let Some(bytes) = self.bytes.last_mut() {
            self.reader
                .read(pending, |access| *bytes += access.size_bytes);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: observe MODEL.gguf")?;
    let model = Model::load(&Backend::init(), path, &ModelParams::default())?;
    let mut context = Context::new(&model, &ContextParams::default())?;
    context.set_observer(Consumed::default())?;
    let prompt = model
        .vocab()
        .tokenize("Why is the sky blue?", true, false)?;
    generate(&mut context, &prompt, &mut Sampler::greedy(), 8, |_| {
        ControlFlow::Continue(())
    })?;
    let consumed: Option<Consumed> = context.take_observer();
    for (step, bytes) in consumed
        .into_iter()
        .flat_map(|consumed| consumed.bytes)
        .enumerate()
    {
        println!("step {step}: {:.1} MiB", bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}
