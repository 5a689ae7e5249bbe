//! Records a run in which the experts are those of a routing trace, with what the kernel did for it:
//! `cargo run --release --example record_routed -- MODEL.gguf TRACE.routes.u8 run.ftrace N_PROMPT N_TOKENS`.
//!
//! For models with the shape of a real one and random weights, whose own choices would be random, too. Needs root, as
//! `faultline record --faults --block` does. A memory limit is the caller's: start it in a memory group.

use std::ops::ControlFlow;
use std::path::Path;

use analysis::routing::RoutingTrace;
use llama_rs::{
    Backend, Context, ContextParams, Generation, Model, ModelParams, Pick, Prefetch, Router,
    Sampler, Step, Token,
};
use tracer::{KernelOptions, OnFull, Recorder};

/// Answers with the trace's choices, token after token.
struct Replay {
    trace: RoutingTrace,
    /// Tokens of the decodes before this one.
    done: usize,
}

impl Router for Replay {
    fn route(&mut self, pick: Pick, experts: &mut [u32]) {
        let token = self.trace.token(self.done + pick.token);
        let chosen = token.layers().nth(pick.layer as usize);
        let chosen = chosen.expect("the trace has as many layers as the model");
        for (expert, chosen) in experts.iter_mut().zip(chosen) {
            *expert = u32::from(*chosen);
        }
    }

    fn step_end(&mut self, step: &Step<'_>, _: bool) {
        self.done += step.n_tokens();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_path, trace, log, n_prompt, n_tokens] = arguments.as_slice() else {
        return Err("usage: record_routed MODEL TRACE LOG N_PROMPT N_TOKENS".into());
    };
    let (n_prompt, n_tokens): (usize, usize) = (n_prompt.parse()?, n_tokens.parse()?);
    let trace = RoutingTrace::open(Path::new(trace))?;
    if trace.n_tokens() < n_prompt + n_tokens {
        return Err(format!("the trace has {} tokens", trace.n_tokens()).into());
    }
    let files = gguf::ModelFiles::open(Path::new(model_path))?;
    let mut recorder = Recorder::open(log, &files, 1 << 30, OnFull::Stop)?;
    recorder.watch_kernel(&KernelOptions {
        faults: true,
        block: true,
        residency_steps: Some(8),
    })?;
    let params = ModelParams {
        prefetch: Prefetch::None,
        repack: false,
        ..ModelParams::default()
    };
    let model = Model::load(&Backend::init(), model_path, &params)?;
    recorder.model_loaded(&model);
    let router = Replay { trace, done: 0 };
    let mut context = Context::with_router(&model, &ContextParams::default(), router)?;
    context.set_observer(recorder)?;
    let prompt: Vec<Token> = (0..n_prompt as i32).map(|id| Token(1000 + id)).collect();
    let mut generation = Generation::new(n_tokens);
    generation.ignore_end = true;
    generation.run(&mut context, &prompt, &mut Sampler::greedy(), |_| {
        ControlFlow::Continue(())
    })?;
    let recorder: Option<Recorder> = context.take_observer();
    let mut recorder = recorder.expect("it was set above");
    recorder.end_watch();
    let summary = recorder.finish()?;
    println!(
        "{log}: {} bytes, {} records lost",
        summary.size_bytes, summary.n_lost
    );
    Ok(())
}
