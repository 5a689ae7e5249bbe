//! Records what a prompt reads, and sums it up: `cargo run --release --example record -- MODEL.gguf run.ftrace`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use llama_rs::{Backend, Context, ContextParams, Model, ModelParams, Sampler, generate};
use tracer::{CAPACITY_BYTES_DEFAULT, LogReader, OnFull, Recorder, WHOLE};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(log)) = (arguments.next(), arguments.next()) else {
        return Err("usage: record MODEL.gguf run.ftrace".into());
    };
    let model = Model::load(&Backend::init(), model, &ModelParams::default())?;
    let mut context = Context::new(&model, &ContextParams::default())?;

    let recorder = Recorder::create(&log, &model, CAPACITY_BYTES_DEFAULT, OnFull::Wrap)?;
    context.set_observer(recorder)?;
    let prompt = model
        .vocab()
        .tokenize("Why is the sky blue?", true, false)?;
    generate(&mut context, &prompt, &mut Sampler::greedy(), 16, |_| {
        ControlFlow::Continue(())
    })?;
    let recorder: Option<Recorder> = context.take_observer();
    recorder.expect("it was set above").finish()?;

    let log = LogReader::open(&log)?;
    let mut bytes = BTreeMap::<&str, u64>::new();
    for record in log.records() {
        let record = record?;
        let tensor = log.tables().tensors.get(record.tensor as usize);
        if let Some(tensor) = tensor.filter(|_| !record.op.is_mark()) {
            let read_bytes = match record.slice {
                WHOLE => tensor.size_bytes,
                _ => tensor.slice_stride_bytes,
            };
            *bytes.entry(&tensor.component).or_default() += read_bytes;
        }
    }
    for (component, bytes) in bytes {
        println!(
            "{component:<20} {:>10.1} MiB",
            bytes as f64 / f64::from(1 << 20)
        );
    }
    Ok(())
}
